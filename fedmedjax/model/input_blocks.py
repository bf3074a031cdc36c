"""Which inputs are read together: packed into the rows of a block, and waiting there for free rows.

Letters as in `prefill.py`: Q rows of W tokens hold K inputs at most.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.model.prefill import Block

# The least number of tokens of a row, and of slots of a row of the cache.
FEWEST = 64
# Inputs of a block, for each of its rows.
MOST = 4


class Place(NamedTuple):
  """Where an input lies in a block."""

  question: int  # whose input it is
  row: int
  column: int    # of its first token


def rung(count: int) -> int:
  """The least of 64, 96, 128, 192, 256, 384, 512 ... that is not below `count`.

  Each shape costs a compilation, so what depends on the longest question is rounded up to one.
  """
  power = max(FEWEST, 2 ** (count - 1).bit_length())
  return power * 3 // 4 if max(count, FEWEST) <= power * 3 // 4 else power


def shape(queue: Sequence[int], lengths: Sequence[int], rows: int, copies: int) -> tuple[int, int]:
  """(Q, W) of the next block of each copy: half of `rows` where that holds all that waits.

  Args:
    queue: questions that wait, the longest input first.
    lengths: tokens of each question's input.
    rows: Q at most.
    copies: of the base, which share the queue.
  """
  width, half = rung(lengths[queue[0]]), -(-rows // 2)
  rest = list(queue)
  for left in range(copies, 0, -1):
    take(rest, lengths, half, width, -(-len(rest) // left))
  return rows if rest else half, width


def take(
  queue: list[int], lengths: Sequence[int], rows: int, width: int, most: int
) -> list[Place]:
  """Takes inputs for a block out of the queue: for each row the longest that fit, one by one.

  Args:
    queue, lengths: see `shape`; no input is longer than `width`.
    rows, width: Q and W.
    most: inputs at most; there are never more than MOST a row.
  """
  taken = []
  most = min(most, MOST * rows)
  for row in range(rows):
    room = width
    while len(taken) < most:
      place = bisect.bisect_left(queue, -room, key=lambda index: -lengths[index])
      if place == len(queue):
        break
      index = queue.pop(place)
      taken.append(Place(index, row, width - room))
      room -= lengths[index]
  return taken


def block(
  taken: Iterable[Place], inputs: Sequence[np.ndarray], rows: int, width: int
) -> Block:
  """The arrays i32[Q, W] of a block, and its ends i32[MOST * Q].

  Args:
    taken: of `take`.
    inputs: i32[n] each, of every question.
    rows, width: Q and W.
  """
  tokens, places, segments = np.zeros((3, rows, width), np.int32)
  ends = np.zeros(MOST * rows, np.int32)
  for number, (index, row, column) in enumerate(taken):
    length = len(inputs[index])
    where = row, slice(column, column + length)
    tokens[where], places[where], segments[where] = inputs[index], np.arange(length), number + 1
    ends[number] = row * width + column + length - 1
  return Block(tokens, places, segments, ends)
