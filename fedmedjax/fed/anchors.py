"""From which adapters of the server's the sites start, where it has several."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from fedmedjax.fed.types import Array, Delay, FedState, Tree

# (state of one adapter [*p], S) -> state with what is kept beside it
AnchorsInit = Callable[[FedState, int], FedState]
# (state, delay or None, cohort i32[C]) -> state
AnchorsBegin = Callable[[FedState, Delay | None, Array], FedState]
# (state, site i32[]) -> the adapter [*p] from which it starts
AnchorsStart = Callable[[FedState, Array], Tree]
# (updates [C, *p], delay or None) -> [C, *p]
AnchorsArrived = Callable[[Tree, Delay | None], Tree]
# (state of one adapter, bool[C] whose updates are for it, or True) -> (state, metrics by name)
ServerHalf = Callable[[FedState, Array | bool], tuple[FedState, dict]]


class AnchorsServer(Protocol):
  """The server's half of a round, as often as it has adapters."""

  def __call__(
    self, half: ServerHalf, state: FedState, sent: Tree, weight: Array, cohort: Array, /
  ) -> tuple[FedState, dict]:
    """half, state, sent [C, *p], n_k f32[C] (0 = does not count), cohort i32[C]."""


class Anchors(NamedTuple):
  """From which adapters of the server's the sites start, and which ones their updates move.

  Usually there is one, the newest (`newest`). Others are in `flight.py` and `clusters.py`.
  """

  init: AnchorsInit        # once
  begin: AnchorsBegin      # before the sites of a round train
  start: AnchorsStart
  arrived: AnchorsArrived  # after quarantine, before the aggregator
  server: AnchorsServer


def newest() -> Anchors:
  """One adapter [*p], from which all sites start and which all updates [C, *p] move: FedAvg."""
  return Anchors(
    lambda state, num_sites: state, lambda state, delay, cohort: state,
    lambda state, site: state.adapter, lambda sent, delay: sent,
    lambda half, state, sent, weight, cohort: half(state, True))
