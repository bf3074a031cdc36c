"""Guesses at a copy with tags in it, token by token."""

import jax.numpy as jnp
import numpy as np

from fedmedjax.model import speculation

# <tag a> = 50 51 61 53, <tag b> = 50 51 62 53, </tag> = 54 55.
PIECES = jnp.asarray([
  50, 51, 61, 53, speculation.END, 50, 51, 62, 53, speculation.END, 54, 55, speculation.END])
SOURCE = jnp.asarray([[1, 10, 11, 12, 13, 14, 15, 9, 0, 0]])
LENGTHS = jnp.asarray([8])


def guesses(output, count=4):
  pointer = speculation.start(1)
  for token in output:
    pointer = speculation.follow(pointer, jnp.asarray([token]), SOURCE, LENGTHS)
  return speculation.draft(pointer, SOURCE, LENGTHS, PIECES, count)[0].tolist()


def test_what_is_guessed():
  assert guesses([]) == [10, 11, 12, 13]
  assert guesses([10, 11]) == [12, 13, 14, 15]
  # A tag has begun: the first one that begins so, and then the source goes on.
  assert guesses([10, 11, 50], 6) == [51, 61, 53, 12, 13, 14]
  # The type is told: its tag is closed. Two tokens tell the place better than one.
  assert guesses([10, 11, 50, 51, 62], 3) == [53, 12, 13]
  assert guesses([10, 11, 50, 51, 62, 53, 12, 54], 3) == [55, 13, 14]
  # A token that is nowhere leaves the place as it was; left-out ones are passed over.
  assert guesses([10, 77]) == [11, 12, 13, 14]
  assert guesses([10, 13]) == [14, 15, 9, 0]
  # Too far ahead is not followed.
  assert guesses([9], 1) == [10]


def test_rows_do_not_touch_each_other():
  source = jnp.concatenate([SOURCE, SOURCE + 20])
  pointer = speculation.follow(
    speculation.start(2), jnp.asarray([10, 77]), source, jnp.asarray([8, 8]))
  found = speculation.draft(pointer, source, jnp.asarray([8, 8]), PIECES, 3)
  np.testing.assert_array_equal(found, [[11, 12, 13], [30, 31, 32]])
  assert speculation.draft(pointer, source, jnp.asarray([8, 8]), PIECES, 0).shape == (2, 0)
