"""Whole numbers by shares: how many notes each site of a partition is given."""

from collections.abc import Sequence

import numpy as np


def apportioned(shares: Sequence[float] | np.ndarray, total: int) -> np.ndarray:
  """`total` in whole numbers that are nearest to the shares, i[S]; they add up to it.

  What is left after rounding down goes to the largest remainders (Hamilton's method), of equal ones
  to the first.

  Args:
    shares: f[S], not negative; only their proportions count.
    total: a whole number.
  """
  shares = np.asarray(shares, float)
  # Rounded, since 0.29 of 100 is 28.999999999999996.
  exact = np.round(shares / shares.sum() * total, 9)
  counts = exact.astype(int)
  counts[np.argsort(counts - exact, kind='stable')[:total - counts.sum()]] += 1
  return counts


def in_turn(counts: np.ndarray) -> np.ndarray:
  """The numbers 0 to S - 1, each as often as `counts` i[S] says, spread evenly: i[sum of counts].

  Of a stretch of it each number has about its share.
  """
  places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
  return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind='stable')]
