"""Measures the project on this machine's GPU: what tells most first, all within some minutes.

    bash scripts/bench_gpu.sh [--minutes=10] [--out=gpu_bench] [--parts=tests,8b,...]
    bash scripts/bench_gpu.sh --dry           # the script itself, on a CPU with a tiny model

Each part is a command of its own with the weights of a true shape drawn at random. When it ends,
whatever its end, FOLDER/PART.json is written: what it measured, and how it ended. A part that is
stopped by the clock keeps what it had measured by then. A part that cannot be done here says why in
one line, and the others go on. Parts that found no time are named at the end, with the command that
does them. Last comes which targets are met, as rows for docs/benchmarks.md; it can be had again by
python scripts/benchmarks/gpu_summary.py FOLDER

Output of the parts and compiled programs stay in gpu_bench/ of the checkout, so that a second call
compiles little. The exit status is 0 when all parts were done, else 1.

Nothing is installed or fetched. Notes are MACCROBAT2020's where they lie in FEDMEDJAX_DATA or
../shared/data, else invented ones. The tokenizer is SmolLM2's where its package is installed, else
it has to be given; where it is installed this writes one to take along:
python -c "from fedmedjax.model.files.load import load_model, model_path as path; load_model(path('')).tokenizer.save_pretrained('FOLDER')"
"""  # noqa: E501 a command stays in one line

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_summary  # noqa: E402
from benchmarks.gpu_parts import (  # noqa: E402
  ROOT,
  WORK,
  Machine,
  Part,
  chosen_parts,
  environment,
  parts,
  shrunk,
  this_machine,
)

_STOP_SECONDS = 5.0    # from SIGTERM to SIGKILL, and the least that a part is given
_LAST_SECONDS = 12.0   # of --minutes, for a part that has to be killed and for the summary
_SAID_LINES = 15       # of a part that failed, kept in its file


def run(part: Part, seconds: float, log: Path) -> tuple[str, str]:
  """Runs it for at most so long -> (how it ended, why; '' where it was done)."""
  with log.open('wb') as file, subprocess.Popen(
      part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
      env=environment(part), start_new_session=True) as process:
    try:
      status = process.wait(seconds)
    except subprocess.TimeoutExpired:
      return 'stopped', f'no more than {seconds:.0f} s were left or allowed'
    finally:
      _end(process)
  if status == 0:
    return 'done', ''
  last = next((line for line in reversed(said(log)) if line.strip()), '') or f'status {status}'
  # 2: bad input, as of a kernel or package that is not there; pytest's 5: no test is left.
  absent = status == (5 if 'pytest' in part.command else 2) or 'No module named' in last
  return 'skipped' if absent else 'failed', last


def said(log: Path) -> list[str]:
  return log.read_text(encoding='utf-8', errors='replace').splitlines()[-_SAID_LINES:]


def _end(process: subprocess.Popen) -> None:
  """Ends what is left of a part, the processes that it started included."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    with suppress(ProcessLookupError):
      os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
      process.wait(_STOP_SECONDS)


def note(path: Path, part: Part, status: str, why: str = '', **more: Any) -> None:
  """Writes how a part ended into its file, beside what it measured."""
  found = gpu_summary.read(path) or {}
  if status not in ('done', 'no time') and found:
    status = 'partial'
  text = json.dumps(found | {
    'part': part.name, 'part_title': part.title, 'part_status': status, 'part_why': why,
    'part_command': shlex.join(
      Path(word).name if word == sys.executable else word for word in part.command), **more},
    indent=2)
  beside = path.with_name(f'{path.name}.part')
  beside.write_text(text + '\n', encoding='utf-8')
  beside.replace(path)
  print(f'{part.name}: {status}{f": {why}" if why else ""}', flush=True)


def run_all(chosen: Sequence[Part], out: Path, logs: Path, deadline: float) -> bool:
  """Runs one after the other as far as time reaches -> whether all were done.

  Args:
    chosen: parts, in their order.
    out: folder of the files.
    logs: folder of what the parts print.
    deadline: by the monotonic clock.
  """
  complete = True
  for part in chosen:
    # Of an earlier call; whoever reads it should not take it for this one's.
    (out / f'{part.name}.json').unlink(missing_ok=True)
  for place, part in enumerate(chosen):
    path, left = out / f'{part.name}.json', deadline - time.monotonic()
    if part.absent:
      complete = False
      note(path, part, 'skipped', part.absent)
      continue
    if left < part.least:
      complete = False
      note(path, part, 'no time',
           f'{max(left, 0):.0f} s were left of the {part.least:.0f} it needs')
      continue
    print(f'{part.name}: {part.title} ...', flush=True)
    begun, (status, why) = time.monotonic(), ('stopped', 'by a signal')
    try:
      status, why = run(
        part, min(max(left, _STOP_SECONDS), part.most), logs / f'{part.name}.txt')
    except BaseException:
      for late in chosen[place + 1:]:
        note(out / f'{late.name}.json', late, 'no time', 'all was stopped by a signal')
      raise
    finally:
      note(path, part, status, why, part_seconds=round(time.monotonic() - begun, 1), **(
        {} if status == 'done' and '--out' in ' '.join(part.command) else
        {'part_said': said(logs / f'{part.name}.txt')}))
    complete = complete and status == 'done'
  return complete


@contextmanager
def interruptible() -> Iterator[None]:
  """SIGTERM ends a part and is told like Ctrl-C, in place of leaving its process behind."""
  def stop(number, frame) -> NoReturn:
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f'error: {message}\n')


def arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = _Parser(
    prog='bash scripts/bench_gpu.sh', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--minutes', default='10', help='after which all ends (10)')
  parser.add_argument(
    '--out', default='', help='folder of the files ($OUT, else gpu_bench of the checkout)')
  parser.add_argument('--parts', default='', help='some of ' + ','.join(
    part.name for part in parts(Machine('', 0, True, '', ''), WORK)))
  parser.add_argument('--site', default='', help='whose notes (maccrobat2020, else synthetic_icu)')
  parser.add_argument('--tokenizer', default='', help="folder of a tokenizer (SmolLM2's)")
  parser.add_argument(
    '--dry', action='store_true', help='the same commands for a tiny model on the CPU')
  values = parser.parse_args(argv)
  try:
    minutes = float(values.minutes)
  except ValueError:
    minutes = 0.0
  if not 0 < minutes < float('inf'):
    parser.error(f'--minutes={values.minutes}: a number > 0 is allowed')
  values.minutes = minutes
  if values.tokenizer and not Path(values.tokenizer).is_dir():
    parser.error(f'--tokenizer={values.tokenizer}: no folder is there')
  values.tokenizer = values.tokenizer and os.path.abspath(values.tokenizer)
  return values


def main(argv: Sequence[str]) -> int:
  values = arguments(argv[1:])
  deadline = time.monotonic() + max(0.0, 60 * values.minutes - _LAST_SECONDS)
  out, logs = Path(values.out or os.environ.get('OUT') or WORK).absolute(), WORK / 'log'
  try:
    # Names are checked before a machine is looked at, which takes seconds.
    chosen_parts(values.parts, parts(Machine('', 0, True, '', ''), out))
    for folder in (out, logs):
      folder.mkdir(parents=True, exist_ok=True)
    known = parts(this_machine(values), out)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  chosen = chosen_parts(values.parts, [*map(shrunk, known)] if values.dry else known)
  complete = False
  try:
    with interruptible():
      complete = run_all(chosen, out, logs, deadline)
  except KeyboardInterrupt:
    print('stopped by a signal', file=sys.stderr)
  print(gpu_summary.text(out))
  late = [part.name for part in chosen if (
    gpu_summary.read(out / f'{part.name}.json') or {}).get('part_status') != 'done']
  if late:
    flags = [f'--parts={",".join(late)}', f'--out={out}', *('--dry' for _ in range(values.dry)), *(
      f'--{name}={value}' for name in ('site', 'tokenizer') if (value := getattr(values, name)))]
    print(f'\nNot done: {", ".join(late)}. For these alone:\n'
          f'  bash scripts/bench_gpu.sh {shlex.join(flags)}')
  return 0 if complete else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv))
