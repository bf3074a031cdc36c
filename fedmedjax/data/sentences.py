"""Sentences of clinical notes, by rules that look at the text only.

A line break ends a sentence, because notes are made of headings and lists, unless the line was
wrapped. Within a line, a mark such as a full stop followed by white space ends a sentence unless
the words around it say otherwise; when in doubt the text stays whole, because a long example costs
time and a cut entity costs the entity. Every test looks at a bounded stretch of text, so time is
linear. Scripts without letter case have rules of Unicode's instead, see `scripts.py`.
"""

import re
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from fedmedjax.data.scripts import (
  CLOSERS,
  CONTINUES,
  DOTS,
  OPENERS,
  STOPS,
  abbreviated,
  caseless,
  columns,
  first_word,
  last_run,
)
from fedmedjax.data.sources import source_of
from fedmedjax.types import Document, Example, Span

_LINE = re.compile('[^\n\r\v\f\x85\u2028\u2029]+')
_BREAK = re.compile('\r\n|[\n\r\v\f\x85\u2028\u2029]')
# The first look-behind keeps a long row of dots from being tried at every dot; the others find
# sentences stuck together ('6 months.The patient') but not mutations ('p.Val204Asp'). `stop` are
# marks that end a sentence with nothing behind them, `joined` those that a letter follows at once:
# both are how scripts without letter case are written.
_CLOSING = rf'["\'”’»)\]}}{CLOSERS}]*'
_MARK = re.compile(
  rf'(?<![.!?{STOPS}{DOTS}])(?:'
  rf'(?P<stop>[.!?{DOTS}]*[{STOPS}][.!?{STOPS}{DOTS}]*{_CLOSING})'
  rf'|[.!?]+{_CLOSING}(?:(?=\s)|(?:(?<=[a-z]{{3}}\.)|(?<=[)\]]\.))(?=[A-Z][a-z]{{2}}))'
  rf'|(?P<joined>[.!?{DOTS}]+{_CLOSING})(?=\s*[^\W_]))')
_AFTER = re.compile(rf'\s*([("\'“‘«\[{{{OPENERS}]*)\s?(\S)')
_MARKER = re.compile(r'[(\[]?(?:\d{1,2}(?:\.\d{1,2})*|[A-Za-z]|[ivxIVX]{1,4})[)\]]?')
_BRACKET = re.compile(r'[(\[{)\]}（［｛【〔）］｝】〕]')
_OPENER = {')': '(', ']': '[', '}': '{', '）': '（', '］': '［', '｝': '｛', '】': '【', '〕': '〔'}
# Marks of East Asia behind which another word begins.
_WIDE = re.compile(r'[：，、；（「『](?=[^：，、；（「『])')
_BULLETS = frozenset('-–—*•·▪●○◦‣■□')

# Abbreviations that never end a sentence, whatever the case of the word that follows.
_NEVER_LAST = frozenset(
  'dr drs mr mrs ms prof st mt vs e.g eg i.e ie viz cf ca approx esp incl excl fig figs '
  'डॉ डा प्रो श्री د أ ডা ডঃ ড ਡਾ ડૉ ડો డా ಡಾ ഡോ'.split()
)
# Abbreviations that do not end a sentence when a number follows.
_BEFORE_NUMBER = frozenset(
  'al no nos n nr vol pp p ver ch sec tab eq ref refs sp spp ser '
  'jan feb mar apr jun jul aug sep sept oct nov dec'.split()
)
# Abbreviations that look like the last word of a sentence when a lower-case word follows.
_LOOKS_LIKE_WORD = frozenset(
  'conc admin temp resp diag hosp dept cont freq prev surg path neuro cardio abnl norm susp '
  'poss prob spec subcut intramusc tabs caps diff assoc subsp'.split()
)
_LOOK_BEHIND = 24  # characters: longer than any abbreviation
_LONGEST_BRACKET = 400  # characters: a longer pair is a slip, or a paragraph of its own
_WIDEST_WRAP = 100  # columns: a document with longer lines was not wrapped
_NARROWEST_WRAP = 50  # columns: a document with only shorter lines is a list
_FEWEST_WRAPPED = 5  # lines about as long as the longest: a document with fewer is a list, too


def split_sentences(text: str) -> list[tuple[int, int]]:
  """Character ranges [start, end) of the sentences, in order, without white space at either end.

  Every character that is not white space belongs to exactly one of them.
  """
  sentences = []
  for start, end in _blocks(text):
    for cut in _cuts(text, start, end):
      sentences.append(trimmed(text, start, cut))
      start = cut
    sentences.append(trimmed(text, start, end))
  return sentences


def note_sentences(document: Document) -> list[tuple[int, int]]:
  """The sentences of a note, as `split_sentences` gives them; those that the corpus gives stay.

  Text outside of the given ones is split by rules. A row of the task 'text' is one sentence.
  """
  if document.target is not None:
    return [(0, len(document.text))]
  text, sentences, at = document.text, [], 0
  for start, end in (*sorted(document.sentences), (len(text), len(text))):
    start = max(start, at)
    sentences += [(at + first, at + last) for first, last in split_sentences(text[at:start])]
    at = max(end, start)
    start, end = trimmed(text, start, min(end, len(text)))
    if start < end:
      sentences.append((start, end))
  return sentences


def sentence_examples(
  document: Document, types: Sequence[str]
) -> tuple[list[Example], Counter]:
  """Cuts a document into examples with flat entities.

  Of entities that overlap one is kept, see `flat`. An entity that no sentence holds whole is
  dropped before that, so that it cannot displace one that fits.

  Args:
    document: the note.
    types: the entity types to keep, that is, those its site annotated.

  Returns:
    One example a sentence, also for sentences without entities, and counts: sentences, entities
    (kept), and dropped: nested, crossing, blank (nothing but white space).
  """
  text, sentences, broken = document.text, note_sentences(document), set(document.covering)
  starts = [start for start, _ in sentences]
  inside, counts = [[] for _ in sentences], Counter(sentences=len(sentences))
  covering = [set() for _ in sentences]
  for span in document.spans:
    if span.type not in types:
      continue
    start, end = trimmed(text, span.start, span.end)
    place = bisect_right(starts, start) - 1
    if start == end:
      counts['blank'] += 1
    elif end > sentences[place][1]:
      counts['crossing'] += 1
    else:
      inside[place].append(Span(start - starts[place], end - starts[place], span.type))
      if span[:2] in broken:
        covering[place].add(inside[place][-1])
  examples, source = [], source_of(document)
  for (start, end), spans, loose in zip(sentences, inside, covering, strict=True):
    kept = flat(spans, loose)
    counts.update(entities=len(kept), nested=len(spans) - len(kept))
    examples.append(Example(
      document.name, start, text[start:end], tuple(kept), source=source))
  return examples, counts


def flat(spans: Sequence[Span], covering: Collection[Span] = ()) -> list[Span]:
  """Those of the spans that do not overlap, sorted.

  Of spans that overlap a whole one goes before one that only covers an entity in pieces, then the
  longer, then the first.

  Args:
    spans: in any order.
    covering: those of them that cover an entity in pieces.
  """
  kept = []
  for span in sorted(spans, key=lambda s: (s in covering, s.start - s.end, s.start)):
    # Kept spans do not overlap, so only the last one that begins before this one ends can touch.
    before = bisect_right(kept, span.end - 1, key=lambda s: s.start)
    if not before or kept[before - 1].end <= span.start:
      insort(kept, span)
  return kept


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
  """The range [start, end) of a text without the white space at its edges."""
  while start < end and text[start].isspace():
    start += 1
  while start < end and text[end - 1].isspace():
    end -= 1
  return start, end


def _blocks(text: str) -> Iterator[tuple[int, int]]:
  """Ranges of the lines that are not blank, with wrapped ones put together again."""
  lines = [trimmed(text, *line.span()) for line in _LINE.finditer(text)]
  lines = [(start, end) for start, end in lines if start < end]
  lengths = [columns(text[start:end]) for start, end in lines]
  width = max(lengths, default=0)
  if sum(length >= 0.8 * width for length in lengths) < _FEWEST_WRAPPED:
    width = 0
  first = 0
  for i in range(1, len(lines) + 1):
    if i == len(lines) or not _goes_on(text, lines[i - 1], lines[i][0], width):
      yield lines[first][0], lines[i - 1][1]
      first = i


def _goes_on(text: str, line: tuple[int, int], following: int, width: int) -> bool:
  """Whether the sentence of `line` goes on in the line that begins at `following`.

  A line was wrapped if the next word would have made it longer than the document is wide.
  """
  start, end = line
  bare = caseless(text[following])
  if not (bare or text[following].islower()) or len(_BREAK.findall(text, end, following)) > 1:
    return False
  word = text[max(start, end - _LOOK_BEHIND):end].split()[-1].lstrip('([')
  initial = len(word) == 2 and word.isupper()
  if text[end - 1] == '.' and (initial or word[:-1].lower() in _NEVER_LAST):
    return True
  next_word = text[following:following + _LOOK_BEHIND].split()[0]
  if bare:
    next_word = first_word(next_word)
  return (text[end - 1] not in f'.:;!?：；{STOPS}{DOTS}{CLOSERS}'
          and _NARROWEST_WRAP <= width <= _WIDEST_WRAP
          and columns(text[start:end]) + 1 + columns(next_word) > width)


def _cuts(text: str, start: int, end: int) -> Iterator[int]:
  """Places within a block after which a new sentence begins."""
  closed = _closed_brackets(text, start, end)
  for mark in _MARK.finditer(text, start, end):
    cut = mark.end()
    while closed and closed[-1][1] < cut:
      closed.pop()
    if closed and closed[-1][0] < cut:
      continue
    before = text[max(start, mark.start() - _LOOK_BEHIND):mark.start()].split()
    after = _AFTER.match(text, cut, end)
    if after is None:
      return  # the mark at the end of the block
    opener, following = after.groups()
    if mark['stop'] is not None:
      if before and following not in CONTINUES and not _is_number(text[start:mark.start()]):
        yield cut
        start = cut
      continue
    if mark['joined'] is not None and not _is_joined(before, mark[0], following):
      continue
    is_marker = (mark.start() - start <= _LOOK_BEHIND
                 and _MARKER.fullmatch(text[start:mark.start()].strip()))
    if (before and not is_marker
        and not ('.' in mark[0] and abbreviated(before[-1], mark['joined'] is not None))
        and _ends(before[-1], mark[0], opener, following)):
      yield cut
      start = cut


def _is_number(words: str) -> bool:
  """Whether all words of a sentence so far are the number of an item of a list."""
  return len(words.strip()) < 3 and words.strip().isdigit()


def _is_joined(before: Sequence[str], mark: str, following: str) -> bool:
  """Whether a sentence may end at a mark with no blank behind it: next to a letter without case."""
  if caseless(following):  # behind a number and a dot it may be an item of a list
    return '!' in mark or '?' in mark or not before or not before[-1][-1].isdigit()
  ends = '!' in mark or '?' in mark
  return bool(before) and caseless(before[-1][-1]) and (ends or following.isupper())


def _ends(word: str, mark: str, opener: str, following: str) -> bool:
  """Whether a sentence ends between `word` + `mark` and `opener` + `following`."""
  word = _WIDE.split(word.lstrip('([{"\'“‘'))[-1]
  if any(map(caseless, word)):
    word = last_run(word)
  plain, dotted = word.lower(), '.' in word
  if following in _BULLETS:
    return not opener
  if '!' in mark or '?' in mark:
    return (following.isupper() or following.isdigit() or caseless(following)
            or caseless(word[-1:]))
  if plain in _NEVER_LAST:
    return False
  if caseless(following):
    return not _is_abbreviation(word)
  if following.islower():
    return (mark == '.' and len(word) > 3 and word.isalpha() and word.islower()
            and plain not in _LOOKS_LIKE_WORD)
  if following.isdigit():
    return not (opener or dotted or word[-1:].isdigit()
                or plain in _BEFORE_NUMBER or plain in _LOOKS_LIKE_WORD)
  # 'U.S. Food', 'M. D. Anderson' go on; 'given i.v. Rats' does not.
  return following.isupper() and not (dotted and word.isupper())


def _is_abbreviation(word: str) -> bool:
  """Whether the dot behind a word is surely its own where a letter without case follows."""
  plain = word.lower()
  if plain in _NEVER_LAST or plain in _LOOKS_LIKE_WORD:
    return True
  # q.d, U.S, the initial of a name
  return word.isascii() and word[:1].isalpha() and all(
    len(part) < 3 for part in word.split('.')) and (
      '.' in word or len(word) == 1 and word.isupper())


def _closed_brackets(text: str, start: int, end: int) -> list[tuple[int, int]]:
  """Outermost pairs of brackets, the last one first; those never closed do not count."""
  pairs, opened = [], []
  for match in _BRACKET.finditer(text, start, end):
    place, bracket = match.start(), match[0]
    if bracket not in _OPENER:
      opened.append((place, bracket))
    elif opened and opened[-1][1] == _OPENER[bracket]:
      opening, _ = opened.pop()
      if place - opening <= _LONGEST_BRACKET:
        while pairs and pairs[-1][0] > opening:
          pairs.pop()
        pairs.append((opening, place))
  return pairs[::-1]
