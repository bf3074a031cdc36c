"""Frozen kernels in 8 or 4 bits, dequantised one projection at a time; and rounded products.

int8: one scale per output channel, symmetric. NF4: the 4-bit NormalFloat of Dettmers et al.,
"QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, with one float32 scale per 64
inputs of an output channel (the paper's blocks, without its second quantisation of the scales).
We deviate in the scale: the paper takes the block's largest magnitude, we the one of
NF4_FACTORS times it that leaves the least squared error (a quarter less on LLaMA weights).
Both hold kernels [..., D_in, D_out]; everything in front is a batch axis (layer). Two NF4 codes
share a byte, because a uint4 array of JAX takes a byte an element on the host.

A `Rounded` kernel is multiplied in bfloat16 by activations that are wider: both operands are
rounded, forward and backward, and products are added up in the activations' format. Some CPUs have
units for just that (AMX, AVX512-BF16), and are slow at all else in bfloat16.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.types import InputError

Array = jax.Array

# Appendix E of the QLoRA paper: the quantiles of a standard normal that are equally likely,
# scaled to [-1, 1], with an exact zero.
NF4_CODES = np.asarray([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0], np.float32)
NF4_BLOCK = 64
# Scales tried for a block, in multiples of its largest magnitude: a smaller one clips a few
# weights and resolves the rest better; a negative one turns the code book, which has one code
# more above zero than below. The paper's own comes first and wins ties.
NF4_FACTORS = np.asarray(
  [1.0, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, -0.75, -0.8, -0.85, -0.9, -0.95, -1.0, -1.05],
  np.float32)


class Int8(NamedTuple):
  """A kernel in 8 bits: W = values * scale."""

  values: Array  # i8[..., D_in, D_out]
  scale: Array   # f32[..., 1, D_out]


class NF4(NamedTuple):
  """A kernel in 4 bits: W = NF4_CODES[code] * scale of its block.

  D_in is padded with zeros to blocks of 64.
  """

  codes: Array   # u8[..., blocks, 32, D_out]: input i of a block low, input i + 32 high
  scale: Array   # f32[..., blocks, 1, D_out]


class Rounded(NamedTuple):
  """A kernel that is multiplied in bfloat16, see `rounded_product`."""

  kernel: Any  # bf16[..., D_in, D_out], Int8 or NF4


def rounded(kernel: Any) -> Rounded:
  """A kernel [..., D_in, D_out], quantised or not, rounded once for all its products."""
  return Rounded(kernel if isinstance(kernel, Int8 | NF4) else kernel.astype(jnp.bfloat16))


def to_int8(kernel: Array) -> Int8:
  """Quantises a kernel [..., D_in, D_out] to 8 bits; a channel of zeros has scale 1."""
  peak = jnp.max(jnp.abs(kernel.astype(jnp.float32)), axis=-2, keepdims=True)
  scale = jnp.where(peak > 0, peak / 127.0, 1.0)
  return Int8(jnp.round(kernel.astype(jnp.float32) / scale).astype(jnp.int8), scale)


def _nearest_codes(wide: Array, scale: Array) -> Array:
  """The code nearest to wide / scale, in u8: how many of the 15 midpoints lie below it."""
  ratio = wide / scale
  code = jnp.zeros(wide.shape, jnp.uint8)
  for middle in (NF4_CODES[1:] + NF4_CODES[:-1]) / 2:
    code = code + (ratio > middle)
  return code


def to_nf4(kernel: Array) -> NF4:
  """Quantises a kernel [..., D_in, D_out] to 4 bits; a block of zeros has scale 1."""
  *front, rows, columns = kernel.shape
  blocks = -(-rows // NF4_BLOCK)
  padding = [(0, 0)] * len(front) + [(0, blocks * NF4_BLOCK - rows), (0, 0)]
  wide = jnp.pad(kernel.astype(jnp.float32), padding)
  wide = wide.reshape(*front, blocks, NF4_BLOCK, columns)
  peak = jnp.max(jnp.abs(wide), axis=-2, keepdims=True)
  peak = jnp.where(peak > 0, peak, 1.0)
  table = jnp.asarray(NF4_CODES)

  def attempt(best, factor):
    least, scale = best
    tried = peak * factor
    error = table[_nearest_codes(wide, tried)] * tried - wide
    error = jnp.sum(error * error, axis=-2, keepdims=True)
    better = error < least
    return (jnp.where(better, error, least), jnp.where(better, tried, scale)), None

  start = (jnp.full(peak.shape, jnp.inf), peak)
  (_, scale), _ = jax.lax.scan(attempt, start, jnp.asarray(NF4_FACTORS))
  low, high = jnp.split(_nearest_codes(wide, scale), 2, axis=-2)
  return NF4(low | (high << 4), scale)


def dequantize(kernel: Any, rows: int, dtype) -> Array:
  """The kernel [..., D_in, D_out] in `dtype`; one that is not quantised is returned as it is.

  Args:
    kernel: Int8, NF4 or an array [..., D_in, D_out].
    rows: D_in, which NF4 pads to a multiple of its block.
    dtype: number format of the result.
  """
  match kernel:
    case Int8(values, scale):
      return (values.astype(jnp.float32) * scale).astype(dtype)
    case NF4(codes, scale):
      table = jnp.asarray(NF4_CODES)
      wide = jnp.concatenate([table[codes & 15], table[codes >> 4]], axis=-2) * scale
      wide = wide.astype(dtype).reshape(*codes.shape[:-3], -1, codes.shape[-1])
      return wide[..., :rows, :]
    case _:
      return kernel


def matmul(x: Array, kernel: Any) -> Array:
  """x [T, D_in] times a frozen kernel [D_in, D_out], quantised or not -> [T, D_out] in x's dtype.

  The dequantised kernel lives for this product only: the backward pass makes it again rather than
  keeping one for every layer.
  """
  product, dtype = jnp.matmul, x.dtype
  if isinstance(kernel, Rounded):
    product, dtype, kernel = rounded_product, jnp.bfloat16, kernel.kernel
  if not isinstance(kernel, Int8 | NF4):
    return product(x, kernel)

  def dequantized_product(x, kernel):
    return product(x, dequantize(kernel, x.shape[-1], dtype))

  # Called inside the layer scan only, where nothing could be merged.
  return jax.checkpoint(dequantized_product, prevent_cse=False)(x, kernel)


@jax.custom_vjp
def rounded_product(x: Array, kernel: Array) -> Array:
  """x [T, D_in] rounded to bfloat16 times bf16[D_in, D_out], added up in x's dtype -> [T, D_out].

  The gradient [T, D_out] is rounded likewise before it meets the kernel, which is frozen and has
  none of its own (TypeError). JAX's own rule would multiply it as it is: a float32 product.
  """
  return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=x.dtype)


def _rounded_forward(x, kernel):
  if kernel.perturbed:
    raise TypeError('rounded_product: the kernel is frozen and has no gradient')
  return rounded_product(x.value, kernel.value), kernel.value


def _rounded_backward(kernel, gradient):
  return jnp.einsum(
    'to,io->ti', gradient.astype(kernel.dtype), kernel,
    preferred_element_type=gradient.dtype), None


rounded_product.defvjp(_rounded_forward, _rounded_backward, symbolic_zeros=True)


# Value of config.model.quantization -> the function that quantises a projection's kernel.
QUANTIZATIONS = {'none': None, 'int8': to_int8, 'nf4': to_nf4}


def check_quantization(name: str) -> None:
  """Raises InputError unless `name` is a value that config.model.quantization may have."""
  if name not in QUANTIZATIONS:
    raise InputError(
      f'config.model.quantization={name!r}: one of {", ".join(QUANTIZATIONS)} is allowed')
