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
from fedmedjax.fed.factors import _einsum, factor_pairs, map_pairs, room, stack, truncated
from fedmedjax.fed.types import Combine

# Of all methods here: both factors of every site, a server that takes the result as it is, and no
# control variates, which would follow factors that are replaced.
NEEDS = frozenset({'single_updates', 'both_factors', 'plain_server', 'no_control_variates'})
# Of those that add to the base: room is laid out at the start, for all rounds.
_FOLDING = NEEDS | {'exact_base', 'fixed_cohort', 'fixed_rounds'}


def padded_mean() -> Combine:
  """HetLoRA: the sites' factors, zero where a site has no rank, averaged factor by factor.

  Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
  EMNLP 2024, arXiv:2401.06432. Its sparsity weighting, w_k proportional to |Delta W_k|, is the
  signal `product_norms`; sites truncate to their own first columns. Left out: sites that prune
  their own rank in training.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, weighted_sum(local, weights), weights), ()

  return Combine(apply, needs=NEEDS)


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

  return Combine(apply, needs=NEEDS | {'no_error_feedback'})


def stacked(*, rank: int, cohort_size: int, rounds: int) -> Combine:
  """FLoRA: the stacked products join the base, and every round starts with a fresh adapter.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
  Adaptations", NeurIPS 2024, arXiv:2409.05976. Exact. The weights are in G only. The new A is
  drawn by the server, as adapters are at first, U(-1, 1) / sqrt(D_in), and B is 0.

  Args:
    rank, cohort_size, rounds: r, C and T; their product is the room for columns.
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

  return Combine(
    apply, lambda adapter: room(adapter, rank * cohort_size * rounds),
    # Each site's own columns are sent.
    columns=sum, needs=_FOLDING | {'no_error_feedback'})


def with_residual(
  *, rank: int, cohort_size: int, rounds: int, residual_rank: int = 0
) -> Combine:
  """FedEx-LoRA: the mean of factors, and what it loses joins the base.

  Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
  Language Models", ACL 2025, arXiv:2410.09432. The residual sum w A B - (sum w A)(sum w B) is
  sum w (A_k - mean A)(B_k - mean B), since the weights add to 1: C r columns, no cancellation.

  Args:
    rank, cohort_size, rounds: r, C and T; T C r columns are the room for exact residuals.
    residual_rank: of the residual that is sent, its best approximation; 0 = exact.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    fold = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)
    sent = truncated(fold, residual_rank) if residual_rank else fold
    return _replace(anchor, mean, weights), sent

  return Combine(
    apply, lambda adapter: room(adapter, rounds * (residual_rank or rank * cohort_size)),
    # A residual holds the mean of all in every site's columns.
    columns=lambda ranks: residual_rank or rank * len(ranks), needs=_FOLDING)


def corrected(fair_penalty: float) -> Combine:
  """LoRA-FAIR: mean A kept, mean B corrected towards the mean of the products.

  Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
  Refinement", ICCV 2025, arXiv:2411.14961. The correction minimises |sum w A B - A (B + Delta)|^2
  + lambda |Delta|^2; where the paper descends on a cosine similarity we take the least squares'
  closed form, Delta = (A^T A + lambda I)^-1 A^T R, with R the residual of `with_residual`.

  Args:
    fair_penalty: lambda > 0; infinite, it is FedAvg.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = weighted_sum(local, weights)
    residual = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)

    def pair(factors, rest):
      a, b = factors['a'], factors['b']
      gram = _einsum('...ij,...ik->...jk', a, a)
      gram = gram + fair_penalty * jnp.eye(gram.shape[-1], dtype=a.dtype).reshape(
        *(1,) * (gram.ndim - 2), *gram.shape[-2:])
      seen = _einsum('...jk,...ko->...jo', _einsum('...ij,...ik->...jk', a, rest['a']), rest['b'])
      return {'a': a, 'b': b + jnp.linalg.solve(gram, seen)}

    return _replace(anchor, map_pairs(pair, mean, residual), weights), ()

  return Combine(apply, needs=NEEDS)


def _replace(anchor, adapter, weights):
  """The update that leads from the anchor to `adapter`; none when no site has weight."""
  return jax.tree.map(
    lambda new, old: jnp.where(weights.sum() > 0, new - old, 0), adapter, anchor)

