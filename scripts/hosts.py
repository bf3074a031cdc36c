"""Runs a small study in several processes of this machine, and compares it with a single one.

    python scripts/hosts.py --out=hosts.json

Of two and of four processes with two CPU devices each, against one process: after every round the
adapters may differ by 1e-6 of the adapter's norm and by 3e-6 of a leaf's (float32; sums in another
order), the numbers of metrics.jsonl by 1e-4 of themselves, and the ledger and the predictions not
at all. Then one run goes on from 1 to 2 and back to 1 process, a round each, and is compared with a
run in one. FILE gets {"compared": {...}, "different": [...]}; the exit status is 1 when anything
differed. In float64, where nothing can pass for rounding, the round function is compared over two
processes (`hosts_float64.py`): 1e-10 of the adapter's norm and of a leaf's.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chaos
import numpy as np
import safetensors.numpy

from fedmedjax.data.formats.writers import write_brat
from fedmedjax.data.synthetic.cohorts import generate_cohort

ROOT = Path(__file__).resolve().parent.parent
OF_NORM, OF_LEAF, OF_METRIC, FLOAT64 = 1e-6, 3e-6, 1e-4, 1e-10
# How the sites lie on devices, which is what differs.
LAYOUT = (*chaos.CLOCKS, 'chunk', 'remat', 'useful_step_share')
SITES = 'data.sites=("synthetic_icu","synthetic_dictation","synthetic_clinic","ward")'
SETTINGS = (
  *(entry for entry in chaos.SETTINGS if not entry.startswith(('fed.rounds', 'data.sites'))),
  SITES, 'fed.local_steps=2', 'fed.cohort_size=3', 'data.external=("synthetic_external",)',
  'data.synthetic_notes=4', 'eval.max_external=1', 'mesh.site=-1',
  'fed.chunk=-1')


def command(
  root: Path, workdir: Path, rounds: int, rank: int = 0, processes: int = 1, port: int = 0
) -> list[str]:
  """The command line of one process."""
  site = dict(name='ward', path=str(root / 'notes'), format='brat', mapping='schema')
  together = [] if processes == 1 else [
    f'--coordinator=localhost:{port}', f'--num_processes={processes}', f'--process_id={rank}',
    '--deadline=100']
  return [
    sys.executable, '-m', 'fedmedjax.main', '--config=configs/quickstart.py',
    f'--workdir={workdir}', f'--config.model.path={root / "model"}',
    f'--config.data.folders=({site},)', f'--config.fed.rounds={rounds}',
    *(f'--config.{entry}' for entry in SETTINGS), *together]


def play(root: Path, workdir: Path, rounds: int, processes: int = 1) -> None:
  """Runs it to its end.

  Raises:
    SystemExit: a process failed.
  """
  port = free_port()
  start_all(workdir, [command(root, workdir, rounds, rank, processes, port)
                      for rank in range(processes)])


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def start_all(workdir: Path, commands: list[list[str]]) -> None:
  """Runs one command a process to their ends, of two CPU devices each, with logs beside `workdir`.

  Raises:
    SystemExit: a process failed.
  """
  environ = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2', 'PYTHONPATH': str(ROOT)}
  logs = [workdir.with_name(f'{workdir.name}.log.{rank}') for rank in range(len(commands))]
  children = []
  for words, log in zip(commands, logs, strict=True):
    with log.open('w') as file:
      children.append(subprocess.Popen(
        words, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT))
  statuses = [child.wait() for child in children]
  if any(statuses):
    told = '\n'.join(log.read_text()[-2000:] for log in logs)
    raise SystemExit(f'{len(commands)} processes ended with status {statuses}:\n{told}')


def adapter(workdir: Path) -> dict[str, np.ndarray]:
  (path,) = (workdir / 'adapter').rglob('*.safetensors')
  return safetensors.numpy.load_file(path)


def differences(one: Path, other: Path, rounds: int, exact: bool = False) -> dict:
  """{'adapter', 'leaf', 'metric': the largest differences a round; 'wrong': [what is too much]}."""
  left, right = adapter(one), adapter(other)
  apart = {name: float(np.linalg.norm(left[name] - right[name])) for name in left}
  norm = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in left.values())))
  found = {
    'adapter': float(np.sqrt(sum(np.square(list(apart.values()))))) / norm / rounds,
    'leaf': max(apart[name] / float(np.linalg.norm(left[name])) for name in left) / rounds,
    'metric': _metrics_apart(one, other) / rounds}
  limits = {'adapter': OF_NORM, 'leaf': OF_LEAF, 'metric': OF_METRIC}
  wrong = [f'{name}: {value:.1e}' for name, value in found.items()
           if not value <= (0 if exact else limits[name])]
  same = ['ledger.csv', *sorted(path.relative_to(one).as_posix() for path in (
    one / 'predictions').rglob('*.jsonl'))]
  wrong += [name for name in same if (one / name).read_bytes() != (
    other / name).read_bytes() if (other / name).exists()]
  wrong += [f'{name} is missing' for name in same if not (other / name).exists()]
  return found | {'wrong': wrong}


def _metrics_apart(one: Path, other: Path) -> float:
  """The largest difference of a number of metrics.jsonl, relative to it; inf for other texts."""
  worst = 0.0
  lines = [[json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
           for run in (one, other)]
  for left, right in zip(*lines, strict=True):
    if left.keys() != right.keys():
      return float('inf')
    for key in left.keys() - set(LAYOUT):
      worst = max(worst, _apart(left[key], right[key]))
  return worst


def _apart(left, right) -> float:
  if isinstance(left, list):
    return max(map(_apart, left, right), default=0.0) if len(left) == len(right) else float('inf')
  if isinstance(left, float) and isinstance(right, float):
    # A cosine or a loss of 1e-7 has no digits left.
    return abs(left - right) / max(abs(left), 1e-2)
  return 0.0 if left == right else float('inf')


def in_float64(root: Path) -> dict:
  """As `differences`, a round, of the round function in float64 over two processes and in one."""
  script, found = [sys.executable, str(ROOT / 'scripts' / 'hosts_float64.py')], []
  for count in (1, 2):
    out, port = root / f'float64 in {count}', free_port()
    start_all(out, [[*script, f'--out={out}.safetensors', *([] if count == 1 else [
      f'--coordinator=localhost:{port}', f'--num_processes={count}', f'--process_id={rank}'])]
      for rank in range(count)])
    found.append(safetensors.numpy.load_file(f'{out}.safetensors'))
  alone, two = found
  rounds: dict[tuple[str, int], list[str]] = {}
  for key in alone:
    method, number, _ = key.split('/', 2)
    rounds.setdefault((method, int(number) + 1), []).append(key)
  norm, apart = np.linalg.norm, {key: alone[key] - two[key] for key in alone}
  assert all(leaf.dtype == np.float64 for leaf in two.values())
  worst = {
    'adapter': max(
      norm([norm(apart[key]) for key in keys]) / norm([norm(alone[key]) for key in keys]) / number
      for (_, number), keys in rounds.items()),
    'leaf': max(norm(apart[key]) / norm(alone[key]) / number
                for (_, number), keys in rounds.items() for key in keys)}
  return {name: float(value) for name, value in worst.items()} | {
    'wrong': [f'{name}: {value:.1e}' for name, value in worst.items() if not value <= FLOAT64]}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--processes', default='2,4')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(root / 'xla'))
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    chaos.make_model(root / 'model')
    write_brat(root / 'notes', generate_cohort('synthetic_icu', seed=1, train_notes=4).train)
    compared, seconds = {}, {}

    def timed(name: str, rounds: int, processes: int) -> Path:
      begun = time.monotonic()
      play(root, root / name, rounds, processes)
      seconds[name] = round(time.monotonic() - begun, 1)
      print(f'{name}: {rounds} rounds, {seconds[name]} s', flush=True)
      return root / name

    alone = timed('1', options.rounds, 1)
    for count in map(int, options.processes.split(',')):
      compared[f'{count} processes'] = differences(
        alone, timed(str(count), options.rounds, count), options.rounds)
    for number, count in enumerate((1, 2, 1), 1):
      resumed = timed('1, 2, 1', number, count)
    compared['1, 2, 1 processes'] = differences(
      alone if options.rounds == 3 else timed('3 rounds', 3, 1), resumed, 3)
    compared['2 processes, float64'] = in_float64(root)
  wrong = [f'{name}: {fault}' for name, one in compared.items() for fault in one['wrong']]
  options.out.write_text(json.dumps(
    {'compared': compared, 'different': wrong, 'seconds': seconds}, indent=2) + '\n')
  print(json.dumps(compared, indent=2))
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
