"""Trees of arrays: leaf paths, selection, sums. A path is 'layers/q_proj/a'."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def path_string(path) -> str:
  """A jax key path as 'layers/q_proj/a'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def paths(tree) -> list[str]:
  """The path of every leaf, in flattening order."""
  return [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def select(tree, keep: Callable[[str], bool | jax.Array]):
  """Replaces by zero every leaf whose path `keep` rejects; shapes stay, and so zeroes NaN too."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.where(keep(path_string(path)), leaf, jnp.zeros_like(leaf)), tree)


def where(mask, yes, no):
  """Row by row of the leading axis: mask bool[C], leaves [C, ...]."""
  return jax.tree.map(
    lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), yes, no)


def weighted_sum(updates, weights: jax.Array):
  """sum_k w_k update_k: [C, *p], f32[C] -> [*p]; NaN in a site of weight 0 counts as 0."""

  def leaf(x):
    w = weights.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return jnp.sum(jnp.where(w > 0, w * x, 0), axis=0)

  return jax.tree.map(leaf, updates)


def choose(keep: Callable[[str], bool], yes, no):
  """Leaf by leaf: `yes` where `keep(path)`, else `no`; both trees have the same structure."""
  return jax.tree_util.tree_map_with_path(
    lambda path, a, b: a if keep(path_string(path)) else b, yes, no)


def size(tree) -> int:
  """Number of array elements."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree) -> int:
  """Bytes of all leaves, by shape and dtype (works on `jax.eval_shape` results)."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def norm(tree) -> jax.Array:
  """f32[]: Euclidean norm over all leaves."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def inner(one, other) -> jax.Array:
  """f32[]: sum of the products of two trees' entries."""
  # Not flattened: an array whose rows are on several devices would have to be on each first.
  return sum(
    jnp.tensordot(x, y, axes=x.ndim, precision='highest')
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def cosine(one, other) -> jax.Array:
  """f32[]: of the angle between two trees; 0 when either is 0."""
  return inner(one, other) / jnp.maximum(norm(one) * norm(other), 1e-30)
