"""Aggregation of the products A_k B_k rather than of the factors.

A mean of factors loses sum_k w_k A_k B_k - (sum w A)(sum w B), METHOD section 2. The methods here
avoid that, each in its own way, and none forms a dense matrix for it: a weighted sum of products is
one product of stacked factors, F = [A_1 .. A_C] [..., D_in, C r] and G = [w_1 B_1; ..; w_C B_C]
[..., C r, D_out]. In the papers' notation B A is our A B, transposed. The factors are those in the
server's scale (`ranks.py`), so the products of sites of unlike rank may be added.

What a method moves into the base is kept as columns [F, G] beside the adapter: the model is shown
the joined adapter [A, F], [B; G], which is the base plus s F G exactly, s being the adapter's own
scale, while only A and B are trained. The base itself stays as it was and is shared by all sites;
the columns are part of the state, of fixed room for all rounds, zero until used.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.aggregators.weighted_mean import weighted_sum
from fedmedjax.fed.types import Combine

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


def padded_mean() -> Combine:
  """HetLoRA: the sites' factors, zero where a site has no rank, averaged factor by factor.

  Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
  EMNLP 2024, arXiv:2401.06432. Its sparsity weighting, w_k proportional to |Delta W_k|, is the
  signal `product_norms`; sites truncate to their own first columns. Left out: sites that prune
  their own rank in training.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, weighted_sum(local, weights), weights), ()

  return Combine(apply)


def product_norms(*, local, **_):
  """-log |A_k B_k| over all matrices -> f32[C]: as a signal of power 1 it weighs by the norm."""
  squares = sum(
    jnp.einsum('c...jk,c...jk->c', _einsum('...ij,...ik->...jk', a, a),
               _einsum('...jo,...ko->...jk', b, b))
    for a, b in factor_pairs(local))
  return -0.5 * jnp.log(jnp.maximum(squares, 1e-30))


def refactorised(rank: int) -> Combine:
  """FlexLoRA and HLoRA: sum w A B, cut to the server's rank by SVD.

  Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
  Resources", NeurIPS 2024, arXiv:2402.11505; Liu et al., "HLoRA: Efficient Federated Learning
  System for LLM Heterogeneous Fine-Tuning", arXiv:2503.00813. Exact up to the rank; the singular
  values are shared between both factors, and only small matrices are decomposed.

  Args:
    rank: r of the server's adapter.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, truncated(stack(local, weights), rank), weights), ()

  return Combine(apply)


def stacked(columns: int) -> Combine:
  """FLoRA: the stacked products join the base, and every round starts with a fresh adapter.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
  Adaptations", NeurIPS 2024, arXiv:2409.05976. Exact. The weights are in G only. The new A is
  drawn by the server, as adapters are at first, U(-1, 1) / sqrt(D_in), and B is 0.

  Args:
    columns: room for all rounds, T C r.
  """
  def apply(updates, weights, *, anchor, local, key):
    # A key for each factor A, in the order of the tree's keys.
    keys = iter(jax.random.split(key, len(factor_pairs(anchor))))

    def restart(pair):
      a = pair['a']
      bound = a.shape[-2] ** -0.5
      return {
        'a': jax.random.uniform(next(keys), a.shape, a.dtype, -bound, bound),
        'b': jnp.zeros_like(pair['b'])}

    fold = stack(local, weights)
    return _replace(anchor, map_pairs(restart, anchor), weights), fold

  return Combine(apply, lambda adapter: room(adapter, columns))


def with_residual(columns: int, rank: int = 0) -> Combine:
  """FedEx-LoRA: the mean of factors, and what it loses joins the base.

  Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
  Language Models", ACL 2025, arXiv:2410.09432. The residual sum w A B - (sum w A)(sum w B) is
  sum w (A_k - mean A)(B_k - mean B), since the weights add to 1: C r columns, no cancellation.

  Args:
    columns: room for all rounds, T C r or T times `rank`.
    rank: of the residual that is sent, its best approximation; 0 = exact.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    fold = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)
    return _replace(anchor, mean, weights), truncated(fold, rank) if rank else fold

  return Combine(apply, lambda adapter: room(adapter, columns))


def corrected(penalty: float) -> Combine:
  """LoRA-FAIR: mean A kept, mean B corrected towards the mean of the products.

  Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
  Refinement", ICCV 2025, arXiv:2411.14961. The correction minimises |sum w A B - A (B + Delta)|^2
  + lambda |Delta|^2; where the paper descends on a cosine similarity we take the least squares'
  closed form, Delta = (A^T A + lambda I)^-1 A^T R, with R the residual of `with_residual`.

  Args:
    penalty: lambda > 0; infinite, it is FedAvg.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    residual = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)

    def pair(factors, rest):
      a, b = factors['a'], factors['b']
      gram = _einsum('...ij,...ik->...jk', a, a)
      gram = gram + penalty * jnp.eye(gram.shape[-1], dtype=a.dtype).reshape(
        *(1,) * (gram.ndim - 2), *gram.shape[-2:])
      seen = _einsum('...jk,...ko->...jo', _einsum('...ij,...ik->...jk', a, rest['a']), rest['b'])
      return {'a': a, 'b': b + jnp.linalg.solve(gram, seen)}

    return _replace(anchor, map_pairs(pair, mean, residual), weights), ()

  return Combine(apply)


def _replace(anchor, adapter, weights):
  """The update that leads from the anchor to `adapter`; none when no site has weight."""
  return jax.tree.map(
    lambda new, old: jnp.where(weights.sum() > 0, new - old, 0), adapter, anchor)


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
