"""Scripts without letter case: Unicode's rules for where their sentences end and words begin.

Chinese, Japanese, Korean, Arabic, Hebrew, Hindi and others have no capital that would tell where a
sentence begins, some have no blanks between words, and most have marks of their own. Unicode's
annex 29 has rules for all of them; its tables are those of the package regex.
"""

import re
import unicodedata

import numpy as np
import regex

_BOUNDARY = regex.compile(r'\b', regex.WORD)  # of words, by annex 29
_TOKEN = re.compile(r'\w+|[^\w\s]')
_GRAPHEME = regex.compile(r'\X')
# Letters of alphabets without case and their signs, from Hebrew to Burmese, with dots between them.
_LETTERS = re.compile(r'(["\'״׳]?)([\u0590-\u109f](?:[\u0590-\u109f.]*[\u0590-\u109f])?)$')
_THAI = re.compile('[\u0e01-\u0e2e]{1,4}')
_JOINERS = '\u200c\u200d'  # which stand within words of Persian and Hindi


def _of_class(name: str) -> str:
  """Characters above ASCII of a class of annex 29."""
  return ''.join(regex.findall(name, ''.join(map(chr, range(0x80, 0x20000)))))


# Marks that end a sentence whatever follows them, such as those of Chinese, Hindi and Urdu.
STOPS = _of_class(r'\p{SB=STerm}')
# Marks such as the full stop that may also stand in numbers and abbreviations.
DOTS = _of_class(r'\p{SB=ATerm}')
# Marks such as the comma after which a sentence goes on.
CONTINUES = ',:;' + ''.join(mark for mark in _of_class(r'\p{SB=SContinue}') if mark not in '–—')
# Closing brackets and quotation marks of East Asia.
CLOSERS = '」』）］｝】〉》〗〙〛｣〕＂＇'
# Opening ones.
OPENERS = '「『（［｛【〈《〖〘〚｢〔'


def caseless(text: str) -> bool:
  """Whether a text is one letter that has no capital, or the vowel sign or joiner of one."""
  return len(text) == 1 and not text.isascii() and (
    text.isalpha() and not (text.isupper() or text.islower() or text.istitle())
    or unicodedata.category(text) in ('Mn', 'Mc') or text in _JOINERS)


def last_run(word: str) -> str:
  """The end of a word whose letters all have capitals, or all have none: Dr of 担当Dr."""
  at = len(word)
  while at and caseless(word[at - 1]) == caseless(word[-1]):
    at -= 1
  return word[at:]


def abbreviated(word: str, joined: bool) -> bool:
  """Whether a word of an alphabet without case that a dot follows is short for another one.

  It is where it is a single letter, or letters with dots between them (मि.ग्रा), or consonants of
  Thai (มก), where dots end no sentence.

  Args:
    word: what stands before the dot, without blanks.
    joined: no blank follows the dot; then a letter may have signs, too.
  """
  found = _LETTERS.search(word)
  if found is None or found[1]:  # behind a quotation mark, as in Hebrew's מ"ג, it is a whole word
    return False
  parts = found[2].split('.')
  sizes = [len(_GRAPHEME.findall(part)) for part in parts]
  if len(parts) > 1:
    return all(1 <= size <= 2 for size in sizes)
  return len(found[2]) == 1 or joined and sizes == [1] or _THAI.fullmatch(found[2]) is not None


def first_word(text: str) -> str:
  """The first word of a text that begins with one."""
  return text[:next((at.start() for at in _BOUNDARY.finditer(text) if at.start()), len(text))]


def columns(text: str) -> int:
  """How wide a line is, in columns of a terminal: characters of East Asia take two."""
  if text.isascii():
    return len(text)
  return sum(2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)


def inside_word(text: str) -> np.ndarray:
  """Whether a boundary has a letter, its sign, a digit or underscore on both sides, bool[n + 1].

  Between letters without case only those count that annex 29 has in one word: where words are
  written without blanks, no characters hold together.
  """
  word = np.fromiter((c.isalnum() or c == '_' or caseless(c) for c in text), bool, len(text))
  inside = np.zeros(len(text) + 1, bool)
  inside[1:-1] = word[1:] & word[:-1]
  if not text.isascii():
    for at in (match.start() for match in _BOUNDARY.finditer(text)):
      if inside[at] and (caseless(text[at - 1]) or caseless(text[at])):
        inside[at] = False
  return inside


def word_ranges(text: str) -> list[tuple[int, int]]:
  """The ranges [start, end) of a text's words and of its other visible characters, in order.

  A word is a run of letters, digits and underscores; of letters without case, what annex 29 has in
  one word.
  """
  if not any(map(caseless, text)):
    return [token.span() for token in _TOKEN.finditer(text)]
  inside, ranges = inside_word(text), []
  for at, c in enumerate(text):
    if inside[at]:
      ranges[-1] = (ranges[-1][0], at + 1)
    elif not c.isspace():
      ranges.append((at, at + 1))
  return ranges


def words(text: str) -> list[str]:
  """The words and other visible characters of a text, see `word_ranges`."""
  return [text[start:end] for start, end in word_ranges(text)]


def cut_place(text: str, start: int, end: int) -> int:
  """Where a range [start, end) of a text is best cut in two.

  In its middle half that is the white space nearest to the middle, else the place behind a comma or
  another mark, else the end of a word by annex 29; else the end of a word anywhere, else of a
  character with its signs. A word is cut only where it is all there is.
  """
  middle, quarter = (start + end) // 2, (end - start) // 4
  low = max(start, middle - quarter + 1)
  part = text[low:middle + quarter]

  def nearest(places: list[int]) -> int:
    return min(places, key=lambda at: (abs(at - middle), at))

  # Most texts have blanks, and are asked for no more.
  if blanks := [low + at for at, c in enumerate(part) if c.isspace()]:
    return nearest(blanks)
  edges = [start + match.start() for match in _BOUNDARY.finditer(text[start:end])]
  edges = [at for at in edges if start < at < end]
  inner = [at for at in edges if abs(at - middle) < quarter]
  marks = [at for at in inner if text[at - 1] in CONTINUES + STOPS + CLOSERS]
  signs = [low + match.end() for match in _GRAPHEME.finditer(part)][:-1]
  return nearest(marks or inner or edges or signs or [middle])
