"""Discrete Gaussian noise in the ring of secure aggregation, and what it promises."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from fedmedjax.fed import discrete_gaussian as discrete
from fedmedjax.fed.aggregators import private_secure
from fedmedjax.fed.aggregators.private_mean import private_mean
from fedmedjax.fed.aggregators.secure import signed
from fedmedjax.fed.privacy import Private
from fedmedjax.types import InputError

KEY = jax.random.key(1)


def exact(sigma, reach):
  """Probabilities of -reach, ..., reach in 60 digits of the definition, as float64."""
  numbers = range(-reach, reach + 1)
  weights = [math.exp(-x * x / (2 * sigma**2)) for x in numbers]
  return np.array(weights) / math.fsum(weights)


def test_the_table_is_the_distribution():
  """Differences of the thresholds are the probabilities to 2^-50; draws fit by chi squared."""
  sigma = 1.7
  rows = discrete.table(sigma)
  thresholds = [0, *((int(a) << 64) | (int(b) << 32) | int(c) for a, b, c in rows), 1 << 96]
  found = np.array([float(b - a) for a, b in itertools.pairwise(thresholds)]) / 2.0**96
  reach = discrete.support(sigma)
  np.testing.assert_allclose(found[10:-10], exact(sigma, reach)[10:-10], rtol=1e-13)
  draws = np.asarray(jax.jit(lambda key: discrete.draw(key, (100_000,), rows))(KEY))
  counts = np.bincount(draws + reach, minlength=2 * reach + 1)
  seen = exact(sigma, reach) * len(draws) > 10
  expected = exact(sigma, reach)[seen]
  assert chisquare(counts[seen], expected / expected.sum() * counts[seen].sum()).pvalue > 1e-3
  assert discrete.sampling_error(discrete.LARGEST) < 2**-74
  with pytest.raises(ValueError, match='sigma'):
    discrete.table(0.0)


def renyi(one, other, order):
  """(log sum p^a q^(1 - a)) / (a - 1) of two arrays of probabilities."""
  with np.errstate(divide='ignore'):
    terms = order * np.log(one) + (1 - order) * np.log(other)
  return np.logaddexp.reduce(terms) / (order - 1)


@pytest.mark.parametrize('sigma, sites', [(0.6, 3), (1.0, 2), (2.0, 4)])
def test_the_accountant_of_a_sum_is_above_brute_force(sigma, sites):
  """The convolution of the sites' noises against the same shifted by D: Renyi divergence at most
  a epsilon^2 / 2 in one number, and in two numbers by (D_1, D_2) at most that of |D|. Of few sites
  the bound is near: without tau, that of a single discrete Gaussian, it would fail somewhere."""
  reach = discrete.support(sigma)
  noise = exact(sigma, reach)
  total = noise
  for _ in range(sites - 1):
    total = np.convolve(total, noise)
  divergence = lambda shift, order: 0.0 if not shift else renyi(  # noqa: E731
    total[:-shift], total[shift:], order)
  for shift, order in itertools.product((1, 2), (1.5, 2.0, 4.0, 8.0)):
    epsilon = discrete.sum_epsilon(shift, sigma, sites, 1)
    assert divergence(shift, order) <= order * epsilon**2 / 2 * (1 + 1e-9)
    both = divergence(shift, order) + divergence(1, order)
    epsilon = discrete.sum_epsilon(math.hypot(shift, 1), sigma, sites, 2)
    assert both <= order * epsilon**2 / 2 * (1 + 1e-9)
    if sigma >= 1:  # and no more than a tenth above it
      assert divergence(shift, order) >= 0.9 * order * discrete.sum_epsilon(
        shift, sigma, sites, 1)**2 / 2
  assert math.isclose(
    discrete.sum_epsilon(3.0, 8.0, 9, 1000), 3.0 / 24.0, rel_tol=1e-9)


def test_without_tau_the_accountant_would_be_too_low():
  """The planted fault: a sum of 3 noises of sigma 0.6 taken for a discrete Gaussian of 3 * 0.36."""
  noise = exact(0.6, discrete.support(0.6))
  total = np.convolve(np.convolve(noise, noise), noise)
  found = max(renyi(total[:-1], total[1:], order) - order / (2 * 3 * 0.36) for order in (
    1.5, 2.0, 4.0))
  assert found > 0


def draws_of(sites, missing, sends, count=2000):
  """What the sum has beside the updates, [count, 40], and the ring."""
  private, rng = Private(2.0, 0.8, 3.0), np.random.default_rng(0)
  values = {'a': jnp.asarray(rng.normal(size=(sites, 40)), jnp.float32)}
  values = {'a': values['a'] / jnp.linalg.norm(values['a'], axis=1, keepdims=True)}
  total = private_secure.discrete_sum(private, sites, missing)
  weights = jnp.asarray(sends, jnp.float32)
  found, usable = jax.jit(jax.vmap(lambda key: total(
    values, weights, 2.0, key, jnp.int32(0))))(jax.random.split(KEY, count))
  exact_sum = np.einsum('c,cd->d', np.asarray(weights), np.asarray(values['a']))
  return np.asarray(found['a']) - exact_sum, np.asarray(usable)


def test_the_sum_has_the_claimed_noise_when_sites_are_missing():
  """sigma * clip = 1.6 with 3 of 4 senders where one may be missing; sqrt(4 / 3) times that with
  all; with two senders nothing is released."""
  off, usable = draws_of(4, 1, [1, 1, 0, 1])
  assert usable.all() and off.std() == pytest.approx(1.6, rel=0.02)
  assert abs(off.mean()) < 0.03
  off, _ = draws_of(4, 1, [1, 0.5, 1, 1])
  assert off.std() == pytest.approx(1.6 * math.sqrt(4 / 3), rel=0.02)
  _, usable = draws_of(4, 1, [1, 0, 0, 1], 2)
  assert not usable.any()
  aggregate = private_mean(
    Private(2.0, 0.8, 3.0), total=private_secure.discrete_sum(Private(2.0, 0.8, 3.0), 4, 1)).update(
      {'a': jnp.ones((4, 3))}, jnp.int32(0), weights=jnp.array([1.0, 0, 0, 1]),
      cohort=jnp.arange(4), anchor={'a': jnp.zeros(3)}, local=None, key=KEY)
  assert not aggregate.weights.any() and not aggregate.update['a'].any()


def test_the_ring_is_fixed_and_holds_every_sum():
  """Step, sigma and sensitivity come of the config alone; rounding is in the sensitivity, and the
  multiplier that is claimed is a little below the config's. A single message has masks."""
  own = private_secure.ring(Private(2.0, 0.8, 3.0), 10_000, 4, 1)
  assert own.step == 2.0 / 5000 and own.sensitivity == 5000 + 50
  assert own.sigma == pytest.approx(0.8 * 5000 / math.sqrt(3))
  assert 4 * (own.sensitivity + discrete.support(own.sigma)) < 2**31
  assert private_secure.noise_multiplier(own) == pytest.approx(0.8 * 5000 / 5050, rel=1e-9)
  largest = jnp.uint32(2**31 - 1) + jnp.uint32(2**32 - 5)
  assert int(signed(largest)) == 2**31 - 6
  with pytest.raises(InputError, match='missing=3'):
    private_secure.ring(Private(1.0, 1.0, 1.0), 10, 4, 3)
  with pytest.raises(InputError, match='noise'):
    private_secure.ring(Private(1.0, 0.0, 1.0), 10, 4, 1)
