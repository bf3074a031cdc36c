"""What methods do beside each other, in a minute: a small ablation at the end of the quick start.

One run of one seed supports no claim about methods. The word tagger of configs/ablation.py is
trained in seconds, so four regimes are compared over five seeds, with sound sites and with one of
five whose types are mixed up; the run's page then shows their differences with intervals.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmedjax import report
from fedmedjax.compare import ablation
from fedmedjax.compare.tables import terminal_table
from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.report import Cell, Table, write_claims
from fedmedjax.report.claims import CLAIMS
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.lock import locked


def first_claims(workdir: Path, examples: int, reporter: Reporter) -> None:
  """Runs the small ablation, or what is left of it, and shows what it says; the page gets it, too.

  Args:
    workdir: of a finished run; the ablation's files are in WORKDIR/ablation.
    examples: sentences of each site that the page shows.
    reporter: is told how far it is.

  Raises:
    InputError: there is an ablation of another version, or another process is in the folder.
  """
  (presets, settings, seeds), folder = ablation.SMALL, workdir / CLAIMS.parent
  with locked(workdir, reporter.warn):
    with reporter.live():
      rows = ablation.ablation(
        get_config(ablation.BASELINE), folder, presets, settings, tuple(seeds), reporter)
    ablation.write_tables(folder, rows, [(presets, settings)])
    shown, said = table(rows, presets, settings), sentences(rows, presets, settings)
    write_claims(workdir, lead(rows), said, shown)
    report.freshen(workdir, examples)
  reporter.say(lead(rows))
  reporter.say(terminal_table(shown))
  for sentence in said:
    reporter.say(sentence)


def lead(rows: Sequence[dict]) -> str:
  """What the rows of an ablation are."""
  return (
    'On a small word tagger, which is not the model of this run: five sites dealt out of two '
    f'invented hospitals, {len({row["seed"] for row in rows})} seeds, typed strict F1; brackets '
    'are 95 % t intervals of differences, paired by seed.')


def sentences(
  rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str]
) -> list[str]:
  """A sentence for every difference to the baseline, from the rows of an ablation."""
  said = []
  for setting in settings:
    for preset in presets:
      if preset != ablation.BASELINE:
        found = ablation.difference(rows, preset, setting)
        said += [] if found is None else [
          f'{_title(setting)}: {preset} is {_apart(found)}.']
  return said


def _title(setting: str) -> str:
  title = ablation.SETTINGS[setting].title
  return title[0].upper() + title[1:]


def _apart(found: Estimate) -> str:
  """'5.1 points above fed_medlora [+3.0, +7.2]', or that it cannot be told apart."""
  value, low, high = (None if x is None else 100 * x for x in found[:3])
  if low is None or high is None:
    return f'{value:+.1f} points from {ablation.BASELINE} (no interval)'
  where = f'[{low:+.1f}, {high:+.1f}]'
  if low <= 0 <= high:
    return f'not told apart from {ablation.BASELINE}: {value:+.1f} points {where}'
  return (
    f'{abs(value):.1f} points {"above" if value > 0 else "below"} {ablation.BASELINE} {where}')


def table(rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str]) -> Table:
  """Mean F1 of every regime in every setting; below it the interval of its difference to the
  baseline, short enough for a telephone."""
  places = [(preset, setting) for preset in presets for setting in settings]
  found = {place: ablation.difference(rows, *place) for place in places
           if place[0] != ablation.BASELINE}
  sure = dict(zip(found, intervals.holm([one and one.p for one in found.values()]), strict=True))

  def cell(preset: str, setting: str) -> Cell:
    own = [row['f1'] for row in rows
           if (row['preset'], row['setting']) == (preset, setting) and 'f1' in row]
    apart, p = found.get((preset, setting)), sure.get((preset, setting))
    below = '' if apart is None or apart.low is None else (
      f'{100 * apart.low:+.1f} to {100 * apart.high:+.1f}')
    return Cell(f'{np.mean(own):.3f}' if own else '-', below + '*' * (p is not None and p < 0.05))

  return Table(
    'Methods on a word tagger', 'Mean strict F1; below it the 95 % t interval of its difference to '
    f'{ablation.BASELINE} in points, over seeds. * not 0 at 5 % by Holm\'s correction over the '
    f'{len(found)} differences.', ('regime', *map(_title, settings)),
    [[preset, *(cell(preset, setting) for setting in settings)] for preset in presets])
