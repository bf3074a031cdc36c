"""Answers as a JSON list: [{"entity": "problem", "text": "fever"}, ...] from left to right.

Shorter than markup where a sentence holds few entities, but an entry gives the words of an entity
and not their place, which is looked for in the sentence. Nothing is copied, so there is nothing to
align.
"""

import json
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.answers.align import fold
from fedmedjax.data.answers.thought import answer_of
from fedmedjax.data.scripts import inside_word
from fedmedjax.types import Parse, Span

# One object of the list, keys in either order, quotes of either kind. Possessive quantifiers (*+)
# never backtrack, so that the search is linear in the length of the output.
_VALUE = r'''(?:"((?:[^"\\]|\\.)*+)"|'((?:[^'\\]|\\.)*+)')'''
_ENTRY = re.compile(
  r'''["']entity["']\s*+:\s*+''' + _VALUE + r'''\s*+,\s*+["']text["']\s*+:\s*+''' + _VALUE
  + r'''|["']text["']\s*+:\s*+''' + _VALUE + r'''\s*+,\s*+["']entity["']\s*+:\s*+''' + _VALUE,
  re.DOTALL)
# The beginning of an object: a quote that is missing in the object before it costs that one only.
_OBJECT = re.compile(r'''(?=\{\s*+["'](?:entity|text)["']\s*+:)''')
_FENCE = re.compile(r'\s*```(?:json)?(.*)```\s*', re.DOTALL)

_LONGEST = 1 << 15   # characters of output that are read, plus _PER_CHARACTER for each of the input
_PER_CHARACTER = 48  # more than the entry of a one-character entity needs


class _Entry(NamedTuple):
  """An object of the list: an entity's type and words."""

  type: str
  words: str


def write(text: str, spans: Sequence[Span]) -> str:
  """The list that names `spans` of the text."""
  return json.dumps(
    [{'entity': s.type, 'text': text[s.start:s.end]} for s in spans], ensure_ascii=False)


def shown(kind: str, words: str) -> str:
  """An entity of a type, as the instruction shows it."""
  return write(words, (Span(0, len(words), kind),))[1:-1]


def parse(
  generated: str, text: str, types: Sequence[str], near: Span | None = None
) -> Parse:
  """Recovers entities from the list that a model wrote for the sentence `text`.

  Only the answer is read, see `thought.answer_of`. Of a list that is no JSON, whole objects are
  read, whatever text is around them. Each entry is placed, no two on the same character,
    1. where its words stand between the places of the entries before and after it, leftmost;
    2. else where they stand anywhere else in the text, leftmost;
    3. else where the same characters stand within a word;
    4. otherwise it is dropped.
  Where a main entity is given, `near`, the place nearest to it is taken instead of the leftmost.
  Each step goes over all entries before the next begins, first those whose words stand in the
  fewest places, then the longest; those with one place only take the first two steps before all
  others. So entries with a certain place keep the others in order, of two entries that share
  characters the longer one stays (its words never stand in more places), and mentions of the same
  words go left to right.
  Case and the amount and kind of white space are ignored. Types not in `types` are dropped in
  silence.

  Returns:
    A Parse. `copied`: every entry stands in `text`, character for character. `failed`: the output
    is no such list, alone or in a fence, an entry was dropped, or the output was too long to be
    read to its end.
  """
  generated, limit = answer_of(generated), _LONGEST + _PER_CHARACTER * len(text)
  whole, generated = len(generated) <= limit, generated[:limit]
  asked = {name.lower(): name for name in types}
  entries, sound = _entries(generated)
  entries = [
    _Entry(asked[entry.type.lower()], entry.words) for entry in entries
    if entry.type.lower() in asked and entry.words.strip()]
  spans = _place(entries, text, near)
  dropped = len(entries) - len(spans)
  sound &= whole
  return Parse(
    tuple(sorted(spans)), failed=not sound or bool(dropped),
    copied=sound and all(entry.words in text for entry in entries), dropped=dropped)


def _entries(generated: str) -> tuple[list[_Entry], bool]:
  """The objects that could be read, and whether the whole output was a list of such objects."""
  fenced = _FENCE.fullmatch(generated)
  try:
    read = json.loads(fenced[1] if fenced else generated)
  except (ValueError, RecursionError):
    read = None
  listed = [
    _Entry(entry['entity'], entry['text'])
    for entry in (read if isinstance(read, list) else ()) if isinstance(entry, dict)
    and isinstance(entry.get('entity'), str) and isinstance(entry.get('text'), str)]
  if isinstance(read, list) and len(listed) == len(read):
    return listed, True
  return max(listed, list(_repaired(generated)), key=len), False


def _repaired(generated: str) -> Iterator[_Entry]:
  """Yields the objects that stand anywhere in the output."""
  for match in (match for part in _OBJECT.split(generated) for match in _ENTRY.finditer(part)):
    # Four values, each in one of two kinds of quotes: type and words, or words and type.
    first, second, third, fourth = (
      _unescaped(match[i] if match[i] is not None else match[i + 1])
      for i in range(1, 9, 2))
    yield _Entry(fourth, third) if first is None else _Entry(first, second)


def _unescaped(value: str | None) -> str | None:
  """A value between quotes, with its escapes resolved."""
  if value is None:
    return None
  try:
    return json.loads(f'"{value}"', strict=False)
  except ValueError:
    return value.replace("\\'", "'")


def _place(entries: Sequence[_Entry], text: str, near: Span | None) -> list[Span]:
  """A place in the text for each entry that has one; see `parse`."""
  folded, inside = fold(text), inside_word(text)
  claimed = np.zeros(len(text), bool)
  entries = entries[:len(text)]  # more cannot be placed
  places = {words: _occurrences(words, folded) for words in {entry.words for entry in entries}}
  order = sorted(range(len(entries)), key=lambda i: (
    places[entries[i].words].shape[1], -len(entries[i].words)))
  spans: dict[int, Span] = {}
  placed: list[int] = []  # entries that have a place and keep the order of the list

  def between(i: int) -> tuple[int, int]:
    at = bisect_left(placed, i)
    return (spans[placed[at - 1]].end if at else 0,
            spans[placed[at]].start if at < len(placed) else len(text))

  alone = [i for i in order if places[entries[i].words].shape[1] == 1]
  for some, in_order, whole_words in (
      (alone, True, True), (alone, False, True), (order, True, True), (order, False, True),
      (order, False, False)):
    for i in [i for i in some if i not in spans]:
      starts, ends = places[entries[i].words]
      low, high = between(i) if in_order else (0, len(text))
      before = np.concatenate([[0], np.cumsum(claimed)])
      fits = (before[starts] == before[ends]) & (starts >= low) & (ends <= high)
      if whole_words:
        fits &= ~(inside[starts] | inside[ends])
      if fits.any():
        away = _away(starts[fits], ends[fits], near)
        start, end = (int(edges[fits][np.argmin(away)]) for edges in (starts, ends))
        claimed[start:end] = True
        spans[i] = Span(start, end, entries[i].type)
        if in_order:
          insort(placed, i)
  return list(spans.values())


def _away(starts: np.ndarray, ends: np.ndarray, near: Span | None) -> np.ndarray:
  """How little places are to be preferred, i64[places]: distances from `near`, else from the left.

  Args:
    starts, ends: of the places, i64[places].
    near: the main entity, if there is one.
  """
  if near is None:
    return starts
  return np.maximum(np.maximum(near.start - ends, starts - near.end), 0)


def _occurrences(words: str, folded: str) -> np.ndarray:
  """Starts and ends of the places that read like `words`, from left to right, i64[2, places]."""
  pattern = ' +'.join(map(re.escape, fold(words).split()))
  ranges = [match.span(1) for match in re.finditer(f'(?=({pattern}))', folded)]
  return np.array(ranges, int).reshape(-1, 2).T
