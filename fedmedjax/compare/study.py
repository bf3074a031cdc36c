"""Carries out units of the study, and keeps one row of figures of each finished one.

Rows stand in docs/results/STUDY.jsonl, are committed, and add up over days and machines. A unit
that has a row is skipped; one that was killed goes on from what its run has saved. A row belongs to
a unit as long as the unit's name, seeds and settings are what they were, see `same`.
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.compare.study_units import Unit
from fedmedjax.eval import paired
from fedmedjax.eval.paired import Answers
from fedmedjax.experiment import defaults, matmul
from fedmedjax.experiment.build import load_data
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.types import Data
from fedmedjax.runtime.phrases import duration
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.types import InputError

# Settings that change no figure, or are where something lies: no part of a row's `config`.
_PLACES = ('lora.start', 'data.root', 'seed', 'data.seed')
_HARMLESS = set(files.HARMLESS) - {'fed.rounds'}
# Settings that a run's notes, tokens and base model depend on.
_OF_DATA = {'seed', 'model', 'data', 'eval', 'mesh', 'lora', 'fed.learner'}
# What numbers are computed from: changes elsewhere leave a commit clean.
_CODE = ('fedmedjax', 'configs', 'scripts', 'setup.py', 'constraints.txt')


class Paths(NamedTuple):
  """Where a study lies."""

  root: Path     # of the repository
  results: Path  # docs/results there
  runs: Path     # the folder of all runs

  def rows(self, study: str) -> Path:
    return self.results / f'{study}.jsonl'


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a study, [] if there is no file.

  Raises:
    InputError: a line is no row; it would be lost silently.
  """
  rows = []
  for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
    try:
      row = json.loads(line)
      row['unit'].items(), row['commit']  # noqa: B018 - every row has these
    except (ValueError, LookupError, TypeError, AttributeError):
      raise InputError(f'{path}, line {number}: no row of a study; delete the line, and its unit '
                       'is carried out again') from None
    rows.append(row)
  return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
  """Adds a row in a single write, which several processes may do, and waits for the disk."""
  path.parent.mkdir(parents=True, exist_ok=True)
  line = json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n'
  with path.open('ab', buffering=0) as file:
    file.write(line.encode())
    os.fsync(file.fileno())


def identity(unit: Unit) -> dict[str, Any]:
  """What a unit's row is known by: its name and, of a run, its seeds and settings.

  Settings are those that differ from the package's defaults, without what changes no figure. So a
  new key of the configuration leaves old rows valid, and another number of rounds does not.
  """
  if unit.run is None:
    return files.plain({'unit': unit.name, 'config': unit.settings})
  config = unit.run.config
  values, usual = (leaves(one.to_dict()) for one in (config, defaults.get_config()))
  usual |= {matmul.KEY: matmul.WIDE}  # in which all rows are computed that do not say otherwise
  seed = values['seed']
  own = values.get('data.seed', -1)
  return files.plain({
    'unit': unit.name, 'seed': seed, 'data_seed': seed if own < 0 else own,
    'config': {
      key: value for key, value in values.items()
      if value != usual[key] and key not in _PLACES
      and not {key, key.split('.')[0]} & _HARMLESS}})


def done(unit: Unit, rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
  """The row of a unit, None if it is still to be carried out."""
  wanted = _of_figures(identity(unit))
  return next((row for row in rows if all(
    _of_figures(row).get(key) == value for key, value in wanted.items())), None)


def _of_figures(row: dict[str, Any]) -> dict[str, Any]:
  """A row whose settings are those that change figures: what is shown of a step changes none."""
  return row | {'config': {
    key: value for key, value in row.get('config', {}).items() if not key.startswith('log.')}}


def carry_out(
  units: Sequence[Unit], paths: Paths, reporter: Reporter, *, minutes: float = 0.0
) -> int:
  """Carries out the units that have no row yet, one after the other -> how many it did.

  Args:
    units: in this order.
    paths: of the study.
    reporter: gets a line for every unit.
    minutes: no unit is started after so many; 0 = no limit.

  Raises:
    InputError, RuntimeError: as `train.run.run`; rows so far are kept.
  """
  begun, number, loaded = time.monotonic(), 0, {}
  for place, unit in enumerate(units, start=1):
    rows = paths.rows(unit.study)
    if done(unit, read_rows(rows)):
      continue
    if minutes and time.monotonic() - begun >= 60 * minutes:
      reporter.say(f'{minutes:g} minutes are over; {len(units) - place + 1} units from {unit} on '
                   'were not looked at')
      break
    reporter.say(f'unit {place} of {len(units)}: {unit}, about {unit.hours:.1f} hours')
    row = _row(unit, paths, reporter, loaded)
    append_row(rows, row)
    number += 1
    reporter.say(f'unit {place} of {len(units)}: {unit}: a row in {rows}, '
                 f'{duration(row["seconds"])}')
  return number


def _row(unit: Unit, paths: Paths, reporter: Reporter, loaded: dict) -> dict[str, Any]:
  """Carries out a unit -> its row. `loaded` holds the data of the last run, and its language model.
  """
  begun, commit = time.monotonic(), commit_of(paths.root)
  if unit.start and not (unit.start.run.folder / 'adapter').exists():
    reporter.say(f'{unit} starts from the adapter of {unit.start}, which is made first')
    first = _row(unit.start, paths, reporter, loaded)
    if not done(unit.start, read_rows(paths.rows(unit.start.study))):
      append_row(paths.rows(unit.start.study), first)
  if unit.figures:
    found = unit.figures(reporter)
    seconds = time.monotonic() - begun
  else:
    commit = _all_commits(unit.run.folder, commit)
    settled = _settled(unit, reporter)
    summary = settled.run.run(
      settled.run.config, unit.run.folder, reporter, _data(settled, loaded, reporter))
    found, seconds = run_figures(settled, summary), summary['wall_seconds']
    if settled is not unit:
      found['matmul'] = settled.run.config.model.matmul
  return files.plain(identity(unit) | {
    'digest': digest(unit), 'commit': commit, 'processor': processor(),
    'seconds': round(seconds, 1)} | found)


def _settled(unit: Unit, reporter: Reporter) -> Unit:
  """The unit with what config.model.matmul='auto' means here, or meant where its run began.

  Its row is known by 'auto' on all machines, and keeps what was taken as `matmul`.
  """
  row = unit.run
  if row.config.model.matmul != matmul.AUTO:
    return unit
  config = matmul.settled(row.config, reporter, [row.folder])
  return unit._replace(run=row._replace(
    config=config, settings=row.settings | {matmul.KEY: config.model.matmul}))


def _data(unit: Unit, loaded: dict, reporter: Reporter) -> Data | None:
  """The unit's data, if possible those of the last run; None where its run is finished."""
  row = unit.run
  if files.check_workdir(row.folder, row.settings, row.harmless):
    return None
  key = json.dumps({
    name: value for name, value in row.settings.items()
    if {name, name.split('.')[0]} & _OF_DATA},
    sort_keys=True)
  if key not in loaded:
    base = next((data.base for data in loaded.values()), None)
    loaded.clear()
    loaded[key] = load_data(row.config, reporter, base)
  return loaded[key]


def run_figures(unit: Unit, summary: dict) -> dict[str, Any]:
  """What a row holds of a finished run, beside what it is known by.

  `scores` are {cohort: {'sources', 'decoding', 'teacher_forced'}}: the names of the sources that
  were tested, and of each (tp, fp, fn) by the strict count, then by the lenient one, of entities of
  all types. Where sites have adapters of their own their counts are added, and `best` is the same
  of the one whose loss on V is least, which is named.
  """
  found = paired.read_answers(unit.run.folder / 'predictions')
  out = {
    'scores': _counts(found['scores'], found['teacher_forced']),
    'local_steps': summary['local_steps'], 'bytes_up': summary['bytes_up'],
    'bytes_down': summary['bytes_down'], 'bytes_full_model': summary['bytes_full_model'],
    'copy_rate': summary['copy_rate'], 'parse_failure_rate': summary['parse_failure_rate']}
  if found['cross_site'] and found['validation']:
    name = min(found['validation'], key=found['validation'].__getitem__)
    out |= {'validation': found['validation'], 'best': {
      'site': name, 'scores': _counts(
        found['cross_site'][name], found['teacher_forced_cross_site'].get(name, {}))}}
  return out


def _counts(decoded: Answers, forced: Answers) -> dict[str, dict[str, Any]]:
  out = {}
  for cohort, scores in decoded.items():
    kinds = {'decoding': scores, 'teacher_forced': forced.get(cohort, {})}
    out[cohort] = {'sources': scores['ner'].sources} | {
      # Of i[N, 2, T + 1, 3] the last type is that of all types merged.
      kind: counted['ner'].counts[:, :, :-1].sum(2).reshape(-1, 6)
      for kind, counted in kinds.items() if 'ner' in counted}
  return out


def digest(unit: Unit) -> str:
  """A checksum of the unit's whole configuration, but for where things lie."""
  whole = unit.settings if unit.run is None else unit.run.settings
  settings = {key: value for key, value in whole.items() if key not in _PLACES[:2]}
  text = json.dumps(files.plain([unit.study, unit.name, settings]), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:files.CHECKSUM_DIGITS]


def commit_of(root: Path) -> str:
  """The commit of the code in a repository, with + where files were changed since; else 'unknown'.
  """
  def git(*words: str) -> str:
    return subprocess.run(
      ['git', '-C', str(root), *words], check=True, capture_output=True, text=True).stdout.strip()

  try:
    changed = git('status', '--porcelain', '--', *_CODE)
    return git('rev-parse', '--short=7', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'


def _all_commits(folder: Path, now: str) -> str:
  """The commits by which a run was carried out, in the order in which it went on."""
  path = folder.with_name(f'{folder.name}.commits.json')
  known = json.loads(path.read_text()) if path.exists() and folder.exists() else []
  if now not in known:
    known.append(now)
    files.write_json(path, known)
  return ', '.join(known)


def processor() -> str:
  """The model and the number of cores of this machine's processor, or the accelerator's name."""
  import jax
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return device.device_kind
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  named = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
  return f'{next(named, "") or platform.processor() or platform.machine()}, {os.cpu_count()} cores'


def listing(units: Sequence[Unit], paths: Paths) -> str:
  """Every unit in a line: done, with its commit and hours, or to do, with the hours it may take."""
  lines, left = [], 0.0
  for unit in units:
    row = done(unit, read_rows(paths.rows(unit.study)))
    if row:
      lines.append(f'done   {unit}: commit {row["commit"]}, {row["seconds"] / 3600:.2f} hours')
    else:
      left += unit.hours
      lines.append(f'to do  {unit}: about {unit.hours:.2f} hours')
  waiting = sum(line.startswith('to do') for line in lines)
  return '\n'.join([*lines, f'{waiting} of {len(lines)} units to do, about {left:.1f} hours of two '
                    'quiet cores'])
