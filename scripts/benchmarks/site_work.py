"""What a run trains with, as a benchmark calls it: one site's steps, or a round over sites."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import exchange, tree
from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import Data, Study, prepare
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.local import local_training
from fedmedjax.fed.types import LocalData
from fedmedjax.method import algorithm_parts


class Work(NamedTuple):
  """A study of one or more sites, and the parts of its round."""

  study: Study
  schedule: schedules.Schedule   # of the study, the examples of round 0 in random order
  train: Callable                # `local_training` from start to end, not compiled yet
  rates: list[float]             # of its optimiser's steps, K
  ctrl: tuple                    # what the rule starts with


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
  parts = algorithm_parts(config, study.learner.learning_rate)
  training = local_training(
    mean_gradient(study.learner.loss_fn(study.arrangements[0].remat)), parts['optimizer'],
    parts['rule'], lambda path: True, lambda values: values)

  def train(anchor, base, batches, mask, *rest):
    last = training.advance(
      0, mask.sum(), training.start(anchor, mask), anchor, base, batches, mask, *rest)
    return last.adapter, last.losses, last.taken

  steps = config.fed.local_steps
  return Work(
    study, study.schedule._replace(plan=(first, *study.schedule.plan[1:])), train,
    [float(parts['optimizer'].rate(k, jnp.int32(steps))) for k in range(steps)],
    parts['rule'].init(study.learner.adapter))


def arguments(one: Work, packed: tuple, site: int = 0) -> tuple:
  """Of `train`, for one site; `packed` is what `schedules.round_arrays` made of a round."""
  batches, mask = packed
  return (
    one.study.learner.adapter, one.study.learner.base, jax.tree.map(lambda x: x[site], batches),
    mask[site], *one.ctrl, jnp.int32(site), jax.random.key(0))


def amounts(one: Work) -> tuple[int, int, int]:
  """Of round 0: (examples, unique tokens, supervised places)."""
  examples, tokens = schedules.round_work(one.schedule, 0)
  parts = [
    (one.schedule.sites[step.site].tasks[step.task], step)
    for steps in one.schedule.plan[0] for step in steps]
  return examples, tokens, sum(
    pack.supervised(part.train[i], 'completion') for part, step in parts for i in step.members)


def rounds(one: Work) -> dict[str, Callable[[], Any]]:
  """Round 0 compiled whole, and as a loop in Python over its sites: both give the new adapter."""
  study, schedule = one.study, one.schedule
  turn = exchange.turnout(study.meeting, schedule, 0)
  train = jax.jit(one.train)

  def packed():
    return schedules.round_arrays(schedule, 0, turn.cohort.sites, turn.steps)

  def compiled():
    state, _ = study.algorithm.round(
      study.algorithm.init(study.learner.adapter), study.learner.base,
      LocalData(*packed(), turn.weights), turn.cohort.sites, None, jax.random.key(0))
    return jax.block_until_ready(state.adapter)

  @jax.jit
  def add(total, adapter, anchor, weight):
    return jax.tree.map(lambda t, x, x0: t + weight * (x - x0), total, adapter, anchor)

  def loop():
    total = anchor = study.learner.adapter
    made = packed()
    for place, weight in enumerate(turn.weights / turn.weights.sum()):
      adapter, _, _ = train(*arguments(one, made, place))
      total = add(total, adapter, anchor, weight)
    return jax.block_until_ready(total)

  return {'ours': compiled, 'ours_loop': loop}


def check_adapters(anchor, results: dict[str, Any]) -> None:
  """Raises RuntimeError unless all learnt what the round did, to 1 % of its length.

  AdamW's first steps have the sign of gradients that may be rounding only; wrong weights or
  examples show far above that.
  """
  ours = results['ours']
  learnt = tree.norm(jax.tree.map(jnp.subtract, ours, anchor))
  for name, adapter in results.items():
    apart = float(tree.norm(jax.tree.map(jnp.subtract, adapter, ours)) / learnt)
    if not apart <= 1e-2:
      raise RuntimeError(f'{name}: what it learnt is {apart:.2g} of its length from the round')
