"""Means of factors that are written in one gauge: FedRot-LoRA and FedSVD.

(A, B) and (A G, G^-1 B) are one product. A mean of factors is a mean of products only as far as the
sites write theirs alike. The papers write B A for the transpose of our A B.

Zhang, Kim, Cha & Vikalo, "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", ICML
2026, arXiv:2602.23638: every site's pair is turned by a rotation R_k, (A_k R_k, R_k^T B_k), that
brings one of its factors as near as can be to the same factor of the server's adapter; then factors
are averaged. The body of the paper could not be read; its abstract and the description of its
public code were. That the reference is A, the rotation a proper one, and that a weaker one is
(1 - lambda) I + lambda R made a rotation again, is as in the code.

Lee, Park, Lee, Wagner, Seong, Lee & Hwang, "FedSVD: Adaptive Orthogonalization for Private
Federated Learning with LoRA", NeurIPS 2025, arXiv:2505.12805: sites train B alone, and the server
writes the product of A and the mean B anew: A becomes orthonormal, its left singular vectors, and B
is what is left, the singular values times the right ones. The product stays what it was. Known from
its abstract; that it happens in every round, and that the first round has the A that was drawn, is
ours.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.aggregators.products import NEEDS
from fedmedjax.fed.aggregators.weighted_mean import factor_mean
from fedmedjax.fed.factors import map_pairs, precise_einsum
from fedmedjax.fed.types import Array, Combine, Tree

# Share of the largest singular value by which I is preferred among rotations that fit as well.
_UNDECIDED = 1e-6


def nearest_rotation(matrix: Array) -> Array:
  """The R with det R = 1 of the largest trace of R^T M: f32[..., r, r] -> f32[..., r, r].

  U diag(1, .., 1, det U V^T) V^T of the SVD of M. With M = A_k^T A it is the rotation that brings
  A_k R nearest to A (Schoenemann, Psychometrika 31, 1966; Kabsch, Acta Crystallographica A32, 1976,
  for the sign). Where M says nothing of some directions, those stay as they are (ours).
  """
  rank = matrix.shape[-1]
  identity = jnp.broadcast_to(jnp.eye(rank, dtype=matrix.dtype), matrix.shape)
  size = jnp.linalg.norm(matrix, axis=(-2, -1), keepdims=True)
  u, _, v = jnp.linalg.svd(matrix + jnp.where(size > 0, _UNDECIDED * size, 1.0) * identity)
  turned = jnp.linalg.det(precise_einsum('...ij,...jk->...ik', u, v))
  signs = jnp.ones_like(matrix[..., 0]).at[..., -1].set(jnp.where(turned < 0, -1.0, 1.0))
  return precise_einsum('...ij,...jk->...ik', u * signs[..., None, :], v)


def aligned(alignment: float) -> Combine:
  """FedRot-LoRA: sum_k w_k (A_k R_k, R_k^T B_k), A_k R_k nearest to the server's A -> [*p].

  We deviate in that the server turns the factors, where the paper's sites do so before they send
  them. The sum is the same, since both know the server's A; but a sum of masked updates cannot be
  turned any more.

  Args:
    alignment: the strength lambda in [0, 1]; 0 = FedAvg.
  """
  def apply(updates, weights, *, anchor, local, **_):
    def pair(factors, reference):
      towards = nearest_rotation(
        precise_einsum('c...di,...dj->c...ij', factors['a'], reference['a']))
      identity = jnp.broadcast_to(
        jnp.eye(towards.shape[-1], dtype=towards.dtype), towards.shape)
      # A weaker rotation is none before it is made one again.
      by = nearest_rotation((1 - alignment) * identity + alignment * towards)
      return {'a': precise_einsum('...di,...ij->...dj', factors['a'], by),
              'b': precise_einsum('...ij,...io->...jo', by, factors['b'])}

    turned = map_pairs(pair, local, anchor)
    moved = jax.tree.map(lambda new, old: new - old[None], turned, anchor)
    return factor_mean().apply(moved, weights, anchor=anchor, local=turned, key=None)

  return Combine(apply, needs=frozenset({
    'single_updates', 'both_factors', 'no_control_variates', 'no_error_feedback', 'one_rank'}))


def orthogonalised(total: Combine) -> Combine:
  """FedSVD: the mean of factors, written with an orthonormal A and falling rows of B -> [*p].

  Args:
    total: how the mean is formed, `factor_mean` or `secure.masked_mean`: of the sites' updates it
      needs the sum alone.
  """
  def apply(updates, weights, *, anchor, local, key):
    mean, fold = total.apply(updates, weights, anchor=anchor, local=local, key=key)

    def rewritten(factors, move):
      pair = {name: factors[name] + move[name] for name in 'ab'}
      return jax.tree.map(jnp.subtract, _singular(pair), factors)

    moved = map_pairs(rewritten, anchor, mean)
    return jax.tree.map(lambda x: jnp.where(weights.sum() > 0, x, 0), moved), fold

  # All but what the products themselves would need of single updates.
  return Combine(apply, needs=(NEEDS - {'single_updates', 'both_factors'}) | {
    'moved_pairs', 'no_error_feedback'})


def _singular(pair: Tree) -> Tree:
  """(U, S V^T) of the SVD of A B, a [..., D_in, r], b [..., r, D_out], without the dense product.

  U has orthonormal columns, also where S is 0: those are within the span of A's. Where r is larger
  than D_in, the columns that are too many are 0.
  """
  rank = pair['a'].shape[-1]
  q_left, left = jnp.linalg.qr(pair['a'])
  q_right, right = jnp.linalg.qr(jnp.swapaxes(pair['b'], -1, -2))
  u, s, v = jnp.linalg.svd(precise_einsum('...ij,...kj->...ik', left, right))
  kept = s.shape[-1]
  rows = s[..., :, None] * precise_einsum('...ri,...oi->...ro', v[..., :kept, :], q_right)

  def padded(x, axis):
    missing = [(0, rank - x.shape[axis]) if i == x.ndim + axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, missing)

  return {'a': padded(precise_einsum('...di,...ir->...dr', q_left, u), -1), 'b': padded(rows, -2)}
