"""Softmax attention over keys of several sources: a shared instruction, a cache, the new tokens.

Grouped queries: Ainslie et al., arXiv:2305.13245. Letters: B batch, T new tokens, H query heads,
KV key heads, G = H / KV, M keys, P keys shared by the batch, d width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array

# Name (jax.ad_checkpoint.checkpoint_name) of the intermediate values that `llama.REMAT` keeps for
# the backward pass: results of matrix products, which it would cost a product to compute again.
SAVED = 'saved'
# The same of those as wide as the MLP, of which 'narrow_products' keeps none.
WIDE = 'wide'


def heads_first(x: Array) -> Array:
  """Moves the axis of heads to the front, the layout of `Source`: [..., KV, d] -> [KV, ..., d]."""
  return jnp.moveaxis(x, -2, 0)


class Source(NamedTuple):
  """Keys and values that queries may attend to.

  Shared by the whole batch (k, v [KV, P, d]; mask bool[P] or bool[B, T, P]) or one per batch
  element (k, v [KV, B, M, d]; mask bool[B, T, M]). Heads lead, as the products below want them.
  """

  k: Array
  v: Array
  mask: Array


def capped(x: Array, cap: float) -> Array:
  """cap * tanh(x / cap), which stays between -cap and cap, of x [...]; cap 0 returns x as it is.

  Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118.
  """
  return cap * jnp.tanh(x / cap) if cap else x


def attend(q: Array, sources: tuple[Source, ...], cap: float = 0.0) -> Array:
  """Softmax attention of q [B, T, H, d] over the union of `sources` -> [B, T, H, d].

  Scores are `capped` first where `cap` is not 0. Every query must be allowed at least one key. The
  sources are never concatenated: their exponentials share one maximum and one denominator. Queries
  of one key head stay together, [KV, B, T*G, d], so a shared source is one large matrix product
  per key head (on CPU three times faster than an einsum that leaves the head axis inside). The
  weights are not kept for the backward pass but made again from the denominators, as in
  FlashAttention (Dao et al., arXiv:2205.14135, section 3.1, without its tiles). That gradient of
  its own has no forward mode: jax.jvp and jax.hessian refuse it.
  """
  batch, length, heads, dim = q.shape
  kv_heads = sources[0].k.shape[0]
  q = q.reshape(batch, length, kv_heads, heads // kv_heads, dim) * dim**-0.5
  q = q.transpose(2, 0, 1, 3, 4).reshape(kv_heads, batch, -1, dim)
  out = _softmax_average(cap, q, sources)
  out = out.reshape(kv_heads, batch, length, -1, dim).transpose(1, 2, 0, 3, 4)
  return out.reshape(batch, length, heads, dim)


def _against(x: Array, y: Array, dtype) -> Array:
  """x [KV, B, Q, d] times y [KV, M, d] or [KV, B, M, d] -> [KV, B, Q, M]."""
  if y.ndim == 4:
    return jnp.einsum('kbqd,kbmd->kbqm', x, y, preferred_element_type=dtype)
  flat = jnp.einsum(
    'kqd,kmd->kqm', x.reshape(x.shape[0], -1, x.shape[-1]), y, preferred_element_type=dtype)
  return flat.reshape(*x.shape[:-1], -1)


def _combined(weights: Array, y: Array) -> Array:
  """weights [KV, B, Q, M] times y [KV, M, d] or [KV, B, M, d] -> [KV, B, Q, d]."""
  if y.ndim == 4:
    return jnp.einsum('kbqm,kbmd->kbqd', weights, y)
  flat = jnp.einsum('kqm,kmd->kqd', weights.reshape(weights.shape[0], -1, weights.shape[-1]), y)
  return flat.reshape(*weights.shape[:-1], -1)


def _gathered(weights: Array, x: Array, like: Array) -> Array:
  """weights [KV, B, Q, M] and x [KV, B, Q, d] summed over queries, and over B where `like` (keys
  or values) is shared by the batch -> the shape of `like`."""
  if like.ndim == 4:
    return jnp.einsum('kbqm,kbqd->kbmd', weights, x)
  weights, x = (y.reshape(y.shape[0], -1, y.shape[-1]) for y in (weights, x))
  return jnp.einsum('kqm,kqd->kmd', weights, x)


def _masked_scores(cap: float, q: Array, source: Source, dtype) -> Array:
  """q [KV, B, T*G, d] -> capped [KV, B, T*G, M], minus infinity where the mask forbids."""
  mask = source.mask[None, None] if source.mask.ndim == 1 else (
    jnp.repeat(source.mask, q.shape[2] // source.mask.shape[1], axis=1))
  return jnp.where(mask[None], capped(_against(q, source.k, dtype), cap), -jnp.inf)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_average(cap: float, q: Array, sources: tuple[Source, ...]) -> Array:
  """q [KV, B, T*G, d], already scaled -> values averaged by softmax weights, of q's shape."""
  return _softmax_forward(cap, q, sources)[0]


def _softmax_forward(cap, q, sources):
  wide = jnp.promote_types(q.dtype, jnp.float32)
  scores = [_masked_scores(cap, q, source, wide) for source in sources]
  peak = jnp.max(jnp.stack([score.max(axis=-1) for score in scores]), axis=0)
  weights = [jnp.exp(score - peak[..., None]) for score in scores]
  total = sum(weight.sum(axis=-1) for weight in weights)
  out = sum(
    _combined(weight.astype(q.dtype), source.v)
    for weight, source in zip(weights, sources, strict=True))
  out = checkpoint_name((out / total[..., None]).astype(q.dtype), SAVED)
  log_total = checkpoint_name(peak + jnp.log(total), SAVED)
  return out, (q, sources, out, log_total)


def _softmax_backward(cap, kept, cotangent):
  q, sources, out, log_total = kept
  wide = log_total.dtype
  # The denominator's part: sum over keys of weight times its cotangent.
  mean = jnp.sum(cotangent.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
  q_grad, source_grads = jnp.zeros_like(q), []
  for source in sources:
    score = _masked_scores(cap, q, source, wide)
    weight = jnp.exp(score - log_total[..., None])
    score_grad = weight * (_against(cotangent, source.v, wide) - mean)
    if cap:
      # The slope of the tanh; a forbidden score, minus infinity, gets none.
      score_grad = score_grad * (1.0 - jnp.square(jnp.maximum(score, -cap) / cap))
    score_grad = score_grad.astype(q.dtype)
    q_grad = q_grad + _combined(score_grad, source.k)
    source_grads.append(Source(
      _gathered(score_grad, q, source.k),
      _gathered(weight.astype(q.dtype), cotangent, source.v), None))
  return q_grad, tuple(source_grads)


_softmax_average.defvjp(_softmax_forward, _softmax_backward)


class Window(NamedTuple):
  """How far back the queries of a layer see: keys less than `size` positions before them."""

  positions: Array  # i32[T], positions of the tokens of this pass
  size: Array       # i32[]

  def covers(self, queries: Array, keys: Array) -> Array:
    """Which keys lie within the window: positions i32[..., T], i32[..., M] -> bool[..., T, M].

    Keys after their query are not excluded here; a causal mask does that.
    """
    return queries[..., :, None] - keys[..., None, :] < self.size


# (q [B, T, H, d], sources, cap of the scores or 0) -> [B, T, H, d]: `attend`, or a kernel with the
# same result (`kernels.py`).
Attend = Callable[[Array, tuple[Source, ...], float], Array]

# (q [T, H, d], k, v [T, KV, d], cache of this layer, context, Window or None where every layer
# sees all, cap of the scores or 0) -> (averaged values [T, H, d], new entries of the cache or None)
Attention = Callable[[Array, Array, Array, Any, Any, Window | None, float], tuple[Array, Any]]
