"""Secure aggregation: the server is given the sum of the cohort's weighted updates, no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017:
site u sends x_u + sum_v PRG(s_uv) - sum_v PRG(s_vu) modulo R, where every mask PRG(s_uv) is added
by u and subtracted by v, so that all cancel in the sum. Here R = 2^32 and x_u is w_u update_u in
fixed point. As in Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020, a site shares masks with k neighbours on a circle in random order, not with everyone.

The protocol of a round: a site that has trained sends its weight n_u and its update's largest
magnitude in the clear; the server answers with w_u and the step of the fixed-point numbers, chosen
so that no sum can overflow; then the sites send masked messages. A simulated site that breaks down
does so before its first message, so masks are shared only among sites that send.

The sum computed here is exactly the server's. Left out, because it does not change the sum: how
pairs agree on keys (they are derived from the round's key here), and the secret shares from which
the masks of a site that is lost after masking are recovered, with the threshold below which a round
is abandoned. All sites are simulated in one process that knows every update: the metrics
`update_norm`, `cosine` and `product_gap` are the simulator's view, which no server has. The
training losses and `local_norm` are in the headers that sites send in the clear.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import Array, Combine, Tree

# k, even: with up to 9 sites everyone shares a mask with everyone.
NEIGHBOURS = 8
# Bits for the largest possible sum; of the 32, one more is the sign and one is kept for rounding.
_BITS = 30


def masked_mean() -> Combine:
  """sum_k w_k update_k, [C, *p] -> [*p]; the server sees only masked messages and their sum.

  It differs from `weighted_mean.factor_mean` by at most C / 2 fixed-point steps and by float32
  rounding. When a site with weight has an update that is not finite, the sum is meaningless: such
  sites must have weight 0 (see `quarantine.py`).
  """
  def apply(updates, weights, *, key, **_):
    step = fixed_point_step(updates, weights)
    sent = messages(updates, weights, step, key)
    total = jax.tree.map(lambda x: x.sum(axis=0, dtype=jnp.uint32), sent)
    return jax.tree.map(
      lambda x, like: signed(x).astype(like.dtype) * step, total, updates), ()

  return Combine(apply)


def signed(x: Array) -> Array:
  """u32[*p] -> i32[*p]: a number modulo 2^32 as its representative from -2^31 to 2^31 - 1."""
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def fixed_point_step(updates: Tree, weights: Array) -> Array:
  """The value of 1 in fixed point, sum_k w_k max |update_k| / 2^30: [C, *p], f32[C] -> f32[].

  With this step no entry of the sum exceeds 30 bits and its sign.
  """
  largest = jnp.max(jnp.stack([
    jnp.max(jnp.abs(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(updates)]), axis=0)
  bound = jnp.where(weights > 0, weights * largest, 0).sum()
  return jnp.maximum(bound / 2 ** _BITS, 1e-30)


def messages(updates: Tree, weights: Array, step: Array, key: Array) -> Tree:
  """The masked message of each site, u32[C, *p]; zeros for a site of weight 0.

  Args:
    updates: [C, *p], the x_u before weighting.
    weights: f32[C], w_u.
    step: f32[], see `fixed_point_step`.
    key: the round's PRNG key; the pairs' keys s_uv are derived from it.
  """
  def fixed(weight, update):
    return jax.tree.map(lambda x: jnp.round(weight * x / step).astype(jnp.int32), update)

  return masked(fixed, (weights, updates), weights > 0, key)


def masked(numbers: Callable[..., Tree], inputs: tuple, sends: Array, key: Array) -> Tree:
  """Numbers of each site modulo 2^32 with the masks that it shares, u32[C, *p].

  Args:
    numbers: (inputs of a site) -> i32[*p].
    inputs: leaves [C, ...].
    sends: bool[C]; the message of a site that does not send is zeros.
    key: the round's PRNG key; the pairs' keys s_uv are derived from it.
  """
  after, before = neighbours(sends, key)

  def add_masks(site, after, before, update):
    def mask(adding_site, subtracting_site, distance):
      pair = jax.random.fold_in(
        jax.random.fold_in(jax.random.fold_in(key, distance), adding_site), subtracting_site)
      leaves, treedef = jax.tree.flatten(update)
      return treedef.unflatten([
        jax.random.bits(leaf_key, leaf.shape, jnp.uint32)
        for leaf_key, leaf in zip(jax.random.split(pair, len(leaves)), leaves, strict=True)])

    def body(distance, message):
      return jax.tree.map(
        lambda x, plus, minus: x + plus - minus, message, mask(site, after[distance], distance),
        mask(before[distance], site, distance))

    return jax.lax.fori_loop(0, len(after), body, update)

  def masked_message(one):
    site, there, after, before, own = one
    fixed = jax.tree.map(
      lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32), numbers(*own))
    hidden = add_masks(site, after, before, fixed)
    return jax.tree.map(lambda x: jnp.where(there, x, jnp.uint32(0)), hidden)

  # One site after the other, because a mask takes as much memory as an update.
  return jax.lax.map(masked_message, (jnp.arange(len(sends)), sends, after, before, inputs))


def neighbours(sends: Array, key: Array) -> tuple[Array, Array]:
  """The k / 2 sites after and the k / 2 before each site on a circle in random order.

  Only sites that send stand on the circle. When they are fewer than k + 1, a pair shares several
  masks, each with a key of its own, or a site is its own neighbour, and that mask cancels at once.
  The rows of sites that do not send have no meaning.

  Args:
    sends: bool[C].
    key: the round's PRNG key.

  Returns:
    (i32[C, k / 2] after, i32[C, k / 2] before), places in the cohort.
  """
  count = jnp.maximum(sends.sum(), 1)
  draw = jax.random.uniform(jax.random.fold_in(key, len(sends)), sends.shape)
  order = jnp.argsort(jnp.where(sends, draw, jnp.inf))  # sites that do not send come last
  place = jnp.argsort(order)
  distance = jnp.arange(1, NEIGHBOURS // 2 + 1)[None]
  return order[(place[:, None] + distance) % count], order[(place[:, None] - distance) % count]
