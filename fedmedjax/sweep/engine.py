"""A sweep: its plan, its batches, a few at the same time, and what it writes at the end."""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from fedmedjax.experiment import matmul
from fedmedjax.experiment.config import leaves
from fedmedjax.report import sweep_page
from fedmedjax.report.sweep_runs import read_sweep
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files, results, trackers
from fedmedjax.store.lock import locked
from fedmedjax.sweep import training
from fedmedjax.sweep.batches import Batch, make_batches
from fedmedjax.sweep.grid import Axis, NamedAxes, Point
from fedmedjax.sweep.halving import check_halving, go_on
from fedmedjax.sweep.outcome import score_table
from fedmedjax.sweep.plan import say_plan
from fedmedjax.sweep.runs import (
  DONE,
  FAILED,
  RUNS,
  STOPPED,
  WAITING,
  Record,
  Run,
  check_folder,
  expand,
)
from fedmedjax.sweep.sources import Programs, Sources

# Runs of a batch on a CPU, where more are no faster, and on an accelerator.
_RUNS, _RUNS_AT_ONCE = 16, 64
# The most batches at the same time that nobody asked for: Python's own work is one thread's.
_PARALLEL = 8


class Asked(NamedTuple):
  """What the command line asks for."""

  config: ConfigDict         # that all runs begin with
  given: dict[str, Any]      # flat keys of the command line
  axes: tuple[Axis, ...]
  points: list[Point]
  named: NamedAxes
  command: tuple[str, ...]
  halving: tuple[int, ...] = ()   # rounds after which runs are compared
  keep: float = 0.5               # share of choices that goes on
  runs: int = 0                   # of a batch; 0 = as many as suit the device
  parallel: int = 0               # batches at the same time; 0 = as many as suit the device
  skip_refused: bool = False
  validate_only: bool = False


def sweep(asked: Asked, workdir: Path, reporter: Reporter) -> Counter:
  """Trains all runs that `workdir` does not hold yet -> {status: how many runs have it}.

  Raises:
    InputError: a run that `main` would refuse, or a folder of something else, before anything is
      trained; a mistake in the notes of a part of the runs only fails those.
  """
  config = matmul.settled(asked.config, reporter, [
    path.parent for path in sorted(workdir.glob('runs/*/config.json'))[:1]])
  base = files.plain(leaves(config.to_dict()))
  check_folder(workdir, base)
  given = asked.given | {matmul.KEY: config.model.matmul} if matmul.KEY in asked.given else (
    asked.given)
  with reporter.task('checking the runs'):
    runs, refused = expand(
      config, given, asked.points, asked.named, workdir, asked.skip_refused)
  check_halving(asked.halving, asked.keep, runs)
  for run in runs:
    trackers.check_installed(run.config.log.trackers)
  on_cpu = jax.default_backend() == 'cpu'
  size = asked.runs or (_RUNS if on_cpu else _RUNS_AT_ONCE)
  parallel = asked.parallel or (min(_cores(), _PARALLEL) if on_cpu else 1)
  record = Record(workdir, base, asked.axes, asked.command)
  record.begin(runs, refused)
  pending = [run for run in runs if record.status(run.name) == WAITING]
  sources = Sources(pending, Reporter(Console(quiet=True)))
  say_plan(runs, pending, refused, sources, size, parallel, 1 if on_cpu else 0, reporter)
  if asked.validate_only:
    reporter.say('Nothing was trained or written.')
    return Counter(record.status(run.name) for run in runs)
  workdir.mkdir(parents=True, exist_ok=True)
  with locked(workdir, reporter.warn):
    record.write()
    try:
      _carry_out(
        asked, runs, pending, workdir, sources, Programs(pending, 1 if on_cpu else 0), record,
        size, parallel, reporter)
    finally:
      record.write()
    table = _results(workdir, reporter)
  return _said(runs, record, table, reporter)


def _cores() -> int:
  # Not every system tells which of its cores a process may use.
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _results(workdir: Path, reporter: Reporter) -> Table | None:
  """Writes what is made of all runs that the folder holds: table and page -> their scores."""
  if any(workdir.glob(f'{RUNS}/*/summary.json')):
    reporter.say_unwrapped(results.write(workdir))
  found = read_sweep(workdir)
  reporter.say_unwrapped(f'report: {sweep_page.write(workdir, sweep=found)}')
  return score_table(found)


def _carry_out(
  asked: Asked, runs: Sequence[Run], pending: Sequence[Run], workdir: Path, sources: Sources,
  programs: Programs, record: Record, size: int, parallel: int, reporter: Reporter,
) -> None:
  known, left = {run.name: run for run in runs}, {run.name: run for run in pending}
  with reporter.live(), reporter.task('runs', len(pending)) as advance:

    def ended(run: Run, status: str) -> None:
      left.pop(run.name, None)
      advance(1, f'{run.name} {status}' if status == FAILED else run.name)

    context = training.Context(
      sources, programs, record, threading.Event(), ended, {}, jax.default_backend() != 'cpu')
    for until in (*asked.halving, None):
      judged = record.judged(until) if until else {}
      together = [run for run in left.values() if run.program]
      waiting = [run for run in together if run.name not in judged]
      if until and not waiting:
        continue
      batches = make_batches(together, known, workdir, size, parallel)
      jobs = deque(_job(training.train, batch, context, until) for batch in batches)
      if until is None:
        jobs.extend(_job(training.train_alone, run, context)
                    for run in left.values() if not run.program)
      _work(jobs, parallel, context, until)
      if until:
        # A choice is not judged by those of its seeds alone that have not failed.
        failed = [run for run in runs if run.program and run.name not in judged
                  and record.status(run.name) == FAILED]
        compared = [run for run in waiting if run.name in left]
        went_on = go_on(compared + failed, context.losses, asked.keep)
        record.judge(until, {run.name: went_on[run.name] for run in compared})
        for run in compared:
          if not went_on[run.name]:
            sources.ended(run)
            ended(run, STOPPED)


def _job(function: Callable, *arguments: Any) -> Callable[[], list[Batch] | None]:
  return lambda: function(*arguments)


def _work(
  jobs: deque, parallel: int, context: training.Context, until: int | None
) -> None:
  """Does the jobs, a few at a time; what replaces a batch is done before what follows it."""
  with ThreadPoolExecutor(parallel) as pool:
    running: set[Future] = set()
    try:
      while jobs or running:
        while jobs and len(running) < parallel:
          running.add(pool.submit(jobs.popleft()))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
          for batch in future.result() or ():
            jobs.appendleft(_job(training.train, batch, context, until))
    except BaseException:
      # Rounds under way are finished, and kept.
      context.stop.set()
      raise


def _said(
  runs: Sequence[Run], record: Record, table: Table | None, reporter: Reporter
) -> Counter:
  """Says what became of the runs, and what they reached -> {status: how many}."""
  counts = Counter(record.status(run.name) for run in runs)
  if table:
    reporter.say(table)
  reporter.say(f'{many(len(runs), "run")}: ' + ', '.join(
    f'{counts[status]} {status}' for status in (DONE, STOPPED, FAILED, WAITING) if counts[status]))
  mine = {run.name for run in runs}
  for name, error in list(record.errors().items()):
    if name in mine:
      reporter.warn(f'{name}: {error}')
  return counts
