"""How answers were written: which share of them copies its sentence, and which cannot be read."""

from collections.abc import Sequence

from fedmedjax.report.blocks import NONE, Cell, Table
from fedmedjax.report.captions import marked
from fedmedjax.report.rates import groups, rates
from fedmedjax.report.runs import Run
from fedmedjax.report.scores import label

_NOTE = 'Shares, and below what they are shares of. Copied: the words of the sentence, exactly.'


def answer_table(runs: Sequence[Run]) -> Table:
  """Of a single run a row for each site, of several a row for each run; external cohorts apart."""
  counted = [run for run in runs if any(rates(run.summary, group) for group in groups(run.summary))]
  if len(runs) == 1:
    rows = [row for run in counted for row in _by_site(run)]
    return Table('Answers', _NOTE, ('site', 'copied', 'unreadable'), rows, beside=True)
  outside = any(groups(run.summary)[1] for run in counted)
  where = ('at the sites', 'external')[:1 + outside]
  return Table(
    'Answers', _NOTE,
    ('regime', *(f'{what}, {place}' for place in where for what in ('copied', 'unreadable'))), [
      [marked(run.name, run.summary),
       *(cell for group in groups(run.summary)[:len(where)] for cell in _shares(run, group))]
      for run in counted])


def _by_site(run: Run) -> list[list[Cell | str]]:
  rows = []
  for group, together in zip(groups(run.summary), ('all sites', 'all external'), strict=True):
    rows += [[label(site, run.summary['external']), *_shares(run, [site])] for site in group]
    rows += [[together, *_shares(run, group)]] if len(group) > 1 else []
  return rows


def _shares(run: Run, sites: Sequence[str]) -> list[Cell | str]:
  found = rates(run.summary, sites)
  return [NONE, NONE] if found is None else [
    Cell(f'{part / found.asked:.2f}', f'{part:,} of {found.asked:,}')
    for part in (found.copied, found.unreadable)]
