"""The rounds of a study, from the newest whole checkpoint to the last one."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import communication
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.types import FedState, LocalData
from fedmedjax.runtime import signals
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import checkpoint, files, tensorboard
from fedmedjax.train import memory
from fedmedjax.train.memory import Plan
from fedmedjax.train.round_log import check_round, metrics_line, participant_names, round_sentence

CHECKPOINTS, METRICS = 'checkpoints', 'metrics.jsonl'


class StepDisplay:
  """The host end of a round's progress: called by the compiled program after every step."""

  def __init__(self):
    self.names: tuple[str, ...] = ()
    self.advance: Callable = lambda count, note: None

  def __call__(self, site, step, loss, active) -> None:
    if active:
      self.advance(1, f'{self.names[int(site)]} loss {float(loss):.3f}')


class Trained(NamedTuple):
  """What became of all rounds."""

  state: FedState
  lines: list[dict]   # of metrics.jsonl
  earlier: float      # seconds that earlier runs trained
  saving: float       # seconds that this one spent on checkpoints
  plan: Plan | None   # of its memory, as it was at the end; None = no round was left


def planned(study: Study, workdir: Path | None, reporter: Reporter) -> Plan | None:
  """The plan of the rounds that `workdir` lacks, or None when it has all; see `memory.plan`."""
  if workdir and checkpoint.latest_round(workdir / CHECKPOINTS) >= study.options.rounds:
    return None
  lines = files.read_lines(workdir / METRICS) if workdir else []
  # All rounds have these shapes.
  turn, data = _packed(study, 0)
  state = study.algorithm.init(study.trainable.adapter)
  return memory.plan(study, _inputs(study, state, 0, turn, data), reporter, lines)


def train(
  study: Study, workdir: Path, reporter: Reporter, display: StepDisplay, plan: Plan | None
) -> Trained:
  """All rounds not yet done.

  On an accelerator a round's checkpoint is written, and the examples of the next one are packed,
  while a round computes; on a CPU in turns. Its line is in metrics.jsonl, and it is announced, only
  when the checkpoint is on disk. A signal lets the round under way and its checkpoint finish. A
  round that finds no memory is begun again from that checkpoint, with a smaller plan.

  Args:
    plan: of `planned`.

  Raises:
    RuntimeError: training failed for good, or a checkpoint could not be written.
  """
  options, display.names = study.options, participant_names(study)
  state, lines = _restored(study, workdir, reporter)
  if lines:
    reporter.say(f'resuming after round {len(lines)}')
  earlier, spent = sum(line['seconds'] for line in lines), []

  def keep(state: FedState, lines: list[dict], begun: float) -> None:
    checkpoint.save(workdir / CHECKPOINTS, state, lines, options.keep, options.keep_best)
    files.write_lines(workdir / METRICS, lines)
    spent.append(time.monotonic() - begun)
    tensorboard.add(workdir, lines, display.names)
    reporter.say(round_sentence(lines[-1], options.rounds))

  saving = Future()
  saving.set_result(None)
  with ThreadPoolExecutor(1) as disk, _packing(study) as packed:
    while (number := len(lines)) < options.rounds:
      _check_streak(study, lines)
      turn, data = packed(number)
      inputs = _inputs(study, state, number, turn, data)
      # A damaged checkpoint brings back rounds that were done.
      plan = plan or memory.plan(study, inputs, reporter, lines)
      with signals.deferred():
        played = _within_memory(
          _played, study, plan, turn, inputs, number, reporter, display)
        saving.result()
        if played is None:
          del state, inputs  # perhaps half given to the round that failed
          state, lines = _restored(study, workdir, reporter)
          plan = memory.reduced(study, plan, _inputs(study, state, number, turn, data), reporter)
          continue
        state, line = played
        lines = [*lines, line]
        begun = time.monotonic()
        saving = disk.submit(keep, checkpoint.host_copy(state), lines, begun)
        if not _overlaps():
          saving.result()
    saving.result()
  _check_streak(study, lines)
  _check_any(study, lines)
  return Trained(state, lines, earlier, sum(spent), plan)


def _restored(
  study: Study, workdir: Path, reporter: Reporter
) -> tuple[FedState, list[dict]]:
  """The newest whole checkpoint, or the start; files that grow by a round are made to agree."""
  fresh = study.algorithm.init(study.trainable.adapter)
  state, lines = checkpoint.newest(
    workdir / CHECKPOINTS, fresh, reporter.warn) or (fresh, [])
  # What a crash left there may lack a line, or have one without its checkpoint.
  files.write_lines(workdir / METRICS, lines)
  tensorboard.restart(workdir, lines, participant_names(study))
  return state, lines


def _overlaps() -> bool:
  """Whether the host can do anything else while a round computes.

  On a CPU the call of a round keeps the interpreter's lock to its end, so a save behind it would
  be on disk no sooner than the next round's, and a kill would cost two rounds.
  """
  return jax.default_backend() != 'cpu'


@contextmanager
def _packing(study: Study) -> Iterator[Callable[[int], tuple[Participation, LocalData]]]:
  """Yields `_packed` of a round; where it can, it packs the next one meanwhile."""
  ahead: dict[int, Future] = {}
  with ThreadPoolExecutor(1) as packer:

    def packed(number: int) -> tuple[Participation, LocalData]:
      found = ahead.pop(number).result() if number in ahead else _packed(study, number)
      if _overlaps() and number + 1 < study.options.rounds and number + 1 not in ahead:
        ahead[number + 1] = packer.submit(_packed, study, number + 1)
      return found

    yield packed


def _packed(study: Study, number: int) -> tuple[Participation, LocalData]:
  """How round `number`, from 0, goes, and what its sites train on, on the host."""
  turn = communication.round_participation(study.communication, study.schedule, number)
  batches, mask = schedules.round_arrays(study.schedule, number, turn.cohort.sites, turn.steps)
  return turn, LocalData(batches, mask, turn.weights)


def _inputs(
  study: Study, state: FedState, number: int, turn: Participation, data: LocalData
) -> tuple:
  """The arguments of a round's program."""
  return (
    state, study.trainable.base, data, turn.cohort.sites, study.validation,
    jax.random.fold_in(jax.random.key(study.options.seed), number))


def _within_memory(play: Callable, *arguments) -> Any:
  """What `play` returns, or None when it runs out of memory."""
  try:
    return play(*arguments)
  except jax.errors.JaxRuntimeError as error:
    if not memory.exhausted(error):
      raise
    return None


def _played(
  study: Study, plan: Plan, turn: Participation, inputs: tuple, number: int,
  reporter: Reporter, display: StepDisplay,
) -> tuple[FedState, dict]:
  """Runs one round -> (state, its line in JSON's terms). Where nobody came, nothing moves."""
  line = communication.participation_line(
    study.communication, study.schedule, number, turn, participant_names(study))
  if not turn.steps.any():
    state = inputs[0]
    return state._replace(round=state.round + 1), files.plain(
      line | {'skipped': True, 'weights': [0.0] * len(line['sites']), 'seconds': 0.0})
  begun = time.monotonic()
  label = f'round {number + 1}/{study.options.rounds}'
  with reporter.task(label, line['local_steps']) as advance:
    display.advance = advance
    state, metrics = plan.compiled(*inputs)
    metrics = jax.device_get(metrics)
    jax.effects_barrier()
  line |= metrics_line(study, plan.execution, turn, metrics) | {
    'seconds': time.monotonic() - begun} | plan.execution._asdict()
  for warning in check_round(study, line, turn, metrics):
    reporter.warn(warning)
  return state, files.plain(line)


def _check_streak(study: Study, lines: Sequence[dict]) -> None:
  """Raises RuntimeError when the last rounds all failed at every site, so many as are allowed."""
  failed = [bool(line.get('quarantined') and line.get('skipped')) for line in lines]
  limit = study.options.max_bad_rounds
  if len(failed) >= limit and all(failed[-limit:]):
    raise RuntimeError(
      f'rounds {len(lines) - limit + 1} to {len(lines)}: no site has a finite loss and update; the '
      f'adapter is that of the round before. Lower {study.options.rate_key}, in another workdir, '
      'or raise config.fed.max_bad_rounds')


def _check_any(study: Study, lines: Sequence[dict]) -> None:
  """Raises RuntimeError when no round changed anything."""
  if not any(line['local_steps'] for line in lines):
    raise RuntimeError(
      f'in none of {len(lines)} rounds did a site send anything; see config.simulation.deadline '
      'and failure')
  if all(line.get('skipped') for line in lines):
    raise RuntimeError(
      f'in none of {len(lines)} rounds has a site a finite loss and update; nothing was learnt. '
      f'Lower {study.options.rate_key}, in another workdir')
