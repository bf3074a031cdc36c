"""Participation: the cohort of each round, the steps its sites finish, and simulated seconds.

Everything is a function of (seed, round, site), computed on the host before the round, so that a
resumed run needs no state. C is the same in all rounds, so that one compiled round serves them all.
Rounds are numbered from 0. `*_seconds` are simulated seconds, not those of the machine.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import bdtrc

from fedmedjax.fed.types import Delay

# Stands for the number of a round: the site has not taken part in any round yet.
NEVER = -1
# Probability that a Poisson cohort is larger than the places allocated for it.
_OVERFLOW = 1e-12


class Cohort(NamedTuple):
  """The sites of one round, sites i32[C] and present bool[C].

  Padding places are filled with sites that were not drawn, so that no site occurs twice.
  """

  sites: np.ndarray      # i32[C], the sites that are present in ascending order, then padding
  present: np.ndarray    # bool[C]; False = padding


class DrawCohort(Protocol):
  """The cohort i32[C] of a round, by the round's number alone."""

  def __call__(self, number: int, /) -> Cohort:
    """Round from 0 -> its cohort, i32[C] sites; the same answer every time."""


class Arrivals(NamedTuple):
  """The updates with which a server that does not wait for all sites takes a step."""

  sites: np.ndarray    # i32[C], ascending
  delay: Delay         # since they started
  seconds: np.ndarray  # f64[C], that each site needed
  since: float         # seconds since the step before


class Sampler(NamedTuple):
  """Draws the cohort i32[C] of every round from S sites."""

  size: int              # C
  inclusion: np.ndarray  # f64[S], in (0, 1]: probability that a site is drawn in a round
  draw: DrawCohort
  # Round from 0 -> its updates, see `buffered.py`; None = the server waits for the cohort
  arrivals: Callable[[int], Arrivals] | None = None


class Fleet(NamedTuple):
  """How fast and how reliable the sites are in the simulation; speeds are f64[S]."""

  seed: int
  step_seconds: np.ndarray  # f64[S], seconds of one local step
  byte_seconds: np.ndarray  # f64[S], seconds of one byte sent or received
  failure: float            # probability that a site breaks down in a round
  deadline: float           # seconds that the server waits; infinite = for all sites


class Participation(NamedTuple):
  """What the C sites of one round do: steps i32[C], weights f32[C], seconds f64[C].

  A site that sends nothing has 0 steps and weight 0.
  """

  cohort: Cohort
  steps: np.ndarray      # i32[C], local steps that the update contains
  weights: np.ndarray    # f32[C], n_k corrected for lost steps and uneven sampling
  seconds: np.ndarray    # f64[C], until the site has sent, broken down or been given up; padding 0
  arrivals: Arrivals | None = None  # of a server that does not wait for all

  @property
  def round_seconds(self) -> float:
    """f64[]: simulated seconds of the round, of its slowest site where that is waited for."""
    return float(self.seconds.max()) if self.arrivals is None else self.arrivals.since


def _rng(seed: int, use: str, number: int = 0) -> np.random.Generator:
  """The random stream of (seed, use, round).

  The use enters by its checksum and the round from 1, because numpy ignores trailing zeros: (1, 2)
  and (1, 2, 0) would seed the same stream.
  """
  return np.random.default_rng((seed, zlib.crc32(use.encode()), number + 1))


def site_order(num_sites: int, seed: int, number: int) -> np.ndarray:
  """i64[S]: all sites in an order of chance, of draw `number` from 0."""
  return _rng(seed, 'cohort', number).permutation(num_sites)


def uniform(num_sites: int, cohort_size: int, seed: int) -> Sampler:
  """i32[C]: C of S sites, every cohort equally likely; with C = S, all sites.

  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
  AISTATS 2017, arXiv:1602.05629: `cohort_size` is the paper's m = C K, `num_sites` its K.
  """

  def draw(number):
    return _cohort(site_order(num_sites, seed, number)[:cohort_size], cohort_size, num_sites)

  return Sampler(cohort_size, np.full(num_sites, cohort_size / num_sites), draw)


def by_size(sizes: np.ndarray, cohort_size: int, seed: int) -> Sampler:
  """i32[C] different sites; site k has probability pi_k = min(1, c n_k), with sum_k pi_k = C.

  Systematic sampling, Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical
  Statistics 20, 1949: in a random order the pi_k are laid end to end, and the sites are taken in
  which u, u + 1, u + 2, ... fall, u uniform in [0, 1). Drawing one site after the other without
  replacement would not have these probabilities.

  Args:
    sizes: f[S], n_k > 0.
    cohort_size: C.
    seed: of all draws.
  """
  inclusion, certain = _inclusion(np.asarray(sizes, np.float64), cohort_size)

  def draw(number):
    rng = _rng(seed, 'cohort', number)
    order = rng.permutation(np.flatnonzero(~certain))
    places = cohort_size - certain.sum()
    ends = np.cumsum(inclusion[order])
    # The probabilities sum to `places` only up to rounding; rescaled, the last place is not lost.
    drawn = np.searchsorted(
      ends / ends[-1:] * places, rng.random() + np.arange(places), side='right')
    chosen = np.concatenate([np.flatnonzero(certain), order[drawn]])
    return _cohort(chosen, cohort_size, len(sizes))

  return Sampler(cohort_size, inclusion, draw)


def _inclusion(sizes: np.ndarray, cohort_size: int) -> tuple[np.ndarray, np.ndarray]:
  """(f64[S], min(1, c n_k) with sum C; bool[S], where it is 1).

  The largest sites are in every cohort; c is then computed again for the other sites and places.
  """
  certain = np.zeros(len(sizes), bool)
  while True:
    places = cohort_size - certain.sum()
    chances = np.where(certain, 1.0, places * sizes / max(sizes[~certain].sum(), 1e-30))
    over = ~certain & (chances > 1 - 1e-9)
    if not over.any():
      return chances, certain
    certain |= over


def poisson(num_sites: int, mean: int, seed: int) -> Sampler:
  """i32[C]: every site is drawn independently with probability mean / S.

  Privacy accounting assumes this sampling: Abadi et al., "Deep Learning with Differential
  Privacy", CCS 2016, arXiv:1607.00133, with the paper's q = mean / S. We deviate in that C places
  are allocated, enough for all but one draw in 10^12; of a larger draw C sites are taken at random.

  Args:
    num_sites: S.
    mean: expected number of sites in a cohort.
    seed: of all draws.
  """
  chance = mean / num_sites
  # P(more than k sites) falls with k: the first k for which it is small enough.
  larger = bdtrc(np.arange(num_sites), num_sites, chance)
  size = max(1, int(np.sum(larger >= _OVERFLOW)))

  def draw(number):
    rng = _rng(seed, 'cohort', number)
    chosen = np.flatnonzero(rng.random(num_sites) < chance)
    return _cohort(rng.permutation(chosen)[:size], size, num_sites)

  return Sampler(size, np.full(num_sites, chance), draw)


def cyclic(num_sites: int, cohort_size: int, seed: int) -> Sampler:
  """i32[C]: the sites in turn, in an order that is drawn once.

  From one participation of a site to its next there are floor(S / C) rounds or more: the
  b-min-separation that banded noise is made for, Choquette-Choo et al., "(Amplified) Banded Matrix
  Factorization", NeurIPS 2023, arXiv:2306.08153.
  """
  order = _rng(seed, 'turns').permutation(num_sites)

  def draw(number):
    places = (number * cohort_size + np.arange(cohort_size)) % num_sites
    return _cohort(order[places], cohort_size, num_sites)

  return Sampler(cohort_size, np.full(num_sites, cohort_size / num_sites), draw)


def _cohort(chosen: np.ndarray, size: int, num_sites: int) -> Cohort:
  """The chosen sites in ascending order, then `size` - chosen other sites as padding."""
  others = np.setdiff1d(np.arange(num_sites), chosen)[:size - len(chosen)]
  sites = np.concatenate([np.sort(chosen), others]).astype(np.int32)
  return Cohort(sites, np.arange(size) < len(chosen))


def last_taken(sampler: Sampler, number: int) -> np.ndarray:
  """i64[S]: the last round before round `number` in which each site was drawn, or NEVER."""
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
  """Sites whose speeds f64[S] are lognormal around a median; by default infinitely fast ones.

  Args:
    num_sites: S.
    seed: of speeds and failures.
    step_seconds: median seconds of a local step; 0 = a step takes no time.
    speed_spread: standard deviation over the sites of the logarithm of a step's seconds.
    bandwidth: median bytes a second, the same up and down; 0 = without limit.
    bandwidth_spread: standard deviation over the sites of the logarithm of the bandwidth.
    failure: probability in [0, 1) that a site breaks down in a round.
    deadline: seconds after which the server goes on without the missing sites; 0 = waits for all.
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
  """Simulates who of the cohort sends what in round `number` -> steps, weights, seconds of [C].

  A site needs t = down + K s + up seconds for its K steps of s seconds. With probability `failure`
  it breaks down after a uniform share of t and sends nothing. A site whose t exceeds the deadline D
  takes only floor((D - down - up) / s) steps, so that it can still send in time. It knows D in
  advance, so its learning rate falls over these steps. With no step left it misses the round.
  The weight is n_k * (steps taken / K) * (C/S) / pi_k, ours. The last factor is 1 unless sites are
  drawn unevenly. It corrects for that as in Horvitz & Thompson, "A Generalization of Sampling
  Without Replacement from a Finite Universe", JASA 47, 1952: the mean over rounds is then the mean
  of all sites by size, up to the normalisation of the weights.

  Where the server does not wait for all, all of this is in the sampler's `arrivals`.

  Args:
    sampler: draws the cohort; its `inclusion` are the pi_k.
    fleet: speeds, failures and the deadline.
    number: of the round, from 0.
    sizes: f[S], n_k.
    planned: i[S], K, the steps that each site would take.
    bytes_down, bytes_up: i[C], bytes of each site's messages in the order of the cohort, or one
      number for all sites.
  """
  cohort = sampler.draw(number)
  pick = lambda values: np.asarray(values)[cohort.sites]  # noqa: E731
  if sampler.arrivals is not None:
    arrivals = sampler.arrivals(number)
    return Participation(
      cohort, pick(planned).astype(np.int32), pick(sizes).astype(np.float32), arrivals.seconds,
      arrivals)
  wanted, step_seconds = pick(planned), pick(fleet.step_seconds)
  message_seconds = (bytes_down + bytes_up) * pick(fleet.byte_seconds)
  # Drawn for all S sites, so that a site's failures do not depend on the rest of the cohort.
  rng = _rng(fleet.seed, 'failure', number)
  failure_draw, broken_share = (pick(rng.random(len(sizes))) for _ in range(2))
  broken = failure_draw < fleet.failure
  whole_seconds = message_seconds + wanted * step_seconds
  # Where a step takes no time it is the message that is late, and no step is in time.
  steps_in_time = np.divide(
    fleet.deadline - message_seconds, step_seconds, out=np.zeros_like(step_seconds),
    where=step_seconds.astype(bool))
  steps = np.where(
    whole_seconds <= fleet.deadline, wanted, np.clip(np.floor(steps_in_time), 0, wanted))
  steps = np.where(broken | ~cohort.present, 0, steps).astype(np.int32)
  seconds = np.where(
    steps, message_seconds + steps * step_seconds,
    np.where(broken, broken_share, 1.0) * whole_seconds)
  seconds = np.where(cohort.present, np.minimum(seconds, fleet.deadline), 0.0)
  sampling_correction = sampler.inclusion.mean() / pick(sampler.inclusion)
  weights = pick(sizes) * steps / np.maximum(wanted, 1) * sampling_correction
  return Participation(cohort, steps, weights.astype(np.float32), seconds)


# Value of config.fed.sampler -> (sizes f[S], C, seed) -> Sampler.
SAMPLERS: dict[str, Callable[[np.ndarray, int, int], Sampler]] = {
  'uniform': lambda sizes, count, seed: uniform(len(sizes), count, seed),
  'size': by_size,
  'poisson': lambda sizes, count, seed: poisson(len(sizes), count, seed),
  'cyclic': lambda sizes, count, seed: cyclic(len(sizes), count, seed),
}
