"""The files of a run. Every file is replaced whole or appended to by whole lines."""

import hashlib
import json
import math
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmedjax.store import secret
from fedmedjax.types import InputError

# Keys and groups of keys that may differ when a run resumes: they do not change finished rounds,
# and later rounds by rounding at most. (data.root is among them because the notes themselves are
# compared by their checksums, see `train/fingerprint.py`.)
HARMLESS = (
  'fed.rounds', 'fed.max_bad_rounds', 'fed.micro_batch', 'fed.chunk', 'fed.shapes',
  'fed.memory_gib', 'model.remat', 'model.attention', 'mesh', 'data.root', 'eval.batch_size',
  'eval.guesses', 'log', 'report', 'store', 'checkpoint', 'api')


def write_json(path: Path, value: Any) -> None:
  """Writes JSON through a temporary file, so that a reader never sees half of it."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def write_text(path: Path, text: str) -> None:
  """Writes text through a temporary file NAME.part, and makes the folder when it is absent."""
  _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  with part.open('w', encoding='utf-8') as file:
    file.writelines(parts)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def write_lines(path: Path, records: Iterable[Any]) -> None:
  """Writes a JSON-lines file, whole, as `write_json` does; its text is never in memory as a whole.

  With a thousand sites a round's line is long, and all lines are written after every round.
  """
  _write(path, (
    json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n' for record in records))


def append_line(path: Path, record: Any) -> None:
  """Adds a line to a JSON-lines file that ends in a whole line, or is absent."""
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n')


def read_json(path: Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    InputError: the file cannot be read or is not a JSON object.
  """
  try:
    value = json.loads(path.read_text(encoding='utf-8-sig'))
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{path}: cannot be read: {error}') from None
  if not isinstance(value, dict):
    raise InputError(f'{path}: a JSON object is expected')
  return value


def read_lines(path: Path) -> list[Any]:
  """The lines of a JSON-lines file, up to the first that is incomplete or not UTF-8."""
  if not path.exists():
    return []
  records = []
  # Not splitlines(): texts may contain other line separators, which JSON does not escape.
  for line in path.read_bytes().removeprefix(BOM_UTF8).split(b'\n')[:-1]:
    try:
      records.append(json.loads(line.decode('utf-8')))
    except (ValueError, RecursionError):
      break
  return records


def plain(value: Any) -> Any:
  """The value as JSON values: arrays and tuples are lists, paths texts, NaN and infinities None."""
  if isinstance(value, dict):
    return {key: plain(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [plain(entry) for entry in value]
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def check_place(flag: str, folder: Path) -> None:
  """Raises InputError when `folder`, the value of `flag`, is no folder and cannot be made."""
  if folder.exists() and not folder.is_dir():
    raise InputError(f'{flag}={folder}: a folder is expected, a file is there')
  nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  if not nearest.is_dir() or not os.access(nearest, os.W_OK):
    raise InputError(f'{flag}={folder}: {nearest} is no folder that can be written in')


def check_workdir(
  workdir: Path, settings: dict[str, Any], harmless: Sequence[str] = HARMLESS
) -> dict | None:
  """Checks that this run may use `workdir`; writes nothing.

  Args:
    workdir: may be absent.
    settings: flat config as JSON values, {'fed.rounds': 3, ...}.
    harmless: keys, or groups of keys, that may differ from those in config.json.

  Returns:
    The summary of a run that was finished there with these settings (perhaps with another number
    of rounds), else None.

  Raises:
    InputError: config.json there differs in a key that changes the results, is of another version,
      which lacks such a key or has one more, or the folder contains files but no config.json.
  """
  check_place('--workdir', workdir)
  if not (workdir / 'config.json').exists():
    # These are written before config.json, and a crash may leave them alone.
    # A secret may have been put there.
    first = {'lock', 'inputs.json', 'inputs.json.part', 'config.json.part', secret.FILE}
    if workdir.is_dir() and {
        path.name for path in workdir.iterdir() if not path.name.startswith(TOKEN)} - first:
      raise InputError(f'--workdir={workdir}: is not empty and holds no run of fedmedjax')
    return None
  recorded = read_json(workdir / 'config.json')
  harmless = set(harmless)
  changed = sorted(
    key for key in settings.keys() | recorded.keys()
    if settings.get(key) != recorded.get(key) and not {key, key.split('.')[0]} & harmless)
  both = [key for key in changed if key in recorded and key in settings]
  if both:
    named = ', '.join(
      f'config.{key}={recorded[key]!r}, this one has {settings[key]!r}' for key in both)
    raise InputError(f'--workdir={workdir}: holds a run with {named}; choose another workdir')
  if changed:
    raise InputError(
      f'--workdir={workdir}: holds a run of another version of fedmedjax, whose settings and this '
      f"version's have not in common {', '.join(f'config.{key}' for key in changed)}; go on with "
      'that version, or choose another workdir')
  path = workdir / 'summary.json'
  summary = read_json(path) if path.exists() else None
  if summary is not None and 'rounds' not in summary:
    raise InputError(f'{path}: is no summary of a run; delete it, and the run is scored again')
  return summary


def claim(workdir: Path, settings: dict[str, Any]) -> None:
  """Writes WORKDIR/config.json, which binds the folder to these settings."""
  path = workdir / 'config.json'
  if not path.exists() or read_json(path) != settings:
    write_json(path, settings)


# How the names of files begin by which processes find out that they share a folder.
TOKEN = '.fedmedjax-'

# Hexadecimal digits of a checksum: 64 bits of SHA-256 notice an accident. A forgery of one's own
# notes is not to be feared.
CHECKSUM_DIGITS = 16


def file_checksums(*paths: Path) -> dict[str, str]:
  """{name: checksum} of files, and of the files of folders without their subfolders."""
  checksums = {}
  for file in [file for path in paths for file in (
      [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file()))]:
    with file.open('rb') as opened:
      checksums[file.name] = hashlib.file_digest(opened, 'sha256').hexdigest()[:CHECKSUM_DIGITS]
  return checksums
