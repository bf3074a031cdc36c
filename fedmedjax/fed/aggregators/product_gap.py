"""The product gap: how far the aggregated adapter is from the mean of the products A_k B_k."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedmedjax.fed.factors import factor_pairs, precise_einsum, stack
from fedmedjax.fed.types import Array, Tree


def product_gap(
  local: Tree, result: Tree, weights: Array, by_rows: Callable[[Tree], Tree] = lambda x: x
) -> Array:
  """|sum_k w_k A_k B_k - A' B'| / |sum_k w_k A_k B_k| over all layers and projections -> f32[].

  A ratio of Frobenius norms, without a unit; docs/methods.md, section 2, ours. NaN when the tree
  has no factors, or when the products are zero because one factor never travels.

  Two ways to compute it, whichever takes less work, each one layer at a time. For few sites: with
  F = [A_1 .. A_C, A'] and G = [w_1 B_1; ..; w_C B_C; -B'], |F G|^2 = sum((F^T F) * (G G^T)), two
  Gram matrices of (C + 1) r columns. They are sums over rows, so that devices may have all sites'
  columns of some rows each, and send a Gram matrix around in place of the sites' factors. For many
  sites: the dense product, whose work grows with C rather than C^2. Cancellation in the former
  hides gaps under about 3e-4 in float32.

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
    pair = stack(by_rows(factors) if few else factors, weights)
    # Of all layers at once Gram matrices would take more memory than the factors.
    gaps, wholes = jax.lax.map(
      lambda layer, squares=squares: squares(*layer),
      [x.reshape(-1, *x.shape[-2:]) for x in (pair['a'], pair['b'], *new)])
    gap, whole = gap + gaps.sum(), whole + wholes.sum()
  return jnp.where(whole > 0, jnp.sqrt(jnp.maximum(gap, 0.0) / whole), jnp.nan)


def _gram_squares(a, b, new_a, new_b):
  """(|A B - A' B'|^2, |A B|^2) of a layer, f32[] each, from Gram matrices.

  a [D_in, n], b [n, D_out]; new_a and new_b alike, with an inner width of their own.
  """
  inner = a.shape[-1]
  f = jnp.concatenate([a, new_a], axis=-1)
  g = jnp.concatenate([b, -new_b], axis=-2)
  terms = precise_einsum('ij,ik->jk', f, f) * precise_einsum('jo,ko->jk', g, g)
  return terms.sum(), terms[:inner, :inner].sum()


def _dense_squares(a, b, new_a, new_b):
  """The results of `_gram_squares`, from the products themselves."""
  product = precise_einsum('ij,jo->io', a, b)
  new_product = precise_einsum('ij,jo->io', new_a, new_b)
  return jnp.sum((product - new_product) ** 2), jnp.sum(product ** 2)
