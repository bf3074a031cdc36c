"""Sites of unlike rank in one federation.

A site k of rank r_k <= r has the first r_k columns of A [..., D_in, r] and rows of B
[..., r, D_out]. The other columns and rows are zero. They stay zero, since the gradient of each
factor is a multiple of the other factor.

On its own a site would scale its product by alpha / r_k, while the model multiplies every product
by the server's s = alpha / r. With c_k = r / r_k the site trains (A_k, B_k), and the model is given
(A_k, c_k B_k). The product and, by the chain rule, both gradients are then those of alpha / r_k, so
a site trains as it would on its own, whatever the optimiser. It sends (A_k, c_k B_k), "in the
server's scale", so that the server only averages products of equal scale. Ranks are an array
indexed by the site, so that sites of all ranks share one compiled program. The scale is ours;
truncation to the first columns is HetLoRA's (Cho et al., "Heterogeneous LoRA for Federated
Fine-tuning of On-Device Foundation Models", EMNLP 2024, arXiv:2401.06432).

The message is cut to r_k columns of A and rows of B. The compiled program instead keeps a whole
tensor with zeros beyond r_k. With the rank's axis first (`rank_first`) the cut tensor is the
beginning of the whole one, so a codec that works value by value or block by block encodes both
alike.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedmedjax.fed.factors import map_pairs
from fedmedjax.fed.types import Array, Ranks, Tree


def same_ranks() -> Ranks:
  """Every site has the server's rank: all three maps [*p] -> [*p] are the identity."""
  return Ranks(*(lambda adapter, site: adapter,) * 3)


def mixed_ranks(ranks: Sequence[int] | Array, rank: int) -> Ranks:
  """Site k has rank ranks[k]; the maps take (adapter [*p], site i32[]) -> [*p].

  Args:
    ranks: i[S], r_k, each from 1 to `rank`; an array of jax may be traced.
    rank: r of the server's adapter.
  """
  own = ranks if isinstance(ranks, jax.Array) else np.asarray(ranks, np.int32)

  def mask(adapter, site):
    has = jnp.arange(rank) < jnp.asarray(own)[site]

    def pair(factors):
      a, b = factors['a'], factors['b']
      return {
        'a': jnp.where(jnp.broadcast_to(has, a.shape), a, 0),
        'b': jnp.where(jnp.broadcast_to(has[:, None], b.shape), b, 0)}

    return map_pairs(pair, adapter)

  def scaled(adapter, factor):
    return map_pairs(lambda pair: {'a': pair['a'], 'b': pair['b'] * factor}, adapter)

  def share(site):
    return jnp.asarray(own / rank, jnp.float32)[site]

  return Ranks(
    mask, lambda adapter, site: scaled(mask(adapter, site), share(site)),
    lambda adapter, site: scaled(adapter, 1 / share(site)))


def cut(adapter: Tree, rank: int) -> Tree:
  """The shapes of the tensors that a site of rank r_k exchanges, with the rank's axis first.

  Args:
    adapter: the server's, a [..., D_in, r], b [..., r, D_out].
    rank: r_k.

  Returns:
    a [r_k, ..., D_in], b [r_k, ..., D_out], as `jax.ShapeDtypeStruct`.
  """
  def pair(factors):
    a, b = factors['a'], factors['b']
    return {
      'a': jax.ShapeDtypeStruct((rank, *a.shape[:-1]), a.dtype),
      'b': jax.ShapeDtypeStruct((rank, *b.shape[:-2], b.shape[-1]), b.dtype)}

  return map_pairs(pair, adapter)


def rank_first(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Applies `inner` to f32[r, ..., D_in] and f32[r, ..., D_out], then moves the axes back.

  The values within a site's rank are then the first of each tensor, as in the message that is cut.
  """
  inner = optax.with_extra_args_support(inner)

  def moved(adapter):
    return map_pairs(
      lambda pair: {'a': jnp.moveaxis(pair['a'], -1, 0), 'b': jnp.moveaxis(pair['b'], -2, 0)},
      adapter)

  def back(adapter):
    return map_pairs(
      lambda pair: {'a': jnp.moveaxis(pair['a'], 0, -1), 'b': jnp.moveaxis(pair['b'], 0, -2)},
      adapter)

  def update(updates, state, params=None, **extra):
    sent, state = inner.update(
      moved(updates), state, None if params is None else moved(params), **extra)
    return back(sent), state

  return optax.GradientTransformationExtraArgs(
    lambda params: inner.init(moved(params)), update)
