"""The rows of docs/accelerators.md: which programs are compiled for which devices."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.store import files
from fedmedjax.types import InputError

# Two cohorts that annotate the same types, so that their notes can be dealt out.
_NOTES = "--config.data.sites=('synthetic_icu','synthetic_dictation')"
# Name in the table -> the configuration and its keys.
MODELS = {
  'llama32_1b': ('llama32_1b', ('--config.model.quantization=none',)),
  'llama31_8b': ('llama31_8b', ('--config.model.quantization=none',)),
  'llama31_8b_nf4': ('llama31_8b', ()),
  'qwen3_4b': ('qwen3_4b', ('--config.model.quantization=none',))}
# Name -> (topology, keys of the mesh).
DEVICES = {
  'h100': ('h100:1', ()),
  'h100x8_fsdp': ('h100:8', ('--config.mesh.fsdp=8',)),
  'h100x8_tensor': ('h100:8', ('--config.mesh.tensor=8',)),
  'v5e': ('v5e:1x1', ()),
  'v5e_8_fsdp': ('v5e:2x4', ('--config.mesh.fsdp=8',)),
  'v5e_8_tensor': ('v5e:2x4', ('--config.mesh.tensor=8',)),
  'v5p': ('v5p:1x1x1', ())}
SITES = (1, 3, 8, 16)
CHUNKS = (1, 2, 4, 8)


class Row(NamedTuple):
  """A program to compile, and its command line."""

  name: str
  arguments: tuple[str, ...]


def rows() -> Iterator[Row]:
  """All rows: rounds by model, device and sites; validation and decoding; sites at once."""
  for program, counts in (('round', SITES), ('validate', (8,)), ('decode', (8,))):
    for device, (topology, mesh) in DEVICES.items():
      for model, (config, keys) in MODELS.items():
        for sites in counts:
          yield Row(f'{program}/{model}/{device}/{sites}', (
            f'--topology={topology}', f'--config=configs/{config}.py', f'--sites={sites}',
            f'--program={program}', _NOTES, *keys, *mesh))
  topology, _ = DEVICES['h100']
  config, keys = MODELS['llama31_8b']
  for chunk in CHUNKS:
    yield Row(f'chunk/llama31_8b/h100/8/{chunk}', (
      f'--topology={topology}', f'--config=configs/{config}.py', '--sites=8', _NOTES, *keys,
      f'--config.fed.chunk={chunk}', '--config.model.remat=products'))


def read(path: Path) -> dict[str, dict[str, Any]]:
  """The rows of a file by name; InputError for what is no row."""
  if not path.exists():
    return {}
  out = {}
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      row = json.loads(line)
      out[row['name']] = row
    except (ValueError, TypeError, KeyError):
      raise InputError(f'{path}:{number}: not a row of this table') from None
  return out


def compile_missing(
  program: Path, out: Path, only: Sequence[str], minutes: float, listing: bool,
  say: Callable[[str], None],
) -> None:
  """Compiles the rows that `out` lacks, each in a process of its own, and appends them.

  A row that the compiler refuses is a row, too; one that fails for another reason is named, and
  tried again by the next call.

  Args:
    program: scripts/aot.py.
    out: file of the rows.
    only: parts of names; a row with any of them is wanted, () = all.
    minutes: no row begins later; 0 = no limit.
    listing: name the missing rows and stop.
    say: is told of every row.

  Raises:
    InputError: there is no folder for `out`, or no row has any of `only` in its name.
    RuntimeError: rows failed.
  """
  if not out.absolute().parent.is_dir():
    raise InputError(f'--out={out}: its folder is not there')
  begun, done, failed = time.monotonic(), read(out), []
  missing = [row for row in _wanted(only) if row.name not in done]
  for place, row in enumerate(missing):
    if listing:
      say(row.name)
      continue
    if minutes and time.monotonic() - begun > 60 * minutes:
      say(f'{len(missing) - place} rows are left')
      break
    say(f'{place + 1} of {len(missing)}: {row.name}')
    found = _called(program, row.arguments, say)
    if found is None:
      failed.append(row.name)
      continue
    with out.open('a') as rows_file:
      rows_file.write(json.dumps({'name': row.name} | found) + '\n')
    say('  ' + summary(found))
  if failed:
    raise RuntimeError(f'{len(failed)} rows failed: {", ".join(failed)}')


def _wanted(only: Sequence[str]) -> list[Row]:
  for part in only:
    if not any(part in row.name for row in rows()):
      raise InputError(f'--only={part}: no row is named so, such as {next(rows()).name}')
  return [row for row in rows() if not only or any(part in row.name for part in only)]


def _called(
  program: Path, arguments: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any] | None:
  """What a process of its own finds; None where it fails, which is said."""
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, 'row.json')
    call = subprocess.run(
      [sys.executable, str(program), *arguments, f'--json={file}'],
      cwd=program.parents[1], capture_output=True, text=True)
    if not call.returncode and file.exists():
      return json.loads(file.read_text())
  say(f'  failed: {(call.stderr.strip().splitlines() or ["no message"])[-1]}')
  return None


def estimate_anew(
  program: Path, out: Path, only: Sequence[str], say: Callable[[str], None]
) -> None:
  """Replaces the planner's estimates in the recorded rounds by today's.

  Each is that of the execution which the row was compiled with. The file is written after every
  row.

  Args:
    program, out, only, say: as for `compile_missing`.

  Raises:
    InputError: `out` has no such round.
    RuntimeError: rows failed.
  """
  known, failed = read(out), []
  recorded = [row for row in _wanted(only) if row.name.startswith('round/') and (
    'peak_gib' in known.get(row.name, {}))]
  if not recorded:
    raise InputError(f'--out={out}: no such round is in it, whose estimate could be made anew')
  for row in recorded:
    held = known[row.name]
    execution = f'--config.fed.chunk={held["chunk"]}', f'--config.model.remat={held["remat"]}'
    found = _called(program, (*row.arguments, *execution, '--estimate'), say)
    if found is None:
      failed.append(row.name)
      continue
    before, held['estimated_gib'] = held['estimated_gib'], found['estimated_gib']
    say(f'{row.name}: {before:.3f} GiB, now {found["estimated_gib"]:.3f} of '
        f'{held["peak_gib"] - held["arguments_gib"]:.3f}')
    files.write_text(out, ''.join(json.dumps(one) + '\n' for one in known.values()))
  if failed:
    raise RuntimeError(f'{len(failed)} rows failed: {", ".join(failed)}')


def summary(row: dict[str, Any]) -> str:
  """A row in a line."""
  if 'refused' in row:
    return f"refused: {row['refused']}"
  return (
    f"{row['peak_gib']:.2f} of {row['device_gib']} GiB ({row['arguments_gib']:.2f} arguments), "
    f"compiled in {row['compile_seconds']:.0f} s")
