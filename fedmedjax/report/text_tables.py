"""Tables for the terminal about own tasks (config.data.tasks=('text',)): rows, and their scores."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from fedmedjax.data.site import SiteData
from fedmedjax.report.captions import caption, folded, label, zero_shot
from fedmedjax.report.means import Means
from fedmedjax.report.measures import TEXT, Measure, Value, measures_of
from fedmedjax.report.runs import method_name
from fedmedjax.report.set_aside import set_aside

# Most columns of scores in a table; of more, the first metric alone is set beside other answers.
_ACROSS = 6


def is_of_rows(sites: Sequence[SiteData]) -> bool:
  """Whether sites hold the rows of an own task."""
  return any(part.ask.task == TEXT for site in sites for part in site.tasks)


def row_table(
  sites: Sequence[SiteData], external: Sequence[SiteData], server: Sequence[SiteData],
  more: int = 0,
) -> Table:
  """How many rows each site has, and what is to be written about them.

  Args:
    sites: that train or are tested.
    external: tested, too.
    server: whose rows are the server's validation set.
    more: how many sites that train are left out.
  """
  table = Table(title='Sites, in rows')
  for name in ('site', 'train', 'validation', 'test', 'different targets', 'set aside'):
    table.add_column(name, justify='left' if name in ('site', 'set aside') else 'right')
  roles = {site.name: ' (external)' for site in external} | {
    site.name: " (the server's)" for site in server}
  for site in (*sites, *external, *server):
    counts = Counter(
      example.target for part in site.tasks for example in (*part.solved, *part.test)
      if example.target is not None)  # another process may have them
    (_, most), = counts.most_common(1) or [('', 0)]
    table.add_row(
      site.name + roles.get(site.name, ''),
      *(f'{sum(len(getattr(part, key)) for part in site.tasks):,}'
        for key in ('train', 'validation', 'test')),
      f'{len(counts):,} (the commonest {most / counts.total():.0%})' if counts else '-',
      set_aside(site.report, 'rows') or '-')
  if more > 0:
    table.caption = f'without {more} sites that train'
  return table


def _shown(found: Value | None, between: str = '\n') -> str:
  if found is None:
    return '-'
  return f'{found.value:.3f}' + (
    '' if found.low is None else f'{between}[{found.low:.2f},{found.high:.2f}]')


def mean_of(scores: Mapping, sites: Sequence[str], measure: Measure) -> str:
  """Plain mean of a score over the sites that have it, as the tables show it."""
  found = [value.value for site in sites if (value := measure.at(scores.get(site, {})))]
  return f'{sum(found) / len(found):.3f}' if found else '-'


def with_mean(
  table: Table, summary: dict, row: Callable[[str], list[str]],
  mean: Callable[[list[str]], list[str]],
) -> None:
  """Adds a row for each site that trains, their mean, and a row for each external one.

  Args:
    table: with its columns.
    summary: of the run.
    row: site -> its cells.
    mean: sites -> cells of their mean.
  """
  inside = [site for site in summary['scores'] if site not in summary['external']]
  for site in inside:
    table.add_row(*row(site))
  table.add_section()
  table.add_row('mean of the sites', *mean(inside))
  table.add_section()
  for site in summary['scores']:
    if site not in inside:
      table.add_row(*row(site))


def interval(
  means: Means | None, part: str, scores: Mapping, sites: Sequence[str], measure: Measure,
  kind: str = '', between: str = '\n',
) -> str:
  """The interval of a mean over those of `sites` that have the measure; '' where none is known."""
  tested = [site for site in sites if measure.find(scores.get(site, {}))]
  found = means(part, tested, measure, kind) if means else None
  return '' if found is None or found.low is None else (
    f'{between}[{found.low:.2f},{found.high:.2f}]')


def text_measures(rows: Mapping[str, dict]) -> list[Measure]:
  """The metrics of the own tasks of runs, in order."""
  return [measure for measure in measures_of(
    tasks for row in rows.values() for tasks in row['scores'].values()) if measure.of_text]


def text_score_table(summary: dict, means: Means | None = None) -> Table:
  """All scores of every site, beside those of the adapter for all, where sites have their own, and
  those of the untrained model.

  Args:
    summary: of the run.
    means: its means with intervals; None = there are no intervals of means.
  """
  measures = text_measures({'': summary})
  first = measures[0]
  table = Table(
    title=f'Scores, {method_name(summary)}, seed {summary["seed"]} [95 % by source]',
    caption=caption(
      summary, lambda scores, sites: mean_of(scores, sites, first), f'a mean {first.name}'))
  others = [(name, scores) for name, scores in (
    ('global', (summary.get('global') or {}).get('scores')), ('zero-shot', zero_shot(summary)))
    if scores]
  beside = measures if len(measures) * (1 + len(others)) <= _ACROSS else measures[:1]
  columns = [(measure.name, 'scores', summary['scores'], measure) for measure in measures] + [
    (f'{name} {measure.name}', name.replace('-', '_'), scores, measure)
    for name, scores in others for measure in beside]
  table.add_column('site', no_wrap=True)
  for title, *_ in columns:
    # An interval is 11 characters.
    table.add_column(title, justify='right', min_width=11)

  def row(site: str) -> list[str]:
    return [label(site, summary), *(
      _shown(measure.at(scores.get(site, {}))) for *_, scores, measure in columns)]

  with_mean(table, summary, row, lambda inside: [
    mean_of(scores, inside, measure) + interval(means, part, scores, inside, measure)
    for _, part, scores, measure in columns])
  return table


def text_comparison(
  rows: dict[str, dict], sites: Sequence[str], external: Sequence[str]
) -> Table:
  """Regime x site: the first metric, means of it and of all others, and what was sent."""
  first, *others = text_measures(rows)
  table = Table(title=f'{first.title} by regime [95 % by source]')
  table.add_column('regime', no_wrap=True)
  # Blanks, so that long names wrap between words.
  inside, outside = ([name.replace('_', ' ') for name in names] for names in (sites, external))
  outside = [f'{name} (external)' for name in outside]
  means = [f'mean {measure.name}' for measure in others]
  for column in (*inside, 'mean', *outside, *means, 'steps', 'MB sent'):
    table.add_column(column, justify='right', min_width=11 if column in inside + outside else 5)
  for regime, row in rows.items():
    scores = row['scores']
    table.add_row(
      folded(regime), *(_shown(first.at(scores.get(site, {}))) for site in sites),
      mean_of(scores, sites, first),
      *(_shown(first.at(scores.get(site, {}))) for site in external),
      *(mean_of(scores, sites, measure) for measure in others), str(row['local_steps']),
      f'{(row["bytes_up"] + row["bytes_down"]) / 1e6:,.0f}')
  return table
