"""Dual adapters: one of all sites and one of each site's own, added to each other.

Yang, Long, Shen, Jiang & Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models"
(FedDPA), NeurIPS 2024, arXiv:2403.19211, in its iterative form, FedDPA-T: both adapters are trained
in turns, and the global one alone is exchanged.

The adapter is a tree of two, {'global': [*p], 'local': [*p] of a rank of its own}. The model is
given the two side by side, W + s (A_g B_g + A_l B_l), s being lora.alpha / lora.rank. Even rounds
train the global adapter, without the local one in the model, and odd rounds the local one on top of
the global one. Deviations:
- A round of the paper trains first the local adapter, then the global one, and its first round the
  global one alone: the order is the same, but each of our rounds is one half.
- Both adapters count in full; the paper weighs them, with 1/2 in training and by the likeness of
  each example to a site's training examples in use.
- A site's own adapter starts from factors of its own; the paper's may start from the global one.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.factors import join, map_pairs
from fedmedjax.fed.types import Array, Sharing, Tree

GLOBAL, LOCAL = 'global', 'local'


def two_adapters(adapter: Tree, rank: int, key: Array) -> Tree:
  """{'global': adapter [*p], 'local': another of its kind}, which adds nothing at first.

  Args:
    adapter: A [..., D_in, r], B [..., r, D_out].
    rank: r_l of the local one, whose A is normal with the variance of the global A, and B zero.
    key: a random key.
  """
  pairs = iter(range(2**31))

  def own(pair):
    a, b = pair['a'], pair['b']
    scale = jnp.sqrt(jnp.mean(jnp.square(a)))
    drawn = jax.random.normal(
      jax.random.fold_in(key, next(pairs)), (*a.shape[:-1], rank), a.dtype)
    return {
      'a': (scale * drawn).astype(a.dtype),
      'b': jnp.zeros((*b.shape[:-2], rank, b.shape[-1]), b.dtype)}

  return {GLOBAL: adapter, LOCAL: map_pairs(own, adapter)}


def is_dual(adapter: Tree) -> bool:
  """Whether a tree is one of `two_adapters`, each of factors A [..., D_in, r] and B."""
  return isinstance(adapter, dict) and set(adapter) == {GLOBAL, LOCAL}


def side_by_side(adapter: Tree) -> Tree:
  """Two adapters as one of rank r + r_l, a [..., D_in, r + r_l] and b; any other as it is."""
  return join(adapter[GLOBAL], adapter[LOCAL]) if is_dual(adapter) else adapter


def in_turns(inner: Sharing) -> Sharing:
  """Even rounds train and send what `inner` says of the global adapter, odd ones the local [*p].

  Args:
    inner: of the global adapter alone; it counts its own rounds.
  """
  def split(path):
    part, _, rest = path.partition('/')
    return part == GLOBAL, rest

  def trained(path, number):
    everyones, rest = split(path)
    if not everyones:
      return number % 2 == 1
    return (number % 2 == 0) & inner.trained(rest, number // 2)

  def shared(path):
    everyones, rest = split(path)
    return everyones and inner.shared(rest)

  def shown(path, number):
    return split(path)[0] or number % 2 == 1

  return Sharing(trained, shared, shown=shown)
