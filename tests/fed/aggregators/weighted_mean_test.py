"""Weights, what they are made from and what they remember, by hand on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import SIZES, data, federation, play

from fedmedjax.fed.aggregators.signals import Signal, alignment, leave_one_out
from fedmedjax.fed.aggregators.weighted_mean import (
  adaptive_mean,
  adaptive_weights,
  factor_mean,
  size_weights,
)
from fedmedjax.fed.types import Aggregator, Combine, Validation
from fedmedjax.tree import weighted_sum

# One validation target 2 in 4 entries: l(v) = 2 (v - 2)^2. An answer of one token, the server's,
# which judges all sites against their mean.
VALIDATION = Validation(
  {'target': jnp.array([2.0]), 'weight': jnp.ones(1), 'curvature': jnp.ones(1)}, jnp.eye(1),
  jnp.ones(1), jnp.full(1, -1, jnp.int32))
LOCAL = np.array([0.5, 1.0, 2.0])   # after one step of rate 0.5 from 0
SHARES = np.array([0.1, 0.3, 0.6])
LOSSES = np.array([0.9, 0.5, 0.7], np.float32)


def loss(v):
  return 2 * (v - 2.0) ** 2


@pytest.mark.parametrize('power, expected', [
  (dict(size_power=1, loss_power=0), (0.1, 0.3, 0.6)),
  (dict(size_power=0, loss_power=0), (1 / 3, 1 / 3, 1 / 3)),
  (dict(size_power=0, loss_power=1), (0.269307, 0.401760, 0.328933)),
  (dict(size_power=1, loss_power=1), (0.078101, 0.349540, 0.572359)),
  (dict(size_power=0, loss_power=1, temperature=0.1), (0.015876, 0.866813, 0.117310)),
  (dict(size_power=1, loss_power=1, temperature=0.1), (0.004782, 0.783223, 0.211995)),
  # floor: (1 - 0.3) (0.1, 0.3, 0.6) + 0.1 each
  (dict(size_power=1, loss_power=0, floor=0.3), (0.17, 0.31, 0.52)),
])
def test_method_vectors(power, expected):
  """docs/methods.md, section 3, printed to six places."""
  weights = adaptive_weights(SIZES, LOSSES, **{'temperature': 1.0, **power})
  np.testing.assert_allclose(weights, expected, atol=6e-7)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
  st.lists(st.tuples(st.integers(1, 10**6), st.floats(-50, 50)), min_size=1, max_size=9),
  st.floats(-1e3, 1e3), st.randoms())
def test_weights_are_a_simplex_that_ignores_a_constant_and_the_order(sites, constant, random):
  sizes, losses = np.array(sites, np.float64).T.astype(np.float32)
  rule = dict(size_power=1.0, loss_power=1.0, temperature=1.0)
  weights = adaptive_weights(sizes, losses, **rule)
  assert abs(float(weights.sum()) - 1) < 1e-5 and (weights >= 0).all()
  shifted = adaptive_weights(sizes, losses + np.float32(constant), **rule)
  np.testing.assert_allclose(weights, shifted, rtol=2e-3, atol=1e-6)
  order = list(range(len(sites)))
  random.shuffle(order)
  np.testing.assert_allclose(
    adaptive_weights(sizes[order], losses[order], **rule), weights[np.array(order)], rtol=1e-4)


def test_what_is_left_out_counts_nothing():
  """Of `adaptive_weights` the loss, with a temperature of 1 where it does count; of both functions
  whoever has no size, or one below 0."""
  np.testing.assert_allclose(
    adaptive_weights(SIZES, LOSSES, size_power=1.0), (0.1, 0.3, 0.6), rtol=1e-6)
  raw = np.exp(-LOSSES)
  np.testing.assert_allclose(
    adaptive_weights(SIZES, LOSSES, size_power=0.0, loss_power=1.0), raw / raw.sum(), rtol=1e-6)
  sizes, one = np.array([100.0, -300, 0, 100], np.float32), np.ones(4, np.float32)
  np.testing.assert_allclose(
    adaptive_weights(sizes, one, size_power=2.0), (0.5, 0, 0, 0.5), rtol=1e-6)
  np.testing.assert_allclose(
    size_weights(sizes, np.array([True, True, True, False]), 1.0), (1, 0, 0, 0))
  total = weighted_sum({'a': jnp.array([[4.0], [8.0], [jnp.nan]])}, jnp.array([0.5, -1.0, 0.0]))
  assert total['a'].tolist() == [2.0]


def test_what_a_mean_needs_and_gives():
  """Weights made of a utility need every site's own update; secure sums have none."""
  assert adaptive_mean().needs == frozenset() and adaptive_mean().gives == {'weighted_mean'}
  assert adaptive_mean(loss_power=1.0).needs == {'single_updates'}
  folding = Combine(lambda *_, **__: None, needs=frozenset({'both_factors'}))
  assert adaptive_mean(loss_power=1.0, combine=folding).needs == {'single_updates', 'both_factors'}
  # A combine or an aggregator that says nothing of it folds nothing into the base.
  for part in (folding, adaptive_mean(), Aggregator(None, None)):
    assert part.fold({'a': jnp.ones(2)}) == () and part.columns([4, 4]) == 0
  assert not folding.linear and factor_mean().linear


def test_a_site_without_a_finite_loss_weighs_nothing_and_spoils_nothing():
  """n = (100, 300), the third lost: (0.25, 0.75, 0); its NaN update leaves the sum finite."""
  losses = np.array([0.7, 0.7, np.nan], np.float32)
  weights = adaptive_weights(SIZES, losses, size_power=1, loss_power=1, temperature=1, floor=0.0)
  np.testing.assert_allclose(weights, (0.25, 0.75, 0), atol=1e-6)
  total = weighted_sum({'a': jnp.array([[4.0], [8.0], [jnp.nan]])}, weights)
  np.testing.assert_allclose(total['a'], [7.0])
  nobody = adaptive_weights(
    SIZES, np.full(3, np.inf, np.float32), size_power=1, loss_power=1, temperature=1)
  assert nobody.tolist() == [0, 0, 0]


def test_smoothed_weights_by_hand():
  """mu = 0.5: round 1 has no past: (0.1, 0.3, 0.6). Round 2 with the cohort (0, 1) alone:
  fresh (0.25, 0.75), past (0.1, 0.3) / 0.4 = (0.25, 0.75): unchanged. With sizes swapped:
  0.5 (0.25, 0.75) + 0.5 (0.75, 0.25) = (0.5, 0.5); and with mu = 0.25, the share of the past,
  0.25 (0.25, 0.75) + 0.75 (0.75, 0.25) = (0.625, 0.375)."""
  aggregator = adaptive_mean(ema=0.5)
  state = aggregator.init({}, 3)
  call = lambda cohort, sizes, state, aggregator=aggregator: aggregator.update(  # noqa: E731
    {'a': jnp.zeros((len(cohort), 1))}, state, weights=jnp.array(sizes),
    cohort=jnp.array(cohort), anchor=None, local=None, key=None)
  first = call([0, 1, 2], SIZES, state)
  np.testing.assert_allclose(first.weights, (0.1, 0.3, 0.6), atol=1e-6)
  second = call([0, 1], SIZES[:2], first.state)
  np.testing.assert_allclose(second.weights, (0.25, 0.75), atol=1e-6)
  swapped = call([0, 1], SIZES[:2][::-1].copy(), first.state)
  np.testing.assert_allclose(swapped.weights, (0.5, 0.5), atol=1e-6)
  swapped = call([0, 1], SIZES[:2][::-1].copy(), first.state, adaptive_mean(ema=0.25))
  np.testing.assert_allclose(swapped.weights, (0.625, 0.375), atol=1e-6)


def test_what_is_standardised_goes_by_the_sites_that_count():
  """Of (-2, 2) the deviation is 2, so of equal sizes (1, -1) count: w = 1 / (1 + e^-2) of the
  better. A third site of size 0 changes nothing, whatever it has."""
  signal = Signal(lambda **_: jnp.array([2.0, -2.0, 60.0]), standardised=True)
  out = adaptive_mean(loss_power=1.0, signal=signal).update(
    {'a': jnp.zeros((3, 1))}, jnp.zeros(3), weights=jnp.array([5.0, 5, 0]),
    cohort=jnp.arange(3), anchor=None, local=None, key=None)
  np.testing.assert_allclose(out.weights, (0.119203, 0.880797, 0), atol=1e-6)


def test_a_floor_and_a_past_without_some_of_the_sites():
  """A lone usable site has all, floor or not. With mu = 0.5 and the past (0.1, 0.3, 0.6), of which
  the third is lost: fresh (1/4, 3/4, 0), smoothed (0.175, 0.525, 0) / 0.7 = (1/4, 3/4, 0)."""
  lone = adaptive_weights(
    SIZES, np.array([np.nan, 0.5, np.inf], np.float32), size_power=1, loss_power=1, temperature=1,
    floor=0.3)
  np.testing.assert_allclose(lone, (0, 1, 0), atol=1e-6)
  lost = adaptive_mean(
    ema=0.5, loss_power=1.0, signal=Signal(lambda **_: jnp.array([0.7, 0.7, jnp.nan])))
  out = lost.update(
    {'a': jnp.zeros((3, 1))}, jnp.array([0.1, 0.3, 0.6]), weights=jnp.asarray(SIZES),
    cohort=jnp.arange(3), anchor=None, local=None, key=None)
  np.testing.assert_allclose(out.weights, (0.25, 0.75, 0), atol=1e-6)


def test_a_loss_that_is_not_finite_leaves_no_memory():
  """mu = 0.5, equal losses but for round 2, where the third site's is not a number. Round 1 weighs
  by size, (0.1, 0.3, 0.6). Round 2: fresh (1/4, 3/4, 0), past of those two the same. Round 3:
  fresh (0.1, 0.3, 0.6); nothing is remembered of the third's 0, so its past is its 0.6, and the
  others' (1/4, 3/4) of the 0.4 that are left: as fresh. Remembered, the 0 would make it
  (0.175, 0.525, 0.3)."""
  losses = iter(([0.7] * 3, [0.7, 0.7, np.nan], [0.7] * 3))
  aggregator = adaptive_mean(
    ema=0.5, loss_power=1.0, signal=Signal(lambda **_: jnp.array(next(losses), jnp.float32)))
  state, found = aggregator.init({}, 3), []
  for _ in range(3):
    out = aggregator.update(
      {'a': jnp.zeros((3, 1))}, state, weights=jnp.asarray(SIZES), cohort=jnp.arange(3),
      anchor=None, local=None, key=None)
    state = out.state
    assert np.isfinite(state).all()
    found.append(out.weights)
  np.testing.assert_allclose(
    found, [(0.1, 0.3, 0.6), (0.25, 0.75, 0), (0.1, 0.3, 0.6)], atol=1e-6)


def test_a_site_without_a_past_weighs_what_it_would_without_smoothing():
  """mu = 0.9. Sites 0 and 1 come alone, sizes 1 and 3: (1/4, 3/4, 0). Then the third comes, with
  sizes 1, 1, 2: fresh (1/4, 1/4, 1/2), of which the third has its half at once; of the other half
  the past gives (1/8, 3/8): 0.9 of it and 0.1 of (1/4, 1/4) are (0.1375, 0.3625)."""
  aggregator = adaptive_mean(ema=0.9)
  state, found = aggregator.init({}, 3), []
  for sizes in ((1.0, 3.0, 0.0), (1.0, 1.0, 2.0)):
    out = aggregator.update(
      {'a': jnp.zeros((3, 1))}, state, weights=jnp.array(sizes), cohort=jnp.arange(3),
      anchor=None, local=None, key=None)
    state = out.state
    found.append(out.weights)
  np.testing.assert_allclose(found, [(0.25, 0.75, 0), (0.1375, 0.3625, 0.5)], atol=1e-6)


def test_leave_one_out_by_hand():
  """Mean of all 1.55; without 0: (0.3 + 1.2) / 0.9; without 1: 1.25 / 0.7; without 2: 0.35 / 0.4.

  I_k = l(without k) - l(all); weights n_k exp(I_k / tau): the site with the target 4 helps."""
  without = np.array([1.5 / 0.9, 1.25 / 0.7, 0.35 / 0.4])
  contribution = loss(without) - loss(1.55)
  _, metrics = play(
    federation(aggregator=adaptive_mean(
      loss_power=1.0, signal=Signal(leave_one_out), temperature=0.5)), data(), 1, VALIDATION)
  np.testing.assert_allclose(
    metrics.validation_loss, contribution.mean() - contribution, rtol=1e-4)
  weights = SHARES * np.exp(contribution / 0.5)
  np.testing.assert_allclose(metrics.weights, weights / weights.sum(), rtol=1e-4)
  assert metrics.weights[2] > 0.9 and contribution[0] < 0 < contribution[2]


def test_who_is_left_out():
  """The rest of shares 1/4 and 3/4 is the other alone; of a single site with a share nothing is
  left, and without a share, or with one below 0, none is judged. On the server's notes 4 - 5 and
  4 - 6 lie half a nat from their mean."""
  for shares, rest, expected in (
      ((0.25, 0.75, 0.0), ((0, 1, 0), (1, 0, 0), (0.25, 0.75, 0)), (0.5, -0.5, np.nan)),
      ((0.0, 1.0, 0.0), ((0, 1, 0), (0, 0, 0), (0, 1, 0)), (np.nan, 0, np.nan)),
      ((-0.5, 1.0, 0.0), None, (np.nan, 0, np.nan))):
    asked = []
    found = leave_one_out(
      shares=jnp.array(shares), cohort=jnp.arange(3), group_site=jnp.array([-1]),
      formed_loss=lambda weights: asked.append(weights) or jnp.array(  # noqa: B023
        [[5.0], [6.0], [7.0], [4.0]]))
    np.testing.assert_array_equal(found, expected)
    if rest:
      np.testing.assert_allclose(asked[0], [*rest, shares])


def judged(locals_, sizes, **power):
  """The utility by leave-one-out and the weights, of sites that went to `locals_` from 0."""
  updates = {'a': jnp.array(locals_)[:, None]}
  aggregator = adaptive_mean(loss_power=1.0, signal=Signal(leave_one_out), **power)
  anchor = {'a': jnp.zeros(1)}
  out = aggregator.update(
    updates, aggregator.init(anchor, len(sizes)), weights=jnp.array(sizes),
    cohort=jnp.arange(len(sizes)), anchor=anchor, local=updates, key=None,
    answer_loss=lambda adapters: loss(adapters['a'][:, :1]), group_site=jnp.full(1, -1))
  return out.utility, out.weights


def test_leave_one_out_of_a_site_that_holds_nearly_all():
  """Sizes 1, 1, 18 of 20, at 0.5, 1, 2: the mean is (0.5 + 1 + 36) / 20 = 1.875; without the third
  1.5 / 2 = 0.75, its rest being a tenth; without the others 37 / 19 and 36.5 / 19."""
  utility, _ = judged(LOCAL, [10.0, 10.0, 180.0])
  without = loss(np.array([37 / 19, 36.5 / 19, 0.75]))
  np.testing.assert_allclose(utility, without.mean() - without, rtol=1e-4)


def test_leave_one_out_averages_by_the_power_of_size_that_weighs():
  """gamma = 0: the plain mean 3.5 / 3; without 0, 1, 2: 1.5, 1.25, 0.75. gamma = 1/2 of sizes 1, 4
  and 9: shares 1/6, 2/6, 3/6, the mean is (0.5 + 2 + 6) / 6; without: 8 / 5, 6.5 / 4, 2.5 / 3."""
  for power, whole, without in (
      (0.0, 3.5 / 3, (1.5, 1.25, 0.75)), (0.5, 8.5 / 6, (8 / 5, 6.5 / 4, 2.5 / 3))):
    utility, weights = judged(LOCAL, [1.0, 4.0, 9.0], size_power=power)
    expected = loss(whole) - loss(np.array(without))
    np.testing.assert_allclose(utility, expected - expected.mean(), rtol=1e-4)
    raw = np.array([1.0, 4.0, 9.0]) ** power * np.exp(-expected)
    np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-4)


def test_alignment_by_hand():
  """The average by size is (0.05 + 0.3 + 1.2) = 1.55, its gradient 4 entries of (1.55 - 2): I_k =
  1.8 v_k, so 0.9, 1.8, 3.6 of updates 0.5, 1, 2, mean 2.1."""
  _, metrics = play(
    federation(aggregator=adaptive_mean(
      loss_power=1.0, signal=Signal(alignment), temperature=8.0)), data(), 1, VALIDATION)
  np.testing.assert_allclose(metrics.validation_loss, [1.2, 0.3, -1.5], rtol=1e-5)
  weights = SHARES * np.exp(np.array([0.9, 1.8, 3.6]) / 8)
  np.testing.assert_allclose(metrics.weights, weights / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize('signal', [leave_one_out, alignment])
def test_a_broken_site_weighs_nothing_and_the_rest_are_judged_without_it(signal):
  """A third site whose target is not a number, against a federation of the first two."""
  rule = lambda: adaptive_mean(loss_power=1.0, signal=Signal(signal), temperature=5.0)  # noqa: E731
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
  rule = lambda: adaptive_mean(loss_power=1.0, signal=Signal(signal))  # noqa: E731
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
