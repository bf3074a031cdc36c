"""Methods against each other on a word tagger, over settings and seeds, about a second a run.

`ablation` trains every preset in every setting for every seed and `tables` compares them, paired by
the seed: in one setting, runs of one seed have the same notes, sites and damage. What such a
comparison can tell and what not is in docs/models.md.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from fedmedjax.compare.rows import DEPTH, regime_config
from fedmedjax.compare.together import Outcome, outcomes, program
from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.methods import num_sites
from fedmedjax.experiment.presets import trained_presets
from fedmedjax.experiment.settings import SCALES, SETTINGS
from fedmedjax.experiment.types import Data
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import (
  append_line,
  check_workdir,
  claim,
  plain,
  read_lines,
  write_lines,
  write_text,
)
from fedmedjax.train.run_axis import Program
from fedmedjax.types import InputError

RESULTS, TABLE = 'results.jsonl', 'table.md'
# Methods under way at once: while one is compiled another computes.
_WORKERS = 2
# What the differences of the tables are to.
BASELINE = 'fed_medlora'


SCALED = ('single_site', BASELINE, 'fed_medlora_peer', 'centralised', DEPTH)
# What is shown first: how much joining is worth, and what one wrong site does to it.
SMALL = (
  ('single_site', BASELINE, 'centralised', 'fed_medlora_peer'), ('iid', 'wrong_1'), range(5))


def ablation(
  config: ConfigDict, folder: Path, presets: Sequence[str], settings: Sequence[str],
  seeds: Sequence[int], reporter: Reporter,
) -> list[dict]:
  """Runs what results.jsonl in `folder` does not hold yet -> all its rows that were asked for.

  A row is a run: {'preset', 'setting', 'seed', 'f1' (mean over cohorts), 'cohorts' (F1 of each),
  'loss', 'weights', 'seconds'}, or one of a combination that is refused: {..., 'refused': why}.

  Args:
    config: as of configs/ablation.py, its learner 'tagger'.
    folder: made when absent.
    presets: of `trained_presets`, or DEPTH.
    settings: keys of SETTINGS or SCALES.
    seeds: values of config.seed, and of config.data.seed where that is -1.
    reporter: is told how far it is.

  Raises:
    InputError: another learner, an unknown name, or the folder of another configuration.
  """
  _check(config, presets, settings, seeds)
  bound = plain({key: value for key, value in leaves(config.to_dict()).items()
                 if key not in ('seed', 'fed.preset')})
  check_workdir(folder, bound)
  claim(folder, bound)
  rows, programs, writing = read_lines(folder / RESULTS), {}, threading.Lock()
  write_lines(folder / RESULTS, rows)  # without a last line that a crash has cut short
  done = {(row['preset'], row['setting'], row['seed']) for row in rows}
  missing = {
    (setting, preset): [seed for seed in seeds if (preset, setting, seed) not in done]
    for setting in settings for preset in presets}

  def add(row: dict) -> None:
    with writing:
      rows.append(plain(row))
      append_line(folder / RESULTS, rows[-1])

  total = sum(map(len, missing.values()))
  if not total:
    return _asked(rows, presets, settings, seeds)
  with reporter.task('ablation', total) as advance, ThreadPoolExecutor(_WORKERS) as pool:
    for setting in settings:
      needed = sorted({seed for preset in presets for seed in missing[setting, preset]})
      cells = dict(zip(needed, pool.map(partial(_cell, config, setting), needed), strict=True))

      def method(preset: str, setting=setting, cells=cells) -> None:
        wanted = missing[setting, preset]
        _method(config, preset, setting, wanted, cells, programs, add)
        if wanted:
          advance(len(wanted), f'{preset}, {(SETTINGS | SCALES)[setting].title}')

      try:
        list(pool.map(method, presets))
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
  return _asked(rows, presets, settings, seeds)


def _asked(
  rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str], seeds: Sequence[int]
) -> list[dict]:
  asked = {(preset, setting, seed) for preset in presets for setting in settings for seed in seeds}
  return [row for row in rows if (row['preset'], row['setting'], row['seed']) in asked]


def _check(config: ConfigDict, presets, settings, seeds) -> None:
  if config.fed.learner != 'tagger':
    raise InputError(
      f"config.fed.learner={config.fed.learner!r}: an ablation trains the learner 'tagger'")
  if num_sites(leaves(config.to_dict())) != 5 or not config.data.partition.kind:
    raise InputError(
      f'config.data.partition: kind={config.data.partition.kind!r}, '
      f'sites={config.data.partition.sites}: the settings of an ablation are for 5 sites that are '
      'dealt out')
  values = leaves(config.to_dict())
  for key in ('fed.cohort_size', 'simulation.failure', 'simulation.deadline'):
    if values[key]:
      raise InputError(
        f'config.{key}={values[key]}: all sites of an ablation take all their steps; use 0')
  if config.privacy.unit:
    raise InputError(
      f'config.privacy.unit={config.privacy.unit!r}: runs of an ablation share programs, and noise '
      "that is made for one run's sites is not another's; use ''")
  if not config.fed.local_steps:
    raise InputError(
      'config.fed.local_steps=0: a number >= 1 is needed, so that all runs take equal steps')
  known = {'presets': (*trained_presets(), DEPTH), 'settings': (*SETTINGS, *SCALES)}
  for flag, names in (('presets', presets), ('settings', settings)):
    for name in names:
      if name not in known[flag]:
        raise InputError(f'--{flag}: {name!r} is not one of {", ".join(known[flag])}')
  for flag, values in (('presets', presets), ('settings', settings), ('seeds', seeds)):
    if not values or len(set(values)) < len(values):
      raise InputError(
        f'--{flag}={",".join(map(str, values))}: one or several, each once, are allowed')


def run_config(config: ConfigDict, preset: str, setting: str, seed: int) -> ConfigDict:
  """The configuration of one run of an ablation, as `main` would take it.

  Raises:
    InputError: the preset is refused in this setting.
  """
  return regime_config(_setting_config(config, setting, seed), preset, {})


def _setting_config(config: ConfigDict, setting: str, seed: int) -> ConfigDict:
  chosen = config.copy_and_resolve_references()
  changes = (SETTINGS | SCALES)[setting].changes
  chosen.update_from_flattened_dict({**changes, 'seed': seed})
  return chosen


def _cell(config: ConfigDict, setting: str, seed: int) -> Data:
  """The data of a setting and seed, which are those of all methods."""
  # Four lines for each of many data sets would hide the progress.
  return load_data(_setting_config(config, setting, seed), Reporter(Console(quiet=True)))


def _method(
  config: ConfigDict, preset: str, setting: str, seeds: Sequence[int], cells: Mapping[int, Data],
  programs: dict[str, Program], add: Callable[[dict], None],
) -> None:
  """One preset in one setting: its runs of these seeds.

  Args:
    cells: the data of the setting by seed.
    programs: those compiled before, by what they depend on, which is added to.
    add: takes a row.
  """
  studies = {}
  for seed in seeds:
    row = {'preset': preset, 'setting': setting, 'seed': seed}
    try:
      chosen = run_config(config, preset, setting, seed)
    except InputError as error:
      add(row | {'refused': str(error).split(': ', 2)[-1]})
      continue
    studies[seed] = prepare(chosen, cells[seed])
  if not studies:
    return
  values = {key: value for key, value in leaves(chosen.to_dict()).items()
            if not key.startswith(('data.', 'eval.')) and key != 'seed'}
  key = repr((values, len(studies[seeds[-1]].schedule.weights)))
  if key not in programs:
    programs[key] = program(studies[seeds[-1]])

  def scored(seed: int, found: Outcome) -> None:
    add({
      'preset': preset, 'setting': setting, 'seed': seed, 'f1': np.mean(list(found.f1.values())),
      'cohorts': found.f1, 'loss': found.loss, 'weights': found.weights,
      'seconds': found.seconds})

  outcomes(studies, programs[key], scored)


def difference(rows: Iterable[dict], preset: str, setting: str) -> Estimate | None:
  """F1 of a preset less that of BASELINE, paired by seed, with its t interval over seeds.

  None where no seed has both.
  """
  by_seed: dict[str, dict[int, float]] = {preset: {}, BASELINE: {}}
  for row in rows:
    if row['setting'] == setting and row['preset'] in by_seed and 'f1' in row:
      by_seed[row['preset']][row['seed']] = row['f1']
  common = sorted(by_seed[preset].keys() & by_seed[BASELINE].keys())
  if not common:
    return None
  apart = np.array([by_seed[preset][seed] - by_seed[BASELINE][seed] for seed in common])
  return intervals.estimate(
    float(apart.mean()), [intervals.of_seeds(apart)], (-1.0, 1.0), test=True)


def _f1(rows: Iterable[dict], preset: str, setting: str) -> str:
  """Mean F1 over seeds and its standard deviation, or why there is none."""
  own = [row for row in rows if (row['preset'], row['setting']) == (preset, setting)]
  found = [row['f1'] for row in own if 'f1' in row]
  if not found:
    return 'refused' if any('refused' in row for row in own) else '-'
  spread = f' ± {np.std(found, ddof=1):.3f}' if len(found) > 1 else ''
  return f'{np.mean(found):.3f}{spread}'


def _points(estimate: Estimate | None, refused: str) -> str:
  if estimate is None:
    return refused if refused == 'refused' else '-'
  if estimate.low is None:
    return f'{100 * estimate.value:+.1f}'
  low, high = 100 * estimate.low, 100 * estimate.high
  return f'{100 * estimate.value:+.1f} [{low:+.1f}, {high:+.1f}]'


def tables(rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str]) -> str:
  """Two tables in Markdown: F1, and differences to BASELINE in points with 95 % t intervals.

  A row a preset, a column a setting; rows of other presets and settings are left out.
  """
  titles = [(SETTINGS | SCALES)[setting].title for setting in settings]

  def table(what: str, cell: Callable[[str, str], str], names: Sequence[str]) -> str:
    lines = [['method', *titles], ['---', *('---:' for _ in titles)], *(
      [name, *(cell(name, setting) for setting in settings)] for name in names)]
    return '\n'.join([what, '', *('| ' + ' | '.join(line) + ' |' for line in lines)]) + '\n'

  number = len({row['seed'] for row in rows})
  others = [name for name in presets if name != BASELINE]
  return table(
    f'Typed strict F1, mean over the cohorts and {many(number, "seed")} ± standard deviation over '
    'seeds.',
    lambda name, setting: _f1(rows, name, setting), presets) + '\n' + table(
      f'Difference to {BASELINE} in points of F1, paired by seed [95 % t interval over seeds].',
      lambda name, setting: _points(
        difference(rows, name, setting), _f1(rows, name, setting)), others)


def write_tables(
  folder: Path, rows: Sequence[dict], blocks: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> str:
  """Writes table.md with the tables of each block (presets, settings) -> its text."""
  text = '\n'.join(tables(rows, presets, settings) for presets, settings in blocks)
  write_text(folder / TABLE, text)
  return text
