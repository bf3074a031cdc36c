"""What sites are worth: by hand, the axioms of Shapley values, and sampled against exact ones."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import data, entries, federation, play

from fedmedjax.fed import contribution
from fedmedjax.fed.aggregators import robust
from fedmedjax.fed.types import Validation

# The loss of an adapter of entries x, of which there are four, is (x - 2)^2 / 2 * 4 a token.
VALIDATION = Validation(
  {'target': jnp.array([2.0]), 'curvature': jnp.array([1.0]), 'weight': jnp.array([2.0])},
  jnp.ones((1, 1)), jnp.ones(1))


def loss(x):
  return 2 * (np.asarray(x, float) - 2) ** 2


def asked(kind, data_, sites=3, power=1.0, **parts):
  """What is found in the first round; the adapter is that of the mean without it."""
  maker = partial(contribution.contribution_program, contribution=kind, size_power=power)
  state, metrics = play(federation(sites=sites, contribution=maker, **parts), data_, 1, VALIDATION)
  if not parts and sites == 3:
    mean = metrics.weights @ (data_.batches['target'][:, 0] / 2)
    np.testing.assert_allclose(
      entries(state.adapter), [np.nan_to_num(mean, nan=entries(state.adapter)[0])] * 2, rtol=1e-6)
  return jax.device_get(metrics.contribution)


def by_orders(worth, sites):
  """Shapley values by their definition: the mean over all orders of what a site adds."""
  values = np.zeros(sites)
  for order in itertools.permutations(range(sites)):
    for place, site in enumerate(order):
      values[site] += worth(frozenset(order[:place + 1])) - worth(frozenset(order[:place]))
  return values / math.factorial(sites)


def worth_of(updates, sizes):
  """v of sets of sites at the anchor 0."""
  def worth(members):
    own = sorted(members)
    return -float(loss(np.average(updates[own], weights=sizes[own]) if own else 0.0))

  return worth


SIZES, UPDATES = np.array([100.0, 300, 600]), np.array([0.5, 1, 2])


def test_leave_one_out_by_hand():
  """Updates (.5, 1, 2) of sizes 1, 3, 6: all 1.55; without 0, 1, 2: 1.5 / .9, 1.25 / .7, .35 / .4.
  The loss falls from 8 at the anchor. The third site is worth most, the first less than nothing."""
  found = asked(contribution.leave_one_out(), data())
  without = np.array([1.5 / 0.9, 1.25 / 0.7, 0.35 / 0.4])
  np.testing.assert_allclose(found.values, loss(without) - loss(1.55), rtol=1e-4)
  np.testing.assert_allclose(found.whole, loss(0.0) - loss(1.55), rtol=1e-5)
  assert found.values[0] < 0 < found.values[2] and not found.error.any()


def test_shapley_by_its_definition_whatever_the_aggregator():
  """Against all 6 orders. The values add to the whole; a median, or a chunk of sites, changes
  nothing of them in the first round."""
  expected = by_orders(worth_of(UPDATES, SIZES), 3)
  for parts in ({}, {'aggregator': robust.median(), 'chunk': 1}):
    found = asked(contribution.shapley(2), data(), **parts)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    np.testing.assert_allclose(found.values.sum(), found.whole, rtol=1e-5)
    np.testing.assert_allclose(found.whole, loss(0.0) - loss(1.55), rtol=1e-5)


def test_symmetry_and_who_sent_nothing():
  """Sites 0 and 1 are the same, site 2 is absent, or broken: (a, a, 0), and of the pair each has
  half. By leave-one-out each of the two can be spared."""
  half = (loss(0.0) - loss(1.5)) / 2
  broken = data(targets=(3.0, 3.0, np.nan), sizes=np.array([200, 200, 500], np.float32))
  np.testing.assert_allclose(
    asked(contribution.shapley(2), broken).values, [half, half, 0], rtol=1e-5, atol=1e-6)
  absent = data(targets=(3.0, 3.0, 9.0), sizes=np.array([200, 200, 0], np.float32))
  np.testing.assert_allclose(
    asked(contribution.leave_one_out(), absent).values, [0, 0, 0], atol=1e-6)


def test_a_coalition_weighs_by_the_power_of_size():
  found = asked(contribution.shapley(2), data(), power=0.0)
  np.testing.assert_allclose(
    found.values, by_orders(worth_of(UPDATES, np.ones(3)), 3), rtol=1e-4)


def game(sites, seed=0):
  """A game in which pairs matter; the last site is a dummy and the first two are alike."""
  rng = np.random.default_rng(seed)
  pairs = rng.normal(size=(sites, sites))
  pairs = pairs + pairs.T
  pairs[1, 2:], pairs[2:, 1] = pairs[0, 2:], pairs[2:, 0]
  pairs[1, 1] = pairs[0, 0]
  pairs[-1], pairs[:, -1] = 0, 0
  pairs = jnp.asarray(pairs, jnp.float32)

  def worth(members):
    x = members.astype(jnp.float32)
    return jnp.einsum('qi,ij,qj->q', x, pairs, x, precision='highest')

  return worth, np.asarray(pairs).sum(axis=1)  # a quadratic game's values are the sums of its rows


def test_the_exact_values_of_eight_sites():
  worth, expected = game(8)
  values = np.asarray(contribution.shapley(2)(worth, 8, jax.random.key(0)).values)
  np.testing.assert_allclose(values, expected, atol=1e-4)
  np.testing.assert_allclose([values[0] - values[1], values[-1]], [0, 0], atol=1e-4)


def test_sampled_values_lie_within_their_errors():
  """12 sites, 400 orders: they add up exactly, a dummy has 0 with error 0, and the 11 others lie
  about one standard error from the exact values, none four (planted: the error of one order)."""
  worth, expected = game(12)
  found = jax.jit(lambda key: contribution.shapley(400)(worth, 12, key))(jax.random.key(1))
  np.testing.assert_allclose(found.values.sum(), found.whole, rtol=1e-4)
  assert abs(found.values[-1]) < 1e-4 and found.error[-1] < 1e-4
  apart = np.abs(found.values - expected)[:-1] / found.error[:-1]
  assert apart.max() < 4 and 0.3 < apart.mean() < 1.4, apart


def test_many_sites_of_a_round_are_sampled():
  """Nine sites, of which one sends nothing: the values add up, and it has 0."""
  rng = np.random.default_rng(3)
  sizes = np.asarray([*rng.integers(1, 9, 8), 0], np.float32)
  found = asked(contribution.shapley(5), data(
    steps=(1,) * 9, targets=tuple(rng.normal(2, 1, 9)), curvatures=(1.0,) * 9, sizes=sizes),
    sites=9)
  assert found.values.shape == (9,) and (found.error[:8] > 0).any()
  assert abs(found.values[8]) < 1e-6 and found.error[8] < 1e-6
  np.testing.assert_allclose(found.values.sum(), found.whole, rtol=1e-4)


@pytest.mark.parametrize('kind, sites, number', [
  ('none', 5, 0), ('leave_one_out', 5, 7), ('shapley', 3, 8), ('shapley', 8, 256),
  ('shapley', 9, 258), ('shapley', 0, 0)])
def test_how_many_coalitions_are_judged(kind, sites, number):
  assert contribution.coalitions(kind, sites, sites, 32) == number
  if number:
    counted = []
    contribution.CONTRIBUTIONS[kind].build(*[32] * (kind == 'shapley'))(
      lambda members: counted.append(len(members)) or jnp.zeros(len(members)), sites,
      jax.random.key(0))
    assert counted == [number]
