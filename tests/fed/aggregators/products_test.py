"""The product-exact family against dense matrices, which only the tests form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.fed import factors
from fedmedjax.fed.aggregators import product_gap as product_gaps
from fedmedjax.fed.aggregators import products
from fedmedjax.fed.aggregators.product_gap import product_gap
from fedmedjax.fed.aggregators.signals import Signal, leave_one_out
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean, factor_mean
from fedmedjax.tree import weighted_sum

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
    size_power=0.0, loss_power=1.0, signal=Signal(products.product_norms),
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


# Three sites of ranks 1, 2 and 4 and how much each counts in a round; 0 is an absence, a failure, a
# quarantine or a validation loss that is not a number alike.
NARROW = {'narrow two': (0.4, 0.6, 0.0), 'narrowest': (1.0, 0.0, 0.0), 'all': (0.2, 0.3, 0.5),
          'nobody': (0.0, 0.0, 0.0), 'wide alone': (0.0, 0.0, 1.0)}
OF_RANKS = {
  'padded_mean': products.padded_mean(), 'refactorised': products.refactorised(4),
  'stacked': products.stacked(rank=4, cohort_size=3, rounds=1),
  'residual': products.with_residual(rank=4, cohort_size=3, rounds=1),
  'residual cut to 1': products.with_residual(rank=4, cohort_size=3, rounds=1, residual_rank=1),
  'corrected': products.corrected(0.1)}


@pytest.mark.parametrize('who', NARROW)
@pytest.mark.parametrize('name', OF_RANKS)
def test_columns_that_nobody_has_stay_as_in_the_anchor(name, who):
  """Never zero in both factors, from which no gradient leads away. Means of factors leave them bit
  by bit; FlexLoRA leaves their product in the sum, by numpy's SVD; FLoRA draws all A anew and has
  folded no more than the sites' products. A site without weight may hold anything, NaN too."""
  rng = np.random.default_rng(3)
  ranks, weights = np.array([1, 2, 4]), np.array(NARROW[who], np.float32)
  server = 4
  has = np.arange(server)[None] < ranks[:, None]
  anchor = {'a': rng.normal(size=(6, server)), 'b': rng.normal(size=(server, 5))}
  local = {
    'a': np.where(has[:, None], anchor['a'] + 0.1 * rng.normal(size=(3, 6, server)), 0),
    'b': np.where(has[:, :, None], anchor['b'] + 0.1 * rng.normal(size=(3, server, 5)), 0)}
  held = (has & (weights > 0)[:, None]).any(axis=0)
  mine = sum(
    (w * a @ b for w, a, b in zip(weights, local['a'], local['b'], strict=True)),
    np.zeros((6, 5)))
  unheld = anchor['a'] * ~held @ anchor['b']
  given = jax.tree.map(
    lambda x: jnp.asarray(np.where(weights.reshape(-1, 1, 1) > 0, x, np.nan), jnp.float32), local)
  start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {'l': anchor})
  update, fold = OF_RANKS[name].apply(
    {'l': given}, jnp.asarray(weights), anchor=start, local={'l': given}, key=jax.random.key(0))
  found = jax.tree.map(lambda x, y: np.asarray(x + y, np.float64), start, update)['l']
  assert ((found['a'] != 0).any(axis=0) | (found['b'] != 0).any(axis=1)).all()
  joined = found if fold == () else factors.join({'l': found}, fold)['l']
  product = np.asarray(joined['a'], np.float64) @ np.asarray(joined['b'], np.float64)
  if who == 'nobody':
    assert not any(leaf.any() for leaf in jax.tree.leaves((update, fold)))
  if name in ('padded_mean', 'residual', 'residual cut to 1', 'corrected'):
    np.testing.assert_array_equal(found['a'][:, ~held], start['l']['a'][:, ~held])
    np.testing.assert_array_equal(found['b'][~held], start['l']['b'][~held])
  if name == 'refactorised' and weights.any():
    u, s, v = np.linalg.svd(mine + unheld)
    np.testing.assert_allclose(product, u[:, :server] * s[:server] @ v[:server], atol=1e-5)
  if name == 'residual' and weights.any():
    np.testing.assert_allclose(product, mine + unheld, atol=1e-5)
  if name == 'stacked' and weights.any():
    np.testing.assert_allclose(product, mine, atol=1e-5)


def test_a_sum_of_low_rank_leaves_columns_that_can_still_learn():
  """Of one site of rank 1 in a server of rank 3 whose own B is 0, FlexLoRA's sum has rank 1: the
  other columns are the anchor's A with B = 0, and the product is the sum."""
  start = {'l': {'a': jnp.arange(1.0, 13).reshape(4, 3) ** 0.5, 'b': jnp.zeros((3, 4))}}
  has = jnp.array([1.0, 0, 0])
  local = {'l': {'a': (start['l']['a'] * has[None])[None],
                 'b': (jnp.array([[3.0, -1.0, 0.0, 2.0]]) * has[:, None])[None]}}
  update, _ = products.refactorised(3).apply(
    local, jnp.ones(1), anchor=start, local=local, key=None)
  found = jax.tree.map(jnp.add, start, update)['l']
  np.testing.assert_allclose(
    found['a'] @ found['b'], local['l']['a'][0] @ local['l']['b'][0], atol=1e-5)
  np.testing.assert_array_equal(found['a'][:, 1:], start['l']['a'][:, 1:])
  assert not found['b'][1:].any() and found['b'][0].any()


@pytest.mark.parametrize('name', ['stacked', 'residual', 'corrected'])
def test_leave_one_out_judges_what_is_formed(name):
  """FLoRA's mean of factors, for one, says nothing: B is 0 after every round.

  The loss of every candidate, |A' B' - T|^2 of the adapter joined with what is folded, against
  forming the aggregate of the others by their size weights, one site at a time.
  """
  rng = np.random.default_rng(4)
  combine, rank = OF_RANKS[name], 4
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  anchor = {'l': {'a': draw(6, rank), 'b': draw(rank, 5)}}
  local = {'l': {'a': draw(3, 6, rank), 'b': draw(3, rank, 5)}}
  updates = jax.tree.map(lambda x, y: x - y[None], local, anchor)
  target, sizes, key = draw(6, 5), np.array([1.0, 2.0, 5.0]), jax.random.key(1)
  seen = []

  def answer_loss(adapters):
    seen.append(adapters['l']['a'].shape[-1])
    return jnp.sum(
      (adapters['l']['a'] @ adapters['l']['b'] - target[None]) ** 2, axis=(1, 2))[:, None]

  def by_hand(weights):
    update, fold = combine.apply(
      updates, jnp.asarray(weights, jnp.float32), anchor=anchor, local=local, key=key)
    whole = factors.join(jax.tree.map(jnp.add, anchor, update), fold)['l']
    return float(jnp.sum((whole['a'] @ whole['b'] - target) ** 2))

  out = adaptive_mean(loss_power=1.0, signal=Signal(leave_one_out), combine=combine).update(
    updates, jnp.zeros(3), weights=jnp.asarray(sizes, jnp.float32), cohort=jnp.arange(3),
    anchor=anchor, local=local, key=key, answer_loss=answer_loss,
    group_site=jnp.full(1, -1))
  rest = [np.where(np.arange(3) == k, 0, sizes) for k in range(3)]
  expected = by_hand(sizes / 8) - np.array([by_hand(one / one.sum()) for one in rest])
  np.testing.assert_allclose(out.utility, expected - expected.mean(), rtol=1e-3, atol=1e-3)
  # What joins the base is judged, too.
  assert seen == [rank + (0 if combine.fold(anchor) == () else jax.tree.leaves(
    combine.fold(anchor))[0].shape[-1])]


def test_room_for_all_rounds_and_what_a_product_needs():
  """Rank 2, three sites, four rounds: 24 columns; of a residual cut to rank 3, 12."""
  anchor, _ = adapters(0)
  sizes = dict(rank=2, cohort_size=3, rounds=4)
  own = {'single_updates', 'both_factors', 'plain_server', 'no_control_variates'}
  folding = own | {'exact_base', 'fixed_cohort', 'fixed_rounds'}
  for combine, columns, needs in (
      (products.stacked(**sizes), 24, folding | {'no_error_feedback'}),
      (products.with_residual(**sizes), 24, folding),
      (products.with_residual(**sizes, residual_rank=3), 12, folding)):
    assert combine.fold(anchor)['layers']['q']['a'].shape == (LAYERS, IN, columns)
    assert combine.needs == needs
  assert products.refactorised(2).needs == own | {'no_error_feedback'}
  assert products.padded_mean().needs == products.corrected(0.1).needs == own


def test_norms_of_products_by_hand():
  """|A B| = 0.2 * 3, 0.1 * 2 and 0; of the last the logarithm is cut off at half of log 1e-30."""
  local = {'a': jnp.array([[[0.2]], [[0.1]], [[0.3]]]), 'b': jnp.array([[[3.0]], [[2.0]], [[0.0]]])}
  np.testing.assert_allclose(
    products.product_norms(local=local), -np.log([0.6, 0.2, 1e-15]), rtol=1e-5)


def test_only_columns_of_no_size_are_refilled():
  """Squares of a column's entries: 2 of (1, -1), 8e-12 of (2e-6, 2e-6), which is rounding beside
  the first, 2e-4 of (0.01, 0.01), which is not."""
  given = {'a': jnp.array([[1.0, 0.01, 2e-6], [-1.0, 0.01, 2e-6]]), 'b': jnp.ones((3, 1))}
  found = products._refilled(given, {'a': jnp.full((2, 3), 7.0), 'b': jnp.full((3, 1), 7.0)})
  np.testing.assert_allclose(found['a'], [[1, 0.01, 7], [-1, 0.01, 7]])
  assert found['b'].tolist() == [[1], [1], [0]]
  # Of a sum that is 0, as in a first round, every column begins as in the anchor.
  none = jax.tree.map(jnp.zeros_like, given)
  assert products._refilled(none, {'a': given['a'], 'b': given['b']})['a'].tolist() == (
    given['a'].tolist())


def test_weights_below_0_are_none():
  _, local = adapters(0)
  found, expected = (
    jax.tree.leaves((factors.stack(local, weights), products._unheld(local, weights)))
    for weights in (jnp.array([0.4, -1.0, 0.6]), jnp.array([0.4, 0.0, 0.6])))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)
  update = products._replace({'a': jnp.ones(2)}, {'a': jnp.zeros(2)}, jnp.array([-1.0, 0.0]))
  assert not update['a'].any()


def test_axes_in_front_are_batch_axes():
  """Two and three of them, of which the first is that of the sites."""
  _, local = adapters(0)
  deep = jax.tree.map(lambda x: x[:, None], local)
  for fn in (factors.stack, products._unheld):
    found, expected = (jax.tree.leaves(fn(tree, WEIGHTS)) for tree in (deep, local))
    for one, other in zip(found, expected, strict=True):
      np.testing.assert_array_equal(one[0], other)


def test_a_pair_is_a_node_of_both_factors_and_of_nothing_else():
  """Modules may be called a and b, too."""
  pair = {'a': jnp.ones((2, 1)), 'b': jnp.ones((1, 3))}
  for tree in ({'a': pair}, {'b': pair}, {'a': pair, 'c': pair}, {'a': pair, 'd': pair, 'e': pair}):
    assert len(factors.factor_pairs(tree)) == len(tree)
    doubled = factors.map_pairs(lambda pair: {'a': 2 * pair['a'], 'b': pair['b']}, tree)
    assert all((a == 2).all() and (b == 1).all() for a, b in factors.factor_pairs(doubled))
  both = {'a': pair, 'b': pair, 'c': pair}
  assert len(factors.factor_pairs(both)) == 3
  assert jax.tree.all(jax.tree.map(
    lambda x, y: (x == y).all(), factors.map_pairs(lambda pair: pair, both), both))


def test_the_way_to_a_gap_that_takes_less_work(monkeypatch):
  """Two columns: 2 (D_in + D_out) products of columns against D_in D_out; of equal work the dense
  way. A difference of squares below 0 is rounding."""
  taken = []
  for way in ('_gram_squares', '_dense_squares'):
    monkeypatch.setattr(
      product_gaps, way, lambda *_, way=way: taken.append(way) or (jnp.float32(-1e-9), 4.0))
  for rows_in, rows_out, way in (
      (6, 6, '_gram_squares'), (4, 4, '_dense_squares'), (3, 12, '_gram_squares'),
      (12, 3, '_gram_squares'), (3, 5, '_dense_squares'), (2, 40, '_dense_squares'),
      (5, 4, '_gram_squares')):
    local = {'a': jnp.ones((1, 9, rows_in, 1)), 'b': jnp.ones((1, 9, 1, rows_out))}
    given = local, jax.tree.map(lambda x: x[0], local), jnp.ones(1)
    jax.eval_shape(product_gap, *given)
    assert taken.pop() == way and not taken
  assert float(product_gap(*given)) == 0.0


def test_a_gap_between_unlike_trees_is_none():
  local = {'q': {'a': jnp.ones((1, 3, 1)), 'b': jnp.ones((1, 1, 3))}}
  one = jax.tree.map(lambda x: x[0], local['q'])
  with pytest.raises(ValueError, match='argument'):
    jax.eval_shape(product_gap, local, {'k': one, 'q': one}, jnp.ones(1))


def test_a_share_of_products_that_are_0_is_none():
  """Though the new adapter's is not."""
  local = {'a': jnp.ones((1, 3, 1)), 'b': jnp.zeros((1, 1, 3))}
  assert np.isnan(product_gap(local, {'a': jnp.ones((3, 1)), 'b': jnp.ones((1, 3))}, jnp.ones(1)))


def test_how_many_columns_join_the_base():
  """FLoRA stacks what the sites hold; a residual has r columns for each site, or so many as are
  asked for."""
  ranks = [1, 4, 4]
  assert COMBINES['stacked'].columns(ranks) == 9
  assert COMBINES['with_residual'].columns(ranks) == 3 * RANK
  assert COMBINES['truncated_residual'].columns(ranks) == 1


def test_a_column_is_held_by_either_factor_of_either_sign():
  """Two sites, four columns: the first has A at one site, the second a negative B, the third B at a
  site without weight, the fourth nothing."""
  a, b = np.zeros((2, 1, 4), np.float32), np.zeros((2, 4, 1), np.float32)
  a[0, 0, 0], b[0, 1, 0], b[1, 2, 0] = -1.0, -2.0, 3.0
  local = {'q': {'a': jnp.asarray(a), 'b': jnp.asarray(b)}}
  for nothing in (0.0, -1.0):
    missed = products._unheld(local, jnp.array([1.0, nothing]))
    assert jax.tree.leaves(missed)[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize('name', ['mean', *OF_RANKS])
def test_leave_one_out_never_holds_the_adapters_of_all_pairs_of_sites(name):
  """Nothing in the program of 24 sites is as large as 75 adapters, where all pairs are 576: each of
  25 candidates has one, or of what is folded the columns of every site, one candidate at a time.
  Joined with columns it is at most twice that, and the sites' own, A and B."""
  sites, rank, wide = 24, 2, 64
  combine = {
    'mean': factor_mean(), 'stacked': products.stacked(rank=rank, cohort_size=sites, rounds=1),
    'residual': products.with_residual(rank=rank, cohort_size=sites, rounds=1),
    'refactorised': products.refactorised(rank)}.get(name) or OF_RANKS[name]
  shape = jax.ShapeDtypeStruct
  anchor, local = ({'l': {
    'a': shape((*many, wide, rank), jnp.float32), 'b': shape((*many, rank, wide), jnp.float32)}}
    for many in ((), (sites,)))

  def weights(updates, anchor, sizes):
    return adaptive_mean(loss_power=1.0, signal=Signal(leave_one_out), combine=combine).update(
      updates, jnp.zeros(sites), weights=sizes, cohort=jnp.arange(sites), anchor=anchor,
      local=updates, key=jax.random.key(0),
      answer_loss=lambda adapters: (adapters['l']['a'] ** 2).sum(axis=(1, 2))[:, None],
      group_site=jnp.full(1, -1)).weights

  program = jax.make_jaxpr(weights)(local, anchor, shape((sites,), jnp.float32))
  largest = max(_sizes(program.jaxpr))
  assert sites * rank * wide <= largest <= 3 * (sites + 1) * 2 * rank * wide


def _sizes(program):
  """The number of values of every array in a program and in those within it."""
  for equation in program.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _sizes(inner)
