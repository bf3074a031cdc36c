"""How the sites of a cohort are laid on the hardware; the results do not depend on it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedmedjax.fed.types import FedState


class Spread(NamedTuple):
  """Sites are computed on different devices: along `axes` of a mesh. The other axes share."""

  mesh: Mesh
  axes: tuple[str, ...]

  @property
  def parts(self) -> int:
    """Groups of devices, each with sites of its own."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes)


def map_sites(chunk: int, lanes: Callable = jax.vmap):
  """A map over the leading (site) axis of every argument.

  Args:
    chunk: sites computed at once. 0 = all of them (vmap: the sites fold into the batch of each
      frozen matrix product), 1 = one after the other (least memory; on CPU the fastest), n =
      chunks of n.
    lanes: how those computed at once are, `jax.vmap` or `spread_lanes(...)`.
  """
  if chunk == 0:
    return lanes
  if lanes is jax.vmap:
    batch_size = None if chunk == 1 else chunk
    return lambda fn: lambda *args: jax.lax.map(lambda xs: fn(*xs), args, batch_size=batch_size)
  return partial(_chunks, chunk, lanes)


def _chunks(chunk: int, lanes: Callable, fn: Callable) -> Callable:
  """As `jax.lax.map` with a batch size, which always takes jax.vmap."""

  def mapped(*args):
    chunks = _count(args) // chunk
    whole = chunks * chunk
    first = jax.tree.map(lambda x: x[:whole].reshape(chunks, chunk, *x.shape[1:]), args)
    out = jax.lax.map(lambda xs: lanes(fn)(*xs), first)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if whole == _count(args):
      return out
    rest = lanes(fn)(*jax.tree.map(lambda x: x[whole:], args))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

  return mapped


def _count(args) -> int:
  return jax.tree.leaves(args)[0].shape[0]


def spread_lanes(spread: Spread) -> Callable:
  """`jax.vmap` over sites, with as many on each group of devices.

  Where they are not a multiple of the groups, sites of zeros fill the places: without steps, and
  of results that are cut off.
  """
  mesh, axes, parts = *spread, spread.parts
  if parts == 1:
    return jax.vmap

  def split(tree):
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(axes)))

  def lanes(fn):
    def mapped(*args):
      count = _count(args)
      missing = -count % parts
      args = jax.tree.map(
        lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x, args)
      out = split(jax.vmap(fn, spmd_axis_name=axes)(*split(args)))
      return jax.tree.map(lambda x: x[:count], out)

    return mapped

  return lanes


def spread_state(spread: Spread) -> Callable[[FedState], FedState]:
  """The server's state on every device; what sites keep on those that compute them.

  Sites that the groups of devices do not divide are kept everywhere.
  """
  whole = NamedSharding(spread.mesh, PartitionSpec())
  rows = NamedSharding(spread.mesh, PartitionSpec(spread.axes))

  def of_sites(leaf):
    return jax.lax.with_sharding_constraint(leaf, whole if leaf.shape[0] % spread.parts else rows)

  def place(state: FedState) -> FedState:
    server = jax.lax.with_sharding_constraint(state._replace(sites=()), whole)
    return server._replace(sites=jax.tree.map(of_sites, state.sites))

  return place
