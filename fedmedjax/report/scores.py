"""The scores of runs: tables and charts by site, by regime and of adapters across sites."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import NONE, Cell, Chart, Charts, Folded, Section, Table
from fedmedjax.report.captions import MARKED, few_sources, marked
from fedmedjax.report.means import Means, means_of
from fedmedjax.report.measures import BY_TYPE, Measure, measures_of
from fedmedjax.report.runs import Run, is_external, tested
from fedmedjax.report.svg import SERIES, clean
from fedmedjax.report.warnings import is_unreadable

# Up to so many runs a table has a row for each site; with more, a row for each run.
_FEW = 3
# Most sites of a chart; most rows and columns of a heat map; most columns of scores in a table.
_DRAWN, _CROSSED, _ACROSS = 12, 12, 8


def measured(runs: Sequence[Run], measures: Sequence[Measure] | None = None) -> list[Measure]:
  """The measures that at least one run has; with `measures`, those of them."""
  scores = [tasks for run in runs for tasks in run.scores.values()]
  if measures is None:
    return measures_of(scores)
  return [measure for measure in measures if any(map(measure.find, scores))]


def score_at(run: Run, site: str, measure: Measure, kind: str = '') -> float:
  """A site's score, typed micro F1 in extraction; NaN where there is none."""
  found = measure.at(run.scores.get(site, {}), kind)
  return found.value if found else np.nan


def mean_score(run: Run, measure: Measure, kind: str = '') -> float:
  """Mean of a score over the in-domain sites that have the measure; NaN if none has."""
  values = [score_at(run, site, measure, kind) for site in run.scores if not is_external(run, site)]
  known = [value for value in values if np.isfinite(value)]
  return float(np.mean(known)) if known else np.nan


def number(value: float, form: str = '.3f') -> str:
  """A number as text; a dash for NaN."""
  return format(value, form) if np.isfinite(value) else NONE


def _cell(run: Run, site: str, measure: Measure, kind: str = '') -> Cell:
  found = measure.at(run.scores.get(site, {}), kind)
  if not found:
    return Cell(NONE)
  return Cell(
    number(found.value), '' if found.low is None else f'{found.low:.2f} to {found.high:.2f}')


def label(site: str, outside: Sequence[str]) -> str:
  """A site's name in tables; `outside` are the external sites."""
  return f'{site} (external)' if site in outside else site


def score_section(runs: Sequence[Run]) -> Section:
  """Tables and charts of all measures."""
  inside, outside = tested(runs)
  few = len(runs) <= _FEW
  said = dict.fromkeys(one for run in runs for one in few_sources(run.summary))
  measures, blocks = measured(runs), []
  texts = [measure for measure in measures if measure.of_text]
  if few and len(texts) > 1:
    most = max(1, _ACROSS // len(runs))
    blocks = [_texts_by_site(runs, texts[at:at + most], inside, outside)
              for at in range(0, len(texts), most)]
  for measure in measures:
    make = _by_site if few else _by_run
    drawn = [_dots(runs, measure, inside, outside, few), *([] if few else [_means(runs, measure)])]
    charted = Charts(drawn, note=left_out(
      (len(inside) + len(outside), _DRAWN, 'sites'), (len(runs), len(SERIES), 'rows')))
    alone = not (few and measure in texts and len(texts) > 1)
    blocks += [make(runs, measure, inside, outside), charted] if alone else [charted]
  # Open are the scores of the first measure; drawings and other measures unfold.
  blocks = [*blocks[:1], *([Folded('Charts, and other scores', blocks[1:])] if blocks else [])]
  return Section(
    'scores', 'Scores', _lead(measures)
    + (f' Ranges of few sources are unreliable ({", ".join(said)}).' if said else '')
    + ' External sites were never trained on.'
    + f' {MARKED}' * (not few and any(is_unreadable(run.summary) for run in runs)), blocks,
    folded=False)


def _lead(measures: Sequence[Measure]) -> str:
  """What the scores are, in words, and their intervals."""
  texts = [measure for measure in measures if measure.of_text]
  own = [measure.title for measure in texts if not measure.shipped]
  said = ' '.join([
    *(f'{measure.title}: {measure.note}.' for measure in texts if measure.shipped),
    *([f'{", ".join(own)}: of your own (config.eval.metric).'] if own else [])]) if texts else (
    'F1 joins precision and recall in one number from 0 to 1. Strict counts a span as right '
    'when its type, start and end are those of the annotation; lenient when its type is right and '
    'it shares a word.')
  rows = 'rows of one source, or just rows' if texts else (
    'articles, trials, patients, or just notes')
  return (
    f'{said} The range below a figure is its 95 % interval: how much the figure would vary with '
    f'other test sources ({rows}). It is of one training run, and does not show how much another '
    'seed would change. A figure has no range where its site was tested on a single source, or all '
    'its sources score alike'
    + ', or a metric gives one number for all rows' * bool(own) + '.')


def _texts_by_site(
  runs: Sequence[Run], measures: Sequence[Measure], inside: Sequence[str], outside: Sequence[str]
) -> Table:
  """All scores of an own task, by site."""
  shown, means = [(run, measure) for measure in measures for run in runs], _means_of(runs)
  alone = len(runs) == 1
  return Table(
    'Scores by site', '', ('site', *(
      measure.name if alone else f'{run.name}: {measure.name}' for run, measure in shown)), [
      *([site, *(_cell(run, site, measure) for run, measure in shown)] for site in inside),
      ['mean of the sites', *(_mean_cell(means, *pair) for pair in shown)],
      *([label(site, outside), *(_cell(run, site, measure) for run, measure in shown)]
        for site in outside)], beside=len(shown) < 5)


def _by_site(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str]
) -> Table:
  kinds, means = [(run, kind) for run in runs for kind in measure.kinds], _means_of(runs)
  title = [_row_name(run, runs, kind) for run, kind in kinds]
  rows = [
    [label(site, outside), *(_cell(run, site, measure, kind) for run, kind in kinds)]
    for site in (*inside, *outside)]
  # Over the sites that train, so before the external ones.
  rows.insert(len(inside), ['mean of the sites', *(
    _mean_cell(means, run, measure, kind) for run, kind in kinds)])
  return Table(
    f'{measure.titled()} by site', f'Scored: {measure.note}.', ('site', *title), rows, beside=True)


def _means_of(runs: Sequence[Run]) -> dict[Path, Means]:
  """{folder of answers: the means of its run}, of all rows of a run the same."""
  found: dict[Path, Means] = {}
  for run in runs:
    predictions = _predictions(run)
    if predictions not in found:
      found[predictions] = means_of(predictions.parent, predictions, run.summary['seed'])
  return found


def _predictions(run: Run) -> Path:
  return run.answers if run.own else run.answers.parent


def _mean_cell(means: Mapping[Path, Means], run: Run, measure: Measure, kind: str = '') -> Cell:
  sites = [site for site in run.scores if not is_external(run, site)
           and np.isfinite(score_at(run, site, measure, kind))]
  part = 'scores' if run.own else run.answers.name
  found = means[_predictions(run)](part, sites, measure, kind)
  return Cell(
    number(mean_score(run, measure, kind)),
    '' if found is None or found.low is None else f'{found.low:.2f} to {found.high:.2f}')


def _row_name(run: Run, runs: Sequence[Run], kind: str) -> str:
  """A column's name: run and kind of score, or the kind alone when there is a single run."""
  alone = run.own and sum(other.own for other in runs) == 1
  return kind if alone and kind else f'{run.name} {kind}'.strip()


def _by_run(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str]
) -> Table:
  rows, (_, *others) = [], measure.kinds
  for run in runs:
    values = [score_at(run, site, measure) for site in inside]
    known = [value for value in values if np.isfinite(value)]
    rows.append([
      marked(run.name, run.summary), number(mean_score(run, measure)),
      number(min(known, default=np.nan)),
      *(number(mean_score(run, measure, kind)) for kind in others),
      *(_cell(run, site, measure) for site in (*inside, *outside))])
  # Of a metric of one's own, less may be better.
  least = 'worst site' if measure.shipped else 'lowest site'
  over = ['Mean', least.removesuffix(' site'), *(f'{kind} mean' for kind in others)]
  return Table(
    f'{measure.titled(measure.kinds[0])} by regime',
    f'Scored: {measure.note}. {", ".join(over[:-1])} and {over[-1]} are over the sites that train.',
    ('regime', 'mean', least, *(f'mean {kind}' for kind in others),
     *(label(site, outside) for site in (*inside, *outside))), rows)


def _dots(
  runs: Sequence[Run], measure: Measure, inside: Sequence[str], outside: Sequence[str], few: bool
) -> Chart:
  sites = [*inside, *outside][:_DRAWN]
  # A colour means a run where there are several, else a site: of a single run there is none here,
  # and room for the lenient scores.
  alone = few and sum(run.own for run in runs) == 1
  kinds = measure.kinds if alone else measure.kinds[:1]
  rows = [(run, kind) for run in runs for kind in kinds][:len(SERIES)]
  values = np.array([[score_at(run, site, measure, kind) for run, kind in rows] for site in sites])
  bounds = np.array([[_bounds(run, site, measure, kind) for run, kind in rows] for site in sites])
  names = [_row_name(run, runs, kind) if alone else run.name for run, kind in rows]
  places = charts.neutral(len(rows)) if alone else range(len(rows))
  return Chart(
    f'{measure.titled("" if alone else measure.kinds[0])} by site', 'Lines are 95 % intervals.',
    charts.dots(
      f'dots-{measure.key}', f'{measure.titled()} of each site, see the table before',
      [label(site, outside) for site in sites], values, measure.unit, bounds, places),
    list(zip(places, names, strict=True)))


def _means(runs: Sequence[Run], measure: Measure) -> Chart:
  shown, (_, *others) = runs[:len(SERIES)], measure.kinds
  values, *lighter = (
    np.array([[mean_score(run, measure, kind) for run in shown]]) for kind in measure.kinds)
  return Chart(
    f'{measure.title}: mean of the sites',
    'Strict; the lighter bar behind is lenient.' if others else '', charts.bars(
      f'means-{measure.key}',
      f'{measure.title}: mean{"" if measure.of_text else " F1"} of every regime, see the table '
      'before',
      ['in-domain sites'], values, measure.unit, *lighter),
    list(enumerate(run.name for run in shown)), marks=False)


def _bounds(run: Run, site: str, measure: Measure, kind: str) -> tuple[float, float]:
  found = measure.at(run.scores.get(site, {}), kind)
  return (found.low, found.high) if found and found.low is not None else (np.nan, np.nan)


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
    for measure in _crossing(run):
      rows = [(clean(name), row) for name, row in matrix.items()][:_CROSSED]
      rows += [
        (other.name, other.scores) for other in runs
        if other is not run and not other.summary.get('cross_site')][:_CROSSED]
      columns = list(dict.fromkeys(site for _, row in rows for site in row))[:_CROSSED]
      values = np.array([[_crossed(row.get(site), measure) for site in columns] for _, row in rows])
      scored = measure.title if measure.of_text else 'Strict F1'
      blocks.append(Charts([Chart(
        f'{measure.title}: {run.name}',
        f'{scored}. Rows: whose adapter, or which regime. Columns: where it was tested.',
        charts.heat(
          f'cross-{index}-{measure.key}', f'{scored} of every adapter of {run.name} on every site',
          [name for name, _ in rows], columns, values))],
        note=left_out((len(matrix), _CROSSED, 'adapters'))))
  return Section(
    'cross-site', 'Across sites',
    'How an adapter that one site trained answers at the others, beside those that all share. '
    'Where the diagonal is much deeper than the rest, sites have learnt what holds at home only.',
    blocks)


def _crossing(run: Run) -> list[Measure]:
  """The measures of which a heat map is drawn."""
  return measured([run], BY_TYPE) or [one for one in measured([run]) if one.of_text][:2]


def _crossed(tasks: dict | None, measure: Measure) -> float:
  found = measure.at(tasks or {})
  return found.value if found else np.nan
