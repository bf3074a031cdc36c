"""Aggregation of the products A_k B_k rather than of the factors.

A mean of factors loses sum_k w_k A_k B_k - (sum w A)(sum w B), see docs/methods.md. Each method
avoids that in its own way, and none forms a dense matrix [..., D_in, D_out]: a weighted sum of
products is one product of stacked factors, F = [A_1 .. A_C] [..., D_in, C r] and
G = [w_1 B_1; ..; w_C B_C] [..., C r, D_out]. The papers write B A for the transpose of our A B. The
factors are in the server's scale (`ranks.py`), so products of sites of unlike rank can be added.

What a method moves into the base is kept as columns F, G beside the adapter. The model is given
the joined adapter [A, F], [B; G], which equals the base plus s F G, s being the adapter's own
scale, while only A and B are trained. The base itself stays unchanged and is shared by all sites.
The columns are part of the server's state; their room is allocated for all T rounds at the start
and is zero until it is used.

In every method below `apply` is that of `Combine`: updates [C, *p] and weights f32[C] to the
update [*p] and the columns folded into the base, or ().
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.aggregators.weighted_mean import weighted_sum
from fedmedjax.fed.factors import factor_pairs, map_pairs, precise_einsum, room, stack, truncated
from fedmedjax.fed.types import Array, Combine, Tree


def padded_mean() -> Combine:
  """HetLoRA: local factors [C, *p], zero beyond a site's rank, averaged factor by factor -> [*p].

  Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
  EMNLP 2024, arXiv:2401.06432. The paper's sparsity weighting, w_k proportional to |Delta W_k|, is
  the signal `product_norms`. Sites truncate to their own first columns, as in the paper. Left out:
  sites that prune their own rank in training.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, weighted_sum(local, weights), weights), ()

  return Combine(apply)


def product_norms(*, local: Tree, **_) -> Array:
  """-log |A_k B_k|, the Frobenius norm over all matrices -> f32[C].

  As the signal of `adaptive_mean` with loss_power 1 it gives weights proportional to |A_k B_k|,
  HetLoRA's sparsity weighting (see `padded_mean`).

  Args:
    local: the sites' adapters, a [C, ..., D_in, r], b [C, ..., r, D_out].
  """
  squares = sum(
    jnp.einsum('c...jk,c...jk->c', precise_einsum('...ij,...ik->...jk', a, a),
               precise_einsum('...jo,...ko->...jk', b, b))
    for a, b in factor_pairs(local))
  return -0.5 * jnp.log(jnp.maximum(squares, 1e-30))


def refactorised(rank: int) -> Combine:
  """FlexLoRA and HLoRA: sum_k w_k A_k B_k, cut to the server's rank by an SVD -> [*p].

  Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
  Resources", NeurIPS 2024, arXiv:2402.11505; Liu et al., "HLoRA: Efficient Federated Learning
  System for LLM Heterogeneous Fine-Tuning", arXiv:2503.00813. Exact when the sum has rank r or
  less. We deviate in that the square roots of the singular values go to both factors, and that
  only matrices of C r columns are decomposed (`factors.truncated`), never the dense sum.

  Args:
    rank: r of the server's adapter, the papers' rank of the global LoRA.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, truncated(stack(local, weights), rank), weights), ()

  return Combine(apply)


def stacked(columns: int) -> Combine:
  """FLoRA: the stacked products are added to the base; every round starts with a fresh adapter.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
  Adaptations", NeurIPS 2024, arXiv:2409.05976. Exact: F G = sum_k w_k A_k B_k. The weights (the
  paper's p_k) are in G only. The server draws the new A [..., D_in, r] as a first adapter is drawn,
  U(-1, 1) / sqrt(D_in), from the round's key; the new B [..., r, D_out] is 0.

  Args:
    columns: number of columns to allocate for all rounds, T C r.
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
  """FedEx-LoRA: the mean of factors [*p]; the residual it loses is added to the base.

  Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
  Language Models", ACL 2025, arXiv:2410.09432. The residual, the paper's Delta W_res,
  sum w A B - (sum w A)(sum w B), equals sum w (A_k - mean A)(B_k - mean B), since the weights add
  to 1. We compute it in the latter form: C r columns, without cancellation.

  Args:
    columns: number of columns to allocate for all rounds, T C r, or T times `rank`.
    rank: rank to which the residual is cut (its best approximation); 0 = the exact residual.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    fold = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)
    return _replace(anchor, mean, weights), truncated(fold, rank) if rank else fold

  return Combine(apply, lambda adapter: room(adapter, columns))


def corrected(penalty: float) -> Combine:
  """LoRA-FAIR: the mean A is kept, the mean B is corrected towards the mean product -> [*p].

  Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
  Refinement", ICCV 2025, arXiv:2411.14961. The correction minimises
  |sum w A B - A (B + Delta)|^2 + lambda |Delta|^2, A and B being the means. We deviate in that the
  paper maximises a cosine similarity by gradient steps, while we take the closed form of least
  squares, Delta = (A^T A + lambda I)^-1 A^T R, with R the residual of `with_residual`.

  Args:
    penalty: lambda > 0, without a unit; as it goes to infinity, the result is FedAvg's.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    residual = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)

    def pair(factors, rest):
      a, b = factors['a'], factors['b']
      gram = precise_einsum('...ij,...ik->...jk', a, a)
      gram = gram + penalty * jnp.eye(gram.shape[-1], dtype=a.dtype).reshape(
        *(1,) * (gram.ndim - 2), *gram.shape[-2:])
      a_by_rest = precise_einsum('...ij,...ik->...jk', a, rest['a'])
      projected = precise_einsum('...jk,...ko->...jo', a_by_rest, rest['b'])  # A^T R
      return {'a': a, 'b': b + jnp.linalg.solve(gram, projected)}

    return _replace(anchor, map_pairs(pair, mean, residual), weights), ()

  return Combine(apply)


def _replace(anchor, adapter, weights):
  """The update [*p] that leads from the anchor to `adapter`; zero when no site has weight."""
  return jax.tree.map(
    lambda new, old: jnp.where(weights.sum() > 0, new - old, 0), adapter, anchor)

