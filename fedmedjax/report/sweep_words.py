"""What a page about a sweep says in words: its first sentence, its lead, what failed."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.report.sweep_runs import (
  PRESET,
  Block,
  Difference,
  Sweep,
  SweepRun,
  over_seeds,
)
from fedmedjax.runtime.phrases import many

# Most names of runs in a warning.
_NAMES = 3


def failures(sweep: Sweep) -> list[str]:
  """A sentence for each way in which runs failed or were refused, with their names."""
  by_error: dict[tuple[str, str], list[str]] = {}
  for run in sweep.runs:
    if run.status in ('failed', 'refused'):
      reason = run.error or 'no reason is known'
      by_error.setdefault((run.status, reason), []).append(run.name)
  return [
    f'{many(len(names), "run")} {status} ({", ".join(names[:_NAMES])}'
    + (f' and {len(names) - _NAMES} more, see Runs' if len(names) > _NAMES else '') + f'): {error}'
    for (status, error), names in by_error.items()]


def named(sweep: Sweep, arm: str) -> str:
  """An arm in a sentence: a method by its name, another value with its key."""
  return arm if sweep.axis in (PRESET, '') else f'{sweep.axis}={arm}'


def words(sweep: Sweep) -> str:
  """What is scored: 'strict F1 of entities'."""
  return sweep.measure.words if sweep.measure else 'score'


def first_sentence(sweep: Sweep, baseline: str, compared: Sequence[Difference]) -> str:
  """What the sweep found, in one sentence that can be repeated."""
  if not sweep.arms:
    return f'No run of {len(sweep.runs)} has finished, so there is nothing to compare yet.'
  settings = len(sweep.settings)
  over = f'over {many(sweep.seeds, "seed")}' + (
    f' and {many(settings, "setting")}' if settings > 1 else '')
  means = {arm: over_seeds(scores_of(sweep, arm), (-np.inf, np.inf)) for arm in sweep.arms}
  if len(sweep.arms) == 1:
    arm, = sweep.arms
    value = means[arm]
    width = '' if value.low is None else f' [95 %: {value.low:.3f} to {value.high:.3f}]'
    who = named(sweep, arm) or 'The configuration'
    return f'{who} has a mean {words(sweep)} of {value.value:.3f}{width} {over}.'
  if not compared or not sweep.measure.shipped:
    # Nothing is repeated with another value, as in a random search; or less may be better.
    runs = sorted(done_runs(sweep), key=lambda run: run.score)
    return (f'Of {len(runs)} runs, {runs[-1].name} has the highest mean {words(sweep)}, '
            f'{runs[-1].score:.3f}, and {runs[0].name} the lowest, {runs[0].score:.3f}.')
  # An interval of one comparison does not say that it is the best of many: Holm's correction does.
  sure = [one for one in compared
          if one.holm is not None and one.holm < 0.05 and one.estimate.value > 0]
  most = max(compared, key=lambda one: one.estimate.value)
  best = max(sure or compared, key=lambda one: one.estimate.value)
  name, gain = named(sweep, baseline), best.estimate
  begin = f'Of {len(sweep.arms)} {"methods" if sweep.axis == PRESET else "values"}, {over}, '
  if gain.value <= 0:
    return (f'{begin}none gains on {name}, whose mean {words(sweep)} is '
            f'{means[baseline].value:.3f}.')
  tested = sum(one.holm is not None for one in compared)
  told = ', '.join(filter(None, (
    'one seed, so no interval' if gain.low is None else
    f'95 %: {100 * gain.low:+.1f} to {100 * gain.high:+.1f}',
    f'p {p_value(best.holm)} by Holm over {tested} comparisons'
    if best.holm is not None and tested > 1 else '')))
  # In the unit of the charts and tables of differences.
  found = (f'{100 * gain.value:+.1f} points of {words(sweep)} ({told}), to a mean of '
           f'{means[best.arm].value:.3f}.')
  arm = named(sweep, best.arm)
  if best.holm is not None and not sure:
    return (f'{begin}no gain on {name} is told apart from chance; the largest is that of {arm}, '
            f'{found}')
  how = 'most' if best == most else 'most of those that are told apart from chance'
  return f'{begin}{arm} gains {how} on {name}: {found}'


def p_value(value: float) -> str:
  """'= 0.012', or '< 0.001'."""
  return '< 0.001' if value < 0.001 else f'= {value:.2g}'


def done_runs(sweep: Sweep) -> list[SweepRun]:
  """Those that have a score."""
  return [run for of_arm in sweep.table.values() for run in of_arm.values()]


def scores_of(sweep: Sweep, arm: str) -> dict[Block, float]:
  """An arm's score in each block."""
  return {block: run.score for block, run in sweep.table[arm].items()}


def status_line(sweep: Sweep) -> str:
  """How many runs there are, by their status, and along what they differ."""
  counts = {status: sum(run.status == status for run in sweep.runs)
            for status in dict.fromkeys(run.status for run in sweep.runs)}
  return ' \N{MIDDLE DOT} '.join(filter(None, (
    f'{many(len(sweep.runs), "run")}: '
    + ', '.join(f'{count} {status}' for status, count in counts.items()),
    many(sweep.seeds, 'seed') if sweep.arms else '', ' × '.join(sweep.axes))))
