"""Compression of a site's update before it is sent: clipping, sparsifying, rounding.

A codec turns a tensor into the arrays that travel, packed to bytes, and back. `compress` wraps a
codec as an optax transformation whose result is what the server reads, and `fed/ledger.py` counts
the bytes of the same arrays: the simulated message and the charged message cannot differ.
Rounding is stochastic, so that the mean of the rounded value is the value. The randomness comes
from the keyword `key` of `update`; a transformation keeps no random state, and the caller gives
each (round, site) a key of its own.
In the shapes, n is the number of values of one flattened tensor.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

# Bits of a float32 that a bfloat16 lacks.
_LOST_BITS = 16

# A codec that is asked for again is the same one, so that `ledger.py` counts the bytes of a tensor
# once in a process.

# The arrays that travel in place of one tensor, by name; a value may be such a dictionary itself.
Parts = dict[str, Any]


class Encode(Protocol):
  """The sending half of a codec, f32[n] -> arrays."""

  def __call__(self, x: jax.Array, key: jax.Array, /) -> Parts:
    """(x f32[n], key) -> {part: array}; `key` is the PRNG key of stochastic rounding."""


class Decode(Protocol):
  """The receiving half of a codec, arrays -> f32[n]."""

  def __call__(self, parts: Parts, n: int, /) -> jax.Array:
    """(parts, n) -> f32[n], the values that the receiver uses."""


class Codec(NamedTuple):
  """How one tensor, flattened to f32[n], travels; all shapes follow from n alone.

  The arrays are exactly the bytes sent. What both ends know already (n, the number of values
  kept, the block size) is not in them.
  """

  name: str
  encode: Encode
  decode: Decode


class ErrorFeedbackState(NamedTuple):
  """One site's state of `with_error_feedback`; the residual has the shape of the update, [*p]."""

  residual: Any      # [*p], the part of past updates that has not been sent yet
  inner: Any         # state of the transformation that compresses


@cache
def float32() -> Codec:
  """f32[n] -> f32[n]: four bytes a value, unchanged; the neutral element among the codecs."""
  return Codec('float32', lambda x, key: {'values': x}, lambda parts, n: parts['values'])


@cache
def bfloat16() -> Codec:
  """f32[n] -> bf16[n]: two bytes a value, the upper half of each float32.

  A value is rounded up with a probability proportional to its lower half, so the mean is exact.
  Values that are not finite stay so.
  """

  def encode(x, key):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> _LOST_BITS
    up = jax.lax.bitcast_convert_type(
      ((bits + noise) >> _LOST_BITS).astype(jnp.uint16), jnp.bfloat16)
    # Noise would carry a NaN's bits over into the sign of a zero.
    return {'values': jnp.where(jnp.isfinite(x), up, x.astype(jnp.bfloat16))}

  return Codec('bfloat16', encode, lambda parts, n: parts['values'].astype(jnp.float32))


@cache
def quantised(bits: int, block: int = 0) -> Codec:
  """f32[n] -> u8[ceil(n * bits / 8)] codes and f32[ceil(n / block)] scales.

  A value is an integer in -q .. q, q = 2^(bits-1) - 1, times its block's scale max |x| / q.
  Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
  NeurIPS 2017, arXiv:1610.02132. We deviate in two ways. A bucket is scaled by its largest value
  rather than its norm, as in the paper's experiments. The integers have a fixed width instead of
  Elias codes, so that a message's length is known in advance.

  Args:
    bits: 2, 4 or 8 bits a value, several values to a byte; q is the paper's s.
    block: number of neighbours in the flattened tensor that share a scale, the paper's bucket
      size d; 0 = one scale for the whole tensor.
  """
  levels = 2 ** (bits - 1) - 1

  def encode(x, key):
    rows = _blocks(x, block)
    scales = jnp.max(jnp.abs(rows), axis=1) / levels
    ticks = rows / jnp.where(scales, scales, jnp.inf)[:, None]
    low = jnp.floor(ticks)
    codes = low + (jax.random.uniform(key, rows.shape) < ticks - low)
    codes = jnp.clip(codes, -levels, levels) + levels
    return {'scales': scales, 'codes': _pack(codes.reshape(-1)[:x.size].astype(jnp.uint8), bits)}

  def decode(parts, n):
    codes = _unpack(parts['codes'], n, bits).astype(jnp.float32) - levels
    return _scaled(codes, parts['scales'], block)

  return Codec(f'int{bits}', encode, decode)


@cache
def sign(block: int = 0) -> Codec:
  """f32[n] -> u8[ceil(n / 8)] signs and f32[ceil(n / block)] scales, the mean |x| of a block.

  Its mean is not the value (biased), so it should be combined with error feedback.
  Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
  2019, arXiv:1901.09847: C(p) = |p|_1 / d * sign(p). A zero counts as positive.

  Args:
    block: number of neighbours that share a scale, the paper's d; 0 = one scale for the tensor.
  """

  def encode(x, key):
    del key
    rows = _blocks(x, block)
    counts = _blocks(jnp.ones_like(x), block).sum(axis=1)
    return {'scales': jnp.abs(rows).sum(axis=1) / counts, 'codes': _pack(x >= 0, 1)}

  def decode(parts, n):
    return _scaled(2.0 * _unpack(parts['codes'], n, 1) - 1.0, parts['scales'], block)

  return Codec('sign', encode, decode)


@cache
def top_k(share: float, values: Codec) -> Codec:
  """f32[n] -> the k = max(1, round(share * n)) values of largest magnitude; the others read as 0.

  Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599. With values = sign()
  it is the ternary compression of Sattler et al., "Robust and Communication-Efficient Federated
  Learning from Non-IID Data", arXiv:1903.02891, without its Golomb code. The places of the k
  values are sent as indices u16[k] or u32[k], or as a mask of one bit a value, u8[ceil(n / 8)],
  whichever is shorter.

  Args:
    share: k / n, in (0, 1]; 1 = the codec `values` alone.
    values: codec of the k values that are sent, in the order of the tensor.
  """
  if share >= 1:
    return values

  def num_kept(n):
    return min(n, max(1, round(share * n)))

  def index_type(n):
    """The dtype of the indices; None when a mask is shorter."""
    dtype = jnp.uint16 if n <= 2 ** 16 else jnp.uint32
    return dtype if num_kept(n) * dtype(0).itemsize < math.ceil(n / 8) else None

  def encode(x, key):
    _, index = jax.lax.top_k(jnp.abs(x), num_kept(x.size))
    index = jnp.sort(index)
    dtype = index_type(x.size)
    places = {'indices': index.astype(dtype)} if dtype else {
      'mask': _pack(jnp.zeros(x.size, jnp.uint8).at[index].set(1), 1)}
    return places | {'kept': values.encode(x[index], key)}

  def decode(parts, n):
    if index_type(n):
      index = parts['indices'].astype(jnp.int32)
    else:
      index = jnp.flatnonzero(_unpack(parts['mask'], n, 1), size=num_kept(n))
    return jnp.zeros(n).at[index].set(values.decode(parts['kept'], num_kept(n)))

  return Codec(f'top {share:g} {values.name}', encode, decode)


def compress(codec: Codec) -> optax.GradientTransformationExtraArgs:
  """[*p] -> [*p]: every leaf encoded and decoded again, so the result is what the server reads.

  There is no state. `update` requires the keyword `key`, the PRNG key of this round and site.
  """

  def update(updates, state, params=None, *, key, **_):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    received = []
    for number, leaf in enumerate(leaves):
      flat = leaf.reshape(-1).astype(jnp.float32)
      sent = codec.encode(flat, jax.random.fold_in(key, number))
      received.append(codec.decode(sent, leaf.size).reshape(leaf.shape).astype(leaf.dtype))
    return treedef.unflatten(received), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def with_error_feedback(
  inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """[*p] -> [*p]: the part of an update that `inner` leaves out is added to the next round's.

  Seide et al., "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
  Distributed Training of Speech DNNs", Interspeech 2014; Karimireddy et al., "Error Feedback
  Fixes SignSGD and other Gradient Compression Schemes", arXiv:1901.09847, algorithm 2:
  p = update + e, sent = C(p), e <- p - sent, where C is `inner` and e is `residual` [*p]. We
  deviate in that the unit is a round's update, not a step's gradient, and that e keeps its value
  while its site is not in the cohort.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return ErrorFeedbackState(jax.tree.map(jnp.zeros_like, params), inner.init(params))

  def update(updates, state, params=None, **extra):
    owed = jax.tree.map(jnp.add, updates, state.residual)
    sent, inner_state = inner.update(owed, state.inner, params, **extra)
    # An infinite or NaN residual of one diverged round would spoil all later rounds of the site.
    residual = jax.tree.map(
      lambda p, s: jnp.where(jnp.isfinite(p) & jnp.isfinite(s), p - s, 0), owed, sent)
    return sent, ErrorFeedbackState(residual, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def outbound(
  codec: Codec, *, clip_norm: float = 0.0, error_feedback: bool = False
) -> optax.GradientTransformationExtraArgs:
  """[*p] -> [*p]: a site's update clipped, then compressed, as the server reads it.

  Clipping comes before the error feedback: it bounds what a site learns in a round. The norm of
  the message may exceed the bound by the residual of earlier rounds.

  Args:
    codec: how the tensors travel.
    clip_norm: largest Euclidean norm of an update over all its leaves; 0 = not clipped.
    error_feedback: whether what the codec leaves out is added to the next round's update.
  """
  sender = compress(codec)
  sender = with_error_feedback(sender) if error_feedback else sender
  return optax.chain(optax.clip_by_global_norm(clip_norm), sender) if clip_norm else sender


def _blocks(x, block: int):
  """f32[n] -> f32[n / block, block], padded with zeros; one row when block is 0."""
  block = block or x.size
  return jnp.pad(x, (0, -x.size % block)).reshape(-1, block)


def _scaled(codes, scales, block: int):
  """Multiplies each block of f32[n] by its scale."""
  return (_blocks(codes, block) * scales[:, None]).reshape(-1)[:codes.size]


def _pack(codes, bits: int):
  """Numbers below 2^bits [n] -> u8[ceil(n * bits / 8)], the first in the lowest bits."""
  each = 8 // bits
  rows = jnp.pad(codes, (0, -codes.size % each)).reshape(-1, each).astype(jnp.uint8)
  shifts = jnp.arange(each, dtype=jnp.uint8) * bits
  return (rows << shifts[None]).sum(axis=1, dtype=jnp.uint8)


def _unpack(packed, n: int, bits: int):
  """The inverse of `_pack`: u8[n]."""
  shifts = jnp.arange(8 // bits, dtype=jnp.uint8) * bits
  return ((packed[:, None] >> shifts[None]) & (2 ** bits - 1)).reshape(-1)[:n]


# Value of config.fed.outbound -> builder of a codec from its block size.
CODECS: dict[str, Callable[[int], Codec]] = {
  'float32': lambda block: float32(), 'bfloat16': lambda block: bfloat16(),
  'int8': lambda block: quantised(8, block),
  'int4': lambda block: quantised(4, block), 'sign': sign,
}
