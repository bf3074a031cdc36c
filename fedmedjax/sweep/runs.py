"""The runs of a sweep: points of the grid to configurations and folders, and what became of it."""

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fedmedjax.data.toml_file import parse_toml
from fedmedjax.experiment.command_line import choose_preset
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.meshes import make_mesh
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.settings import SCALES, SETTINGS
from fedmedjax.experiment.traced import program_key
from fedmedjax.store import files
from fedmedjax.sweep.grid import Axis, NamedAxes, Point, run_name
from fedmedjax.types import InputError

FILE, RUNS = 'sweep.json', 'runs'
DONE, FAILED, REFUSED, STOPPED, WAITING = 'done', 'failed', 'refused', 'stopped', 'waiting'
# Seconds between two writings of the file while runs end one after the other.
_PAUSE = 2.0
# Groups of keys that notes and their tokens do not depend on, and those of `fed` they do.
_NO_DATA = ('fed', 'optim', 'log', 'report', 'store', 'checkpoint', 'api', 'simulation', 'lora',
            'privacy')
_DATA = ('fed.learner', 'fed.micro_batch', 'fed.train', 'lora.targets', 'privacy.unit',
         'privacy.canaries')


class Run(NamedTuple):
  """One run of a sweep."""

  name: str
  point: Point
  config: ConfigDict
  values: dict[str, Any]   # flat, as JSON values: what config.json holds
  folder: Path
  program: str             # `traced.program_key`; '' = it is trained as `main` trains it

  @property
  def data(self) -> str:
    """A text that is equal for runs that read and tokenise the same notes in the same way."""
    return data_key(self.values)


def data_key(values: Mapping[str, Any], seeds: bool = True) -> str:
  """See `Run.data`; without `seeds`, equal also for runs that differ in their seed alone."""
  return repr(sorted(
    (key, value) for key, value in values.items()
    if key in _DATA or key.partition('.')[0] not in _NO_DATA and (
      seeds or key not in ('seed', 'data.seed'))))


def named_axes(path: Path | None) -> NamedAxes:
  """{axis: {value: {key: value}}}: 'setting' of `experiment/settings.py`, and those of a file.

  Args:
    path: of a TOML file, [AXIS.VALUE] above lines "KEY" = VALUE; None = there is none.

  Raises:
    InputError: it cannot be read, or a table in it is of another form.
  """
  axes = {'setting': {
    name: dict(setting.changes) for name, setting in (SETTINGS | SCALES).items()}}
  if path is None:
    return axes
  try:
    tables = parse_toml(path.read_text(encoding='utf-8'), path)
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'--axes={path}: cannot be read: {error}') from None
  for axis, values in tables.items():
    if not isinstance(values, dict) or not values or not all(
        isinstance(changes, dict) for changes in values.values()):
      raise InputError(
        f'--axes={path}: {axis}: tables [{axis}.VALUE] with lines "KEY" = VALUE are allowed')
    axes[axis] = {name: {
      key: _as_configured(value) for key, value in leaves(changes).items()}
      for name, changes in values.items()}
  return axes


def _as_configured(value: Any) -> Any:
  return tuple(map(_as_configured, value)) if isinstance(value, list) else value


def run_config(
  config: ConfigDict, given: Mapping[str, Any], point: Point, named: NamedAxes
) -> ConfigDict:
  """The configuration of a point, as `main` has it when all is given on its command line.

  Args:
    config: of the sweep, all keys.
    given: flat keys of the command line, which go before the row of a preset.
    point, named: see `grid.points`.

  Raises:
    InputError: `main` would refuse it.
  """
  chosen = config.copy_and_resolve_references()
  if 'fed.preset' in point:
    choose_preset(chosen, point['fed.preset'])
    chosen.update_from_flattened_dict(
      {key: value for key, value in given.items() if key != 'fed.preset'})
  changes = {key: value for axis in point if axis in named
             for key, value in named[axis][point[axis]].items()}
  changes |= {key: value for key, value in point.items()
              if key not in named and key != 'fed.preset'}
  try:
    chosen.update_from_flattened_dict(changes)
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    raise InputError(' '.join(str(error).split())[:300]) from None
  validate(chosen)
  return chosen


def expand(
  config: ConfigDict, given: Mapping[str, Any], points: Iterable[Point], named: NamedAxes,
  workdir: Path, skip_refused: bool = False,
) -> tuple[list[Run], dict[str, tuple[Point, str]]]:
  """(the runs of all points, {name of a refused one: its point and why}).

  A point whose configuration is that of a run in the folder already has that run's name.

  Raises:
    InputError: a point is refused, unless `skip_refused`; or all are.
  """
  runs, refused, texts = [], {}, {}
  known = {_identity(files.read_json(path)): path.parent.name
           for path in sorted((workdir / RUNS).glob('*/config.json'))}
  # What a name means, in the folder or in this call.
  meant = {name: text for text, name in known.items()}
  for point in points:
    try:
      chosen = run_config(config, given, point, named)
    except InputError as error:
      name = run_name(point)
      if not skip_refused:
        raise InputError(
          f'--grid: the run {name} is refused: {error} (--skip_refused leaves such runs out)'
        ) from None
      refused[name] = point, str(error)
      continue
    values = files.plain(leaves(chosen.to_dict()))
    text = _identity(values)
    if text in texts:
      raise InputError(
        f'--grid: {run_name(point)} is the same run as {texts[text]}; different ones are allowed')
    name = known.get(text) or run_name(
      point, [name for name in (run_name(point),) if meant.get(name, text) != text])
    texts[text], meant[name] = name, text
    runs.append(Run(
      name, point, chosen, values, workdir / RUNS / name, _program(chosen, values)))
  if not runs:
    raise InputError('--grid: every run is refused: ' + next(iter(refused.values()))[1])
  return runs, refused


def _identity(values: Mapping[str, Any]) -> str:
  """Equal for runs of equal results: all keys but those that may differ when a run resumes."""
  harmless = {*files.HARMLESS} - {'fed.rounds'}
  return json.dumps({key: value for key, value in sorted(values.items())
                     if not {key, key.partition('.')[0]} & harmless})


def _program(config: ConfigDict, values: Mapping[str, Any]) -> str:
  """'' for what has rules of its own about rounds or devices, or no rounds at all."""
  flat = leaves(config.to_dict())
  if values['privacy.unit'] or not values['fed.train'] or make_mesh(**config.mesh) is not None:
    return ''
  return program_key(flat, own_parts(flat))


class Record:
  """sweep.json: what was asked for and what became of every run; safe for several threads."""

  def __init__(
    self, workdir: Path, base: dict[str, Any], axes: Sequence[Axis], command: Sequence[str]
  ):
    """Nothing is written yet.

    Args:
      workdir: of the sweep; what it holds already is kept.
      base: the flat configuration that all runs begin with.
      axes: of the grid.
      command: as a shell's words.
    """
    self._path, self._lock, self._last = workdir / FILE, threading.Lock(), 0.0
    held = files.read_json(self._path) if self._path.exists() else {}
    self._runs: dict[str, dict] = {run['name']: run for run in held.get('runs', ())}
    self._halvings: dict[str, dict] = held.get('halvings', {})
    titles = {value: (SETTINGS | SCALES)[value].title for axis in axes if axis.key == 'setting'
              for value in axis.values}
    self._head = {
      'command': list(command), 'grid': files.plain([[axis.key, _told(axis)] for axis in axes]),
      'titles': held.get('titles', {}) | titles, 'base': base}

  def begin(self, runs: Iterable[Run], refused: Mapping[str, tuple[Point, str]]) -> None:
    """Adds runs, whose state is what their folders say.

    A run that the folder has begun keeps the overrides of the grid that it is from, and is given
    the named axes of this one.

    Raises:
      InputError: one sets what a run in the folder set, and has another configuration, as where the
        file of --axes has changed: the two could not be told apart.
    """
    folder = self._path.parent / RUNS
    begun = {json.dumps(run['overrides'], sort_keys=True): name
             for name, run in self._runs.items() if _config(folder / name).exists()}
    for run in runs:
      other = begun.get(json.dumps(files.plain(run.point), sort_keys=True), run.name)
      if other != run.name and not _config(run.folder).exists():
        raise InputError(
          f'--grid: {run.name} sets what the run {other} in the folder did, with another '
          'configuration; choose another workdir, or another name in the file of --axes')
      status = DONE if is_done(run) else WAITING
      before = self._runs.get(run.name, {})
      if before.get('status') == STOPPED:
        status = STOPPED
      overrides = files.plain(run.point)
      # A name of a run that has not begun may have come to mean another one, see `expand`.
      if before and _config(run.folder).exists():
        named = {key: value for key, value in overrides.items() if key not in run.values}
        overrides = named | before['overrides']
      self._runs[run.name] = {
        'name': run.name, 'overrides': overrides, 'status': status,
        # One that was refused, and is allowed now, has nothing to say.
        'error': before.get('error', '') if (
          status == WAITING and before.get('status') != REFUSED) else ''}
    for name, (point, why) in refused.items():
      self._runs[name] = {
        'name': name, 'overrides': files.plain(point), 'status': REFUSED, 'error': why}

  def status(self, name: str) -> str:
    return self._runs[name]['status']

  def errors(self) -> dict[str, str]:
    return {name: run['error'] for name, run in self._runs.items() if run['status'] == FAILED}

  def judged(self, rounds: int) -> dict[str, bool]:
    """{name: whether it went on} of the runs that were compared after so many rounds."""
    return dict(self._halvings.get(str(rounds), {}))

  def judge(self, rounds: int, went_on: Mapping[str, bool]) -> None:
    """Notes the outcome of a comparison, and writes."""
    self._halvings[str(rounds)] = self.judged(rounds) | dict(went_on)
    for name, on in went_on.items():
      if not on:
        self._runs[name] |= {'status': STOPPED, 'error': ''}
    self.write()

  def set(self, name: str, status: str, error: str = '') -> None:
    with self._lock:
      self._runs[name] |= {'status': status, 'error': error}
      due = time.monotonic() - self._last > _PAUSE
    if due:
      self.write()

  def write(self) -> None:
    with self._lock:
      self._last = time.monotonic()
      files.write_json(self._path, self._head | {
        'runs': list(self._runs.values()), 'halvings': self._halvings})


def _told(axis: Axis) -> list:
  """An axis in sweep.json: its values, or the range that they are drawn from."""
  return list(axis.values) if not axis.scale else [
    f'{axis.low:g}~{axis.high:g}' + (':linear' if axis.scale == 'linear' else '')]


def _config(folder: Path) -> Path:
  return folder / 'config.json'


def is_done(run: Run) -> bool:
  return (run.folder / 'summary.json').exists()


def check_folder(workdir: Path, base: dict[str, Any]) -> None:
  """Raises InputError where the folder holds anything but a sweep of this configuration."""
  files.check_place('--workdir', workdir)
  path = workdir / FILE
  if not path.exists():
    if workdir.is_dir() and {entry.name for entry in os.scandir(workdir)} - {'lock'}:
      raise InputError(f'--workdir={workdir}: is not empty and holds no sweep of fedmedjax')
    return
  held = files.read_json(path).get('base', {})
  harmless = {*files.HARMLESS} - {'fed.rounds'}
  changed = [key for key in sorted(base.keys() | held.keys()) if base.get(key) != held.get(key)
             and not {key, key.partition('.')[0]} & harmless]
  if changed:
    raise InputError(
      f'--workdir={workdir}: holds a sweep with config.{changed[0]}={held.get(changed[0])!r}, this '
      f'one has {base.get(changed[0])!r}; choose another workdir, or name the key in --grid')
