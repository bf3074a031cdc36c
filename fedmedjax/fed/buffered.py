"""FedBuff's half on the host: which sites fill the buffer, on the simulated clock.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv:2106.06639: `concurrency` is the paper's M_c, the sites that compute at any time, `size` its
K, the updates of the buffer with which the server takes a step. Deviations, ours:
- A site whose update is in the buffer does not start again before the server has stepped. No site
  is then twice in a buffer, as the paper also asks, but fewer than `concurrency` sites compute
  where there are no others.
- What happens at the same instant is taken together: first all updates come in, then the server
  steps as often as the buffer is full, then sites start. Without delays, and where no more compute
  than the buffer holds, the steps are FedAvg's rounds with the cohorts of `participation.uniform`;
  where more do, updates wait for their turn and are older than the server by then.
- A site needs the same time each time, and messages need none.

All is a function of (seed, step), played from the beginning, so that a resumed run needs no state.
"""

from typing import NamedTuple

import numpy as np

from fedmedjax.fed.participation import Arrivals, Cohort, Sampler, site_order
from fedmedjax.fed.types import Delay
from fedmedjax.types import InputError


class _Run(NamedTuple):
  """A site that computes, or whose update is in the buffer."""

  end: float      # simulated seconds
  site: int
  version: int    # steps of the server before it started


def places(num_sites: int, concurrency: int, size: int) -> int:
  """i[]: F, how many adapters are in use at most at a step, and one place for one that is not.

  Those that compute and those in a buffer that is not full, but no more than there are sites.
  """
  return min(num_sites, concurrency + size - 1) + 1


def buffered(seconds: np.ndarray, concurrency: int, size: int, seed: int) -> Sampler:
  """The cohorts i32[K] of the server's steps, with their `Delay`.

  Args:
    seconds: f64[S], simulated seconds of a site's local training; infinite = it has none.
    concurrency: sites that compute at any time.
    size: K, updates in a full buffer.
    seed: of the sites that start.

  Raises:
    InputError: fewer than K sites have anything to train on.
  """
  able = int(np.isfinite(seconds).sum())
  if able < size:
    raise InputError(
      f'config.fed.buffer={size}: only {able} sites have notes to train on, and no site is twice '
      'in a buffer')
  clock = _Clock(seconds, concurrency, size, seed)

  def arrivals(number: int) -> Arrivals:
    while len(clock.steps) <= number:
      clock.play()
    return clock.steps[number]

  def draw(number: int) -> Cohort:
    sites = arrivals(number).sites
    return Cohort(sites, np.ones(len(sites), bool))

  return Sampler(size, np.full(len(seconds), size / len(seconds)), draw, arrivals)


class _Clock:
  """The simulated clock; each `play` goes to the next instant at which an update comes in."""

  def __init__(self, seconds: np.ndarray, concurrency: int, size: int, seed: int):
    self.steps: list[Arrivals] = []
    self._seconds, self._concurrency, self._size, self._seed = seconds, concurrency, size, seed
    self._computing: list[_Run] = []
    self._buffer: list[_Run] = []
    self._drawn, self._last = 0, 0.0
    self._held: dict[int, int] = {}  # version: its place
    self._spare = places(len(seconds), concurrency, size) - 1
    self._start(0.0)

  def play(self) -> None:
    now = min(run.end for run in self._computing)
    self._buffer += sorted(
      (run for run in self._computing if run.end == now), key=lambda run: run.site)
    self._computing = [run for run in self._computing if run.end != now]
    while len(self._buffer) >= self._size:
      full, self._buffer = self._buffer[:self._size], self._buffer[self._size:]
      self._step(sorted(full, key=lambda run: run.site), now)
    self._start(now)

  def _step(self, full: list[_Run], now: float) -> None:
    version = len(self.steps)
    delay = Delay(
      np.int32(self._held.get(version, self._spare)),
      np.asarray([self._held[run.version] for run in full], np.int32),
      np.asarray([version - run.version for run in full], np.int32))
    sites = np.asarray([run.site for run in full], np.int32)
    self.steps.append(Arrivals(sites, delay, self._seconds[sites], now - self._last))
    self._last = now
    used = {run.version for run in (*self._computing, *self._buffer)}
    self._held = {one: place for one, place in self._held.items() if one in used}

  def _start(self, now: float) -> None:
    """As many sites start as may compute, of those that do not and have no update in the buffer."""
    busy = {run.site for run in (*self._computing, *self._buffer)}
    free = self._concurrency - len(self._computing)
    if free <= 0 or len(busy) == len(self._seconds):
      return
    order = site_order(len(self._seconds), self._seed, self._drawn)
    self._drawn += 1
    version = len(self.steps)
    for site in [s for s in order if s not in busy and np.isfinite(self._seconds[s])][:free]:
      self._computing.append(_Run(now + self._seconds[site], int(site), version))
      if version not in self._held:
        self._held[version] = min(set(range(self._spare)) - set(self._held.values()))
