"""Signals of the weights, by hand on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import SIZES, data, federation, play

from fedmedjax.fed.aggregators.weighted_mean import (
  adaptive_mean,
  alignment,
  leave_one_out,
  weighted_sum,
)
from fedmedjax.fed.types import Validation

# One validation target 2 in 4 entries: l(v) = 2 (v - 2)^2.
VALIDATION = Validation(
  {'target': jnp.array([2.0]), 'weight': jnp.ones(1), 'curvature': jnp.ones(1)}, jnp.eye(1))
LOCAL = np.array([0.5, 1.0, 2.0])   # after one step of rate 0.5 from 0
SHARES = np.array([0.1, 0.3, 0.6])


def loss(v):
  return 2 * (v - 2.0) ** 2


def test_leave_one_out_by_hand():
  """Mean of all 1.55; without 0: (0.3 + 1.2) / 0.9; without 1: 1.25 / 0.7; without 2: 0.35 / 0.4.

  I_k = l(without k) - l(all); weights n_k exp(I_k / tau): the site with the target 4 helps."""
  without = np.array([1.5 / 0.9, 1.25 / 0.7, 0.35 / 0.4])
  contribution = loss(without) - loss(1.55)
  _, metrics = play(
    federation(aggregator=adaptive_mean(
      loss_power=1.0, utility=leave_one_out, temperature=0.5)), data(), 1, VALIDATION)
  np.testing.assert_allclose(metrics.validation_loss, -contribution, rtol=1e-4)
  weights = SHARES * np.exp(contribution / 0.5)
  np.testing.assert_allclose(metrics.weights, weights / weights.sum(), rtol=1e-4)
  assert metrics.weights[2] > 0.9 and contribution[0] < 0 < contribution[2]


def judged(locals_, sizes, **power):
  """The signal of leave-one-out and the weights, of sites that went to `locals_` from 0."""
  updates = {'a': jnp.array(locals_)[:, None]}
  aggregator = adaptive_mean(loss_power=1.0, utility=leave_one_out, **power)
  anchor = {'a': jnp.zeros(1)}
  out = aggregator.update(
    updates, aggregator.init(anchor, len(sizes)), weights=jnp.array(sizes),
    cohort=jnp.arange(len(sizes)), anchor=anchor, local=updates, key=None,
    validation_loss=lambda adapters: loss(adapters['a'][:, 0]))
  return out.signal, out.weights


def test_leave_one_out_of_a_site_that_holds_nearly_all():
  """Sizes 1, 1, 18 of 20, at 0.5, 1, 2: the mean is (0.5 + 1 + 36) / 20 = 1.875; without the third
  1.5 / 2 = 0.75, its rest being a tenth; without the others 37 / 19 and 36.5 / 19."""
  signal, _ = judged(LOCAL, [10.0, 10.0, 180.0])
  np.testing.assert_allclose(
    signal, loss(1.875) - loss(np.array([37 / 19, 36.5 / 19, 0.75])), rtol=1e-4)


def test_leave_one_out_averages_by_the_power_of_size_that_weighs():
  """gamma = 0: the plain mean 3.5 / 3; without 0, 1, 2: 1.5, 1.25, 0.75. gamma = 1/2 of sizes 1, 4
  and 9: shares 1/6, 2/6, 3/6, the mean is (0.5 + 2 + 6) / 6; without: 8 / 5, 6.5 / 4, 2.5 / 3."""
  for power, whole, without in (
      (0.0, 3.5 / 3, (1.5, 1.25, 0.75)), (0.5, 8.5 / 6, (8 / 5, 6.5 / 4, 2.5 / 3))):
    signal, weights = judged(LOCAL, [1.0, 4.0, 9.0], size_power=power)
    expected = loss(whole) - loss(np.array(without))
    np.testing.assert_allclose(signal, expected, rtol=1e-4)
    raw = np.array([1.0, 4.0, 9.0]) ** power * np.exp(-expected)
    np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-4)


def test_alignment_by_hand():
  """Gradient at 0: 4 entries of (0 - 2); I_k = 8 v_k: updates 0.5, 1, 2 give 4, 8, 16."""
  _, metrics = play(
    federation(aggregator=adaptive_mean(
      loss_power=1.0, utility=alignment, temperature=8.0)), data(), 1, VALIDATION)
  np.testing.assert_allclose(metrics.validation_loss, (-4, -8, -16), rtol=1e-5)
  weights = SHARES * np.exp(np.array([4, 8, 16]) / 8)
  np.testing.assert_allclose(metrics.weights, weights / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize('signal', [leave_one_out, alignment])
def test_a_broken_site_weighs_nothing_and_the_rest_are_judged_without_it(signal):
  """A third site whose target is not a number, against a federation of the first two."""
  rule = lambda: adaptive_mean(loss_power=1.0, utility=signal, temperature=5.0)  # noqa: E731
  broken, metrics = play(
    federation(aggregator=rule()), data(targets=(1.0, 2.0, np.nan)), 1, VALIDATION)
  pair, expected = play(
    federation(sites=2, aggregator=rule()), data((1, 1), (1.0, 2.0), (1.0, 1.0)), 1, VALIDATION)
  np.testing.assert_allclose(metrics.weights, [*expected.weights, 0.0], rtol=1e-5)
  for one, other in zip(
      jax.tree.leaves(broken.adapter), jax.tree.leaves(pair.adapter), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize('signal', [leave_one_out, alignment])
def test_equal_sites_share_by_size_and_a_lone_site_has_all(signal):
  rule = lambda: adaptive_mean(loss_power=1.0, utility=signal)  # noqa: E731
  _, metrics = play(
    federation(aggregator=rule()), data(targets=(3.0, 3.0, 3.0)), 1, VALIDATION)
  np.testing.assert_allclose(metrics.weights, SIZES / SIZES.sum(), rtol=1e-4)
  _, metrics = play(
    federation(sites=1, aggregator=rule()), data((1,), (3.0,), (1.0,)), 1, VALIDATION)
  np.testing.assert_allclose(metrics.weights, [1.0])


def test_cosine_is_to_the_mean():
  """Updates +1, +1, -1 in every entry with sizes 1, 3, 6: mean (1 + 3 - 6) / 10 < 0."""
  _, metrics = play(federation(), data(targets=(2.0, 2.0, -2.0)))
  np.testing.assert_allclose(metrics.cosine, (-1, -1, 1), rtol=1e-6)
  assert float(metrics.step_cosine) == pytest.approx(1)
  mean = weighted_sum({'x': jnp.array([[1.0], [1.0], [-1.0]])}, jnp.array([0.1, 0.3, 0.6]))
  assert float(mean['x'][0]) == pytest.approx(-0.2)
