"""Sites of unlike rank in one federation.

A site k of rank r_k <= r holds the first r_k columns of A and rows of B; the others are zero and,
A's and B's gradients being each other's multiples, stay zero. Alone it would be scaled by
alpha / r_k, while the model multiplies every product by the server's s = alpha / r. With
c_k = r / r_k the site trains (A_k, B_k) and the model is shown (A_k, c_k B_k): the product and,
by the chain rule, both gradients are those of alpha / r_k, so a site trains as it would alone,
whatever the optimiser. What it sends is (A_k, c_k B_k), so that the server averages *scaled*
products only. Ranks are an array indexed by the site: all share one compiled program.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedmedjax.fed.products import map_pairs
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
