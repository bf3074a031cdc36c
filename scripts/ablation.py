"""Every method in every kind of heterogeneity, over several seeds, as one table.

    python scripts/ablation.py --config=configs/ablation_tiny.py --output=runs/ablation
      [--presets=fed_medlora,scaffold] [--settings=iid,types] [--seeds=0,1,2]

A figure is the loss of the trained adapter on the tested sites' sentences (nats per target token,
plain mean over those sites, and over the sites' own adapters where they differ), as mean and
standard deviation over seeds. The folder gets results.jsonl, a line a run, which the same command
continues, and table.md.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fedmedjax.compare.rows import regime_config
from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import communication
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.types import Data, Study
from fedmedjax.fed.local import mean_loss
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.types import FederatedAlgorithm, LocalData, Validation
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import check_workdir, claim, plain, read_lines, write_lines, write_text
from fedmedjax.types import InputError

# Kind of heterogeneity -> what it changes in the configuration.
SETTINGS = {
  'iid': {},
  'types': {'data.partition.kind': 'types', 'data.partition.strength': 0.3},
  'sizes': {'data.partition.kind': 'quantity', 'data.partition.strength': 1.5},
  'ranks': {'fed.ranks': (2, 2, 4, 8, 8)},
  'corrupted': {'data.partition.corrupted': 0.2},
}
TITLES = {
  'iid': 'IID', 'types': 'label skew', 'sizes': 'size skew', 'ranks': 'mixed ranks',
  'corrupted': '20 % corrupted'}
# Another learner, or nothing to train.
LEFT_OUT = ('zero_shot', 'fed_bert')


class Program(NamedTuple):
  """What runs of one method share: compiled once, whatever the data."""

  algorithm: FederatedAlgorithm
  test_loss: jax.stages.Wrapped   # (adapter, base, Validation) -> f32[]


class Cell(NamedTuple):
  """The notes of one kind of heterogeneity and seed."""

  config: ConfigDict
  data: Data


def cell(config: ConfigDict, setting: str, seed: int, reporter: Reporter) -> Cell:
  chosen = config.copy_and_resolve_references()
  chosen.update_from_flattened_dict(SETTINGS[setting] | {'seed': seed})
  return Cell(chosen, load_data(chosen, reporter))


def tested(data: Data, batch_size: int) -> schedules.Schedule:
  """The test sentences, where a schedule has its validation set."""
  sites = tuple(
    site._replace(tasks=tuple(
      part._replace(train=(), validation=part.test_tokens) for part in site.tasks))
    for site in data.tested)
  return schedules.Schedule(sites, (), np.zeros(0), None, batch_size)


def layouts(cells: Sequence[Cell], loss_on: Sequence[str]) -> dict[str, schedules.Layout]:
  """By config.fed.loss_on, the one shape that holds all steps of all cells."""
  steps, prefix = [], 0
  for config, data in cells:
    size = config.fed.batch_size
    plan = prepare(regime_config(config, 'fed_medlora', {}), data).schedule
    for schedule in (plan, tested(data, size)):
      steps += schedules.all_steps(schedule.sites, schedule.plan, size)
      prefix = max(prefix, *(
        len(part.instruction) - 1 for site in schedule.sites for part in site.tasks))
  found = {}
  for kind in loss_on:
    shape = pack.plan_shape(steps, prefix, kind)
    found[kind] = schedules.Layout(
      lambda part, examples, shape=shape, kind=kind: pack.pack(
        part.instruction, examples, shape, kind), pack.blank(shape, kind))
  return found


def final_losses(study: Study, program: Program, layout: dict, loss_on: str) -> tuple[float, float]:
  """Trains all rounds -> (test loss before, test loss after)."""
  schedule = study.schedule._replace(layout=layout[loss_on])
  test = Validation(*schedules.validation_arrays(
    tested(study.data, schedule.batch_size)._replace(layout=layout['completion'])))
  validation = study.validation and Validation(*schedules.validation_arrays(schedule))
  state = program.algorithm.init(study.trainable.adapter)
  before = float(
    program.test_loss(site_adapter(state, study.sharing, 0), study.trainable.base, test))
  key = jax.random.key(study.options.seed)
  for number in range(study.options.rounds):
    turn = communication.round_participation(study.communication, schedule, number)
    data = LocalData(
      *schedules.round_arrays(schedule, number, turn.cohort.sites, turn.steps), turn.weights)
    state, _ = program.algorithm.round(
      state, study.trainable.base, data, turn.cohort.sites, validation,
      jax.random.fold_in(key, number))
  return before, statistics.fmean(
    float(program.test_loss(site_adapter(state, study.sharing, site), study.trainable.base, test))
    for site in range(len(schedule.weights)))


def ablation(
  config: ConfigDict, folder: Path, presets: Sequence[str], settings: Sequence[str],
  seeds: Sequence[int], reporter: Reporter,
) -> None:
  """Runs what results.jsonl does not hold yet, then writes the table."""
  path, bound = folder / 'results.jsonl', plain(leaves(config.to_dict()))
  check_workdir(folder, bound)
  held = read_lines(path)
  done = {(line['preset'], line['setting'], line['seed']) for line in held}
  wanted = [(s, seed) for s in settings for seed in seeds]
  cells = {
    (setting, seed): cell(config, setting, seed, reporter) for setting, seed in wanted}
  layout = layouts(list(cells.values()), ('completion', 'all'))
  claim(folder, bound)
  for preset in presets:
    programs: dict[bool, Program] = {}
    for (setting, seed), (settled, data) in cells.items():
      if (preset, setting, seed) in done:
        continue
      begun, line = time.monotonic(), {'preset': preset, 'setting': setting, 'seed': seed}
      try:
        chosen = regime_config(settled, preset, {})
      except InputError as error:
        line['refused'] = str(error).split(': ', 2)[-1]
      else:
        study = prepare(chosen, data)
        mixed = bool(chosen.fed.ranks)
        if mixed not in programs:
          programs[mixed] = Program(
            study.algorithm, jax.jit(partial(mean_loss, study.trainable.loss_fn('none'))))
        before, after = final_losses(study, programs[mixed], layout, chosen.fed.loss_on)
        line |= {'before': before, 'loss': after, 'seconds': time.monotonic() - begun}
      held.append(plain(line))
      write_lines(path, held)
      reporter.say(' '.join(f'{value:.4f}' if isinstance(value, float) else str(value)
                            for value in line.values()))
  write_text(folder / 'table.md', table(held, presets, settings))
  reporter.say((folder / 'table.md').read_text())


def table(lines: Sequence[dict], presets: Sequence[str], settings: Sequence[str]) -> str:
  """Markdown: a row a method, mean and standard deviation over the seeds in each cell."""

  def entry(found: list[dict]) -> str:
    losses = [line['loss'] for line in found if line.get('loss') is not None]
    if not losses:
      return 'refused' if any('refused' in line for line in found) else '-'
    if len(losses) < len(found):
      return f'{len(found) - len(losses)} of {len(found)} diverged'
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return f'{statistics.fmean(losses):.3f} ± {spread:.3f}'

  def of(preset, setting):
    return [line for line in lines if line['preset'] == preset and line['setting'] == setting]

  start = {s: [line['before'] for line in lines if line['setting'] == s and 'before' in line]
           for s in settings}
  rows = [
    ['method', *(TITLES[setting] for setting in settings)],
    ['---', *('---:' for _ in settings)],
    ['before training', *(f'{statistics.fmean(v):.3f}' if v else '-' for v in start.values())],
    *([preset, *(entry(of(preset, setting)) for setting in settings)] for preset in presets)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('output', None, 'Folder of the results.', flag_values=values)
  flags.DEFINE_list(
    'presets', [name for name in PRESETS if name not in LEFT_OUT], 'Rows of PRESETS.',
    flag_values=values)
  flags.DEFINE_list('settings', list(SETTINGS), 'Kinds of heterogeneity.', flag_values=values)
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.', flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    config, values, _ = parse(argv, define)
    if not values.output:
      raise InputError('--output is missing: name a folder, such as --output=runs/ablation')
    for flag, allowed in (('presets', PRESETS), ('settings', SETTINGS)):
      for name in values[flag].value:
        if name not in allowed or name in LEFT_OUT:
          raise InputError(f'--{flag}: {name!r} is not one of '
                           + ', '.join(n for n in allowed if n not in LEFT_OUT))
    if not all(seed.isdigit() for seed in values.seeds):
      raise InputError(f'--seeds={",".join(values.seeds)}: integers >= 0 are allowed')
    set_up()
    ablation(config, Path(values.output), values.presets, values.settings,
             [int(seed) for seed in values.seeds], Reporter())

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
