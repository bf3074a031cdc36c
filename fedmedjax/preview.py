"""What a run would do and need: `main --validate_only`. Compiles no round and writes nothing."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from fedmedjax import checkpoint, exchange, tree, writer
from fedmedjax.config import leaves
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import Study, load_data, options, prepare
from fedmedjax.inputs import compare_inputs, fingerprint
from fedmedjax.method import algorithm_parts
from fedmedjax.progress import Reporter
from fedmedjax.report import site_table
from fedmedjax.rounds import participant_names
from fedmedjax.run import check_continued
from fedmedjax.training import CHECKPOINTS


def preview(config: ConfigDict, workdir: Path | None, reporter: Reporter) -> None:
  """Checks config, workdir, notes, model and inputs as a run does, and prints what it would do.

  Raises InputError as a run would.
  """
  if workdir:
    check_continued(workdir, writer.plain(leaves(config.to_dict())), options(config).rounds)
  with reporter.live():
    data = load_data(config, reporter)
    study = prepare(config, data)
  if workdir:
    compare_inputs(workdir, fingerprint(config, data))
  reporter.say(site_table(data.sites, data.tested, data.external))
  done = checkpoint.latest_round(workdir / CHECKPOINTS) if workdir else 0
  device, limit = jax.devices()[0], device_memory()
  if study.options.rounds:
    memory = memory_plan(config, study)
    reporter.say(_rounds_table(study, done), _memory_table(memory))
    if sum(memory.values()) > limit:
      reporter.say(
        'warning: that is more memory than there is; set config.fed.chunk=1, lower '
        "config.fed.batch_size, or set config.model.remat='full'")
  reporter.say(
    f'{len(jax.devices())} device(s), {device.platform} {device.device_kind}, '
    f'{limit / 2**30:.1f} GiB; {done} of {study.options.rounds} rounds are done. '
    'Nothing was written.')


def device_memory() -> int:
  """Bytes: of an accelerator when it tells them, else of this machine."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def planned(study: Study) -> list[dict]:
  """What is known of every round's line before it is run."""
  return [
    exchange.turnout_line(
      study.meeting, study.schedule, number,
      exchange.turnout(study.meeting, study.schedule, number), participant_names(study))
    for number in range(study.options.rounds)]


def _rounds_table(study: Study, done: int) -> Table:
  table = Table(title='Rounds')
  for name in ('round', 'sites', 'steps', 'examples', 'tokens', 'MB down', 'MB up'):
    table.add_column(name, justify='right')
  lines = planned(study)
  for line in lines[done:]:
    table.add_row(str(line['round']), str(len(line['sites'])), *_work(line))
  table.add_section()
  table.add_row('all', '', *_work({
    key: sum(line[key] for line in lines)
    for key in ('local_steps', 'examples', 'tokens', 'bytes_down', 'bytes_up')}))
  return table


def _work(line: dict) -> list[str]:
  return [f'{line[key]:,}' for key in ('local_steps', 'examples', 'tokens')] + [
    f'{line[key] / 1e6:.2f}' for key in ('bytes_down', 'bytes_up')]


def memory_plan(config: ConfigDict, study: Study) -> dict[str, int]:
  """Bytes by use, in the training of one round.

  All but the last are those of the arrays. Activations are what the loss keeps for its gradient as
  it is traced, times the sites computed at once: an estimate, since the compiler drops some of
  them and needs other room of its own.
  """
  turn = exchange.turnout(study.meeting, study.schedule, 0)
  sites = len(turn.cohort.sites)
  batches, _ = schedules.round_arrays(study.schedule, 0, turn.cohort.sites, turn.steps)
  at_once = min(config.fed.chunk or sites, sites)
  learner = study.learner
  adapter = tree.num_bytes(learner.adapter)
  optimizer = algorithm_parts(config, learner.learning_rate)['optimizer'].transform
  moments = tree.num_bytes(jax.eval_shape(optimizer.init, learner.adapter))
  step = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batches)
  return {
    'base model': tree.num_bytes(learner.base),
    'state of server and sites': tree.num_bytes(
      jax.eval_shape(study.algorithm.init, learner.adapter)),
    'updates of the cohort': sites * adapter,
    'examples of the round and of validation': tree.num_bytes((batches, study.validation)),
    'adapters, gradients and moments of the sites at once': at_once * (2 * adapter + moments),
    'activations of the sites at once (estimate)': at_once * kept_for_gradient(
      learner.loss_fn, learner.adapter, learner.base, step),
  }


def kept_for_gradient(loss_fn, adapter: Any, base: Any, batch: Any) -> int:
  """Bytes that the loss's forward pass hands to its backward pass, besides its own arguments."""

  def residuals(adapter, base, batch):
    return jax.tree.leaves(jax.vjp(lambda one: loss_fn(one, base, batch)[0], adapter)[1])

  traced = jax.make_jaxpr(residuals)(adapter, base, batch).jaxpr
  given = {id(var) for var in (*traced.invars, *traced.constvars)}
  kept = {id(var): var.aval for var in traced.outvars if id(var) not in given}
  return sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in kept.values())


def _memory_table(plan: dict[str, int]) -> Table:
  table = Table(title='Memory of a round')
  table.add_column('use')
  table.add_column('MiB', justify='right')
  for use, count in plan.items():
    table.add_row(use, f'{count / 2**20:,.1f}')
  table.add_section()
  table.add_row('together (estimate; decoding and the compiler\'s own room come to it)',
                f'{sum(plan.values()) / 2**20:,.1f}')
  return table
