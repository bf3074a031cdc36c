"""Rotary positions: Su et al., "RoFormer", arXiv:2104.09864, and what families vary in them.

Letters: T tokens, H heads, r rotated dimensions of a head's d.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.model.llama_config import LlamaConfig

Array = jax.Array


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
  """Radians per position of each rotated pair, f64[r / 2]."""
  return _frequencies(config, config.rope_theta, config.rope_divisors)


def _frequencies(config: LlamaConfig, theta: float, divisors: Sequence[float]) -> np.ndarray:
  width = config.rotary_dim or config.head_dim
  exponent = np.arange(0, width, 2, dtype=np.float64) / width
  return theta ** -exponent / np.asarray(divisors or 1.0)


def rope(
  positions: Array, config: LlamaConfig, dtype, reach: Array | None = None
) -> tuple[Array, Array]:
  """Positions i32[T] -> cosines and sines [T, r / 2] of the rotary angles.

  Angles are formed in float32 or wider. Where layers with a window have a base of their own, the
  results are [2, T, r / 2], those layers' last.

  Args:
    positions: of the tokens of this pass.
    config: the model's.
    dtype: of the results.
    reach: i32[], the last position that the text will have; None = the last of `positions`. It
      decides between the frequencies of short and long texts (LongRoPE, Ding et al.,
      arXiv:2402.13753): queries and keys of one text need the same.
  """
  wide = jnp.promote_types(dtype, jnp.float32)
  frequencies = jnp.asarray(rope_frequencies(config), wide)
  if config.long_rope_divisors:
    long = jnp.asarray(_frequencies(config, config.rope_theta, config.long_rope_divisors), wide)
    last = jnp.max(positions) if reach is None else reach
    frequencies = jnp.where(last >= config.rope_original, long, frequencies)
  angles = positions[:, None].astype(wide) * frequencies[None]
  if config.local_rope_theta:
    local = jnp.asarray(_frequencies(config, config.local_rope_theta, ()), wide)
    angles = jnp.stack([angles, positions[:, None].astype(wide) * local[None]])
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if config.rope_factor != 1.0:
    cos, sin = cos * config.rope_factor, sin * config.rope_factor
  return cos.astype(dtype), sin.astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the pairs (i, i + r/2) of x [T, H, d] (the Hugging Face layout), i < r/2.

  cos and sin are [T, r / 2]; dimensions beyond the first r stay as they are.
  """
  width = 2 * cos.shape[-1]
  if width < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :width], cos, sin), x[..., width:]], axis=-1)
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = cos[:, None], sin[:, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
