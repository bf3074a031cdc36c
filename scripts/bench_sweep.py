"""Seconds of a sweep beside the same runs as processes, and one after the other in one process.

    python scripts/bench_sweep.py [--methods=fed_medlora,uniform,...] [--seeds=12] [--repeats=1]
      [--sampled=2] [--axis=1,2,4,12] [--out=FILE.json] [--config=fedmedjax:ablation]

A run is the word tagger of configs/ablation.py. In turns, each from an empty cache of compilations:

    ours             python -m fedmedjax.sweep
    ours_one_by_one  the same with --runs=1 --parallel=1: one process, each program compiled once
    peer_loop        the run of `main` in a loop of one process, which finds programs in the cache;
                     a first run and two more of --sampled methods, the others taken to be as these
    peer_processes   python -m fedmedjax.main, a process a run, as many at a time as there are
                     cores; of --sampled methods a first run, which compiles, and a second one,
                     which finds the program in the cache; the others are taken to be as these

All write the same files, but for reports and checkpoints of `main`. --axis: seconds a run of the
rounds alone, by the number E of runs on the axis of one program.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import interleaved
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.traced import RATES
from fedmedjax.runtime.cli import set_up
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import loop, run_axis
from fedmedjax.train.run import run
from fedmedjax.types import InputError

METHODS = ('fed_medlora', 'uniform', 'fed_medlora_plus', 'fed_medlora_peer', 'fedprox', 'median',
           'ffa_lora', 'fedadam')
QUIET = Reporter(Console(quiet=True))


def define(values: flags.FlagValues) -> None:
  interleaved.define_flags(values, 1)
  flags.DEFINE_string('config', 'fedmedjax:ablation', 'Of all runs.', flag_values=values)
  flags.DEFINE_list('methods', list(METHODS), 'Rows of PRESETS.', flag_values=values)
  flags.DEFINE_integer('seeds', 12, 'Seeds of each.', lower_bound=2, flag_values=values)
  flags.DEFINE_integer(
    'sampled', 2, 'Methods that are run as processes; 0 = none.', lower_bound=0,
    flag_values=values)
  flags.DEFINE_list(
    'axis', ['1', '2', '4', '12'], 'Numbers E; none = left out.', flag_values=values)
  flags.DEFINE_string(
    'loop', '', 'Only the runs of peer_loop, in this process and folder.', flag_values=values)
  flags.DEFINE_list(
    'more', [], 'Further arguments of all runs, such as --config.fed.rounds=2.', flag_values=values)


class Seconds(NamedTuple):
  """Of the clock, and of processors, which what else runs on the machine changes little."""

  wall: float
  cpu: float

  @property
  def said(self) -> str:
    return f'{self.wall:.1f} s by the clock, {self.cpu:.1f} of processors'


def started(arguments: Sequence[str], cache: Path) -> tuple[Seconds, str]:
  """(seconds of `python ARGUMENTS` on the cores of this thread, its output); RuntimeError where it
  fails."""
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(cache), 'OPENBLAS_NUM_THREADS': '1'}
  begun = time.perf_counter()
  with tempfile.TemporaryFile('w+') as said:
    process = subprocess.Popen(
      [sys.executable, *arguments], env=environment, stdout=said, stderr=said)
    _, status, usage = os.wait4(process.pid, 0)
    wall, process.returncode = time.perf_counter() - begun, os.waitstatus_to_exitcode(status)
    said.seek(0)
    text = said.read().strip()
  if process.returncode:
    raise RuntimeError(f'{" ".join(arguments)}: {text[-500:]}')
  return Seconds(wall, usage.ru_utime + usage.ru_stime), text


def sweep_seconds(values: flags.FlagValues, *more: str) -> Seconds:
  """Of a whole sweep, in a folder of its own."""
  with tempfile.TemporaryDirectory() as scratch:
    grid = f'fed.preset={",".join(values.methods)};seed=0..{values.seeds - 1}'
    found, _ = started([
      '-m', 'fedmedjax.sweep', f'--config={values.config}', f'--workdir={scratch}/sweep',
      f'--grid={grid}', *values.more, *more], Path(scratch) / 'cache')
    return found


def process_seconds(values: flags.FlagValues) -> Seconds:
  """Of a process a run, a core each, from a sample; see above."""
  cores = sorted(os.sched_getaffinity(0))
  methods = values.methods[:values.sampled]
  with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(cores)) as pool:

    def one(job):
      number, (method, seed) = job
      # Of the pool's thread, which the process begins with.
      os.sched_setaffinity(0, {cores[number % len(cores)]})
      found, _ = started([
        '-m', 'fedmedjax.main', f'--config={values.config}', f'--workdir={scratch}/{method}_{seed}',
        f'--config.fed.preset={method}', f'--config.seed={seed}', *values.more],
        Path(scratch) / 'cache')
      return found

    first, second = (
      Seconds(*np.mean(list(pool.map(
        one, enumerate((method, seed) for method in methods))), axis=0)) for seed in (0, 1))
  print(f'a process: {first.said}; where its program is in the cache: {second.said}')
  wall, cpu = scaled(values, first, second)
  return Seconds(wall / len(cores), cpu)


def scaled(values: flags.FlagValues, first: Seconds, later: Seconds) -> Seconds:
  """Of all runs, from the first of a method and one that follows."""
  return Seconds(*(len(values.methods) * (cold + (values.seeds - 1) * warm)
                   for cold, warm in zip(first, later, strict=True)))


def loop_seconds(values: flags.FlagValues) -> Seconds:
  """Of all runs in a loop, from a sample; see above."""
  with tempfile.TemporaryDirectory() as scratch:
    _, text = started([
      __file__, f'--loop={scratch}', f'--config={values.config}',
      f'--methods={",".join(values.methods[:values.sampled])}',
      *([f'--more={",".join(values.more)}'] if values.more else ())], Path(scratch) / 'cache')
  found = np.asarray(json.loads(text.splitlines()[-1]))   # [methods, runs, wall and cpu]
  first, later = Seconds(*found[:, 0].mean(0)), Seconds(*found[:, 1:].mean((0, 1)))
  print(f'a run in a loop: {first.said}; where its program is in the cache: {later.said}')
  return scaled(values, first, later)


def loop_runs(values: flags.FlagValues) -> None:
  """Runs of `main` one after the other; the last line says the seconds of each."""
  set_up()
  found = []
  for method in values.methods:
    of_method = []
    for seed in range(3):
      config = configured(values, method, seed)
      begun = time.perf_counter(), time.process_time()
      run(config, Path(values.loop) / f'{method}_{seed}', QUIET)
      of_method.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    found.append(of_method)
  print(json.dumps(found))


def configured(values: flags.FlagValues, method: str, seed: int) -> ConfigDict:
  """The configuration of a run of this process."""
  words = [*values.more, f'--config.fed.preset={method}', f'--config.seed={seed}']
  config, *_ = parse(['bench', f'--config={values.config}', *words], lambda values: None)
  return config


def by_axis(values: flags.FlagValues, sizes: Sequence[int]) -> dict[str, Any]:
  """Seconds a run of the rounds, host's packing and all, by E; compilation is not counted."""
  config = configured(values, values.methods[0], 0)
  data, count = load_data(config, QUIET), max(sizes)
  study = prepare(config, data)
  shapes, flat = run_axis.shapes_of(study), leaves(config.to_dict())

  def runs(program: run_axis.Program, size: int) -> np.ndarray:
    for _ in range(count // size):
      numbers = run_axis.numbers_of_all([flat] * size, RATES)
      states = run_axis.first_states(program, [study] * size, numbers)
      validation = run_axis.stacked([
        run_axis.padded_validation(study.validation, shapes)] * size)
      for number in range(study.options.rounds):
        turns, packed = zip(*(
          loop.packed_round(study, number) for _ in range(size)), strict=True)
        states, metrics = program.rounds(
          states, study.trainable.base, numbers,
          run_axis.stacked([run_axis.padded_data(one, shapes) for one in packed]),
          np.stack([turn.cohort.sites for turn in turns]), validation,
          run_axis.round_keys([0] * size, number))
        losses = np.asarray(metrics.train_loss)
    return losses

  at_once = 1 if jax.default_backend() == 'cpu' else 0
  programs = {size: run_axis.program(study, study.executions[0], RATES, at_once)
              for size in sizes}
  timings = interleaved.measure({
    'ours' if size == sizes[0] else f'ours_{size}': partial(runs, programs[size], size)
    for size in sizes}, max(values.repeats, 2))
  return {'axis': [
    {'runs': size, 'seconds_a_run': [second / count for second in timing.seconds]}
    for size, timing in zip(sizes, timings.values(), strict=True)]}


def check(values: flags.FlagValues) -> None:
  interleaved.check_out(values.out)
  sizes = values.axis
  if not all(size.isdigit() for size in sizes) or any(
      max(map(int, sizes)) % max(int(size), 1) for size in sizes):
    raise InputError(f'--axis={",".join(sizes)}: divisors of the largest are allowed')


def bench(values: flags.FlagValues) -> dict[str, Any]:
  if values.loop:
    loop_runs(values)
    return {}
  ways = {'ours': partial(sweep_seconds, values),
          'ours_one_by_one': partial(sweep_seconds, values, '--runs=1', '--parallel=1')}
  if values.sampled:
    ways['peer_loop'] = partial(loop_seconds, values)
    ways['peer_processes'] = partial(process_seconds, values)
  seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
  for _, name in itertools.product(range(values.repeats), ways):
    seconds[name].append(ways[name]())
    print(f'{name}: {seconds[name][-1].said}', flush=True)
  count = len(values.methods) * values.seeds
  found: dict[str, Any] = {}
  for kind in Seconds._fields:
    timings = {name: interleaved.Timing(0.0, tuple(getattr(one, kind) for one in own), None)
               for name, own in seconds.items()}
    interleaved.show(f'{count} runs, {kind} seconds', timings, {
      'seconds': lambda own: own, 'seconds_a_run': lambda own: own / count})
    found |= interleaved.found(
      timings, {'seconds_a_run': lambda own: own / count}, f'_{kind}')
  if values.axis:
    found |= by_axis(values, [int(size) for size in values.axis])
    for row in found['axis']:
      print(f"E = {row['runs']}: {statistics.median(row['seconds_a_run']):.3f} s a run")
  return found | {'runs': count}


if __name__ == '__main__':
  sys.exit(interleaved.run(sys.argv, define, check, bench))
