"""From named tensors of a file to the `params` tree, strictly.

One table names every tensor: its place in our tree, its Hugging Face name and its GGUF name. A
tensor that is unknown, missing, misshapen or written twice is an InputError that names it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import transformers

from fedmedjax.model.llama import PROJECTIONS, LlamaConfig
from fedmedjax.model.lora import PEFT_MODULES
from fedmedjax.types import InputError


class BaseModel(NamedTuple):
  """A frozen model: hyper-parameters, the `params` tree, its tokenizer, and a name to show."""

  config: LlamaConfig
  params: dict
  tokenizer: transformers.PreTrainedTokenizerBase
  name: str


# Our path -> (Hugging Face name, GGUF name); '{}' is the layer. A 2-d tensor of a projection is
# stored [out, in] by both and transposed here.
_TOP = {
  ('embedding',): ('model.embed_tokens.weight', 'token_embd.weight'),
  ('norm', 'weight'): ('model.norm.weight', 'output_norm.weight'),
  ('head',): ('lm_head.weight', 'output.weight'),
}
_GGUF_PROJECTIONS = {
  'q_proj': 'attn_q', 'k_proj': 'attn_k', 'v_proj': 'attn_v', 'o_proj': 'attn_output',
  'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down',
}
_LAYER = {
  ('input_norm', 'weight'): (
    'model.layers.{}.input_layernorm.weight', 'blk.{}.attn_norm.weight'),
  ('post_norm', 'weight'): (
    'model.layers.{}.post_attention_layernorm.weight', 'blk.{}.ffn_norm.weight'),
} | {
  (name, 'kernel'): (
    f'model.layers.{{}}.{PEFT_MODULES[name]}.weight',
    f'blk.{{}}.{_GGUF_PROJECTIONS[name]}.weight')
  for name in PROJECTIONS
}
HUGGING_FACE, GGUF = 0, 1


def _expected(config: LlamaConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Our path (without the layer axis) -> shape as both formats store it ([out, in])."""
  width = config.hidden_size
  shapes = {('embedding',): (config.vocab_size, width), ('norm', 'weight'): (width,)}
  if not config.tie_word_embeddings:
    shapes['head',] = (config.vocab_size, width)
  for path in _LAYER:
    shapes[path] = (
      config.projection_shape(path[0])[::-1] if path[1] == 'kernel' else (width,))
  return shapes


def convert(
  config: LlamaConfig,
  tensors: Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
  column: int,
  dtype,
  origin: str,
) -> dict:
  """Builds the `params` tree from named tensors, one at a time.

  Args:
    config: the shapes to expect.
    tensors: (name, shape, read) triples; `read` gives the array, [out, in] for matrices.
    column: 0 for Hugging Face names, 1 for GGUF names.
    dtype: of every leaf.
    origin: the file or folder, for error messages.

  Raises:
    InputError: a tensor is unknown, missing, misshapen or occurs twice.
  """
  shapes = _expected(config)
  slots = {names[column]: (path, None) for path, names in _TOP.items() if path in shapes}
  for path, names in _LAYER.items():
    for layer in range(config.num_layers):
      slots[names[column].format(layer)] = (path, layer)
  buffers, seen = {}, set()
  for name, shape, read in tensors:
    if name not in slots:
      raise InputError(f'{origin}: unknown tensor {name!r} for a LLaMA of this configuration')
    if name in seen:
      raise InputError(f'{origin}: tensor {name!r} occurs twice')
    seen.add(name)
    path, layer = slots[name]
    if tuple(shape) != shapes[path]:
      raise InputError(
        f'{origin}: tensor {name!r} has shape {tuple(shape)}, expected {shapes[path]}')
    values = read()
    if path[-1] == 'kernel':
      values = values.T
    if layer is None:
      buffers[path] = values.astype(dtype)
    else:
      if path not in buffers:
        buffers[path] = np.empty((config.num_layers, *values.shape), dtype)
      buffers[path][layer] = values
  missing = sorted(set(slots) - seen)
  if missing:
    raise InputError(f'{origin}: {len(missing)} tensors are missing, first {missing[0]!r}')
  params = {'layers': {}}
  for path in shapes:
    node = params['layers'] if path in _LAYER else params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = jnp.asarray(buffers.pop(path))
  return params
