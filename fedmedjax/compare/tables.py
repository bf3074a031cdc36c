"""Tables and curves of a comparison: all seeds together, by site, and by part of a scenario."""

from collections.abc import Mapping, Sequence

import rich.table

from fedmedjax.compare.comparisons import WORDS, Draws, Runs, with_everyone
from fedmedjax.eval import paired
from fedmedjax.eval.paired import Answers, Estimate
from fedmedjax.report.blocks import Cell, Plot, Table
from fedmedjax.report.terminal import folded

NONE = '-'


def seeds_table(rows: Mapping[str, Runs], score: str, draws: Draws) -> Table | None:
  """Every regime's scores over all seeds; None with a single seed, which has a table anyway."""
  first = next(iter(rows.values())).summaries[0]
  seeds = len(next(iter(rows.values())).summaries)
  if seeds < 2:
    return None
  inside, outside, rows = first['sites'], first['external'], with_everyone(rows)
  # The mean is over the sites that all rows have a score of.
  common = paired.having(
    [answers for runs in rows.values() for answers in runs.scores], inside, score)

  def figure(runs: Runs, wanted: Sequence[str]) -> Cell | str:
    sites = paired.having(runs.scores, wanted, score)
    return _figure(paired.mean_f1(runs.scores, sites, score, **draws._asdict()) if sites else None)

  return Table(
    f'{_capital(score)}: {seeds} seeds',
    'Typed strict F1, mean over seeds [95 % by note and seed].',
    ('regime', *inside, 'mean', *(f'{site} (external)' for site in outside)), [
      [name, *(figure(runs, [site]) for site in inside), figure(runs, common),
       *(figure(runs, [site]) for site in outside)]
      for name, runs in rows.items()])


def spread_table(rows: Mapping[str, Runs], score: str, draws: Draws) -> Table | None:
  """Which sites benefit from joining: worst site, spread, and gain of each over training alone.

  None with fewer than two sites that have this score.
  """
  first = next(iter(rows.values())).summaries[0]
  having = {name: runs for name, runs in rows.items()
            if paired.having(runs.scores, first['sites'], score)}
  if len(first['sites']) < 2 or not having:
    return None
  sites = paired.having(
    [answers for runs in having.values() for answers in runs.scores], first['sites'], score)
  if not sites:
    return None
  alone, lines = having.get('single_site'), []
  for name, runs in having.items():
    values = {site: paired.mean_f1(runs.scores, [site], score, **draws._asdict()).value
              for site in sites}
    worst = min(values, key=values.get)
    gains = [_gain(runs, alone, site, score, draws) for site in sites]
    lines.append([
      name, Cell(f'{values[worst]:.3f}', worst), f'{max(values.values()) - values[worst]:.3f}',
      *gains])
  return Table(
    f'{_capital(score)}: who gains by joining',
    'Typed strict F1 of the worst site, that of the best one minus it, and what each site gains '
    'over ' + ('all single-site adapters, counts added' if first.get('partition') else
               'its single-site adapter') + ' [95 % by note].',
    ('regime', 'worst site', 'best − worst', *sites), lines)


def _gain(runs: Runs, alone: Runs | None, site: str, score: str, draws: Draws) -> Cell | str:
  if alone is None or runs is alone:
    return NONE
  estimate = paired.difference(runs.scores, alone.scores, [site], score, **draws._asdict())
  return Cell(f'{estimate.value:+.3f}', f'[{estimate.low:+.2f}, {estimate.high:+.2f}]')


def _capital(score: str) -> str:
  return WORDS[score][0].upper() + WORDS[score][1:]


def cross_site_table(rows: Mapping[str, Runs], score: str, draws: Draws) -> Table | None:
  """Every site's own adapter, and every adapter for all sites, on the test notes of every site.

  None when the sites' own adapters were not tested at other sites.
  """
  alone = rows.get('single_site')
  if alone is None or not all(alone.cross_site):
    return None
  first = alone.summaries[0]
  sites = [*first['sites'], *first['external']]
  return Table(
    f'{_capital(score)}: every adapter on every site', 'Typed strict F1.',
    ('adapter of', *(f'{site} (external)' if site in first['external'] else site
                     for site in sites)),
    [[name, *(
      f'{paired.mean_f1(answers, [site], score, **draws._asdict()).value:.3f}'
      if paired.having(answers, [site], score) else NONE for site in sites)]
     for name, answers in matrix(rows).items()])


def matrix(rows: Mapping[str, Runs]) -> dict[str, list[Answers]]:
  """{adapter: counts by seed}: the sites' own adapters, then the rows with one for all sites."""
  by_adapter = {}
  if 'single_site' in rows:
    crossed = rows['single_site'].cross_site
    by_adapter |= {site: [row[site] for row in crossed] for site in crossed[0]}
  return by_adapter | {
    name: list(runs.scores) for name, runs in with_everyone(rows).items()
    if name != 'single_site' and not any(runs.cross_site)}


def curve(
  parts: Mapping[str, Mapping[str, Runs]], score: str, draws: Draws, *, external: bool = False
) -> dict[str, dict[str, Estimate]]:
  """{row: {label of the part: mean F1 over the tested sites}}.

  Args:
    parts: {label: {row: Runs}}.
    score: a key of WORDS.
    draws: of the intervals.
    external: True = the mean is over the external cohorts, not over the sites that train.
  """
  curves: dict[str, dict[str, Estimate]] = {}
  for label, rows in parts.items():
    for name, runs in rows.items():
      sites = paired.having(
        runs.scores, runs.summaries[0]['external' if external else 'sites'], score)
      if sites:
        curves.setdefault(name, {})[label] = paired.mean_f1(
          runs.scores, sites, score, **draws._asdict())
  return curves


def curve_table(
  title: str, note: str, labels: Sequence[str], curves: Mapping[str, Mapping[str, Estimate]],
  score: str,
) -> Table:
  """The result of `curve`: a line for each row, a column for each part."""
  return Table(
    f'{title}: {WORDS[score]}', f'Typed strict F1 [95 % by note]. {note}', ('regime', *labels),
    [[name, *(_figure(values.get(label)) for label in labels)] for name, values in curves.items()])


def curve_plot(
  title: str, x_label: str, x: Mapping[str, float], curves: Mapping[str, Mapping[str, Estimate]],
  score: str,
) -> Plot:
  """The result of `curve` as lines; `x` is {label of the part: its place on the x axis}."""
  series = {name: [(x[label], *estimate) for label, estimate in values.items()]
            for name, values in curves.items()}
  return Plot(
    f'{title}: {WORDS[score]}', 'Typed strict F1, with 95 % intervals by note.', x_label, series)


def _figure(estimate: Estimate | None) -> Cell | str:
  if estimate is None:
    return NONE
  value, low, high = estimate
  return Cell(f'{value:.3f}', f'[{low:.2f}, {high:.2f}]')


def terminal_table(block: Table) -> rich.table.Table:
  """A table as the terminal shows it."""
  table = rich.table.Table(title=block.title, caption=block.note)
  for i, column in enumerate(block.columns):
    cells = [row[i] for row in block.rows]
    # Wide enough that an interval is never broken into two lines.
    width = max((len(cell.below) for cell in cells if isinstance(cell, Cell)
                 and cell.below.startswith('[')), default=5)
    table.add_column(
      column.replace('_', ' '), no_wrap=i == 0, min_width=width if i else 0,
      justify='right' if i else 'left')
  for name, *cells in block.rows:
    table.add_row(folded(name), *(
      '\n'.join(filter(None, cell)) if isinstance(cell, Cell) else cell
      for cell in cells))
  return table
