"""What was spent of a privacy budget: rows of mechanisms, composed by dp-accounting.

A row says what a site did with its units: so many steps of a Gaussian mechanism on a sum, over a
Poisson sample or over all units. Rows are numbers alone and lie in the rounds' lines, so that a run
that is resumed, continued or read by somebody else adds up the same things.

'pld' composes privacy loss distributions (Koskela, Jaelkoe & Honkela, AISTATS 2020,
arXiv:1906.03049; rounded up by "connect the dots", Doroshenko et al., PoPETs 2022,
arXiv:2207.04380). A sample that is cut to a step's room is accounted as Chua et al.,
arXiv:2508.15089, have it. 'rdp' composes Renyi divergences (Mironov, Talwar & Zhang,
arXiv:1908.10530), which bound the same mechanisms less tightly; what a cut sample adds is bounded
by the chance that it is cut.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from types import ModuleType
from typing import NamedTuple

from scipy.stats import binom

from fedmedjax.types import InputError

# Units that a site trains on and units of V are different ones, so that each part has its own sum.
TRAINED, JUDGED = 'train', 'validation'
PLD, RDP = 'pld', 'rdp'
# Widths of the steps of a privacy loss distribution, and the least q / sigma for the wider ones:
# losses of a step that are as small as the grid would be rounded up by much.
_COARSE, _FINE, _LARGE = 1e-3, 1e-4, 1e-2
# A calibrated sigma is so close to the least one that keeps the budget, as a share of it.
_CLOSE = 1e-3
# No mechanism that is worth a run has more noise.
_MOST_NOISE, _LEAST_NOISE = 1e6, 1e-3
# Of Renyi divergences: whole ones, whose sums are finite.
_ORDERS = (*range(2, 65), *range(72, 129, 8), 256, 512, 1024)


class Spending(NamedTuple):
  """Some steps of one site: sums of clipped contributions with noise, all of the same kind."""

  part: str           # TRAINED or JUDGED
  sigma: float        # standard deviation of the noise over what one unit can move the sum by
  probability: float  # q, that a unit is in a step's sample; 1 = all units are in every step
  capacity: int       # units that a sample is cut to at random; 0 = never cut
  units: int          # n, that samples are drawn from; 0 = not sampled
  steps: int


def gaussian(part: str, sigma: float, steps: int = 1) -> Spending:
  """Steps that every unit takes part in."""
  return Spending(part, float(sigma), 1.0, 0, 0, int(steps))


def dp_accounting_module() -> ModuleType:
  """dp-accounting; InputError where it is not installed."""
  try:
    import dp_accounting
    import dp_accounting.pld
    import dp_accounting.rdp
  except ImportError as error:
    raise InputError(
      f'config.privacy.unit: {error.name} is not installed, which accounts for differential '
      "privacy: pip install 'fedmedjax[privacy]'") from None
  return dp_accounting


def accountant_name(accountant: str) -> str:
  """Such as 'PLD, dp-accounting 0.6.0'."""
  return f'{accountant.upper()}, dp-accounting {version("dp-accounting")}'


def epsilon(rows: Iterable[Spending], delta: float, accountant: str = PLD) -> float:
  """The epsilon that all rows together have spent at `delta`, of the part that has spent most.

  The same for 'zero_out' and 'add_remove', whose pairs of distributions are the same two, in both
  orders; the larger of the two counts.

  Args:
    rows: of one site (or of one unit that is a site), in any order.
    delta: in (0, 1).
    accountant: 'pld' or 'rdp'.

  Raises:
    InputError: dp-accounting is not installed.
  """
  parts: dict[str, Counter] = {}
  for row in rows:
    if row.steps and row.probability > 0:
      parts.setdefault(row.part, Counter())[row._replace(part='', steps=0)] += row.steps
  return max(
    (_epsilon(tuple(sorted(kinds.items())), delta, accountant) for kinds in parts.values()),
    default=0.0)


def within(rows: Sequence[Spending], budget: float, delta: float, accountant: str = PLD) -> bool:
  """Whether the rows spend no more than `budget`; asks the accountant that is quick first."""
  return epsilon(rows, delta, RDP) <= budget or (
    accountant == PLD and epsilon(rows, delta, PLD) <= budget)


@lru_cache(4096)
def _epsilon(
  kinds: tuple[tuple[Spending, int], ...], delta: float, accountant: str
) -> float:
  """Of kinds of steps and how many there were of each."""
  if any(kind.sigma <= 0 for kind, _ in kinds):
    return math.inf
  return (_by_losses if accountant == PLD else _by_renyi)(kinds, delta)


def _by_losses(kinds, delta):
  small = min(kind.probability / kind.sigma for kind, _ in kinds)
  width = _COARSE if small >= _LARGE else _FINE
  total = None
  for kind, steps in kinds:
    # Gaussian mechanisms one after the other are one, of less noise.
    one = _losses(kind._replace(sigma=kind.sigma / math.sqrt(steps)), width) if (
      kind.probability == 1 and not kind.capacity) else _losses(kind, width).self_compose(steps)
    total = one if total is None else total.compose(one)
  return float(total.get_epsilon_for_delta(delta))


@lru_cache(256)
def _losses(kind: Spending, width: float):
  """The distribution of the privacy loss of one step."""
  dp = dp_accounting_module()
  options = {
    'value_discretization_interval': width,
    'neighboring_relation': dp.NeighboringRelation.REPLACE_SPECIAL}
  made = dp.pld.privacy_loss_distribution
  if kind.capacity and kind.capacity < kind.units:
    return made.from_truncated_subsampled_gaussian_mechanism(
      dataset_size=kind.units, sampling_probability=kind.probability,
      truncated_batch_size=kind.capacity, noise_multiplier=kind.sigma, **options)
  return made.from_gaussian_mechanism(
    standard_deviation=kind.sigma, sampling_prob=kind.probability, **options)


def _by_renyi(kinds, delta):
  """With t the chance that any sample is cut: delta(epsilon) + (1 + e^epsilon) t <= delta.

  With that chance either data set's result may be anything; without, samples are whole ones.
  """
  dp = dp_accounting_module()
  sum_of = dp.rdp.RdpAccountant(
    _ORDERS, neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
  cut = 0.0
  for kind, steps in kinds:
    sum_of.compose(dp.PoissonSampledDpEvent(
      kind.probability, dp.GaussianDpEvent(kind.sigma)), steps)
    if kind.capacity and kind.capacity < kind.units:
      cut += steps * float(binom.sf(kind.capacity, kind.units, kind.probability))
  if not cut:
    return float(sum_of.get_epsilon(delta))
  found = 0.0
  # Every step raises the bound, until it holds for itself.
  for _ in range(100):
    left = delta - (1 + math.exp(min(found, 700.0))) * cut
    if left <= 0:
      return math.inf
    after = float(sum_of.get_epsilon(left))
    if after <= found:
      return found
    found = after * (1 + 1e-9)
  return math.inf


def calibrated(
  plans: Iterable[Callable[[float], Sequence[Spending]]], budget: float, delta: float,
  accountant: str = PLD,
) -> float:
  """The least noise multiplier with which no site spends more than `budget`, to 0.1 %.

  Args:
    plans: of each site, (noise multiplier) -> the rows of the whole run.
    budget: epsilon of each site.
    delta: in (0, 1).
    accountant: 'pld' or 'rdp'.

  Raises:
    InputError: no noise is enough.
  """
  noise = 0.0
  # Sites of like rows need like noise.
  for plan in {tuple(plan(1.0)): plan for plan in plans}.values():
    if not noise or not within(plan(noise), budget, delta, accountant):
      noise = max(noise, _least(plan, budget, delta, accountant))
  return noise


def _least(plan, budget, delta, accountant):
  spends = lambda noise, by=accountant: epsilon(plan(noise), delta, by)  # noqa: E731
  high = 1.0
  while spends(high, RDP) > budget:
    high *= 2
    if high > _MOST_NOISE:
      raise InputError(
        f'config.privacy.epsilon={budget}: no noise is enough for it at '
        f'config.privacy.delta={delta}; raise either')
  low = high / 2
  while low > _LEAST_NOISE and spends(low, RDP) <= budget:
    low, high = low / 2, low
  high = _narrowed(lambda noise: spends(noise, RDP), budget, low, high)
  if accountant == RDP:
    return high
  # Renyi divergences ask for too much noise, by a few per cent mostly.
  low = 0.8 * high
  while low > _LEAST_NOISE and spends(low) <= budget:
    low, high = 0.8 * low, low
  return _narrowed(spends, budget, low, high)


def _narrowed(spends: Callable[[float], float], budget: float, low: float, high: float) -> float:
  """The noise whose epsilon is at most `budget` and close to it, or 0.1 % above one that is not.

  By the secant of the logarithms, which are nearly on a line.
  """
  ends = [(low, spends(low)), (high, spends(high))]
  while ends[1][0] - ends[0][0] > _CLOSE * ends[1][0] and ends[1][1] < (1 - _CLOSE) * budget:
    (low, most), (high, least) = ends
    middle = math.sqrt(low * high)
    if least > 0 and math.isfinite(most):
      share = math.log(most / budget) / math.log(most / least)
      # Rather a little too much noise, so that the upper end moves, too.
      middle = low * (high / low) ** min(max(share, 0.02), 0.98) * (1 + _CLOSE / 4)
    spent = spends(middle)
    ends[spent <= budget] = middle, spent
  return ends[1][0]


@cache
def analytic_gaussian(mean: float, budget: float) -> float:
  """delta(epsilon) of Gaussians whose means lie `mean` standard deviations apart.

  Balle & Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
  arXiv:1805.06530, theorem 8.
  """
  below = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
  return below(mean / 2 - budget / mean) - math.exp(budget) * below(-mean / 2 - budget / mean)
