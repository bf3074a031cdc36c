"""Aggregators that a few wrong sites cannot carry away.

A site of weight 0 or with an update that is not finite counts as absent. Sizes are what sites say
of themselves: median, trimmed mean and Krum ignore them, as their papers do.
"""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.weighted_mean import adaptive_weights, weighted_sum
from fedmedjax.fed.types import Aggregate, Aggregator

# They choose their own weights, and columns that a site lacks would be votes for 0.
_NEEDS = frozenset({'single_updates', 'own_weights', 'one_rank'})


def _stateless(choose, *needs: str) -> Aggregator:
  """choose(updates [C, *p], sizes f32[C], present bool[C]) -> (update [*p], weights f32[C])."""

  def update(updates, state, *, weights, **_):
    present = (weights > 0) & jnp.isfinite(jax.vmap(tree.norm)(updates))
    chosen, used = choose(updates, weights, present)
    return Aggregate(chosen, state, used, jnp.full_like(used, jnp.nan))

  return Aggregator(lambda adapter, num_sites: (), update, needs=_NEEDS | set(needs))


def _even(present):
  return present / jnp.maximum(present.sum(), 1).astype(jnp.float32)


def _sizes(sizes, present, size_power):
  return adaptive_weights(
    sizes, jnp.where(present, 0.0, jnp.nan), size_power=size_power, loss_power=0.0,
    temperature=1.0)


def trimmed_mean(trim: float) -> Aggregator:
  """Entry by entry, without the floor(trim * C) lowest and highest values; `median` is its end.

  Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
  2018, arXiv:1803.01498.

  Args:
    trim: beta in [0, 1/2), cut at either end.
  """
  def choose(updates, sizes, present):
    count = present.sum()
    # The small number makes floor(0.2 * 5) one whatever the rounding.
    return _middle(updates, present, jnp.floor(trim * count + 1e-4)), _even(present)

  return _stateless(choose, 'unweighted')


def median() -> Aggregator:
  """Entry by entry; of an even number of sites, the mean of the middle two. Yin et al., 2018."""

  def choose(updates, sizes, present):
    return _middle(updates, present, (jnp.maximum(present.sum(), 1) - 1) // 2), _even(present)

  return _stateless(choose, 'unweighted')


def _middle(updates, present, cut):
  """The mean of the sorted values of those present but for `cut` at either end, [C, *p] -> [*p]."""
  count = present.sum()

  def leaf(x):
    column = lambda mask: mask.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    ordered = jnp.sort(jnp.where(column(present), x, jnp.inf), axis=0)
    place = jnp.arange(x.shape[0])
    inside = (place >= cut) & (place < count - cut)
    total = jnp.where(column(inside), ordered, 0).sum(axis=0)
    return total / jnp.maximum(inside.sum(), 1).astype(x.dtype)

  return jax.tree.map(leaf, updates)


def geometric_median(*, size_power: float, smoothing: float = 1e-6, steps: int = 64) -> Aggregator:
  """argmin_v sum_k a_k |v - update_k|, by Weiszfeld's iteration from the mean.

  Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), IEEE Transactions on Signal
  Processing 70, 2022, arXiv:1912.13445, algorithm 2: beta_k = a_k / max(nu, |v - u_k|),
  v = sum beta u / sum beta. The paper takes a few steps; ours are enough to converge, and cost no
  communication.

  Args:
    size_power: a_k is proportional to n_k to this power.
    smoothing: nu, relative to the mean norm of the updates.
    steps: iterations.
  """
  def choose(updates, sizes, present):
    start = _sizes(sizes, present, size_power)
    norms = jnp.where(present, jax.vmap(tree.norm)(updates), 0)
    least = smoothing * norms.sum() / jnp.maximum(present.sum(), 1) + 1e-30

    def step(_, weights):
      centre = weighted_sum(updates, weights)
      closeness = start / jnp.maximum(_distance(updates, centre), least)
      closeness = jnp.where(present, closeness, 0)
      return closeness / jnp.maximum(closeness.sum(), 1e-30)

    weights = jax.lax.fori_loop(0, steps, step, start)
    return weighted_sum(updates, weights), weights

  return _stateless(choose)


def _distance(updates, centre):
  return jax.vmap(lambda one: tree.norm(jax.tree.map(jnp.subtract, one, centre)))(updates)


def krum(*, faulty: int, kept: int = 1) -> Aggregator:
  """The update (Krum), or the plain mean of the `kept` updates (Multi-Krum), nearest to others.

  Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
  NeurIPS 2017; preprint "Byzantine-Tolerant Machine Learning", arXiv:1703.02757. The score
  of a site is the sum of squared distances to its n - f - 2 nearest others; n >= 2 f + 3 is asked
  for. Of fewer sites present than that, at most n - f are kept and at least one.

  Args:
    faulty: f, sites that may send anything.
    kept: m, 1 <= m <= n - f.
  """
  def choose(updates, sizes, present):
    # One row of distances at a time: all at once would be C^2 adapters.
    squares = jax.lax.map(lambda one: _distance(updates, one) ** 2, updates)
    count = present.shape[0]
    other = present[None, :] & present[:, None] & ~jnp.eye(count, dtype=bool)
    nearest = jnp.sort(jnp.where(other, squares, jnp.inf), axis=1)
    neighbours = jnp.maximum(present.sum() - faulty - 2, 1)
    counted = (jnp.arange(count) < neighbours)[None, :]
    score = jnp.where(counted, nearest, 0).sum(axis=1)
    # Those present first: one without a neighbour scores infinity, as the absent do.
    place = jnp.argsort(jnp.lexsort((score, ~present)))
    weights = _even((place < jnp.clip(present.sum() - faulty, 1, kept)) & present)
    return weighted_sum(updates, weights), weights

  return _stateless(choose, 'unweighted')


def clipped_mean(*, norm_limit: float, size_power: float) -> Aggregator:
  """The mean of updates, longer ones than `norm_limit` median norms of the cohort shortened.

  Sun et al., "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, with a bound M that
  follows the cohort, since updates shorten as training goes on.

  Args:
    norm_limit: M over the median norm; infinite, it is FedAvg.
    size_power: power of n_k in the weights.
  """
  def choose(updates, sizes, present):
    norms = jax.vmap(tree.norm)(updates)
    bound = norm_limit * jnp.nanmedian(jnp.where(present, norms, jnp.nan))
    factor = jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-30))
    weights = _sizes(sizes, present, size_power)
    return weighted_sum(updates, jnp.where(weights > 0, weights * factor, 0)), weights

  return _stateless(choose)
