"""Robust aggregators: by hand, against Flower's on the same arrays, and under attack."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import PATHS, data, entries, federation, play

from fedmedjax.fed import rules, sharing
from fedmedjax.fed.aggregators import robust
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean

SITES = 7
AGGREGATORS = {
  'median': robust.median(), 'trimmed_mean': robust.trimmed_mean(0.3),
  'geometric_median': robust.geometric_median(size_power=0.0), 'krum': robust.krum(faulty=2),
  'multi_krum': robust.krum(faulty=2, kept=3),
  'clipped_mean': robust.clipped_mean(norm_limit=1.0, size_power=0.0)}


def jitted(aggregator):
  def call(updates, sizes):
    out = aggregator.update(updates, (), weights=sizes)
    return out.update, out.weights

  return jax.jit(call)


JITTED = {name: jitted(aggregator) for name, aggregator in AGGREGATORS.items()}


def updates(seed, sites=SITES):
  rng = np.random.default_rng(seed)
  return {'a': jnp.asarray(rng.normal(size=(sites, 3, 2)), jnp.float32),
          'b': jnp.asarray(rng.normal(size=(sites, 2, 4)), jnp.float32)}


def one_entry(aggregator, values, sizes=None):
  """(the update, the weights) of sites that send one number each."""
  out = aggregator.update(
    {'x': jnp.array(values)[:, None]}, (),
    weights=jnp.ones(len(values)) if sizes is None else jnp.array(sizes))
  return float(out.update['x'][0]), np.asarray(out.weights)


@pytest.mark.parametrize('aggregator, values, expected', [
  (robust.median(), (5.0, 1.0, 100.0), 5.0),
  (robust.median(), (5.0, 1.0, 100.0, 7.0), 6.0),
  # floor(0.2 * 5) = 1 cut at either end: (2 + 3 + 4) / 3.
  (robust.trimmed_mean(0.2), (4.0, 1.0, 3.0, 100.0, 2.0), 3.0),
  (robust.trimmed_mean(0.0), (1.0, 2.0, 6.0), 3.0),
  (robust.median(), (5.0,), 5.0),
  (robust.median(), (5.0, 1.0), 3.0),
  # On a line the geometric median is the median.
  (robust.geometric_median(size_power=0.0), (0.0, 1.0, 100.0), 1.0),
  # With a smoothing of 10 times the mean norm all weigh the same: the mean.
  (robust.geometric_median(size_power=0.0, smoothing=10.0), (0.0, 1.0, 100.0), 101 / 3),
  # Norms 1, 2, 9, their median 2: 9 is shortened to 2: (1 - 2 + 2) / 3.
  (robust.clipped_mean(norm_limit=1.0, size_power=0.0), (1.0, -2.0, 9.0), 1 / 3),
  # And so at any scale.
  (robust.clipped_mean(norm_limit=1.0, size_power=0.0), (0.1, -0.2, 0.9), 1 / 30),
  (robust.clipped_mean(norm_limit=1e9, size_power=0.0), (1.0, -2.0, 9.0), 8 / 3),
])
def test_by_hand(aggregator, values, expected):
  assert one_entry(aggregator, values)[0] == pytest.approx(expected, abs=1e-4)


def test_krum_by_hand():
  """n = 5, f = 1: n - f - 2 = 2 neighbours. Values 0, 1, 3, 4.5, 50: squared distances to the two
  nearest: 0: 1 + 9 = 10; 1: 1 + 4 = 5; 3: 2.25 + 4 = 6.25; 4.5: 2.25 + 12.25 = 14.5; 50: large.
  Krum takes 1, Multi-Krum with 2 the mean of 1 and 3. One neighbour alone would score 0 and 1
  equal, 1 each, and three would prefer 3 (15.25 against 17.25)."""
  values = (0.0, 1.0, 3.0, 4.5, 50.0)
  assert one_entry(robust.krum(faulty=1), values)[0] == 1.0
  found, weights = one_entry(robust.krum(faulty=1, kept=2), values)
  assert found == 2.0 and weights.tolist() == [0, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize('values, nearest', [
  # 1: 1 + 25 = 26, 9: 9 + 16 = 25; the distances themselves would be 6 and 7.
  ((0.0, 1.0, 6.0, 9.0, 13.0), 9.0),
  # 1: 1 + 16 = 17, 8: 9 + 9 = 18; cubes would be 65 and 54.
  ((0.0, 1.0, 5.0, 8.0, 11.0), 1.0)])
def test_krum_adds_squares(values, nearest):
  assert one_entry(robust.krum(faulty=1), values)[0] == nearest


def test_krum_never_takes_more_than_are_honest_nor_none():
  """Of three sites of which two may be faulty one is taken, though two are asked for; of two faulty
  ones, too."""
  for values in ((0.0, 1.0, 3.0), (5.0, 7.0)):
    found, weights = one_entry(robust.krum(faulty=2, kept=2), values)
    assert found == values[0] and weights.tolist() == [1.0] + [0.0] * (len(values) - 1)


def test_krum_of_three_honest_sites_looks_at_one_neighbour():
  """n = 3, f = 0: n - f - 2 = 1. Of 0, 1, 3 the first two score 1 each, and the first is taken; of
  two neighbours 1 would score 1 + 4 = 5 against 1 + 9 = 10."""
  assert one_entry(robust.krum(faulty=0), (0.0, 1.0, 3.0))[0] == 0.0


def test_krum_with_fewer_sites_than_planned():
  """f = 1, m = 4, three of five sites present with 1000, 1 and 2: at most 3 - 1 = 2 are kept, the
  two nearest to each other, 1.5. One alone is taken wherever it stands, though it has no
  neighbour to be near to."""
  found, weights = one_entry(
    robust.krum(faulty=1, kept=4), (1000.0, 0.0, 1.0, 2.0, 0.0), (1.0, 0.0, 1.0, 1.0, 0.0))
  assert found == 1.5 and weights.tolist() == [0, 0, 0.5, 0.5, 0]
  found, weights = one_entry(robust.krum(faulty=0), (0.0, 7.0, 0.0), (0.0, 1.0, 0.0))
  assert found == 7.0 and weights.tolist() == [0, 1, 0]


def test_a_broken_site_leaves_nothing_behind():
  """Median with SCAFFOLD, and with own B at each site: a round in which one site's numbers are not
  finite leaves the state of a round in which it was absent."""
  wild = data(targets=(1.0, 2.0, np.nan))
  absent = data(sizes=np.array([100, 300, 0], np.float32))
  for parts in (
      dict(rule=rules.control_variates(rate=0.5)),
      dict(sharing=sharing.only_a(PATHS))):
    algorithm = federation(aggregator=robust.median(), **parts)
    found, expected = (play(algorithm, data_)[0] for data_ in (wild, absent))
    for kept in ('adapter', 'ctrl', 'sites'):
      jax.tree.map(np.testing.assert_array_equal, getattr(found, kept), getattr(expected, kept))


def test_geometric_median_by_hand():
  """Sizes (1, 1, 3) on a line: the heavy point holds more than half, so it is the median; and of
  the shape_buckets of an equilateral triangle the centre."""
  found, _ = one_entry(robust.geometric_median(size_power=1.0), (0.0, 1.0, 7.0), (1.0, 1.0, 3.0))
  assert found == pytest.approx(7.0, abs=1e-3)
  shape_buckets = {'x': jnp.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]])}
  out = AGGREGATORS['geometric_median'].update(shape_buckets, (), weights=jnp.ones(3))
  np.testing.assert_allclose(out.update['x'], (1.0, 3**-0.5), atol=1e-4)


def test_sixty_four_steps_to_a_geometric_median():
  """A triangle with an angle of 120 degrees, whose corner is the median: it is reached so slowly
  that no step less or more leads to the same place."""
  corners, start = np.array([[0.0, 0.0], [1.0, 3**0.5], [1.0, -(3**0.5)]]), np.full(3, 1 / 3)
  weights = start
  for _ in range(64):
    closeness = start / np.linalg.norm(weights @ corners - corners, axis=1)
    weights = closeness / closeness.sum()
  out = robust.geometric_median(size_power=0.0).update(
    {'x': jnp.asarray(corners, jnp.float32)}, (), weights=jnp.ones(3))
  np.testing.assert_allclose(out.update['x'], weights @ corners, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(out.weights, weights, rtol=1e-3)


@pytest.mark.parametrize('name', AGGREGATORS)
def test_where_nothing_was_learnt_nothing_moves(name):
  found, weights = JITTED[name](jax.tree.map(jnp.zeros_like, updates(0)), jnp.ones(SITES))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found))
  assert float(weights.sum()) == pytest.approx(1)


def test_what_the_rest_of_a_method_has_to_know():
  own = {'single_updates', 'own_weights', 'one_rank'}
  assert robust.clipped_mean(norm_limit=1.0, size_power=0.0).needs == own
  for aggregator in (robust.median(), robust.trimmed_mean(0.2), robust.krum(faulty=1)):
    assert aggregator.needs == own | {'unweighted'}


def test_flower_agrees():
  """flwr.server.strategy.aggregate on the same arrays: mean, median, trimmed mean, (Multi-)Krum."""
  with warnings.catch_warnings():
    # Of what Flower itself imports.
    warnings.simplefilter('ignore', DeprecationWarning)
    from flwr.server.strategy import aggregate as flower
  ours = updates(0)
  results = [([np.asarray(ours[name][k]) for name in ('a', 'b')], 10) for k in range(SITES)]
  mean = adaptive_mean()
  sizes = jnp.arange(1.0, SITES + 1)
  sized = [(arrays, k + 1) for k, (arrays, _) in enumerate(results)]
  pairs = [
    (mean.update(
      ours, mean.init(ours, SITES), weights=sizes, cohort=jnp.arange(SITES), anchor=None,
      local=None, key=None).update, flower.aggregate(sized)),
    (JITTED['median'](ours, jnp.ones(SITES))[0], flower.aggregate_median(results)),
    (JITTED['trimmed_mean'](ours, jnp.ones(SITES))[0], flower.aggregate_trimmed_avg(results, 0.3)),
    (JITTED['krum'](ours, jnp.ones(SITES))[0], flower.aggregate_krum(results, 2, 0)),
    (JITTED['multi_krum'](ours, jnp.ones(SITES))[0], flower.aggregate_krum(results, 2, 3))]
  for found, expected in pairs:
    for name, array in zip(('a', 'b'), expected, strict=True):
      np.testing.assert_allclose(found[name], array, atol=1e-6)


def test_optax_agrees_on_the_mean():
  from optax.experimental import _aggregating
  ours = updates(1)
  transform = _aggregating.average_per_element_updates()
  expected, _ = transform.update(ours, transform.init(ours), None)
  found = robust.trimmed_mean(0.0).update(ours, (), weights=jnp.ones(SITES)).update
  for name in ours:
    np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


@pytest.mark.parametrize('name', AGGREGATORS)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(SITES)))
def test_order_simplex_and_identity(name, seed, order):
  ours, order = updates(seed), np.array(order)
  found, weights = JITTED[name](ours, jnp.ones(SITES))
  assert (weights >= 0).all() and float(weights.sum()) == pytest.approx(1, abs=1e-5)
  moved, permuted = JITTED[name](jax.tree.map(lambda x: x[order], ours), jnp.ones(SITES))
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(moved), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  np.testing.assert_allclose(permuted, weights[order], atol=1e-4)
  same, _ = JITTED[name](jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), ours),
                         jnp.ones(SITES))
  for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(ours), strict=True):
    np.testing.assert_allclose(one, other[0], atol=1e-5)


@pytest.mark.parametrize('name', AGGREGATORS)
@pytest.mark.parametrize('attack', ['huge', 'nan'])
def test_two_of_seven_cannot_carry_it_away(name, attack):
  """Honest updates lie around 1. A site that sends what is no number is absent."""
  honest = jax.tree.map(lambda x: 1.0 + 0.1 * x, updates(2))
  wrong = jax.tree.map(lambda x: x.at[2:4].set(-1e4 if attack == 'huge' else jnp.nan), honest)
  found, weights = JITTED[name](wrong, jnp.ones(SITES))
  centre = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(found)]).mean()
  # A clipped mean is moved by at most its share, 2 of 7 turned round: (5 - 2) / 7.
  low = 0.4 if (name, attack) == ('clipped_mean', 'huge') else 0.85
  assert low < centre < 1.15
  if attack == 'nan':
    assert not np.asarray(weights)[2:4].any()


@pytest.mark.parametrize('name', AGGREGATORS)
def test_absent_sites_do_not_count(name):
  """Sites of weight 0, padding of a cohort, against a cohort without them."""
  ours = updates(3)
  present = np.array([0, 1, 3, 4, 6])
  sizes = jnp.zeros(SITES).at[present].set(1.0)
  found, _ = JITTED[name](ours, sizes)
  expected = AGGREGATORS[name].update(
    jax.tree.map(lambda x: x[present], ours), (), weights=jnp.ones(5)).update
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  nobody, weights = JITTED[name](ours, jnp.zeros(SITES))
  assert not any(np.asarray(leaf).any() for leaf in (*jax.tree.leaves(nobody), weights))
  # Nor does one whose weight is below 0.
  below, _ = JITTED[name](ours, jnp.where(sizes > 0, sizes, -1.0))
  for one, other in zip(jax.tree.leaves(below), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(one, other)


def test_an_absent_site_has_no_vote_in_a_round():
  """Local steps lead to 0.5, 1 and 2; the median without the second is 1.25, with a zero 0.5."""
  state, metrics = play(
    federation(aggregator=robust.median()), data(sizes=np.array([100, 0, 600], np.float32)))
  assert entries(state.adapter) == pytest.approx((1.25, 1.25))
  assert metrics.weights.tolist() == [0.5, 0, 0.5]
