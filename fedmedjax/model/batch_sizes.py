"""How large a batch of questions is: its rows, their slots, and the block that inputs are read in.

Letters as in `decode.py` and `prefill.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.model.input_blocks import rung
from fedmedjax.model.speculation import Source, source

# Questions are put into rows once one of so many rows is free. Each time the host has to look.
_ROWS_A_LOOK = 16
# A block of inputs has a quarter of the batch's rows; as many inputs at most are inserted at once.
_READ_SHARE = 4
# How often the number of rows may be halved when no question is left for the free ones.
_HALVINGS = 2


class Question(NamedTuple):
  """The prompt of one example, and how much the model may write to it."""

  tokens: np.ndarray  # i32[W], W >= 1: the instruction's last, and the input
  limit: int          # the most tokens to generate
  source: Source | None = None  # i32[S], what the answer may copy; None = the tokens


def source_of(question: Question) -> Source:
  """The tokens that guesses are taken from, i32[S]: the question's own, or those of its input."""
  return question.source or source(question.tokens)


class Sizes(NamedTuple):
  """The sizes R, M, W, S, N and Q of a batch: numbers of rows, slots, tokens and places."""

  rows: int   # R, of each copy of the base
  slots: int  # M, of the cache, for each row
  width: int  # W, tokens of an input
  places: int  # S, of a source of guesses
  most: int   # N, new tokens
  read: int   # Q, rows of a block of inputs, of each copy


def largest(decoder: Any, questions: Sequence[Question], rows: int) -> Sizes:
  """The largest sizes that the batch of `decode` may grow to, such as its cache [L, KV, R, M, d].

  Args as those of `batching.decode`; nothing is computed on the device.
  """
  longest = max(len(question.tokens) for question in questions)
  slots = max(len(question.tokens) + question.limit for question in questions)
  most = levels(-(-rows // decoder.copies), -(-len(questions) // decoder.copies))[0]
  return Sizes(
    most, rung(max(longest, slots + decoder.guesses + 1)), rung(longest),
    rung(max(len(source_of(question).tokens) for question in questions)),
    rung(max(question.limit for question in questions)), read_rows(most))


def read_rows(rows: int) -> int:
  """Rows of a block of inputs beside `rows` of a batch."""
  return -(-rows // _READ_SHARE)


def rows_awaited(rows: int, waiting: int) -> int:
  """Free rows of `rows` that `waiting` questions wait for."""
  return min(-(-rows // _ROWS_A_LOOK), waiting)


def levels(rows: int, count: int) -> list[int]:
  """Numbers of rows, the largest first: what `count` questions begin with and are halved to.

  On an accelerator a pass costs what reading the weights costs: fewer rows are not faster.
  """
  halvings = _HALVINGS if jax.default_backend() == 'cpu' else 0
  levels = sorted({-(-rows // 2**n) for n in range(halvings + 1)})
  enough = next(place for place, level in enumerate(levels) if level >= min(rows, count))
  return levels[enough::-1]
