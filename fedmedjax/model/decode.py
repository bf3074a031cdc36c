"""The device's part of greedy decoding behind one shared instruction; `batching.py` drives it.

The instruction is prefilled once per adapter; its keys and values [L, KV, P, d] serve all rows.
A batch has R rows, each of which continues an example or is free: what an example says follows its
own input in its row of the cache. Each pass checks guesses at the next tokens and keeps those that
are right (`model/speculation.py`). The cache is read-only inside the layer scan and new keys are
written once after it, so no pass copies the cache for that.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.model import speculation as drafting
from fedmedjax.model.attention import Source, attend, heads_first
from fedmedjax.model.llama import Llama, head_weight


class Cache(NamedTuple):
  """Keys and values of every layer, [L, KV, P, d] (shared) or [L, KV, R, M, d]."""

  k: jax.Array
  v: jax.Array


def cached_attention(q, k, v, cache, context, window=None):
  """Attention of new tokens (an `Attention` of `model/llama.py`).

  cache: (shared Cache or None, own Cache or None) of this layer.
  context: (new_mask bool[B, T, T] among the new tokens, own_mask bool[B, T, M] or None,
    own_positions i32[B, M] or None).
  q, k, v hold B*T tokens; returns the new keys and values to be kept, [KV, B, T, d].
  """
  shared, own = cache
  new_mask, own_mask, own_positions = context
  batch, length = new_mask.shape[:2]
  q, k, v = (x.reshape(batch, length, *x.shape[1:]) for x in (q, k, v))
  k, v = heads_first(k), heads_first(v)
  shared_mask = None if shared is None else jnp.ones(shared.k.shape[1], bool)
  if window is not None:
    at = window.positions.reshape(batch, length)
    new_mask = new_mask & window.covers(at, at)
    if own is not None:
      own_mask = own_mask & window.covers(at, own_positions)
    if shared is not None:
      shared_mask = window.covers(at, jnp.arange(shared.k.shape[1])[None])
  sources = [Source(k, v, new_mask)]
  if own is not None:
    sources.append(Source(own.k, own.v, own_mask))
  if shared is not None:
    sources.append(Source(shared.k, shared.v, shared_mask))
  out = attend(q, tuple(sources))
  return out.reshape(batch * length, *out.shape[2:]), Cache(k, v)


class Behind(NamedTuple):
  """What every row is behind: the instruction, as a model has read it."""

  adapter: dict         # the `lora` collection; {} is the base model alone
  base: dict            # the `params` collection
  shared: Cache | None  # the instruction's, from `prefill`
  length: jax.Array     # i32[], tokens in it


class Asked(NamedTuple):
  """K examples; the first token of each is the instruction's last."""

  tokens: jax.Array   # i32[K, T], padded on the right
  lengths: jax.Array  # i32[K], >= 1; 0 marks a row that only fills the batch
  limits: jax.Array   # i32[K], the most tokens to generate


class Said(NamedTuple):
  """Greedy continuations of R rows."""

  tokens: jax.Array   # i32[R, N]
  lengths: jax.Array  # i32[R], without the closing eos
  passes: jax.Array   # i32[R], of the model, that each of them took


class Rows(NamedTuple):
  """Between two passes of the model."""

  asked: Asked        # [R, W]
  pending: jax.Array  # i32[R]: the next token of each, which no pass has seen yet
  done: jax.Array     # bool[R]: ended, or never taken
  filled: jax.Array   # i32[R]: slots of the cache that hold a token
  trail: drafting.Trail
  said: Said
  own: Cache          # [L, KV, R, M, d]


def _extend(model, behind, tokens, positions, own, context):
  """tokens, positions i32[B, T] -> (hidden [B, T, D], new Cache [L, KV, B, T, d]).

  own: Cache [L, KV, B, M, d] or None. context: own_mask and own_positions of `cached_attention`.
  """
  batch, length = tokens.shape
  causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
  hidden, kept = model.apply(
    {'params': behind.base, 'lora': behind.adapter}, tokens.reshape(-1), positions.reshape(-1),
    (behind.shared, own), (causal, *context))
  return hidden.reshape(*tokens.shape, -1), kept


def _likeliest(hidden: jax.Array, base: dict) -> jax.Array:
  """[B, T, D] -> i32[B, T]: the token of the highest logit."""
  logits = jnp.einsum(
    'btd,vd->btv', hidden, head_weight(base), preferred_element_type=jnp.float32)
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def prefill(model: Llama, adapter: dict, base: dict, prefix: jax.Array) -> Cache | None:
  """prefix i32[P] (without its last token, no padding) -> its Cache [L, KV, P, d].

  None when the prefix is empty.
  """
  if not prefix.shape[0]:
    return None
  _, kept = _extend(
    model, Behind(adapter, base, None, jnp.int32(0)), prefix[None],
    jnp.arange(prefix.shape[0])[None], None, (None, None))
  return jax.tree.map(lambda x: x[:, :, 0], kept)


def begin(model: Llama, rows: int, width: int, most: int, slots: int) -> Rows:
  """So many free rows, with room for inputs of `width` and outputs of `most` tokens."""
  config, none = model.config, jnp.zeros(rows, jnp.int32)
  keys = jnp.zeros(
    (config.num_layers, config.num_kv_heads, rows, slots, config.head_dim), model.dtype)
  return Rows(
    Asked(jnp.zeros((rows, width), jnp.int32), none, none), none, jnp.ones(rows, bool), none,
    drafting.start(rows), Said(jnp.zeros((rows, most), jnp.int32), none, none), Cache(keys, keys))


def read(model: Llama, behind: Behind, asked: Asked) -> tuple[jax.Array, Cache]:
  """Reads K inputs -> (the token that follows each i32[K], their Cache [L, KV, K, T, d])."""
  places = jnp.broadcast_to(
    behind.length + jnp.arange(asked.tokens.shape[1]), asked.tokens.shape)
  hidden, kept = _extend(model, behind, asked.tokens, places, None, (None, None))
  last = jnp.maximum(asked.lengths - 1, 0)
  ends = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
  return _likeliest(ends, behind.base)[:, 0], kept


def take(
  rows: Rows, places: jax.Array, asked: Asked, first: jax.Array, kept: Cache, eos: jax.Array
) -> Rows:
  """`rows` with K examples in the rows `places`.

  Args:
    places: i32[K], free rows; R or more for those of `asked` that only fill the batch.
    asked: T <= W and T <= M.
    first, kept: of `read`.
    eos: i32[E], tokens that end an output.
  """
  count = len(places)
  fresh = Rows(
    asked._replace(tokens=_grown(asked.tokens, rows.asked.tokens.shape[1], axis=1)), first,
    (asked.lengths == 0) | (asked.limits <= 0) | jnp.isin(first, eos), asked.lengths,
    drafting.start(count),
    jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), rows.said), ())
  held = jax.tree.map(
    lambda x, new: x.at[places].set(new, mode='drop'), rows._replace(own=()), fresh)

  def put(index, caches):
    place = jnp.minimum(places[index], len(rows.done) - 1)

    def one(cache, new):
      new = jax.lax.dynamic_slice_in_dim(new, index, 1, axis=2)
      held = jax.lax.dynamic_slice(cache, (0, 0, place, 0, 0), new.shape)
      return jax.lax.dynamic_update_slice(
        cache, jnp.where(places[index] == place, new, held), (0, 0, place, 0, 0))

    return jax.tree.map(one, caches, kept)

  return held._replace(own=jax.lax.fori_loop(0, count, put, rows.own))


def go_on(
  model: Llama, guesses: int, behind: Behind, eos: jax.Array, pieces: jax.Array, rows: Rows,
  until: jax.Array,
) -> Rows:
  """Passes until at most `until` i32[1] rows are not done, or one has no room in the cache.

  A pass computes all rows, done or not, and reads all of the cache, filled or not.

  Args:
    model: a Llama built with `cached_attention`.
    guesses: tokens guessed and checked in each pass beside the one that it makes, static. They
      change the number of passes only (and, by rounding, a choice between equal logits).
    behind: what the rows follow.
    eos: i32[E], tokens that end an output.
    pieces: i32[H], H >= 1, see `model/speculation.py`.
    rows: a pass needs guesses + 1 slots in every row that is not done.
  """
  slots = jnp.arange(rows.own.k.shape[-2])[None]
  steps = jnp.arange(guesses + 1)[None]
  source = (rows.asked.tokens, rows.asked.lengths)

  def goes_on(rows: Rows) -> jax.Array:
    filled = jnp.max(jnp.where(rows.done, 0, rows.filled))
    return (jnp.sum(~rows.done) > until[0]) & (filled + guesses < slots.size)

  def one_pass(rows: Rows) -> Rows:
    trail = drafting.follow(rows.trail, rows.pending, *source)
    guessed = drafting.draft(trail, *source, pieces, guesses)
    tokens = jnp.concatenate([rows.pending[:, None], guessed], axis=1)
    filled = behind.length + rows.filled[:, None]
    mask = jnp.repeat((slots < rows.filled[:, None])[:, None], guesses + 1, axis=1)
    hidden, kept = _extend(
      model, behind, tokens, filled + steps, rows.own,
      (mask, jnp.broadcast_to(behind.length + slots, mask[:, 0].shape)))
    following = _likeliest(hidden, behind.base)
    accepted, said, ended = _accepted(rows, tokens, following, eos)
    pending = jnp.take_along_axis(following, accepted[:, None] - 1, axis=1)[:, 0]
    over = jnp.isin(pending, eos) | (said.lengths >= rows.asked.limits)
    return Rows(
      rows.asked, pending, rows.done | ended | over,
      # A row that is done may be full: it stays where it is.
      jnp.where(rows.done, rows.filled, rows.filled + accepted),
      drafting.follow_first(trail, guessed, accepted - 1, *source), said,
      _write(rows.filled, rows.own, kept))

  return jax.lax.while_loop(goes_on, one_pass, rows)


def _accepted(
  rows: Rows, tokens: jax.Array, following: jax.Array, eos: jax.Array
) -> tuple[jax.Array, Said, jax.Array]:
  """What of a pass is kept -> (how many of its tokens i32[R], >= 1, the output with them, whether
  it ended among them bool[R]).

  The pending token is, and so is each guess that the model makes, too, up to the first that it does
  not make. The output ends before an eos, and at its limit; then what else is kept does not matter.

  Args:
    rows: before the pass.
    tokens: i32[R, T], the pending token and guesses.
    following: i32[R, T], what the model says after each of them.
    eos: see `go_on`.
  """
  right = jnp.cumprod(tokens[:, 1:] == following[:, :-1], axis=1)
  accepted = 1 + right.sum(axis=1)
  step = jnp.arange(tokens.shape[1])[None]
  place = rows.said.lengths[:, None] + step
  over = jnp.isin(tokens, eos) | (place >= rows.asked.limits[:, None])
  kept = step < accepted[:, None]
  written = kept & (jnp.cumsum(over, axis=1) == 0) & ~rows.done[:, None]
  held, index = rows.said.tokens, jnp.arange(tokens.shape[0])[:, None]
  return accepted, Said(
    held.at[index, jnp.where(written, place, held.shape[1])].set(tokens, mode='drop'),
    rows.said.lengths + written.sum(axis=1), rows.said.passes + ~rows.done), (
      kept & over).any(axis=1)


def fitted(slots: int, rows: Rows, chosen: jax.Array) -> Rows:
  """The rows `chosen` i32[R'] only, with a cache of so many slots, of which none that is filled may
  be cut off. All rows, R' = R, stay in their order.
  """
  def sized(cache):
    cache = jax.lax.slice_in_dim(cache, 0, min(slots, cache.shape[-2]), axis=-2)
    return _grown(cache if len(chosen) == len(rows.done) else cache[:, :, chosen], slots, axis=-2)

  held = rows._replace(own=())
  if len(chosen) < len(rows.done):
    held = jax.tree.map(lambda x: x[chosen], held)
  return held._replace(own=jax.tree.map(sized, rows.own))


def _grown(x: jax.Array, size: int, axis: int) -> jax.Array:
  """Zeros behind."""
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
