"""What averaging the factors loses: sum w A B against (sum w A)(sum w B), METHOD section 2."""

import jax.numpy as jnp


def factor_pairs(adapter):
  """Every {'a': [..., D_in, r], 'b': [..., r, D_out]} node of the tree."""
  if not isinstance(adapter, dict):
    return []
  if set(adapter) == {'a', 'b'}:
    return [(adapter['a'], adapter['b'])]
  return [pair for key in sorted(adapter) for pair in factor_pairs(adapter[key])]


def product_gap(local, mean, weights):
  """|sum_k w_k A_k B_k - A B| / |sum_k w_k A_k B_k| over all layers and projections -> f32[].

  The dense products are never formed: with stacked factors F = [A_1 .. A_C, A] and
  G = [w_1 B_1; ..; -B], |F G|^2 = sum((F^T F) * (G G^T)), two small Gram matrices. Cancellation
  limits what can be seen to about 3e-4 in float32.

  Args:
    local: the sites' adapters, leaves [C, ...].
    mean: the aggregated adapter.
    weights: f32[C].
  """
  gap, whole = 0.0, 0.0
  for (a, b), (mean_a, mean_b) in zip(factor_pairs(local), factor_pairs(mean), strict=True):
    sites = a.shape[0]
    b = b * weights.reshape(-1, *(1,) * (b.ndim - 1))
    f = jnp.concatenate([*a, mean_a], axis=-1)
    g = jnp.concatenate([*b, -mean_b], axis=-2)
    terms = jnp.einsum('...ij,...ik->...jk', f, f) * jnp.einsum('...jo,...ko->...jk', g, g)
    gap = gap + terms.sum()
    inner = sites * a.shape[-1]
    whole = whole + terms[..., :inner, :inner].sum()
  if not isinstance(whole, jnp.ndarray):
    return jnp.float32(jnp.nan)
  return jnp.sqrt(jnp.maximum(gap, 0.0) / jnp.maximum(whole, 1e-30))
