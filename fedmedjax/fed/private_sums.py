"""Weighted sums over sites of which differential privacy can be claimed: DP-FedAvg's parts.

McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models", ICLR
2018, arXiv:1710.06963, algorithm 1: every update is cut to the norm S, weighed by w_k = min(n_k /
w_hat, 1), and noise of standard deviation z S is added to the sum. So one site moves the sum by at
most S w_max = S, whatever its size. We divide by a number of the config (the paper's estimator
f_f), never by the sum of the weights that are there, which would tell of the sites.

Who knows the key can take the noise off again: in a federation of real sites it has to stay with
whoever adds it. And it is
float32: attacks on the last bits of such noise (Mironov, CCS 2012) are not defended against; the
discrete noise of `aggregators/private_secure.py` has no such bits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.types import Array, Tree

# (the round's key, releases so far i32[], like [*p], standard deviation f32[]) -> noise [*p]
NoiseFn = Callable[[Array, Array, Tree, Array | float], Tree]


def bounded_weights(sizes: Array, cap: float, power: float) -> Array:
  """w_k = (min(n_k, cap) / cap) ** power, f32[C] -> f32[C] in [0, 1]; 0 where n_k is 0.

  No weight depends on another site, and none is above 1: so a clipped update that is weighed by it
  has at most the norm `clip`.

  Args:
    sizes: f32[C], n_k; 0 = the site takes no part.
    cap: the size from which on all weigh 1; not looked at where `power` is 0.
    power: gamma >= 0; 0 = all sites weigh 1.

  Raises:
    ValueError: `power` is not 0 and `cap` is not above 0, so that nothing bounds the weights.
  """
  if power and not cap > 0:
    raise ValueError(f'cap={cap}: weights by size need a bound above 0')
  shares = jnp.minimum(sizes, cap) / cap if power else jnp.ones_like(sizes)
  return jnp.where(sizes > 0, shares ** power, 0.0)


def clipped(values: Tree, clip: float) -> Tree:
  """Every site's tree of [C, *p] cut to the L2 norm `clip` over all its leaves.

  A site with a number that is not finite, or so large that its norm is not, becomes zeros.
  """
  norms = jax.vmap(tree.norm)(values)
  factors = jnp.where(norms > clip, clip / jnp.maximum(norms, 1e-30), 1.0)
  finite = jnp.isfinite(norms)

  def cut(x):
    row = lambda y: y.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    return jnp.where(row(finite), row(factors).astype(x.dtype) * x, 0)

  return jax.tree.map(cut, values)


def normal(key: Array, like: Tree, deviation: Array | float) -> Tree:
  """Independent Gaussian numbers [*p] of that standard deviation; every leaf has its own key."""
  leaves, treedef = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [
    deviation * jax.random.normal(own, leaf.shape, leaf.dtype)
    for own, leaf in zip(keys, leaves, strict=True)])


def fresh_noise() -> NoiseFn:
  """Independent noise [*p] in every round, from the round's own key."""
  return lambda key, number, like, deviation: normal(key, like, deviation)
