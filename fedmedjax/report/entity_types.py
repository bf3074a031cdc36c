"""F1 by entity and modifier type: of a single run by site, of several runs as means over sites."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import Chart, Charts, Section, Table
from fedmedjax.report.measures import BY_TYPE, Measure
from fedmedjax.report.runs import Run, is_external
from fedmedjax.report.scores import label, left_out, measured, number
from fedmedjax.report.svg import SERIES

# Most bars of a chart, so that it fits on a screen; there are sixteen types of modifiers.
_BARS = 32


def type_section(runs: Sequence[Run]) -> Section:
  """Tables and charts of F1 by type."""
  blocks, own = [], [run for run in runs if run.own]
  for measure in measured(runs, BY_TYPE):
    blocks += _by_site(own[0], measure) if len(own) == 1 else _by_run(runs, measure)
  return Section(
    'types', 'Types',
    'A type that a site did not annotate is neither asked of the model nor scored there. Means are '
    'over the in-domain sites that have the type.', blocks)


def _entries(run: Run, measure: Measure) -> dict[str, dict]:
  """{site: {type: its scores}} of the types that occur in the site's test annotation."""
  return {
    site: {kind: entry for kind, entry in scores['per_type'].items() if entry.get('gold')}
    for site, tasks in run.scores.items() if (scores := measure.find(tasks))}


def _types(entries: Sequence[dict]) -> list[str]:
  """The types of all entries of all runs, in the order of their first occurrence."""
  return list(dict.fromkeys(
    kind for by_site in entries for by_type in by_site.values() for kind in by_type))


def _f1(by_type: dict, kind: str, which: str) -> float:
  return by_type[kind][which]['f1'] if kind in by_type else np.nan


def _mean(run: Run, entries: dict, kind: str, which: str) -> float:
  known = [by_type[kind][which]['f1'] for site, by_type in entries.items()
           if kind in by_type and not is_external(run, site)]
  return float(np.mean(known)) if known else np.nan


def _by_site(run: Run, measure: Measure) -> list:
  entries = _entries(run, measure)
  types, sites = _types([entries]), list(entries)[:len(SERIES)]
  outside = [site for site in entries if is_external(run, site)]
  inside = [site for site in entries if site not in outside]

  def counts(kind: str, where: Sequence[str]) -> list[str]:
    of = [entries[site][kind] for site in where if kind in entries[site]]
    return [f'{sum(entry[key] for entry in of):,}' for key in ('gold', 'predicted')] + [
      str(len(of))]

  rows = [[
    kind, *(number(_mean(run, entries, kind, which)) for which in ('strict', 'lenient')),
    *counts(kind, inside), *(counts(kind, outside)[:2] if outside else ())] for kind in types]
  columns = ('type', 'mean strict F1', 'mean lenient F1', 'annotated', 'found', 'sites')
  table = Table(
    f'{measure.title} by type', 'Annotated and found are counts over the test sentences of the '
    'in-domain sites' + ', then of the external ones, which are in no mean.' * bool(outside)
    + '.' * (not outside), columns + (
      ('annotated, external', 'found, external') if outside else ()), rows, beside=True)
  strict, lenient = (
    np.array([[_f1(entries[site], kind, which) for site in sites] for kind in types])
    for which in ('strict', 'lenient'))
  names = [label(site, run.summary['external']) for site in sites]
  return [table, *_charts(
    measure, types, strict, lenient, names, left_out((len(entries), len(sites), 'sites')))]


def _by_run(runs: Sequence[Run], measure: Measure) -> list:
  entries = [_entries(run, measure) for run in runs]
  types, shown = _types(entries), runs[:len(SERIES)]
  strict, lenient = (
    np.array([[_mean(run, by_site, kind, which) for run, by_site in zip(runs, entries, strict=True)]
              for kind in types]).reshape(len(types), len(runs))
    for which in ('strict', 'lenient'))
  table = Table(
    f'{measure.title} by type', 'Mean strict F1.', ('regime', *types),
    [[run.name, *map(number, column)] for run, column in zip(runs, strict.T, strict=True)],
    beside=len(types) < 6)
  return [table, *_charts(
    measure, types, strict[:, :len(shown)], lenient[:, :len(shown)], [run.name for run in shown],
    left_out((len(runs), len(shown), 'regimes')))]


def _charts(measure, types, strict, lenient, names, note) -> list[Charts]:
  most, drawn = max(1, _BARS // max(1, len(names))), []
  for at in range(0, len(types), most):
    part = slice(at, at + most)
    drawn.append(Chart(
      f'{measure.title}: F1 by type', 'Strict; the lighter bar behind is lenient.', charts.bars(
        f'types-{measure.key}-{at}', f'{measure.title}: F1 of {", ".join(types[part])}',
        types[part], strict[part], 'typed F1', lenient[part]), list(enumerate(names)), marks=False))
  return [Charts(drawn, note=note)]
