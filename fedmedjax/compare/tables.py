"""Tables and curves of a comparison: all seeds together, by site, and by part of a scenario."""

from collections.abc import Iterable, Mapping, Sequence

import rich.table

from fedmedjax.compare.comparisons import (
  Draws,
  Runs,
  best_single_site,
  with_everyone,
)
from fedmedjax.compare.score_words import ends, figure_name, score_name, score_title
from fedmedjax.eval import intervals, paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.eval.paired import Answers
from fedmedjax.report.blocks import Cell, Plot, Table
from fedmedjax.report.captions import MARK, MARKED, folded
from fedmedjax.report.warnings import is_unreadable

NONE = '-'
# The mark of a difference that Holm's correction over its table leaves.
_SURE = '*'


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
    f'{score_title(score)}: {seeds} seeds',
    f'{figure_name(score)}, mean over seeds [95 % by source and seed]'
    + cautioned(rows.values(), [*inside, *outside], score) + _marks(rows.values()),
    ('regime', *inside, 'mean', *(f'{site} (external)' for site in outside)), [
      [marked(name, runs), *(figure(runs, [site]) for site in inside), figure(runs, common),
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
  alone, lines, (least, most) = having.get('single_site'), [], ends(score)
  gains = _gains(having, sites, score, draws) if alone else {}
  for name, runs in having.items():
    values = {site: paired.mean_f1(runs.scores, [site], score, **draws._asdict()).value
              for site in sites}
    worst = min(values, key=values.get)
    lines.append([
      marked(name, runs), Cell(f'{values[worst]:.3f}', worst),
      f'{max(values.values()) - values[worst]:.3f}',
      *(gains.get((name, site), NONE) for site in sites)])
  return Table(
    f'{score_title(score)}: who gains by joining',
    f'{figure_name(score)} of the {least} site, that of the {most} one minus it, and what each '
    'site gains over ' + ('all single-site adapters, counts added' if first.get('partition') else
               'its single-site adapter') + ' [95 % by source]'
    + cautioned(having.values(), sites, score) + (
      f' {_SURE} not 0 at 5 % by Holm\'s correction over the {len(gains)} gains.' if gains else '')
    + _marks(having.values()),
    ('regime', f'{least} site', f'{most} − {least}', *sites), lines)


def _gains(
  rows: Mapping[str, Runs], sites: Sequence[str], score: str, draws: Draws
) -> dict[tuple[str, str], Cell]:
  """{(row, site): what the site gains over its single-site adapter}, of all other rows."""
  alone = rows['single_site']
  found = {
    (name, site): paired.difference(runs.scores, alone.scores, [site], score, **draws._asdict())
    for name, runs in rows.items() if runs is not alone for site in sites}
  corrected = intervals.holm([estimate.p for estimate in found.values()])
  return {
    place: Cell(
      f'{estimate.value:+.3f}{_SURE if p is not None and p < 0.05 else ""}',
      '' if estimate.low is None else f'[{estimate.low:+.2f}, {estimate.high:+.2f}]')
    for (place, estimate), p in zip(found.items(), corrected, strict=True)}


def _unreadable(runs: Runs) -> bool:
  return any(is_unreadable(summary) for summary in runs.summaries)


def marked(name: str, runs: Runs) -> str:
  """A row's name, with a mark where its answers are unreadable with any seed."""
  return name + MARK * _unreadable(runs)


def _marks(rows: Iterable[Runs]) -> str:
  """The end of a table's note that explains the mark; '' where no row has it."""
  return f' {MARKED}' * any(map(_unreadable, rows))


def cautioned(rows: Iterable[Runs], sites: Sequence[str], score: str) -> str:
  """The end of a table's note: what its intervals leave out; '.' where it is nothing."""
  said = [
    intervals.caution(paired.fewest_sources(runs.scores, tested, score), len(runs.scores))
    for runs in rows if (tested := paired.having(runs.scores, sites, score))]
  # The longest is that of the row with least behind it.
  return f' ({longest}).' if (longest := max(said, key=len, default='')) else '.'


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
    f'{score_title(score)}: every adapter on every site', f'{figure_name(score)}.',
    ('adapter of', *(f'{site} (external)' if site in first['external'] else site
                     for site in sites)),
    [[name, *(
      f'{paired.mean_f1(answers, [site], score, **draws._asdict()).value:.3f}'
      if paired.having(answers, [site], score) else NONE for site in sites)]
     for name, answers in matrix(rows).items()])


def matrix(rows: Mapping[str, Runs]) -> dict[str, list[Answers]]:
  """{adapter: counts by seed}: the sites' own adapters, then the rows with one for all sites.

  Sites that were dealt out are others with each seed: of several seeds, there is one row for all of
  them, of the site that V chooses with each seed.
  """
  by_adapter = {}
  if 'single_site' in rows:
    alone = rows['single_site']
    if len(alone.summaries) > 1 and alone.summaries[0].get('partition'):
      by_adapter |= dict(filter(None, [best_single_site(alone)]))
    else:
      by_adapter |= {
        site: [row[site] for row in alone.cross_site] for site in alone.cross_site[0]}
  return by_adapter | {
    name: list(runs.scores) for name, runs in with_everyone(rows).items()
    if name != 'single_site' and not any(runs.cross_site)}


def curve(
  parts: Mapping[str, Mapping[str, Runs]], score: str, draws: Draws, *, external: bool = False
) -> dict[str, dict[str, Estimate]]:
  """{row: {label of the part: mean F1 over the tested sites}}.

  The mean is over the sites that all rows have a score of, in all parts that are tested at the same
  sites, so that a line's points compare; a row without the score is left out of a part.

  Args:
    parts: {label: {row: Runs}}.
    score: a name of counts.json.
    draws: of the intervals.
    external: True = the mean is over the external cohorts, not over the sites that train.
  """
  curves: dict[str, dict[str, Estimate]] = {}
  scored, common = {}, {}
  for label, rows in parts.items():
    wanted = tuple(next(iter(rows.values())).summaries[0]['external' if external else 'sites'])
    scored[label] = wanted, {
      name: runs for name, runs in rows.items() if paired.having(runs.scores, wanted, score)}
    answers = [held for runs in scored[label][1].values() for held in runs.scores]
    common[wanted] = paired.having(answers, common.get(wanted, wanted), score)
  for label, (wanted, rows) in scored.items():
    for name, runs in rows.items() if common[wanted] else ():
      curves.setdefault(name, {})[label] = paired.mean_f1(
        runs.scores, common[wanted], score, **draws._asdict())
  return curves


def curve_table(
  heading: str, note: str, parts: Mapping[str, Mapping[str, Runs]],
  curves: Mapping[str, Mapping[str, Estimate]], score: str,
) -> Table:
  """The result of `curve` for these parts: a line for each row, a column for each part.

  A row is marked where its answers are unreadable in any part.
  """
  bad = {name for rows in parts.values() for name, runs in rows.items() if _unreadable(runs)}
  return Table(
    f'{heading}: {score_name(score)}', f'{figure_name(score)} [95 % by source]. {note}'
    + f' {MARKED}' * bool(bad & curves.keys()), ('regime', *parts),
    [[name + MARK * (name in bad), *(_figure(values.get(label)) for label in parts)]
     for name, values in curves.items()])


def curve_plot(
  heading: str, x_label: str, x: Mapping[str, float], curves: Mapping[str, Mapping[str, Estimate]],
  score: str,
) -> Plot:
  """The result of `curve` as lines; `x` is {label of the part: its place on the x axis}."""
  series = {name: [(x[label], *estimate[:3]) for label, estimate in values.items()]
            for name, values in curves.items()}
  return Plot(
    f'{heading}: {score_name(score)}', f'{figure_name(score)}, with 95 % intervals by source.',
    x_label, series)


def _figure(estimate: Estimate | None) -> Cell | str:
  if estimate is None:
    return NONE
  value, low, high, _ = estimate
  return Cell(f'{value:.3f}', '' if low is None else f'[{low:.2f}, {high:.2f}]')


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
