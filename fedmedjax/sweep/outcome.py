"""The end of a sweep on the terminal: the scores of what is compared."""

import numpy as np
from rich.table import Table

from fedmedjax.eval.intervals import Estimate
from fedmedjax.report.sweep_runs import Difference, Sweep, differences, over_seeds
from fedmedjax.report.sweep_words import scores_of, words
from fedmedjax.runtime.phrases import many

# Most values of the compared axis that the table lists; the page has them all.
_LISTED = 20


def score_table(sweep: Sweep) -> Table | None:
  """Mean score of each value of the compared axis, and its difference to the first one.

  Args:
    sweep: of `read_sweep`.

  Returns:
    None where no run is done.
  """
  arms = sweep.arms
  if not arms:
    return None
  shipped = sweep.measure is None or sweep.measure.shipped
  compared = {one.arm: one for one in differences(sweep, arms[0])} if len(arms) > 1 else {}
  counts = {arm: len(scores_of(sweep, arm)) for arm in arms}
  caption = ['[95 % t interval over seeds]'] * (sweep.seeds > 1) + [
    'A mean is over all runs of its row, a difference over those that both have.'
    ] * (len({*counts.values()}) > 1)
  table = Table(
    title=f'Mean {words(sweep)}, over ' + many(sweep.seeds, 'seed')
    + (f' and {many(len(sweep.settings), "setting")}' if len(sweep.settings) > 1 else ''),
    caption=' '.join(caption) or None)
  table.add_column(sweep.axis or 'configuration', overflow='fold')
  minus = [f'minus {arms[0]}' + ', in points' * shipped] if compared else []
  for name in ('runs', 'mean', *minus):
    table.add_column(name, justify='right')
  if len(arms) > _LISTED:
    # The first, with which others are compared, and the best of these.
    arms = [arms[0], *sorted(arms[1:], key=lambda arm: (
      -compared[arm].estimate.value if arm in compared else np.inf))]
  for arm in arms[:_LISTED]:
    scores = scores_of(sweep, arm)
    table.add_row(
      arm or 'all runs', str(counts[arm]),
      _in_words(over_seeds(scores, (0.0, 1.0) if shipped else (-np.inf, np.inf)), '.3f'),
      *([_difference(compared.get(arm), shipped)] if compared else []))
  if len(arms) > _LISTED:
    table.add_row(f'and {len(arms) - _LISTED} more, see the report')
  return table


def _difference(found: Difference | None, shipped: bool) -> str:
  if found is None:
    return ''
  return _in_words(found.estimate, '+.1f', 100.0) if shipped else _in_words(
    found.estimate, '+.3f')


def _in_words(found: Estimate, form: str, times: float = 1.0) -> str:
  """'0.512 [0.487, 0.537]'; without an interval the value alone."""
  value, low, high = (None if x is None else format(times * x, form) for x in found[:3])
  return f'{value}' if low is None else f'{value} [{low}, {high}]'
