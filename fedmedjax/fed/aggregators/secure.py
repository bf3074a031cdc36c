"""Secure aggregation: the server is given the sum of the cohort's weighted updates, no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017:
site u sends x_u + sum_v PRG(s_uv) - sum_v PRG(s_vu) modulo R, where every mask PRG(s_uv) is added
by u and subtracted by v, so that all cancel in the sum. Here R = 2^32 and x_u is w_u update_u in
fixed point. As in Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020, a site shares masks with k neighbours on a circle in random order, not with everyone.

The round: a site that has trained sends its weight n_u and its update's largest magnitude in the
clear; the server answers with w_u and the step of the fixed point, for which no sum can overflow;
then come the masked messages. A site that breaks down does so before the first of these, so that
masks are shared among those who send.

What is computed is what the server would compute. Left out, for it does not change the sum: how
pairs agree on keys (they follow from the round's key here) and the secret shares from which masks
of a site that is lost after masking are recovered, with the threshold below which a round is
given up. All sites are simulated in one process, which knows every update: `update_norm`, `cosine`
and `product_gap` are the simulator's view, which no server has. The losses of training and the norm
of what was learnt are what sites tell in their headers, in the clear.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import Combine

# k, even: with up to 9 sites everyone shares a mask with everyone.
NEIGHBOURS = 8
# Of the largest sum; one more than that has the sign, and one is left for rounding.
_BITS = 30


def masked_mean() -> Combine:
  """sum_k w_k update_k, of which the server sees masked messages and their sum only.

  It differs from `aggregate.factor_mean` by at most C / 2 steps of the fixed point and float32's
  rounding. An update of a site with weight that is not finite leaves no sum, as it would there.
  """
  def apply(updates, weights, *, key, **_):
    step = fixed_point_step(updates, weights)
    sent = messages(updates, weights, step, key)
    total = jax.tree.map(lambda x: x.sum(axis=0, dtype=jnp.uint32), sent)
    return jax.tree.map(
      lambda x, like: signed(x).astype(like.dtype) * step, total, updates), ()

  return Combine(apply)


def signed(x):
  """Numbers modulo 2^32 as those between -2^31 and 2^31."""
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def fixed_point_step(updates, weights):
  """f32[]: sum_k w_k max |update_k| / 2^30, so that no entry of the sum can leave 31 bits."""
  largest = jnp.max(jnp.stack([
    jnp.max(jnp.abs(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(updates)]), axis=0)
  bound = jnp.where(weights > 0, weights * largest, 0).sum()
  return jnp.maximum(bound / 2 ** _BITS, 1e-30)


def messages(updates, weights, step, key):
  """What each site sends: uint32 [C, *p]; zeros of one that has no weight.

  Args:
    updates: [C, *p].
    weights: f32[C].
    step: f32[] of the fixed point.
    key: of the round.
  """
  half = NEIGHBOURS // 2
  after, before = neighbours(weights > 0, key)

  def add_masks(site, after, before, update):
    def mask(one, other, distance):
      pair = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, distance), one), other)
      leaves, treedef = jax.tree.flatten(update)
      return treedef.unflatten([
        jax.random.bits(leaf_key, leaf.shape, jnp.uint32)
        for leaf_key, leaf in zip(jax.random.split(pair, len(leaves)), leaves, strict=True)])

    def body(distance, message):
      return jax.tree.map(
        lambda x, plus, minus: x + plus - minus, message, mask(site, after[distance], distance),
        mask(before[distance], site, distance))

    return jax.lax.fori_loop(0, half, body, update)

  def one(inputs):
    site, weight, after, before, update = inputs
    fixed = jax.tree.map(
      lambda x: jax.lax.bitcast_convert_type(
        jnp.round(weight * x / step).astype(jnp.int32), jnp.uint32), update)
    masked = add_masks(site, after, before, fixed)
    return jax.tree.map(lambda x: jnp.where(weight > 0, x, jnp.uint32(0)), masked)

  # Site after site: masks are as large as updates.
  return jax.lax.map(one, (jnp.arange(len(weights)), weights, after, before, updates))


def neighbours(sends, key):
  """Those who send, on a circle in random order: the k / 2 after and before each, i32[C, k / 2].

  Of fewer than k + 1 some come twice, with masks of their own, or a site is its own neighbour,
  whose masks cancel at once; who does not send has neighbours without a meaning.

  Args:
    sends: bool[C].
  """
  count = jnp.maximum(sends.sum(), 1)
  chance = jax.random.uniform(jax.random.fold_in(key, len(sends)), sends.shape)
  order = jnp.argsort(jnp.where(sends, chance, 2.0))
  place = jnp.argsort(order)
  distance = jnp.arange(1, NEIGHBOURS // 2 + 1)[None]
  return order[(place[:, None] + distance) % count], order[(place[:, None] - distance) % count]
