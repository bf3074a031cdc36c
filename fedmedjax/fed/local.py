"""Local training of one site: its optimiser steps in one loop, fresh optimiser each round."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.builders import is_off
from fedmedjax.fed.types import (
  Array,
  GradientFn,
  LocalOptimizer,
  LocalRule,
  LossFn,
  RateFn,
  Tree,
  Validation,
)

# Of a share of steps as a fraction, so that products stay far from the end of int32.
_LARGEST_DENOMINATOR = 10_000

# [*p] -> [*p], with zeros where a site does not train.
Keep = Callable[[Tree], Tree]


def warmup_cosine(learning_rate: float, warmup_share: float) -> RateFn:
  """(step i32[], num_steps i32[]) -> f32[]: linear warm-up, then half a cosine to 0, in one round.

  The public code of Fed-MedLoRA (arXiv:2601.22124) restarts this schedule every round, and so do
  we. We deviate in that the first step is taken at learning_rate / (warm-up steps) rather than at
  0: rounds may be short, and a step at rate 0 is wasted.

  Args:
    learning_rate: the peak.
    warmup_share: share of a round's steps that warm up, rounded up to whole steps.
  """
  # In integers: 0.72 of 1,400 steps are 1,008, and 1,009 when float32 numbers are rounded up.
  part, whole = Fraction(warmup_share).limit_denominator(
    _LARGEST_DENOMINATOR).as_integer_ratio()

  def rate(step, num_steps):
    warmup = num_steps // whole * part + -(-(num_steps % whole) * part // whole)
    total, warmup = num_steps.astype(jnp.float32), warmup.astype(jnp.float32)
    # Either is a number where it is taken, since step < num_steps.
    climb = (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return learning_rate * jnp.where(step < warmup, climb, fall)

  return rate


def adamw(
  learning_rate: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
  weight_decay: float = 0.0, clip_norm: float = 1.0, warmup_share: float = 0.05,
) -> LocalOptimizer:
  """AdamW on gradients [*p] clipped by their global norm, with the rate of `warmup_cosine`.

  Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101,
  algorithm 2.

  Args:
    learning_rate: the peak of the schedule, the paper's eta_t alpha.
    b1, b2, eps: the paper's beta_1, beta_2, epsilon.
    weight_decay: the paper's lambda; it is multiplied by the whole rate, as in optax, where the
      paper multiplies by eta_t only.
    clip_norm: largest Euclidean norm of a gradient over all leaves; 0 = not clipped.
    warmup_share: see `warmup_cosine`.
  """
  steps = [] if is_off(clip_norm) else [optax.clip_by_global_norm(clip_norm)]
  steps += [optax.scale_by_adam(b1, b2, eps)]
  steps += [] if is_off(weight_decay) else [optax.add_decayed_weights(weight_decay)]
  return LocalOptimizer(optax.chain(*steps), warmup_cosine(learning_rate, warmup_share))


def sgd(learning_rate: float) -> LocalOptimizer:
  """[*p] -> [*p]: plain gradient steps at a constant rate, no momentum, clipping or schedule."""
  return LocalOptimizer(optax.identity(), lambda step, num_steps: learning_rate)


class Progress(NamedTuple):
  """A site in the middle of its round: adapter [*p], losses f32[K] so far."""

  adapter: Tree
  optimizer: Tree
  taken: Array   # i32[], number of steps taken
  losses: Array  # f32[K], nats per token; NaN at steps that were not taken


class Start(Protocol):
  """A site before its first step, anchor [*p] -> Progress."""

  def __call__(self, anchor: Tree, step_mask: Array, /) -> Progress:
    """(anchor [*p], step_mask bool[K]) -> Progress with no step taken."""


class Advance(Protocol):
  """Takes a stretch of a site's K steps, whose batches are [K, ...]."""

  def __call__(
    self, first: Array, until: Array, progress: Progress, anchor: Tree, base: Tree, batches: Tree,
    step_mask: Array, server_ctrl: Tree, site_ctrl: Tree, site: Array, key: Array, /,
  ) -> Progress:
    """Takes the steps first, ..., until - 1 (i32[]) of batches [K, ...] with step_mask bool[K].

    `until` may lie beyond the site's last step, as it does where several sites advance together.
    The anchor is [*p], the control variates are those of the round's start, `site` is i32[] and
    `key` the PRNG key of this round and site.
    """


class LocalTraining(NamedTuple):
  """Trains one site from its anchor [*p] through its K steps, in one or several stretches."""

  start: Start
  advance: Advance


class OnStep(Protocol):
  """A callback on the host that reports each step and its loss f32[]."""

  def __call__(self, site: Array, step: Array, loss: Array, active: Array, /) -> None:
    """(site i32[], steps taken i32[], loss f32[], active bool[]); active False = a padded step."""


class ShapeBucket(Protocol):
  """Smaller arrays [R', N'] that some steps [R, N] fit into; see `data/schedule.py`."""

  @property
  def cut(self) -> Callable[[Tree], Tree]:
    """The arrays of a step [R, N] -> their parts [R', N'] that the bucket keeps."""

  @property
  def holds(self) -> Callable[[Tree], Array]:
    """The arrays of a step -> bool[], whether the parts contain everything but padding."""


def local_training(
  gradient_fn: GradientFn,
  optimizer: LocalOptimizer,
  rule: LocalRule,
  shared: Callable[[str], bool],
  keep: Keep,
  on_step: OnStep | None = None,
  shape_buckets: Sequence[ShapeBucket] = (),
) -> LocalTraining:
  """Builds the pure functions that take the K steps of one site from its anchor [*p].

  Args:
    gradient_fn, optimizer, rule: values of `fed/types.py`.
    shared: by path; the rule corrects only leaves that the server also has.
    keep: [*p] -> [*p], zeroes what this site does not train in this round.
    on_step: called for every step that is computed, padded ones included; None = nothing is called.
    shape_buckets: the gradient of a step is computed in the first of these shapes that holds it,
      else in the whole shape. Only for sites computed one after the other: under vmap, each step
      would be computed in all shapes.
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
      # Frozen entries must count neither in the clipping norm nor, by weight decay, in the update.
      grad = keep(tree.choose(shared, corrected, grad))
      direction, opt_state = optimizer.transform.update(grad, opt_state, adapter)
      direction = keep(direction)
      rate = optimizer.rate(step, num_steps)
      adapter = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), adapter, direction)
      return (adapter, opt_state, step + 1), loss.astype(jnp.float32)

    def body(place, progress):
      batch, active = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False), (batches, step_mask))
      # A loop of one or no iteration rather than a cond: under vmap the branches of a cond get a
      # copy of the base for every site. The body of a loop does not, and does not run at all when
      # no site has this step.
      carry, loss = jax.lax.fori_loop(
        0, active.astype(jnp.int32), lambda _, carry_and_loss: take(carry_and_loss[0], batch),
        (tuple(progress[:3]), jnp.float32(jnp.nan)))
      if on_step is not None:
        # Called for padded steps too, since under vmap they are computed with the others.
        jax.debug.callback(on_step, site, progress.taken, loss, active)
      return Progress(*carry, progress.losses.at[place].set(loss))

    return jax.lax.fori_loop(first, until, body, progress)

  return LocalTraining(start, advance)


def mean_loss(loss_fn: LossFn, adapter: Tree, base: Tree, validation: Validation) -> Array:
  """The validation loss l_V -> f32[]: nats per supervised token, averaged over G groups.

  Fed-MedLoRA+, arXiv:2601.22124, its validation utility; that groups (site, task) count equally is
  ours (docs/methods.md). A group without supervised tokens makes the loss NaN.

  Args:
    loss_fn: (adapter, base, batch) -> (sum of nats f32[], sum of token weights f32[]).
    adapter: [*p].
    base: the frozen weights.
    validation: Q steps, leaves [Q, ...]; the sums are in the dtype of its `group` [Q, G].
  """
  return jnp.mean(token_losses(loss_fn, adapter, base, validation))


def token_losses(loss_fn: LossFn, adapter: Tree, base: Tree, validation: Validation) -> Array:
  """Nats per supervised token of each group of V -> f32[G]; see `mean_loss`, adapter [*p]."""
  nats, tokens = _group_sums(loss_fn, adapter, base, validation)
  return nats / tokens


def answer_losses(loss_fn: LossFn, adapter: Tree, base: Tree, validation: Validation) -> Array:
  """Nats per answer of each group of V -> f32[G]: an answer's nats are the sum over its tokens.

  Ours; see `mean_loss` for the arguments, adapter [*p] among them.

  Raises:
    ValueError: `validation` does not say how many answers its steps [Q] have.
  """
  nats, _ = _group_sums(loss_fn, adapter, base, validation)
  return nats / _group_answers(validation)


def answer_slopes(
  loss_fn: LossFn, place: Tree, updates: Tree, base: Tree, validation: Validation
) -> Array:
  """<grad A_g(place), update_k>, A_g being `answer_losses` -> f32[C, G]; its errors, too. Ours.

  A gradient is held of one step of V at a time, so that all groups cost no more than one.

  Args:
    loss_fn, base, validation: see `mean_loss`.
    place: [*p], an adapter.
    updates: [C, *p].
  """
  def body(sums, inputs):
    batch, group = inputs
    gradient = jax.grad(lambda adapter: loss_fn(adapter, base, batch)[0])(place)
    slopes = jax.vmap(tree.inner, (0, None))(updates, gradient).astype(sums.dtype)
    return sums + slopes[:, None] * group[None], None

  shape = (jax.tree.leaves(updates)[0].shape[0], validation.group.shape[1])
  sums, _ = jax.lax.scan(
    body, jnp.zeros(shape, validation.group.dtype), (validation.batches, validation.group))
  return sums / _group_answers(validation)[None]


def _group_answers(validation: Validation) -> Array:
  """Numbers of answers of each group of V, f32[G]."""
  if validation.answers is None:
    raise ValueError('Validation.answers: f32[Q] is needed for nats per answer')
  return validation.answers @ validation.group


def _group_sums(loss_fn: LossFn, adapter: Tree, base: Tree, validation: Validation) -> Array:
  """(nats, supervised tokens) of each group of V -> f32[2, G]."""
  (_, groups), dtype = validation.group.shape, validation.group.dtype

  # Under differentiation, only one step's activations are in memory at a time.
  @partial(jax.checkpoint, prevent_cse=False)
  def body(sums, inputs):
    batch, group = inputs
    total, weight = loss_fn(adapter, base, batch)
    return sums + jnp.stack([total, weight]).astype(dtype)[:, None] * group[None], None

  sums, _ = jax.lax.scan(
    body, jnp.zeros((2, groups), dtype), (validation.batches, validation.group))
  return sums
