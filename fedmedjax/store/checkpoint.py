"""Checkpoints: the state of a run on disk, one folder for each round that is kept.

checkpoints/N/ contains `state/`, written by Orbax, `metrics.jsonl`, the lines of all rounds up to
N, and `manifest.json`: size and SHA-256 of every other file. The folder is written as N.part and
renamed when all of it is on disk, so a crash leaves either a whole checkpoint or none. Damage that
comes later is noticed by the manifest, and a damaged checkpoint is not used.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from fedmedjax.fed.types import FedState
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.runtime.signals import expect_late_writers
from fedmedjax.store.files import read_json, read_lines, write_json, write_lines
from fedmedjax.types import InputError

MANIFEST = 'manifest.json'
_LINES = 'metrics.jsonl'
_PART = '.part'
# After a failed save, threads of Orbax may still write files. The folder is removed again and
# again, with a pause between, until it was absent `_SETTLED` times in a row, but at most
# `_MOST_TRIES` times.
_SETTLED, _PAUSE_SECONDS, _MOST_TRIES = 5, 0.1, 100


def host_copy(state: FedState) -> FedState:
  """A copy of the state as numpy arrays; the next round frees the original, which is donated."""
  return jax.tree.map(np.array, state)


def save(
  folder: Path, state: FedState, lines: Sequence[dict], keep: int, keep_best: int = 0,
  processes: Processes = ALONE,
) -> None:
  """Writes the checkpoint of the last of `lines`; on return it is on disk. Prunes older ones.

  Args:
    folder: of all checkpoints; made when absent.
    state: the state after that round, see `host_copy`.
    lines: the lines of all rounds so far, as JSON values.
    keep: number of newest checkpoints that are kept.
    keep_best: number of other checkpoints that are kept, those of least mean validation loss.
    processes: all of which call this, and write what they have of global arrays; process 0 writes
      all else.

  Raises:
    RuntimeError: it cannot be written, such as on a full disk. Earlier ones are untouched.
  """
  number = lines[-1]['round']
  final, part = folder / str(number), folder / f'{number}{_PART}'
  try:
    if processes.first:
      _remove(part)
      part.mkdir(parents=True)
    processes.meet(f'the folder {part.name}')
    ocp.save((part / 'state').absolute(), state)
    processes.meet(f'{part.name} is written')
    if processes.first:
      write_lines(part / _LINES, lines)
      write_json(part / MANIFEST, describe(part, sync=True))
      if final.exists():  # a damaged one, which was skipped on resuming
        _remove(final)
      part.rename(final)
      _sync(folder)
  except Exception as error:  # Orbax raises whatever its writers hit, a full disk as ValueError
    expect_late_writers()
    if processes.first:
      _remove_again(part)
    reason = str(error).splitlines()[0]
    raise RuntimeError(
      f'round {number}: its checkpoint cannot be written to {folder}; rounds before it are kept, '
      f'the same command goes on after them: {reason}') from None
  for old in _superseded(folder, lines, keep, keep_best) if processes.first else ():
    _remove(old)


def newest(
  folder: Path, like: FedState, warn: Callable[[str], None], processes: Processes = ALONE
) -> tuple[FedState, list[dict]] | None:
  """(state, lines) of the newest whole checkpoint, or None; N.part of a crash are removed.

  Args:
    folder: of all checkpoints.
    like: a state of the same run, for structure, shapes, dtypes and placement.
    warn: called with a sentence about each damaged checkpoint that is skipped.
    processes: all of which call this; process 0 looks for damage.

  Raises:
    RuntimeError: a whole checkpoint has another structure or other shapes than `like`.
  """
  name = processes.of_first('the newest checkpoint', lambda: _whole(folder, warn))
  if name is None:
    return None
  path = folder / name
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
  try:
    return ocp.load((path / 'state').absolute(), abstract), read_lines(path / _LINES)
  except Exception as error:  # of whatever kind Orbax finds
    reason = str(error).splitlines()[0]
    raise RuntimeError(f'{path}: does not hold the state of this run: {reason}') from None


def _whole(folder: Path, warn: Callable[[str], None]) -> str | None:
  """The name of the newest whole checkpoint; what a crash has left is removed."""
  for part in folder.glob(f'*{_PART}'):
    _remove(part)
  for path in reversed(_checkpoints(folder)):
    fault = damage(path)
    if not fault:
      return path.name
    warn(f'{path}: damaged ({fault}); the checkpoint before it is used')
  return None


def latest_round(folder: Path) -> int:
  """Rounds in the newest checkpoint of `folder`; 0 when there is none. Reads and writes nothing."""
  return max((int(path.name) for path in _checkpoints(folder)), default=0)


def damage(path: Path) -> str | None:
  """What is wrong with a checkpoint, in words, or None."""
  try:
    manifest = read_json(path / MANIFEST)
    present = describe(path)
  except (InputError, OSError):
    return f'{MANIFEST} cannot be read'
  for name in sorted(manifest.keys() | present.keys()):
    if name not in present:
      return f'{name} is missing'
    if manifest.get(name) != present[name]:
      return f'{name} is not what was written'
  return None


def describe(folder: Path, sync: bool = False) -> dict[str, dict]:
  """{file: {'bytes', 'sha256'}} of all files in the folder and below, without the manifest.

  With `sync`, waits until each file is on disk.
  """
  described = {}
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(folder).as_posix()
    if path.is_dir() or name == MANIFEST:
      continue
    with path.open('rb') as file:
      if sync:
        os.fsync(file.fileno())
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    described[name] = {'bytes': path.stat().st_size, 'sha256': digest}
  return described


def mean_validation_loss(line: dict) -> float:
  """Mean validation loss of a round over the sites whose loss is finite; inf when there is none."""
  losses = [loss for loss in line.get('validation_loss', ()) if loss is not None]
  return sum(losses) / len(losses) if losses else float('inf')


def _checkpoints(folder: Path) -> list[Path]:
  """The folders of finished checkpoints, oldest first."""
  names = (path for path in folder.glob('*') if path.name.isdecimal() and path.is_dir())
  return sorted(names, key=lambda path: int(path.name))


def _superseded(
  folder: Path, lines: Sequence[dict], keep: int, keep_best: int
) -> list[Path]:
  """The checkpoints to be removed: not among the newest `keep`, nor the best `keep_best`."""
  older = _checkpoints(folder)[:-keep]
  scores = {line['round']: mean_validation_loss(line) for line in lines}
  # Of equal scores, as skipped rounds have, the newer checkpoint is kept.
  ranked = sorted(older, key=lambda path: (scores.get(int(path.name), np.inf), -int(path.name)))
  return ranked[keep_best:]


def _remove(path: Path) -> None:
  """Removes a folder; a crash in between leaves nothing under a finished checkpoint's name."""
  if path.exists() and path.suffix != _PART:
    path = path.rename(path.with_name(f'{path.name}.old{_PART}'))
  shutil.rmtree(path, ignore_errors=True)


def _remove_again(part: Path) -> None:
  """Removes the folder of a failed save until late writers do not make it again for a while.

  Orbax offers no way to wait for them. A folder that appears later still is removed when the run
  resumes, as after a crash.
  """
  quiet = 0
  for _ in range(_MOST_TRIES):
    quiet = 0 if part.exists() else quiet + 1
    if quiet >= _SETTLED:
      return
    _remove(part)
    time.sleep(_PAUSE_SECONDS)


def _sync(folder: Path) -> None:
  """Waits until the folder's entries are on disk."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
