"""RAVAN: an adapter of several heads, of which only small cores and their scalings are trained.

Raje, Askin, Jhunjhunwala & Joshi, "Ravan: Multi-Head Low-Rank Adaptation for Federated
Fine-Tuning", NeurIPS 2025, arXiv:2506.05568: the change of a matrix is sum_i s_i B_i H_i A_i, where
the bases A_i and B_i are frozen, and sites train the cores H_i [r, r] and numbers s_i. What is sent
is s_i H_i, so that the mean of what is sent gives the mean of the products, and h heads reach the
rank h r with h r^2 numbers. The paper writes B H A for the transpose of our A H B.

Known from the abstract. Ours: the bases are orthonormal over all heads as far as the width allows,
drawn from normal numbers by QR; H = 0 and s = 1 at the start, so that the first adapter changes
nothing. Left out: sites that train a few of the heads only.

To the model it is a LoRA of rank h r: A = [A_1 .. A_h], and B has the rows s_i H_i B_i (`shown`).
Nothing else of the model, of files and of prediction knows of heads.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def orthonormal(key: Array, front: tuple[int, ...], width: int, rank: int, heads: int) -> Array:
  """f32[*front, heads, width, rank], columns of length 1 that are orthogonal to each other.

  Of as many heads together as the width has room for; where the rank itself is larger than the
  width, the columns that are too many are 0.
  """
  together = max(1, min(heads, width // rank))
  groups = -(-heads // together)
  drawn = jax.random.normal(key, (*front, groups, width, together * rank))
  q, _ = jnp.linalg.qr(drawn)
  q = jnp.pad(q, [*[(0, 0)] * (q.ndim - 1), (0, together * rank - q.shape[-1])])
  apart = q.reshape(*front, groups, width, together, rank)
  apart = jnp.moveaxis(apart, -2, -3).reshape(*front, groups * together, width, rank)
  return apart[..., :heads, :, :]


def with_heads(key: Array, adapter: dict, heads: int) -> dict:
  """A fresh adapter with heads, of the shapes of a plain one.

  Args:
    key: of the draw of the bases.
    adapter: {'layers': {projection: {'a': [L, D_in, r], 'b': [L, r, D_out]}}}; values are not
      looked at.
    heads: h.

  Returns:
    {'layers': {projection: {'a': f32[L, D_in, h r], 'b': f32[L, h r, D_out], 'h': f32[L, h, r, r],
    's': f32[L, h]}}}.
  """
  layers = {}
  for number, (name, pair) in enumerate(sorted(adapter['layers'].items())):
    keys = jax.random.split(jax.random.fold_in(key, number))
    *front, d_in, rank = pair['a'].shape
    bases = [orthonormal(one, tuple(front), width, rank, heads) for one, width in zip(
      keys, (d_in, pair['b'].shape[-1]), strict=True)]
    layers[name] = {
      'a': jnp.moveaxis(bases[0], -3, -2).reshape(*front, d_in, heads * rank),
      'b': jnp.swapaxes(bases[1], -1, -2).reshape(*front, heads * rank, -1),
      'h': jnp.zeros((*front, heads, rank, rank)), 's': jnp.ones((*front, heads))}
  return {'layers': layers}


def shown(adapter: dict) -> dict:
  """The LoRA that an adapter with heads is to the model, a [L, D_in, h r] and b [L, h r, D_out].

  The bases have no gradient. Without layers, as of a model before training, there are none here.
  """
  def pair(node):
    a, b, h, s = (node[name] for name in 'abhs')
    heads, rank = h.shape[-3], h.shape[-1]
    rows = jax.lax.stop_gradient(b).reshape(*b.shape[:-2], heads, rank, b.shape[-1])
    rows = jnp.einsum('...hij,...hjo->...hio', s[..., None, None] * h, rows)
    return {'a': jax.lax.stop_gradient(a), 'b': rows.reshape(b.shape)}

  return {key: {name: pair(node) for name, node in layers.items()}
          for key, layers in adapter.items()}
