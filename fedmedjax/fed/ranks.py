"""Sites of unlike rank in one federation.

A site k of rank r_k <= r holds the first r_k columns of A and rows of B; the others are zero and,
A's and B's gradients being each other's multiples, stay zero. Alone it would be scaled by
alpha / r_k, while the model multiplies every product by the server's s = alpha / r. With
c_k = r / r_k the site trains (A_k, B_k) and the model is shown (A_k, c_k B_k): the product and,
by the chain rule, both gradients are those of alpha / r_k, so a site trains as it would alone,
whatever the optimiser. What it sends is (A_k, c_k B_k), so that the server averages *scaled*
products only. Ranks are an array indexed by the site: all share one compiled program.

What travels is (A_k, c_k B_k) cut to r_k columns of A and rows of B. In the compiled program its
place is a whole tensor, zero beyond; with the rank's axis first the cut tensor is the beginning of
the whole one, and codecs that work value by value or block by block make the same of both.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedmedjax.fed.factors import map_pairs
from fedmedjax.fed.types import Ranks


def same_ranks() -> Ranks:
  """Every site has the server's rank."""
  return Ranks(*(lambda adapter, site: adapter,) * 3)


def mixed_ranks(ranks: Sequence[int], rank: int) -> Ranks:
  """Site k has rank ranks[k], 1 <= ranks[k] <= rank, the server's."""
  own = np.asarray(ranks, np.int32)

  def mask(adapter, site):
    has = jnp.arange(rank) < jnp.asarray(own)[site]

    def pair(factors):
      a, b = factors['a'], factors['b']
      return {
        'a': jnp.where(has.reshape(*(1,) * (a.ndim - 1), rank), a, 0),
        'b': jnp.where(has.reshape(*(1,) * (b.ndim - 2), rank, 1), b, 0)}

    return map_pairs(pair, adapter)

  def scaled(adapter, factor):
    return map_pairs(lambda pair: {'a': pair['a'], 'b': pair['b'] * factor}, adapter)

  def share(site):
    return jnp.asarray(own / rank, jnp.float32)[site]

  return Ranks(
    mask, lambda adapter, site: scaled(mask(adapter, site), share(site)),
    lambda adapter, site: scaled(adapter, 1 / share(site)))


def cut(adapter, rank: int):
  """The shapes of a site's adapter: `rank` columns of every A and rows of every B, first axis."""
  def pair(factors):
    a, b = factors['a'], factors['b']
    return {
      'a': jax.ShapeDtypeStruct((rank, *a.shape[:-1]), a.dtype),
      'b': jax.ShapeDtypeStruct((rank, *b.shape[:-2], b.shape[-1]), b.dtype)}

  return map_pairs(pair, adapter)


def rank_first(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`inner` on tensors whose first axis is the rank's, so that a site's own values come first."""
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
