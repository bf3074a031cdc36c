"""Guesses at the next tokens of a greedy output that copies its input between fixed pieces.

Checking several guessed tokens in one pass of the model costs little more than making one token,
and the guesses that the model makes, too, are kept: speculative decoding (Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", ICML 2023, arXiv:2211.17192) with the input
in place of a draft model, as in "Inference with Reference" (Yang et al., arXiv:2304.04487). Guesses
change how many passes are needed, and nothing else.

A `CopyPointer` follows the output through the input (the source): as long as it is copied, the next
source token is guessed; within a fixed piece such as a tag, the token that follows there in
`pieces`; and after a piece the source goes on. Behind a piece that has taken the blank before a
word, the word is cut into other tokens; a `Source` holds these as well.

Letters: B outputs, S places of a source, T tokens, F tokens of all pieces with their closing END or
CUT.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree

# How far the next copied token may be ahead: words are left out, and cut unlike behind a tag.
_AHEAD = 6
# In `pieces`: the end of a piece, after which the source goes on as it is.
END = -1
# The end of a piece behind which the source goes on without its blank.
CUT = -2
# The token of a place where a source has none.
_NONE = -1


class Source(NamedTuple):
  """What B outputs may copy: their inputs, and behind these what is cut differently beside a piece.

  One input's arrays are i32[S] and i32[S, 14], see `source`.
  """

  tokens: jax.Array  # i32[B, S]; _NONE at the end of the input and in the padding
  after: jax.Array   # i32[B, S]: the place that follows each
  # i32[B, S, 14]: where the next token is looked for from each place, see below.
  near: jax.Array


# Of `Source.near`: first the place and those that follow it; from _CUT on where the same texts
# begin without their blank, or the same places; and from _JOINED on, of the first two, where the
# token is that is both the end of a piece and theirs, or the place.
_CUT, _JOINED, _NEAR = _AHEAD, 2 * _AHEAD, 2 * _AHEAD + 2


def source(
  tokens: np.ndarray, words: Sequence[tuple[int, int, Sequence[int]]] = (),
  joined: Mapping[int, int] | None = None,
) -> Source:
  """The source of one input i32[n]: S as needed.

  Args:
    tokens: i32[n], the input.
    words: (its first place, the place after it, its tokens without the blank before it) of words.
    joined: {a token: the token that a piece's last one and it become}.
  """
  held, after, cut = [*tokens.tolist(), _NONE], [*range(1, len(tokens) + 1), len(tokens)], {}
  for first, last, other in words:
    cut[first] = len(held)
    held += other
    after += [*range(len(after) + 1, len(held)), last]
  joints = {}
  for place, token in enumerate(tuple(held)):
    if joined and token in joined:
      joints[place] = len(held)
      held.append(joined[token])
      after.append(after[place])
  held, after, cut, joints = (np.asarray(values, np.int32) for values in (
    held, after, *([elsewhere.get(place, place) for place in range(len(held))]
                   for elsewhere in (cut, joints))))
  plain = [np.arange(len(held), dtype=np.int32)]
  for _ in range(_AHEAD - 1):
    plain.append(after[plain[-1]])
  near = [*plain, *(cut[places] for places in plain), *(joints[places] for places in plain[:2])]
  return Source(held, after, np.stack(near, axis=1))


def stacked(sources: Sequence[Source], places: int) -> Source:
  """Sources [S] each, S <= `places`, as one [B, places]."""
  shape = len(sources), places
  out = Source(
    np.full(shape, _NONE, np.int32), *(np.zeros(x, np.int32) for x in (shape, (*shape, _NEAR))))
  for row, one in enumerate(sources):
    for values, own in zip(out, one, strict=True):
      values[row, :len(own)] = own
  return out


class CopyPointer(NamedTuple):
  """How far each output has copied its source."""

  place: jax.Array   # i32[B]: the source token that comes next
  copied: jax.Array  # bool[B]: the last token came from the source
  last: jax.Array    # i32[B, 2]: the last two tokens


def start(batch: int) -> CopyPointer:
  """The pointer, leaves [B, ...], of outputs without a token: past the source's first token.

  That first token is the instruction's last, which no output repeats.
  """
  return CopyPointer(
    jnp.ones(batch, jnp.int32), jnp.ones(batch, bool), jnp.full((batch, 2), END, jnp.int32))


def follow(pointer: CopyPointer, token: jax.Array, source: Source) -> CopyPointer:
  """The pointer after one more token of each output.

  Args:
    pointer: before it.
    token: i32[B].
    source: what is copied.
  """
  near = _at(source.near, pointer.place)
  hit = _at(source.tokens, near) == token[:, None]
  copied = hit.any(axis=1)
  found = _at(near, jnp.argmax(hit, axis=1))
  place = jnp.where(copied, _at(source.after, found), pointer.place)
  return CopyPointer(place, copied, jnp.stack([pointer.last[:, 1], token], axis=1))


def _at(values: jax.Array, places: jax.Array) -> jax.Array:
  """values [B, S, ...] at places i32[B] or i32[B, T] -> [B, ...] or [B, T, ...]."""
  rows = jnp.arange(len(values)).reshape(-1, *[1] * (places.ndim - 1))
  return values[rows, places]


def follow_first(
  pointer: CopyPointer, tokens: jax.Array, count: jax.Array, source: Source
) -> CopyPointer:
  """The pointer after the first `count` i32[B] of tokens i32[B, T]; the rest as for `follow`."""
  for j in range(tokens.shape[1]):
    further = follow(pointer, tokens[:, j], source)
    pointer = tree.where(j < count, further, pointer)
  return pointer


def guess(pointer: CopyPointer, source: Source, pieces: jax.Array) -> jax.Array:
  """The likely next token of each output, i32[B].

  Args:
    pointer: how far each output is.
    source: what is copied.
    pieces: i32[F], the tokens of all fixed pieces, each piece closed by END or CUT.
  """
  last_fits = pieces[None] == pointer.last[:, 1:]
  both_fit = last_fits & (jnp.roll(pieces, 1)[None] == pointer.last[:, :1])
  # Two tokens tell the place better than one; the first place of those that are as good.
  best = jnp.argmax(last_fits * 1 + both_fit * 1, axis=1)
  after, second = (jnp.roll(pieces, -count)[best] for count in (1, 2))
  within = ~pointer.copied & last_fits.any(axis=1)
  near = _at(source.near, pointer.place)
  cut, joined = near[:, _CUT], near[:, _JOINED]
  joins = within & (after >= 0) & (second == END) & (joined != pointer.place)
  place = jnp.where(joins, joined, jnp.where(within & (after == CUT), cut, pointer.place))
  # Nothing follows a source; its end is no token that could be looked up.
  from_source = jnp.maximum(_at(source.tokens, place), 0)
  return jnp.where(within & (after >= 0) & ~joins, after, from_source)


def draft(pointer: CopyPointer, source: Source, pieces: jax.Array, count: int) -> jax.Array:
  """Guesses at the next `count` tokens of each output, one after the other -> i32[B, count].

  Args:
    pointer, source: see `follow`.
    pieces: i32[F], see `guess`.
    count: static; 0 is allowed.
  """
  out = []
  for _ in range(count):
    out.append(guess(pointer, source, pieces))
    pointer = follow(pointer, out[-1], source)
  return jnp.stack(out, axis=1) if out else jnp.zeros((len(pointer.place), 0), jnp.int32)
