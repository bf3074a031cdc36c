"""Greedy decoding of a batch that shares one instruction.

The instruction is prefilled once per adapter; its keys and values [L, KV, P, d] serve every
batch. Inputs [B, T] are right-padded; what is generated follows each example's own input in its
cache, over the padding. Each pass checks guesses at the next tokens and keeps those that are right
(`model/draft.py`). The cache is read-only inside the layer scan and new keys are written once after
it, so no pass copies the cache for that.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedmedjax.model import draft as drafting
from fedmedjax.model.attention import Source, attend, heads_first
from fedmedjax.model.llama import Llama, head_weight
from fedmedjax.model.sharding import SITE

# Shares of the longest output for which there is room in the cache, one after the other. Each
# costs a compilation of the pass.
_GROWTH = (0.25, 0.5, 1.0)


class Cache(NamedTuple):
  """Keys and values of every layer, [L, KV, P, d] (shared) or [L, KV, B, M, d]."""

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


def _extend(model, adapter, base, tokens, positions, cache, context):
  """tokens, positions i32[B, T] -> (hidden [B, T, D], new Cache [L, KV, B, T, d])."""
  hidden, kept = model.apply(
    {'params': base, 'lora': adapter}, tokens.reshape(-1), positions.reshape(-1), cache, context)
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
  length = prefix.shape[0]
  if not length:
    return None
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  _, kept = _extend(
    model, adapter, base, prefix[None], jnp.arange(length)[None], (None, None),
    (causal, None, None))
  return jax.tree.map(lambda x: x[:, :, 0], kept)


class Decoded(NamedTuple):
  """Greedy continuations of a batch."""

  tokens: jax.Array   # i32[B, max_new_tokens]
  lengths: jax.Array  # i32[B], without the closing eos
  passes: jax.Array   # i32[B], of the model, that each of them took


class _State(NamedTuple):
  """Between two passes."""

  pending: jax.Array  # i32[B]: the next token of each, which no pass has seen yet
  done: jax.Array     # bool[B]
  out: Decoded
  filled: jax.Array   # i32[B]: slots of the own cache that hold a token
  own: Cache
  trail: drafting.Trail


def greedy(
  model: Llama,
  max_new_tokens: int,
  guesses: int,
  adapter: dict,
  base: dict,
  shared: Cache | None,
  prefix_length: jax.Array,
  tokens: jax.Array,
  lengths: jax.Array,
  limits: jax.Array,
  eos: jax.Array,
  pieces: jax.Array,
) -> Decoded:
  """Greedy continuations; stops as soon as every example has.

  Args:
    model: a Llama built with `cached_attention`.
    max_new_tokens: the size of the output, static.
    guesses: tokens guessed and checked in each pass beside the one that it makes, static. They
      change the number of passes only (and, by rounding, a choice between equal logits).
    adapter, base: `lora` and `params` collections.
    shared: the instruction's cache from `prefill`.
    prefix_length: i32[], tokens in it.
    tokens: i32[B, T], inputs padded on the right; the first is the instruction's last token.
    lengths: i32[B], tokens of each input, >= 1; 0 marks a row that only fills the batch.
    limits: i32[B], the most tokens to generate for each example, <= max_new_tokens.
    eos: i32[E], tokens that end an output.
    pieces: i32[H], H >= 1, see `model/draft.py`.
  """
  batch, width = tokens.shape

  def extend(tokens, positions, own, own_mask, own_positions):
    length = tokens.shape[1]
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    return _extend(model, adapter, base, tokens, positions, (shared, own), (
      causal, own_mask, own_positions))

  def over(pending, out):
    return jnp.isin(pending, eos) | (out.lengths >= limits)

  places = jnp.broadcast_to(prefix_length + jnp.arange(width), tokens.shape)
  hidden, kept = extend(tokens, places, None, None, None)
  last = jnp.maximum(lengths - 1, 0)
  first = _likeliest(jnp.take_along_axis(hidden, last[:, None, None], axis=1), base)[:, 0]
  steps = jnp.arange(guesses + 1)[None]

  def one_pass(state: _State) -> _State:
    trail = drafting.follow(state.trail, state.pending, tokens, lengths)
    guessed = drafting.draft(trail, tokens, lengths, pieces, guesses)
    said = jnp.concatenate([state.pending[:, None], guessed], axis=1)
    slots = jnp.arange(state.own.k.shape[-2])[None]
    own_mask = jnp.repeat((slots < state.filled[:, None])[:, None], guesses + 1, axis=1)
    hidden, kept = extend(
      said, prefix_length + state.filled[:, None] + steps, state.own, own_mask,
      jnp.broadcast_to(prefix_length + slots, (batch, slots.size)))
    following = _likeliest(hidden, base)
    accepted, out, ended = _accepted(state, said, following, eos, limits)
    pending = jnp.take_along_axis(following, accepted[:, None] - 1, axis=1)[:, 0]
    return _State(
      pending, state.done | ended | over(pending, out), out,
      jnp.minimum(state.filled + accepted, width + max_new_tokens),
      _write(state.filled, state.own, kept),
      drafting.follow_first(trail, guessed, accepted - 1, tokens, lengths))

  none = jnp.zeros(batch, jnp.int32)
  nothing = Decoded(jnp.zeros((batch, max_new_tokens), jnp.int32), none, none)
  state = _State(
    first, (lengths == 0) | over(first, nothing), nothing, lengths, kept, drafting.start(batch))
  for share in _GROWTH:
    state = _passes(
      one_pass, state, width + math.ceil(share * max_new_tokens) + guesses + 1, guesses)
  return state.out


def _passes(one_pass: Callable, state: _State, slots: int, guesses: int) -> _State:
  """As many passes as are needed and as a cache of so many slots has room for.

  A pass reads all of the cache, filled or not, so that it grows only when it must.
  """
  def fits(state: _State) -> jax.Array:
    filled = jnp.max(jnp.where(state.done, 0, state.filled))
    return jnp.any(~state.done) & (filled + guesses < slots)

  own = jax.tree.map(partial(_grow, slots), state.own)
  return jax.lax.while_loop(fits, one_pass, state._replace(own=own))


def _accepted(
  state: _State, said: jax.Array, following: jax.Array, eos: jax.Array, limits: jax.Array
) -> tuple[jax.Array, Decoded, jax.Array]:
  """What of a pass is kept -> (how many of its tokens i32[B], >= 1, the output with them, whether
  it ended among them bool[B]).

  The pending token is, and so is each guess that the model makes, too, up to the first that it does
  not make. The output ends before an eos, and at its limit; then what else is kept does not matter.

  Args:
    state: before the pass.
    said: i32[B, T], the pending token and guesses.
    following: i32[B, T], what the model says after each of them.
    eos, limits: see `greedy`.
  """
  right = jnp.cumprod(said[:, 1:] == following[:, :-1], axis=1)
  accepted = 1 + right.sum(axis=1)
  step = jnp.arange(said.shape[1])[None]
  place = state.out.lengths[:, None] + step
  over = jnp.isin(said, eos) | (place >= limits[:, None])
  kept = step < accepted[:, None]
  written = kept & (jnp.cumsum(over, axis=1) == 0) & ~state.done[:, None]
  tokens, rows = state.out.tokens, jnp.arange(said.shape[0])[:, None]
  return accepted, Decoded(
    tokens.at[rows, jnp.where(written, place, tokens.shape[1])].set(said, mode='drop'),
    state.out.lengths + written.sum(axis=1), state.out.passes + ~state.done), (
      kept & over).any(axis=1)


def _grow(slots: int, cache: jax.Array) -> jax.Array:
  """[..., M, d] -> [..., slots, d], zeros behind."""
  more = slots - cache.shape[-2]
  return jnp.pad(cache, ((0, 0),) * (cache.ndim - 2) + ((0, more), (0, 0)))


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


# Cached, so that the second batch of a kind finds the first one's compilation.
@cache
def prefiller(model: Llama):
  """`prefill` compiled, its static argument bound."""
  return jax.jit(partial(prefill, model))


@cache
def decoder(model: Llama, max_new_tokens: int, guesses: int, mesh: Mesh | None = None):
  """`greedy` compiled, its static arguments bound.

  On a mesh, each copy of the base continues its share of the rows, and ends with them; there must
  be a multiple of mesh.shape['site'] of them. Within a copy kernels stay where they are and the
  compiler adds up what their parts give (`model` has no `fetch`): a pass has few tokens, so that is
  less to send than a layer.
  """
  continued = partial(greedy, model, max_new_tokens, guesses)
  if mesh is not None and mesh.shape[SITE] > 1:
    # adapter, base, shared, prefix_length; tokens, lengths, limits; eos, pieces.
    rows = (P(),) * 4 + (P(SITE),) * 3 + (P(),) * 2
    continued = jax.shard_map(
      continued, mesh=mesh, axis_names={SITE}, in_specs=rows, out_specs=P(SITE),
      check_vma=False)
  return jax.jit(continued)
