"""How far the mean of factors is from the mean of their products."""

import jax
import jax.numpy as jnp

from fedmedjax.fed.factors import _einsum, factor_pairs, stack


def product_gap(local, result, weights):
  """|sum_k w_k A_k B_k - A' B'| / |sum_k w_k A_k B_k| over all layers and projections -> f32[].

  With F = [A_1 .. A_C, A'] and G = [w_1 B_1; ..; -B'], |F G|^2 = sum((F^T F) * (G G^T)), two Gram
  matrices of (C + 1) r columns, which are small for few sites; for many the dense products of one
  layer at a time are, and then work and memory grow with C, not its square. Cancellation limits
  what can be seen by the former to about 3e-4 in float32. NaN when the tree holds no factors, or
  the products are zero, as where a factor never travels.

  Args:
    local: the sites' adapters, leaves [C, ...].
    result: what they became: the new adapter, joined with the columns folded in this round.
    weights: f32[C].
  """
  gap, whole = 0.0, 0.0
  if not factor_pairs(local):
    return jnp.float32(jnp.nan)
  stacks = factor_pairs(stack(local, weights))
  for (a, b), (new_a, new_b) in zip(stacks, factor_pairs(result), strict=True):
    columns, (rows_in, rows_out) = a.shape[-1] + new_a.shape[-1], (a.shape[-2], b.shape[-1])
    squares = _gram_squares if columns * (rows_in + rows_out) < rows_in * rows_out else (
      _dense_squares)
    more, of = squares(a, b, new_a, new_b)
    gap, whole = gap + more, whole + of
  return jnp.where(
    whole > 0, jnp.sqrt(jnp.maximum(gap, 0.0) / jnp.maximum(whole, 1e-30)), jnp.nan)


def _gram_squares(a, b, new_a, new_b):
  """|A B - A' B'|^2 and |A B|^2 over all layers, from Gram matrices; A [..., D_in, n], A' alike."""
  inner = a.shape[-1]
  f = jnp.concatenate([a, new_a], axis=-1)
  g = jnp.concatenate([b, -new_b], axis=-2)
  terms = _einsum('...ij,...ik->...jk', f, f) * _einsum('...jo,...ko->...jk', g, g)
  return terms.sum(), terms[..., :inner, :inner].sum()


def _dense_squares(a, b, new_a, new_b):
  """The same from the products themselves, one layer after the other."""
  def layer(pairs):
    a, b, new_a, new_b = pairs
    product = _einsum('ij,jo->io', a, b)
    return jnp.sum((product - _einsum('ij,jo->io', new_a, new_b)) ** 2), jnp.sum(product ** 2)

  layers = [x.reshape(-1, *x.shape[-2:]) for x in (a, b, new_a, new_b)]
  gap, whole = jax.lax.map(layer, layers)
  return gap.sum(), whole.sum()
