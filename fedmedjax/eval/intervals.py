"""95 % intervals of figures that are known from few sources and few seeds.

A figure varies with the sources (articles, trials, patients) that happened to be tested on, and
with the seeds that models happened to be trained with. Each part of the spread has a standard error
and degrees of freedom: of sources, from a bootstrap that draws them with replacement, N - 1; of
seeds, from the plain spread of K figures, K - 1. An interval's half width is the root of the sum of
(t quantile x standard error)^2 over both (Banerjee, "Approximate confidence interval for linear
functions of means of k populations when the population variances are not equal", Sankhya 22, 1960):
at least 95 % whatever the shares of the two, and the plain t interval where one of them is nil.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

# With fewer sources a test tells little of other sources; sentences say so.
FEW_SOURCES = 8
_NONE = 1e-12    # a spread that is but rounding
_LEAST_P = 1e-9  # what t quantiles can still tell apart


class Part(NamedTuple):
  """A part of a figure's spread."""

  error: float    # standard error
  freedom: float  # degrees of freedom behind it


class Estimate(NamedTuple):
  """A figure and its 95 % interval; None where nothing is known of its spread."""

  value: float
  low: float | None
  high: float | None
  p: float | None = None  # two-sided, that the figure is 0; None for a figure that cannot be

  def __str__(self) -> str:
    if self.low is None:
      return f'{self.value:+.3f} (no interval)'
    return f'{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]'


def half_width(error, number: int):
  """Half the width of an interval over `number` sources of one site and one seed.

  Args:
    error: f64[...], standard deviation of a bootstrap's draws.
    number: N >= 2.
  """
  return stdtrit(number - 1, 0.975) * np.sqrt(number / (number - 1)) * error


def of_sources(drawn: np.ndarray, numbers: Sequence[int]) -> Part | None:
  """The part of the sources of S sites, whose contributions add up to a figure.

  What a source adds with one seed and not with another is in the part of the seeds already. It is
  taken out as in the analysis of variance: V of the mean over K seeds holds B / K of it where V of
  single seeds holds B, so B / K = (mean V of single seeds - V of the mean) / (K - 1). Few sources
  do not allow that; their part keeps it.

  Args:
    drawn: f64[K, S, samples], what each site contributes to each seed's figure in every draw of its
      sources.
    numbers: of sources of each site.

  Returns:
    None where a site has a single source, which cannot be drawn. The degrees of freedom are
    Satterthwaite's.
  """
  if not numbers or min(numbers) < 2:
    return None
  counts, more_seeds = np.array(numbers), len(drawn) - 1
  variances = np.array([draws.var() for draws in drawn.mean(0)])
  if more_seeds:
    shared = variances - (drawn.var(-1).mean(0) - variances) / more_seeds
    variances = np.where(counts < FEW_SOURCES, variances, np.maximum(shared, 0.0))
  # A bootstrap's variance is (N - 1) / N of the unbiased one.
  variances = variances * counts / (counts - 1)
  total = variances.sum()
  if total <= _NONE**2:
    return Part(0.0, float(counts.min() - 1))
  return Part(float(np.sqrt(total)), float(total**2 / (variances**2 / (counts - 1)).sum()))


def of_seeds(values: np.ndarray) -> Part | None:
  """The part of K seeds from a figure of each, f64[K]; None of a single one."""
  if len(values) < 2:
    return None
  return Part(float(np.std(values, ddof=1) / np.sqrt(len(values))), len(values) - 1)


def estimate(
  value: float, parts: Sequence[Part | None], limits: tuple[float, float], *, test: bool = False
) -> Estimate:
  """A figure with its interval, from those parts of its spread that are known.

  Args:
    value: the figure.
    parts: `of_sources`, `of_seeds`.
    limits: the least and the largest value that it can have.
    test: whether it may be 0 by chance, as a difference.
  """
  known = [part for part in parts if part is not None and part.error > _NONE]
  if not known:
    return Estimate(value, None, None)

  def half(p: float) -> float:
    # The lower quantile: of a small p it keeps the digits that 1 - p / 2 loses.
    return float(np.sqrt(sum((stdtrit(part.freedom, p / 2) * part.error) ** 2 for part in known)))

  width = half(0.05)
  return Estimate(
    value, max(limits[0], value - width), min(limits[1], value + width),
    _p_value(abs(value), known, half) if test else None)


def _p_value(distance: float, parts: Sequence[Part], half) -> float:
  """The p at which the interval of level 1 - p ends at 0."""
  part, *more = parts
  if not more:
    return float(2 * stdtr(part.freedom, -distance / part.error))
  reach = min(distance, half(_LEAST_P))
  return float(brentq(lambda p: half(p) - reach, _LEAST_P, 1.0))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """p values by Holm's correction over all that are known; None stays None.

  Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
  Statistics 6 (1979): the k-th smallest of m times m - k + 1, none below the one before.
  """
  known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
  corrected: list[float | None] = [None] * len(p_values)
  rising = itertools.accumulate(
    (min(1.0, (len(known) - k) * p) for k, (p, _) in enumerate(known)), max)
  for _, place in known:
    corrected[place] = next(rising)
  return corrected


def caution(sources: int, seeds: int) -> str:
  """What an interval over so many sources and seeds leaves out, in words; '' = nothing.

  Args:
    sources: the fewest of any site in the figure.
    seeds: the number of seeds.
  """
  said = []
  if seeds < 2:
    said.append('one seed: how training varies is left out')
  if sources < 2:
    said.append('one source: how notes vary is left out')
  elif sources < FEW_SOURCES:
    said.append(f'{sources} sources only: how notes vary beyond them is hardly known')
  return '; '.join(said)
