"""Greedy decoding of a batch that shares one instruction.

The instruction is prefilled once per adapter; its keys and values [L, KV, P, d] serve every
batch. Inputs [B, T] are right-padded; generated tokens go to slots T, T+1, ... for all examples
alike, while rotary positions go on from each example's own length. The cache is read-only inside
the layer scan and new keys are written once after it, so no step copies the cache.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.model.llama import Llama, Source, attend, head_weight, heads_first


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


def greedy(
  model: Llama,
  max_new_tokens: int,
  adapter: dict,
  base: dict,
  shared: Cache | None,
  prefix_length: jax.Array,
  tokens: jax.Array,
  lengths: jax.Array,
  limits: jax.Array,
  eos: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Greedy continuations; stops as soon as every example has.

  Args:
    model: a Llama built with `cached_attention`.
    max_new_tokens: the size of the output, static.
    adapter, base: `lora` and `params` collections.
    shared: the instruction's cache from `prefill`.
    prefix_length: i32[], tokens in it.
    tokens: i32[B, T], inputs padded on the right; the first is the instruction's last token.
    lengths: i32[B], tokens of each input, >= 1; 0 marks a row that only fills the batch.
    limits: i32[B], the most tokens to generate for each example, <= max_new_tokens.
    eos: i32[E], tokens that end an output.

  Returns:
    (generated i32[B, max_new_tokens], its length i32[B] without the closing eos).
  """
  batch, width = tokens.shape
  last = jnp.maximum(lengths - 1, 0)
  slots = jnp.arange(width)
  causal = jnp.broadcast_to(jnp.tril(jnp.ones((width, width), bool)), (batch, width, width))
  hidden, kept = _extend(
    model, adapter, base, tokens, jnp.broadcast_to(prefix_length + slots, tokens.shape),
    (shared, None), (causal, None, None))
  room = ((0, 0), (0, 0), (0, 0), (0, max_new_tokens), (0, 0))
  own = jax.tree.map(lambda x: jnp.pad(x, room), kept)
  head = head_weight(base)

  def pick(hidden):
    return jnp.argmax(
      jnp.einsum('bd,vd->bv', hidden, head, preferred_element_type=jnp.float32), axis=-1
    ).astype(jnp.int32)

  first = pick(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
  alone = jnp.ones((batch, 1, 1), bool)
  all_slots = jnp.arange(width + max_new_tokens)[None]
  slot_positions = prefix_length + jnp.where(
    all_slots < width, all_slots, lengths[:, None] + all_slots - width)

  def unfinished(state):
    step, done, *_ = state
    return (step < max_new_tokens) & ~jnp.all(done)

  def step_once(state):
    step, done, token, out, counts, own = state
    ends = jnp.isin(token, eos) | (step >= limits)
    done = done | ends
    out = out.at[:, step].set(jnp.where(done, 0, token))
    counts = counts + ~done
    own_mask = (all_slots < lengths[:, None]) | (
      (all_slots >= width) & (all_slots < width + step))
    hidden, kept = _extend(
      model, adapter, base, token[:, None], (prefix_length + lengths + step)[:, None],
      (shared, own), (alone, own_mask[:, None], slot_positions))
    own = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, width + step, axis=3),
      own, kept)
    return step + 1, done, pick(hidden[:, 0]), out, counts, own

  out = jnp.zeros((batch, max_new_tokens), jnp.int32)
  state = (jnp.int32(0), lengths == 0, first, out, jnp.zeros(batch, jnp.int32), own)
  state = jax.lax.while_loop(unfinished, step_once, state)
  return state[3], state[4]


# Cached, so that the second batch of a kind finds the first one's compilation.
@cache
def prefiller(model: Llama):
  """`prefill` compiled, its static argument bound."""
  return jax.jit(partial(prefill, model))


@cache
def decoder(model: Llama, max_new_tokens: int):
  """`greedy` compiled, its static arguments bound."""
  return jax.jit(partial(greedy, model, max_new_tokens))
