"""Guesses at the next tokens of a greedy output that copies its input between fixed pieces.

Checking several guessed tokens in one pass of the model costs little more than making one token,
and the guesses that the model makes, too, are kept: speculative decoding (Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", ICML 2023, arXiv:2211.17192) with the input
in place of a draft model, as in "Inference with Reference" (Yang et al., arXiv:2304.04487). Guesses
change how many passes are needed, and nothing else.

A `CopyPointer` follows the output through the input (the source): as long as it is copied, the next
source token is guessed; within a fixed piece such as a tag, the token that follows there in
`pieces`; and after a piece the source goes on.

Letters: B outputs, W tokens of a source, T tokens, F tokens of all pieces with their closing END.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax import tree

# How far the next copied token may be ahead: words are left out, and cut unlike behind a tag.
_AHEAD = 6
# In `pieces`: the end of a piece, after which the source goes on.
END = -1


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


def follow(
  pointer: CopyPointer, token: jax.Array, source: jax.Array, lengths: jax.Array
) -> CopyPointer:
  """The pointer after one more token of each output.

  Args:
    pointer: before it.
    token: i32[B].
    source: i32[B, W], padded on the right.
    lengths: i32[B], tokens of each source.
  """
  places = pointer.place[:, None] + jnp.arange(_AHEAD)[None]
  near = jnp.take_along_axis(source, jnp.minimum(places, source.shape[1] - 1), axis=1)
  hit = (near == token[:, None]) & (places < lengths[:, None])
  copied = hit.any(axis=1)
  place = jnp.where(copied, pointer.place + jnp.argmax(hit, axis=1) + 1, pointer.place)
  return CopyPointer(place, copied, jnp.stack([pointer.last[:, 1], token], axis=1))


def follow_first(
  pointer: CopyPointer, tokens: jax.Array, count: jax.Array, source: jax.Array, lengths: jax.Array
) -> CopyPointer:
  """The pointer after the first `count` i32[B] of tokens i32[B, T]; the rest as for `follow`."""
  for j in range(tokens.shape[1]):
    further = follow(pointer, tokens[:, j], source, lengths)
    pointer = tree.where(j < count, further, pointer)
  return pointer


def guess(pointer: CopyPointer, source: jax.Array, pieces: jax.Array) -> jax.Array:
  """The likely next token of each output, i32[B].

  Args:
    pointer: how far each output is.
    source: i32[B, W], padded on the right.
    pieces: i32[F], the tokens of all fixed pieces, each piece closed by END.
  """
  place = jnp.minimum(pointer.place, source.shape[1] - 1)
  from_source = jnp.take_along_axis(source, place[:, None], axis=1)[:, 0]
  last_fits = pieces[None] == pointer.last[:, 1:]
  both_fit = last_fits & (jnp.roll(pieces, 1)[None] == pointer.last[:, :1])
  # Two tokens tell the place better than one; the first place of those that are as good.
  best = jnp.argmax(last_fits * 1 + both_fit * 1, axis=1)
  after = jnp.roll(pieces, -1)[best]
  within = ~pointer.copied & last_fits.any(axis=1) & (after != END)
  return jnp.where(within, after, from_source)


def draft(
  pointer: CopyPointer, source: jax.Array, lengths: jax.Array, pieces: jax.Array, count: int
) -> jax.Array:
  """Guesses at the next `count` tokens of each output, one after the other -> i32[B, count].

  Args:
    pointer: how far each output is.
    source, lengths: i32[B, W] and i32[B], see `follow`.
    pieces: i32[F], see `guess`.
    count: static; 0 is allowed.
  """
  out = []
  for _ in range(count):
    out.append(guess(pointer, source, pieces))
    pointer = follow(pointer, out[-1], source, lengths)
  return jnp.stack(out, axis=1) if out else jnp.zeros((source.shape[0], 0), jnp.int32)
