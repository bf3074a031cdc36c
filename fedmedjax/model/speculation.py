"""Guesses at what a greedy continuation says next, where it copies its input between fixed pieces.

Checking several guessed tokens in one pass of the model costs little more than making one token,
and the guesses that the model makes, too, are kept: speculative decoding (Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", ICML 2023, arXiv:2211.17192) with the input
in place of a draft model, as in "Inference with Reference" (Yang et al., arXiv:2304.04487). Guesses
change how many passes are needed, and nothing else.

A `Trail` follows what was said through the input (the source): as long as it is copied, the next
source token is guessed; within a piece such as a tag, what follows there in `pieces`; and after a
piece the source goes on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax import tree

# How far the next copied token may be ahead: words are left out, and cut unlike behind a tag.
_AHEAD = 6
# In `pieces`: the end of a piece, after which the source goes on.
END = -1


class Trail(NamedTuple):
  """Where each continuation is."""

  place: jax.Array   # i32[B]: the source token that comes next
  copied: jax.Array  # bool[B]: the last token came from the source
  last: jax.Array    # i32[B, 2]: the last two tokens


def start(batch: int) -> Trail:
  """Before the first token; that of the source is the instruction's last."""
  return Trail(
    jnp.ones(batch, jnp.int32), jnp.ones(batch, bool), jnp.full((batch, 2), END, jnp.int32))


def follow(trail: Trail, token: jax.Array, source: jax.Array, lengths: jax.Array) -> Trail:
  """The trail after one more token of each continuation.

  Args:
    trail: before it.
    token: i32[B].
    source: i32[B, W], padded on the right.
    lengths: i32[B], tokens of each source.
  """
  places = trail.place[:, None] + jnp.arange(_AHEAD)[None]
  near = jnp.take_along_axis(source, jnp.minimum(places, source.shape[1] - 1), axis=1)
  hit = (near == token[:, None]) & (places < lengths[:, None])
  copied = hit.any(axis=1)
  place = jnp.where(copied, trail.place + jnp.argmax(hit, axis=1) + 1, trail.place)
  return Trail(place, copied, jnp.stack([trail.last[:, 1], token], axis=1))


def follow_first(
  trail: Trail, tokens: jax.Array, count: jax.Array, source: jax.Array, lengths: jax.Array
) -> Trail:
  """The trail after the first `count` i32[B] of tokens i32[B, T]."""
  for j in range(tokens.shape[1]):
    further = follow(trail, tokens[:, j], source, lengths)
    trail = tree.where(j < count, further, trail)
  return trail


def guess(trail: Trail, source: jax.Array, pieces: jax.Array) -> jax.Array:
  """i32[B]: the token that is likely next; pieces i32[H], each closed by END."""
  place = jnp.minimum(trail.place, source.shape[1] - 1)
  from_source = jnp.take_along_axis(source, place[:, None], axis=1)[:, 0]
  one = pieces[None] == trail.last[:, 1:]
  two = one & (jnp.roll(pieces, 1)[None] == trail.last[:, :1])
  # Two tokens tell the place better than one; the first place of those that are as good.
  best = jnp.argmax(one * 1 + two * 1, axis=1)
  after = jnp.roll(pieces, -1)[best]
  within = ~trail.copied & one.any(axis=1) & (after != END)
  return jnp.where(within, after, from_source)


def draft(
  trail: Trail, source: jax.Array, lengths: jax.Array, pieces: jax.Array, count: int
) -> jax.Array:
  """i32[B, count]: guesses at the next tokens, one after the other."""
  out = []
  for _ in range(count):
    out.append(guess(trail, source, pieces))
    trail = follow(trail, out[-1], source, lengths)
  return jnp.stack(out, axis=1) if out else jnp.zeros((source.shape[0], 0), jnp.int32)
