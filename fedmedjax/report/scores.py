"""The scores of runs: tables and charts by site, by regime and of adapters across sites."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import Cell, Chart, Charts, Folded, Section, Table
from fedmedjax.report.runs import Run, is_external, tested
from fedmedjax.report.svg import SERIES, clean
from fedmedjax.report.terminal import MARKED, few_sources, marked
from fedmedjax.report.warnings import is_unreadable

NONE = '\N{EN DASH}'
# Up to so many runs a table has a row for each site; with more, a row for each run.
_FEW = 3
# Most sites of a chart; most rows and columns of a heat map.
_DRAWN, _CROSSED = 12, 12


class Measure(NamedTuple):
  """A score, such as that of entities."""

  key: str
  title: str
  note: str                             # what is scored, in words
  find: Callable[[dict], dict | None]   # (scores of a site) -> entry of summary.json, if any


def _relations(name: str) -> Callable[[dict], dict | None]:
  return lambda tasks: tasks.get('re', {}).get(name)


MEASURES = (
  Measure('ner', 'Entities', 'entities of the annotated types found in a sentence',
          lambda tasks: tasks.get('ner')),
  Measure('modifier', 'Modifiers', 'what modifies a main entity that the annotation gives',
          _relations('modifier')),
  Measure('triple', 'Triples', 'pairs of a given main entity and its modifier, typed by both',
          _relations('triple')),
  Measure('end_to_end', 'End to end',
          'such pairs with the main entities that the model found itself',
          _relations('end_to_end')),
)


def measured(runs: Sequence[Run], measures: Sequence[Measure] = MEASURES) -> list[Measure]:
  """Those of `measures` that at least one run has."""
  scores = [tasks for run in runs for tasks in run.scores.values()]
  return [measure for measure in measures if any(map(measure.find, scores))]


def f1(run: Run, site: str, measure: Measure, kind: str = 'strict') -> float:
  """Typed micro F1; NaN where there is none."""
  entry = measure.find(run.scores.get(site, {}))
  return entry[kind]['typed']['f1'] if entry else np.nan


def mean_f1(run: Run, measure: Measure, kind: str = 'strict') -> float:
  """Mean of typed micro F1 over the in-domain sites that have the measure; NaN if none has."""
  values = [f1(run, site, measure, kind) for site in run.scores if not is_external(run, site)]
  known = [value for value in values if np.isfinite(value)]
  return float(np.mean(known)) if known else np.nan


def number(value: float, form: str = '.3f') -> str:
  """A number as text; a dash for NaN."""
  return format(value, form) if np.isfinite(value) else NONE


def _cell(run: Run, site: str, measure: Measure, kind: str) -> Cell:
  entry = measure.find(run.scores.get(site, {}))
  if not entry:
    return Cell(NONE)
  typed = entry[kind]['typed']
  low, high = typed.get('ci95') or (None, None)
  return Cell(number(typed['f1']), '' if low is None else f'{low:.2f} to {high:.2f}')


def label(site: str, outside: Sequence[str]) -> str:
  """A site's name in tables; `outside` are the external sites."""
  return f'{site} (external)' if site in outside else site


def score_section(runs: Sequence[Run]) -> Section:
  """Tables and charts of all measures."""
  inside, outside = tested(runs)
  few = len(runs) <= _FEW
  said = dict.fromkeys(one for run in runs for one in few_sources(run.summary))
  blocks = []
  for measure in measured(runs):
    make = _by_site if few else _by_run
    drawn = [_dots(runs, measure, inside, outside, few), *([] if few else [_means(runs, measure)])]
    blocks += [make(runs, measure, inside, outside), Charts(drawn, note=left_out(
      (len(inside) + len(outside), _DRAWN, 'sites'), (len(runs), len(SERIES), 'rows')))]
  # Open are the scores of the first measure; drawings and other measures unfold.
  blocks = [*blocks[:1], *([Folded('Charts, and other scores', blocks[1:])] if blocks else [])]
  return Section(
    'scores', 'Scores',
    'F1 joins precision and recall in one number from 0 to 1. Strict counts a span as right '
    'when its type, start and end are those of the annotation; lenient when its type is right and '
    'it shares a word. The range below a figure is its 95 % interval, by resampling sources '
    '(articles, trials, patients, or just notes) of one seed: how training varies is left out. '
    'Where there is none, there was a single source, or nothing varied.'
    + (f' Of few sources they say little: {", ".join(said)}.' if said else '')
    + ' External sites were never trained on.'
    + f' {MARKED}' * (not few and any(is_unreadable(run.summary) for run in runs)), blocks,
    folded=False)


def _by_site(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str]
) -> Table:
  kinds = [(run, kind) for run in runs for kind in ('strict', 'lenient')]
  title = [_row_name(run, runs, kind) for run, kind in kinds]
  rows = [
    [label(site, outside), *(_cell(run, site, measure, kind) for run, kind in kinds)]
    for site in (*inside, *outside)]
  mean = ['mean of the sites', *(number(mean_f1(run, measure, kind)) for run, kind in kinds)]
  return Table(
    f'{measure.title}: F1 by site', f'Scored: {measure.note}.', ('site', *title), [*rows, mean],
    beside=True)


def _row_name(run: Run, runs: Sequence[Run], kind: str) -> str:
  """A column's name: run and kind of score, or the kind alone when there is a single run."""
  alone = run.own and sum(other.own for other in runs) == 1
  return kind if alone else f'{run.name} {kind}'


def _by_run(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str]
) -> Table:
  rows = []
  for run in runs:
    values = [f1(run, site, measure) for site in inside]
    known = [value for value in values if np.isfinite(value)]
    rows.append([
      marked(run.name, run.summary), number(mean_f1(run, measure)),
      number(min(known, default=np.nan)), number(mean_f1(run, measure, 'lenient')),
      *(_cell(run, site, measure, 'strict') for site in (*inside, *outside))])
  return Table(
    f'{measure.title}: strict F1 by regime',
    f'Scored: {measure.note}. Mean, worst and lenient mean are over the sites that train.',
    ('regime', 'mean', 'worst site', 'mean lenient',
     *(label(site, outside) for site in (*inside, *outside))), rows)


def _dots(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str], few: bool
) -> Chart:
  sites = [*inside, *outside][:_DRAWN]
  # A colour means a run where there are several, else a site: of a single run there is none here,
  # and room for the lenient scores.
  alone = few and sum(run.own for run in runs) == 1
  kinds = ('strict', 'lenient') if alone else ('strict',)
  rows = [(run, kind) for run in runs for kind in kinds][:len(SERIES)]
  values = np.array([[f1(run, site, measure, kind) for run, kind in rows] for site in sites])
  bounds = np.array([[_bounds(run, site, measure, kind) for run, kind in rows] for site in sites])
  names = [_row_name(run, runs, kind) if alone else run.name for run, kind in rows]
  places = charts.neutral(len(rows)) if alone else range(len(rows))
  return Chart(
    f'{measure.title}: {"" if alone else "strict "}F1 by site', 'Lines are 95 % intervals.',
    charts.dots(
      f'dots-{measure.key}', f'{measure.title}: F1 of each site, see the table before',
      [label(site, outside) for site in sites], values, 'typed F1', bounds, places),
    list(zip(places, names, strict=True)))


def _means(runs: Sequence[Run], measure: Measure) -> Chart:
  shown = runs[:len(SERIES)]
  strict, lenient = (np.array([[mean_f1(run, measure, kind) for run in shown]])
                     for kind in ('strict', 'lenient'))
  return Chart(
    f'{measure.title}: mean of the sites', 'Strict; the lighter bar behind is lenient.',
    charts.bars(
      f'means-{measure.key}', f'{measure.title}: mean F1 of every regime, see the table before',
      ['in-domain sites'], strict, 'typed F1', lenient), list(enumerate(r.name for r in shown)),
    marks=False)


def _bounds(run: Run, site: str, measure: Measure, kind: str) -> tuple[float, float]:
  entry = measure.find(run.scores.get(site, {}))
  low, high = (entry[kind]['typed'].get('ci95') if entry else None) or (None, None)
  return (np.nan, np.nan) if low is None else (low, high)


def left_out(*counts: tuple[int, int, str]) -> str:
  """Sentences about what a chart leaves out.

  Args:
    counts: (how many there are, how many are drawn, what they are).
  """
  return ' '.join(
    f'Drawn are the first {drawn} of {total} {what}.' for total, drawn, what in counts
    if total > drawn)


def cross_section(runs: Sequence[Run]) -> Section:
  """Heat maps of every site's own adapter on every site, and of the other runs' shared adapters."""
  blocks = []
  for index, run in enumerate(runs):
    if not (run.own and run.summary.get('cross_site')):
      continue
    matrix = run.summary['cross_site']
    for measure in measured([run], MEASURES[:2]):
      rows = [(clean(name), row) for name, row in matrix.items()][:_CROSSED]
      rows += [
        (other.name, other.scores) for other in runs
        if other is not run and not other.summary.get('cross_site')][:_CROSSED]
      columns = list(dict.fromkeys(site for _, row in rows for site in row))[:_CROSSED]
      values = np.array([[_crossed(row.get(site), measure) for site in columns] for _, row in rows])
      blocks.append(Charts([Chart(
        f'{measure.title}: {run.name}',
        'Strict F1. Rows: whose adapter, or which regime. Columns: where it was tested.',
        charts.heat(
          f'cross-{index}-{measure.key}', f'Strict F1 of every adapter of {run.name} on every site',
          [name for name, _ in rows], columns, values))],
        note=left_out((len(matrix), _CROSSED, 'adapters'))))
  return Section(
    'cross-site', 'Across sites',
    'How an adapter that one site trained answers at the others, beside those that all share. '
    'Where the diagonal is much deeper than the rest, sites have learnt what holds at home only.',
    blocks)


def _crossed(tasks: dict | None, measure: Measure) -> float:
  entry = measure.find(tasks or {})
  return entry['strict']['typed']['f1'] if entry else np.nan
