"""FedNova: by hand, its neutral element, and the optimum that FedAvg of unlike steps misses."""

import jax
import jax.numpy as jnp
import numpy as np
from quadratics import SIZES, data, entries, federation, play

from fedmedjax.fed import local
from fedmedjax.fed.aggregators import AGGREGATORS
from fedmedjax.fed.aggregators.normalised import normalised_mean, path_lengths

OPTIMIZER = local.sgd(0.5)


def nova(optimizer=OPTIMIZER, **more):
  return normalised_mean(**dict(size_power=1.0, local_rate=optimizer.rate) | more)


def test_by_hand_and_under_masks():
  """Steps (1, 2, 4) of rate .5 from 0 towards targets (1, 2, 4): updates (.5, 1.5, 3.75), so
  (.5, .75, .9375) a step. p = (.1, .3, .6) weighs them to .8375, and sum p tau = .1 + .6 + 2.4 =
  3.1: the server moves by 2.59625, where FedAvg moves by 2.75. Of the direction the sites have
  (.1, .15, .15) of .4. The sum of masked messages is the same, since it has the same weights."""
  masked = AGGREGATORS['normalised'](
    size_power=1.0, local_rate=OPTIMIZER.rate, secure_aggregation=True)
  for aggregator, tolerance in ((nova(), 1e-6), (masked, 1e-5)):
    state, metrics = play(federation(aggregator=aggregator), data(steps=(1, 2, 4)))
    np.testing.assert_allclose(entries(state.adapter), [2.59625] * 2, rtol=tolerance)
    np.testing.assert_allclose(metrics.weights, [.25, .375, .375], rtol=1e-5)
  plain, _ = play(federation(), data(steps=(1, 2, 4)))
  np.testing.assert_allclose(entries(plain.adapter), [2.75] * 2, rtol=1e-5)


def test_equal_steps_are_fedavg_and_who_is_absent_counts_nowhere():
  """A third site of size 0, whose steps are more, changes nothing."""
  sizes = np.array([100, 300, 0], np.float32)
  state, metrics = play(federation(aggregator=nova()), data(steps=(2, 2, 4), sizes=sizes), 2)
  plain, _ = play(federation(), data(steps=(2, 2, 4), sizes=sizes), 2)
  np.testing.assert_allclose(entries(state.adapter), entries(plain.adapter), rtol=1e-5)
  np.testing.assert_allclose(metrics.weights, [.25, .75, 0], rtol=1e-6)


def test_it_leads_to_the_optimum_of_the_objective_where_fedavg_does_not():
  """Steps of rate .01, (1, 1, 8) a round, towards targets (1, 2, 4): the optimum by size is
  .1 + .6 + 2.4 = 3.1. FedAvg counts the third site eight times, (.7 + 8 * 2.4) / (.4 + 8 * .6) =
  3.8; FedNova is off by the third site's own curvature only."""
  optimizer = local.sgd(0.01)
  state, _ = play(
    federation(optimizer=optimizer, aggregator=nova(optimizer)), data(steps=(1, 1, 8)), 200)
  np.testing.assert_allclose(entries(state.adapter), [3.1] * 2, atol=0.03)


def test_the_length_of_a_path_is_the_sum_of_its_rates():
  """Plain steps: tau times the rate. AdamW of 4 steps, half of them warming up: 1/2, 1, 1, 1/2 of
  the peak; of one step the whole peak. Of a constant gradient, whatever beta_1, that is how far
  AdamW goes, since every step is its rate times the gradient's sign."""
  np.testing.assert_allclose(path_lengths(jnp.array([0.0, 1, 4]), OPTIMIZER.rate), [0, .5, 2])
  adamw = local.adamw(0.1, warmup_share=0.5, b1=0.7, eps=0.0, clip_norm=0.0)
  np.testing.assert_allclose(
    path_lengths(jnp.array([1.0, 4]), adamw.rate), [.1, .3], rtol=1e-6)
  moved, state = 0.0, adamw.transform.init(jnp.float32(0))
  for step in range(4):
    direction, state = adamw.transform.update(jnp.float32(3.0), state, jnp.float32(0))
    moved += float(direction * adamw.rate(jnp.int32(step), jnp.int32(4)))
  np.testing.assert_allclose(moved, 0.3, rtol=1e-5)


def test_with_adamw_unlike_steps_weigh_by_their_rates():
  """Gradients of one sign: every update is the sum of its rates, so that a site's share of the
  direction is its size, and the server moves by tau_eff = sum p_k |a_k|."""
  adamw = local.adamw(1e-3, warmup_share=0.5, clip_norm=0.0)
  state, metrics = play(
    federation(aggregator=nova(adamw), optimizer=adamw), data(steps=(1, 2, 4), targets=(9, 9, 9)))
  lengths = np.asarray(path_lengths(jnp.array([1.0, 2, 4]), adamw.rate))
  shares = SIZES / SIZES.sum()
  np.testing.assert_allclose(entries(state.adapter), [shares @ lengths] * 2, rtol=1e-3)
  np.testing.assert_allclose(
    metrics.weights, shares / lengths / (shares / lengths).sum(), rtol=1e-5)
  assert jax.tree.leaves(state.aggregator) == []
