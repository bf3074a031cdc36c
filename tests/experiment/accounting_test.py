"""What a budget has spent, against closed forms, published numbers and sums over all outcomes."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from fedmedjax.experiment.accounting import (
  JUDGED,
  PLD,
  RDP,
  TRAINED,
  Spending,
  analytic_gaussian,
  calibrated,
  epsilon,
  gaussian,
  within,
)
from fedmedjax.types import InputError

BOTH = (PLD, RDP)


def sampled(sigma, probability, steps, capacity=0, units=0):
  return Spending(TRAINED, sigma, probability, capacity, units, steps)


def test_gaussians_are_those_of_the_closed_form():
  """T steps without sampling are one Gaussian of means sqrt(T) / sigma apart."""
  for sigma, steps in ((3.0, 1), (8.0, 20), (1.0, 3)):
    found = epsilon([gaussian(TRAINED, sigma, steps)], 1e-5)
    assert analytic_gaussian(math.sqrt(steps) / sigma, found) == pytest.approx(1e-5, rel=0.01)
    assert found <= epsilon([gaussian(TRAINED, sigma, steps)], 1e-5, RDP)
  # Balle & Wang's sigma for (1, 1e-5), where the classical bound asks for 4.84.
  assert calibrated([lambda noise: [gaussian(TRAINED, noise)]], 1.0, 1e-5) == pytest.approx(
    3.7306, rel=2e-3)


@pytest.mark.parametrize(('sigma', 'epochs', 'published'), [
  (1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_published_numbers_of_mnist(sigma, epochs, published):
  """The three runs of TensorFlow Privacy's tutorial: 60,000 digits, lots of 256, delta 1e-5.

  They were computed from Renyi divergences (arXiv:1908.10530, section 3.3) with the conversion of
  arXiv:1702.07476. Both are written out here. What is known now converts better.
  """
  q, steps = 256 / 60000, epochs * 60000 / 256

  def divergence(order):
    k = np.arange(order + 1)
    return logsumexp(
      gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1) + k * np.log(q)
      + (order - k) * np.log1p(-q) + k * (k - 1) / (2 * sigma**2)) / (order - 1)

  by_hand = min(
    steps * divergence(order) + math.log(1e5) / (order - 1) for order in range(2, 64))
  # Whole orders only, of which the third would need one between.
  assert by_hand == pytest.approx(published, abs=0.03)
  row = [sampled(sigma, q, round(steps))]
  renyi, losses = epsilon(row, 1e-5, RDP), epsilon(row, 1e-5)
  assert losses < renyi < by_hand
  assert losses > 0.7 * by_hand


def deltas(densities, others, volume, budget):
  """The larger of the two hockey-stick divergences at `budget`."""
  more, odds = lambda p, q: np.maximum(p - odds * q, 0).sum() * volume, math.exp(budget)  # noqa: E731
  return max(more(densities, others), more(others, densities))


@pytest.mark.parametrize('budget', [0.5, 2.0])
@pytest.mark.parametrize(('q', 'sigma'), [(0.3, 0.8), (0.05, 1.5)])
def test_sampled_gaussians_are_the_integrals(q, sigma, budget):
  """One step on a line and two on a plane, integrated: what is claimed is never less."""
  x = np.linspace(-9, 10, 1901) * sigma
  width = x[1] - x[0]
  normal = lambda mean: np.exp(  # noqa: E731
    -(x - mean)**2 / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
  one, other = (1 - q) * normal(0) + q * normal(1), normal(0)
  for steps, pair, volume in (
      (1, (one, other), width),
      (2, (np.outer(one, one), np.outer(other, other)), width**2)):
    true = deltas(*pair, volume, budget)
    claimed = epsilon([sampled(sigma, q, steps)], true)
    assert budget - 1e-4 <= claimed <= budget * 1.01 + 2e-3
    assert epsilon([sampled(sigma, q, steps)], true, RDP) >= budget


@pytest.mark.parametrize('accountant', BOTH)
def test_cut_samples_cost_what_all_outcomes_cost(accountant):
  """Three units, of which two at most stay: every draw, every subset, every neighbour."""
  q, sigma, units, capacity = 0.2, 1.0, 3, 2
  x = np.linspace(-12, 12, 4801)
  width = x[1] - x[0]

  def density(values):
    """Of the noised sum of `values`, by all samples and all subsets of those too large."""
    total = np.zeros_like(x)
    for drawn in itertools.product((0, 1), repeat=units):
      chosen = [value for value, there in zip(values, drawn, strict=True) if there]
      subsets = list(itertools.combinations(chosen, min(capacity, len(chosen))))
      chance = math.prod(q if there else 1 - q for there in drawn) / len(subsets)
      for subset in subsets:
        total += chance * np.exp(-(x - sum(subset))**2 / (2 * sigma**2))
    return total / (sigma * math.sqrt(2 * math.pi))

  row = [sampled(sigma, q, 1, capacity, units)]
  for delta in (0.2, 0.05):
    claimed = epsilon(row, delta, accountant)
    for others in itertools.product((-1, 0, 1), repeat=units - 1):
      assert deltas(
        density((1, *others)), density((0, *others)), width, claimed) <= delta * 1.001, others
  # Room that is never needed costs nothing.
  assert epsilon([sampled(2.0, 0.05, 30, 40, 100)], 1e-5, accountant) == pytest.approx(
    epsilon([sampled(2.0, 0.05, 30)], 1e-5, accountant), rel=1e-4)
  assert epsilon([sampled(2.0, 0.05, 30, 8, 100)], 1e-5) > epsilon([sampled(2.0, 0.05, 30)], 1e-5)


def test_rows_add_up_and_parts_do_not():
  """Units that are trained on and units of V are others; in one part everything adds up."""
  train, judged = sampled(1.5, 0.1, 20), gaussian(JUDGED, 6.0, 2)
  alone, asked = epsilon([train], 1e-5), epsilon([judged], 1e-5)
  assert epsilon([train, judged], 1e-5) == max(alone, asked)
  assert epsilon([train, judged._replace(part=TRAINED)], 1e-5) > 1.05 * max(alone, asked)
  halves = [train._replace(steps=12), train._replace(steps=8)]
  assert epsilon(halves, 1e-5) == alone
  assert epsilon(halves[:1], 1e-5) < alone
  assert epsilon([], 1e-5) == epsilon([train._replace(steps=0)], 1e-5) == 0
  assert epsilon([train._replace(sigma=0.0)], 1e-5) == math.inf
  assert within([train], alone, 1e-5) and not within([train], 0.999 * alone, 1e-5)


@pytest.mark.parametrize('accountant', BOTH)
def test_noise_is_the_least_that_keeps_the_budget(accountant):
  plans = [lambda noise, n=n: [sampled(noise, 4 / n, 12)] for n in (40, 200)]
  noise = calibrated(plans, 2.0, 1e-5, accountant)
  assert all(epsilon(plan(noise), 1e-5, accountant) <= 2.0 for plan in plans)
  assert any(epsilon(plan(0.995 * noise), 1e-5, accountant) > 2.0 for plan in plans)
  with pytest.raises(InputError, match='no noise is enough'):
    calibrated([lambda noise: [gaussian(TRAINED, 0.1)]], 1.0, 1e-5, accountant)
