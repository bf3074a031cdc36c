"""Pairs of LoRA factors {a, b}: products, joins, stacks and truncation."""

import jax
import jax.numpy as jnp

_einsum = lambda *args: jnp.einsum(*args, precision='highest')  # noqa: E731


def map_pairs(fn, first, *rest):
  """Applies fn to every {'a': [..., D_in, r], 'b': [..., r, D_out]} node of the trees."""
  if set(first) == {'a', 'b'}:
    return fn(first, *rest)
  return {key: map_pairs(fn, value, *(tree[key] for tree in rest)) for key, value in first.items()}


def factor_pairs(adapter):
  """Every {'a', 'b'} node of the tree, as (a, b)."""
  if not isinstance(adapter, dict):
    return []
  if set(adapter) == {'a', 'b'}:
    return [(adapter['a'], adapter['b'])]
  return [pair for key in sorted(adapter) for pair in factor_pairs(adapter[key])]


def join(adapter, columns):
  """The adapter whose product is the sum of both products; `columns` () = nothing to add."""
  if columns == ():
    return adapter
  return map_pairs(
    lambda one, two: {
      'a': jnp.concatenate([one['a'], two['a']], axis=-1),
      'b': jnp.concatenate([one['b'], two['b']], axis=-2)}, adapter, columns)


def room(adapter, columns: int):
  """Zero columns for every adapted matrix: {'a': [..., D_in, columns], 'b': ...}."""
  return map_pairs(
    lambda pair: {
      'a': jnp.zeros((*pair['a'].shape[:-1], columns), pair['a'].dtype),
      'b': jnp.zeros((*pair['b'].shape[:-2], columns, pair['b'].shape[-1]), pair['b'].dtype)},
    adapter)


def write_columns(folded, fold, number):
  """`folded` with the columns of round `number` (from 0) in their place; () stays ()."""
  if fold == ():
    return folded

  def write(all_, new):
    def along(axis):
      return lambda x, y: jax.lax.dynamic_update_slice_in_dim(
        x, y, number * y.shape[axis], axis=axis)
    return {'a': along(-1)(all_['a'], new['a']), 'b': along(-2)(all_['b'], new['b'])}

  return map_pairs(write, folded, fold)


def stack(local, weights):
  """Sites' factors [C, ...] as one pair {'a': F, 'b': G} a matrix, F G = sum_k w_k A_k B_k.

  A site of weight 0 leaves zeros, even where its numbers are not finite.
  """
  def pair(factors):
    a, b = factors['a'], factors['b']
    w = weights.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype)
    a, b = jnp.where(w > 0, a, 0), jnp.where(w > 0, w * b, 0)
    a, b = jnp.moveaxis(a, 0, -2), jnp.moveaxis(b, 0, -3)
    return {
      'a': a.reshape(*a.shape[:-2], -1), 'b': b.reshape(*b.shape[:-3], -1, b.shape[-1])}

  return map_pairs(pair, local)


def truncated(columns, rank: int):
  """The best approximation of F G of the given rank, as factors of equal share.

  QR of F and of G^T leaves a small core, whose SVD U S V^T is that of F G up to the orthonormal
  factors: A = Q_F U sqrt(S), B = sqrt(S) V^T Q_G^T, singular values falling, so that the first
  r_k columns are the best choice of rank r_k.
  """
  def pair(factors):
    left, right = factors['a'], jnp.swapaxes(factors['b'], -1, -2)
    q_left, r_left = jnp.linalg.qr(left)
    q_right, r_right = jnp.linalg.qr(right)
    u, s, v = jnp.linalg.svd(_einsum('...ij,...kj->...ik', r_left, r_right), full_matrices=False)
    half = jnp.sqrt(s[..., None, :rank])
    return {
      'a': _einsum('...di,...ir->...dr', q_left, u[..., :rank] * half),
      'b': _einsum('...ri,...oi->...ro', v[..., :rank, :] * jnp.swapaxes(half, -1, -2), q_right)}

  return map_pairs(pair, columns)
