"""FedBuff's half on devices: sites start from older adapters, which are kept while in use.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv:2106.06639. The server takes a step as soon as K updates are in its buffer. An update that has
started tau steps of the server ago counts s(tau) = 1 / sqrt(1 + tau) times.

A round is here a step of the server, and its cohort are the K sites of the buffer (`buffered.py`
says which). They are trained when their updates are used, from the adapters that they were sent
when they started: the result is the same, and one compiled program serves all steps. Deviations:
- The paper's mean over the buffer is 1 / K sum s(tau_k) update_k; with fed.size_power 0 it is ours,
  otherwise K is replaced by sizes: sum (n_k / n) s(tau_k) update_k. Both are the aggregator's.
- Nothing is discarded for its age.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed.anchors import Anchors
from fedmedjax.fed.types import Array, Tree


class InFlight(NamedTuple):
  """What the server keeps beside its newest adapter."""

  adapters: Tree  # [F, *p], those from which updates to come have started
  place: Array    # i32[S], in which of the F places the adapter is from which a site started


def in_flight(places: int) -> Anchors:
  """Sites start from adapters [F, *p] of earlier steps; where none is stale it is FedAvg.

  A round without a `Delay` has sites that all start from the newest adapter.

  Args:
    places: F, of `buffered.places`.
  """
  def init(state, num_sites):
    copies = jax.tree.map(lambda x: jnp.repeat(x[None], places, axis=0), state.adapter)
    return state._replace(anchors=InFlight(copies, jnp.zeros(num_sites, jnp.int32)))

  def begin(state, delay, cohort):
    write, read = (0, 0) if delay is None else (delay.write, delay.read)
    kept = jax.tree.map(
      lambda all_, new: all_.at[write].set(new), state.anchors.adapters, state.adapter)
    return state._replace(anchors=InFlight(kept, state.anchors.place.at[cohort].set(read)))

  def start(state, site):
    return jax.tree.map(lambda x: x[state.anchors.place[site]], state.anchors.adapters)

  def arrived(sent, delay):
    if delay is None:
      return sent
    share = 1 / jnp.sqrt(1.0 + delay.stale)
    return jax.tree.map(
      lambda x: share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype) * x, sent)

  return Anchors(
    init, begin, start, arrived, lambda half, state, sent, weight, cohort: half(state, True))
