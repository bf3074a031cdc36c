"""Clustered adapters: sites of like updates share one, and the server keeps G of them.

Wang, Bian, Zhang & Xu, "Adaptive LoRA Experts Allocation and Selection for Federated Fine-Tuning"
(FedLEASE), NeurIPS 2025, arXiv:2509.15087. The paper's: sites train from the same adapter; they are
grouped by agglomerative clustering of the distances d(i, j) = mean over layers of
1 - cos(B_i, B_j), since B tells tasks apart and A does not; each group's adapter is the mean of its
members', and from then on a group trains among itself. G is the paper's M.
Deviations:
- G is given; the paper chooses it by silhouettes.
- Each site answers with its group's adapter alone; the paper mixes several by a router.
- Of each layer and matrix the update of B counts, which is B itself where B starts at 0; linkage is
  by averages; means are the aggregator's, by size where it is so.
- A site that is not heard in the first round that changes something joins the largest group, ours.
- Adapters without factors are compared by all their leaves.
Groups are numbered by their lowest site.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.anchors import Anchors, ServerHalf
from fedmedjax.fed.factors import precise_einsum
from fedmedjax.fed.types import Array, FedState, Tree


class Clusters(NamedTuple):
  """Which of the server's adapters [G, *p] is a site's."""

  of: Array     # i32[S], from 0
  found: Array  # bool[], whether sites have been grouped yet; before that all are of group 0


def clustered(groups: int) -> Anchors:
  """The server has adapters [G, *p], optimisers and aggregators [G, ...]; with G = 1 it is FedAvg.

  All sites have to take part in a round, since they are grouped once.

  Args:
    groups: G.
  """
  def init(state, num_sites):
    several = partial(jax.tree.map, lambda x: jnp.repeat(jnp.asarray(x)[None], groups, axis=0))
    return state._replace(
      adapter=several(state.adapter), server_opt=several(state.server_opt),
      aggregator=several(state.aggregator),
      anchors=Clusters(jnp.zeros(num_sites, jnp.int32), jnp.bool_(False)))

  def server(half, state, sent, weight, cohort):
    of, found = state.anchors
    now = jnp.where(found, of[cohort], similar(distances(sent), weight > 0, groups))
    new, metrics = _by_group(half, state, weight, now, groups)
    some = (metrics['weights'] > 0).any()
    return new._replace(anchors=Clusters(
      jnp.where(some, of.at[cohort].set(now), of), found | some)), metrics

  return Anchors(
    init, lambda state, delay, cohort: state, adapter_of, lambda sent, delay: sent, server)


def adapter_of(state: FedState, site: Array | int) -> Tree:
  """The adapter [*p] of the site's group."""
  return jax.tree.map(lambda x: x[state.anchors.of[site]], state.adapter)


def has_clusters(state: FedState) -> bool:
  """Whether the server has adapters [G, *p]."""
  return isinstance(state.anchors, Clusters)


def members_weight(state: FedState, weights: Array) -> Array:
  """f32[S] -> f32[G], the sum over the sites of each group."""
  number = len(jax.tree.leaves(state.adapter)[0])
  return jax.ops.segment_sum(jnp.asarray(weights), state.anchors.of, number)


def _by_group(
  half: ServerHalf, state: FedState, weight: Array, now: Array, groups: int
) -> tuple[FedState, dict]:
  """The server's half for each group i32[C], and what is reported of all.

  A site's weight is its share of its group, times the group's share of n_k f32[C]. Of the steps the
  norm over all groups is told, of cosine and gap the worst.
  """
  def one(inputs):
    number, adapter, server_opt, aggregator = inputs
    new, metrics = half(state._replace(
      adapter=adapter, server_opt=server_opt, aggregator=aggregator), now == number)
    return (new.adapter, new.server_opt, new.aggregator), new.round, metrics

  (adapter, server_opt, aggregator), rounds, found = jax.lax.map(
    one, (jnp.arange(groups), state.adapter, state.server_opt, state.aggregator))
  useful = (found['weights'] > 0).any(axis=1)
  members = now[None] == jnp.arange(groups)[:, None]
  sizes = jnp.where(useful, (members * weight[None]).sum(axis=1), 0)
  share = sizes / jnp.maximum(sizes.sum(), 1e-30)
  own = {key: found[key][now, jnp.arange(len(now))] for key in (
    'validation_loss', 'update_norm', 'cosine')}
  gap = jnp.where(useful & ~jnp.isnan(found['product_gap']), found['product_gap'], -1).max()
  return state._replace(
    round=rounds.max(), adapter=adapter, server_opt=server_opt, aggregator=aggregator), own | {
    'weights': share @ found['weights'],
    'step_norm': jnp.sqrt((found['step_norm']**2).sum()),
    'expected_gap': jnp.sqrt((found['expected_gap']**2).sum()),
    'step_cosine': jnp.min(found['step_cosine'], where=useful, initial=1.0),
    'product_gap': jnp.where(gap < 0, jnp.nan, gap), 'cluster': now}


def distances(sent: Tree) -> Array:
  """Mean over layers and matrices of 1 - cos(B_i, B_j) -> f32[C, C]; updates [C, *p].

  A B of zeros is at distance 1 from all.
  """
  leaves = zip(tree.paths(sent), jax.tree.leaves(sent), strict=True)
  own = [leaf for path, leaf in leaves if path.endswith('/b')] or jax.tree.leaves(sent)

  def of_layers(leaf):
    # Axes in front of a factor's two are its layers.
    layers = math.prod(leaf.shape[1:-2])
    rows = leaf.reshape(leaf.shape[0], layers, -1)
    unit = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
    return 1 - precise_einsum('ilx,jlx->lij', unit, unit)

  return jnp.concatenate([of_layers(leaf) for leaf in own]).mean(axis=0)


def similar(distance: Array, heard: Array, groups: int) -> Array:
  """Agglomerative clustering by average linkage: the nearest two are joined until G are left.

  Args:
    distance: f32[C, C].
    heard: bool[C]; the others join the largest group.
    groups: G.

  Returns:
    i32[C], numbers of groups, in the order of their first members.
  """
  count = len(heard)
  numbers = jnp.arange(count)
  apart = heard[:, None] & heard[None] & (numbers[:, None] != numbers[None])

  def join(_, carry):
    distance, size, label, left = carry
    # The first of equals, so that one < other.
    one, other = jnp.divmod(jnp.argmin(distance), count)
    both = (size[one] * distance[one] + size[other] * distance[other]) / (size[one] + size[other])
    both = both.at[one].set(jnp.inf)
    joined = distance.at[one].set(both).at[:, one].set(both)
    joined = joined.at[other].set(jnp.inf).at[:, other].set(jnp.inf)
    then = (
      joined, size.at[one].add(size[other]), jnp.where(label == other, one, label), left - 1)
    return jax.tree.map(lambda a, b: jnp.where(left > groups, a, b), then, carry)

  _, _, label, _ = jax.lax.fori_loop(0, max(count - 1, 0), join, (
    jnp.where(apart, distance, jnp.inf), jnp.ones(count), numbers, heard.sum()))
  first = heard & (label == numbers)
  group = (jnp.cumsum(first) - 1)[label]
  members = (heard[:, None] & (group[:, None] == jnp.arange(groups)[None])).sum(axis=0)
  return jnp.where(heard, group, jnp.argmax(members)).astype(jnp.int32)
