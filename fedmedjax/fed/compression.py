"""What a site sends in place of its update: clipped, sparsified, rounded, with error feedback.

A codec turns a tensor into the arrays that travel, packed to bytes, and back. `compress` makes of
it an optax transformation that gives what the server reads, and `fed/ledger.py` counts the bytes
of the same arrays: what is simulated and what is charged cannot differ.
Rounding is stochastic: its mean is the value. It takes its randomness from the keyword `key` of
`update`, so a transformation keeps no random state; whoever calls it gives each (round, site) a
key of its own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Bits of a float32 that a bfloat16 lacks.
_LOST_BITS = 16


class Codec(NamedTuple):
  """How one tensor, flattened to f32[n], travels. All shapes follow from n alone.

  The arrays are exactly the bytes sent: nothing that both ends know (n, k, the block) is in them.
  """

  name: str
  encode: Callable   # (x f32[n], key) -> {part: array}
  decode: Callable   # (parts, n) -> f32[n]


class ErrorFeedbackState(NamedTuple):
  """What a site has not sent yet, and the state of what compresses it."""

  residual: Any      # [*p]
  inner: Any


def float32() -> Codec:
  """Four bytes a value, as it is: the neutral element."""
  return Codec('float32', lambda x, key: {'values': x}, lambda parts, n: parts['values'])


def bfloat16() -> Codec:
  """Two bytes a value: the upper half of the float32, rounded up as often as the lower half says.

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


def quantised(bits: int, block: int = 0) -> Codec:
  """Integers in [-q, q], q = 2^(bits-1) - 1, times a float32 scale max |x| / q.

  Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
  NeurIPS 2017, arXiv:1610.02132: s = q levels, buckets of `block` values. We deviate in that a
  bucket is scaled by its largest value rather than its norm (as the paper's experiments do), and
  that the integers have a fixed width in place of Elias codes, so that a message's length is known.

  Args:
    bits: 2, 4 or 8 a value; several share a byte.
    block: neighbours (of the flattened tensor) that share a scale; 0 = a scale a tensor.
  """
  levels = 2 ** (bits - 1) - 1

  def encode(x, key):
    rows = _blocks(x, block)
    scales = jnp.max(jnp.abs(rows), axis=1) / levels
    ticks = rows / jnp.where(scales == 0, 1.0, scales)[:, None]
    low = jnp.floor(ticks)
    codes = low + (jax.random.uniform(key, rows.shape) < ticks - low)
    codes = jnp.clip(codes, -levels, levels) + levels
    return {'scales': scales, 'codes': _pack(codes.reshape(-1)[:x.size].astype(jnp.uint8), bits)}

  def decode(parts, n):
    codes = _unpack(parts['codes'], n, bits).astype(jnp.float32) - levels
    return _scaled(codes, parts['scales'], block)

  return Codec(f'int{bits}', encode, decode)


def sign(block: int = 0) -> Codec:
  """One bit a value, times the mean |x|: biased, to be used with error feedback.

  Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
  2019, arXiv:1901.09847: C(p) = |p|_1 / d * sign(p), with d = the block. A zero counts as positive.
  """

  def encode(x, key):
    del key
    rows = _blocks(x, block)
    counts = _blocks(jnp.ones_like(x), block).sum(axis=1)
    return {'scales': jnp.abs(rows).sum(axis=1) / counts, 'codes': _pack((x >= 0) * 1, 1)}

  def decode(parts, n):
    return _scaled(2.0 * _unpack(parts['codes'], n, 1) - 1.0, parts['scales'], block)

  return Codec('sign', encode, decode)


def top_k(share: float, values: Codec) -> Codec:
  """The k = max(1, round(share * n)) largest |x|, sent by `values`; the others are not sent.

  Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599. With values = sign()
  it is the ternary compression of Sattler et al., arXiv:1903.02891, without its Golomb code. Where
  the k values stand is said by their indices or by a bit a value, whichever is shorter.

  Args:
    share: in (0, 1]; 1 = `values` alone.
    values: codec of the values kept, in the order of the tensor.
  """
  if share >= 1:
    return values

  def kept(n):
    return min(n, max(1, round(share * n)))

  def index_type(n):
    """Of the indices; None when a mask is shorter."""
    dtype = jnp.uint16 if n <= 2 ** 16 else jnp.uint32
    return dtype if kept(n) * dtype(0).itemsize < math.ceil(n / 8) else None

  def encode(x, key):
    _, index = jax.lax.top_k(jnp.abs(x), kept(x.size))
    index = jnp.sort(index)
    dtype = index_type(x.size)
    places = {'indices': index.astype(dtype)} if dtype else {
      'mask': _pack(jnp.zeros(x.size, jnp.uint8).at[index].set(1), 1)}
    return places | {'kept': values.encode(x[index], key)}

  def decode(parts, n):
    if index_type(n):
      index = parts['indices'].astype(jnp.int32)
    else:
      index = jnp.flatnonzero(_unpack(parts['mask'], n, 1), size=kept(n))
    return jnp.zeros(n).at[index].set(values.decode(parts['kept'], kept(n)))

  return Codec(f'top {share:g} {values.name}', encode, decode)


def compress(codec: Codec) -> optax.GradientTransformationExtraArgs:
  """Every leaf as the other end reads it; `update(..., key=)` is required. No state."""

  def update(updates, state, params=None, *, key, **_):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    read = []
    for number, leaf in enumerate(leaves):
      flat = leaf.reshape(-1).astype(jnp.float32)
      sent = codec.encode(flat, jax.random.fold_in(key, number))
      read.append(codec.decode(sent, leaf.size).reshape(leaf.shape).astype(leaf.dtype))
    return treedef.unflatten(read), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def with_error_feedback(
  inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """What `inner` leaves out of one round is added to the next one's update.

  Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et al.,
  arXiv:1901.09847: p = update + e, sent = C(p), e <- p - sent. We deviate in that the unit is a
  round's update, not a step's gradient, and that e waits while its site is not in the cohort.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return ErrorFeedbackState(jax.tree.map(jnp.zeros_like, params), inner.init(params))

  def update(updates, state, params=None, **extra):
    owed = jax.tree.map(jnp.add, updates, state.residual)
    sent, inner_state = inner.update(owed, state.inner, params, **extra)
    # A round that diverged at a site must not spoil all its later ones.
    residual = jax.tree.map(
      lambda p, s: jnp.where(jnp.isfinite(p) & jnp.isfinite(s), p - s, 0), owed, sent)
    return sent, ErrorFeedbackState(residual, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def outbound(
  codec: Codec, *, clip_norm: float = 0.0, error_feedback: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Clip, then compress.

  The clip stands before the error feedback: it bounds what a site learns in a round, while the
  message may be longer by what is still owed.

  Args:
    codec: what travels.
    clip_norm: largest Euclidean norm of an update over all its leaves; 0 = not clipped.
    error_feedback: keep what the codec leaves out.
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


# (block) -> Codec
CODECS = {
  'float32': lambda block: float32(), 'bfloat16': lambda block: bfloat16(),
  'int8': lambda block: quantised(8, block),
  'int4': lambda block: quantised(4, block), 'sign': sign,
}
