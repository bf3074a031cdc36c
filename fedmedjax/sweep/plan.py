"""What a sweep would do: its programs, runs, memory and time, told before anything is trained."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from fedmedjax import tree
from fedmedjax.experiment.types import Study
from fedmedjax.runtime import device
from fedmedjax.runtime.phrases import duration, many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.sweep.batches import programs
from fedmedjax.sweep.grid import Point
from fedmedjax.sweep.runs import Run, data_key
from fedmedjax.sweep.sources import Sources, prepared
from fedmedjax.train import loop
from fedmedjax.train.duration import expected
from fedmedjax.train.estimates import estimate
from fedmedjax.train.memory import SHARE, Plan
from fedmedjax.types import InputError

# An estimate of fewer seconds is left out: what it does not count, such as compiling, takes longer.
_COMPILING = 10.0
# Names of methods that a row of the table has room for.
_NAMED = 3


class Needs(NamedTuple):
  """What the runs of a program need."""

  memory: int             # bytes of a batch, beside the base
  seconds: float | None   # of a run, by its matrix products; None = it has none


def say_plan(
  runs: Sequence[Run], pending: Sequence[Run], refused: Mapping[str, tuple[Point, str]],
  sources: Sources, size: int, parallel: int, at_once: int, reporter: Reporter,
) -> None:
  """Prints the plan; notes that one run in each choice of them reads are read for it.

  Args:
    runs: all of the sweep.
    pending: those that are left.
    refused: those that are left out.
    sources: of the pending runs.
    size: the most runs of a batch.
    parallel: batches at the same time.
    at_once: runs of a batch that are computed together; 0 = all.

  Raises:
    InputError: as a run would, for its notes, model or method.
  """
  reasons: dict[str, list[str]] = defaultdict(list)
  for name, (_, why) in refused.items():
    reasons[why].append(name)
  for why, names in reasons.items():
    more = f' and {len(names) - 1} more are' if len(names) > 1 else ' is'
    reporter.warn(f'{names[0]}{more} left out: {why}')
  _check_notes(pending, sources, reporter)
  left, table = programs(pending), Table(title='Programs')
  for name in ('methods', 'runs', 'left', 'in a batch', 'MiB of a batch', 's a run'):
    table.add_column(name, justify='left' if name == 'methods' else 'right')
  memory, seconds, base = 0, 0.0, 0
  for key, same in programs(runs).items():
    waiting = left.get(key, [])
    batch = min(size, len(waiting)) if key else 1
    needs = None
    if waiting:
      study = _ready(waiting[0], sources)
      base = max(base, tree.num_bytes(study.trainable.base))
      needs = _needs(study, batch, at_once) if study.options.rounds else None
    if needs:
      memory, seconds = max(memory, needs.memory), (
        seconds + len(waiting) * (needs.seconds or 0.0))
    table.add_row(
      _methods(same) + ('' if key else ' (one by one, as main trains them)'), str(len(same)),
      str(len(waiting)), str(batch if waiting else 0),
      f'{needs.memory / 2**20:,.1f}' if needs else '',
      f'{needs.seconds:.2g}' if needs and needs.seconds else '')
  counted = f'{many(len(runs), "run")}, {len(pending)} left'
  if not pending:
    reporter.say(counted)
    return
  reporter.say(table)
  limit = device.limit()
  total = base + parallel * memory
  together, alone = sum(map(bool, left)), len(left.get('', ()))
  parts = [many(together, 'program')] * bool(together) + [
    f'{many(alone, "run")} one by one'] * bool(alone)
  said = [
    f'{counted}, in {" and ".join(parts)}, {parallel} at a time',
    f'about {total / 2**30:.2f} GiB beside what is held now, of {limit / 2**30:.1f} GiB']
  if seconds / parallel > _COMPILING:
    said.append(f'steps and answers take about {duration(seconds / parallel)} by their matrix '
                'products, compiling and files not counted')
  reporter.say('; '.join(said))
  if total > SHARE * limit:
    reporter.warn(
      f'{total / 2**30:.2f} GiB are more than {SHARE:.0%} of {limit / 2**30:.1f} GiB: lower '
      '--runs or --parallel')


def _check_notes(pending: Sequence[Run], sources: Sources, reporter: Reporter) -> None:
  """Reads the notes of one run of each choice of them, seeds aside."""
  firsts = list({data_key(run.values, seeds=False): run for run in reversed(pending)}.values())
  with reporter.task('reading notes', len(firsts)) as advance:
    for run in firsts:
      try:
        sources.notes(run)
      except InputError as error:
        raise _refused(run, error) from None
      advance()


def _ready(run: Run, sources: Sources) -> Study:
  try:
    return prepared(run, sources).study
  except InputError as error:
    raise _refused(run, error) from None


def _refused(run: Run, error: InputError) -> InputError:
  return InputError(f'--grid: the run {run.name} is refused: {error}')


def _needs(study: Study, batch: int, at_once: int) -> Needs:
  inputs, execution = loop.first_inputs(study), study.executions[0]
  state, _, data, *_ = inputs
  each = tree.num_bytes(state) + tree.num_bytes(data.batches) + tree.num_bytes(study.validation)
  room = estimate(study, inputs)(execution)
  plan = Plan(execution, lambda *arguments: None, {}, 0, 0, 0)
  try:
    found = expected(study, plan, inputs)
    seconds = sum(found.rounds) + found.decoding
  except ValueError:  # without a product
    seconds = None
  return Needs(batch * each + (batch if at_once != 1 else 1) * room, seconds)


def _methods(runs: Sequence[Run]) -> str:
  names = list(dict.fromkeys(run.values['fed.preset'] for run in runs))
  more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
  return ', '.join(names[:_NAMED]) + more
