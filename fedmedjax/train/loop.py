"""The rounds of a study, from the newest whole checkpoint to the last one."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.experiment import communication, leaving, privacy
from fedmedjax.experiment.placing import check_alike, round_data, stop_together
from fedmedjax.experiment.private_sites import noise_key
from fedmedjax.experiment.round_log import (
  idle_line,
  line_after,
  line_before,
  round_sentence,
)
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.types import FedState, LocalData
from fedmedjax.runtime import signals
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import checkpoint, files, lock
from fedmedjax.store.trackers import Tracker
from fedmedjax.train import memory
from fedmedjax.train.memory import Plan
from fedmedjax.train.round_progress import StepDisplay, forecast, shown
from fedmedjax.train.scoring import watched_f1

CHECKPOINTS, METRICS = 'checkpoints', 'metrics.jsonl'


class Trained(NamedTuple):
  """The result of training: the state after the last round, and the lines of all rounds."""

  state: FedState
  lines: list[dict]   # the lines of metrics.jsonl
  earlier: float      # seconds of the rounds that earlier calls of this run have trained
  saving: float       # seconds that this call spent on checkpoints
  plan: Plan | None   # the memory plan at the end; None = no round was left to train


def planned(study: Study, workdir: Path | None, reporter: Reporter) -> Plan | None:
  """The memory plan of the rounds that are not in `workdir` yet, see `memory.plan`.

  None when all rounds are done.
  """
  if not workdir:
    return memory.plan(study, first_inputs(study), reporter, [])
  # Others may see a shared folder as it was a moment ago.
  of_first = study.processes.of_first
  if of_first('kept rounds', lambda: checkpoint.latest_round(
      workdir / CHECKPOINTS)) >= study.options.rounds:
    return None
  lines = of_first('lines of rounds', lambda: files.read_lines(workdir / METRICS))
  return memory.plan(study, first_inputs(study), reporter, lines)


def first_inputs(study: Study) -> tuple:
  """The arguments of the compiled round in round 0, whose shapes all rounds have."""
  state = study.algorithm.init(study.trainable.adapter)
  return _inputs(study, state, 0, *packed_round(study, 0))


def train(
  study: Study, workdir: Path, reporter: Reporter, display: StepDisplay, plan: Plan | None,
  tracker: Tracker,
) -> Trained:
  """Trains the rounds that are not done yet, from the newest whole checkpoint on.

  On an accelerator, while a round computes, the checkpoint of the round before is written and the
  examples of the next round are packed; on a CPU these happen one after the other. A round's line
  is written to metrics.jsonl and printed only when its checkpoint is on disk. On a signal the round
  and its checkpoint are finished first. One that runs out of memory begins anew by a smaller plan.

  Args:
    study: what is trained.
    workdir: folder of the run.
    reporter, tracker: are told of every round, the first of warnings, too.
    display: shows the steps of the current round where config.log.steps asks for that.
    plan: from `planned`; None = planned here, should a round be left after all.

  Raises:
    RuntimeError: training failed for good, or a checkpoint could not be written.
  """
  options, once = study.options, study.processes.once
  state, lines = _restored(study, workdir, reporter, tracker)
  if lines:
    reporter.say(f'resuming after round {len(lines)}')
  earlier, spent = sum(line['seconds'] for line in lines), []

  def keep(state: FedState, lines: list[dict], begun: float) -> None:
    once(lock.check_there, workdir)
    checkpoint.save(
      workdir / CHECKPOINTS, state, lines, options.keep, options.keep_best, study.processes)
    once(files.write_lines, workdir / METRICS, lines)
    spent.append(time.monotonic() - begun)
    once(tracker.add, lines)
    reporter.say(round_sentence(
      lines[-1], options.rounds, options.signal, options.own_aggregator))

  saving = Future()
  saving.set_result(None)
  # Of several processes none stops by itself, between rounds, while others compute the next one.
  heeded = signals.deferred() if study.spread else nullcontext()
  with ThreadPoolExecutor(1) as disk, _packing(study) as packed, heeded:
    while (number := len(lines)) < options.rounds:
      check_streak(study, lines)
      participation, data = packed(number, communication.skipped_rounds(lines))
      if study.ledger and (site := privacy.overspends(
          study.ledger, lines, number, participation)):
        reporter.say(privacy.stop_sentence(study.ledger, site, number, options.rounds))
        break
      inputs = _inputs(study, state, number, participation, data)
      # Without a plan all rounds seemed done, but the last checkpoint is damaged.
      plan = plan or memory.plan(study, inputs, reporter, lines)
      with signals.deferred():
        played = _within_memory(
          study, _played, study, plan, participation, inputs, lines, reporter, display)
        saving.result()
        if played is None:
          del state, inputs  # The failed round may have freed parts of the state it was given.
          state, lines = _restored(study, workdir, reporter, tracker)
          inputs = _inputs(study, state, number, participation, data)
          plan = memory.reduced(study, plan, inputs, reporter)
          continue
        state, line = played
        lines = [*lines, line]
        begun = time.monotonic()
        # Of several processes each writes its part of the arrays as they are.
        kept = state if study.spread else checkpoint.host_copy(state)
        saving = disk.submit(keep, kept, lines, begun)
        if study.spread or not _overlaps():
          saving.result()
        stop_together(study.processes, number + 1)
    saving.result()
  check_streak(study, lines)
  check_any(study, lines)
  return Trained(state, lines, earlier, sum(spent), plan)


def _restored(
  study: Study, workdir: Path, reporter: Reporter, tracker: Tracker
) -> tuple[FedState, list[dict]]:
  """The newest whole checkpoint, or the state before round 0.

  metrics.jsonl and the TensorBoard file are rewritten to hold just the rounds of that checkpoint,
  and other trackers are told those that they lack.
  """
  fresh = study.algorithm.init(study.trainable.adapter)
  state, lines = checkpoint.newest(
    workdir / CHECKPOINTS, fresh, reporter.warn, study.processes) or (fresh, [])
  # After a crash they may lack a line, or have one of a round without checkpoint.
  study.processes.once(files.write_lines, workdir / METRICS, lines)
  study.processes.once(tracker.restart, lines)
  return state, lines


def _overlaps() -> bool:
  """Whether the host has time for other work while a round computes.

  On a CPU a round takes all cores. A save beside it would slow both down and reach the disk late,
  so that a kill might cost two rounds. It could run: a round does not hold the interpreter's lock.
  """
  return jax.default_backend() != 'cpu'


@contextmanager
def _packing(study: Study) -> Iterator[Callable[..., tuple[Participation, LocalData]]]:
  """Yields a function like `packed_round`, which also starts to pack the next round where it can.

  The next round is packed as if the current one changed something, which nearly all do.
  """
  ahead: dict[tuple, Future] = {}
  with ThreadPoolExecutor(1) as packer:

    def packed(number: int, skipped: tuple[int, ...]) -> tuple[Participation, LocalData]:
      now, following = (number, skipped), (number + 1, skipped)
      inputs = ahead.pop(now).result() if now in ahead else packed_round(study, *now)
      if _overlaps() and number + 1 < study.options.rounds and following not in ahead:
        ahead.clear()
        ahead[following] = packer.submit(packed_round, study, *following)
      return inputs

    yield packed


def packed_round(
  study: Study, number: int, skipped: Sequence[int] = ()
) -> tuple[Participation, LocalData]:
  """Who takes part in round `number` (from 0), and the data they train on, as numpy arrays.

  `skipped` are the earlier rounds that changed nothing.
  """
  participation = communication.round_participation(
    study.communication, study.schedule, number, skipped)
  return participation, round_data(study, number, participation)


def _inputs(
  study: Study, state: FedState, number: int, participation: Participation, data: LocalData
) -> tuple:
  """The arguments of the compiled round: state, base, data, cohort, validation, key."""
  key = jax.random.fold_in(noise_key(study.options.seed, study.secret), number)
  if study.ledger:
    key = jax.random.fold_in(key, np.uint32(study.ledger.tag))
  return (
    state, study.trainable.base, data, participation.cohort.sites, study.validation, key)


def _within_memory(study: Study, play: Callable, *arguments) -> Any:
  """What `play` returns, or None when it runs out of memory.

  In one of several processes that ends the run: the others wait inside the round.
  """
  try:
    return play(*arguments)
  except jax.errors.JaxRuntimeError as error:
    if not memory.exhausted(error) or study.spread:
      raise
    return None


def _played(
  study: Study, plan: Plan, participation: Participation, inputs: tuple, lines: Sequence[dict],
  reporter: Reporter, display: StepDisplay,
) -> tuple[FedState, dict]:
  """Runs the round after those of `lines` -> (state, its line as JSON values).

  When no site of the cohort sends anything, nothing changes.
  """
  number = len(lines)
  line = line_before(study, number, participation, lines)
  if not participation.steps.any():
    return inputs[0], idle_line(line)
  if study.ledger:
    line['privacy'] = privacy.as_line(
      privacy.round_rows(study.ledger, number, participation))
  seconds = forecast(study, plan, participation, inputs, line, lines)
  begun = time.monotonic()
  with shown(study, reporter, display, line, seconds):
    state, metrics = plan.compiled(*inputs)
    metrics = leaving.of_metrics(jax.device_get(metrics), study.ledger)
    jax.effects_barrier()
  check_alike(study, line['round'], state)
  line['seconds'] = time.monotonic() - begun
  if study.options.every and line['round'] % study.options.every == 0:
    line |= watched_f1(study, state, reporter)
  line, warnings = line_after(study, plan.execution, participation, metrics, line, lines)
  for warning in warnings:
    reporter.warn(warning)
  return state, line


def check_streak(study: Study, lines: Sequence[dict]) -> None:
  """Raises RuntimeError when the last `max_bad_rounds` rounds all had no usable site."""
  failed = [bool(line.get('quarantined') and line.get('skipped')) for line in lines]
  limit = study.options.max_bad_rounds
  if len(failed) >= limit and all(failed[-limit:]):
    raise RuntimeError(
      f'rounds {len(lines) - limit + 1} to {len(lines)}: no site has a finite loss and update; the '
      f'adapter is that of the round before. Lower {study.options.rate_key}, in another workdir, '
      'or raise config.fed.max_bad_rounds')


def check_any(study: Study, lines: Sequence[dict]) -> None:
  """Raises RuntimeError when no round changed anything."""
  if not any(line['local_steps'] for line in lines):
    raise RuntimeError(
      f'in none of {len(lines)} rounds did a site send anything; see config.simulation.deadline '
      'and failure')
  if all(line.get('skipped') for line in lines):
    raise RuntimeError(
      f'in none of {len(lines)} rounds has a site a finite loss and update; nothing was learnt. '
      f'Lower {study.options.rate_key}, in another workdir')
