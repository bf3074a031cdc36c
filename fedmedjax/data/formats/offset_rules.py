"""What the offsets of annotations count, where they do not count the characters of the text.

A tool may have counted in UTF-16 units or in bytes, a line end as one sign or as two, or in a text
with other blanks. Each such rule gives every character of a text a weight, and an offset is a sum
of weights; with weights of one, offsets count characters.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from fedmedjax.data.formats.files import Layout


class Rule(NamedTuple):
  """What offsets count; by default characters. Parts are keys of the tables below, or ''."""

  unit: str = ''
  line_ends: str = ''
  blanks: str = ''
  reading: str = ''  # another way to read the stated places: the name of a count, or 'NAME:NUMBER'
  shift: int = 0     # the offsets are less by so many units than those of the text

  def reasons(self) -> tuple[str, ...]:
    """The counts to which annotations belong that this rule places."""
    counts = (self.unit, self.line_ends and 'offsets_line_ends', self.blanks and 'offsets_blanks',
              self.reading.partition(':')[0], self.shift and 'offsets_shifted')
    return tuple(name for name in counts if name)


def _utf16(codes: np.ndarray) -> np.ndarray:
  return 1 + (codes > 0xFFFF)


def _utf8(codes: np.ndarray) -> np.ndarray:
  return 1 + (codes > 0x7F).astype(int) + (codes > 0x7FF) + (codes > 0xFFFF)


def _escaped(codes: np.ndarray) -> np.ndarray:
  """As in XML: &amp; &lt; &gt;"""
  return 1 + 4 * (codes == ord('&')) + 3 * np.isin(codes, (ord('<'), ord('>')))


def _decomposed(codes: np.ndarray) -> np.ndarray:
  """An accent as a sign of its own, whether or not the text has it so."""
  found, where = np.unique(codes, return_inverse=True)
  return np.array([len(unicodedata.normalize('NFD', chr(code))) for code in found], int)[where]


def _composed(codes: np.ndarray) -> np.ndarray:
  """An accent that is a sign of its own in the text as a part of its letter."""
  found, where = np.unique(codes, return_inverse=True)
  return np.array([not unicodedata.combining(chr(code)) for code in found], int)[where]


# Name of a count -> the weights of characters [n], given their codes [n].
_UNITS = {
  '': lambda codes: np.ones(len(codes), int), 'offsets_utf16': _utf16, 'offsets_bytes': _utf8,
  'offsets_escaped': _escaped, 'offsets_decomposed': _decomposed, 'offsets_composed': _composed}
# A line end as one sign where the text has two, as two where it has one, or as none.
_LINE_ENDS = {
  '': None, 'once': (re.compile(r'\r(?=\n)'), 0), 'twice': (re.compile(r'(?<!\r)\n'), 2),
  'none': (re.compile(r'[\r\n]'), 0)}
# A run of blanks, or of any white space, as one.
_BLANKS = {
  '': None, 'blanks': (re.compile(r'(?<=[^\S\r\n])[^\S\r\n]'), 0),
  'space': (re.compile(r'(?<=\s)\s'), 0)}
RULES = tuple(sorted(
  (Rule(*parts) for parts in product(_UNITS, _LINE_ENDS, _BLANKS)),
  key=lambda rule: len(rule.reasons())))
PLAIN = Rule()


def weights(text: str, rule: Rule) -> np.ndarray:
  """What each character of a text counts: i[len(text)]."""
  codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
  counted = _UNITS[rule.unit](codes)
  for change in (_LINE_ENDS[rule.line_ends], _BLANKS[rule.blanks]):
    if change:
      pattern, weight = change
      counted[[match.start() for match in pattern.finditer(text)]] = weight
  return counted


class Ruler:
  """A layout's text measured by a rule: from offsets in the source to characters, and back."""

  def __init__(self, layout: Layout, rule: Rule):
    self.layout, self.rule = layout, rule
    plain = not (rule.unit or rule.line_ends or rule.blanks)
    # For each unit, what stands before each of its characters and its end.
    self.sums: list[Sequence[int]] = [
      range(len(unit.text) + 1) if plain
      else [0, *np.cumsum(weights(unit.text, rule)).tolist()] for unit in layout.units]
    # Equal for rulers that measure alike.
    self.key = None if plain else tuple(map(tuple, self.sums))

  def range_of(self, start: int, end: int, home: int = 0) -> tuple[int, int] | None:
    """The characters [first, last + 1) of a range of offsets, or None.

    Offsets of several units may be alike; the one numbered `home` and those behind it go first.
    """
    start, end = start + self.rule.shift, end + self.rule.shift
    if start >= end:
      return None
    found = self._at(start, home, False), self._at(end, home, True)
    return found if None not in found and found[0] < found[1] else None

  def _at(self, offset: int, home: int, ends: bool) -> int | None:
    order = range(len(self.sums))
    for i in (*order[home:], *order[:home]):
      sums, inside = self.sums[i], offset - self.layout.units[i].offset
      if ends and 0 < inside <= sums[-1]:
        at = bisect_left(sums, inside)
      elif not ends and 0 <= inside < sums[-1]:
        at = bisect_right(sums, inside) - 1
      else:
        continue
      # In the middle of a character there is no place.
      return self.layout.starts[i] + at if sums[at] == inside else None
    return None

  def offset_of(self, at: int) -> int:
    """The offset in the source of a character of the text."""
    i = max(bisect_right(self.layout.starts, at) - 1, 0)
    inside = min(max(at - self.layout.starts[i], 0), len(self.sums[i]) - 1)
    return self.layout.units[i].offset + self.sums[i][inside]
