"""The product-exact family against dense matrices, which only the tests form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.fed import factors
from fedmedjax.fed.aggregators import products
from fedmedjax.fed.aggregators.product_gap import product_gap
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean, factor_mean, weighted_sum

SITES, RANK, IN, OUT, LAYERS = 3, 2, 7, 5, 2
WEIGHTS = jnp.array([0.2, 0.3, 0.5])
COMBINES = {
  'factor_mean': factor_mean(), 'padded_mean': products.padded_mean(),
  'refactorised': products.refactorised(RANK), 'stacked': products.stacked(
    rank=RANK, cohort_size=SITES, rounds=1),
  'with_residual': products.with_residual(
    rank=RANK, cohort_size=SITES, rounds=1),
  'truncated_residual': products.with_residual(
    rank=RANK, cohort_size=SITES, rounds=1, residual_rank=1), 'corrected': products.corrected(0.01)}


def adapters(seed, sites=SITES, rank=RANK):
  """(anchor [*p], sites' adapters [C, *p]) of one matrix a layer."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  pair = lambda *front: {  # noqa: E731
    'a': draw(*front, LAYERS, IN, rank), 'b': draw(*front, LAYERS, rank, OUT)}
  return {'layers': {'q': pair()}}, {'layers': {'q': pair(sites)}}


def dense(adapter):
  """A B of every layer, in float64."""
  (a, b), = factors.factor_pairs(adapter)
  return np.asarray(a, np.float64) @ np.asarray(b, np.float64)


def mean_product(local, weights=WEIGHTS):
  return np.einsum('c,clio->lio', np.asarray(weights, np.float64), dense(local))


def combined(name, anchor, local, weights=WEIGHTS):
  """What the model is shown after the round: anchor + update, joined with the fold."""
  updates = jax.tree.map(lambda x, x0: x - x0[None], local, anchor)
  update, fold = jax.jit(COMBINES[name].apply)(
    updates, weights, anchor=anchor, local=local, key=jax.random.key(0))
  return jax.tree.map(jnp.add, anchor, update), fold


def test_the_stack_is_the_sum_of_products():
  """And a site of weight 0 adds nothing, whatever it holds."""
  _, local = adapters(0)
  np.testing.assert_allclose(
    dense(factors.stack(local, WEIGHTS)), mean_product(local), atol=1e-6)
  broken = jax.tree.map(lambda x: x.at[1].set(jnp.nan), local)
  absent = jnp.array([0.4, 0.0, 0.6])
  np.testing.assert_allclose(
    dense(factors.stack(broken, absent)), mean_product(local, absent), atol=1e-6)


@pytest.mark.parametrize('name', ['stacked', 'with_residual'])
def test_flora_and_fedex_are_exact(name):
  """To 1e-5 of the dense sum; the mean of factors is far from it."""
  anchor, local = adapters(1)
  expected = mean_product(local)
  adapter, fold = combined(name, anchor, local)
  np.testing.assert_allclose(dense(factors.join(adapter, fold)), expected, atol=1e-5)
  assert float(product_gap(local, factors.join(adapter, fold), WEIGHTS)) < 1e-3
  mean, _ = combined('factor_mean', anchor, local)
  assert np.linalg.norm(dense(mean) - expected) > 0.1 * np.linalg.norm(expected)


def test_fedex_keeps_the_mean_of_factors_as_adapter():
  anchor, local = adapters(2)
  (adapter, _), (mean, _) = combined('with_residual', anchor, local), combined(
    'factor_mean', anchor, local)
  for one, other in zip(jax.tree.leaves(adapter), jax.tree.leaves(mean), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_flora_restarts_the_adapter():
  """B = 0, and every round another A within LoRA's bound."""
  anchor, local = adapters(3)
  adapter, _ = combined('stacked', anchor, local)
  (a, b), = factors.factor_pairs(adapter)
  assert not b.any() and float(jnp.abs(a).max()) <= IN**-0.5 + 1e-6 and float(a.std()) > 0.1
  assert COMBINES['stacked'].fold(anchor)['layers']['q']['a'].shape == (LAYERS, IN, SITES * RANK)


def test_flora_draws_an_a_for_every_projection_and_layer():
  """Of 3 projections, 2 layers and 2 columns no column of A is another one's, nor that of a round
  with another key."""
  anchor, local = ({'layers': {
    name: adapters(seed)[side]['layers']['q'] for seed, name in enumerate('kqv')}}
    for side in (0, 1))
  columns = []
  for seed in (0, 1):
    update, _ = products.stacked(rank=RANK, cohort_size=SITES, rounds=1).apply(
      None, WEIGHTS, anchor=anchor, local=local, key=jax.random.key(seed))
    fresh = jax.tree.map(jnp.add, anchor, update)
    columns += [tuple(np.round(column, 5)) for a, _ in factors.factor_pairs(fresh)
                for layer in np.asarray(a) for column in layer.T]
  assert len(set(columns)) == len(columns) == 2 * 3 * LAYERS * RANK


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_refactorised_is_numpys_best_approximation(rank):
  """Against the SVD of the dense sum, layer by layer, and with falling singular values."""
  _, local = adapters(4)
  found = jax.jit(factors.truncated, static_argnums=1)(factors.stack(local, WEIGHTS), rank)
  u, s, v = np.linalg.svd(mean_product(local))
  best = np.einsum('lir,lr,lro->lio', u[:, :, :rank], s[:, :rank], v[:, :rank])
  np.testing.assert_allclose(dense(found), best, atol=1e-5)
  (a, b), = factors.factor_pairs(found)
  np.testing.assert_allclose(np.linalg.norm(a, axis=-2), np.sqrt(s[:, :rank]), rtol=1e-4)
  np.testing.assert_allclose(np.linalg.norm(b, axis=-1), np.sqrt(s[:, :rank]), rtol=1e-4)


def test_refactorised_by_hand():
  """A_1 B_1 = 4 e1 f1, A_2 B_2 = 2 e2 f2, weights (1/2, 1/2): the sum is diag(2, 1); of rank 1
  there remains 2 e1 f1, shared as sqrt 2 and sqrt 2; the mean of factors would be (1, 1/2)/2 x
  (2, 1): 1.0 there."""
  a = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]]])
  b = jnp.array([[[4.0, 0.0]], [[0.0, 2.0]]])
  found = factors.truncated(factors.stack({'a': a, 'b': b}, jnp.array([0.5, 0.5])), 1)
  np.testing.assert_allclose(np.abs(found['a'][:, 0]), (2**0.5, 0), atol=1e-6)
  np.testing.assert_allclose(found['a'] @ found['b'], [[2.0, 0], [0, 0]], atol=1e-6)


def test_truncated_fedex_lies_between_the_mean_and_the_exact_sum():
  anchor, local = adapters(5)
  expected = mean_product(local)
  error = {}
  for name in ('factor_mean', 'truncated_residual', 'with_residual'):
    error[name] = np.linalg.norm(dense(factors.join(*combined(name, anchor, local))) - expected)
  assert error['with_residual'] < 1e-4 < error['truncated_residual'] < error['factor_mean']
  # The residual's first singular value is what one rank removes (Eckart and Young), per layer.
  residual = expected - dense(weighted_sum(local, WEIGHTS))
  left = np.linalg.svd(residual, compute_uv=False)[:, 1:]
  np.testing.assert_allclose(error['truncated_residual'], np.linalg.norm(left), rtol=1e-4)


def test_fair_by_hand_and_its_ends():
  """A = (1), (3), B = (1), (3), weights 1/2: means 2, 2, product 5, residual 1. With lambda = 4
  Delta = 2 * 1 / (4 + 4) = 1/4. At lambda -> 0 Delta = 1/2 and 2 * 2.5 = 5: exact."""
  local = {'a': jnp.array([[[1.0]], [[3.0]]]), 'b': jnp.array([[[1.0]], [[3.0]]])}
  anchor = {'a': jnp.zeros((1, 1)), 'b': jnp.zeros((1, 1))}
  half = jnp.array([0.5, 0.5])
  for penalty, b in ((4.0, 2.25), (1e-9, 2.5), (1e12, 2.0)):
    update, _ = products.corrected(penalty).apply(
      None, half, anchor=anchor, local=local, key=None)
    np.testing.assert_allclose((update['a'][0, 0], update['b'][0, 0]), (2.0, b), rtol=1e-6)
  anchor, local = adapters(6)
  expected = mean_product(local)
  far = np.linalg.norm(dense(combined('factor_mean', anchor, local)[0]) - expected)
  assert np.linalg.norm(dense(combined('corrected', anchor, local)[0]) - expected) < far


def test_het_weights_by_hand():
  """|A B| = 0.2 * 3 = 0.6 and 0.1 * 2 = 0.2: weights 3/4 and 1/4; the mean of B is (9 + 2) / 4."""
  local = {'a': jnp.array([[[0.2]], [[0.1]]]), 'b': jnp.array([[[3.0]], [[2.0]]])}
  anchor = {'a': jnp.zeros((1, 1)), 'b': jnp.zeros((1, 1))}
  aggregator = adaptive_mean(
    size_power=0.0, loss_power=1.0, utility=products.product_norms,
    combine=products.padded_mean())
  out = aggregator.update(
    local, aggregator.init(anchor, 2), weights=jnp.ones(2), cohort=jnp.arange(2), anchor=anchor,
    local=local, key=None)
  np.testing.assert_allclose(out.weights, (0.75, 0.25), rtol=1e-6)
  np.testing.assert_allclose(out.update['b'], [[2.75]], rtol=1e-6)


def test_ffa_loses_nothing():
  """One A for all: sum w A B_k = A sum w B_k, so the mean of factors is exact; A differing, not."""
  anchor, local = adapters(7)
  pair = local['layers']['q']
  frozen = {'layers': {'q': {
    'a': jnp.broadcast_to(anchor['layers']['q']['a'], pair['a'].shape), 'b': pair['b']}}}
  mean, _ = combined('factor_mean', anchor, frozen)
  np.testing.assert_allclose(dense(mean), mean_product(frozen), atol=1e-5)
  assert float(product_gap(frozen, mean, WEIGHTS)) < 1e-3
  mean, _ = combined('factor_mean', anchor, local)
  assert float(product_gap(local, mean, WEIGHTS)) > 0.1


@pytest.mark.parametrize('name', COMBINES)
@settings(derandomize=True, deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(SITES)))
def test_order_does_not_matter_and_identical_sites_change_nothing(name, seed, order):
  """The model's product after the round, under a permutation; and of three equal sites."""
  anchor, local = adapters(seed)
  shown = lambda *args: dense(factors.join(*combined(name, *args)))  # noqa: E731
  order = np.array(order)
  np.testing.assert_allclose(
    shown(anchor, jax.tree.map(lambda x: x[order], local), WEIGHTS[order]),
    shown(anchor, local), atol=1e-4)
  same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), local)
  np.testing.assert_allclose(shown(anchor, same), dense(same)[0], atol=1e-4)


@pytest.mark.parametrize('name', COMBINES)
def test_nobody_heard_moves_nothing(name):
  anchor, local = adapters(8)
  adapter, fold = combined(name, anchor, local, jnp.zeros(SITES))
  np.testing.assert_allclose(dense(factors.join(adapter, fold)), dense(anchor), atol=1e-6)


def test_columns_are_written_in_their_rounds_place():
  """Two rounds of two columns: the products add up, and the room of a third stays zero."""
  anchor, _ = adapters(9)
  folded = factors.room(anchor, 6)
  one, two = adapters(10, rank=2)[0], adapters(11, rank=2)[0]
  for number, fold in enumerate((one, two)):
    folded = factors.write_columns(folded, fold, jnp.int32(number))
  np.testing.assert_allclose(dense(folded), dense(one) + dense(two), atol=1e-5)
  assert not folded['layers']['q']['a'][..., 4:].any()
  np.testing.assert_allclose(
    dense(factors.join(anchor, folded)), dense(anchor) + dense(one) + dense(two), atol=1e-5)
  assert factors.write_columns((), (), 0) == () and factors.join(anchor, ()) is anchor
