"""One batch of a sweep: its rounds along the axis of runs, checkpoints, what each run leaves."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from fedmedjax.experiment.communication import skipped_rounds
from fedmedjax.experiment.round_log import idle_line, line_after, line_before, participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.fed.types import FedState, LocalData, RoundMetrics
from fedmedjax.runtime import device
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import checkpoint, files, trackers
from fedmedjax.sweep import batches
from fedmedjax.sweep.batches import Batch
from fedmedjax.sweep.runs import DONE, FAILED, STOPPED, Record, Run, is_done
from fedmedjax.sweep.sources import Prepared, Programs, Sources, alike, flat, prepared
from fedmedjax.train import loop, memory, run_axis
from fedmedjax.train.fingerprint import check_inputs, compare_inputs, write_own_parts, write_schema
from fedmedjax.train.loop import CHECKPOINTS, METRICS, Trained
from fedmedjax.train.run import described, scored
from fedmedjax.train.run import run as run_alone
from fedmedjax.train.run_axis import Program, Shapes
from fedmedjax.train.scoring import watched_f1

# Seconds between two checkpoints of a batch: what a kill may cost.
_BETWEEN = 30.0


class Context(NamedTuple):
  """What the batches of a sweep share."""

  sources: Sources
  programs: Programs
  record: Record
  stop: threading.Event               # set where no further round is to begin
  ended: Callable[[Run, str], None]   # called with each run that has ended, and how
  losses: dict[str, float]            # by run: validation loss where its batch has paused
  narrow: bool                        # whether places without a run cost time


class Lane:
  """A run of a batch while it is trained."""

  def __init__(self, run: Run, study: Study, kept: Sequence[dict], ready: bool):
    """`kept`: what the batch's checkpoint has of its rounds; `ready`: `study` is the run's own."""
    self.run, self.study = run, study
    self.reporter = Reporter(Console(quiet=True))
    self.lines = [entry['runs'][run.name] for entry in kept if run.name in entry['runs']]
    # A run without lines of the last rounds has failed in one of them.
    self.open = ready and len(self.lines) == len(kept)
    self.turn: Any = None   # who takes part in the round


class _Course(NamedTuple):
  """A batch ready to be trained: what its rounds are given beside states and examples."""

  program: Program
  shapes: Shapes
  lanes: list[Lane]
  studies: list[Study]   # of the E places; those without an open run repeat one that has
  numbers: dict          # {key: [E]}
  validation: Any        # [E, Q, ...]


def train(batch: Batch, context: Context, until: int | None = None) -> list[Batch]:
  """Trains and scores the runs of a batch; an error of one is noted, and the others go on.

  Args:
    batch: of runs of one program.
    context: of the sweep.
    until: rounds after which it pauses, with a checkpoint; None = to the end.

  Returns:
    Batches that take its place, where its runs cannot be stacked or memory ran out.
  """
  workdir, members = batch.folder.parent.parent, []
  for run in _open(batch, context):
    try:
      compare_inputs(run.folder, context.sources.inputs(run))
      members.append(prepared(run, context.sources))
    except Exception as error:  # noqa: BLE001 - of whatever kind, the other runs do not have it
      _fail(run, error, context)
  if not batch.begun:
    groups = alike(members)
    if len(groups) != 1 or len(members) < len(batch.runs):
      return [batches.of_runs(tuple(one.run for one in group), len(group), workdir)
              for group in groups]
  # Rounds that are kept are of use to a later call, whatever is wrong in this one.
  if not members:
    return []
  try:
    _train(batch, members, context, until)
  except Exception as error:  # noqa: BLE001 - likewise: other batches go on
    left = _open(batch, context)
    if memory.exhausted(error) and len(left) > 1:
      batches.remove(batch)
      return batches.halves(left, workdir)
    for run in left:
      _fail(run, error, context)
  return []


def _open(batch: Batch, context: Context) -> list[Run]:
  """The runs of a batch that have not ended."""
  return [run for run in batch.runs if run.name not in batch.closed and not is_done(run)
          and context.record.status(run.name) not in (FAILED, STOPPED)]


def train_alone(run: Run, context: Context) -> None:
  """Trains a run as `main` does."""
  try:
    run_alone(run.config, run.folder, Reporter(Console(quiet=True)), context.sources.notes(run))
    _ended(run, DONE, context)
  except Exception as error:  # noqa: BLE001 - likewise
    _fail(run, error, context)


def _fail(run: Run, error: BaseException, context: Context) -> None:
  said = ' '.join(str(error).split())[:1000]
  _ended(run, FAILED, context, said or type(error).__name__)


def _ended(run: Run, status: str, context: Context, error: str = '') -> None:
  context.record.set(run.name, status, error)
  context.sources.ended(run)
  context.ended(run, status)


def _train(
  batch: Batch, members: Sequence[Prepared], context: Context, until: int | None
) -> None:
  compiled = device.compile_seconds()
  program, shapes = context.programs.of(members, lambda study: study.executions[0])
  every = _places(batch, members)
  fresh = run_axis.first_states(
    program, [one.study for one in every], _numbers(program, every))
  states, kept = checkpoint.newest(
    batch.folder / CHECKPOINTS, fresh, lambda text: None) or (fresh, [])
  if context.narrow and kept and 2 * len(members) <= batch.size:
    batch, states = batches.narrowed(batch, [one.run for one in members], states, kept)
  every, ready = _places(batch, members), {one.run.name for one in members}
  studies = [one.study for one in every]
  course = _Course(
    program, shapes, [Lane(run, study, kept, run.name in ready) for run, study in zip(
      batch.runs, studies, strict=False)], studies, _numbers(program, every),
    run_axis.stacked([
      run_axis.padded_validation(study.validation, shapes) for study in studies]))
  for lane in course.lanes:
    if lane.open:
      _begin(lane, context)
  rounds, saved = studies[0].options.rounds, time.monotonic()
  last = min(until or rounds, rounds)
  while len(kept) < last and any(lane.open for lane in course.lanes):
    if context.stop.is_set():
      _keep(batch, states, kept, course.lanes)
      return
    states = _round(course, states, len(kept), context)
    kept = [*kept, {'round': len(kept) + 1, 'runs': {
      lane.run.name: lane.lines[len(kept)] for lane in course.lanes
      if len(lane.lines) > len(kept)}}]
    if time.monotonic() - saved > _BETWEEN:
      _keep(batch, states, kept, course.lanes)
      saved = time.monotonic()
  if last < rounds:
    _keep(batch, states, kept, course.lanes)
    judged = np.asarray(course.program.judged(
      states, studies[0].trainable.base, course.validation))
    context.losses.update({
      lane.run.name: float(loss) for lane, loss in zip(course.lanes, judged, strict=False)
      if lane.open})
    return
  _finish(batch, states, kept, course, compiled, context)


def _numbers(program: Program, every: Sequence[Prepared]) -> dict:
  return run_axis.numbers_of_all([flat(one.run) for one in every], program.numbers)


def _places(batch: Batch, members: Sequence[Prepared]) -> list[Prepared]:
  """Who is at each of the E places; the first member is where no open run is."""
  ready = {one.run.name: one for one in members}
  every = [ready.get(name, members[0]) for name in batch.names]
  return every + [members[0]] * (batch.size - len(every))


def _begin(lane: Lane, context: Context) -> None:
  """Writes what a run's folder begins with, where it is not there yet."""
  folder = lane.run.folder
  folder.mkdir(parents=True, exist_ok=True)
  check_inputs(folder, context.sources.inputs(lane.run))
  files.claim(folder, lane.run.values)
  write_own_parts(folder, lane.study.own)
  write_schema(folder, lane.study.data.schema)


def _round(course: _Course, states: FedState, number: int, context: Context) -> FedState:
  """Plays a round of all open runs, whose lines are added to theirs."""
  begun, packed = time.monotonic(), []
  for lane in course.lanes:
    data = None
    if lane.open:
      lane.turn, data = loop.packed_round(lane.study, number, skipped_rounds(lane.lines))
    packed.append(data)
  usual = next(data for data in packed if data is not None)
  cohort = next(lane.turn.cohort.sites for lane in course.lanes if lane.open)
  packed += [None] * (len(course.studies) - len(packed))
  data = run_axis.stacked([
    run_axis.padded_data(_idle(usual) if own is None else own, course.shapes) for own in packed])
  cohorts = np.stack([
    lane.turn.cohort.sites if lane.open else cohort for lane in course.lanes]
    + [cohort] * (len(course.studies) - len(course.lanes)))
  arguments = (
    states, course.studies[0].trainable.base, course.numbers, data, cohorts, course.validation,
    run_axis.round_keys([study.options.seed for study in course.studies], number))
  with course.program.lock if number == 0 else threading.Lock():
    # The first call compiles.
    states, metrics = course.program.rounds(*arguments)
  metrics = jax.device_get(metrics)
  seconds = (time.monotonic() - begun) / sum(lane.open for lane in course.lanes)
  for place, lane in enumerate(course.lanes):
    if lane.open:
      try:
        _add_line(lane, course, run_axis.taken(metrics, place), number, seconds, states, place)
      except RuntimeError as error:
        lane.open = False
        files.write_lines(lane.run.folder / METRICS, lane.lines)
        _fail(lane.run, error, context)
  return states


def _idle(data: LocalData) -> LocalData:
  """Examples that nobody trains on: the round changes nothing."""
  return data._replace(
    step_mask=np.zeros_like(data.step_mask), weight=np.zeros_like(data.weight))


def _add_line(
  lane: Lane, course: _Course, metrics: RoundMetrics, number: int, seconds: float,
  states: FedState, place: int,
) -> None:
  """Adds a run's line of a round; RuntimeError as a run alone raises it."""
  line = line_before(lane.study, number, lane.turn, lane.lines)
  if not lane.turn.steps.any():
    lane.lines.append(idle_line(line))
    return
  line['seconds'] = seconds
  if lane.study.options.every and (number + 1) % lane.study.options.every == 0:
    line |= watched_f1(lane.study, run_axis.taken(states, place), lane.reporter)
  line, warnings = line_after(
    lane.study, course.program.execution, lane.turn, metrics, line, lane.lines)
  for text in warnings:
    lane.reporter.warn(text)
  lane.lines.append(line)
  loop.check_streak(lane.study, lane.lines)


def _keep(
  batch: Batch, states: FedState, kept: Sequence[dict], lanes: Sequence[Lane]
) -> None:
  """Writes the batch's checkpoint and the runs' lines."""
  for lane in lanes:
    if lane.open:
      files.write_lines(lane.run.folder / METRICS, lane.lines)
  if kept:
    batches.keep(batch, [lane.run.name for lane in lanes if not lane.open])
    checkpoint.save(batch.folder / CHECKPOINTS, checkpoint.host_copy(states), kept, 1)


def _finish(
  batch: Batch, states: FedState, kept: Sequence[dict], course: _Course, compiled: float,
  context: Context,
) -> None:
  """Scores the runs one after the other and writes what they leave."""
  host, safe = jax.tree.map(np.asarray, states), False
  for place, lane in enumerate(course.lanes):
    if not lane.open:
      continue
    if context.stop.is_set():
      if not safe:
        _keep(batch, states, kept, course.lanes)
        safe = True
      continue
    begun, folder = time.monotonic(), lane.run.folder
    try:
      files.write_lines(folder / METRICS, lane.lines)
      loop.check_any(lane.study, lane.lines)
      zero_shot = described(lane.study, folder, lane.reporter)
      trained = Trained(
        run_axis.taken(host, place), lane.lines, sum(line['seconds'] for line in lane.lines), 0.0,
        None)
      with trackers.started(
          lane.study.options.trackers, folder, lane.run.values, participant_names(lane.study),
          lane.reporter.warn) as tracker:
        tracker.restart(lane.lines)
        scored(
          lane.study, folder, lane.reporter, trained, zero_shot, (begun, compiled), tracker,
          lambda summary, reporter, folder: None)
      _ended(lane.run, DONE, context)
    except Exception as error:  # noqa: BLE001 - the other runs go on
      _fail(lane.run, error, context)
  if not safe:
    batches.remove(batch)
