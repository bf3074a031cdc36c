"""A lower bound of epsilon from one run with planted canaries.

Steinke, Nasr & Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
arXiv:2305.08846. Each of m canaries is in the training data by a fair coin of its own. Whoever
sees what was released guesses r of the coins. Theorem 5.2 there: if the training is
(epsilon, delta)-private for one canary more or less, then for every v

  P[v guesses or more are right] <= beta + 2 m delta alpha,
  beta = P[W >= v],  alpha = max over i in 1..m of (P[W >= v - i] - P[W >= v]) / i,

where W is binomial with r draws of probability e^epsilon / (1 + e^epsilon). An epsilon for which
the right side is below 1 - confidence is refuted, and so is every smaller one.

The coins have to be independent: a fixed number of canaries that are in breaks the theorem. How
many are guessed has to be chosen without looking at the coins. Here several numbers are tried, and
each test is given an equal share of 1 - confidence (Bonferroni), so that the largest bound of them
holds with the whole confidence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtrc, expit

CONFIDENCE = 0.999
# Shares of the canaries that are guessed to be in, and to be out. Where examples are drawn many
# canaries were hardly ever trained on, and only the others can be told.
_GUESSED = ((0.02, 0.0), (0.1, 0.0), (0.1, 0.1), (0.5, 0.5))
_MOST = 50.0  # no number of canaries that is planted here refutes more


class Bound(NamedTuple):
  """What the guesses of a run refute."""

  epsilon: float     # the run's epsilon is larger, with `confidence`; 0.0 = nothing is refuted
  confidence: float
  delta: float       # of the claim that is tested
  canaries: int      # m, in or out
  planted: int       # of them in
  guesses: int       # r of the best test
  right: int         # v of it


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
  """The most probable that so many right guesses can be of an (epsilon, delta)-private run.

  Args:
    canaries: m.
    guesses: r <= m.
    right: v <= r.
    epsilon, delta: of the claim.
  """
  chance = float(expit(epsilon))

  def at_least(least: np.ndarray) -> np.ndarray:
    return np.where(least <= 0, 1.0, bdtrc(np.maximum(least - 1, 0), guesses, chance))

  beta = float(at_least(np.asarray(right)))
  if not delta:
    return beta
  # Beyond i = v the difference grows no more.
  steps = np.arange(1, max(right, 1) + 1)
  alpha = float(((at_least(right - steps) - beta) / steps).max())
  return min(1.0, beta + 2 * canaries * delta * alpha)


def refuted(
  canaries: int, guesses: int, right: int, delta: float, significance: float
) -> float:
  """The largest epsilon that so many right guesses refute; 0.0 where they refute none.

  Args:
    canaries, guesses, right, delta: see `p_value`.
    significance: the probability of error that is allowed.
  """
  def above(epsilon: float) -> float:
    return p_value(canaries, guesses, right, epsilon, delta) - significance

  if not guesses or above(0.0) >= 0:
    return 0.0
  return float(brentq(above, 0.0, _MOST)) if above(_MOST) > 0 else _MOST


def lower_bound(
  scores: Sequence[float], planted: Sequence[bool], delta: float, confidence: float = CONFIDENCE
) -> Bound:
  """The bound from the scores of all canaries.

  The highest are guessed to be in, the lowest to be out, in numbers that depend on the number of
  canaries alone.

  Args:
    scores: m of them, higher for those that look as if they were in; equal ones stay in order,
      which says nothing of the coins.
    planted: bool[m], the coins.
    delta: of the claim.
    confidence: with which the bound holds.
  """
  values, coins = np.asarray(scores, float), np.asarray(planted, bool)
  number = len(values)
  if not number:
    return Bound(0.0, confidence, delta, 0, 0, 0, 0)
  # A loss that is no number looks like nothing.
  order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind='stable')
  best = Bound(0.0, confidence, delta, number, int(coins.sum()), 0, 0)
  for high, low in _GUESSED:
    most, least = max(1, int(number * high)), int(number * low)
    right = int(coins[order[number - most:]].sum() + (~coins[order[:least]]).sum())
    epsilon = refuted(number, most + least, right, delta, (1 - confidence) / len(_GUESSED))
    if epsilon > best.epsilon or not best.guesses:
      best = best._replace(epsilon=epsilon, guesses=most + least, right=right)
  return best


def most_refutable(canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
  """The bound where every guess is right: what so many canaries can show at best."""
  coins = np.arange(canaries) >= canaries // 2
  return lower_bound(coins.astype(float), coins, delta, confidence).epsilon
