"""The product gap: how far the aggregated adapter is from the mean of the products A_k B_k."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.factors import factor_pairs, precise_einsum, stack
from fedmedjax.fed.types import Array, Tree


def product_gap(
  local: Tree, result: Tree, weights: Array, by_rows: Callable[[Tree], Tree] = lambda x: x
) -> Array:
  """|sum_k w_k A_k B_k - A' B'| / |sum_k w_k A_k B_k| over all layers and projections -> f32[].

  A ratio of Frobenius norms, without a unit; docs/methods.md, section 2, ours. NaN when the tree
  has no factors, or when the products are zero because one factor never travels.

  Two ways to compute it, whichever takes less work, each one layer at a time. For many sites: the
  dense product, whose work grows with C rather than C^2. For few sites: with D_k = A_k - A' and
  E_k = B_k - B' the difference is A' (E + (w - 1) B') + D B' + sum_k w_k D_k E_k, where D and E are
  the weighted sums of D_k and E_k, and w that of the weights, less what was folded. Its terms are
  small where the gap is, so that little of it is lost in rounding. As columns F and rows G,
  |F G|^2 = sum((F^T F) * (G G^T)): Gram matrices of some (C + 2) r columns. They are sums over
  rows, so that devices may have all sites' columns of some rows each, and send a Gram matrix around
  in place of the sites' factors.

  Args:
    local: the sites' adapters, a [C, ..., D_in, r], b [C, ..., r, D_out].
    result: the new adapter joined with the columns folded in this round: A' [..., D_in, m],
      B' [..., m, D_out].
    weights: f32[C], w_k.
    by_rows: lays factors out so that devices share their rows, see `sites.spread_rows`.
  """
  gap, whole = 0.0, 0.0
  if not factor_pairs(local):
    return jnp.float32(jnp.nan)
  for (a, b), new in zip(factor_pairs(local), factor_pairs(result), strict=True):
    (rows_in, rank), rows_out = a.shape[-2:], b.shape[-1]
    columns = len(a) * rank + new[0].shape[-1]
    few = columns * (rows_in + rows_out) < rows_in * rows_out
    factors, squares = {'a': a, 'b': b}, _gram_squares if few else _dense_squares
    if few:
      factors = by_rows(factors)
    given = _columns(factors, new, weights) if few else (
      *(stack(factors, weights)[name] for name in 'ab'), *new)
    # Of all layers at once Gram matrices would take more memory than the factors.
    gaps, wholes = jax.lax.map(
      lambda layer, squares=squares: squares(*layer),
      [x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]) for x in given])
    gap, whole = gap + gaps.sum(), whole + wholes.sum()
  return jnp.where(whole > 0, jnp.sqrt(jnp.maximum(gap, 0.0) / whole), jnp.nan)


def _columns(factors: Tree, new: tuple[Array, Array], weights: Array) -> tuple[Array, ...]:
  """The arguments of `_gram_squares` for all layers [..., rows, columns].

  Args:
    factors: the sites' of a matrix, a [C, ..., D_in, r], b [C, ..., r, D_out].
    new: A' [..., D_in, m], B' [..., m, D_out]; what was folded are the columns after the first r.
    weights: f32[C].
  """
  rank, (new_a, new_b) = factors['a'].shape[-1], new
  own = {'a': new_a[..., :rank], 'b': new_b[..., :rank, :]}
  # A site of weight 0 may have any numbers.
  away = jax.tree.map(lambda x, y: x - y[None], factors, own)
  away = tree.where(weights > 0, away, jax.tree.map(jnp.zeros_like, away))
  mean, each = tree.weighted_sum(away, weights), stack(away, weights)
  return (
    jnp.concatenate([own['a'], mean['a'], each['a'], new_a[..., rank:]], axis=-1),
    mean['b'] + (weights.sum() - 1) * own['b'], own['b'], each['b'], new_b[..., rank:, :])


def _gram_squares(columns, first, own, each, folded):
  """(|sum_k w_k A_k B_k - A' B'|^2, |sum_k w_k A_k B_k|^2) of a layer, f32[] each.

  Args:
    columns: F [D_in, n], of A', D, every D_k and what was folded.
    first: E + (w - 1) B', the rows [r, D_out] of A' in the difference; in the mean itself they are
      B' more.
    own: B' [r, D_out], the rows of D.
    each: w_k E_k [C r, D_out].
    folded: its rows.
  """
  rank, inner = len(own), columns.shape[-1] - len(folded)
  gram = precise_einsum('ij,ik->jk', columns, columns)
  rows = jnp.concatenate([first, own, each, -folded])
  terms = gram * precise_einsum('jo,ko->jk', rows, rows)
  # The mean has no folded columns, and other rows for A'.
  mean_rows = rows[:inner].at[:rank].add(own)
  top = gram[:rank, :inner] * precise_einsum('jo,ko->jk', mean_rows[:rank], mean_rows)
  return terms.sum(), terms[rank:inner, rank:inner].sum() + (
    2 * top[:, rank:].sum() + top[:, :rank].sum())


def _dense_squares(a, b, new_a, new_b):
  """The results of `_gram_squares`, from the products themselves."""
  product = precise_einsum('ij,jo->io', a, b)
  new_product = precise_einsum('ij,jo->io', new_a, new_b)
  return jnp.sum((product - new_product) ** 2), jnp.sum(product ** 2)
