"""The numbers of finished runs as one tidy table: a row a run x round x site x task x metric.

The table is made from config.json, metrics.jsonl and summary.json of the folders of `main`,
`compare` or `sweep` alone. docs/files.md describes its columns. Metrics have the names that they
have in those files.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmedjax.store.files import read_json, read_lines
from fedmedjax.types import InputError

if TYPE_CHECKING:
  import pandas

SWEEP, RUNS = 'sweep.json', 'runs'
# What a command of sweep.json begins with, wherever its program lies.
PROGRAM = 'python', '-m', 'fedmedjax.sweep'
PARQUET, CSV = 'results.parquet', 'results.csv'
_INSTALL = "pip install 'fedmedjax[results]'"

# Of a line of metrics.jsonl, lists with an entry for each site of the round, and their metric.
_BY_SITE = {
  'steps': 'steps', 'weights': 'weight', 'train_loss': 'train_loss', 'last_loss': 'last_loss',
  'validation_loss': 'validation_loss', 'update_norm': 'update_norm', 'cosine': 'cosine',
  'site_bytes_up': 'bytes_up', 'site_bytes_down': 'bytes_down',
  'site_seconds': 'simulated_seconds', 'staleness': 'staleness', 'clusters': 'cluster',
  'contribution': 'contribution', 'contribution_error': 'contribution_error'}
# Lists of those sites of a round that something holds of.
_NAMED = ('quarantined', 'rising')
# Numbers that are no results: columns, and the plan of the computation.
_NO_METRICS = {'round', 'chunk', 'seed', 'rounds'}
# Rows that become a part of the table at once.
_AT_ONCE = 50_000
# Columns that say what their keys do.
_COLUMN_OF = {'fed.preset': 'preset', 'seed': 'seed'}


class Row(NamedTuple):
  """A number of a run; the columns of the table that do not depend on the configuration."""

  run: str                # name of its folder, below the folder that was asked for
  preset: str
  seed: int
  status: str             # 'done', 'unfinished', or what sweep.json says of it
  stage: str              # where it is from, see docs/files.md
  round: int              # rounds that were trained before it was measured
  site: str               # '' = all sites
  external: bool          # whether the site is never trained on
  task: str               # '' = none
  metric: str
  value: float
  low: float | None       # 95 % interval, where there is one
  high: float | None


class Folder(NamedTuple):
  """A run on disk."""

  name: str
  path: Path
  status: str = ''                       # of sweep.json; '' = its files say it
  overrides: Mapping[str, Any] = {}      # of sweep.json


def rows_of(folder: Folder) -> Iterator[Row]:
  """The rows of one run, rounds first; an unfinished run has no others.

  Raises:
    InputError: a file cannot be read.
  """
  config, path = read_json(folder.path / 'config.json'), folder.path / 'summary.json'
  summary = read_json(path) if path.exists() else None
  status = folder.status or ('done' if summary else 'unfinished')
  known: Mapping[str, Any] = summary or {}
  preset = known.get('preset', config.get('fed.preset', ''))
  seed, external = known.get('seed', config.get('seed', 0)), {*known.get('external', ())}

  def row(stage, number, site, task, metric, value, low=None, high=None) -> Row:
    return Row(folder.name, preset, seed, status, stage, number, site, site in external, task,
               metric, float(value), low, high)

  for line in read_lines(folder.path / 'metrics.jsonl'):
    for site, metric, value in _of_round(line):
      yield row('round', line['round'], site, '', metric, value)
  if summary is None:
    return
  for stage, number, scores in _scored(summary):
    for site, tasks in scores.items():
      for task, entry in tasks.items():
        for found in _of_scores(entry):
          yield row(stage, number, site, task, *found)
  rounds = summary['rounds']
  for site, metric, value in _counted(summary):
    yield row('final', rounds, site, '', metric, value)
  for key, value in summary.items():
    if _is_number(value) and key not in _NO_METRICS:
      yield row('total', rounds, '', '', key, value)
  if _is_number(spent := (summary.get('privacy') or {}).get('epsilon')):
    yield row('total', rounds, '', '', 'epsilon', spent)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _of_round(line: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
  """(site, metric, value) of a line of metrics.jsonl, without what it does not have."""
  sites = line['sites']
  for key, values in line.items():
    if key in _BY_SITE:
      for site, value in zip(sites, values or (), strict=False):
        if _is_number(value):
          yield site, _BY_SITE[key], value
    elif key in _NAMED:
      yield from ((site, key, site in values) for site in sites)
    elif key == 'validation_f1_sites':
      yield from ((site, 'validation_f1', value) for site, value in values.items()
                  if _is_number(value))
    elif _is_number(values) and key not in _NO_METRICS:
      yield '', key, values


def _scored(summary: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping]]:
  """(stage, rounds before it, scores) of all scores of a summary."""
  rounds = summary['rounds']
  yield 'final', rounds, summary['scores']
  for stage, number in (('zero_shot', 0), ('global', rounds)):
    if summary.get(stage):
      yield stage, number, summary[stage]['scores']
  for adapter, scores in (summary.get('cross_site') or {}).items():
    yield f'cross_site:{adapter}', rounds, scores
  if summary.get('teacher_forced'):
    yield 'teacher_forced', rounds, summary['teacher_forced']


def _of_scores(
  entry: Mapping[str, Any], path: str = ''
) -> Iterator[tuple[str, float, float | None, float | None]]:
  """(metric, value, low, high) of the scores of a task; metrics are paths, joined by dots."""
  low, high = entry.get('ci95') or (None, None)
  for key, value in entry.items():
    name = path if key == 'value' else f'{path}.{key}'.lstrip('.')
    if isinstance(value, dict):
      yield from _of_scores(value, name)
    elif _is_number(value):
      yield (name, value, low, high) if key in ('f1', 'value') else (name, value, None, None)
  for what in ('gold', 'predicted') if 'per_type' in entry else ():
    yield f'{path}.{what}'.lstrip('.'), sum(
      found[what] for found in entry['per_type'].values()), None, None


def _counted(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
  """(site, metric, value): how much was tested."""
  tested = (*summary.get('sites', ()), *summary.get('external', ()))
  for site, sources in zip(tested, summary.get('test_sources', ()), strict=False):
    yield site, 'sources', sources
  for site, answers in (summary.get('answers') or {}).items():
    yield from ((site, f'answers.{what}', count) for what, count in answers.items())


def folders_of(path: Path) -> list[Folder]:
  """The runs below a folder of `main`, `compare` or `sweep`.

  Of a sweep they are those of sweep.json that have begun, in its order.

  Raises:
    InputError: there is none.
  """
  if (path / SWEEP).exists():
    found = [
      Folder(run['name'], path / RUNS / run['name'], run['status'], run.get('overrides') or {})
      for run in read_json(path / SWEEP)['runs']]
    return [folder for folder in found if (folder.path / 'config.json').exists()]
  found = [Folder(run.relative_to(path).as_posix() if run != path else path.resolve().name, run)
           for run in _runs(path)] if path.is_dir() else []
  if not found:
    raise InputError(f'{path}: holds no run (config.json), comparison or sweep (sweep.json)')
  return found


def _runs(path: Path) -> Iterator[Path]:
  """Folders with the config.json of a run; models have files of that name, too."""
  config = path / 'config.json'
  if config.is_file() and 'data.sites' in read_json(config):
    yield path
    return
  for inside in sorted(path.iterdir()):
    if inside.is_dir() and not inside.is_symlink():
      yield from _runs(inside)


def configured(folders: Sequence[Folder]) -> dict[str, list]:
  """{'config.KEY': its value in each run} of the keys that are columns of the table.

  These are the keys that a sweep has set, and those that differ between runs of one preset: what
  the preset itself sets is not repeated. An axis of several keys, such as setting, has the value
  that sweep.json notes. Lists are texts, as JSON.
  """
  configs = [read_json(folder.path / 'config.json') for folder in folders]
  wanted = dict.fromkeys(key for folder in folders for key in folder.overrides)
  of_preset: dict[tuple, set] = {}
  for config in configs:
    for key, value in config.items():
      of_preset.setdefault((key, config.get('fed.preset')), set()).add(_cell(value))
  wanted |= dict.fromkeys(key for (key, _), values in of_preset.items() if len(values) > 1)
  return {
    f'config.{key}': _column([
      _cell(config.get(key, folder.overrides.get(key)))
      for folder, config in zip(folders, configs, strict=True)])
    for key in wanted if key not in _COLUMN_OF}


def _cell(value: Any) -> Any:
  return json.dumps(value) if isinstance(value, list | dict) else value


def _column(values: list) -> list:
  """Values of one kind: numbers, or texts where they are mixed."""
  kinds = {type(value) for value in values if value is not None}
  if len(kinds) < 2:
    return values
  kind = float if kinds == {int, float} else str
  return [value if value is None else kind(value) for value in values]


def load(path: Path) -> 'pandas.DataFrame':
  """The table of all runs below a folder, see `Row` and `configured`.

  Raises:
    InputError: pandas is missing, or there is no run, or a file cannot be read.
  """
  try:
    import pandas
  except ImportError:
    raise InputError(f'load_results: a table needs the package pandas; {_INSTALL}') from None
  folders = folders_of(path)
  rows: list[Row] = []
  numbers, parts = [], []
  for place, folder in enumerate(folders, 1):
    before = len(rows)
    rows.extend(rows_of(folder))
    numbers.append(len(rows) - before)
    # As objects of Python the rows of thousands of runs would take gigabytes.
    if len(rows) > _AT_ONCE or place == len(folders):
      part = pandas.DataFrame(rows, columns=Row._fields)
      parts.append(part.astype({'low': float, 'high': float}))
      rows = []
  frame = pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame(
    columns=Row._fields)
  for key, values in configured(folders).items():
    column = pandas.Series(values).repeat(numbers)
    frame[key] = column.to_numpy()
  return frame


def write(workdir: Path) -> str:
  """Writes results.parquet and results.csv of a folder -> a sentence on what was written.

  Without the packages for it nothing is written, and the sentence says how to get them.

  Raises:
    InputError: as `load`.
  """
  try:
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401
  except ImportError as error:
    return f'{PARQUET} and {CSV} are left out for want of the package {error.name}; {_INSTALL}'
  frame = load(workdir)
  for name, save in ((PARQUET, frame.to_parquet), (CSV, frame.to_csv)):
    part = workdir / f'{name}.part'
    save(part, index=False)
    part.replace(workdir / name)
  return f'{len(frame):,} rows: {workdir / PARQUET}, {workdir / CSV}'
