"""Pairs of LoRA factors {a, b}: products, joins, stacks and truncation.

A pair is a node {'a': A [..., D_in, r], 'b': B [..., r, D_out]} of an adapter tree; the axes in
front (layer, site) are batch axes. *Columns* are such a pair of any inner width m, whose product
F G [..., D_in, D_out] is what counts: F [..., D_in, m] under 'a' and G [..., m, D_out] under 'b'.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import Array, Tree


def precise_einsum(subscripts: str, *operands: Array) -> Array:
  """`jnp.einsum` of operands such as f32[..., D_in, r] with full float32 products.

  GPUs and TPUs multiply float32 matrices in a shorter format by default. Sums over sites and Gram
  matrices lose too many digits by that.
  """
  return jnp.einsum(subscripts, *operands, precision='highest')


def map_pairs(fn, first, *rest):
  """Applies fn to every {'a': [..., D_in, r], 'b': [..., r, D_out]} node of the trees."""
  if set(first) == {'a', 'b'}:
    return fn(first, *rest)
  return {key: map_pairs(fn, value, *(tree[key] for tree in rest)) for key, value in first.items()}


def factor_pairs(adapter: Tree) -> list[tuple[Array, Array]]:
  """Every {'a', 'b'} node of the tree as (a [..., D_in, r], b [..., r, D_out]), by sorted path.

  Empty when the tree has no such node.
  """
  if not isinstance(adapter, dict):
    return []
  if set(adapter) == {'a', 'b'}:
    return [(adapter['a'], adapter['b'])]
  return [pair for key in sorted(adapter) for pair in factor_pairs(adapter[key])]


def join(adapter: Tree, columns: Tree) -> Tree:
  """Concatenates along the rank's axis, so the product becomes the sum A B + F G of both.

  Args:
    adapter: A [..., D_in, r], B [..., r, D_out].
    columns: F [..., D_in, m], G [..., m, D_out]; () = nothing to add.

  Returns:
    a [..., D_in, r + m], b [..., r + m, D_out].
  """
  if columns == ():
    return adapter
  return map_pairs(
    lambda pair, more: {
      'a': jnp.concatenate([pair['a'], more['a']], axis=-1),
      'b': jnp.concatenate([pair['b'], more['b']], axis=-2)}, adapter, columns)


def room(adapter: Tree, columns: int) -> Tree:
  """Zeros for every adapted matrix: a [..., D_in, columns], b [..., columns, D_out]."""
  return map_pairs(
    lambda pair: {
      'a': jnp.zeros((*pair['a'].shape[:-1], columns), pair['a'].dtype),
      'b': jnp.zeros((*pair['b'].shape[:-2], columns, pair['b'].shape[-1]), pair['b'].dtype)},
    adapter)


def write_columns(folded: Tree, fold: Tree, number: Array | int) -> Tree:
  """Writes the columns of one round into the room of all rounds.

  Args:
    folded: room for T rounds, a [..., D_in, T m], b [..., T m, D_out].
    fold: the columns of this round, a [..., D_in, m], b [..., m, D_out]; () = `folded` as it is.
    number: i32[] of the round, from 0.
  """
  if fold == ():
    return folded

  def write(all_, new):
    def along(axis):
      return lambda x, y: jax.lax.dynamic_update_slice_in_dim(
        x, y, number * y.shape[axis], axis=axis)
    return {'a': along(-1)(all_['a'], new['a']), 'b': along(-2)(all_['b'], new['b'])}

  return map_pairs(write, folded, fold)


def stack(local: Tree, weights: Array) -> Tree:
  """The sites' factors as one pair {'a': F, 'b': G} a matrix, F G = sum_k w_k A_k B_k.

  The weights are in G. A site of weight 0 gives zeros, even where its numbers are not finite.

  Args:
    local: the sites' adapters, a [C, ..., D_in, r], b [C, ..., r, D_out].
    weights: f32[C], w_k.

  Returns:
    a [..., D_in, C r], b [..., C r, D_out].
  """
  def pair(factors):
    a, b = factors['a'], factors['b']
    w = weights.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype)
    a, b = jnp.where(w > 0, a, 0), jnp.where(w > 0, w * b, 0)
    a, b = jnp.moveaxis(a, 0, -2), jnp.moveaxis(b, 0, -3)
    return {
      'a': a.reshape(*a.shape[:-2], -1), 'b': b.reshape(*b.shape[:-3], -1, b.shape[-1])}

  return map_pairs(pair, local)


def truncated(columns: Tree, rank: int) -> Tree:
  """The best approximation of F G of the given rank r, as factors that share its singular values.

  QR of F and of G^T leaves a core of m x m, whose SVD U S V^T is that of F G up to the orthonormal
  factors: A = Q_F U sqrt(S), B = sqrt(S) V^T Q_G^T. The singular values fall, so that the first
  r_k columns are the best approximation of rank r_k.

  Args:
    columns: F [..., D_in, m], G [..., m, D_out].
    rank: r.

  Returns:
    a [..., D_in, r], b [..., r, D_out].
  """
  def pair(factors):
    left, right = factors['a'], jnp.swapaxes(factors['b'], -1, -2)
    q_left, r_left = jnp.linalg.qr(left)
    q_right, r_right = jnp.linalg.qr(right)
    core = precise_einsum('...ij,...kj->...ik', r_left, r_right)
    u, s, v = jnp.linalg.svd(core, full_matrices=False)
    half = jnp.sqrt(s[..., None, :rank])
    return {
      'a': precise_einsum('...di,...ir->...dr', q_left, u[..., :rank] * half),
      'b': precise_einsum(
        '...ri,...oi->...ro', v[..., :rank, :] * jnp.swapaxes(half, -1, -2), q_right)}

  return map_pairs(pair, columns)
