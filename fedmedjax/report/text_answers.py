"""What was answered in an own task: how many answers are right, and some that are not."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

from fedmedjax.data.text_task import TEXT
from fedmedjax.eval.text_metrics import exact_match
from fedmedjax.report.blocks import Cell, Excerpt, Piece, Table
from fedmedjax.store.words import has_sentence, sentence

# Most characters of an input, and of a target or an answer; the middle of a longer one is left out.
_INPUT, _ANSWER = 600, 300
# Targets that a table lists: at most so many different ones, none of more characters.
_LABELS, _LONG = 10, 40

Records = Sequence[Mapping]


def of_rows(records: Records) -> dict[str, Mapping]:
  """{row: its record} of those that were kept with their text; of several adapters the first."""
  out = {}
  for record in records:
    if record['task'] == TEXT and has_sentence(record):
      out.setdefault(record['document'], record)
  return out


def is_right(record: Mapping) -> bool:
  """Whether the answer is the target, but for blanks at the ends."""
  return bool(exact_match(record['generated'], record['target']))


def kinds_table(first: str, answers: Mapping[str, Mapping[str, Mapping]]) -> Table:
  """How many answers are right, empty and unlike each other; no word of them.

  Args:
    first: what the rows of the table are.
    answers: {name of a row: {row of the site: its record}}.
  """
  rows = []
  for name, records in answers.items():
    said = Counter(record['generated'].strip() for record in records.values())
    common = max(said.values(), default=0)
    rows += [[
      name, f'{len(records):,}', f'{sum(map(is_right, records.values())):,}', f'{said[""]:,}',
      f'{len(said):,}', Cell(f'{common / len(records):.0%}', f'{common:,} of {len(records):,}'),
    ]] if records else []
  return Table(
    'Answers', 'Exactly the target: but for blanks at the ends. The commonest: the share of '
    'answers that are the commonest one; a model that has learnt little says the same to all rows.',
    (first, 'answers', 'exactly the target', 'empty', 'different', 'the commonest'), rows)


def target_table(answers: Mapping[str, Mapping[str, Mapping]]) -> Table:
  """How many answers are right for each target, by run or site, where there are few targets.

  It has the words of targets, and is only for pages that may quote notes.
  """
  counts = Counter(
    record['target'].strip() for records in answers.values() for record in records.values())
  few = len(counts) <= _LABELS and max(map(len, counts), default=0) <= _LONG
  rows = []
  for target, _ in counts.most_common() if few else ():
    asked = [[record for record in records.values() if record['target'].strip() == target]
             for records in answers.values()]
    rows.append([target, *(
      Cell(f'{sum(map(is_right, some)) / len(some):.2f}',
           f'{sum(map(is_right, some)):,} of {len(some):,}') if some else '\N{EN DASH}'
      for some in asked)])
  return Table(
    'Right answers by target', 'The share of the rows with this target whose answer is it.',
    ('target', *answers), rows)


def choose_rows(answers: Mapping[str, Records], count: int, seed: int) -> list[Excerpt]:
  """At most `count` rows of one site that the last run answered wrongly, with all runs' answers.

  Rows that runs answered unlike come first; `seed` decides between equals.

  Args:
    answers: {run: prediction records of the site}.
    count: 0 = none.
    seed: of the order.
  """
  by_run = {name: of_rows(records) for name, records in answers.items()}
  last = by_run[next(reversed(by_run))] if by_run and count else {}

  def order(name: str) -> tuple:
    given = {run[name]['generated'].strip() for run in by_run.values() if name in run}
    return len(by_run) > 1 and len(given) == 1, zlib.crc32(
      f'{seed} {name}'.encode(errors='replace'))

  wrong = sorted((name for name, record in last.items() if not is_right(record)), key=order)
  return [_excerpt(name, last[name], by_run) for name in wrong[:count]]


def _excerpt(name: str, record: Mapping, by_run: Mapping[str, Mapping[str, Mapping]]) -> Excerpt:
  lines = [('asked', _pieces(sentence(record), _INPUT)), ('target', _pieces(record['target']))]
  lines += [(run, _pieces(records[name]['generated']))
            for run, records in by_run.items() if name in records]
  return Excerpt(name, TEXT, lines)


def _pieces(text: str, most: int = _ANSWER) -> list[Piece]:
  text = text.strip()
  if len(text) > most:
    # Questions often stand at the end.
    text = f'{text[:most // 2].rstrip()} \N{HORIZONTAL ELLIPSIS} {text[-most // 2:].lstrip()}'
  return [Piece(text or '(empty)')]
