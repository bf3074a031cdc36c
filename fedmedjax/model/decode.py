"""The device's part of greedy decoding after one shared instruction; `batching.py` drives it.

The instruction is prefilled once per adapter; its keys and values [L, KV, P, d] serve all rows.
A batch has R rows, each of which continues an example or is free: an example's output tokens follow
its own input in its row of the cache. Each pass checks guesses at the next tokens and keeps those
that are right (`speculation.py`). The cache is read-only inside the layer scan and new keys are
written once after it, so no pass copies the cache for that.

Letters beside those of `types.py`: B rows of a pass, T tokens of a row in it, K requests, W tokens
of an input, KV key heads, d width of a head, M slots of a row of the cache, E end tokens. In this
file N is the most output tokens of a row.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.model import speculation
from fedmedjax.model.attention import Source, attend, heads_first
from fedmedjax.model.llama import Llama, head_weight


class Cache(NamedTuple):
  """Keys and values of every layer: of the shared instruction, or of each row of a batch."""

  k: jax.Array  # [L, KV, P, d] of the instruction, or [L, KV, R, M, d] of the rows
  v: jax.Array  # of the same shape


def cached_attention(q, k, v, cache, context, window=None, cap=0.0):
  """Attention of new tokens to themselves and to what the caches hold: an `attention.Attention`.

  Args:
    q: [B*T, H, d], queries of the new tokens, row after row.
    k, v: [B*T, KV, d], their keys and values.
    cache: (shared Cache or None, the rows' own Cache or None) of this layer.
    context: (new_mask bool[B, T, T] among the new tokens, own_mask bool[B, T, M] or None,
      own_positions i32[B, M] or None).
    window: `attention.Window` of a layer that does not see everything, positions i32[B*T].
    cap: of the scores, see `attention.capped`.

  Returns:
    (averaged values [B*T, H, d], Cache [KV, B, T, d] of the new tokens, to be kept).
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
  out = attend(q, tuple(sources), cap)
  return out.reshape(batch * length, *out.shape[2:]), Cache(k, v)


class Prefix(NamedTuple):
  """What every row continues: the instruction, as a model has read it, and that model's weights."""

  adapter: dict         # the `lora` collection, leaves [L, *p]; {} is the base model alone
  base: dict            # the `params` collection, leaves of layers [L, ...]
  shared: Cache | None  # [L, KV, P, d], from `prefill`; None for an empty instruction
  length: jax.Array     # i32[], P: tokens in it
  reach: jax.Array | None = None  # i32[], see `rotary.rope`; of a model with long_rope_divisors


class Requests(NamedTuple):
  """K examples to be continued; the first token of each is the instruction's last."""

  tokens: jax.Array   # i32[K, W], padded on the right
  lengths: jax.Array  # i32[K], >= 1; 0 marks a row that only fills the batch
  limits: jax.Array   # i32[K], the most tokens to generate


class Outputs(NamedTuple):
  """Greedy continuations of R rows."""

  tokens: jax.Array   # i32[R, N]
  lengths: jax.Array  # i32[R], without the closing eos
  passes: jax.Array   # i32[R], passes of the model that each of them took


class DecodeState(NamedTuple):
  """R rows between two passes of the model."""

  requests: Requests  # i32[R, W] and i32[R]: the example of each row
  pending: jax.Array  # i32[R]: the next token of each row, which no pass has computed keys for yet
  done: jax.Array     # bool[R]: the row's output has ended, or the row never had an example
  filled: jax.Array   # i32[R]: slots of the cache that hold a token
  pointer: speculation.CopyPointer  # leaves [R, ...]: the place in the input that is copied next
  outputs: Outputs    # i32[R, N] and i32[R]
  own: Cache          # [L, KV, R, M, d]: keys and values of each row's input and output


def _extend(model, prefix, tokens, positions, own, context):
  """tokens, positions i32[B, T] -> (hidden [B, T, D], new Cache [L, KV, B, T, d]).

  own: Cache [L, KV, B, M, d] or None. context: own_mask and own_positions of `cached_attention`.
  """
  batch, length = tokens.shape
  causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
  hidden, new_cache = model.apply(
    {'params': prefix.base, 'lora': prefix.adapter}, tokens.reshape(-1), positions.reshape(-1),
    (prefix.shared, own), (causal, *context), prefix.reach)
  return hidden.reshape(*tokens.shape, -1), new_cache


def _likeliest(hidden: jax.Array, base: dict) -> jax.Array:
  """[B, T, D] -> i32[B, T]: the token of the highest logit, which a cap of the logits keeps."""
  head = head_weight(base)
  logits = jnp.einsum(
    'btd,vd->btv', hidden.astype(head.dtype), head, preferred_element_type=jnp.float32)
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def prefill(model: Llama, adapter: dict, base: dict, prefix: jax.Array, reach=None) -> Cache | None:
  """Computes the instruction's keys and values: i32[P] -> Cache [L, KV, P, d], None when P = 0.

  Args:
    model: a Llama built with `cached_attention`.
    adapter, base: see `Prefix`.
    prefix: i32[P], the instruction without its last token and without padding.
    reach: see `Prefix`.
  """
  if not prefix.shape[0]:
    return None
  _, cache = _extend(
    model, Prefix(adapter, base, None, jnp.int32(0), reach), prefix[None],
    jnp.arange(prefix.shape[0])[None], None, (None, None))
  return jax.tree.map(lambda x: x[:, :, 0], cache)


def begin(model: Llama, rows: int, width: int, most: int, slots: int) -> DecodeState:
  """A state of R free rows, with zeros in its cache [L, KV, R, M, d].

  Args:
    model: a Llama built with `cached_attention`.
    rows, width, most, slots: R, W, N and M: numbers of rows, of tokens of an input and of an
      output, and of slots of a row's cache.
  """
  config, none = model.config, jnp.zeros(rows, jnp.int32)
  keys = jnp.zeros(
    (config.num_layers, config.num_kv_heads, rows, slots, config.head_dim), model.dtype)
  return DecodeState(
    Requests(jnp.zeros((rows, width), jnp.int32), none, none), none, jnp.ones(rows, bool), none,
    speculation.start(rows), Outputs(jnp.zeros((rows, most), jnp.int32), none, none),
    Cache(keys, keys))


def prefill_inputs(model: Llama, prefix: Prefix, requests: Requests) -> tuple[jax.Array, Cache]:
  """Computes K inputs -> (first token of each output i32[K], inputs' Cache [L, KV, K, W, d])."""
  positions = jnp.broadcast_to(
    prefix.length + jnp.arange(requests.tokens.shape[1]), requests.tokens.shape)
  hidden, cache = _extend(model, prefix, requests.tokens, positions, None, (None, None))
  last = jnp.maximum(requests.lengths - 1, 0)
  ends = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
  return _likeliest(ends, prefix.base)[:, 0], cache


def insert(
  state: DecodeState, places: jax.Array, requests: Requests, first: jax.Array, inputs: Cache,
  eos: jax.Array,
) -> DecodeState:
  """The state with K examples put into its rows `places`.

  Args:
    state: R rows, W tokens of an input and M slots at most.
    places: i32[K], free rows; R or more for those of `requests` that only fill the batch.
    requests: i32[K, T], T <= W and T <= M.
    first, inputs: i32[K] and [L, KV, K, T, d], of `prefill_inputs`.
    eos: i32[E], tokens that end an output.
  """
  count, width = len(places), state.requests.tokens.shape[1]
  fresh = DecodeState(
    requests._replace(tokens=_padded(requests.tokens, width, axis=1)), first,
    (requests.lengths == 0) | (requests.limits <= 0) | jnp.isin(first, eos), requests.lengths,
    speculation.start(count),
    jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), state.outputs), ())
  inserted = jax.tree.map(
    lambda x, new: x.at[places].set(new, mode='drop'), state._replace(own=()), fresh)

  def put(index, caches):
    place = jnp.minimum(places[index], len(state.done) - 1)

    def put_leaf(cache, new):
      new = jax.lax.dynamic_slice_in_dim(new, index, 1, axis=2)
      old = jax.lax.dynamic_slice(cache, (0, 0, place, 0, 0), new.shape)
      return jax.lax.dynamic_update_slice(
        cache, jnp.where(places[index] == place, new, old), (0, 0, place, 0, 0))

    return jax.tree.map(put_leaf, caches, inputs)

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
  source = (state.requests.tokens, state.requests.lengths)

  def continues(state: DecodeState) -> jax.Array:
    filled = jnp.max(jnp.where(state.done, 0, state.filled))
    return (jnp.sum(~state.done) > until[0]) & (filled + guesses < slots.size)

  def run_pass(state: DecodeState) -> DecodeState:
    pointer = speculation.follow(state.pointer, state.pending, *source)
    guessed = speculation.draft(pointer, *source, pieces, guesses)
    tokens = jnp.concatenate([state.pending[:, None], guessed], axis=1)
    positions = prefix.length + state.filled[:, None] + steps
    mask = jnp.repeat((slots < state.filled[:, None])[:, None], guesses + 1, axis=1)
    hidden, new_cache = _extend(
      model, prefix, tokens, positions, state.own,
      (mask, jnp.broadcast_to(prefix.length + slots, mask[:, 0].shape)))
    following = _likeliest(hidden, prefix.base)
    accepted, outputs, ended = _accepted(state, tokens, following, eos)
    pending = jnp.take_along_axis(following, accepted[:, None] - 1, axis=1)[:, 0]
    over = jnp.isin(pending, eos) | (outputs.lengths >= state.requests.limits)
    return DecodeState(
      state.requests, pending, state.done | ended | over,
      # A row that is done may be full: it stays where it is.
      jnp.where(state.done, state.filled, state.filled + accepted),
      speculation.follow_first(pointer, guessed, accepted - 1, *source), outputs,
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
