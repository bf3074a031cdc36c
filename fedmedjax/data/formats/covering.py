"""Annotations in several pieces: the range that covers them, and whether other words are in it."""

from collections.abc import Sequence
from itertools import pairwise

# Covering range -> whether each annotation of this range has other words between its pieces.
Covered = dict[tuple[int, int], bool]


def cover(pieces: Sequence[tuple[int, int]], text: str, covered: Covered) -> tuple[int, int]:
  """The range that covers the pieces of an annotation, which is entered into `covered`.

  Pieces with white space only between them, as of an entity over two lines, are a whole.
  """
  ordered = sorted(pieces)
  found = ordered[0][0], max(end for _, end in ordered)
  broken = any(text[end:start].strip() for (_, end), (start, _) in pairwise(ordered))
  covered[found] = covered.get(found, True) and broken
  return found


def broken_ranges(covered: Covered) -> tuple[tuple[int, int], ...]:
  """The ranges of `Document.covering`."""
  return tuple(sorted(place for place, broken in covered.items() if broken))
