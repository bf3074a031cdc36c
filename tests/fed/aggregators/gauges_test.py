"""FedRot-LoRA and FedSVD against dense matrices, by hand, and their neutral elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import PATHS, data, federation, play

from fedmedjax.fed import sharing
from fedmedjax.fed.aggregators import gauges
from fedmedjax.fed.aggregators.secure import masked_mean
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean, factor_mean

WEIGHTS = jnp.array([0.2, 0.3, 0.5])


def drawn(seed, sites=3, layers=2, width=7, out=5, rank=2):
  """(anchor [*p], sites' adapters [C, *p])."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return tuple({'q': {'a': draw(*front, layers, width, rank), 'b': draw(*front, layers, rank, out)}}
               for front in ((), (sites,)))


def formed(combine, anchor, local, weights=WEIGHTS):
  """The adapter after the round."""
  updates = jax.tree.map(lambda x, x0: x - x0[None], local, anchor)
  update, fold = jax.jit(combine.apply)(
    updates, weights, anchor=anchor, local=local, key=jax.random.key(0))
  assert fold == ()
  return jax.tree.map(jnp.add, anchor, update)['q']


def product(pair):
  return np.asarray(pair['a'], np.float64) @ np.asarray(pair['b'], np.float64)


def turn(angle):
  return jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], jnp.float32)


def test_sites_that_differ_by_a_rotation_are_averaged_as_one():
  """One adapter, written in three gauges: the mean of factors is far from it (planted: no
  rotation), turned towards the anchor's A they are equal, whatever the weights."""
  anchor, _ = drawn(0)
  own = {'a': anchor['q']['a'] + 0.1, 'b': anchor['q']['b'] - 0.2}
  turns = [turn(angle) for angle in (0.0, 1.0, 2.5)]
  local = {'q': {'a': jnp.stack([own['a'] @ by for by in turns]),
                 'b': jnp.stack([by.T @ own['b'] for by in turns])}}
  found = formed(gauges.aligned(1.0), anchor, local)
  np.testing.assert_allclose(product(found), product(own), atol=1e-4)
  plain = formed(gauges.aligned(0.0), anchor, local)
  assert np.abs(product(plain) - product(own)).max() > 0.3
  expected = formed(factor_mean(), anchor, local)
  for name in 'ab':
    np.testing.assert_allclose(plain[name], expected[name], atol=1e-5)


nearest = jax.jit(gauges.nearest_rotation)


def test_a_rotation_by_hand():
  """Of A_k = A turned by 90 degrees the rotation is that turn's inverse; half of it, (I + R) / 2,
  is the turn by 45 degrees. A mirror is no rotation: of diag(2, -1) the best is I, trace 1."""
  a = jnp.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  local = a @ turn(np.pi / 2)
  towards = nearest(local.T @ a)
  np.testing.assert_allclose(towards, turn(-np.pi / 2), atol=1e-5)
  np.testing.assert_allclose(
    nearest(0.5 * jnp.eye(2) + 0.5 * towards), turn(-np.pi / 4), atol=1e-5)
  np.testing.assert_allclose(
    nearest(jnp.diag(jnp.array([2.0, -1.0]))), np.eye(2), atol=1e-5)
  anchor = {'q': {'a': a, 'b': jnp.zeros((2, 1))}}
  one = {'q': {'a': local[None], 'b': jnp.array([[[1.0], [0.0]]])}}
  half = formed(gauges.aligned(0.5), anchor, one, jnp.ones(1))
  root = np.sqrt(0.5)
  np.testing.assert_allclose(half['b'], [[root], [root]], atol=1e-5)
  np.testing.assert_allclose(half['a'], a @ turn(np.pi / 4), atol=1e-5)


def test_what_nothing_is_known_of_is_not_turned():
  """The same A with a zero column, or all zero; and no rotation beats the found one (of 200)."""
  np.testing.assert_allclose(nearest(jnp.zeros((3, 3))), np.eye(3), atol=1e-6)
  np.testing.assert_allclose(
    nearest(jnp.diag(jnp.array([4.0, 0, 0]))), np.eye(3), atol=1e-6)
  rng = np.random.default_rng(1)
  matrix = rng.normal(size=(3, 3))
  best = np.asarray(nearest(jnp.asarray(matrix, jnp.float32)))
  assert np.linalg.det(best) == pytest.approx(1, abs=1e-5)
  for _ in range(200):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    q[:, 0] *= np.linalg.det(q)
    assert np.trace(q.T @ matrix) <= np.trace(best.T @ matrix) + 1e-5


@pytest.mark.parametrize('shape', [{}, {'rank': 4, 'width': 3, 'out': 2}])
def test_fedsvd_keeps_the_product_and_makes_a_orthonormal(shape):
  """Sites share the anchor's A; the product is A times the mean of B, A's columns are orthonormal,
  B's rows orthogonal and falling, as in numpy's SVD of the dense product. The masked sum will do.
  A rank above a width leaves columns of zeros."""
  anchor, local = drawn(2, **shape)
  local['q']['a'] = jnp.broadcast_to(anchor['q']['a'][None], local['q']['a'].shape)
  whole = product({
    'a': anchor['q']['a'], 'b': np.einsum('clro,c->lro', local['q']['b'], WEIGHTS)})
  for total, tolerance in ((factor_mean(), 1e-5), (masked_mean(), 1e-4))[:1 if shape else 2]:
    found = formed(gauges.orthogonalised(total), anchor, local)
    np.testing.assert_allclose(product(found), whole, atol=tolerance)
    a, b = (np.asarray(found[name]) for name in 'ab')
    wide = min(a.shape[-2:])
    gram = np.zeros((2, a.shape[-1], a.shape[-1]))
    gram[:, np.arange(wide), np.arange(wide)] = 1
    np.testing.assert_allclose(np.swapaxes(a, -1, -2) @ a, gram, atol=1e-5)
    singular = np.linalg.svd(whole, compute_uv=False)
    size = np.linalg.norm(b, axis=-1)
    least = min(size.shape[-1], singular.shape[-1])
    np.testing.assert_allclose(size[:, :least], singular[:, :least], atol=1e-4)


def test_fedsvd_moves_a_which_no_site_trains():
  """One round: the server's A changes, the product does not. B's gradient here knows nothing of A:
  it is half way from 1 to the mean target, 3.1. Without FedSVD served_a is FFA-LoRA: A stays."""
  start = {'layers': {'q': {
    'a': jnp.array([[[3.0], [4.0]]]), 'b': jnp.array([[[1.0, 1.0]]])}}}
  svd = adaptive_mean(combine=gauges.orthogonalised(factor_mean()))
  for aggregator, a in ((svd, [0.6, 0.8]), (adaptive_mean(), [3.0, 4.0])):
    state, metrics = play(
      federation(sharing=sharing.served_a(PATHS), aggregator=aggregator), data(), 1, start=start)
    found = state.adapter['layers']['q']
    np.testing.assert_allclose(np.abs(found['a']).ravel(), a, rtol=1e-6)
    np.testing.assert_allclose(product(found), product(
      {'a': start['layers']['q']['a'], 'b': np.full((1, 1, 2), 2.05)}), rtol=1e-5)
    assert float(metrics.expected_gap) == 0 and float(metrics.product_gap) < 1e-6
