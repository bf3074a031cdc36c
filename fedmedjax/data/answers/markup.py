"""Answers as span markup: the model copies the text with a tag around each entity.

`<span class="problem">...</span>` stands around each entity. Nothing is escaped: '<' and '&' go
through as they are, since the parser looks for span tags only and compares everything else with
the sentence, character by character. The one string that could be taken for markup, a span tag or
the tag of a thought (`thought.py`) that stands in the sentence itself, gets a look-alike for its
'<' (one character for one character, in input and target alike): offsets never move.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.answers.align import align, fold
from fedmedjax.data.answers.thought import answer_of, guarded
from fedmedjax.data.scripts import inside_word
from fedmedjax.types import Parse, Span

# Tags as models write them: any case, any quotes, blanks. A tag cannot contain '<', so markup put
# next to a stray '<' of the sentence is still found and the search is linear in the length; nor
# the look-alike, so writing one never makes a tag of what stands before it ('<span</span>').
_LOOK_ALIKE = '\u2039'
_TAG = re.compile(rf'<(/?)\s*span\b([^<>{_LOOK_ALIKE}]*)>', re.IGNORECASE)
_GUARDED = re.compile(rf'<(?=/?\s*span\b[^<>{_LOOK_ALIKE}]*>)', re.IGNORECASE)
_CUT_TAG = re.compile(rf'</?\s*(?:s|sp|spa|span\b[^<>{_LOOK_ALIKE}]*)?\Z', re.IGNORECASE)
_CLASS = re.compile(r'class\W*([\w-]+)', re.IGNORECASE)
# Names of types may have blanks and other signs.
_QUOTED = re.compile(r"""class\W*?(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)

_LONGEST = 1 << 15  # characters of output that are read, plus _PER_CHARACTER for each of the input
_PER_CHARACTER = 48  # more than a tagged one-character entity needs


class _Mark(NamedTuple):
  """A tagged stretch [start, end) of the generated text without its tags."""

  start: int
  end: int
  type: str


class _Reading(NamedTuple):
  """An output without tags (`plain`, m characters) laid against the input (`text`, n)."""

  text: str            # folded: see align.fold
  plain: str           # folded
  inside: np.ndarray   # bool[n + 1]  boundaries inside a word of the text; see scripts.inside_word
  inside_plain: np.ndarray  # bool[m + 1]
  place: np.ndarray    # i64[m]  see align.Alignment
  equal: np.ndarray    # bool[m]
  starts: Callable[[str], np.ndarray]  # (folded words) -> their places in the text, i64[places]


def write(text: str, spans: Sequence[Span]) -> str:
  """The text with a tag around each of `spans`, which are sorted and flat."""
  text = guard(text)
  pieces, at = [], 0
  for span in spans:
    if not at <= span.start <= span.end <= len(text):
      raise ValueError(f'{span} overlaps or leaves its sentence {text!r}')
    pieces += [text[at:span.start], shown(span.type, text[span.start:span.end])]
    at = span.end
  return ''.join(pieces) + text[at:]


def shown(kind: str, words: str) -> str:
  """An entity of a type, as answers and the instruction show it."""
  return f'<span class="{kind}">{words}</span>'


def parse(
  generated: str, text: str, types: Sequence[str], near: Span | None = None
) -> Parse:
  """Recovers entities from what a model wrote for the sentence `text`.

  The answer (see `thought.answer_of`) without its tags is aligned with `text`; `near`, the main
  entity, matters to lists only, since a copy says where its words stand. A tagged stretch is placed
    1. where the alignment puts it, if it reads the same there, word edges included; else
    2. where the same whole words stand unclaimed in `text`, the nearest place first (entities
       out of order, text made up in between); or where a shorter entity took part of their place,
       the output has nothing else of it, and the shorter one's words stand elsewhere, too; else
    3. where the alignment puts it, if at least half of the longer of both was matched; else
    4. where the same characters stand unclaimed within a word;
    5. otherwise it is dropped.
  Each step goes over all tagged stretches before the next begins. Case and the kind of white
  space are ignored, and a word cut short at an entity's edge counts as the whole word.
  Tags never nest: an opening tag ends the entity before it, a closing tag with nothing open is
  ignored, the end of the output ends the last entity. Classes not in `types` are dropped in
  silence. Blanks at the edges of an entity do not belong to it.

  Returns:
    A Parse. `copied`: the output without its tags is `text`, character for character. `failed`:
    at least one of
      - fewer than half of the characters (of the longer of output and input) could be matched;
      - the markup had to be repaired: a tag left open, closed twice, opened inside another, or
        cut off at the end;
      - a tagged stretch of an asked type, blank ones aside, was dropped;
      - the output was too long to be read to its end.
    A failed parse still returns every entity it could place.
  """
  text, generated = guard(text), answer_of(generated)
  limit = _LONGEST + _PER_CHARACTER * len(text)
  whole, generated = len(generated) <= limit, generated[:limit]
  plain, marks, sound = _strip_tags(generated, types)
  if whole and plain == text:
    return Parse(tuple(Span(*mark) for mark in marks), failed=not sound, copied=True, dropped=0)
  cut = _CUT_TAG.search(generated)
  if cut:
    plain, marks, _ = _strip_tags(generated[:cut.start()], types)
  folded = fold(text)
  reading = _Reading(
    folded, fold(plain), inside_word(text), inside_word(plain), *align(text, plain),
    functools.cache(lambda words: _starts(words, folded)))
  spans = _place(marks, reading)
  alike = 2 * np.count_nonzero(reading.equal) >= max(len(text), len(plain))
  dropped = len(marks) - len(spans)
  understood = whole and sound and not cut and alike and not dropped
  return Parse(tuple(sorted(spans)), failed=not understood, copied=False, dropped=dropped)


def guard(text: str) -> str:
  """The text with a look-alike for the first character of every tag of a span or a thought."""
  return guarded(_GUARDED.sub(_LOOK_ALIKE, text))


def _strip_tags(generated: str, types: Sequence[str]) -> tuple[str, list[_Mark], bool]:
  """(the text without tags, the stretches tagged with one of `types`, whether tags were sound)."""
  asked = {name.lower(): name for name in types}
  pieces, marks, sound = [], [], True
  at = size = 0  # how many characters of `generated` were read, and how many of these kept
  opened = None  # (where in the kept text, class) of the tag that is open
  for tag in _TAG.finditer(generated):
    pieces.append(generated[at:tag.start()])
    size += tag.start() - at
    at = tag.end()
    closing = bool(tag[1])
    sound &= closing == (opened is not None)
    if opened:
      marks.append(_Mark(opened[0], size, opened[1]))
    opened = None if closing else (size, _class(tag[2], asked))
  pieces.append(generated[at:])
  plain = ''.join(pieces)
  if opened:
    sound = False
    marks.append(_Mark(opened[0], len(plain), opened[1]))
  marks = [mark._replace(type=asked[mark.type]) for mark in marks if mark.type in asked]
  return plain, _trim(plain, marks), sound


def _class(attributes: str, asked: Mapping[str, str]) -> str:
  """The class in a tag, in lower case: the quoted one if it is asked for, else its first word."""
  quoted, word = _QUOTED.search(attributes), _CLASS.search(attributes)
  name = (quoted[1] or quoted[2] or '').lower() if quoted else ''
  return name if name in asked else word[1].lower() if word else ''


def _trim(plain: str, marks: list[_Mark]) -> list[_Mark]:
  """The marks without blanks at their edges; marks of blanks only are dropped."""
  trimmed = []
  for start, end, name in marks:
    words = plain[start:end].strip()
    if words:
      start = plain.index(words, start)
      trimmed.append(_Mark(start, start + len(words), name))
  return trimmed


def _place(marks: list[_Mark], reading: _Reading) -> list[Span]:
  """Places marks in the text, no two on the same character, surest first: see `parse`."""
  inside = reading.inside
  missing = np.ones(len(reading.text), bool)  # characters of the text that the output left out
  missing[reading.place[reading.place >= 0]] = False
  claimed = np.zeros(len(reading.text), bool)
  placed: list[tuple[Span, _Mark]] = []
  for find, strict in ((_aligned, True), (_verbatim, True), (_aligned, False), (_verbatim, False)):
    left = []
    if find is _verbatim and strict:
      marks = _displaced(marks, placed, reading, claimed, missing)
    for mark in marks:
      place = find(mark, reading, claimed, strict)
      if place is None:
        left.append(mark)
        continue
      start, end = place
      # A word cut short at the edge of an entity ('diabete') stands for the whole word.
      while inside[start] and missing[start - 1] and not claimed[start - 1]:
        start -= 1
      while inside[end] and missing[end] and not claimed[end]:
        end += 1
      claimed[start:end] = True
      placed.append((Span(start, end, mark.type), mark))
    marks = left
  return [span for span, _ in placed]


def _displaced(
  marks: list[_Mark], placed: list[tuple[Span, _Mark]], reading: _Reading, claimed: np.ndarray,
  missing: np.ndarray,
) -> list[_Mark]:
  """The marks still to be placed, after short marks in a longer one's place were moved out of it.

  Of 'rectal examination' and 'digital rectal examination' in each other's places, the alignment
  finds the first within the second. Changes `placed` and `claimed`.
  """
  given_up = []
  blank = np.fromiter((c == ' ' for c in reading.text), bool, len(reading.text))
  for mark in marks:
    starts, length = _whole_words(mark, reading), mark.end - mark.start
    taken, free = (
      np.concatenate([[0], np.cumsum(of)]) for of in (claimed, claimed | missing | blank))
    taken, free = (sums[starts + length] - sums[starts] for sums in (taken, free))
    starts = starts[(taken > 0) & (taken < length) & (free == length)]
    for start, end in zip(starts, starts + length, strict=True):
      above = [pair for pair in placed if pair[0].start < end and start < pair[0].end]
      if all(_may_move(pair, start, end, reading, claimed) for pair in above):
        placed[:] = [pair for pair in placed if pair not in above]
        claimed[start:end] = True
        placed.append((Span(int(start), int(end), mark.type), mark))
        given_up += [moved for _, moved in above]
        break
  done = {id(mark) for _, mark in placed}
  return sorted([mark for mark in marks if id(mark) not in done] + given_up)


def _may_move(
  pair: tuple[Span, _Mark], start: int, end: int, reading: _Reading, claimed: np.ndarray
) -> bool:
  """Whether a mark lies within [start, end), shorter, and its words are free outside of it."""
  span, mark = pair
  if not (start <= span.start and span.end <= end and span.end - span.start < end - start):
    return False
  length = mark.end - mark.start
  return any((at >= end or at + length <= start) and not claimed[at:at + length].any()
             for at in _whole_words(mark, reading))


def _aligned(
  mark: _Mark, reading: _Reading, claimed: np.ndarray, strict: bool,
) -> tuple[int, int] | None:
  """The place at which the alignment puts a mark, or None.

  The text there must read the same (strict), or at least half of it must be matched.
  """
  where = reading.place[mark.start:mark.end]
  where = [int(at) for at in where if at >= 0 and reading.text[at] != ' ']
  if not where:
    return None
  start, end = where[0], where[-1] + 1
  if strict:
    fits = reading.text[start:end] == reading.plain[mark.start:mark.end] and all(
      reading.inside[at] == reading.inside_plain[edge]
      for at, edge in ((start, mark.start), (end, mark.end))
    )
  else:
    longer = max(mark.end - mark.start, end - start)
    fits = 2 * np.count_nonzero(reading.equal[mark.start:mark.end]) >= longer
  return (start, end) if fits and not claimed[start:end].any() else None


def _verbatim(
  mark: _Mark, reading: _Reading, claimed: np.ndarray, strict: bool,
) -> tuple[int, int] | None:
  """The unclaimed place of a mark's words nearest to where the output had arrived, or None.

  Strict: whole words only.
  """
  starts = _whole_words(mark, reading) if strict else reading.starts(_words(mark, reading))
  before = np.concatenate([[0], np.cumsum(claimed)])
  starts = starts[before[starts] == before[starts + mark.end - mark.start]]
  if not len(starts):
    return None
  arrived = reading.place[:mark.start].max(initial=-1) + 1  # the text copied before the mark
  near = int(starts[np.argmin(np.abs(starts - arrived))])
  return near, near + mark.end - mark.start


def _words(mark: _Mark, reading: _Reading) -> str:
  """The words of a mark."""
  return reading.plain[mark.start:mark.end]


def _whole_words(mark: _Mark, reading: _Reading) -> np.ndarray:
  """The places at which a mark's words begin in the text, as whole words, i64[places]."""
  starts, inside = reading.starts(_words(mark, reading)), reading.inside
  return starts[~(inside[starts] | inside[starts + mark.end - mark.start])]


def _starts(words: str, text: str) -> np.ndarray:
  """The places at which `words` begin in the text, i64[places]."""
  return np.array([at.start() for at in re.finditer(f'(?={re.escape(words)})', text)], int)
