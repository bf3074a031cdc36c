"""What methods do beside each other, in a minute: a small ablation at the end of the quick start.

One run of one seed supports no claim about methods. The word tagger of configs/ablation.py is
trained in seconds, so four regimes are compared over five seeds, with sound sites and with one of
five whose types are mixed up; the run's page then shows their differences with intervals.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedmedjax.compare import ablation
from fedmedjax.compare.tables import terminal_table
from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.report import CLAIMS, Cell, Table
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files

FOLDER = 'ablation'


class Claims(NamedTuple):
  """What a small ablation says."""

  sentences: tuple[str, ...]
  table: Table


def first_claims(workdir: Path, reporter: Reporter) -> Claims:
  """Runs the small ablation, or what is left of it, and writes what it says for the run's page.

  Args:
    workdir: of a run; the ablation's files are in its folder FOLDER.
    reporter: is told how far it is, and what came of it.

  Raises:
    InputError: the folder holds an ablation of another version.
  """
  presets, settings, seeds = ablation.SMALL
  folder = workdir / FOLDER
  with reporter.live():
    rows = ablation.ablation(
      get_config(ablation.BASELINE), folder, presets, settings, tuple(seeds), reporter)
  ablation.write_tables(folder, rows, [(presets, settings)])
  claims = Claims(tuple(sentences(rows, presets, settings)), table(rows, presets, settings))
  files.write_json(folder / CLAIMS, files.plain(
    {'sentences': claims.sentences, 'table': claims.table._asdict()}))
  reporter.say(terminal_table(claims.table))
  for sentence in claims.sentences:
    reporter.say(sentence)
  return claims


def sentences(
  rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str]
) -> list[str]:
  """What the rows of an ablation are, then a sentence for every difference to the baseline."""
  seeds = len({row['seed'] for row in rows})
  said = [
    f'Methods beside each other, on a small word tagger (not the model of this run): five sites '
    f'dealt out of two invented hospitals, {seeds} seeds, typed strict F1. Brackets are 95 % t '
    'intervals of differences, paired by seed.']
  for setting in settings:
    for preset in presets:
      if preset != ablation.BASELINE:
        found = ablation.difference(rows, preset, setting)
        said += [] if found is None else [
          f'{_title(setting)}: {preset} {_apart(found)} {ablation.BASELINE}.']
  return said


def _title(setting: str) -> str:
  title = ablation.SETTINGS[setting].title
  return title[0].upper() + title[1:]


def _apart(found: Estimate) -> str:
  """'is 5.1 points [+3.0, +7.2] above', or that it cannot be told apart."""
  value, low, high = (None if x is None else 100 * x for x in found[:3])
  if low is None or high is None:
    return f'is {value:+.1f} points from'
  where = f'{value:+.1f} points [{low:+.1f}, {high:+.1f}]'
  if low <= 0 <= high:
    return f'is not told apart, {where}, from'
  return f'is {"above" if value > 0 else "below"}, {where}, beside'


def table(rows: Sequence[dict], presets: Sequence[str], settings: Sequence[str]) -> Table:
  """Mean F1 of every regime in every setting, with its difference to the baseline below."""
  places = [(preset, setting) for preset in presets for setting in settings]
  found = {place: ablation.difference(rows, *place) for place in places
           if place[0] != ablation.BASELINE}
  sure = dict(zip(found, intervals.holm([one and one.p for one in found.values()]), strict=True))

  def cell(preset: str, setting: str) -> Cell:
    own = [row['f1'] for row in rows
           if (row['preset'], row['setting']) == (preset, setting) and 'f1' in row]
    apart, p = found.get((preset, setting)), sure.get((preset, setting))
    below = '' if apart is None or apart.low is None else (
      f'{100 * apart.value:+.1f} [{100 * apart.low:+.1f}, {100 * apart.high:+.1f}]')
    return Cell(f'{np.mean(own):.3f}' if own else '-', below + '*' * (p is not None and p < 0.05))

  return Table(
    'Methods on a word tagger', f'Mean strict F1; below it points beside {ablation.BASELINE} '
    f'[95 % t interval over seeds]. * not 0 at 5 % by Holm\'s correction over the {len(found)} '
    'differences.', ('regime', *map(_title, settings)),
    [[preset, *(cell(preset, setting) for setting in settings)] for preset in presets])
