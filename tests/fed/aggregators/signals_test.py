"""Nats per answer and the judgement of peers, by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.fed.aggregators import SIGNALS
from fedmedjax.fed.aggregators.signals import alignment, leave_one_out, peer_judgement
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean, standardised
from fedmedjax.fed.local import answer_losses, answer_slopes, mean_loss
from fedmedjax.fed.types import Validation

# a_kg: rows are the sites whose adapter it is, columns those whose notes they are. A site's own
# notes would say something else of it.
OF_THREE = np.array([[99.0, 4, 5], [6, 99, 8], [5, 5, 99]])
# The last of four sites is wrong: its adapter at the others, and the others' on its notes.
OF_FOUR = np.array([[1.0, 2, 2, 20], [2, 1, 2, 21], [2, 2, 1, 22], [12, 12, 12, 0]])
TOKENS = 40  # of an answer


@jax.jit
def _judged(nats, group_site, cohort, shares):
  return peer_judgement(
    local=None, shares=shares, cohort=cohort, answer_loss=lambda local: nats[cohort],
    group_site=group_site)


@partial(jax.jit, static_argnums=0)
def _weighed(signal, nats, group_site, cohort, sizes):
  updates = {'a': jnp.zeros((len(cohort), 1))}
  out = adaptive_mean(loss_power=1.0, signal=SIGNALS[signal]).update(
    updates, jnp.zeros(len(nats)), weights=sizes, cohort=cohort, anchor={'a': jnp.zeros(1)},
    local=updates, key=None, answer_loss=lambda local: nats[cohort], group_site=group_site,
    validation_loss=lambda local: nats[cohort].mean(axis=1) / TOKENS)
  return out.weights, out.utility


def arrays(nats, group_site, cohort):
  """Of everyone and everyone's notes, unless they are given."""
  nats = np.asarray(nats, np.float32)
  of = lambda given, count: np.asarray(  # noqa: E731
    np.arange(count) if given is None else given, np.int32)
  return nats, of(group_site, nats.shape[1]), of(cohort, len(nats))


def judged(nats, group_site=None, cohort=None, shares=None):
  """u_k of the sites of `cohort`, whose rows of [S, G] `nats` are what their adapters lose."""
  nats, group_site, cohort = arrays(nats, group_site, cohort)
  shares = np.ones(len(cohort)) if shares is None else np.asarray(shares)
  return np.asarray(_judged(nats, group_site, cohort, shares.astype(np.float32)))


def weights(signal, nats, sizes, group_site=None, cohort=None):
  """(weights, utility) that a mean by this signal gives sites of these sizes; `nats` as above."""
  found = _weighed(signal, *arrays(nats, group_site, cohort), np.asarray(sizes, np.float32))
  return tuple(map(np.asarray, found))


def test_an_answer_counts_all_its_tokens():
  """Two steps of one group: 10 nats in 3 answers of 40 tokens together, 2 nats in one of 8: 3 nats
  an answer, a quarter a token. The other group: 5 nats, one answer of 10 tokens."""
  val = Validation(
    {'nats': jnp.array([10.0, 2, 5]), 'tokens': jnp.array([40.0, 8, 10])},
    jnp.array([[1.0, 0], [1, 0], [0, 1]]), jnp.array([3.0, 1, 1]))
  loss = lambda adapter, base, batch: (batch['nats'], batch['tokens'])  # noqa: E731
  np.testing.assert_allclose(answer_losses(loss, None, None, val), [3, 5])
  np.testing.assert_allclose(mean_loss(loss, None, None, val), (0.25 + 0.5) / 2)
  # Of a loss that is a times the nats, the slope along 2 is twice that.
  slopes = answer_slopes(
    lambda a, base, batch: (a * batch['nats'], batch['tokens']), jnp.float32(7),
    jnp.array([2.0, -1]), None, val)
  np.testing.assert_allclose(slopes, [[6, 10], [-3, -5]])
  with pytest.raises(ValueError, match='answers'):
    answer_losses(loss, None, None, val._replace(answers=None))


def test_answers_by_hand():
  """Groups are averaged: A = (2, 4), w ~ (100 e^-2, 300 e^-4) = 100 e^-4 (e^2, 3)."""
  found, utility = weights('answer', [[1, 3], [2, 6]], [100, 300])
  np.testing.assert_allclose(utility, [2, 4])
  np.testing.assert_allclose(found, [np.e**2 / (np.e**2 + 3), 3 / (np.e**2 + 3)], rtol=1e-5)


def test_peers_of_three_by_hand():
  """Judge 0 sees 6 and 5, mean 5.5: sites 1 and 2 lie at +.5 and -.5. Judge 1 sees 4 and 5: sites
  0 and 2 at -.5 and +.5. Judge 2 sees 5 and 8: sites 0 and 1 at -1.5 and +1.5. Medians -1, 1, 0,
  whose standard deviation sqrt(2 / 3) is below 1 nat: w ~ (100 e, 300 / e, 600)."""
  found, utility = weights('peer', OF_THREE, [100, 300, 600])
  np.testing.assert_allclose(utility, [-1, 1, 0], atol=1e-6)
  raw = np.array([100 * np.e, 300 / np.e, 600])
  np.testing.assert_allclose(found, raw / raw.sum(), rtol=1e-5)


def test_peers_of_four_with_a_wrong_one_by_hand():
  """Right judges see two right adapters at 2 and the wrong one at 12, mean 16 / 3: right ones lie
  at -10 / 3, the wrong one at 20 / 3. The wrong judge sees 20, 21, 22: -1, 0, 1, of three judges
  never the median. Standard deviation of (-10, -10, -10, 20) / 3: squares 25 / 4 three times and
  225 / 4 about the mean -5 / 6, 75 / 4 in the mean, so sqrt(75) / 2. The wrong site weighs
  exp(-10 / (sqrt(75) / 2)) = exp(-4 / sqrt(3)) times a right one; two tasks of a site are averaged
  first."""
  right = 1 / (3 + np.exp(-4 / np.sqrt(3)))
  split = np.concatenate([OF_FOUR[:, :3], OF_FOUR[:, 3:] - 1, OF_FOUR[:, 3:] + 1], axis=1)
  for nats, owners in ((OF_FOUR, range(4)), (split, (0, 1, 2, 3, 3))):
    found, utility = weights('peer', nats, np.ones(4), owners)
    np.testing.assert_allclose(utility, np.array([-10, -10, -10, 20]) / 3, rtol=1e-5)
    np.testing.assert_allclose(found, [right] * 3 + [1 - 3 * right], rtol=1e-5)


def test_who_judges():
  """Of `OF_FOUR`, whose sites' V or presence is taken away."""
  # Without V the third is judged, twice at -10 / 3 and once at 1. Of the others' judges one is
  # missing: the middle of -10 / 3 and -1, of -10 / 3 and 0.
  some = judged(OF_FOUR[:, [0, 1, 3]], (0, 1, 3))
  np.testing.assert_allclose(some, [-13 / 6, -10 / 6, -10 / 3, 20 / 3], rtol=1e-5)
  # A cohort: site 1 does not judge, though its notes lie there. Judge 0 sees 2 and 12, judge 2 the
  # same, the wrong one 20 and 22.
  np.testing.assert_allclose(
    judged(OF_FOUR, cohort=(3, 0, 2)), [5, (-5 - 1) / 2, (-5 + 1) / 2], rtol=1e-5)
  # One that has sent nothing is neither judged nor judges: as the cohort without it.
  absent = judged(OF_FOUR, shares=[0.5, 0.0, 0.2, 0.3])
  assert np.isnan(absent[1])
  np.testing.assert_allclose(absent[[3, 0, 2]], [5, -3, -2], rtol=1e-5)
  # A lone judge is judged by nobody: neutral.
  np.testing.assert_allclose(judged(OF_FOUR[:, :1], (0,)), [0, -10 / 3, -10 / 3, 20 / 3], rtol=1e-5)
  assert not judged(OF_FOUR[:, :1], (7,)).any() and not judged(OF_FOUR[:1, :1], (0,)).any()


def test_a_server_with_notes_judges_all():
  """1, 3 and 8, mean 4, and two sites are told apart, too; two tasks of it are averaged first."""
  np.testing.assert_allclose(judged([[1.0], [3], [8]], (-1,)), [-3, -1, 4])
  np.testing.assert_allclose(judged([[0.0, 2], [2, 4]], (-1, -1)), [-1, 1])


def test_the_average_without_a_site_and_slopes_are_judged_alike():
  """A loss that is linear in the weights, equal sizes: A(all) - A(without k) = (sum x) / 3 -
  (sum x - x_k) / 2, which is x_k / 2 and the same for all: half of what peers say. Slopes at the
  mean of 3, 6 and 9: the same as they."""
  nats, third = jnp.asarray(OF_THREE, jnp.float32), jnp.full(3, 1 / 3)
  sites = jnp.arange(3)
  np.testing.assert_allclose(leave_one_out(
    shares=third, cohort=sites, group_site=sites,
    formed_loss=lambda weights: weights @ nats), [-0.5, 0.5, 0], atol=1e-5)
  np.testing.assert_allclose(alignment(
    updates=jnp.array([3.0, 6, 9]), shares=third, cohort=sites, group_site=sites,
    answer_slopes=lambda updates, step: step / 6 * nats), [-1, 1, 0], atol=1e-6)


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_a_site_that_is_not_finite_for_a_judge_weighs_nothing(broken):
  """Site 1 at judge 0; it still judges. Of the others nothing changes: judge 0 sees 2 and 12,
  judge 1 sees 2, 2, 12, judge 2 sees 2 and 12, the wrong one 20 and 22."""
  nats = OF_FOUR.copy()
  nats[1, 0] = broken
  found, utility = weights('peer', nats, np.ones(4))
  assert found[1] == 0 and np.isnan(utility[1]) and found.sum() == pytest.approx(1)
  expected = [np.median([-10 / 3, -5, -1]), np.median([-5, -10 / 3, 1]), np.median([5, 20 / 3, 5])]
  np.testing.assert_allclose(utility[[0, 2, 3]], expected, rtol=1e-5)
  nobody, _ = weights('peer', np.full((3, 3), broken), np.ones(3))
  assert not nobody.any()
  found, _ = weights('answer', nats, np.ones(4))
  assert found[1] == 0 and found.sum() == pytest.approx(1)


def test_alike_or_two_they_share_by_size():
  sizes = np.array([100.0, 300, 600])
  for nats in (np.full((3, 3), 7.0), np.repeat([[1.0, 5.0, 40.0]], 3, axis=0)):
    for signal in ('answer', 'peer'):
      np.testing.assert_allclose(weights(signal, nats, sizes)[0], sizes / 1000, rtol=1e-5)
  np.testing.assert_allclose(
    weights('peer', [[1, 9], [30, 2]], [1, 3])[0], [0.25, 0.75], rtol=1e-6)
  np.testing.assert_allclose(
    weights('peer', OF_FOUR, [1, 3], cohort=(3, 1))[0], [0.25, 0.75], rtol=1e-6)


def test_the_order_of_the_cohort_is_nothing():
  rng = np.random.default_rng(3)
  nats, owners = rng.gamma(2.0, 3.0, (6, 7)), np.array([0, 1, 1, 3, 4, 5, -1])
  sizes, order = rng.integers(1, 9, 5), rng.permutation(5)
  cohort = np.array([0, 1, 2, 4, 5])
  for signal in ('answer', 'peer'):
    one, other = (
      weights(signal, nats, sizes[places], owners, cohort[places])
      for places in (np.arange(5), order))
    for before, after in zip(one, other, strict=True):
      np.testing.assert_allclose(after, before[order], rtol=1e-5)


def test_standard_deviations_shorten_and_never_stretch():
  """(-3, 0, 3) has sqrt(6); with the third left out (-3, 0) has 1.5; (-.3, 0, .3) stays."""
  values, all_ = jnp.array([-3.0, 0, 3]), jnp.ones(3, bool)
  np.testing.assert_allclose(
    standardised(values, all_), np.array([-3, 0, 3]) / np.sqrt(6), rtol=1e-6)
  two = standardised(jnp.array([-3.0, 0, jnp.nan]), jnp.array([True, True, False]))
  np.testing.assert_allclose(two, [-2, 0, np.nan], rtol=1e-6)
  np.testing.assert_allclose(standardised(values / 10, all_), [-0.3, 0, 0.3], rtol=1e-6)


@pytest.mark.parametrize('signal, ratio', [('loss', 0.025), ('answer', 1.0), ('peer', 2.0)])
def test_a_wrong_site_loses_weight_per_answer(signal, ratio):
  """A wrong site's adapter and its notes are 2 nats an answer off the three others', .05 nats a
  token. Over its own notes and theirs it loses 3 / 4 of these, a right one 1 / 4, half of it apart.
  Peers: a right judge sees 0, 0 and 2, so -2/3 and 4/3; the wrong one sees three alike; the medians
  are 2 apart, and their standard deviation sqrt(.75) is below 1."""
  wrong = np.array([0, 0, 0, 1])
  found, _ = weights(signal, 2.0 * (wrong[:, None] != wrong[None]), np.ones(4))
  right = 1 / (3 + np.exp(-ratio))
  np.testing.assert_allclose(found, [right] * 3 + [1 - 3 * right], rtol=1e-5)


def test_what_compares_sites_with_each_other_is_standardised():
  assert {name for name, signal in SIGNALS.items() if signal.standardised} == {
    'peer', 'loo', 'grad'}
  assert {name for name, signal in SIGNALS.items() if signal.needs} == {'peer'}
