"""The decoder of the LLaMA family: pre-norm blocks, grouped queries, rotary positions, SwiGLU.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971; grouped
queries from Ainslie et al., arXiv:2305.13245; rotary embedding from Su et al., arXiv:2104.09864.
What sets Mistral (sliding window, arXiv:2310.06825), Qwen2 (biases, arXiv:2407.10671) and Qwen3
(normalised queries and keys, arXiv:2505.09388) apart are values of `LlamaConfig`.
Weights live in two collections: `params` (the base, frozen, perhaps quantised) and `lora` (the
adapter). Layers are stacked on a leading axis L and scanned. Linear layers see all tokens of a
pass flat, [T, D]; only attention knows how they are arranged (a shared instruction, packed rows,
a decoding cache).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from fedmedjax.model.attention import SAVED, Attention, Window
from fedmedjax.model.quant import matmul

Array = jax.Array

# The seven linear layers of a block, by their Hugging Face names.
PROJECTIONS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Hyper-parameters, always read from the file that holds the weights (`model/files/load.py`)."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rms_norm_eps: float
  rope_theta: float
  max_position_embeddings: int
  tie_word_embeddings: bool
  # Divisor of each rotary frequency, [head_dim / 2]; empty = all 1. Llama 3.1's scaling.
  rope_divisors: tuple[float, ...] = ()
  # Projections with a bias.
  biases: tuple[str, ...] = ()
  # RMS norm of every head's query and key, before the rotation.
  qk_norm: bool = False
  # Per layer, the keys that a query sees, its own included; 0 = all. Empty = all in all layers.
  windows: tuple[int, ...] = ()

  def projection_shape(self, name: str) -> tuple[int, int]:
    """(D_in, D_out) of a projection."""
    width, heads = self.hidden_size, self.num_heads * self.head_dim
    kv = self.num_kv_heads * self.head_dim
    return {
      'q_proj': (width, heads), 'k_proj': (width, kv), 'v_proj': (width, kv),
      'o_proj': (heads, width), 'gate_proj': (width, self.intermediate_size),
      'up_proj': (width, self.intermediate_size), 'down_proj': (self.intermediate_size, width),
    }[name]


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
  """f64[head_dim / 2]: radians per position."""
  exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
  return config.rope_theta ** -exponent / np.asarray(config.rope_divisors or 1.0)


def rope(positions: Array, config: LlamaConfig, dtype) -> tuple[Array, Array]:
  """i32[T] -> cosines and sines [T, head_dim / 2]; angles are formed in float32 or wider."""
  wide = jnp.promote_types(dtype, jnp.float32)
  angles = positions[:, None].astype(wide) * jnp.asarray(rope_frequencies(config), wide)[None]
  return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the pairs (i, i + head_dim/2) of x [T, H, head_dim] (the Hugging Face layout)."""
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = cos[:, None], sin[:, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# (path such as 'layers/q_proj/kernel', weights of one layer) -> the same, where they are needed.
Fetch = Callable[[str, Any], Any]


def as_stored(path: str, weights: Any) -> Any:
  """The `Fetch` of a base that is whole on its device."""
  del path
  return weights


class Linear(nn.Module):
  """x W + bias + scale (x A) B, the last term when the adapter holds this projection.

  LoRA: Hu et al., arXiv:2106.09685; scale = alpha / rank.
  """

  features: int
  lora_scale: float
  use_bias: bool = False
  fetch: Fetch = as_stored

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.is_initializing():
      self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.features), x.dtype)
    # Not by `param`, which expects one array where a quantised kernel has several.
    y = self._product(x, self.get_variable('params', 'kernel'))
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,), x.dtype)[None]
    if self.has_variable('lora', 'a'):
      a = self.get_variable('lora', 'a').astype(x.dtype)
      b = self.get_variable('lora', 'b').astype(x.dtype)
      y = y + checkpoint_name(x @ a * self.lora_scale, SAVED) @ b
    return checkpoint_name(y, SAVED)

  def _product(self, x: Array, kernel: Any) -> Array:
    """x @ kernel. One that is fetched is fetched again for the gradient: kept, all layers would be
    whole on every device at once."""
    def product(x, kernel):
      return matmul(x, self.fetch(f'layers/{self.name}/kernel', kernel))

    if self.fetch is as_stored:
      return product(x, kernel)
    return jax.checkpoint(product, prevent_cse=False)(x, kernel)


class RMSNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    weight = self.param('weight', nn.initializers.ones, (x.shape[-1],), x.dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    return weight.reshape((1,) * (x.ndim - 1) + (-1,)) * wide.astype(x.dtype)


class Layer(nn.Module):
  """One block. Its signature is that of a scan body: carry x [T, D], per-layer inputs first."""

  config: LlamaConfig
  lora_scale: float
  attention: Attention
  fetch: Fetch = as_stored

  @nn.compact
  def __call__(self, x: Array, cache: Any, window: Any, cos: Array, sin: Array, positions: Array,
               context: Any):
    config = self.config

    def linear(name: str, inputs: Array) -> Array:
      features = config.projection_shape(name)[1]
      return Linear(
        features, self.lora_scale, name in config.biases, self.fetch, name=name)(inputs)

    def heads(name: str, inputs: Array) -> Array:
      return linear(name, inputs).reshape(inputs.shape[0], -1, config.head_dim)

    h = RMSNorm(config.rms_norm_eps, name='input_norm')(x)
    q, k = heads('q_proj', h), heads('k_proj', h)
    if config.qk_norm:
      q = RMSNorm(config.rms_norm_eps, name='q_norm')(q)
      k = RMSNorm(config.rms_norm_eps, name='k_norm')(k)
    out, kept = self.attention(
      rotate(q, cos, sin), rotate(k, cos, sin), heads('v_proj', h), cache, context,
      None if window is None else Window(positions, window))
    x = x + linear('o_proj', out.reshape(x.shape[0], -1))
    h = RMSNorm(config.rms_norm_eps, name='post_norm')(x)
    x = x + linear('down_proj', nn.silu(linear('gate_proj', h)) * linear('up_proj', h))
    return x, kept


# What the backward pass keeps of a layer, from most to least: config value -> jax.checkpoint's
# policy.
REMAT = {
  'none': None,
  # Products with weights, and attention's results; all else is made again from these.
  'products': jax.checkpoint_policies.save_only_these_names(SAVED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Llama(nn.Module):
  """tokens i32[T], positions i32[T] -> (final hidden states [T, D] after the last norm, kept).

  `cache` (leaves [L, ...] or None) and `context` go to `attention` as they are; what it keeps
  per layer comes back stacked, [L, ...]. The head is applied by the caller, to the places it
  needs, with `head_weight`. `fetch` brings weights that are split over devices together.
  """

  config: LlamaConfig
  attention: Attention
  lora_scale: float = 1.0
  remat: str = 'none'
  dtype: Any = jnp.float32
  fetch: Fetch = as_stored

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, cache: Any = None, context: Any = None):
    config = self.config
    embedding = self.param(
      'embedding', nn.initializers.normal(0.02), (config.vocab_size, config.hidden_size),
      self.dtype)
    if not config.tie_word_embeddings:
      self.param(
        'head', nn.initializers.normal(0.02), (config.vocab_size, config.hidden_size),
        self.dtype)
    layer = Layer
    if REMAT[self.remat] is not None:
      # Inside a scan there is nothing for CSE to merge, and preventing it costs a barrier.
      layer = nn.remat(Layer, policy=REMAT[self.remat], prevent_cse=False)
    layers = nn.scan(
      layer,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True},
      in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
      length=config.num_layers,
    )(config, self.lora_scale, self.attention, self.fetch, name='layers')
    cos, sin = rope(positions, config, self.dtype)
    windows = None
    if any(config.windows):
      farthest = np.iinfo(np.int32).max
      windows = jnp.asarray([size or farthest for size in config.windows], jnp.int32)
    x, kept = layers(embedding[tokens], cache, windows, cos, sin, positions, context)
    return RMSNorm(config.rms_norm_eps, name='norm')(x), kept


def head_weight(base: dict) -> Array:
  """[V, D]: the output head, which a tied model shares with its embedding."""
  return base.get('head', base['embedding'])
