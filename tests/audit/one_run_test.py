"""Lower bounds of epsilon: by hand, against a mechanism of known guesses, and by simulation."""

import numpy as np
import pytest
from jax_privacy import auditing
from scipy.special import expit, logit
from scipy.stats import binom

from fedmedjax.audit import one_run
from fedmedjax.experiment.accounting import analytic_gaussian


def test_all_right_without_delta():
  """Ten right guesses of ten have the probability q^10 at most: 0.1 % at q = 0.001^(1/10) = 0.501,
  so epsilon = log(q / (1 - q)) = 0.0047; and twenty refute log(0.708 / 0.292) = 0.885."""
  assert one_run.p_value(10, 10, 10, 1.0, 0.0) == pytest.approx(expit(1.0) ** 10)
  for number in (10, 20):
    assert one_run.refuted(number, number, number, 0.0, 1e-3) == pytest.approx(
      logit(1e-3 ** (1 / number)), rel=1e-6)
  assert one_run.refuted(20, 20, 12, 0.0, 1e-3) == 0.0


@pytest.mark.parametrize('epsilon, delta', [(0.5, 0.0), (1.0, 0.01), (2.0, 0.002)])
def test_no_guesser_of_a_private_mechanism_is_better(epsilon, delta):
  """Randomised response that tells the coin with probability delta is (epsilon, delta)-private, and
  the best guess of each of m coins is right with delta + (1 - delta) q: any number of right guesses
  is at most as probable as the theorem says."""
  m = 40
  right = np.arange(1, m + 1)
  true = binom.sf(right - 1, m, delta + (1 - delta) * expit(epsilon))
  said = np.asarray([one_run.p_value(m, m, v, epsilon, delta) for v in right])
  assert (true <= said + 1e-12).all()
  if delta:  # without its second term the theorem would be wrong
    assert (true > binom.sf(right - 1, m, expit(epsilon)))[20:].all()
  for v in (10, 25, 40):
    assert said[v - 1] == pytest.approx(auditing._one_run_p_value(m, m, v, epsilon, delta))


def test_bounds_of_gaussians_lie_under_their_epsilon():
  """Canaries that move a number of their own by mu standard deviations: the bound is below the
  epsilon of that Gaussian mechanism in each of 100 runs, and far from nothing for the larger mu."""
  delta, rng = 1e-6, np.random.default_rng(1)
  for mu, least in ((0.3, 0.0), (1.0, 0.5), (3.0, 2.0)):
    bounds = []
    for _ in range(100):
      coins = rng.random(1000) < 0.5
      found = one_run.lower_bound(mu * coins + rng.standard_normal(1000), coins, delta)
      assert not found.epsilon or analytic_gaussian(mu, found.epsilon) >= delta
      bounds.append(found.epsilon)
    assert np.mean(bounds) >= least


def test_nothing_is_known_of_nothing():
  """Equal scores, no canary, one canary, and scores that are no numbers."""
  coins = np.random.default_rng(0).random(400) < 0.5
  assert one_run.lower_bound(np.zeros(400), coins, 1e-6).epsilon == 0
  assert one_run.lower_bound([], [], 1e-6).canaries == 0
  assert one_run.lower_bound([1.0], [True], 1e-6).epsilon == 0
  found = one_run.lower_bound(np.where(coins, np.nan, 1.0), coins, 1e-6)
  assert found.epsilon == 0 and found.planted == coins.sum()
  assert one_run.most_refutable(400, 1e-6) > 3
