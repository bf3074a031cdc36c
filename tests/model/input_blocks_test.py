"""Inputs that are read together: which, where in the block, and of what shape."""

import numpy as np

from fedmedjax.model import input_blocks
from fedmedjax.model.input_blocks import Place


def test_each_row_takes_the_longest_that_fit():
  """Rows of 10 tokens: 7 and 3; then 6, and beside it 4 is left for 2; 5 and 9 wait."""
  lengths = [9, 7, 6, 5, 3, 2]
  queue = [1, 2, 3, 4, 5]
  assert input_blocks.take(queue, lengths, 2, 10, 9) == [
    Place(1, 0, 0), Place(4, 0, 7), Place(2, 1, 0), Place(5, 1, 6)]
  assert queue == [3]
  # No more than asked for, and never more than four a row.
  queue = [0, 1, 2]
  assert len(input_blocks.take(queue, lengths, 4, 10, 2)) == 2 and queue == [2]
  queue = list(range(9))
  assert len(input_blocks.take(queue, [1] * 9, 1, 10, 9)) == 4 and len(queue) == 5


def test_the_arrays_by_hand():
  inputs = [np.array([5, 6, 7]), np.array([8, 9])]
  block = input_blocks.block([Place(1, 0, 0), Place(0, 0, 2)], inputs, 2, 6)
  assert block.tokens.tolist() == [[8, 9, 5, 6, 7, 0], [0] * 6]
  assert block.places.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
  assert block.segments.tolist() == [[1, 1, 2, 2, 2, 0], [0] * 6]
  assert block.ends.tolist() == [1, 4, 0, 0, 0, 0, 0, 0]


def test_the_last_block_is_half_as_large_where_that_is_enough():
  """Two rows of 64 hold 60, 60, 4 and 4, but not 60 three times. Two copies share the questions."""
  lengths = [60, 60, 60, 4, 4]
  assert input_blocks.shape([0, 1, 3, 4], lengths, 4, 1) == (2, 64)
  assert input_blocks.shape([0, 1, 2], lengths, 4, 1) == (4, 64)
  assert input_blocks.shape([0, 1, 2], lengths, 4, 2) == (2, 64)
  assert input_blocks.shape([0], [97], 1, 1) == (1, 128)
