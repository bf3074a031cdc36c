"""The state before the first round."""

from functools import partial

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.types import FedState, Sharing, SiteState


def init_program(rule, sharing, compression, aggregator, server_optimizer, num_sites: int):
  """(adapter [*p]) -> the state before the first round, with the sites' leaves [S, *p].

  To be compiled, so that it is never all on one device.
  """

  def init(adapter):
    server_ctrl, site_ctrl = rule.init(adapter)
    site = SiteState(private_leaves(sharing, adapter), site_ctrl, compression.init(adapter))
    copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], num_sites, axis=0), site)
    # Copies, because a round donates its state and the caller may keep `adapter`.
    copied = partial(jax.tree.map, jnp.array)
    return FedState(
      jnp.int32(0), copied(adapter), aggregator.fold(adapter), copied(server_ctrl),
      server_optimizer.init(adapter), copied(aggregator.init(adapter, num_sites)), copies)

  return init


def private_leaves(sharing: Sharing, adapter):
  """The leaves [*p] a site keeps to itself; a scalar f[] stands for a shared one.

  A scalar because checkpoints refuse arrays of size 0.
  """
  return tree.choose(
    sharing.shared, jax.tree.map(lambda x: jnp.zeros((), x.dtype), adapter), adapter)
