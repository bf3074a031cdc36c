"""The decoder of the LLaMA family: pre-norm blocks, grouped queries, rotary positions, SwiGLU.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971; grouped
queries from Ainslie et al., arXiv:2305.13245; rotary embedding from Su et al., arXiv:2104.09864.
What sets Mistral (sliding window, arXiv:2310.06825), Qwen2 (biases, arXiv:2407.10671), Qwen3
(normalised queries and keys, arXiv:2505.09388), Gemma 2 (norms after each half of a block, capped
scores and logits, arXiv:2408.00118), Gemma 3 (two rotary bases, arXiv:2503.19786) and Phi-3 and 4
(fused projections, arXiv:2404.14219) apart are values of `LlamaConfig`.
Weights live in two collections: `params` (the base, frozen, perhaps quantised) and `lora` (the
adapter). Layers are stacked on a leading axis L and scanned. Linear layers see all tokens of a
pass flat, [T, D]; only attention knows how they are arranged (a shared instruction, packed rows,
a decoding cache).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from fedmedjax.model.attention import SAVED, WIDE, Attention, Window
from fedmedjax.model.llama_config import PROJECTIONS as PROJECTIONS
from fedmedjax.model.llama_config import LlamaConfig as LlamaConfig
from fedmedjax.model.quant import matmul
from fedmedjax.model.rotary import rope as rope
from fedmedjax.model.rotary import rope_frequencies as rope_frequencies
from fedmedjax.model.rotary import rotate

Array = jax.Array

# (path such as 'layers/q_proj/kernel', weights of one layer) -> the same weights, brought to the
# device that computes with them. One that is not `as_stored` has `rows`, too, for a table's.
Fetch = Callable[[str, Any], Any]


def as_stored(path: str, weights: Any) -> Any:
  """The `Fetch` of a base that is whole on its device: returns weights, [D_in, D_out], as is."""
  del path
  return weights


# x [..., D] of the residual stream, or what is added to it -> the same, laid out over devices.
Stream = Callable[[Array], Array]


def as_computed(x: Array) -> Array:
  """The `Stream` of one device: returns x [..., D] as it is."""
  return x


class Linear(nn.Module):
  """x W + bias + scale (x A) B, the last term when the adapter holds this projection.

  x [T, D_in] -> [T, D_out]; W is [D_in, D_out], A [D_in, rank], B [rank, D_out]. LoRA: Hu et al.,
  arXiv:2106.09685; scale = alpha / rank.
  """

  features: int
  lora_scale: float
  use_bias: bool = False
  fetch: Fetch = as_stored
  saved_as: str = SAVED  # the name by which REMAT knows what it gives

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
    return checkpoint_name(y, self.saved_as)

  def _product(self, x: Array, kernel: Any) -> Array:
    """x @ kernel, [T, D_in] -> [T, D_out].

    A kernel that is fetched from other devices is fetched again for the gradient: kept, all layers
    would be whole on every device at once.
    """
    def product(x, kernel):
      return matmul(x, self.fetch(f'layers/{self.name}/kernel', kernel))

    if self.fetch is as_stored:
      return product(x, kernel)
    return jax.checkpoint(product, prevent_cse=False)(x, kernel)


def _made_again(function: Callable[..., Array]) -> Callable[..., Array]:
  """The same function, whose gradient keeps its arguments only and computes it again."""
  # Without a barrier against CSE: inside a scan there is nothing to merge.
  return jax.checkpoint(function, prevent_cse=False)


class RMSNorm(nn.Module):
  """Division by the root of the mean square, times a weight or 1 + it: [..., D] -> [..., D].

  Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467. With `again` its
  gradient keeps x rather than float32 arrays of that shape.
  """

  eps: float
  plus_one: bool = False
  again: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    weight = self.param('weight', nn.initializers.ones, (x.shape[-1],), x.dtype)
    normalised = _made_again(self._normalised) if self.again else self._normalised
    return normalised(x, weight.reshape((1,) * (x.ndim - 1) + (-1,)))

  def _normalised(self, x: Array, weight: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    if self.plus_one:  # rounded once, after the product: 1 + weight has few digits in 16 bits
      return ((1.0 + weight.astype(wide.dtype)) * wide).astype(x.dtype)
    return weight * wide.astype(x.dtype)


# Value of LlamaConfig.activation -> the function of the gate [T, D].
ACTIVATIONS = {'silu': nn.silu, 'gelu_tanh': partial(nn.gelu, approximate=True)}


class Layer(nn.Module):
  """One block: x [T, D] -> (x [T, D], what `attention` keeps for its cache).

  Its signature is that of a scan body: the carry, then inputs of each layer, then shared ones.
  With `again` the gradient makes norms and the gated product again: they cost no product with
  weights, and kept they would be a third of a layer. It is for a layer that is not under remat as a
  whole, which rounds differently.
  """

  config: LlamaConfig
  lora_scale: float
  attention: Attention
  fetch: Fetch = as_stored
  stream: Stream = as_computed
  again: bool = False

  @nn.compact
  def __call__(self, x: Array, cache: Any, window: Any, rotation: Any, cos: Array, sin: Array,
               positions: Array, context: Any):
    config = self.config
    if rotation is not None:  # which of two this layer has
      cos, sin = cos[rotation], sin[rotation]

    def linear(name: str, inputs: Array, saved_as: str = SAVED) -> Array:
      features = config.projection_shape(name)[1]
      return Linear(
        features, self.lora_scale, name in config.biases, self.fetch, saved_as, name=name)(inputs)

    def norm(name: str, inputs: Array) -> Array:
      return RMSNorm(config.rms_norm_eps, config.norm_plus_one, self.again, name=name)(inputs)

    def parts_of(fused: str, ends: tuple[int, ...], inputs: Array, saved_as: str = SAVED):
      """Returns the function (place, name) -> a part of one fused product, or a product alone."""
      whole = jnp.split(linear(fused, inputs, saved_as), ends, axis=-1) if config.fused else ()
      return lambda place, name: whole[place] if whole else linear(name, inputs, saved_as)

    def heads(values: Array) -> Array:
      return values.reshape(values.shape[0], -1, config.head_dim)

    h = self.stream(norm('input_norm', x))
    queries = config.num_heads * config.head_dim
    part = parts_of('qkv_proj', (queries, queries + config.num_kv_heads * config.head_dim), h)
    q, k = heads(part(0, 'q_proj')), heads(part(1, 'k_proj'))
    if config.qk_norm:
      q, k = norm('q_norm', q), norm('k_norm', k)
    if config.query_scalar not in (0.0, config.head_dim):  # attention divides by that of head_dim
      q = q * (config.head_dim / config.query_scalar) ** 0.5
    out, kept = self.attention(
      rotate(q, cos, sin), rotate(k, cos, sin), heads(part(2, 'v_proj')), cache, context,
      None if window is None else Window(positions, window), config.score_cap)
    out = self.stream(linear('o_proj', out.reshape(x.shape[0], -1)))
    x = self.stream(x + (norm('after_attention_norm', out) if config.norms_after else out))
    h = self.stream(norm('before_mlp_norm' if config.norms_after else 'post_norm', x))
    part = parts_of('gate_up_proj', (config.intermediate_size,), h, WIDE)

    def gated(gate: Array, up: Array) -> Array:
      return ACTIVATIONS[config.activation](gate) * up

    out = self.stream(linear('down_proj', (_made_again(gated) if self.again else gated)(
      part(0, 'gate_proj'), part(1, 'up_proj'))))
    return self.stream(x + (norm('after_mlp_norm', out) if config.norms_after else out)), kept


# Which results of a layer are kept for the backward pass, from most to least: value of
# config.model.remat -> jax.checkpoint's policy.
REMAT = {
  'none': None,  # but see `Layer.again`
  # Products with weights, and attention's results; all else is made again from these.
  'products': jax.checkpoint_policies.save_only_these_names(SAVED, WIDE),
  # Of these, not the widest, which are two thirds of the memory: gate's and up's.
  'narrow_products': jax.checkpoint_policies.save_only_these_names(SAVED),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Llama(nn.Module):
  """tokens i32[T], positions i32[T] -> (hidden states [T, D] after the last norm, new cache).

  `cache` (leaves [L, ...] or None) and `context` go to `attention` as they are; what it keeps
  per layer comes back stacked, [L, ...]. The head is applied by the caller, to the places it
  needs, with `head_weight` and the cap `config.logit_cap`. `fetch` brings weights that are split
  over devices together; `stream` splits the residual stream; `reach` is that of `rotary.rope`.
  """

  config: LlamaConfig
  attention: Attention
  lora_scale: float = 1.0
  remat: str = 'none'
  dtype: Any = jnp.float32
  fetch: Fetch = as_stored
  stream: Stream = as_computed

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, cache: Any = None, context: Any = None,
               reach: Array | None = None):
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
      in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
      length=config.num_layers,
    )(config, self.lora_scale, self.attention, self.fetch, self.stream,
      REMAT[self.remat] is None, name='layers')
    cos, sin = rope(positions, config, self.dtype, reach)
    windows = rotations = None
    if any(config.windows):
      farthest = np.iinfo(np.int32).max
      windows = jnp.asarray([size or farthest for size in config.windows], jnp.int32)
    if config.local_rope_theta:
      rotations = jnp.asarray([size > 0 for size in config.windows], jnp.int32)
    x = embedding[tokens] if self.fetch is as_stored else self.fetch.rows(embedding, tokens)
    if config.scaled_embedding:
      x = x * jnp.asarray(config.hidden_size**0.5, self.dtype)
    x, kept = layers(self.stream(x), cache, windows, rotations, cos, sin, positions, context)
    return RMSNorm(config.rms_norm_eps, config.norm_plus_one, name='norm')(x), kept


def head_weight(base: dict) -> Array:
  """The output head [V, D], which a tied model shares with its embedding.

  Of a base of `quant.Rounded` kernels it is in bfloat16, a copy where the model is tied.
  """
  return base.get('head', base['embedding'])
