"""Local training of one site: its optimiser steps in one loop, fresh optimiser each round."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.types import GradientFn, LocalOptimizer, LocalRule, Tree


def warmup_cosine(learning_rate: float, warmup_share: float):
  """Linear warm-up over ceil(share * steps), then a half cosine to 0, over one round.

  As the reference restarts it every round (METHOD section 6), but the first step is taken at
  learning_rate / warm-up steps rather than at 0, which would waste it: rounds here may be short.
  """

  def rate(step, num_steps):
    total = jnp.maximum(num_steps, 1).astype(jnp.float32)
    warmup = jnp.ceil(warmup_share * total)
    climb = (step + 1) / jnp.maximum(warmup, 1.0)
    progress = (step - warmup) / jnp.maximum(total - warmup, 1.0)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return learning_rate * jnp.where(step < warmup, climb, fall)

  return rate


def adamw(
  learning_rate: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
  weight_decay: float = 0.0, clip_norm: float = 1.0, warmup_share: float = 0.05,
) -> LocalOptimizer:
  """AdamW after global-norm clipping (clip_norm 0 = none), Loshchilov & Hutter 1711.05101."""
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  steps += [optax.scale_by_adam(b1, b2, eps)]
  steps += [optax.add_decayed_weights(weight_decay)] if weight_decay else []
  return LocalOptimizer(optax.chain(*steps), warmup_cosine(learning_rate, warmup_share))


def sgd(learning_rate: float) -> LocalOptimizer:
  """Plain gradient steps at a constant rate: no momentum, no clipping, no schedule."""
  return LocalOptimizer(optax.identity(), lambda step, num_steps: learning_rate)


class Progress(NamedTuple):
  """A site in the middle of its round."""

  adapter: Tree
  optimizer: Tree
  taken: jax.Array   # i32[], steps
  losses: jax.Array  # f32[K], NaN at steps that were not taken


class LocalTraining(NamedTuple):
  """start(anchor [*p], step_mask bool[K]) -> Progress;

  advance(first i32[], until i32[], progress, anchor, base, batches [K, ...], step_mask,
    server_ctrl, site_ctrl, site, key) -> Progress after steps first ... until - 1; `until` may lie
    beyond the site's last step, as it does where several sites go on together.
  """

  start: Callable
  advance: Callable


def local_training(
  gradient_fn: GradientFn,
  optimizer: LocalOptimizer,
  rule: LocalRule,
  shared: Callable[[str], bool],
  keep: Callable,
  on_step: Callable | None = None,
  shape_buckets: Sequence = (),
) -> LocalTraining:
  """Builds the pure functions that train one site.

  Args:
    gradient_fn, optimizer, rule: values of `fed/types.py`.
    shared: by path; only what the server also has is corrected by the rule.
    keep: zeroes what this site does not train in this round, [*p] -> [*p].
    on_step: host callback (site i32[], step i32[], loss f32[], active bool[]) for progress, or
      None; told of every step that is computed, of padded ones as such.
    shape_buckets: parts of a batch with `cut` and `holds` (see `data/schedule.py: ShapeBucket`):
      the gradient is that of the first that holds the step, or of the whole. For sites one after
      the other: under vmap all of them would be computed.
  """

  def gradient_of(adapter, base, batch, key):
    if not shape_buckets:
      return gradient_fn(adapter, base, batch, key)
    cuts = [*(bucket.cut for bucket in shape_buckets), lambda batch: batch]
    first = jnp.argmax(jnp.stack(
      [*(bucket.holds(batch) for bucket in shape_buckets), jnp.bool_(True)]))
    return jax.lax.switch(first, [
      lambda adapter, batch, key, cut=cut: gradient_fn(adapter, base, cut(batch), key)
      for cut in cuts], adapter, batch, key)

  def start(anchor, step_mask):
    return Progress(
      anchor, optimizer.transform.init(anchor), jnp.int32(0),
      jnp.full(step_mask.shape, jnp.nan, jnp.float32))

  def advance(
    first, until, progress, anchor, base, batches, step_mask, server_ctrl, site_ctrl, site, key
  ):
    num_steps = step_mask.sum()

    def take(carry, batch):
      adapter, opt_state, step = carry
      loss, grad = gradient_of(adapter, base, batch, jax.random.fold_in(key, step))
      corrected = rule.correct(grad, adapter, anchor, server_ctrl, site_ctrl)
      # What is frozen counts neither in the clipping norm nor, through decay, in the update.
      grad = keep(tree.choose(shared, corrected, grad))
      direction, opt_state = optimizer.transform.update(grad, opt_state, adapter)
      direction = keep(direction)
      rate = optimizer.rate(step, num_steps)
      adapter = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), adapter, direction)
      return (adapter, opt_state, step + 1), loss.astype(jnp.float32)

    def body(place, progress):
      batch, active = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False), (batches, step_mask))
      # One time or not at all. Not a cond, whose branches under vmap get a copy of the base for
      # every site; a loop's body does not, and is left out when no site has this step.
      carry, loss = jax.lax.fori_loop(
        0, active.astype(jnp.int32), lambda _, held: take(held[0], batch),
        (tuple(progress[:3]), jnp.float32(jnp.nan)))
      if on_step is not None:
        # Told of padded steps too, and that they are: under vmap they are taken with the others.
        jax.debug.callback(on_step, site, progress.taken, loss, active)
      return Progress(*carry, progress.losses.at[place].set(loss))

    return jax.lax.fori_loop(first, until, body, progress)

  return LocalTraining(start, advance)


def mean_loss(loss_fn, adapter, base, validation):
  """Mean over groups of nats per supervised token (METHOD section 3) -> f32[].

  Sums are kept in the number format of `validation.group`.
  """
  groups, dtype = validation.group.shape[1], validation.group.dtype

  # Differentiated, it keeps no more than one step's activations.
  @partial(jax.checkpoint, prevent_cse=False)
  def body(sums, inputs):
    batch, group = inputs
    total, weight = loss_fn(adapter, base, batch)
    return sums + jnp.stack([total, weight]).astype(dtype)[:, None] * group[None], None

  sums, _ = jax.lax.scan(
    body, jnp.zeros((2, groups), dtype), (validation.batches, validation.group))
  return jnp.mean(sums[0] / sums[1])
