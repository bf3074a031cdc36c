"""Robust aggregators: the result stays bounded when a few sites send arbitrary updates.

All have the signature of `Aggregator.update`: updates [C, *p] and sizes f32[C] to one update
[*p], and keep no state. A site of weight 0 or with an update that is not finite counts as absent.
The sizes n_k are the sites' own claims, so median, trimmed mean and Krum ignore them, as their
papers do.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.weighted_mean import size_weights
from fedmedjax.fed.types import Aggregate, Aggregator, Array, Tree

# They choose their own weights, and columns that a site lacks would be votes for 0.
_NEEDS = frozenset({'single_updates', 'own_weights', 'one_rank'})

class Choose(Protocol):
  """One robust rule, [C, *p] -> [*p]."""

  def __call__(self, updates: Tree, sizes: Array, present: Array, /) -> tuple[Tree, Array]:
    """(updates [C, *p], sizes f32[C], present bool[C]) -> (update [*p], weights f32[C])."""


def _stateless(choose: Choose, *needs: str) -> Aggregator:
  """The aggregator without state that applies `choose` to the sites that are present."""

  def update(updates, state, *, weights, **_):
    present = (weights > 0) & jnp.isfinite(jax.vmap(tree.norm)(updates))
    chosen, used = choose(updates, weights, present)
    return Aggregate(chosen, state, used, jnp.full_like(used, jnp.nan))

  return Aggregator(lambda adapter, num_sites: (), update, needs=_NEEDS.union(needs))


def _even(present):
  """bool[C] -> f32[C]: equal weights of the sites that are present, sum 1."""
  return present / jnp.maximum(present.sum(), 1).astype(jnp.float32)


def trimmed_mean(trim: float) -> Aggregator:
  """Entry by entry the mean without the floor(trim * C) lowest and highest, [C, *p] -> [*p].

  As trim goes to 1/2 it becomes the `median`. C counts the sites that are present.
  Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
  2018, arXiv:1803.01498, definition 2.

  Args:
    trim: the paper's beta in [0, 1/2), the share of sites cut at either end.
  """
  def choose(updates, sizes, present):
    count = present.sum()
    # The small number makes floor(0.2 * 5) one whatever the rounding.
    return _middle(updates, present, jnp.floor(trim * count + 1e-4)), _even(present)

  return _stateless(choose, 'unweighted')


def median() -> Aggregator:
  """Entry by entry the median, [C, *p] -> [*p]; of an even number, the mean of the middle two.

  Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
  2018, arXiv:1803.01498, definition 1.
  """

  def choose(updates, sizes, present):
    return _middle(updates, present, jnp.maximum((present.sum() - 1) // 2, 0)), _even(present)

  return _stateless(choose, 'unweighted')


def _middle(updates, present, cut):
  """Entry by entry the mean of the present sites' values without `cut` at either end of the order.

  updates [C, *p], present bool[C], cut f32[] or i32[] -> [*p].
  """
  count = present.sum()

  def leaf(x):
    column = lambda mask: mask.reshape(-1, *(1,) * (x.ndim - 1))  # noqa: E731
    ordered = jnp.sort(jnp.where(column(present), x, jnp.inf), axis=0)
    place = jnp.arange(len(x))
    inside = (place >= cut) & (place < count - cut)
    total = jnp.where(column(inside), ordered, 0).sum(axis=0)
    return total / jnp.maximum(inside.sum(), 1).astype(x.dtype)

  return jax.tree.map(leaf, updates)


def geometric_median(*, size_power: float, smoothing: float = 1e-6, steps: int = 64) -> Aggregator:
  """argmin_v sum_k a_k |v - update_k|, [C, *p] -> [*p], by Weiszfeld's iteration from the mean.

  Pillutla et al., "Robust Aggregation for Federated Learning" (RFA), IEEE Transactions on Signal
  Processing 70, 2022, arXiv:1912.13445, algorithm 2: beta_k = a_k / max(nu, |v - u_k|),
  v = sum beta u / sum beta. We deviate in the number of steps: the paper takes a few, each by a
  secure sum; ours all run on the server, without communication, and are enough to converge.

  Args:
    size_power: a_k (the paper's alpha_k) is proportional to n_k to this power.
    smoothing: nu, as a multiple of the mean norm of the updates.
    steps: number of iterations, the paper's R.
  """
  def choose(updates, sizes, present):
    start = size_weights(sizes, present, size_power)
    least_distance = smoothing * jnp.mean(jax.vmap(tree.norm)(updates), where=present) + 1e-30

    def step(_, weights):
      centre = tree.weighted_sum(updates, weights)
      closeness = start / jnp.maximum(_distance(updates, centre), least_distance)
      closeness = jnp.where(present, closeness, 0)
      return closeness / jnp.maximum(closeness.sum(), 1e-30)

    weights = jax.lax.fori_loop(0, steps, step, start)
    return tree.weighted_sum(updates, weights), weights

  return _stateless(choose)


def _distance(updates, centre):
  """[C, *p], [*p] -> f32[C]: the Euclidean distance of each update to the centre."""
  return jax.vmap(lambda update: tree.norm(jax.tree.map(jnp.subtract, update, centre)))(updates)


def krum(*, faulty: int, kept: int = 1) -> Aggregator:
  """The update nearest to the others (Krum), or the mean of several (Multi-Krum): -> [*p].

  Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
  NeurIPS 2017; preprint "Byzantine-Tolerant Machine Learning", arXiv:1703.02757. The score
  of a site is the sum of squared distances to its n - f - 2 nearest others, n being the sites that
  are present; the lowest scores are taken. The paper requires n >= 2 f + 3. Where a round has
  fewer sites, at most n - f and at least one are taken.

  Args:
    faulty: the paper's f, the number of sites that may send anything.
    kept: the paper's m, how many updates are averaged, 1 <= m <= n - f; 1 = Krum.
  """
  def choose(updates, sizes, present):
    # One row of distances at a time: all at once would take the memory of C^2 adapters.
    squares = jax.lax.map(lambda update: _distance(updates, update) ** 2, updates)
    count = len(present)
    other = present[None, :] & present[:, None] & ~jnp.eye(count, dtype=bool)
    nearest = jnp.sort(jnp.where(other, squares, jnp.inf), axis=1)
    neighbours = jnp.maximum(present.sum() - faulty - 2, 1)
    counted = (jnp.arange(count) < neighbours)[None, :]
    score = jnp.sum(nearest, axis=1, where=counted)
    # Sorted by presence first: a lone present site scores infinity, as the absent ones do.
    place = jnp.argsort(jnp.lexsort((score, ~present)))
    weights = _even((place < jnp.clip(present.sum() - faulty, 1, kept)) & present)
    return tree.weighted_sum(updates, weights), weights

  return _stateless(choose, 'unweighted')


def clipped_mean(*, norm_limit: float, size_power: float) -> Aggregator:
  """Updates longer than a bound are shortened to it, then averaged, [C, *p] -> [*p].

  Sun et al., "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, norm thresholding.
  We deviate in that the bound M is not constant but a multiple of the cohort's median norm, since
  updates become shorter as training goes on.

  Args:
    norm_limit: M divided by the median norm of the cohort's updates; infinite = FedAvg.
    size_power: power of n_k in the weights.
  """
  def choose(updates, sizes, present):
    norms = jax.vmap(tree.norm)(updates)
    bound = norm_limit * jnp.nanmedian(jnp.where(present, norms, jnp.nan))
    factor = jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-30))
    weights = size_weights(sizes, present, size_power)
    return tree.weighted_sum(updates, weights * factor), weights

  return _stateless(choose)
