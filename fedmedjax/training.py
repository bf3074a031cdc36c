"""The rounds of a study, from the newest whole checkpoint to the last one."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from fedmedjax import checkpoint, exchange, scalars, stopping, writer
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import Study
from fedmedjax.fed.participation import Turnout
from fedmedjax.fed.types import FedState, LocalData
from fedmedjax.progress import Reporter
from fedmedjax.rounds import check_round, metrics_line, participant_names, round_sentence

CHECKPOINTS = 'checkpoints'


class StepDisplay:
  """The host end of a round's progress: called by the compiled program after every step."""

  def __init__(self):
    self.names: tuple[str, ...] = ()
    self.advance: Callable = lambda count, note: None

  def __call__(self, site, step, loss, active) -> None:
    if active:
      self.advance(1, f'{self.names[int(site)]} loss {float(loss):.3f}')


def train(
  study: Study, workdir: Path, reporter: Reporter, display: StepDisplay
) -> tuple[FedState, list[dict], float, float]:
  """All rounds not yet done -> (state, metrics lines, seconds that earlier runs trained, seconds
  that this one spent on checkpoints).

  On an accelerator a round's checkpoint is written while the next round computes, from a copy on
  the host; on a CPU before it. Its line is in metrics.jsonl, and it is announced, only when the
  checkpoint is on disk. A signal lets the round under way and its checkpoint finish.

  Raises:
    RuntimeError: training failed for good, or a checkpoint could not be written.
  """
  options, display.names = study.options, participant_names(study)
  fresh = study.algorithm.init(study.learner.adapter)
  state, lines = checkpoint.newest(
    workdir / CHECKPOINTS, fresh, lambda text: reporter.say(f'warning: {text}')) or (fresh, [])
  if lines:
    reporter.say(f'resuming after round {len(lines)}')
  # What a crash left there may lack a line, or have one without its checkpoint.
  writer.write_lines(workdir / 'metrics.jsonl', lines)
  scalars.restart(workdir, lines, display.names)
  earlier = sum(line['seconds'] for line in lines)

  spent: list[float] = []

  def keep(state: FedState, lines: list[dict], begun: float) -> None:
    checkpoint.save(workdir / CHECKPOINTS, state, lines, options.keep, options.keep_best)
    writer.write_lines(workdir / 'metrics.jsonl', lines)
    spent.append(time.monotonic() - begun)
    scalars.add(workdir, lines, display.names)
    reporter.say(round_sentence(lines[-1], options.rounds))

  compiled, saving = None, Future()
  saving.set_result(None)
  with ThreadPoolExecutor(1) as disk:
    for number in range(len(lines), options.rounds):
      _check_streak(study, lines)
      turn, inputs = _inputs(study, state, number)
      if compiled is None and turn.steps.any():
        with reporter.task('compiling the round') as advance:
          compiled = study.algorithm.round.lower(*inputs).compile()
          advance()
      with stopping.deferred():
        state, line = _played(study, compiled, turn, inputs, number, reporter, display)
        lines = [*lines, line]
        saving.result()
        begun = time.monotonic()
        saving = disk.submit(keep, checkpoint.host_copy(state), lines, begun)
        if not _overlaps():
          saving.result()
    saving.result()
  _check_streak(study, lines)
  _check_any(study, lines)
  return state, lines, earlier, sum(spent)


def _overlaps() -> bool:
  """Whether a checkpoint can be written while a round computes.

  On a CPU the call of a round keeps the interpreter's lock to its end, so a save behind it would
  be on disk no sooner than the next round's, and a kill would cost two rounds.
  """
  return jax.default_backend() != 'cpu'


def _inputs(study: Study, state: FedState, number: int) -> tuple[Turnout, tuple]:
  """How round `number`, from 0, goes, and the arguments of its program."""
  turn = exchange.turnout(study.meeting, study.schedule, number)
  batches, mask = schedules.round_arrays(study.schedule, number, turn.cohort.sites, turn.steps)
  return turn, (
    state, study.learner.base, LocalData(batches, mask, turn.weights), turn.cohort.sites,
    study.validation, jax.random.fold_in(jax.random.key(study.options.seed), number))


def _played(
  study: Study, compiled: Callable | None, turn: Turnout, inputs: tuple, number: int,
  reporter: Reporter, display: StepDisplay,
) -> tuple[FedState, dict]:
  """Runs one round -> (state, its line in JSON's terms). Where nobody came, nothing moves."""
  line = exchange.turnout_line(
    study.meeting, study.schedule, number, turn, participant_names(study))
  if not turn.steps.any():
    state = inputs[0]
    return state._replace(round=state.round + 1), writer.plain(
      line | {'skipped': True, 'weights': [0.0] * len(line['sites']), 'seconds': 0.0})
  begun = time.monotonic()
  label = f'round {number + 1}/{study.options.rounds}'
  with reporter.task(label, line['local_steps']) as advance:
    display.advance = advance
    state, metrics = compiled(*inputs)
    metrics = jax.device_get(metrics)
    jax.effects_barrier()
  line |= metrics_line(study, turn, metrics) | {'seconds': time.monotonic() - begun}
  for warning in check_round(study, line, turn, metrics):
    reporter.say(f'warning: {warning}')
  return state, writer.plain(line)


def _check_streak(study: Study, lines: Sequence[dict]) -> None:
  """Raises RuntimeError when the last rounds all failed at every site, so many as are allowed."""
  failed = [bool(line.get('quarantined') and line.get('skipped')) for line in lines]
  limit = study.options.max_bad_rounds
  if len(failed) >= limit and all(failed[-limit:]):
    raise RuntimeError(
      f'rounds {len(lines) - limit + 1} to {len(lines)}: no site has a finite loss and update; the '
      f'adapter is that of the round before. Lower {study.learner.rate_key}, in another workdir, '
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
      f'Lower {study.learner.rate_key}, in another workdir')
