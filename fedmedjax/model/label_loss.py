"""The loss of token labels under partial annotation: a softmax over what a site annotates."""

import jax
import jax.numpy as jnp

from fedmedjax.types import LabelBatch

Array = jax.Array


def of_annotated(logits: Array, batch: LabelBatch) -> Array:
  """Logits f32[B, T, Y], with -inf for the labels that the batch's site does not annotate."""
  return jnp.where(batch.allowed[None, None], logits, -jnp.inf)


def label_nats(logits: Array, batch: LabelBatch) -> tuple[Array, Array]:
  """Summed loss of a step.

  Args:
    logits: f32[B, T, Y], from `of_annotated`.
    batch: see `types.LabelBatch`; a label of weight above 0 is an allowed one.

  Returns:
    (sum of nats f32[], sum of label weights f32[]).
  """
  return row_nats(logits, batch).sum(), batch.weight.sum()


def row_nats(logits: Array, batch: LabelBatch) -> Array:
  """Summed loss of each row f32[B], of logits f32[B, T, Y]; see `label_nats`."""
  log_p = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_p, batch.labels[..., None], axis=-1)[..., 0]
  # Padding has label 0, which is allowed everywhere: 0 * -inf cannot occur.
  return -jnp.sum(chosen * batch.weight, axis=-1)
