"""What each site of a round was worth: leave-one-out and Shapley values of its update. Ours.

A coalition K of the sites that sent something is worth v(K) = -l_V(x + sum_{k in K} w_k u_k), x
being the server's adapter before the round, u_k the updates, w_k proportional to a power of n_k and
adding to 1 over K, and l_V the validation loss in nats per supervised token; of nobody, -l_V(x).
So a value is by how much the loss falls thanks to a site. It is that of the mean of factors by
size, whatever aggregator and server optimiser the run has.

Leave-one-out: v(all) - v(all but k). Two sites of the same notes are worth nothing each by it.

Shapley, "A Value for n-Person Games", Contributions to the Theory of Games 2, 1953: the mean of
v(K and k) - v(K) over all orders in which sites may come. The values add to v(all) - v(nobody);
sites that do the same have the same, and who changes nothing has 0. On single rounds of a
federation: Song, Tong & Wei, "Profit Allocation for Federated Learning", IEEE Big Data 2019; Wang,
Rausch, Zhang, Jia & Song, "A Principled Approach to Data Valuation for Federated Learning",
arXiv:2009.06192. Of more than `MOST_EXACT` sites the mean is over random orders (Castro, Gomez &
Tejada, "Polynomial Calculation of the Shapley Value Based on Sampling", Computers & Operations
Research 36, 2009), with its standard error.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.fed.factors import join
from fedmedjax.fed.local import mean_loss
from fedmedjax.fed.types import Array, LossFn, Tree

# Sites of a round of which all 2^C coalitions are judged.
MOST_EXACT = 8


class Contributions(NamedTuple):
  """Of the sites of one round, in nats per supervised token."""

  values: Array  # f32[C], 0 for a site that sent nothing
  error: Array   # f32[C], standard error of the values, of the orders that were drawn; 0 = exact
  whole: Array   # f32[], v(all) - v(nobody)


# (members bool[Q, C] of Q coalitions -> v f32[Q], C, key) -> Contributions
Contribution = Callable[[Callable[[Array], Array], int, Array], Contributions]


def leave_one_out() -> Contribution:
  """v(all) - v(all but k) -> f32[C], of C + 2 coalitions."""
  def contributions(worth, sites, key):
    del key
    everybody = np.ones((1, sites), bool)
    found = worth(jnp.asarray(np.concatenate([~everybody, everybody, ~np.eye(sites, dtype=bool)])))
    return Contributions(
      found[1] - found[2:], jnp.zeros(sites, found.dtype), found[1] - found[0])

  return contributions


def shapley(samples: int) -> Contribution:
  """Shapley values f32[C]: of all 2^C coalitions, or of `samples` orders beyond 8 sites."""
  def contributions(worth, sites, key):
    if sites <= MOST_EXACT:
      return _exact(worth, sites)
    return _sampled(worth, sites, samples, key)

  return contributions


def _exact(worth, sites: int) -> Contributions:
  """sum over K of v(K) times (|K| - 1)! (C - |K|)! / C! for members, -|K|! (C - |K| - 1)! / C! for
  others."""
  members = (np.arange(2**sites)[:, None] >> np.arange(sites)) % 2 == 1
  size, fact = members.sum(axis=1, keepdims=True), np.vectorize(math.factorial)
  shares = np.where(
    members, fact(np.maximum(size - 1, 0)) * fact(sites - size),
    -fact(size) * fact(np.maximum(sites - size - 1, 0))) / math.factorial(sites)
  found = worth(jnp.asarray(members))
  gains = found - found[0]  # so that little of the differences is lost in rounding
  values = jnp.asarray(shares.T, gains.dtype) @ gains
  return Contributions(values, jnp.zeros_like(values), gains[-1])


def _sampled(worth, sites: int, samples: int, key) -> Contributions:
  """The mean over random orders of what each site adds to those before it."""
  places = jnp.argsort(jax.random.uniform(key, (samples, sites)), axis=1)  # of each site
  inner = (places[:, None] < jnp.arange(1, sites)[None, :, None]).reshape(-1, sites)
  both = jnp.asarray([[False] * sites, [True] * sites])
  found = worth(jnp.concatenate([both, inner]))
  ends = jnp.broadcast_to(found[None, :2], (samples, 2))
  walks = jnp.concatenate([ends[:, :1], found[2:].reshape(samples, -1), ends[:, 1:]], axis=1)
  gains = jnp.take_along_axis(jnp.diff(walks, axis=1), places, axis=1)
  error = jnp.std(gains, axis=0, ddof=1) / math.sqrt(samples)
  return Contributions(gains.mean(axis=0), error, found[1] - found[0])


class Kind(NamedTuple):
  """A way to value sites."""

  build: Callable[..., Contribution]  # of the hyper-parameters that its signature names
  coalitions: Callable[[int, int, int], int]  # see `coalitions`


# By the value of config.fed.contribution; see `experiment/methods.py`.
CONTRIBUTIONS: dict[str, Kind] = {
  'leave_one_out': Kind(leave_one_out, lambda places, sent, samples: sent + 2),
  'shapley': Kind(shapley, lambda places, sent, samples: (
    2**sent if places <= MOST_EXACT else samples * (sent - 1) + 2))}


def coalitions(kind: str, places: int, sent: int, samples: int) -> int:
  """How many coalitions of the sites that sent something are asked about; 0 for none.

  Args:
    kind: value of config.fed.contribution.
    places: C of the round, which decides whether the values are exact.
    sent: how many of them sent something.
    samples: orders that are drawn.
  """
  return CONTRIBUTIONS[kind].coalitions(places, sent, samples) if (
    sent and kind in CONTRIBUTIONS) else 0


# (loss_fn, S, SiteMap.every) -> what `contribution_program` returns
ContributionMaker = Callable[[LossFn, int, Callable], Callable[..., Contributions | tuple]]


def no_contribution(loss_fn: LossFn, num_sites: int, every: Callable) -> Callable[..., tuple]:
  """Nothing is asked of the validation set."""
  del loss_fn, num_sites, every
  return lambda *_: ()


def contribution_program(
  loss_fn: LossFn, num_sites: int, every: Callable, *, contribution: Contribution,
  size_power: float,
) -> Callable[..., Contributions]:
  """The values of a round, as one function for it.

  As many coalitions are formed and judged at once as the round has sites.

  Args:
    loss_fn: see `round.federated_algorithm`.
    num_sites: S.
    every: maps over the leading axis, `SiteMap.every`.
    contribution: of CONTRIBUTIONS.
    size_power: the power of n_k in the weights of a coalition.

  Returns:
    (state, base, updates [C, *p], sizes f32[C] or 0 for who sent nothing, val, key) -> the values.
  """

  def values(state, base, updates: Tree, sizes: Array, val, key):
    powers = jnp.where(sizes > 0, jnp.maximum(sizes, 1e-30) ** size_power, 0)

    def loss(members):
      weights = jnp.where(members, powers, 0)
      mean = tree.weighted_sum(updates, weights / jnp.maximum(weights.sum(), 1e-30))
      adapter = jax.tree.map(jnp.add, state.adapter, mean)
      return mean_loss(loss_fn, join(adapter, state.folded), base, val)

    # Apart from the keys of sites, of the aggregator and of queries.
    drawn = jax.random.fold_in(key, num_sites + 2)
    return contribution(partial(_worth, every(loss)), len(sizes), drawn)

  return values


def _worth(losses: Callable[[Array], Array], members: Array) -> Array:
  """-losses of coalitions bool[Q, C] -> f32[Q], by blocks of C."""
  count, block = members.shape
  blocks = jnp.pad(members, ((0, -count % block), (0, 0))).reshape(-1, block, block)
  return -jax.lax.map(losses, blocks).reshape(-1)[:count]
