"""Sentences that a model answered wrongly, a few of each kind of error, beside their annotation."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedmedjax.report.blocks import Excerpt, Piece
from fedmedjax.store.words import has_sentence, sentence
from fedmedjax.types import Span

MISSED, INVENTED, WRONG_TYPE, BOUNDARY = 'missed', 'invented', 'wrong type', 'wrong boundary'
ERRORS = (MISSED, INVENTED, WRONG_TYPE, BOUNDARY)
# Characters; a longer sentence is shown only when no shorter one has that kind of error.
_LONG = 320
# A sentence with more errors than these is hard to read; it is shown after others.
_MANY = 4
MAIN = 'main'


def spans(record: Mapping, key: str) -> list[Span]:
  """`gold` or `predicted` of a record, with offsets into its sentence, in order."""
  start = record['sentence_start']
  return sorted(Span(span[0] - start, span[1] - start, span[2]) for span in record[key])


def verdicts(gold: Sequence[Span], predicted: Sequence[Span]) -> tuple[list[str], list[str]]:
  """The error of each gold and of each predicted span; '' = right.

  A predicted span is right when a gold span has the same place and type. It is invented when it
  overlaps no gold span. It has the wrong type when a gold span has the same place, or when it
  overlaps gold spans of other types only. Otherwise it has wrong boundaries. Gold spans are judged
  likewise by the predicted ones; one that overlaps none is missed.
  """
  def meets(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end

  def judged(span: Span, others: Sequence[Span], alone: str) -> str:
    if span in others:
      return ''
    met = [other for other in others if meets(span, other)]
    if not met:
      return alone
    placed = any(other[:2] == span[:2] for other in met)
    return WRONG_TYPE if placed or all(other.type != span.type for other in met) else BOUNDARY

  return (
    [judged(span, predicted, MISSED) for span in gold],
    [judged(span, gold, INVENTED) for span in predicted])


def errors(record: Mapping) -> Counter:
  """How many of each kind of error a record has.

  Of the gold spans only missed ones count, so that a wrong boundary or type counts once.
  """
  gold, predicted = verdicts(spans(record, 'gold'), spans(record, 'predicted'))
  return Counter(filter(None, predicted)) + Counter(v for v in gold if v == MISSED)


def totals(records: Iterable[Mapping]) -> Counter:
  """Errors of all records of a site that `choose` may show."""
  return sum((errors(record) for record in _by_place(records).values()), Counter())


def pieces(
  text: str, marked: Sequence[Span], judged: Sequence[str], main: Span | None = None
) -> list[Piece]:
  """The sentence cut at its spans and its main entity; a span that overlaps an earlier one is not
  marked.

  Args:
    text: the sentence.
    marked: its spans.
    judged: the verdict on each span.
    main: the main entity that was given to the model, if any.
  """
  marks: list[tuple[int, int, str, str]] = []
  given = [] if main is None else [(main.start, main.end, MAIN, '')]
  for mark in (*((*s, verdict) for s, verdict in zip(marked, judged, strict=True)), *given):
    if all(mark[0] >= end or mark[1] <= start for start, end, _, _ in marks):
      marks.append(mark)
  out, at = [], 0
  for start, end, kind, verdict in sorted(marks):
    out += [Piece(text[at:start])] if start > at else []
    out.append(Piece(text[start:end], kind, verdict))
    at = end
  return out + ([Piece(text[at:])] if at < len(text) else [])


def choose(
  answers: Mapping[str, Sequence[Mapping]], count: int, seed: int
) -> list[Excerpt]:
  """At most `count` sentences of one site, with the answers of all runs.

  Sentences are chosen by the errors of the last run, one of each kind in turn. Within a kind,
  sentences come first that are short, have few errors and that runs answered differently; `seed`
  decides between equals.

  Args:
    answers: {run: prediction records of the site}.
    count: 0 = none.
    seed: of the order.
  """
  by_run = {name: _by_place(records) for name, records in answers.items()}
  last = by_run[next(reversed(by_run))] if by_run and count else {}
  # Of runs that keep no text (config.store.text) there is nothing to show.
  shown = {place: record for place, record in last.items() if has_sentence(record)}
  errors_at = {place: errors(record) for place, record in shown.items()}

  def order(place):
    record = shown[place]
    different = {str(run[place]['predicted']) for run in by_run.values() if place in run}
    agreed = len(by_run) > 1 and len(different) == 1
    return (
      len(sentence(record)) > _LONG, errors_at[place].total() > _MANY, agreed,
      zlib.crc32(f'{seed} {place}'.encode(errors='replace')))

  ordered = sorted((place for place in shown if errors_at[place]), key=order)
  queues = [[place for place in ordered if errors_at[place][kind]] for kind in ERRORS]
  chosen = []
  while len(chosen) < count and any(queues):
    for queue in queues:
      queue[:] = [place for place in queue if place not in chosen]
      if queue and len(chosen) < count:
        chosen.append(queue.pop(0))
  return [_excerpt(place, shown[place], by_run) for place in chosen]


def _by_place(records: Iterable[Mapping]) -> dict[tuple, Mapping]:
  """{(task, document, start of the sentence, main entity): record}.

  When several adapters answered, the first record is taken. End-to-end records, whose main entities
  are the model's own, are left out.
  """
  out = {}
  for record in records:
    if record['task'] != 'end_to_end':
      main = tuple(record['main']) if 'main' in record else ()
      out.setdefault((record['task'], record['document'], record['sentence_start'], *main), record)
  return out


def _excerpt(
  place: tuple, record: Mapping, by_run: Mapping[str, Mapping[tuple, Mapping]]
) -> Excerpt:
  """The sentence at a place, with its annotation and the answer of each run."""
  text, gold = sentence(record), spans(record, 'gold')
  main = spans(record | {'main': [record['main']]}, 'main')[0] if 'main' in record else None
  # With several runs, each has missed other spans, so none is marked in the annotation.
  missed = [
    verdict if verdict == MISSED and len(by_run) == 1 else ''
    for verdict in verdicts(gold, spans(record, 'predicted'))[0]]
  lines = [('annotated', pieces(text, gold, missed, main))]
  for name, run in by_run.items():
    if place in run:
      predicted = spans(run[place], 'predicted')
      answer = pieces(text, predicted, verdicts(gold, predicted)[1], main)
      # Spans of an answer that is no copy with whole tags are those that could be saved of it.
      unreadable = run[place].get('parse_failed')
      lines.append((f'{name}: unreadable answer, what was saved' if unreadable else name, answer))
      if unreadable and run[place].get('generated'):
        lines.append(('as it was written', [Piece(run[place]['generated'])]))
  task, document, start = place[:3]
  return Excerpt(f'{document}, character {start:,}', task, lines)
