"""Site-level privacy: weights, clip, noise, correlated noise, private losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import data, entries, federation, play

from fedmedjax import tree
from fedmedjax.fed import correlated_noise, private_losses, private_sums, sharing
from fedmedjax.fed.aggregators.private_mean import gaussian_sum, private_mean
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_losses import LossQuery
from fedmedjax.fed.types import Validation

KEY = jax.random.key(5)
OPEN = Private(float('inf'), 0.0, 3.0)
LIKE = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros(8)}


def updates(seed=0, sites=3, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.normal(size=(sites, *x.shape)), jnp.float32), LIKE)


def mean_of(private, values, sizes, key=KEY, state=0, **parts):
  aggregator = private_mean(private, **parts)
  return aggregator.update(
    values, jnp.int32(state), weights=jnp.asarray(sizes), cohort=jnp.arange(len(sizes)),
    anchor=LIKE, local=values, key=key)


def test_a_round_by_hand():
  """Updates (3, 4) and (0.3, 0.4) at clip 1: (0.6, 0.8) and as it is. Sizes 50 and 400 of a cap of
  200 weigh 1/4 and 1: the sum is (0.15 + 0.3, 0.2 + 0.4), over the config's 2: (0.225, 0.3)."""
  values = {'a': jnp.array([[3.0, 4.0], [0.3, 0.4]])}
  aggregate = private_mean(Private(1.0, 0.0, 2.0), size_power=1.0, size_cap=200.0).update(
    values, jnp.int32(0), weights=jnp.array([50.0, 400.0]), cohort=jnp.arange(2),
    anchor={'a': jnp.zeros(2)}, local=values, key=KEY)
  np.testing.assert_allclose(aggregate.update['a'], [0.225, 0.3], rtol=1e-6)
  np.testing.assert_allclose(aggregate.weights, [0.125, 0.5])
  with pytest.raises(ValueError, match='cap'):
    private_sums.bounded_weights(jnp.ones(2), 0.0, 1.0)


def test_without_noise_and_clip_it_is_the_ordinary_round():
  """Uniform weights, and weights by size where no size is cut and the denominator is their sum."""
  plain, _ = play(federation(aggregator=adaptive_mean(size_power=0.0)), data(), 2)
  private, metrics = play(
    federation(aggregator=private_mean(OPEN), quarantine=False), data(), 2)
  np.testing.assert_allclose(entries(private.adapter), entries(plain.adapter), rtol=1e-6)
  assert int(private.aggregator) == 2 and metrics.sound.all()
  sizes, values = jnp.array([100.0, 300.0, 600.0]), updates()
  found = mean_of(OPEN._replace(denominator=1000 / 600), values, sizes, size_power=1.0,
                  size_cap=600.0)
  for name, mean in tree.weighted_sum(values, sizes / 1000).items():
    np.testing.assert_allclose(found.update[name], mean, rtol=2e-6, atol=1e-7)


def largest_move(clip, weigh, seed):
  """How far one site, whatever it sends, moves the sum that `weigh` forms, in clips."""
  values, sizes = updates(seed, 4, 10.0), jnp.array([10.0, 900.0, 30.0, 60.0])
  full = weigh(private_sums.clipped(values, clip), sizes)
  moves = []
  for site in range(4):
    zeroed = jax.tree.map(lambda x: x.at[site].set(0), values)  # noqa: B023 - called here
    without = weigh(private_sums.clipped(zeroed, clip), sizes.at[site].set(0.0))
    moves.append(float(tree.norm(jax.tree.map(jnp.subtract, full, without))) / clip)
  return max(moves)


def test_one_site_moves_the_sum_by_the_clip_at_most():
  """Sizes of 900 count in the bound; a sum weighed by raw sizes has not that sensitivity."""
  bounded = lambda v, n: tree.weighted_sum(  # noqa: E731
    v, private_sums.bounded_weights(n, 100.0, 1.0))
  raw = lambda v, n: tree.weighted_sum(v, n / 100.0)  # noqa: E731
  assert all(largest_move(0.3, bounded, seed) <= 1 + 1e-5 for seed in range(5))
  assert largest_move(0.3, raw, 0) > 5  # sensitivity without weights: the planted fault


def deviation_of(total, draws=10_000):
  """Standard deviation of the noise on the sum, over all draws and numbers."""
  values = updates(1)
  weights = jnp.array([1.0, 0.5, 0.0])
  exact = tree.weighted_sum(values, weights)
  noised = jax.jit(jax.vmap(lambda key: total(
    values, weights, jnp.float32(2.0), key, jnp.int32(0))[0]))(jax.random.split(KEY, draws))
  off = jnp.concatenate([
    (x - exact[name][None]).reshape(draws, -1) for name, x in noised.items()], axis=1)
  apart = np.corrcoef(np.asarray(off).T) - np.eye(20)
  assert abs(apart).max() < 0.06
  return float(jnp.std(off))


def test_the_noise_on_the_sum_is_sigma_times_the_clip():
  """1.5 * 2 = 3, within 1 % at 200,000 numbers. The planted fault, the sum's sigma on the mean of
  three sites or a mean of noised parts, is off by a factor."""
  assert deviation_of(gaussian_sum(Private(2.0, 1.5, 3.0))) == pytest.approx(3.0, rel=0.01)

  def of_the_mean(values, weights, bound, key, number):
    total, _ = gaussian_sum(Private(2.0, 0.0, 3.0))(values, weights, bound, key, number)
    return jax.tree.map(
      lambda x, z: x + z / 3, total, private_sums.normal(key, total, 1.5 * bound)), True

  assert deviation_of(of_the_mean) < 1.1


def test_noise_differs_by_round_and_not_by_what_is_sent():
  """Two rounds, two noises; the same key and other updates: the same noise. Frozen leaves get
  none."""
  private = Private(1.0, 1.0, 3.0)
  noise = lambda key, seed: tree.norm(jax.tree.map(  # noqa: E731
    jnp.subtract, mean_of(private, updates(seed), jnp.ones(3), key).update,
    mean_of(private._replace(noise=0.0), updates(seed), jnp.ones(3), key).update))
  keys = jax.random.split(KEY)
  assert float(noise(keys[0], 0)) == pytest.approx(float(noise(keys[0], 1)), rel=1e-5)
  assert float(noise(keys[0], 0)) != pytest.approx(float(noise(keys[1], 0)), rel=1e-3)
  state, _ = play(federation(
    aggregator=private_mean(private), sharing=sharing.only_b(['layers/q/a', 'layers/q/b'])), data())
  assert not state.adapter['layers']['q']['a'].any()
  assert state.adapter['layers']['q']['b'].all()


def test_a_site_that_is_not_finite_counts_as_zeros():
  """It is one of the three of the denominator; that it was not sound does not show."""
  values = jax.tree.map(lambda x: x.at[1].set(jnp.nan), updates())
  found = mean_of(OPEN, values, jnp.ones(3))
  expected = mean_of(OPEN, jax.tree.map(lambda x: x.at[1].set(0), values), jnp.ones(3))
  np.testing.assert_array_equal(found.update['a'], expected.update['a'])
  np.testing.assert_allclose(found.weights, 1 / 3)


def test_banded_noise_is_the_inverse_of_the_matrix():
  """C^-1 z by a dense inverse; a function of (key, round) alone; over rounds its sums are less
  noisy than those of independent noise at the same multiplier of single participation."""
  coefficients, rounds = np.array([0.8, 0.48, 0.36]), 6
  dense = sum(np.diag(np.full(rounds - k, c), -k) for k, c in enumerate(coefficients))
  inverse = correlated_noise.inverse_coefficients(coefficients, rounds)
  np.testing.assert_allclose(np.linalg.inv(dense)[:, 0], inverse, atol=1e-12)
  noise = jax.jit(correlated_noise.correlated_noise(coefficients, rounds, KEY))
  z = np.stack([
    np.asarray(private_sums.normal(jax.random.fold_in(KEY, t), LIKE, 1.0)['a'])
    for t in range(rounds)])
  rows = [noise(jax.random.key(t), jnp.int32(t), LIKE, 2.0)['a'] for t in range(rounds)]
  np.testing.assert_allclose(
    np.stack(rows), 2 * np.einsum('tj,jab->tab', np.linalg.inv(dense), z), rtol=2e-5, atol=1e-5)
  again = noise(jax.random.key(99), jnp.int32(4), LIKE, 2.0)['a']
  np.testing.assert_array_equal(again, rows[4])
  assert np.isnan(noise(KEY, jnp.int32(rounds), LIKE, 1.0)['a']).all()
  sums = np.cumsum(np.linalg.inv(dense), axis=0)
  assert (sums**2).sum() < 0.9 * rounds * (rounds + 1) / 2


def test_sensitivity_of_participations_by_brute_force():
  """|C u| over all signs of the contributions. With turns as far apart as there are bands it is
  sqrt(k) at most; nearer turns cost more."""
  coefficients, rounds = np.array([0.8, 0.48, 0.36]), 5
  coefficients /= np.linalg.norm(coefficients)
  dense = sum(np.diag(np.full(rounds - k, c), -k) for k, c in enumerate(coefficients))

  def worst(turns):
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(turns))).reshape(len(turns), -1)
    return np.linalg.norm(dense[:, list(turns)] @ signs, axis=0).max()

  for turns in ([0], [0, 3], [1, 4], [0, 1], [0, 1, 2, 3, 4]):
    found = correlated_noise.sensitivity(coefficients, rounds, turns)
    assert found == pytest.approx(worst(turns))
    if (np.diff(turns) >= 3).all():
      assert found <= np.sqrt(len(turns)) + 1e-12
  assert correlated_noise.sensitivity(coefficients, rounds, [0, 1]) > np.sqrt(2) + 0.1


def answers(adapter, base, batch):
  return base * batch['nats'] * adapter['a'].sum(), jnp.float32(1)


V = Validation(
  {'nats': jnp.array([0.5, 9.0, 1.0, jnp.nan])}, jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]),
  jnp.ones(4), jnp.array([0, 1]))


def test_losses_of_answers_are_cut_and_noised():
  """Nats 0.5, 9 and 1, nan at a clip of 2: means (0.5 + 2) / 2 and (1 + 2) / 2. With 4 adapters and
  one answer a unit the noise is 0.7 * 2 * sqrt(4) / 2 answers = 1.4; of a site with one group of
  two, 0.7 * 2 * sqrt(4 * 1 + 2 - 1) = 3.13."""
  one = {'a': jnp.ones(1)}
  found = private_losses.clipped_losses(answers, one, 1.0, V, 2.0)
  np.testing.assert_allclose(found, [1.25, 1.5])
  example, site = LossQuery(2.0, 0.7, 1), LossQuery(2.0, 0.7, 0)
  np.testing.assert_allclose(private_losses.deviations(example, V, 4), 1.4, rtol=1e-6)
  # Three answers in each of two groups.
  np.testing.assert_allclose(private_losses.deviations(
    example._replace(answers=3, groups=2), V, 4), 3 * 1.4 * np.sqrt(2), rtol=1e-6)
  np.testing.assert_allclose(
    private_losses.deviations(site, V, 4), 1.4 * np.sqrt(5), rtol=1e-6)
  draws = jax.vmap(lambda key: private_losses.noised_losses(
    example, V, jnp.zeros((4, 2)), key))(jax.random.split(KEY, 10_000))
  assert float(jnp.std(draws)) == pytest.approx(1.4, rel=0.01)


def test_one_answer_moves_the_question_by_its_bound():
  """sqrt(Q) clip over the answers of its group: what the noise is counted by."""
  adapters = [{'a': jnp.full(1, scale)} for scale in (0.1, 1.0, 3.0)]
  def asked(nats):
    losses = [private_losses.clipped_losses(
      answers, adapter, 1.0, V._replace(batches={'nats': nats}), 2.0) for adapter in adapters]
    return jnp.stack(losses) * 2  # sums of two answers
  moved = asked(jnp.array([0.0, 9.0, 1.0, 1.0])) - asked(jnp.array([1e6, 9.0, 1.0, 1.0]))
  assert float(jnp.linalg.norm(moved)) == pytest.approx(2 * np.sqrt(3), rel=1e-6)
