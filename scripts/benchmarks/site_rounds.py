"""A federated round as the benchmarks of sites call it: ours, a loop in Python, and PEFT's loop.

    one = site_rounds.federation(config, data)       # data of experiment.load_data
    ours = site_rounds.compiled(one)
    loop = site_rounds.python_loop(one, count)       # over the first `count` sites only
    tuned = site_rounds.tuned(one, model)            # a PEFT model; needs the test extra
    peer = site_rounds.peft_loop(one, tuned, count)
    needs = site_rounds.dry_run(one)                 # for a model of shapes

Each is called without arguments and does round 0 from the same adapter, its batches made anew.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import inputs
from benchmarks.interleaved import TOLERANCES, Tolerance
from benchmarks.site_work import site_training
from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import communication
from fedmedjax.experiment.build import prepare
from fedmedjax.experiment.lora import lora_config
from fedmedjax.experiment.types import Data, Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.types import LocalData
from fedmedjax.model.files.peft import save_peft
from fedmedjax.runtime import device
from fedmedjax.train import memory


class Federation(NamedTuple):
  """What round 0 is made of."""

  config: ConfigDict
  study: Study
  turn: Participation


class Round(NamedTuple):
  """What a round gave."""

  losses: np.ndarray   # f[C], mean over the steps of each site, of the first C
  adapter: Any = None  # the mean over sites, in the form of who made it


class Compiled(NamedTuple):
  """The compiled round."""

  run: Callable[[], Round]
  peak_bytes: Callable[[], int]  # by the compiler: arguments, results and temporaries
  needs: Callable[[], dict[str, int]]  # the same beside the planner's estimate and the device's own
                                       # count, as entries of the file


def federation(config: ConfigDict, data: Data) -> Federation:
  config.fed.rounds = 1
  study = prepare(config, data)
  return Federation(
    config, study,
    communication.round_participation(study.communication, study.schedule, 0))


def arguments(one: Federation) -> tuple:
  """Of the round, its batches made anew."""
  study, turn = one.study, one.turn
  batches, mask = schedules.round_arrays(study.schedule, 0, turn.cohort.sites, turn.steps)
  return (
    study.algorithm.init(study.trainable.adapter), study.trainable.base,
    LocalData(batches, mask, turn.weights), turn.cohort.sites, None, jax.random.key(0))


def compiled(one: Federation) -> Compiled:
  """A run's own program, compiled when it is first asked for."""
  seen: list[int] = []  # by the device at most, after the first call

  @cache
  def program():
    return one.study.algorithm.round.lower(*arguments(one)).compile()

  def run() -> Round:
    state, metrics = jax.block_until_ready(program()(*arguments(one)))
    if not seen:
      seen.append(device.peak())
    return Round(np.nanmean(metrics.train_loss, axis=1), state.adapter)

  def peak_bytes() -> int:
    sizes = program().memory_analysis()
    return (sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes)

  def needs() -> dict[str, int]:
    return estimated(one, arguments(one)) | {
      'ours_peak_bytes': peak_bytes(),
      'ours_temporary_bytes': program().memory_analysis().temp_size_in_bytes,
      'ours_device_peak_bytes': seen[0]}

  return Compiled(run, peak_bytes, needs)


def estimated(one: Federation, inputs: tuple) -> dict[str, int]:
  """Bytes of the round with its first execution, as the memory planner estimates them."""
  study, base = one.study, tree.num_bytes(one.study.trainable.base)
  return {
    'base_bytes': base, 'adapter_bytes': tree.num_bytes(study.trainable.adapter),
    'ours_estimated_bytes': base + memory.estimate(study, inputs)(study.executions[0])}


def dry_run(one: Federation) -> dict[str, int]:
  """Lowers the round, whose base may be shapes; nothing is compiled -> entries of the file."""
  study, inputs = one.study, arguments(one)
  study.algorithm.round.lower(*inputs)
  at_once, found = study.executions[0], estimated(one, inputs)
  print(f'dry run, {len(one.turn.weights)} sites, {at_once}, lowered and not compiled: '
        + ', '.join(f'{key} {value:,}' for key, value in found.items()))
  return found


def python_loop(one: Federation, count: int) -> Callable[[], Round]:
  """The same steps, a compiled call a site."""
  study, turn = one.study, one.turn
  ctrl = study.method.rule.init(study.trainable.adapter)
  training = site_training(one.config, study, study.schedule.layout.shape_buckets)

  @jax.jit
  def train(total, weight, anchor, base, batches, mask, site):
    adapter, losses, _ = training(
      anchor, base, batches, mask, *ctrl, site, jax.random.key(0))
    return jax.tree.map(lambda t, x: t + weight * x, total, adapter), jnp.nanmean(losses)

  def run() -> Round:
    anchor, losses = study.trainable.adapter, []
    total = jax.tree.map(jnp.zeros_like, anchor)
    weights = turn.weights[:count] / turn.weights[:count].sum()
    for place, (site, weight) in enumerate(zip(turn.cohort.sites, weights, strict=False)):
      batches, mask = schedules.round_arrays(
        study.schedule, 0, [site], turn.steps[place:place + 1])
      batches, mask = jax.tree.map(lambda x: x[0], (batches, mask))
      total, loss = train(total, weight, anchor, study.trainable.base, batches, mask, site)
      losses.append(loss)
    return Round(np.asarray(losses), jax.block_until_ready(total))

  return run


def tuned(one: Federation, model: inputs.Model):
  """transformers' model with our weights and, by PEFT, our adapter."""
  from benchmarks import torch_peer
  twin = torch_peer.twin(model, one.config.model.dtype, torch_peer.device())
  with tempfile.TemporaryDirectory() as folder:
    save_peft(
      one.study.trainable.adapter, lora_config(one.config), Path(folder), model.base.name)
    return torch_peer.adapted(twin, Path(folder))


def peer_steps(one: Federation, place: int) -> tuple[list, list[float]]:
  """(a torch_peer.PeerStep each, the learning rates) of the cohort's site at `place`."""
  from benchmarks import torch_peer
  schedule, count = one.study.schedule, int(one.turn.steps[place])
  optimizer = one.study.optimizer
  steps = []
  for step in schedule.plan[0][one.turn.cohort.sites[place]][:count]:
    part = schedule.sites[step.site].tasks[step.task]
    steps.append(torch_peer.PeerStep(
      part.instruction, tuple(part.train[i] for i in step.members)))
  return steps, [float(optimizer.rate(k, jnp.int32(count))) for k in range(count)]


def peft_loop(one: Federation, tuned, count: int) -> Callable[[], Round]:
  """The sites one after the other in torch and PEFT, a step's examples in one padded batch."""
  import torch

  from benchmarks import torch_peer
  work = [peer_steps(one, place) for place in range(count)]
  recipe = torch_peer.Recipe(one.config.fed.batch_size, checkpointing=False)
  rewind, weights = torch_peer.rewinder(tuned), one.turn.weights[:count]
  trained = [weight for weight in tuned.parameters() if weight.requires_grad]

  def run() -> Round:
    losses, total = [], [torch.zeros_like(weight) for weight in trained]
    for (steps, rates), weight in zip(work, weights / weights.sum(), strict=True):
      rewind()
      losses.append(torch_peer.train(
        tuned, steps, rates, recipe, one.config.optim.clip_norm).mean())
      with torch.no_grad():
        for part, values in zip(total, trained, strict=True):
          part.add_(values, alpha=float(weight))
    return Round(np.asarray(losses), total)

  return run


def check_losses(
  results: dict[str, Round], ours: str = 'ours', tolerance: Tolerance = TOLERANCES['float32']
) -> None:
  """Raises RuntimeError when a site's loss is not that of `ours`; of the sites that both did."""
  for name, result in results.items():
    count = min(len(result.losses), len(results[ours].losses))
    own, found = results[ours].losses[:count], result.losses[:count]
    # Said so that a NaN is no agreement.
    agree = np.abs(found - own) <= tolerance.loss * np.maximum(1.0, np.abs(own))
    if not agree.all():
      site = int(np.argmin(agree))
      raise RuntimeError(
        f'{name} and {ours} do not train alike: mean loss of site {site} is {found[site]:.5f} and '
        f'{own[site]:.5f}')


def check_adapters(
  anchor: Any, results: dict[str, Round], tolerance: Tolerance = TOLERANCES['float32']
) -> None:
  """Raises RuntimeError unless all learnt what 'ours' did, to the tolerance's share of its length.

  AdamW's first steps have the sign of gradients that may be rounding only; wrong weights or
  examples show far above that.
  """
  ours = results['ours'].adapter
  learnt = tree.norm(jax.tree.map(jnp.subtract, ours, anchor))
  for name, result in results.items():
    apart = float(tree.norm(jax.tree.map(jnp.subtract, result.adapter, ours)) / learnt)
    if not apart <= tolerance.learnt:
      raise RuntimeError(f'{name}: what it learnt is {apart:.2g} of its length from the round')
