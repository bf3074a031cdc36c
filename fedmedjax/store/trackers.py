"""What shows a run's numbers while it goes on: the trackers of config.log.trackers.

TensorBoard's file is written by ourselves and is always as metrics.jsonl is. A library keeps a run
of its own, which is gone on with when ours is: WORKDIR/trackers.json has its key and the number of
rounds that it was given. The number is written first, so that no round is there twice; a crash
between the two costs the library that round.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.store import files, points, tensorboard
from fedmedjax.store.tracking_libraries import LIBRARIES, Log
from fedmedjax.types import InputError

FILE = 'trackers.json'
TENSORBOARD = 'tensorboard'
NAMES = (TENSORBOARD, *LIBRARIES)


class Tracker(NamedTuple):
  """Shows the numbers of a run; `lines` are those of all rounds so far, of metrics.jsonl."""

  restart: Callable[[Sequence[dict]], None]       # (lines): training begins, or goes on after them
  add: Callable[[Sequence[dict]], None]           # (lines): the last of them is new
  finish: Callable[[Sequence[dict], dict], None]  # (lines, summary): the run is scored


def check_installed(names: Sequence[str]) -> None:
  """Raises InputError when a library of config.log.trackers is missing, and says how to get it."""
  for name in names:
    for module, package in LIBRARIES[name].needs.items() if name in LIBRARIES else ():
      found = importlib.util.find_spec(module)
      # A folder of this name, such as W&B leaves where it runs, is no module.
      if found is None or found.origin is None:
        raise InputError(
          f"config.log.trackers={tuple(names)!r}: {name} needs the package {package}; pip install "
          f"{package}, or 'fedmedjax[trackers]' for all of them")


@contextmanager
def started(
  names: Sequence[str], workdir: Path, settings: Mapping[str, Any], sites: Sequence[str],
  warn: Callable[[str], None],
) -> Iterator[Tracker]:
  """A context with the trackers of a run as one, which are closed at its end.

  A library that fails later on is warned of and left out; the run goes on.

  Args:
    names: some of NAMES; a run of several processes has them in its first process only.
    workdir: the run's folder.
    settings: flat config as JSON values, {'fed.rounds': 3, ...}.
    sites: the names of all sites that train.
    warn: called with a sentence.

  Raises:
    InputError: a library cannot begin, for want of an account or a connection.
  """
  used: dict[str, Tracker] = {}
  logs: dict[str, Log] = {}
  finished = False

  def tell(what: str, *arguments) -> None:
    for name, tracker in list(used.items()):
      try:
        getattr(tracker, what)(*arguments)
      except Exception as error:  # other people's programs raise anything
        if name == TENSORBOARD:
          raise
        del used[name]
        warn(f'{name} is told no more, the run goes on: {_line(error)}')

  try:
    for name in names:
      if name == TENSORBOARD:
        used[name] = Tracker(
          lambda lines: tensorboard.restart(workdir, lines, sites),
          lambda lines: tensorboard.add(workdir, lines, sites),
          lambda lines, summary: tensorboard.finish(workdir, lines, summary))
      else:
        logs[name] = _opened(name, workdir.resolve(), settings)
        used[name] = _once_each(name, workdir, logs[name], sites)
    yield Tracker(*(partial(tell, what) for what in Tracker._fields))
    finished = True
  finally:
    for name, log in logs.items():
      try:
        log.close(finished)
      except Exception as error:
        warn(f'{name} may lack its last numbers: {_line(error)}')


def _opened(name: str, workdir: Path, settings: Mapping[str, Any]) -> Log:
  """A library's run, a new one or the one that trackers.json names."""
  held = _held(workdir).get(name, {})
  try:
    log = LIBRARIES[name].open(workdir, settings, held.get('key', ''))
  except Exception as error:
    raise InputError(f'config.log.trackers: {name} does not begin: {_line(error)}') from None
  _keep(workdir, name, key=log.key)
  return log


def _once_each(name: str, workdir: Path, log: Log, sites: Sequence[str]) -> Tracker:
  """A library's run as a tracker that gives it every round once."""

  def restart(lines: Sequence[dict]) -> None:
    for count in range(1, len(lines) + 1):
      add(lines[:count])

  def add(lines: Sequence[dict]) -> None:
    number = lines[-1]['round']
    if number > _held(workdir)[name].get('rounds', 0):
      _keep(workdir, name, rounds=number)
      log.add(points.of_round(lines, sites), number, points.seconds(lines))

  def finish(lines: Sequence[dict], summary: dict) -> None:
    scores = points.of_scores(summary['scores'])
    if scores != _held(workdir)[name].get('scores'):
      _keep(workdir, name, scores=scores)
      log.finish(scores, len(lines), points.seconds(lines))

  return Tracker(restart, add, finish)


def _held(workdir: Path) -> dict[str, dict]:
  path = workdir / FILE
  return files.read_json(path) if path.exists() else {}


def _keep(workdir: Path, name: str, **values) -> None:
  held = _held(workdir)
  files.write_json(workdir / FILE, held | {name: held.get(name, {}) | values})


def _line(error: Exception) -> str:
  """An error in one line."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
