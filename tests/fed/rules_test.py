"""Local rules on quadratics: hand-worked rounds, neutral elements, and the optimum they reach.

Two sites with losses (h_k / 2)(x - t_k)^2, h = (1, 4), t = (0, 1): the optimum of their plain mean
is (0 + 4) / 5 = 0.8. FedAvg with 10 local steps of rate 0.1 contracts to t_k by 1 - (1 - 0.1
h_k)^10 = 0.6513 and 0.9940: its fixed point is 0.9940 / (0.6513 + 0.9940) = 0.604.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ADAPTER, data, entries, federation, play

from fedmedjax.fed import local, rules
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.builders import build
from fedmedjax.types import InputError

UNLIKE = dict(targets=(0.0, 1.0), curvatures=(1.0, 4.0))


def unlike(rule, **parts):
  return federation(
    sites=2, rule=rule, optimizer=local.sgd(0.1),
    **dict(aggregator=adaptive_mean(size_power=0.0)) | parts)


def test_fedprox_by_hand():
  """mu = 1, rate 0.5, target 4, from 0: x = 2; then g = (2 - 4) + (2 - 0) = 0: x stays 2, where
  FedAvg goes on to 3."""
  state, _ = play(
    federation(sites=1, rule=rules.proximal(strength=1.0)), data((2,), (4.0,), (1.0,)))
  assert entries(state.adapter) == pytest.approx((2.0, 2.0))


def test_fedprox_holds_sites_back():
  """The larger mu, the shorter every update; at 0 it is FedAvg."""
  norms = [
    play(unlike(rules.proximal(strength=mu)), data((5, 5), **UNLIKE))[1].local_norm
    for mu in (0.0, 0.5, 2.0)]
  free = play(unlike(rules.plain()), data((5, 5), **UNLIKE))[1].local_norm
  np.testing.assert_allclose(norms[0], free, rtol=1e-6)
  assert free[1] > norms[1][1] > norms[2][1]


def test_scaffold_by_hand():
  """One step of rate 0.1 from 0, g = h (x - t) = (0, -4): y = (0, 0.4), x = 0.2.

  c_i = (x - y_i) / (K eta) = (0, -4), c = -2. Round 2, from 0.2: g = (0.2, -3.2); g - c_i + c =
  (0.2 - 0 - 2, -3.2 + 4 - 2) = (-1.8, -1.2); y = (0.38, 0.32), x = 0.35.
  c_i+ = c_i - c + (x - y_i) / 0.1 = (0 + 2 - 1.8, -4 + 2 - 1.2) = (0.2, -3.2): the gradients at
  0.2, as option II promises for one step; c = -1.5.
  """
  state, _ = play(unlike(rules.control_variates(rate=0.1)), data((1, 1), **UNLIKE), 2)
  assert entries(state.adapter) == pytest.approx((0.35, 0.35))
  assert entries(state.ctrl) == pytest.approx((-1.5, -1.5))
  np.testing.assert_allclose(
    state.sites.ctrl['layers']['q']['a'][:, 0, 0, 0], (0.2, -3.2), rtol=1e-5)


def test_scaffold_of_a_site_without_steps_learns_nothing():
  """K = 2, eta = 0.1, x = 1, y = 0.6, c = 3, c_i = 2: c_i+ = 2 - 3 + 0.4 / 0.2 = 1. With K = 0 the
  path says nothing about the gradient, least of all that it is 0: c_i stays."""
  rule, one = rules.control_variates(rate=0.1), jnp.ones(1)
  for steps, ctrl, delta in ((2, 1.0, -1.0), (0, 2.0, 0.0)):
    found = rule.finish(one, (1.0 - 0.2 * steps) * one, jnp.int32(steps), 3 * one, 2 * one)
    np.testing.assert_allclose(found, ([ctrl], [delta]), rtol=1e-5)


def test_feddyn_by_hand():
  """alpha = 1, one step of rate 0.1 from 0: as FedAvg y = (0, 0.4). g_i = -(0, 0.4), h = -0.2;
  x = 0.2 + 0.2 = 0.4. Round 2: g = h_i (0.4 - t_i) = (0.4, -2.4); minus g_i: (0.4, -2.0);
  y = (0.36, 0.6). g_i = (0 + 0.04, -0.4 - 0.2) = (0.04, -0.6), h = -0.2 - 0.08 = -0.28;
  x = 0.48 + 0.28 = 0.76."""
  state, _ = play(unlike(rules.dynamic(strength=1.0)), data((1, 1), **UNLIKE), 2)
  assert entries(state.adapter) == pytest.approx((0.76, 0.76))
  assert entries(state.ctrl) == pytest.approx((-0.28, -0.28))
  np.testing.assert_allclose(
    state.sites.ctrl['layers']['q']['a'][:, 0, 0, 0], (0.04, -0.6), rtol=1e-5)


def test_what_a_rule_needs():
  """Control variates start at 0."""
  controlled = {'shared_anchor', 'plain_mean', 'steady_factors', 'one_rank'}
  scaffold, feddyn = rules.control_variates(rate=0.1), rules.dynamic(strength=1.0)
  assert scaffold.needs == controlled | {'plain_sgd', 'clear_control'} and scaffold.control_travels
  assert feddyn.needs == controlled | {'whole_updates', 'plain_server'}
  assert not feddyn.control_travels and not rules.plain().needs
  assert rules.proximal(strength=1.0).needs == {'shared_anchor'}
  for rule in (scaffold, feddyn):
    for ctrl in rule.init({'a': jnp.ones(2)}):
      assert ctrl['a'].tolist() == [0, 0]


def test_feddyn_without_strength_is_refused():
  with pytest.raises(InputError, match='rule_strength=0'):
    rules.dynamic(strength=0.0)


def flipped(name):
  """The rule with the wrong sign of its control variates: must not pass for it."""
  rule = RULES[name]
  if name == 'scaffold':
    return rule._replace(
      correct=lambda grad, adapter, anchor, c, c_i: rule.correct(grad, adapter, anchor, c_i, c))
  return rule._replace(
    correct=lambda grad, adapter, anchor, c, c_i: rule.correct(
      grad, adapter, anchor, c, jax.tree.map(jnp.negative, c_i)))


RULES = {
  'plain': rules.plain(), 'scaffold': rules.control_variates(rate=0.1),
  'feddyn': rules.dynamic(strength=2.0)}


@pytest.mark.parametrize('name, expected', [
  ('plain', 0.604), ('scaffold', 0.8), ('feddyn', 0.8), ('scaffold flipped', None),
  ('feddyn flipped', None)])
def test_the_optimum_of_unlike_quadratics(name, expected):
  rule = flipped(name.split()[0]) if 'flipped' in name else RULES[name]
  found = entries(play(unlike(rule), data((10, 10), **UNLIKE), 40)[0].adapter)[0]
  if expected is None:
    assert not abs(found - 0.8) < 0.05
  else:
    assert found == pytest.approx(expected, abs=1e-3)


def test_scaffold_reaches_it_with_half_the_sites_a_round_and_unlike_step_counts():
  """c moves by |cohort| / N of the cohort's mean change: four sites, two a round."""
  many = data((10, 4, 7, 10), (0.0, 1.0, 0.0, 1.0), (1.0, 4.0, 1.0, 4.0), np.ones(4, np.float32))
  cohorts = [np.random.default_rng(k).permutation(4)[:2] for k in range(150)]
  algorithm = federation(
    sites=4, rule=rules.control_variates(rate=0.1), optimizer=local.sgd(0.1))
  state, _ = play(algorithm, many, 150, cohorts=cohorts)
  assert entries(state.adapter)[0] == pytest.approx(0.8, abs=1e-3)
  assert algorithm.round._cache_size() == 1


@pytest.mark.parametrize('name', rules.RULES)
def test_identical_sites_are_one_site(name):
  """Three sites with the same data, five rounds: what one of them would have done alone."""
  rule = build(rules.RULES[name], dict(strength=0.5, rate=0.5))
  together, _ = play(
    federation(rule=rule, aggregator=adaptive_mean(size_power=0.0)),
    data((2, 2, 2), (3.0, 3.0, 3.0)), 5)
  alone, _ = play(federation(sites=1, rule=rule), data((2,), (3.0,), (1.0,)), 5)
  np.testing.assert_allclose(entries(together.adapter), entries(alone.adapter), rtol=1e-5)


def test_a_site_of_weight_0_takes_no_part():
  """Neither its update nor its control variates count, and its own stay as they were."""
  pair = data((1, 1), **UNLIKE)
  absent = pair._replace(weight=jnp.array([1.0, 0.0]))
  algorithm = unlike(rules.control_variates(rate=0.1))
  before, _ = play(algorithm, pair, 1)
  kept = jax.tree.map(np.array, before.sites.ctrl)
  state, metrics = algorithm.round(
    before, jnp.float32(1.0), absent, jnp.arange(2), None, jax.random.key(0))
  # From 0.2 site 0 goes to 0.38, as worked out above, alone; c moves by (0.2 - 0) / 2 = 0.1.
  assert entries(state.adapter)[0] == pytest.approx(0.38)
  assert entries(state.ctrl)[0] == pytest.approx(-1.9)
  np.testing.assert_array_equal(
    state.sites.ctrl['layers']['q']['b'][1], kept['layers']['q']['b'][1])
  np.testing.assert_allclose(metrics.weights, (1, 0))


def test_private_leaves_are_not_corrected():
  """FedProx with B private: B moves as in FedAvg, A is held back."""
  from fedmedjax.fed.sharing import only_a
  share = only_a(['layers/q/a', 'layers/q/b'])
  one = data((2,), (4.0,), (1.0,))
  state, _ = play(federation(sites=1, rule=rules.proximal(strength=1.0), sharing=share), one)
  assert entries(state.adapter) == pytest.approx((2.0, 0.0))
  assert entries(state.sites.adapter['layers']['q']['b'])[0] == pytest.approx(3.0)
  assert jax.tree.structure(state.adapter) == jax.tree.structure(ADAPTER)
