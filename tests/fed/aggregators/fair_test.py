"""q-FedAvg and agnostic federated learning: by hand, neutral elements, and the worst site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import SIZES, data, entries, federation, play

from fedmedjax.fed import local
from fedmedjax.fed.aggregators import fair
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean


def q_fedavg(**more):
  return fair.q_fedavg(**dict(fairness=1.0, lipschitz=1.0, size_power=1.0) | more)


def test_q_fedavg_by_hand():
  """One step of rate .5: updates u = (.5, 1, 2) an entry, of which there are 4. At the anchor, 0,
  a site's loss is 4 t^2 / 2 = (2, 8, 32).
  q = 1: p F u = .1 * 2 * .5 + .3 * 8 * 1 + .6 * 32 * 2 = 40.9; below, p F = 21.8 and p |u|^2 =
  .1 * 1 + .3 * 4 + .6 * 16 = 10.9: 40.9 / 32.7.
  q = 2, L = 3: p F^2 = (.4, 19.2, 614.4), times L u: 3 * (.2 + 19.2 + 1228.8) = 3744.6. Below,
  2 p F L^2 |u|^2 = 18 * (.2 * 1 + 2.4 * 4 + 19.2 * 16) = 5706 and L p F^2 = 3 * 634 = 1902:
  3744.6 / 7608. L = 0: 40.9 / 21.8."""
  for more, moved, shares in (
      ({'lipschitz': 0.0}, 40.9 / 21.8, np.array([.2, 2.4, 19.2]) / 21.8),
      ({}, 40.9 / 32.7, np.array([.2, 2.4, 19.2]) / 21.8),
      ({'fairness': 2.0, 'lipschitz': 3.0}, 3744.6 / 7608, np.array([.4, 19.2, 614.4]) / 634)):
    state, metrics = play(federation(aggregator=q_fedavg(**more)), data())
    np.testing.assert_allclose(entries(state.adapter), [moved] * 2, rtol=1e-5)
    np.testing.assert_allclose(metrics.weights, shares, rtol=1e-5)


def test_q_of_zero_is_fedavg():
  """Also with another power of the size, and whatever L is."""
  state, _ = play(
    federation(aggregator=q_fedavg(fairness=0.0, lipschitz=7.0, size_power=0.5)),
    data(steps=(3, 1, 2)), 2)
  plain, _ = play(federation(aggregator=adaptive_mean(size_power=0.5)), data(steps=(3, 1, 2)), 2)
  np.testing.assert_allclose(entries(state.adapter), entries(plain.adapter), rtol=1e-5)


def test_a_site_without_loss_and_one_whose_loss_is_no_number():
  """F = 0 makes a site weigh next to nothing, and not a round that is none; of a loss that is not
  finite nothing is taken."""
  updates = {'a': jnp.array([[1.0], [2.0]])}
  for loss, aggregator in (
      (0.0, q_fedavg(fairness=0.5)), (np.nan, q_fedavg()),
      (np.nan, fair.agnostic(mixture_rate=1.0))):
    out = jax.jit(lambda losses, one=aggregator: one.update(
      updates, one.init(None, 2), weights=jnp.array([3.0, 1.0]), cohort=jnp.arange(2),
      start_loss=losses, anchor=None, local=None, key=None))(np.array([loss, 4.0], np.float32))
    assert np.isfinite(out.update['a']).all()
    np.testing.assert_allclose(out.weights, [0, 1], atol=1e-4)


@pytest.mark.parametrize('values, nearest', [
  # Inside already; a constant is taken off; what is below 0 then is cut, and the rest shares it.
  ((.2, .3, .5), (.2, .3, .5)), ((1.2, 1.3, 1.5), (.2, .3, .5)), ((1.0, .6, -3.0), (.7, .3, 0)),
  ((5.0, 0.0, 0.0), (1, 0, 0)), ((-7.0,), (1,))])
def test_the_projection_by_hand(values, nearest):
  np.testing.assert_allclose(
    jax.jit(fair.on_simplex)(np.array(values, np.float32)), nearest, atol=1e-6)


def test_agnostic_by_hand():
  """Losses at 0 are (2, 8, 32), updates (.5, 1, 2). The first round is the plain mean, 3.5 / 3.
  gamma = .01: lambda = 1/3 + (.02, .08, .32) - .14 = (64, 82, 154) / 300, and the second round is
  of them: at 3.5 / 3 the updates are (1 - x, 2 - x, 4 - x) / 2."""
  algorithm = federation(aggregator=fair.agnostic(mixture_rate=0.01))
  state, metrics = play(algorithm, data())
  np.testing.assert_allclose(entries(state.adapter), [3.5 / 3] * 2, rtol=1e-6)
  np.testing.assert_allclose(metrics.weights, [1 / 3] * 3, rtol=1e-6)
  mixture, start = np.array([64, 82, 154]) / 300, 3.5 / 3
  np.testing.assert_allclose(state.aggregator, mixture, rtol=1e-5)
  state, metrics = play(algorithm, data(), 2)
  np.testing.assert_allclose(metrics.weights, mixture, rtol=1e-4)
  np.testing.assert_allclose(
    entries(state.adapter), [start + mixture @ (np.array([1, 2, 4]) - start) / 2] * 2, rtol=1e-6)


def test_agnostic_without_a_rate_is_the_plain_mean():
  """x / 2 + 7 / 6 a round, from 0."""
  state, _ = play(federation(aggregator=fair.agnostic(mixture_rate=0.0)), data(), 3)
  np.testing.assert_allclose(entries(state.adapter), [7 / 6 * 1.75] * 2, rtol=1e-5)


def test_agnostic_ends_where_the_worst_site_is_best_off():
  """Targets 1, 2 and 4: the highest loss is least half way between the ends, at 2.5, where the
  plain mean stays at 7/3 and the mean by size at 3.1; the middle site has no weight there."""
  aggregator = fair.agnostic(mixture_rate=0.02)
  state, metrics = play(
    federation(aggregator=aggregator, optimizer=local.sgd(0.1)), data(sizes=SIZES), 300)
  np.testing.assert_allclose(entries(state.adapter), [2.5] * 2, atol=1e-2)
  np.testing.assert_allclose(metrics.weights, [.5, 0, .5], atol=1e-2)


def test_agnostic_of_some_of_the_sites():
  """Sites 0 and 2 of three come: they share by their lambda, (.2, .2) of (.2, .6, .2), and move by
  gamma times what is above their mean, (-1, 1) * .1; the absent one keeps its .6. Where both have
  lambda 0 they share evenly."""
  aggregator = fair.agnostic(mixture_rate=0.1)
  given = dict(
    weights=jnp.array([1.0, 9.0]), cohort=jnp.array([0, 2]), start_loss=jnp.array([1.0, 3.0]),
    anchor=None, local=None, key=None)
  updates = {'a': jnp.array([[1.0], [3.0]])}
  update = jax.jit(lambda state: aggregator.update(updates, state, **given))
  out = update(jnp.array([.2, .6, .2]))
  np.testing.assert_allclose(out.weights, [.5, .5], rtol=1e-6)
  np.testing.assert_allclose(out.update['a'], [2.0], rtol=1e-6)
  np.testing.assert_allclose(out.state, [.1, .6, .3], atol=1e-6)
  out = update(jnp.array([0.0, 1.0, 0.0]))
  np.testing.assert_allclose(out.weights, [.5, .5], rtol=1e-6)
