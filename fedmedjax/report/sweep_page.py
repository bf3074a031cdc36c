"""sweep.html: one self-contained page about a sweep, made from its folder only."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedmedjax.eval import intervals
from fedmedjax.report import charts, sweep_charts
from fedmedjax.report.blocks import (
  NONE,
  Cell,
  Chart,
  Charts,
  Command,
  Folded,
  Section,
  Sentences,
  Table,
)
from fedmedjax.report.page import write_page
from fedmedjax.report.scores import number
from fedmedjax.report.sweep_runs import (
  Difference,
  Sweep,
  SweepRun,
  differences,
  frontier,
  limits_of,
  mean_of,
  over_seeds,
  paired,
  ranks,
  read_sweep,
  said,
)
from fedmedjax.report.sweep_words import (
  done_runs,
  failures,
  first_sentence,
  named,
  p_value,
  scores_of,
  status_line,
  words,
)
from fedmedjax.runtime.phrases import many
from fedmedjax.store import files
from fedmedjax.store.results import PROGRAM, SWEEP
from fedmedjax.types import InputError

FILE = 'sweep.html'
# Most columns of a heat map; most values of an axis that has cells rather than points; most heat
# maps; most done runs in the table of runs.
_ACROSS, _CELLS, _MAPS, _ROWS = 10, 50, 12, 200
# Room for names of methods beside a heat map.
_LEFT = 134
_INTERVALS = 'With 95 % t intervals over seeds.'


def write(workdir: Path, baseline: str = '', sweep: Sweep | None = None) -> Path:
  """Writes WORKDIR/sweep.html of a sweep that has ended, or was stopped -> its path.

  Args:
    workdir: of the sweep: sweep.json, and runs/NAME as `main` writes runs.
    baseline: the value that others are compared with, such as a preset; '' = the first.
    sweep: of `read_sweep`; None = it is read here.

  Raises:
    InputError: sweep.json or a file of a run cannot be read, or no run has this baseline.
  """
  sweep, stored = sweep or read_sweep(workdir), files.read_json(workdir / SWEEP)
  arms = sweep.arms
  if baseline and baseline not in arms:
    raise InputError(
      f'baseline={baseline!r}: no finished run of {workdir} has it; allowed are {", ".join(arms)}')
  against = baseline or next(iter(arms), '')
  compared = differences(sweep, against) if len(arms) > 1 else []
  sections = [
    _score_section(sweep, stored.get('titles') or {}),
    _difference_section(sweep, against, compared), _rank_section(sweep), _byte_section(sweep),
    _run_section(sweep, stored)]
  write_page(
    workdir / FILE, workdir.resolve().name, sections,
    first=first_sentence(sweep, against, compared), lead=status_line(sweep),
    made_from='sweep.json and the summaries of its runs',
    warnings=failures(sweep))
  return workdir / FILE


def _score_section(sweep: Sweep, titles: Mapping[str, str]) -> Section:
  """Heat maps of pairs of axes; along an axis with too many values points, and of one axis rows."""
  if not sweep.arms:
    return Section('scores', 'Scores', '', [])
  runs = done_runs(sweep)
  few = [key for key, values in sweep.axes.items() if len(values) <= _CELLS]
  drawn = [chart for pair in combinations(few, 2) for chart in _heat(sweep, runs, *pair)]
  if not drawn and len(sweep.arms) <= _CELLS:
    means = {arm: over_seeds(scores_of(sweep, arm), (-np.inf, np.inf)) for arm in sweep.arms}
    drawn = [Chart(
      f'Mean {words(sweep)}', _INTERVALS * (sweep.seeds > 1), sweep_charts.rows(
        'means', f'Mean {words(sweep)} of each value of {sweep.axis}',
        [arm or 'all runs' for arm in means], np.array([one.value for one in means.values()]),
        _bounds(means.values()), sweep.measure.unit, '.3f'))]
  scattered = [chart for key in sweep.axes if key not in few for chart in _along(sweep, runs, key)]
  shown = [*drawn, *scattered]
  first, more = shown[:1], shown[1:_MAPS]
  lead = (f'Mean {words(sweep)} over the in-domain sites. A cell is the mean over all runs of its '
          'two values that are done, over seeds and other axes, too; a deeper colour is a higher '
          'mean, the deepest the highest of the sweep.' if len(few) > 1 else
          f'Mean {words(sweep)} over the in-domain sites.') + _in_words(sweep, titles)
  return Section('scores', 'Scores', lead, [
    Charts(first), Folded(f'{len(more)} more', [Charts(more)])] if more else [Charts(first)],
    folded=False)


def _in_words(sweep: Sweep, titles: Mapping[str, str]) -> str:
  """What values of the axes mean, where that is known: ' wrong_1: 1 of 5 sites wrong.'"""
  said = [f'{value}: {titles[value]}' for values in sweep.axes.values() for value in values
          if titles.get(value, value).lower() != value.lower()]
  return f' {"; ".join(said)}.' if said else ''


def _bounds(estimates) -> np.ndarray:
  return np.array([
    (np.nan, np.nan) if one.low is None else (one.low, one.high) for one in estimates])


def _heat(sweep: Sweep, runs: Sequence[SweepRun], down: str, across: str) -> list[Chart]:
  """Heat maps of two axes, the longer one downwards, in parts of at most _ACROSS columns."""
  if len(sweep.axes[across]) > len(sweep.axes[down]):
    down, across = across, down
  cells = np.array([[
    mean_of(run for run in runs if sweep.value(run, down) == row
            and sweep.value(run, across) == column)
    for column in sweep.axes[across]] for row in sweep.axes[down]])
  known = [run.score for run in runs]
  charted = []
  for part in range(0, cells.shape[1], _ACROSS):
    columns = sweep.axes[across][part:part + _ACROSS]
    charted.append(Chart(
      f'{down} × {across}', '', charts.heat(
        f'{down}_{across}_{part}', f'Mean {words(sweep)} by {down} and {across}',
        sweep.axes[down], columns, cells[:, part:part + _ACROSS], (min(known), max(known)),
        left=_LEFT)))
  return charted


def _along(sweep: Sweep, runs: Sequence[SweepRun], key: str) -> list[Chart]:
  """The score of every run against an axis of numbers, [] for one of words."""
  try:
    x = np.array([float(sweep.value(run, key)) for run in runs])
  except ValueError:
    return []
  wide = x.min() > 0 and x.max() > 20 * x.min()
  return [Chart(key, 'A point is a run.', sweep_charts.scatter(
    f'along_{key}', f'{words(sweep)} of every run against {key}', x,
    np.array([run.score for run in runs]), key, logarithmic=bool(wide)))]


def _difference_section(sweep: Sweep, baseline: str, compared: Sequence[Difference]) -> Section:
  name = named(sweep, baseline)
  if not compared:
    return Section('differences', 'Differences', '', [])
  shown = sorted(compared, key=lambda one: -one.estimate.value)
  chart = Chart(
    f'Difference to {name}', f'In {words(sweep)}, times 100; right of the line is higher.',
    sweep_charts.rows(
      'differences', f'Difference of each to {name}, with intervals',
      [one.arm for one in shown], 100 * np.array([one.estimate.value for one in shown]),
      100 * _bounds(one.estimate for one in shown), 'points', '+.1f', 0.0))
  table = Table(
    'All differences', 'p by Holm\'s correction over all rows; pairs are runs of both.',
    (sweep.axis, 'difference', 'p', 'pairs'), [
      (one.arm, Cell(f'{100 * one.estimate.value:+.1f}', _width(one.estimate)),
       NONE if one.holm is None else p_value(one.holm).removeprefix('= '), str(one.blocks))
      for one in shown])
  settings = sweep.settings[:_CELLS] if len(sweep.settings) > 1 else []
  others = [key for key in sweep.axes if key != sweep.axis]
  by_setting = Table(
    'By setting', f'Columns are {", ".join(others)}.' + (
      ' These intervals are not corrected for their number: where there is no difference, one in '
      'twenty leaves out 0 by chance.' if sweep.seeds > 1 else ''),
    (sweep.axis, *(', '.join(setting) for setting in settings)), [
      (one.arm, *(_of_setting(sweep, one.arm, baseline, setting) for setting in settings))
      for one in shown] if settings else [])
  seeds = many(sweep.seeds, 'seed')
  lead = (f'Runs of equal seed and setting are subtracted from each other; the interval is a 95 % '
          f't interval over {seeds}. p in the tables is corrected for the number of values that '
          'are compared, the intervals are not. How scores vary with the tested notes is left out.'
          if sweep.seeds > 1 else
          'Runs of equal setting are subtracted from each other; of one seed there is no interval.')
  return Section('differences', 'Differences', lead, [
    Charts([chart]), Folded('Tables', [table, by_setting])], folded=False)


def _width(estimate: intervals.Estimate) -> str:
  return '' if estimate.low is None else f'{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}'


def _of_setting(sweep: Sweep, arm: str, baseline: str, setting: tuple[str, ...]) -> Cell | str:
  pairs = paired(sweep, arm, baseline, setting)
  if not pairs:
    return NONE
  found = over_seeds(pairs, limits_of(sweep))
  return Cell(f'{100 * found.value:+.1f}', _width(found))


def _rank_section(sweep: Sweep) -> Section:
  found, without = ranks(sweep)
  # Ranks of a single block are the order of its scores.
  if len(found) < 2 or len(sweep.blocks) < 2:
    return Section('ranks', 'Ranks', '', [])
  means = {arm: over_seeds(of_arm, (1, len(found))) for arm, of_arm in found.items()}
  order = sorted(means, key=lambda arm: means[arm].value)
  count = len(next(iter(found.values())))
  lead = (f'1 is the best of {len(found)} in a seed and setting; the mean is over {count} of '
          'these, those in which all are done.' + (
            f' Not ranked, with runs in fewer than half: {", ".join(without)}.' if without else ''))
  return Section('ranks', 'Ranks', lead, [Charts([Chart(
    'Mean rank', f'{_INTERVALS * (sweep.seeds > 1)} Left is better.', sweep_charts.rows(
      'ranks', 'Mean rank of each', order, np.array([means[arm].value for arm in order]),
      _bounds(means[arm] for arm in order), 'mean rank', '.1f', whole=True))])])


def _byte_section(sweep: Sweep) -> Section:
  """Scores against the bytes of all messages of a run."""
  points = {
    arm: (float(np.mean([run.bytes for run in of_arm.values()])) / 1e6, mean_of(of_arm.values()))
    for arm, of_arm in ((arm, sweep.table[arm]) for arm in sweep.arms)}
  if len(points) < 2:
    return Section('bytes', 'Score and bytes', '', [])
  if len({f'{sent:.4g}' for sent, _ in points.values()}) == 1:
    sent, _ = next(iter(points.values()))
    return Section('bytes', 'Score and bytes', '', [Sentences([
      f'All send the same, {sent:.3g} MB a run, so bytes decide nothing here.'])])
  best, names = frontier(points), list(points)
  x, y = np.array(list(points.values())).T
  wide = x.min() > 0 and x.max() > 20 * x.min()
  chart = Chart(
    f'Mean {words(sweep)} against MB of all messages',
    'Full points with numbers: nothing sends less and scores more.', sweep_charts.scatter(
      'bytes', 'Mean score against bytes sent', x, y, 'MB sent and received in a run',
      [(names.index(name), str(place)) for place, name in enumerate(best, 1)],
      logarithmic=bool(wide)))
  numbered = {name: str(place) for place, name in enumerate(best, 1)}
  rows = [(name, numbered.get(name, NONE), f'{points[name][0]:.3g}', number(points[name][1]))
          for name in [*best, *(name for name in names if name not in best)]]
  table = Table('In numbers', 'Means over all runs that are done.',
                (sweep.axis, 'number in the chart', 'MB', words(sweep)), rows, beside=True)
  return Section('bytes', 'Score and bytes', '', [Charts([chart]), table])


def _run_section(sweep: Sweep, stored: dict) -> Section:
  """Every run, those that are not done first, and the command."""
  done = [run for run in sweep.runs if run.status == 'done']
  others = [run for run in sweep.runs if run.status != 'done']
  cut, shown = len(done) - _ROWS, [*others, *done[:_ROWS]]
  named_alike = all(map(_says_its_settings, shown))
  table = Table(
    'All runs', f'{cut} more that are done are in sweep.json.' if cut > 0 else '',
    ('run', 'status', 'score', 'MB', 'settings', 'error'), [
      (run.name, run.status, number(run.score), number(run.bytes / 1e6, '.3g'),
       NONE if named_alike else ', '.join(
         f'{key}={said(value)}' for key, value in run.overrides.items()), run.error or NONE)
      for run in shown], words=True)
  typed = _command(stored.get('command'))
  return Section(
    'runs', 'Runs', 'The command, and what became of every run.' if typed else '',
    [Command(typed), table])


def _says_its_settings(run: SweepRun) -> bool:
  """Whether the name of a run holds all that sets it apart, as names that are not too long do."""
  parts = run.name.split(',')
  return all(
    {str(value), f'{key.rpartition(".")[2]}={value}'} & {*parts}
    for key, value in run.overrides.items())


def _command(stored: Any) -> list[str]:
  """The command's words as a shell takes them; [] where sweep.json has none."""
  if not isinstance(stored, list):
    return [stored] if stored else []
  # Older versions kept the path of the program instead of `python -m fedmedjax.sweep`.
  words = stored if stored[:len(PROGRAM)] == [*PROGRAM] else [*PROGRAM, *stored[1:]]
  # --grid='...' is easier to read than '--grid=...', and the same to a shell.
  return [
    f'{flag}={shlex.quote(value)}' if equals and flag == shlex.quote(flag) else shlex.quote(word)
    for word in words for flag, equals, value in [word.partition('=')]]
