"""Ranges that only cover an entity in several pieces, with other words between these."""

from collections.abc import Sequence
from itertools import pairwise

Range = tuple[int, int]


def covering_ranges(
  ranges: Sequence[Range | None], pieces: Sequence[Sequence[Range]], text: str
) -> tuple[Range, ...]:
  """The ranges of `Document.covering`: those that no entity fills as a whole.

  Pieces with white space only between them, as of an entity over two lines, are a whole.

  Args:
    ranges: of each annotation; None = it was set aside.
    pieces: the pieces of each; those of another range are not looked at.
    text: of the document.
  """
  broken: dict[Range, bool] = {}
  for place, own in zip(ranges, pieces, strict=True):
    if place:
      ordered = sorted(own)
      apart = len(own) > 1 and place == (ordered[0][0], max(end for _, end in own)) and any(
        text[end:start].strip() for (_, end), (start, _) in pairwise(ordered))
      broken[place] = broken.get(place, True) and apart
  return tuple(sorted(place for place, apart in broken.items() if apart))
