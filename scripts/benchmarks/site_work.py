"""What a run trains with, as a benchmark calls it: the steps of one site."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.data.layout import ShapeBucket
from fedmedjax.experiment.build import prepare
from fedmedjax.experiment.types import Data, Study
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.local import local_training


class Work(NamedTuple):
  """A study of one or more sites, and the parts of its round."""

  study: Study
  schedule: schedules.Schedule   # of the study, the examples of round 0 in random order
  train: Callable                # `site_training` of it, by shape_buckets
  rates: list[float]             # of its optimiser's steps, K
  ctrl: tuple                    # what the rule starts with


def site_training(
  config: ConfigDict, study: Study, shape_buckets: Sequence[ShapeBucket]
) -> Callable:
  """`local_training` of a run from start to end, not compiled yet.

  Args:
    shape_buckets: of the layout in which its steps are packed.

  Returns:
    train(anchor, base, batches [K, ...], mask bool[K], server_ctrl, site_ctrl, site i32[], key) ->
    (adapter, losses f32[K], steps taken i32[]).
  """
  training = local_training(
    mean_gradient(study.trainable.loss_fn(study.executions[0].remat)), study.optimizer,
    study.method.rule, lambda path: True, lambda values: values,
    shape_buckets=shape_buckets)

  def train(anchor, base, batches, mask, *rest):
    last = training.advance(
      0, mask.sum(), training.start(anchor, mask), anchor, base, batches, mask, *rest)
    return last.adapter, last.losses, last.taken

  return train


def work(config: ConfigDict, data: Data) -> Work:
  """What a run of this configuration trains with, one pass over the first site's examples.

  A schedule's steps list their examples by length. Micro-batches cut from them would be padded
  less than a loader's, hence the random order.
  """
  examples = config.fed.batch_size * config.fed.local_steps
  config.fed.rounds = max(1, len(data.sites[0].train) // examples)
  study = prepare(config, data)
  rng = np.random.default_rng(config.seed)
  first = tuple(
    tuple(step._replace(members=rng.permutation(step.members)) for step in one)
    for one in study.schedule.plan[0])
  steps = config.fed.local_steps
  return Work(
    study, study.schedule._replace(plan=(first, *study.schedule.plan[1:])),
    partial(site_training, config, study),
    [float(study.optimizer.rate(k, jnp.int32(steps))) for k in range(steps)],
    study.method.rule.init(study.trainable.adapter))


def with_base(one: Work, base: dict) -> Work:
  """The same work on a base that is held otherwise."""
  return one._replace(study=one.study._replace(
    trainable=one.study.trainable._replace(base=base)))


def arguments(one: Work, packed: tuple, site: int = 0) -> tuple:
  """Of `train`, for one site; `packed` is what `schedules.round_arrays` made of a round."""
  batches, mask = packed
  return (
    one.study.trainable.adapter, one.study.trainable.base, jax.tree.map(lambda x: x[site], batches),
    mask[site], *one.ctrl, jnp.int32(site), jax.random.key(0))


def amounts(one: Work) -> tuple[int, int, int]:
  """Of round 0: (examples, unique tokens, supervised places)."""
  examples, tokens = schedules.round_work(one.schedule, 0)
  parts = [
    (one.schedule.sites[step.site].tasks[step.task], step)
    for steps in one.schedule.plan[0] for step in steps]
  return examples, tokens, sum(
    pack.supervised(part.train[i], 'completion') for part, step in parts for i in step.members)
