"""Who takes part in a round, how far each site comes, and how long the round would last.

Everything is a function of (seed, round, site), computed on the host before the round: a resumed
run needs no state. C is the same in all rounds, so that one compiled round serves them all.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import bdtrc

# In place of a round, for a site that took part in none.
NEVER = -1
# Odds that a Poisson cohort is larger than the places kept for it.
_OVERFLOW = 1e-12


class Cohort(NamedTuple):
  """The sites of one round. Padding is filled with sites that were not drawn: none comes twice."""

  sites: np.ndarray      # i32[C], those that are present in ascending order, then padding
  present: np.ndarray    # bool[C]; False = padding


class Sampler(NamedTuple):
  """Draws the cohorts."""

  size: int              # C
  inclusion: np.ndarray  # f64[S], in (0, 1]: how often a site is drawn
  draw: Callable[[int], Cohort]  # of a round


class Fleet(NamedTuple):
  """How fast and how reliable the sites are, for simulation."""

  seed: int
  step_seconds: np.ndarray  # f64[S], of one local step
  byte_seconds: np.ndarray  # f64[S], of one byte sent or received
  failure: float            # chance that a site breaks down in a round
  deadline: float           # seconds that the server waits; infinite = for everyone


class Participation(NamedTuple):
  """One round as it went. A site that sends nothing has 0 steps and weight 0."""

  cohort: Cohort
  steps: np.ndarray      # i32[C] local steps that count
  weights: np.ndarray    # f32[C]
  seconds: np.ndarray    # f64[C] until the site has sent, broke down or was given up; 0 = padding

  @property
  def round_seconds(self) -> float:
    """Of the whole round: the server waits for the last one."""
    return float(self.seconds.max())


def _rng(seed: int, use: str, number: int = 0) -> np.random.Generator:
  # Not the name's letters, nor a small number: (1, 2) and (1, 2, 0) would seed the same stream.
  return np.random.default_rng((seed, zlib.crc32(use.encode()), number + 1))


def uniform(num_sites: int, cohort_size: int, seed: int) -> Sampler:
  """C of S sites, every cohort as likely as any other; FedAvg, arXiv:1602.05629. C = S: all."""

  def draw(number):
    order = _rng(seed, 'cohort', number).permutation(num_sites)
    return _cohort(order[:cohort_size], cohort_size, num_sites)

  return Sampler(cohort_size, np.full(num_sites, cohort_size / num_sites), draw)


def by_size(sizes: np.ndarray, cohort_size: int, seed: int) -> Sampler:
  """C different sites, site k with probability pi_k = min(1, c n_k), c such that they sum to C.

  Systematic sampling (Madow, Annals of Mathematical Statistics 20, 1949): in a random order the
  pi_k are laid end to end, and the sites are taken in which u, u + 1, u + 2, ... fall. Drawing one
  after the other without replacement would not have these probabilities.

  Args:
    sizes: f[S], n_k > 0.
  """
  inclusion = _inclusion(np.asarray(sizes, np.float64), cohort_size)
  certain = inclusion == 1

  def draw(number):
    rng = _rng(seed, 'cohort', number)
    order = rng.permutation(np.flatnonzero(~certain))
    places = cohort_size - certain.sum()
    ends = np.cumsum(inclusion[order])
    # They sum to `places` but for rounding, which must not lose the last one.
    found = np.searchsorted(
      ends * (places / ends[-1:]), rng.random() + np.arange(places), side='right')
    chosen = np.concatenate([np.flatnonzero(certain), order[found]])
    return _cohort(chosen, cohort_size, len(sizes))

  return Sampler(cohort_size, inclusion, draw)


def _inclusion(sizes: np.ndarray, cohort_size: int) -> np.ndarray:
  """min(1, c n_k) with sum C. Large sites come always, which leaves fewer places for the rest."""
  certain = np.zeros(len(sizes), bool)
  while True:
    places = cohort_size - certain.sum()
    chances = np.where(certain, 1.0, places * sizes / max(sizes[~certain].sum(), 1e-30))
    over = ~certain & (chances > 1 - 1e-9)
    if not over.any():
      return chances
    certain |= over


def poisson(num_sites: int, mean: int, seed: int) -> Sampler:
  """Every site on its own with probability mean / S, as privacy accounting supposes.

  Abadi et al., arXiv:1607.00133: q = mean / S. We deviate in that C places are kept, with room for
  all but one draw in 10^12; of a larger draw C sites are taken at random.
  """
  chance = mean / num_sites
  larger = bdtrc(np.arange(num_sites + 1), num_sites, chance)
  size = int(max(1, np.argmax(larger < _OVERFLOW)))

  def draw(number):
    rng = _rng(seed, 'cohort', number)
    chosen = np.flatnonzero(rng.random(num_sites) < chance)
    return _cohort(rng.permutation(chosen)[:size], size, num_sites)

  return Sampler(size, np.full(num_sites, chance), draw)


def _cohort(chosen: np.ndarray, size: int, num_sites: int) -> Cohort:
  others = np.setdiff1d(np.arange(num_sites), chosen)[:size - len(chosen)]
  sites = np.concatenate([np.sort(chosen), others]).astype(np.int32)
  return Cohort(sites, np.arange(size) < len(chosen))


def last_taken(sampler: Sampler, number: int) -> np.ndarray:
  """i64[S]: the last round before `number` in which each site was drawn, or NEVER."""
  last = np.full(len(sampler.inclusion), NEVER)
  for past in range(number):
    cohort = sampler.draw(past)
    last[cohort.sites[cohort.present]] = past
  return last


def lognormal_fleet(
  num_sites: int, seed: int, *, step_seconds: float = 0.0, speed_spread: float = 0.0,
  bandwidth: float = 0.0, bandwidth_spread: float = 0.0, failure: float = 0.0,
  deadline: float = 0.0,
) -> Fleet:
  """Sites whose speeds are lognormal around a median; the defaults are perfect ones.

  Args:
    step_seconds: median seconds of a local step; 0 = none.
    speed_spread: standard deviation of its logarithm over the sites.
    bandwidth: median bytes a second, either way; 0 = without limit.
    bandwidth_spread: standard deviation of its logarithm over the sites.
    failure: chance in [0, 1) that a site breaks down in a round.
    deadline: seconds after which the server goes on without those who lack; 0 = waits for all.
  """

  def spread(use, median, deviation):
    return median * np.exp(deviation * _rng(seed, use).standard_normal(num_sites))

  byte = spread('bandwidth', 1 / bandwidth if bandwidth else 0.0, bandwidth_spread)
  return Fleet(
    seed, spread('speed', step_seconds, speed_spread), byte, failure, deadline or np.inf)


def round_participation(
  sampler: Sampler, fleet: Fleet, number: int, *, sizes: np.ndarray, planned: np.ndarray,
  bytes_down: np.ndarray | int, bytes_up: np.ndarray | int,
) -> Participation:
  """How round `number` goes.

  A site takes t = down + K s + up seconds for its K steps. With chance `failure` it breaks down
  after a uniform share of them, and sends nothing. One whose t is past the deadline D takes the
  floor((D - down - up) / s) steps after which it can still send in time (it knows both, so its
  learning rate falls over these steps); with none left it misses the round.
  Weight: n_k * (steps taken / K) * (C/S) / pi_k. The last factor is 1 unless sites are drawn
  unevenly: a site drawn more often than others must not count for it twice (Horvitz & Thompson,
  JASA 47, 1952); the mean over rounds is then that of all sites by size, up to the normalisation.

  Args:
    sizes: f[S] n_k.
    planned: i[S] K, the steps a site would take.
    bytes_down, bytes_up: i[C], of each site's messages in the order of the cohort; or of all.
  """
  cohort = sampler.draw(number)
  pick = lambda values: np.asarray(values)[cohort.sites]  # noqa: E731
  wanted, step = pick(planned), pick(fleet.step_seconds)
  sending = (bytes_down + bytes_up) * pick(fleet.byte_seconds)
  # Drawn for all sites, so that a site's luck does not depend on who else is there.
  rng = _rng(fleet.seed, 'failure', number)
  luck, moment = (pick(rng.random(len(sizes))) for _ in range(2))
  broken = luck < fleet.failure
  whole = sending + wanted * step
  room = (fleet.deadline - sending) / np.where(step > 0, step, 1.0)
  steps = np.where(whole <= fleet.deadline, wanted, np.clip(np.floor(room), 0, wanted))
  steps = np.where(broken | ~cohort.present, 0, steps).astype(np.int32)
  seconds = np.where(steps > 0, sending + steps * step, np.where(broken, moment, 1.0) * whole)
  seconds = np.where(cohort.present, np.minimum(seconds, fleet.deadline), 0.0)
  even = sampler.inclusion.mean() / pick(sampler.inclusion)
  weights = pick(sizes) * steps / np.maximum(wanted, 1) * even
  return Participation(cohort, steps, weights.astype(np.float32), seconds)


# (sizes f[S], C, seed) -> Sampler
SAMPLERS = {
  'uniform': lambda sizes, count, seed: uniform(len(sizes), count, seed),
  'size': by_size,
  'poisson': lambda sizes, count, seed: poisson(len(sizes), count, seed),
}
