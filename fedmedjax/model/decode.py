"""The device's part of greedy decoding after one shared instruction; `batching.py` drives it.

The instruction and the inputs are read by `prefill.py`. A batch has R rows, each of which continues
an example or is free: an example's output tokens follow its own input in its row of the cache. Each
pass checks guesses at the next tokens and keeps those that are right (`speculation.py`). The cache
is read-only inside the layer scan and new keys are written once after it, so no pass copies the
cache for that.

Letters beside those of `types.py`: B rows of a pass, T tokens of a row in it, K requests, S places
of a source, KV key heads, d width of a head, M slots of a row of the cache, E end tokens. In this
file N is the most output tokens of a row.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.model import speculation
from fedmedjax.model.llama import Llama
from fedmedjax.model.prefill import Cache, Prefix, extend, likeliest
from fedmedjax.model.prefill import cached_attention as cached_attention


class Requests(NamedTuple):
  """K examples to be continued."""

  source: speculation.Source  # i32[K, S] of each: the input, which the output may copy
  lengths: jax.Array  # i32[K], tokens of the input, >= 1; 0 marks one that only fills the batch
  limits: jax.Array   # i32[K], the most tokens to generate


class Outputs(NamedTuple):
  """Greedy continuations of R rows."""

  tokens: jax.Array   # i32[R, N]
  lengths: jax.Array  # i32[R], without the closing eos
  passes: jax.Array   # i32[R], passes of the model that each of them took


class DecodeState(NamedTuple):
  """R rows between two passes of the model."""

  requests: Requests  # i32[R, S] and i32[R]: the example of each row
  pending: jax.Array  # i32[R]: the next token of each row, which no pass has computed keys for yet
  done: jax.Array     # bool[R]: the row's output has ended, or the row never had an example
  filled: jax.Array   # i32[R]: slots of the cache that hold a token
  pointer: speculation.CopyPointer  # leaves [R, ...]: the place in the input that is copied next
  outputs: Outputs    # i32[R, N] and i32[R]
  own: Cache          # [L, KV, R, M, d]: keys and values of each row's input and output


def begin(model: Llama, rows: int, places: int, most: int, slots: int) -> DecodeState:
  """A state of R free rows, with zeros in its cache [L, KV, R, M, d].

  Args:
    model: a Llama built with `cached_attention`.
    rows, places, most, slots: R, S, N and M: numbers of rows, of places of a source, of tokens of
      an output, and of slots of a row's cache.
  """
  config, none = model.config, jnp.zeros(rows, jnp.int32)
  keys = jnp.zeros(
    (config.num_layers, config.num_kv_heads, rows, slots, config.head_dim), model.dtype)
  source = jax.tree.map(
    jnp.zeros_like, speculation.stacked([speculation.source(np.zeros(0, np.int32))] * rows, places))
  return DecodeState(
    Requests(source, none, none), none,
    jnp.ones(rows, bool), none, speculation.start(rows),
    Outputs(jnp.zeros((rows, most), jnp.int32), none, none), Cache(keys, keys))


class Picked(NamedTuple):
  """Which inputs of a block go into rows."""

  inputs: jax.Array   # i32[K], their places in `Block.ends`
  rows: jax.Array     # i32[K], of the block
  columns: jax.Array  # i32[K]: the place of their first token in that row


def insert(
  state: DecodeState, places: jax.Array, requests: Requests, picked: Picked, first: jax.Array,
  block: Cache, eos: jax.Array,
) -> DecodeState:
  """The state with K examples put into its rows `places`.

  Args:
    state: R rows, S places of a source and M slots.
    places: i32[K], free rows; R or more for those of `requests` that only fill the batch.
    requests: i32[K, S] and i32[K], inputs of M tokens at most.
    picked: where in the block each of them is.
    first, block: of `prefill_inputs`, the Cache [L, KV, Q, T, d].
    eos: i32[E], tokens that end an output.
  """
  count, first = len(places), first[picked.inputs]
  fresh = DecodeState(
    requests, first, (requests.lengths == 0) | (requests.limits <= 0) | jnp.isin(first, eos),
    requests.lengths, speculation.start(count),
    jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), state.outputs), ())
  inserted = jax.tree.map(
    lambda x, new: x.at[places].set(new, mode='drop'), state._replace(own=()), fresh)

  def put(index, caches):
    place = jnp.minimum(places[index], len(state.done) - 1)

    def put_leaf(cache, block):
      row = jax.lax.dynamic_slice_in_dim(block, picked.rows[index], 1, axis=2)
      # What follows the input, and its neighbours around the end, lies in slots that no query sees
      # before a pass has written them.
      new = jnp.roll(row, -picked.columns[index], axis=3)[:, :, :, :cache.shape[3]]
      old = jax.lax.dynamic_slice(cache, (0, 0, place, 0, 0), new.shape)
      return jax.lax.dynamic_update_slice(
        cache, jnp.where(places[index] == place, new, old), (0, 0, place, 0, 0))

    return jax.tree.map(put_leaf, caches, block)

  return inserted._replace(own=jax.lax.fori_loop(0, count, put, state.own))


def generate(
  model: Llama, guesses: int, prefix: Prefix, eos: jax.Array, pieces: jax.Array,
  state: DecodeState, until: jax.Array,
) -> DecodeState:
  """Runs passes until at most `until` i32[1] of the R rows are not done, or a row's cache is full.

  A pass computes all rows, done or not, and reads all of the cache, filled or not.

  Args:
    model: a Llama built with `cached_attention`.
    guesses: tokens guessed and checked in each pass beside the one that it makes, static. They
      change the number of passes only (and, by rounding, a choice between equal logits).
    prefix: the instruction that all rows continue.
    eos: i32[E], tokens that end an output.
    pieces: i32[F], F >= 1, see `speculation.guess`.
    state: a pass needs guesses + 1 slots in every row that is not done.
    until: i32[1].
  """
  slots = jnp.arange(state.own.k.shape[-2])[None]
  steps = jnp.arange(guesses + 1)[None]
  source = state.requests.source

  def continues(state: DecodeState) -> jax.Array:
    filled = jnp.max(jnp.where(state.done, 0, state.filled))
    return (jnp.sum(~state.done) > until[0]) & (filled + guesses < slots.size)

  def run_pass(state: DecodeState) -> DecodeState:
    pointer = speculation.follow(state.pointer, state.pending, source)
    guessed = speculation.draft(pointer, source, pieces, guesses)
    tokens = jnp.concatenate([state.pending[:, None], guessed], axis=1)
    positions = prefix.length + state.filled[:, None] + steps
    mask = jnp.repeat((slots < state.filled[:, None])[:, None], guesses + 1, axis=1)
    hidden, new_cache = extend(
      model, prefix, tokens, positions, state.own,
      (mask, jnp.broadcast_to(prefix.length + slots, mask[:, 0].shape)))
    following = likeliest(hidden, prefix.base)
    accepted, outputs, ended = _accepted(state, tokens, following, eos)
    pending = jnp.take_along_axis(following, accepted[:, None] - 1, axis=1)[:, 0]
    over = jnp.isin(pending, eos) | (outputs.lengths >= state.requests.limits)
    return DecodeState(
      state.requests, pending, state.done | ended | over,
      # A row that is done may be full: it stays where it is.
      jnp.where(state.done, state.filled, state.filled + accepted),
      speculation.follow_first(pointer, guessed, accepted - 1, source), outputs,
      _write(state.filled, state.own, new_cache))

  return jax.lax.while_loop(continues, run_pass, state)


def _accepted(
  state: DecodeState, tokens: jax.Array, following: jax.Array, eos: jax.Array
) -> tuple[jax.Array, Outputs, jax.Array]:
  """Keeps the right tokens of a pass -> (their number i32[R], >= 1, the outputs with them, whether
  the output ended among them bool[R]).

  The pending token is kept, and so is each guess that the model makes, too, up to the first that it
  does not make. The output ends before an eos, and at its limit; then what else is kept does not
  matter.

  Args:
    state: before the pass.
    tokens: i32[R, T], the pending token and guesses.
    following: i32[R, T], the model's own token after each of them.
    eos: see `generate`.
  """
  right = jnp.cumprod(tokens[:, 1:] == following[:, :-1], axis=1)
  accepted = 1 + right.sum(axis=1)
  step = jnp.arange(tokens.shape[1])[None]
  place = state.outputs.lengths[:, None] + step
  over = jnp.isin(tokens, eos) | (place >= state.requests.limits[:, None])
  kept = step < accepted[:, None]
  written = kept & (jnp.cumsum(over, axis=1) == 0) & ~state.done[:, None]
  texts, index = state.outputs.tokens, jnp.arange(tokens.shape[0])[:, None]
  return accepted, Outputs(
    texts.at[index, jnp.where(written, place, texts.shape[1])].set(tokens, mode='drop'),
    state.outputs.lengths + written.sum(axis=1), state.outputs.passes + ~state.done), (
      kept & over).any(axis=1)


def resize(slots: int, state: DecodeState, chosen: jax.Array) -> DecodeState:
  """The state of the rows `chosen` i32[K] only, with a cache of M = `slots` slots a row.

  No filled slot may be cut off. All rows, K = R, stay in their order.
  """
  def resized(cache):
    cache = jax.lax.slice_in_dim(cache, 0, min(slots, cache.shape[-2]), axis=-2)
    return _padded(cache if len(chosen) == len(state.done) else cache[:, :, chosen], slots, axis=-2)

  rest = state._replace(own=())
  if len(chosen) < len(state.done):
    rest = jax.tree.map(lambda x: x[chosen], rest)
  return rest._replace(own=jax.tree.map(resized, state.own))


def _padded(x: jax.Array, size: int, axis: int) -> jax.Array:
  """The array with zeros appended along `axis` until it has `size` entries there."""
  more = [(0, 0)] * x.ndim
  more[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, more)


def _write(slots: jax.Array, caches, new):
  """Caches, leaves [L, KV, B, M, d], with new ones [L, KV, B, T, d] at each example's slot, i32[B].

  Row by row, which happens in place; a scatter of all rows copied the cache on CPU, a half more
  time a pass.
  """
  def put(row, cache, values):
    values = jax.lax.dynamic_slice_in_dim(values, row, 1, axis=2)
    return jax.lax.dynamic_update_slice(cache, values, (0, 0, row, slots[row], 0))

  return jax.lax.fori_loop(
    0, len(slots), lambda row, caches: jax.tree.map(partial(put, row), caches, new), caches)
