"""Sentences that a model answered wrongly, chosen to be instructive, gold beside predicted."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedmedjax.report.blocks import Excerpt, Piece
from fedmedjax.types import Span

MISSED, INVENTED, WRONG_TYPE, BOUNDARY = 'missed', 'invented', 'wrong type', 'wrong boundary'
ERRORS = (MISSED, INVENTED, WRONG_TYPE, BOUNDARY)
_OUTPUT_HEADING = '\n### Output Text:\n'
# Signs: a longer sentence is shown only if there is no other.
_LONG = 320
# Most errors of a sentence that is easy to read.
_MANY = 4
MAIN = 'main'


def sentence(record: Mapping) -> str:
  """The sentence that a prediction record is about, the tags of its main entity taken out.

  As the offsets say, not as the text looks: the sentence may hold tags of its own.
  """
  text = record['model_input'].removesuffix(_OUTPUT_HEADING)
  if 'main' not in record:
    return text
  start, end, kind = record['main']
  start, end = start - record['sentence_start'], end - record['sentence_start']
  # Markup of a language model, or signs around and before the entity of a BERT's.
  for opening, closing in ((f'<span class="{kind}">', '</span>'), (f'@ * {kind} * ', ' @')):
    inner = start + len(opening)
    after = inner + end - start
    if text[start:inner] == opening and text[after:after + len(closing)] == closing:
      return text[:start] + text[inner:after] + text[after + len(closing):]
  return text


def spans(record: Mapping, key: str) -> list[Span]:
  """`gold` or `predicted` of a record, with offsets into its sentence, in order."""
  start = record['sentence_start']
  return sorted(Span(span[0] - start, span[1] - start, span[2]) for span in record[key])


def verdicts(gold: Sequence[Span], predicted: Sequence[Span]) -> tuple[list[str], list[str]]:
  """What is wrong with each gold and each predicted span, '' if it is right.

  A predicted span that shares no character with a gold one is invented; one at the very place of a
  gold one, or that overlaps only such of other types, has the wrong type; the rest wrong
  boundaries. A gold span is missed when nothing predicted overlaps it, and otherwise wrong as that
  is, but for one that is right itself.
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
  """How many of each error a record has; gold spans count where nothing was predicted only, so
  that a wrong boundary counts once."""
  gold, predicted = verdicts(spans(record, 'gold'), spans(record, 'predicted'))
  return Counter(filter(None, predicted)) + Counter(v for v in gold if v == MISSED)


def totals(records: Iterable[Mapping]) -> Counter:
  """Errors of a site's records, counted where `choose` looks for them."""
  return sum((errors(record) for record in _by_place(records).values()), Counter())


def pieces(
  text: str, found: Sequence[Span], judged: Sequence[str], main: Span | None = None
) -> list[Piece]:
  """The sentence cut at its spans and its main entity; what overlaps an earlier one is left out."""
  marks: list[tuple[int, int, str, str]] = []
  given = [] if main is None else [(main.start, main.end, MAIN, '')]
  for mark in (*((*s, verdict) for s, verdict in zip(found, judged, strict=True)), *given):
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
  """`count` sentences of one site, at most, with what each run made of them.

  The kinds of errors of the last run take turns; of a kind come first sentences that can be read
  at a glance and that runs answered differently, then in an order drawn by `seed`.

  Args:
    answers: {run: prediction records of the site}.
    count: 0 = none.
    seed: an integer.
  """
  held = {name: _by_place(records) for name, records in answers.items()}
  shown = held[next(reversed(held))] if held and count else {}
  found = {place: errors(record) for place, record in shown.items()}

  def order(place):
    record = shown[place]
    rivals = {str(run[place]['predicted']) for run in held.values() if place in run}
    agreed = len(held) > 1 and len(rivals) == 1
    return (
      len(sentence(record)) > _LONG, found[place].total() > _MANY, agreed,
      zlib.crc32(f'{seed} {place}'.encode(errors='replace')))

  ordered = sorted((place for place in shown if found[place]), key=order)
  queues = [[place for place in ordered if found[place][kind]] for kind in ERRORS]
  chosen = []
  while len(chosen) < count and any(queues):
    for queue in queues:
      queue[:] = [place for place in queue if place not in chosen]
      if queue and len(chosen) < count:
        chosen.append(queue.pop(0))
  return [_excerpt(place, shown[place], held) for place in chosen]


def _by_place(records: Iterable[Mapping]) -> dict[tuple, Mapping]:
  """Where several adapters answered, the first. Main entities that were not given are left out."""
  out = {}
  for record in records:
    if record['task'] != 'end_to_end':
      main = tuple(record['main']) if 'main' in record else ()
      out.setdefault((record['task'], record['document'], record['sentence_start'], *main), record)
  return out


def _excerpt(place: tuple, record: Mapping, held: Mapping[str, Mapping[tuple, Mapping]]) -> Excerpt:
  text, gold = sentence(record), spans(record, 'gold')
  main = spans(record | {'main': [record['main']]}, 'main')[0] if 'main' in record else None
  # Beside several answers, what was missed differs.
  missed = [
    verdict if verdict == MISSED and len(held) == 1 else ''
    for verdict in verdicts(gold, spans(record, 'predicted'))[0]]
  lines = [('annotated', pieces(text, gold, missed, main))]
  for name, run in held.items():
    if place in run:
      found = spans(run[place], 'predicted')
      lines.append((name, pieces(text, found, verdicts(gold, found)[1], main)))
  task, document, start = place[:3]
  return Excerpt(f'{document}, character {start:,}', task, lines)
