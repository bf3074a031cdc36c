"""Guesses at a copy with tags in it, token by token."""

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.model import speculation

# <tag a> = 50 51 61 53, <tag b> = 50 51 62 53, </tag> = 54 55.
PIECES = jnp.asarray([
  50, 51, 61, 53, speculation.END, 50, 51, 62, 53, speculation.END, 54, 55, speculation.END])
INPUT = np.array([1, 10, 11, 12, 13, 14, 15, 9])
SOURCE = speculation.stacked([speculation.source(INPUT)], 20)
follow, draft = jax.jit(speculation.follow), jax.jit(speculation.draft, static_argnums=3)


def guesses(output, count=4, source=SOURCE, pieces=PIECES):
  pointer = speculation.start(1)
  for token in output:
    pointer = follow(pointer, jnp.asarray([token]), source)
  return draft(pointer, source, pieces, 6)[0, :count].tolist()


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
  assert guesses([10, 13]) == [14, 15, 9, 0]  # and nothing after the source's end
  # Too far ahead is not followed.
  assert guesses([9], 1) == [10]


def test_rows_do_not_touch_each_other():
  source = speculation.stacked([speculation.source(x) for x in (INPUT, INPUT + 20)], 20)
  pointer = follow(speculation.start(2), jnp.asarray([10, 77]), source)
  found = draft(pointer, source, PIECES, 3)
  np.testing.assert_array_equal(found, [[11, 12, 13], [30, 31, 32]])
  assert draft(pointer, source, PIECES, 0).shape == (2, 0)


# The word 11 12 is 71 72 73 without its blank, and the word 13 is 74; 55 and then 13 or 14 are one
# token behind a closing tag: 81 or 82.
PLACED = speculation.source(INPUT, [(2, 4, [71, 72, 73]), (4, 5, [74])], {13: 81, 14: 82})
CUTTING = jnp.asarray([50, 51, 53, speculation.CUT, 54, 55, speculation.END])


def test_a_source_by_hand():
  """8 tokens, their end, 4 of words, 2 that are joined; what has no other form is its own."""
  tokens, after, near = (values.tolist() for values in PLACED)
  assert tokens == [*INPUT, -1, 71, 72, 73, 74, 81, 82]
  assert after == [1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 4, 5, 5, 6]
  # From the place before the first word: those that follow, cut if they can be, and two joined.
  assert near[1] == [1, 2, 3, 4, 5, 6, 1, 9, 3, 12, 5, 6, 1, 2]
  # From the other form of that word; and at the end there is the end.
  assert near[9] == [9, 10, 11, 4, 5, 6, 9, 10, 11, 12, 5, 6, 9, 10]
  assert near[4][12:] == [13, 14] and near[8] == [8] * 14


def test_what_is_cut_differently_beside_a_piece_is_guessed():
  def found(*output, count=4):
    return guesses(output, count, speculation.stacked([PLACED], 20), CUTTING)

  # Behind an opening tag the word has its other tokens, and behind the word the source goes on.
  assert found(10, 50, 51) == [53, 71, 72, 73]
  assert found(10, 50, 51, 53, 71) == [72, 73, 13, 14]
  # It is known though nobody guessed it, such as where a word is left out.
  assert found(10, 50, 51, 53, 74, count=2) == [14, 15]
  # A closing tag's end and the token behind it are one, and then comes what follows that token.
  assert found(10, 11, 12, 13, 54) == [82, 15, 9, 0]
  assert found(10, 11, 12, 54, count=2) == [81, 14]
  # Behind what joins with nothing, the tag ends by itself.
  assert found(10, 54, count=2) == [55, 11]
