"""The device's part of reading for greedy decoding: the shared instruction, and inputs in blocks.

The instruction is read once per adapter; its keys and values [L, KV, P, d] serve all that follows.
Inputs are packed into a block of rows like examples of a training step, several in a row where they
fit, so that little padding is computed; their keys and values wait in the block until a row of the
batch is free (`decode.insert`). Letters as in `decode.py`, and Q rows of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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


class Block(NamedTuple):
  """K inputs, each with its own places of Q rows of W tokens."""

  tokens: jax.Array    # i32[Q, W]; the first token of an input is the instruction's last
  places: jax.Array    # i32[Q, W]: how many tokens of the same input come before; 0 in padding
  segments: jax.Array  # i32[Q, W]: 1, 2 ... of a row's inputs, one after the other; 0 = padding
  ends: jax.Array      # i32[K], of Q * W: the last token of each input; 0 for none


def extend(model, prefix, tokens, positions, own=None, context=(None, None), same=True):
  """tokens, positions i32[B, T] -> (hidden [B, T, D], new Cache [L, KV, B, T, d]).

  own: Cache [L, KV, B, M, d] or None. context: own_mask and own_positions of `cached_attention`.
  same: bool[B, T, T], which tokens of a row belong to one text; True = all.
  """
  batch, length = tokens.shape
  causal = jnp.broadcast_to(
    jnp.tril(jnp.ones((length, length), bool))[None] & same, (batch, length, length))
  hidden, new_cache = model.apply(
    {'params': prefix.base, 'lora': prefix.adapter}, tokens.reshape(-1), positions.reshape(-1),
    (prefix.shared, own), (causal, *context), prefix.reach)
  return hidden.reshape(*tokens.shape, -1), new_cache


def likeliest(hidden: jax.Array, base: dict) -> jax.Array:
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
  _, cache = extend(
    model, Prefix(adapter, base, None, jnp.int32(0), reach), prefix[None],
    jnp.arange(prefix.shape[0])[None])
  return jax.tree.map(lambda x: x[:, :, 0], cache)


def prefill_inputs(model: Llama, prefix: Prefix, block: Block) -> tuple[jax.Array, Cache]:
  """Reads a block -> (first token of each output i32[K], Cache [L, KV, Q, W, d] of the inputs)."""
  hidden, cache = extend(
    model, prefix, block.tokens, prefix.length + block.places,
    same=block.segments[:, :, None] == block.segments[:, None, :])
  ends = hidden.reshape(-1, hidden.shape[-1])[block.ends]
  return likeliest(ends[None], prefix.base)[0], cache
