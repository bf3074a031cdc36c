"""What each site's updates were worth, over the rounds of a run, as a table with intervals."""

import math
from collections.abc import Sequence

import numpy as np

from fedmedjax.eval import intervals
from fedmedjax.report.blocks import Cell, Section, Table
from fedmedjax.report.runs import Run

# Sites that a table names.
_LISTED = 24
_NAMES = {'shapley': 'Shapley value', 'leave_one_out': 'leave-one-out'}
_MEANT = {
  'shapley': 'the mean, over all orders in which sites may join, of what its update adds. The '
             'values of a round add up to the fall thanks to all sites',
  'leave_one_out': 'the fall thanks to all sites less that without its update. Sites of like notes '
                   'replace each other, so that the values do not add up to the whole'}


def contribution_section(runs: Sequence[Run]) -> Section:
  """A table of sites for each run that asked for their contributions."""
  asked = [run for run in runs if any(line.get('contribution') for line in run.lines)]
  return Section(
    'contributions', 'What sites contributed',
    'By how much the validation loss fell thanks to a site\'s update, in nats per supervised token '
    'and round, of the mean of updates by size whatever the aggregator. Below 0 it rose.'
    if asked else '', [_table(run, len(runs) > 1) for run in asked])


def _table(run: Run, several: bool) -> Table:
  kind = run.config.get('fed.contribution', 'shapley')
  values: dict[str, list[float]] = {}
  errors: dict[str, list[float]] = {}
  wholes = []
  for line in run.lines:
    for site, steps, value, error in zip(
        line['sites'], line['steps'], line.get('contribution') or (),
        line.get('contribution_error') or (), strict=False):
      if steps and value is not None and math.isfinite(value):
        values.setdefault(site, []).append(value)
        errors.setdefault(site, []).append(error or 0.0)
    if line.get('contribution_whole') is not None:
      wholes.append(line['contribution_whole'])
  drawn = any(any(own) for own in errors.values())
  rows: list[list[Cell | str]] = [
    [site, _mean(own), f'{sum(own):+.4f}', f'{len(own)}',
     *([f'{math.sqrt(sum(error**2 for error in errors[site])):.4f}'] if drawn else [])]
    for site, own in sorted(values.items(), key=lambda pair: -sum(pair[1]))]
  note = (
    f'Of a site: {_MEANT[kind]}. The interval is a 95 % t interval over the rounds in which the '
    'site sent an update: how much rounds differ, not how much another run would; rounds follow '
    f'from each other. Over all rounds the loss fell by {sum(wholes):.4f} thanks to all sites.')
  if drawn:
    note += (' Of many sites, orders were drawn by chance; the last column is the standard error '
             'that this adds to the sum.')
  if len(rows) > _LISTED:
    note += f' The {_LISTED} sites of the largest sums, of {len(rows)}.'
  title = f'{_NAMES[kind][:1].upper()}{_NAMES[kind][1:]} of each site'
  return Table(
    f'{run.name}: {title}' if several else title, note,
    ('site', 'a round [95 %]', 'sum', 'rounds', *(['standard error'] if drawn else [])),
    rows[:_LISTED])


def _mean(values: Sequence[float]) -> Cell:
  array = np.asarray(values)
  found = intervals.estimate(
    float(array.mean()), [intervals.of_seeds(array)], (-math.inf, math.inf))
  if found.low is None:
    return Cell(f'{found.value:+.4f}')
  return Cell(f'{found.value:+.4f}', f'[{found.low:+.4f}, {found.high:+.4f}]')
