"""Rows of the study to figures with intervals, and to the words of its tables."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmedjax.compare.study_units import Unit
from fedmedjax.eval import paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.eval.paired import Answers, NoteCounts
from fedmedjax.report.warnings import UNREADABLE
from fedmedjax.runtime.phrases import many

NOT_RUN = 'not run yet'
# Draws of every interval.
_DRAWS = dict(seed=0, samples=1000)
# The mark of rows of other commits than most of their table.
_OTHER = '†'

Row = dict[str, Any]
# {study: its rows}
Rows = Mapping[str, list[Row]]


def chosen(rows: Iterable[Row], **name) -> dict[tuple, Row]:
  """{(data seed, seed): row} of the rows whose unit has these values."""
  return {
    (row['data_seed'], row['seed']): row for row in rows
    if all(row['unit'].get(key) == value for key, value in name.items())}


def answers(row: Row, kind: str = 'decoding', *, best: bool = False) -> Answers:
  """A row's counts as comparisons take them; none of decoded answers that are `unread`.

  Args:
    row: of a run.
    kind: 'decoding' or 'teacher_forced'.
    best: those of the single site whose adapter V chooses, not of all sites' adapters.
  """
  out = {}
  if kind == 'decoding' and unread(row):
    return out
  for cohort, held in (row['best'] if best else row)['scores'].items():
    if kind in held:
      # All types are one; the entry of all types merged is not kept.
      counts = np.array(held[kind], np.int64).reshape(len(held['sources']), 2, 1, 3)
      out[cohort] = {'ner': NoteCounts(
        tuple(held['sources']), np.concatenate([counts, np.zeros_like(counts)], axis=2))}
  return out


def unread(row: Row) -> bool:
  """Whether a model that this run did not train has F1 0 since it ignored the format of answers.

  Such a 0 says nothing of what the model knows of entities. That of a run which trained does: it
  has not learnt the format either, and is counted.
  """
  # Lenient matches, of which strict ones are a part.
  return not row['local_steps'] and row['parse_failure_rate'] > UNREADABLE and not any(
    source[3] for cohort in row['scores'].values() for source in cohort['decoding'])


def unread_note(rows: Iterable[Row]) -> str:
  """A line under a table in which decoded F1 is left out, see `unread`; '' where none is."""
  shares = [row['parse_failure_rate'] for row in rows if unread(row)]
  return (f'\nThe untrained base did not follow the format in {np.mean(shares):.0%} of its '
          'answers, and no right entity was read in any: decoded F1 of 0 is left out.\n'
          if shares else '')


def mean(
  rows: Mapping[tuple, Row], cohorts: Sequence[str], kind: str = 'decoding',
  match: str = 'strict', *, best: bool = False,
) -> Estimate | None:
  """Typed F1, mean over seeds and cohorts; None without a row or without such `answers`."""
  runs = [answers(row, kind, best=best) for row in rows.values()]
  if not runs or len(paired.having(runs, cohorts, 'ner')) < len(cohorts):
    return None
  return paired.mean_f1(runs, cohorts, 'ner', kind=match, **_DRAWS)


def difference(
  ours: Mapping[tuple, Row], theirs: Mapping[tuple, Row], cohorts: Sequence[str],
  kind: str = 'decoding', match: str = 'strict', *, best: bool = False,
) -> Estimate | None:
  """`mean` of ours minus theirs, over the seeds that both have; None without any.

  Where theirs is a single run that no seed changes (the base alone), it stands for every seed.
  """
  both = pairs(ours, theirs)
  pair = ([answers(one, kind) for one, _ in both],
          [answers(other, kind, best=best) for _, other in both])
  if not both or any(
      len(paired.having(side, cohorts, 'ner')) < len(cohorts) for side in pair):
    return None
  return paired.difference(*pair, cohorts, 'ner', kind=match, **_DRAWS)


def pairs(ours: Mapping[tuple, Row], theirs: Mapping[tuple, Row]) -> list[tuple[Row, Row]]:
  """Rows of the same seeds, see `difference`."""
  if len(theirs) == 1 and 'zero_shot' in [row['unit'].get('regime') for row in theirs.values()]:
    theirs = dict.fromkeys(ours, *theirs.values())
  return [(row, theirs[seed]) for seed, row in ours.items() if seed in theirs]


def seeds(count: int) -> str:
  """'3 seeds'; of a single one also that its interval says nothing of training."""
  return many(count, 'seed') + (', interval over sources alone' if count == 1 else '')


def figure(estimate: Estimate | None, digits: int = 2) -> str:
  """'0.512 [0.49, 0.53]', with so many digits of an interval's ends."""
  if estimate is None:
    return '-'
  value, low, high, _ = estimate
  return f'{value:.3f}' + ('' if low is None else f' [{low:.{digits}f}, {high:.{digits}f}]')


def signed(estimate: Estimate | None) -> str:
  """'+0.051 [+0.012, +0.090]'."""
  return '-' if estimate is None else str(estimate).replace('(no interval)', '').strip()


def commits(rows: Iterable[Row], usual: str = '') -> str:
  """The commits of rows, with a mark where one is not the usual one."""
  found = dict.fromkeys(row['commit'] for row in rows)
  return ', '.join(name + (_OTHER if usual and name != usual else '') for name in found)


def usual_commit(rows: Sequence[Row]) -> str:
  """The commit of most rows."""
  return Counter(row['commit'] for row in rows).most_common(1)[0][0]


def origin(study: str, rows: Sequence[Row], planned: Callable[[Path], Sequence[Unit]]) -> str:
  """A sentence on where a table's rows come from: how many, hours, processors, commits.

  Args:
    study: the name that makes them.
    rows: of the table.
    planned: (runs) -> all units that it should have.
  """
  if not rows:
    return f'{NOT_RUN}: `bash scripts/reproduce.sh {study}`.\n'
  hours = sum(row['seconds'] for row in rows) / 3600
  machines = ', '.join(dict.fromkeys(row['processor'] for row in rows))
  others = {row['commit'] for row in rows} - {usual_commit(rows)}
  marked = f' {_OTHER} marks rows of other commits than most.' if others else ''
  changed = ' A + behind a commit: with changes that were not committed.' if any(
    '+' in row['commit'] for row in rows) else ''
  return (f'`bash scripts/reproduce.sh {study}`: {len(rows)} of {len(planned(Path()))} units, '
          f'{hours:.1f} hours; {machines}.{marked}{changed}\n')


def saved(row: Row) -> float:
  """The share of bytes that an adapter's exchange saves against the model's, both ways."""
  return 1 - (row['bytes_down'] + row['bytes_up']) / (2 * row['bytes_model'])


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A Markdown table."""
  table = [head, ['---'] * len(head), *lines]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in table)
