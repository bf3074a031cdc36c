"""Aggregation of the products A_k B_k rather than of the factors.

A mean of factors loses sum_k w_k A_k B_k - (sum w A)(sum w B): docs/methods.md, section 2.
Each method here avoids that in its own way, and none forms a dense matrix [..., D_in, D_out]: a
weighted sum of products is one product of stacked factors, F = [A_1 .. A_C] [..., D_in, C r] and
G = [w_1 B_1; ..; w_C B_C] [..., C r, D_out]. The papers write B A for the transpose of our A B. The
factors are in the server's scale (`ranks.py`), so products of sites of unlike rank can be added.

What a method moves into the base is kept as columns F, G beside the adapter. The model is given
the joined adapter [A, F], [B; G], which equals the base plus s F G, s being the adapter's own
scale, while only A and B are trained. The base itself stays unchanged and is shared by all sites.
The columns are part of the server's state; their room is allocated for all T rounds at the start
and is zero until it is used.

In every method below `apply` is that of `Combine`: updates [C, *p] and weights f32[C] to the
update [*p] and the columns folded into the base, or ().

Where sites are of unlike rank, a round may have nobody who holds the last columns of the adapter.
They stay as in the anchor (`_unheld`): a mean of nothing is zero in A and in B, and of such columns
neither would ever have a gradient again.
"""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.factors import (
  factor_pairs,
  join,
  map_pairs,
  precise_einsum,
  room,
  stack,
  truncated,
)
from fedmedjax.fed.types import Array, Combine, Tree

# Of all methods here: both factors of every site, a server that takes the result as it is, and no
# control variates, which would follow factors that are replaced.
NEEDS = frozenset({'single_updates', 'both_factors', 'plain_server', 'no_control_variates'})
# A singular value that is so many times smaller than the largest is float32's rounding.
_ROUNDING = 1e-6
# Of those that add to the base: room is laid out at the start, for all rounds.
_FOLDING = NEEDS.union({'exact_base', 'fixed_cohort', 'fixed_rounds'})


def padded_mean() -> Combine:
  """HetLoRA: local factors [C, *p], zero beyond a site's rank, averaged factor by factor -> [*p].

  Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
  EMNLP 2024, arXiv:2401.06432. The paper's sparsity weighting, w_k proportional to |Delta W_k|, is
  the utility `product_norms`. Sites truncate to their own first columns, as in the paper. Left out:
  sites that prune their own rank in training.
  """
  def apply(updates, weights, *, anchor, local, **_):
    return _replace(anchor, _held_mean(local, weights, anchor), weights), ()

  return Combine(apply, needs=NEEDS)


def product_norms(*, local: Tree, **_) -> Array:
  """-log |A_k B_k|, the Frobenius norm over all matrices -> f32[C].

  As the utility of `adaptive_mean` with loss_power 1 it gives weights proportional to |A_k B_k|,
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
  less. We deviate in that the square roots of the singular values go to both factors, that only
  matrices of C r columns are decomposed (`factors.truncated`), never the dense sum, and in what
  becomes of columns without a say: the product of those that nobody holds joins the sum, and where
  the sum has a lower rank than r, the columns that are left over take A from the anchor, B being 0.

  Args:
    rank: r of the server's adapter, the papers' rank of the global LoRA.
  """
  def apply(updates, weights, *, anchor, local, **_):
    missed = map_pairs(_columns_where, anchor, _unheld(local, weights))
    found = truncated(join(stack(local, weights), missed), rank)
    return _replace(anchor, map_pairs(_refilled, found, anchor), weights), ()

  return Combine(apply, needs=NEEDS.union({'no_error_feedback'}))


def stacked(*, rank: int, cohort_size: int, rounds: int) -> Combine:
  """FLoRA: the stacked products are added to the base; every round starts with a fresh adapter.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
  Adaptations", NeurIPS 2024, arXiv:2409.05976. Exact: F G = sum_k w_k A_k B_k. The weights (the
  paper's p_k) are in G only. The server draws the new A [..., D_in, r] as a first adapter is drawn,
  U(-1, 1) / sqrt(D_in), from the round's key; the new B [..., r, D_out] is 0.

  Args:
    rank, cohort_size, rounds: r, C and T; T C r columns are allocated for all rounds.
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
    columns=sum, needs=_FOLDING.union({'no_error_feedback'}))


def with_residual(
  *, rank: int, cohort_size: int, rounds: int, residual_rank: int = 0
) -> Combine:
  """FedEx-LoRA: the mean of factors [*p]; the residual it loses is added to the base.

  Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
  Language Models", ACL 2025, arXiv:2410.09432. The residual, the paper's Delta W_res,
  sum w A B - (sum w A)(sum w B), equals sum w (A_k - mean A)(B_k - mean B), since the weights add
  to 1. We compute it in the latter form: C r columns, without cancellation.

  Args:
    rank, cohort_size, rounds: r, C and T; T C r columns are allocated for all rounds, or T times
      residual_rank.
    residual_rank: rank to which the residual is cut (its best approximation); 0 = exact.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean = tree.weighted_sum(local, weights)
    fold = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)
    sent = truncated(fold, residual_rank) if residual_rank else fold
    return _replace(anchor, _held_mean(local, weights, anchor), weights), sent

  return Combine(
    apply, lambda adapter: room(adapter, rounds * (residual_rank or rank * cohort_size)),
    # A residual holds the mean of all in every site's columns.
    columns=lambda ranks: residual_rank or rank * len(ranks), needs=_FOLDING)


def corrected(fair_penalty: float) -> Combine:
  """LoRA-FAIR: the mean A is kept, the mean B is corrected towards the mean product -> [*p].

  Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
  Refinement", ICCV 2025, arXiv:2411.14961. The correction minimises
  |sum w A B - A (B + Delta)|^2 + lambda |Delta|^2, A and B being the means. We deviate in that the
  paper maximises a cosine similarity by gradient steps, while we take the closed form of least
  squares, Delta = (A^T A + lambda I)^-1 A^T R, with R the residual of `with_residual`.

  Args:
    fair_penalty: lambda > 0, without a unit; as it goes to infinity, the result is FedAvg's.
  """
  def apply(updates, weights, *, anchor, local, **_):
    mean, whole = tree.weighted_sum(local, weights), _held_mean(local, weights, anchor)
    residual = stack(jax.tree.map(lambda x, m: x - m[None], local, mean), weights)

    def pair(factors, rest, whole):
      a = factors['a']
      gram = precise_einsum('...ij,...ik->...jk', a, a)
      *_, rank = gram.shape
      gram = gram + fair_penalty * jnp.broadcast_to(jnp.eye(rank, dtype=a.dtype), gram.shape)
      a_by_rest = precise_einsum('...ij,...ik->...jk', a, rest['a'])
      projected = precise_einsum('...jk,...ko->...jo', a_by_rest, rest['b'])  # A^T R
      # Where nobody holds a column, A is 0 and the correction too.
      return {'a': whole['a'], 'b': whole['b'] + jnp.linalg.solve(gram, projected)}

    return _replace(anchor, map_pairs(pair, mean, residual, whole), weights), ()

  return Combine(apply, needs=NEEDS)


def _unheld(local, weights):
  """bool[..., r] for every pair: columns that are zero in both factors at all sites with weight.

  `local` [C, *p] is zero where a site has no rank.
  """
  def pair(factors):
    a, b = factors['a'], factors['b']
    counts = (weights > 0).reshape(-1, *(1,) * (a.ndim - 2))
    holds = ((a != 0).any(axis=-2) | (b != 0).any(axis=-1)) & counts
    return ~holds.any(axis=0)

  return map_pairs(pair, local)


def _columns_where(factors, chosen):
  """The pair a [..., D_in, r], b [..., r, D_out] with zeros where bool[..., r] is not `chosen`."""
  return {'a': jnp.where(chosen[..., None, :], factors['a'], 0),
          'b': jnp.where(chosen[..., :, None], factors['b'], 0)}


def _held_mean(local, weights, anchor):
  """The mean of factors, [C, *p] -> [*p], with the anchor's columns where nobody holds any."""
  missed = map_pairs(_columns_where, anchor, _unheld(local, weights))
  return jax.tree.map(jnp.add, tree.weighted_sum(local, weights), missed)


def _refilled(factors, anchor):
  """A pair of falling singular values whose columns of value 0 take A from the anchor's pair.

  B is 0 there, so that the product stays and B has a gradient.
  """
  size = jnp.sum(factors['a'] ** 2, axis=-2)   # of a column: its singular value
  empty = size <= _ROUNDING * jnp.max(size, axis=-1, keepdims=True)
  return {'a': jnp.where(empty[..., None, :], anchor['a'], factors['a']),
          'b': jnp.where(empty[..., :, None], 0, factors['b'])}


def _replace(anchor, adapter, weights):
  """The update [*p] that leads from the anchor to `adapter`; zero when no site has weight."""
  return jax.tree.map(
    lambda new, old: jnp.where(weights.sum() > 0, new - old, 0), adapter, anchor)

