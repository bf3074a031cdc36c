"""Validation losses with differential privacy: what weighs sites in Fed-MedLoRA+ and by peers.

Losses on V are asked of the sites' own notes, so they tell of them. The nats of one answer are cut
to [0, clip] and summed, and Gaussian noise is added to every sum. Ours; the mechanism is Dwork et
al., "Calibrating Noise to Sensitivity in Private Data Analysis", TCC 2006, with Gaussian noise.

One round asks one question of Q adapters at once. What one unit moves, as an L2 norm over all
answers to it:
- a sentence, a note or a patient with at most m answers in each of the g groups of its site moves
  each of Q g sums by at most m clip: sqrt(Q g) m clip;
- a site moves the mean losses that are measured on its own g groups, for all Q adapters, and those
  of its own adapter on the others' groups: sqrt(Q g + G - g) clip. (Q is C: every site's adapter.)
The noise on the question has the standard deviation `noise` times that, so that a round's question
is one Gaussian mechanism of noise multiplier `noise`. How many answers V has is not hidden: this
holds for adjacency 'zero_out' only.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import Array, LossFn, Tree, Validation


class LossQuery(NamedTuple):
  """How validation losses are asked for."""

  clip: float    # nats of an answer that count at most
  noise: float   # the noise multiplier
  answers: int   # m, answers of one unit in a group of V at most; 0 = the unit is a site
  groups: int = 1  # g, groups of a site that a unit below it may have answers in


def clipped_losses(
  loss_fn: LossFn, adapter: Tree, base: Tree, validation: Validation, clip: float
) -> Array:
  """Nats per answer of each group of V, every answer's cut to [0, clip] -> f32[G].

  Args:
    loss_fn: (adapter, base, batch) -> (sum of nats f32[], sum of token weights f32[]).
    adapter: [*p].
    base: the frozen weights.
    validation: Q steps of one answer each.
    clip: in nats; an answer whose loss is not finite counts as the clip.
  """
  _, groups = validation.group.shape

  def body(sums, inputs):
    batch, group, count = inputs
    nats, _ = loss_fn(adapter, base, batch)
    nats = jnp.where(jnp.isfinite(nats), jnp.clip(nats, 0, clip), clip).astype(sums.dtype)
    return sums + nats * (count > 0) * group, None

  sums, _ = jax.lax.scan(
    body, jnp.zeros(groups, validation.group.dtype),
    (validation.batches, validation.group, validation.answers))
  return sums / _answers(validation)


def _answers(validation: Validation) -> Array:
  """Numbers of answers of each group of V, f32[G], at least 1."""
  if validation.answers is None:
    raise ValueError('Validation.answers: f32[Q] is needed for losses of answers')
  return jnp.maximum(validation.answers @ validation.group, 1)


def deviations(query: LossQuery, validation: Validation, questions: int) -> Array:
  """Standard deviation of the noise on the loss of each group, f32[G]; 0 where noise is 0.

  Args:
    query: of the run.
    validation: V, with `group_site` where the unit is a site.
    questions: Q, adapters that are judged at once.
  """
  _, groups = validation.group.shape
  if query.answers:
    moved = query.clip * query.answers * jnp.sqrt(float(questions * query.groups))
    return query.noise * moved / _answers(validation)
  owner = jnp.asarray(validation.group_site)
  same = (owner[:, None] == owner[None]) & (owner >= 0)[:, None]
  own = same.sum(axis=1).max()
  moved = jnp.sqrt((questions * own + groups - own).astype(jnp.float32))
  return jnp.broadcast_to(query.noise * query.clip * moved, (groups,))


def noised_losses(query: LossQuery, validation: Validation, losses: Array, key: Array) -> Array:
  """f32[Q, G] -> f32[Q, G] with the noise of `deviations`; `key` is of this question alone."""
  deviation = deviations(query, validation, len(losses))
  return losses + deviation[None] * jax.random.normal(key, losses.shape, losses.dtype)


def losses_program(query: LossQuery, loss_fn: LossFn, base: Tree, validation: Validation, every,
                   key: Array):
  """adapters [Q, *p] -> noised nats per answer f32[Q, G], to be asked once a round.

  Args:
    query: of the run.
    loss_fn: of an adapter with what is folded into the base.
    base: the frozen weights.
    validation: V, of one answer a step.
    every: maps over the adapters, see `sites.SiteMap`.
    key: of the question.
  """
  asked = every(partial(_one, query, loss_fn, base, validation))
  return lambda adapters: noised_losses(query, validation, asked(adapters), key)


def _one(query, loss_fn, base, validation, adapter):
  return clipped_losses(loss_fn, adapter, base, validation, query.clip)
