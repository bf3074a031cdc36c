"""Local training of one site: K optimiser steps in one scan, fresh optimiser each round."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.types import GradientFn, LocalOptimizer, LocalRule


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


def local_training(
  gradient_fn: GradientFn,
  optimizer: LocalOptimizer,
  rule: LocalRule,
  shared: Callable[[str], bool],
  keep: Callable,
  on_step: Callable | None = None,
):
  """Builds the pure function that trains one site.

  Args:
    gradient_fn, optimizer, rule: values of `fed/types.py`.
    shared: by path; only what the server also has is corrected by the rule.
    keep: zeroes what this site does not train in this round, [*p] -> [*p].
    on_step: host callback (site i32[], step i32[], loss f32[], active bool[]) for progress, or
      None.

  Returns:
    (anchor [*p], base, batches [K, ...], step_mask bool[K], server_ctrl, site_ctrl, site, key)
      -> (adapter [*p], losses f32[K] with NaN at padded steps, steps taken i32[]).
  """

  def train(anchor, base, batches, step_mask, server_ctrl, site_ctrl, site, key):
    num_steps = step_mask.sum()

    def take(carry, batch):
      adapter, opt_state, step = carry
      loss, grad = gradient_fn(adapter, base, batch, jax.random.fold_in(key, step))
      corrected = rule.correct(grad, adapter, anchor, server_ctrl, site_ctrl)
      # What is frozen counts neither in the clipping norm nor, through decay, in the update.
      grad = keep(tree.choose(shared, corrected, grad))
      direction, opt_state = optimizer.transform.update(grad, opt_state, adapter)
      direction = keep(direction)
      rate = optimizer.rate(step, num_steps)
      adapter = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), adapter, direction)
      return (adapter, opt_state, step + 1), loss.astype(jnp.float32)

    def body(carry, inputs):
      batch, active = inputs
      # One time or not at all. Not a cond, whose branches under vmap get a copy of the base for
      # every site; a loop's body does not, and is left out when no site has this step.
      new, loss = jax.lax.fori_loop(
        0, active.astype(jnp.int32), lambda _, held: take(held[0], batch),
        (carry, jnp.float32(jnp.nan)))
      if on_step is not None:
        # Told of padded steps too, and that they are: under vmap they are taken with the others.
        jax.debug.callback(on_step, site, carry[2], loss, active)
      return new, loss

    start = (anchor, optimizer.transform.init(anchor), jnp.int32(0))
    (adapter, _, _), losses = jax.lax.scan(body, start, (batches, step_mask))
    return adapter, losses, num_steps

  return train


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
