"""Character alignment of a text with an imperfect copy of it.

Edit distance with affine gaps (Gotoh, "An improved algorithm for matching biological sequences",
J. Mol. Biol. 1982), one numpy pass per character of the text. Plain Levenshtein distance is not
enough: between "chronic chest pain" and the copy "chest pain" it is indifferent to matching the
copy's "ch" to "chronic", which would stretch the entity over a word the model left out. Here a
gap costs more when it opens or closes inside a word, so a dropped or added word is one clean gap.

Letter case and the kind of white space cost nothing (a CRLF in a note often returns as LF).
Letters: n characters of the text, m of the copy; *boundary* b lies before character b.
"""

from typing import NamedTuple

import numpy as np

from fedmedjax.data.scripts import inside_word

SUBSTITUTE = 3  # below a deletion plus an insertion (4): a typo stays in place
EXTEND = 2      # per character of a gap
OPEN = 2        # per gap: one long gap beats two short ones
MID_WORD = 2    # per gap end inside a word
MAX_CELLS = 1 << 23  # of the cost table: 2,000 x 4,000 characters, about 0.1 s on one core
MAX_ROWS = 1 << 13   # characters of the text, which are a python loop

_FAR = 1 << 28  # larger than any cost, small enough to add costs to in int32
# One byte per cell of the traceback.
_FROM_GAP = np.uint8(1)     # "matched or deleted" was reached by closing a deletion
_FROM_INSERT = np.uint8(2)  # the cell was reached by closing an insertion
_GAP_GOES_ON = np.uint8(4)
_INSERT_GOES_ON = np.uint8(8)


class Alignment(NamedTuple):
  """The place of each character of the copy in the text; places >= 0 grow strictly."""

  place: np.ndarray  # i64[m]   index into the text, -1 = the text has no such character
  equal: np.ndarray  # bool[m]  placed on the same character, ignoring case


def fold(text: str) -> str:
  """Lower case and plain blanks, character by character: the length never changes."""
  folded = (' ' if c.isspace() else c.lower() for c in text)
  return ''.join(f if len(f) == 1 else c for f, c in zip(folded, text, strict=True))


def align(text: str, copy: str) -> Alignment:
  """Aligns `copy` [m] with `text` [n], cheapest edits first.

  Shared beginnings and ends are matched first, in whole words, so a nearly perfect copy costs
  next to nothing. Of the rest in between, at most MAX_ROWS characters of the text and
  MAX_CELLS cells are aligned; characters after these stay unplaced.
  """
  a, b = _codes(fold(text)), _codes(fold(copy))
  inside_a, inside_b = inside_word(text), inside_word(copy)
  head = _shared(a, b)
  while head and (inside_a[head] or inside_b[head]):
    head -= 1
  tail = _shared(a[head:][::-1], b[head:][::-1])
  while tail and (inside_a[len(a) - tail] or inside_b[len(b) - tail]):
    tail -= 1
  place = np.full(len(b), -1)
  place[:head] = np.arange(head)
  place[len(b) - tail:] = np.arange(len(a) - tail, len(a))
  rows = min(len(a) - head - tail, MAX_ROWS)
  columns = min(len(b) - head - tail, MAX_CELLS // max(rows, 1))
  if rows and columns:
    open_a = OPEN + MID_WORD * inside_a[head:head + rows + 1]
    open_b = OPEN + MID_WORD * inside_b[head:head + columns + 1]
    middle_a, middle_b = a[head:head + rows], b[head:head + columns]
    table = _table(middle_a, middle_b, open_a.astype(np.int32), open_b.astype(np.int32))
    for i, j in _path(table):
      place[head + j] = head + i
  equal = place >= 0
  equal[equal] = a[place[equal]] == b[equal]
  return Alignment(place, equal)


def _codes(text: str) -> np.ndarray:
  """The code points of a text, u32[n]."""
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def _shared(a: np.ndarray, b: np.ndarray) -> int:
  """Length of the longest common beginning."""
  size = min(len(a), len(b))
  different = np.flatnonzero(a[:size] != b[:size])
  return int(different[0]) if len(different) else size


def _table(a: np.ndarray, b: np.ndarray, open_a: np.ndarray, open_b: np.ndarray) -> np.ndarray:
  """Traceback flags u8[n + 1, m + 1] of the cheapest alignment.

  open_a [n + 1] and open_b [m + 1] are the costs of opening a gap at each boundary; closing it
  costs the part above OPEN. Each row is vectorised: an insertion that ends in column j opened at
  the k < j with the least cost(k) + EXTEND (j - k), a running minimum after EXTEND k is taken off.
  """
  flags = np.zeros((len(a) + 1, len(b) + 1), np.uint8)
  ramp = EXTEND * np.arange(len(b) + 1, dtype=np.int32)
  close_a, close_b = open_a - OPEN, open_b - OPEN
  start = open_b - ramp
  best = open_b[0] + ramp + close_b  # row 0: everything so far is inserted
  best[0] = 0
  flags[0, 1:] = _FROM_INSERT
  flags[0, 2:] |= _INSERT_GOES_ON
  gap = np.full(len(b) + 1, _FAR, np.int32)
  matched = np.full(len(b) + 1, _FAR, np.int32)
  insert = np.full(len(b) + 1, _FAR, np.int32)
  for i in range(1, len(a) + 1):
    row = flags[i]
    opened = best + open_a[i - 1]
    row |= _GAP_GOES_ON * (gap < opened)
    gap = np.minimum(gap, opened) + np.int32(EXTEND)
    matched[1:] = best[:-1] + np.int32(SUBSTITUTE) * (b != a[i - 1])
    closed = gap + close_a[i]
    row |= _FROM_GAP * (closed < matched)
    closed = np.minimum(matched, closed)
    running = np.minimum.accumulate(closed + start)
    insert[1:] = running[:-1] + ramp[1:]
    row[2:] |= _INSERT_GOES_ON * (running[1:-1] == running[:-2])
    left = insert + close_b
    row |= _FROM_INSERT * (left < closed)
    best = np.minimum(closed, left)
  return flags


def _path(flags: np.ndarray) -> list[tuple[int, int]]:
  """The matched pairs (character of the text, character of the copy), last to first."""
  i, j = flags.shape[0] - 1, flags.shape[1] - 1
  pairs = []
  while i or j:
    if flags[i, j] & _FROM_INSERT:
      goes_on = True
      while goes_on:
        goes_on = flags[i, j] & _INSERT_GOES_ON
        j -= 1
    elif flags[i, j] & _FROM_GAP:
      goes_on = True
      while goes_on:
        i -= 1
        goes_on = flags[i + 1, j] & _GAP_GOES_ON
    else:
      i, j = i - 1, j - 1
      pairs.append((i, j))
  return pairs
