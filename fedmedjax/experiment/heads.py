"""A trainable whose adapter has heads, see `model/heads.py`; the model sees a plain LoRA."""

import jax

from fedmedjax.experiment.types import Trainable
from fedmedjax.model.heads import shown, with_heads

# Folded into the run's key for what is drawn here.
_USE = 0x4EAD


def headed(trainable: Trainable, heads: int, seed: int) -> Trainable:
  """`trainable` with an adapter of so many heads in place of its LoRA; 0 = as it is.

  What is saved is the LoRA of heads times the rank that the adapter is to the model.

  Args:
    trainable: of a LoRA that is fresh.
    heads: config.fed.heads.
    seed: of the bases.
  """
  if not heads:
    return trainable
  values, loss_fn = jax.jit(shown), trainable.loss_fn

  def of_values(fn):
    return lambda adapter, *rest, **more: fn(values(adapter), *rest, **more)

  def of_shapes(fn):
    return lambda adapter, *rest, **more: fn(jax.eval_shape(shown, adapter), *rest, **more)

  def loss(remat):
    plain = loss_fn(remat)
    return lambda adapter, base, batch: plain(shown(adapter), base, batch)

  return trainable._replace(
    loss_fn=loss, adapter=with_heads(
      jax.random.fold_in(jax.random.key(seed), _USE), trainable.adapter, heads),
    answer=of_values(trainable.answer), answer_calls=of_shapes(trainable.answer_calls),
    largest_answer=of_shapes(trainable.largest_answer), forced=trainable.forced and of_values(
      trainable.forced),
    save=lambda adapter, folder: trainable.save(jax.device_get(values(adapter)), folder),
    # Estimates of a part of the model are of a plain LoRA.
    share=None)
