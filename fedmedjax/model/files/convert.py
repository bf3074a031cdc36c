"""From named tensors of a file to the `params` tree, strictly.

One table names every tensor: its place in our tree, its Hugging Face name and its GGUF name. A
tensor that is unknown, missing or misshapen is an InputError that names it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from fedmedjax.model.files.folder import StoredTensor
from fedmedjax.model.llama_config import LlamaConfig
from fedmedjax.model.lora import PEFT_MODULES
from fedmedjax.model.quant import QUANTIZATIONS, rounded
from fedmedjax.types import InputError


class BaseModel(NamedTuple):
  """A frozen model as loaded, with its tokenizer."""

  config: LlamaConfig
  params: dict  # embedding [V, D], kernels [L, D_in, D_out], perhaps quantised; see `llama.py`
  tokenizer: transformers.PreTrainedTokenizerBase
  name: str     # shown to the user
  # What of the files was left out, in a sentence; '' = nothing.
  left_out: str = ''
  # The module that holds the layers in the model that transformers makes of the folder, with a
  # point behind it: a part of the names in an adapter's file. '' = the model itself.
  inside: str = ''


class Placement(NamedTuple):
  """The form in which weights are stored, kernels [L, D_in, D_out], and the devices that hold them.

  `quantization` is a key of QUANTIZATIONS. `sharding` maps (hyper-parameters, the `params` tree as
  jax.ShapeDtypeStructs) to a tree of jax shardings; None = the default device. `rounded` says that
  kernels are `quant.Rounded` and the head is in bfloat16: a tied model then has both, its embedding
  in `dtype` and a copy as its head, and a kernel that is not quantised is held in bfloat16 alone.
  """

  dtype: jnp.dtype = jnp.float32
  quantization: str = 'none'
  sharding: Callable[[LlamaConfig, dict], dict] | None = None
  rounded: bool = False


class Slot(NamedTuple):
  """A tensor's (Hugging Face, GGUF) names, and its shape as both formats store it.

  The shape is None where the model of a configuration has no such tensor. A kernel is stored
  [D_out, D_in] and transposed here.
  """

  names: tuple[str, str]
  shape: Callable[[LlamaConfig], tuple[int, ...] | None]


def _vocabulary(config: LlamaConfig) -> tuple[int, ...]:
  return config.vocab_size, config.hidden_size


def _own_head(config: LlamaConfig) -> tuple[int, ...] | None:
  return None if config.tie_word_embeddings else _vocabulary(config)


def _width(config: LlamaConfig) -> tuple[int, ...]:
  return (config.hidden_size,)


def _head_norm(config: LlamaConfig) -> tuple[int, ...] | None:
  return (config.head_dim,) if config.qk_norm else None


def _norm_after(config: LlamaConfig) -> tuple[int, ...] | None:
  return _width(config) if config.norms_after else None


def _norm_between(config: LlamaConfig) -> tuple[int, ...] | None:
  return None if config.norms_after else _width(config)


def _kernel(name: str):
  return lambda config: (
    config.projection_shape(name)[::-1] if name in config.projections else None)


def _bias(name: str):
  return lambda config: config.projection_shape(name)[1:] if name in config.biases else None


_TOP = {
  ('embedding',): Slot(('model.embed_tokens.weight', 'token_embd.weight'), _vocabulary),
  ('norm', 'weight'): Slot(('model.norm.weight', 'output_norm.weight'), _width),
  ('head',): Slot(('lm_head.weight', 'output.weight'), _own_head),
}
_GGUF_PROJECTIONS = {
  'q_proj': 'attn_q', 'k_proj': 'attn_k', 'v_proj': 'attn_v', 'o_proj': 'attn_output',
  'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down',
  'qkv_proj': 'attn_qkv', 'gate_up_proj': 'ffn_up',
}
# Names within a layer. Both formats use a name for two things: with norms after each half of a
# block, what was the norm before the MLP is the one after attention, or the other way round.
_LAYER = {
  ('input_norm', 'weight'): Slot(('input_layernorm.weight', 'attn_norm.weight'), _width),
  ('post_norm', 'weight'): Slot(
    ('post_attention_layernorm.weight', 'ffn_norm.weight'), _norm_between),
  ('after_attention_norm', 'weight'): Slot(
    ('post_attention_layernorm.weight', 'post_attention_norm.weight'), _norm_after),
  ('before_mlp_norm', 'weight'): Slot(
    ('pre_feedforward_layernorm.weight', 'ffn_norm.weight'), _norm_after),
  ('after_mlp_norm', 'weight'): Slot(
    ('post_feedforward_layernorm.weight', 'post_ffw_norm.weight'), _norm_after),
  ('q_norm', 'weight'): Slot(('self_attn.q_norm.weight', 'attn_q_norm.weight'), _head_norm),
  ('k_norm', 'weight'): Slot(('self_attn.k_norm.weight', 'attn_k_norm.weight'), _head_norm),
} | {
  (name, ours): Slot(
    (f'{PEFT_MODULES[name]}.{theirs}', f'{_GGUF_PROJECTIONS[name]}.{theirs}'), shape(name))
  for name in PEFT_MODULES
  for ours, theirs, shape in (('kernel', 'weight', _kernel), ('bias', 'bias', _bias))
}
HUGGING_FACE, GGUF = 0, 1
_EMBEDDING, _HEAD = ('embedding',), ('head',)
_LAYER_PREFIX = ('model.layers.{}.', 'blk.{}.')
# Largest piece of an embedding or head that is read at once.
_PIECE_BYTES = 1 << 24


def expected_shapes(config: LlamaConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
  """{our path: shape as both formats store it}, without the layer axis; kernel [D_out, D_in]."""
  shapes = {path: slot.shape(config) for path, slot in (_TOP | _LAYER).items()}
  return {path: shape for path, shape in shapes.items() if shape is not None}


def parameter_count(config: LlamaConfig) -> int:
  """How many weights the base has, whatever number format they are stored in."""
  return sum(
    int(np.prod(shape)) * (config.num_layers if path in _LAYER else 1)
    for path, shape in expected_shapes(config).items())


def tensor_names(
  config: LlamaConfig, column: int
) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
  """Yields (name in the file, our path, layer or None) of every tensor.

  Args:
    config: the model's.
    column: HUGGING_FACE or GGUF names.
  """
  for path in expected_shapes(config):
    if path in _LAYER:
      for layer in range(config.num_layers):
        yield _LAYER_PREFIX[column].format(layer) + _LAYER[path].names[column], path, layer
    else:
      yield _TOP[path].names[column], path, None


def check_tensors(
  config: LlamaConfig, tensors: dict[str, StoredTensor], column: int, origin: str
) -> None:
  """Raises InputError when a tensor is unknown, missing or misshapen; reads none of them.

  Args:
    config: the model's, which says the shapes, kernels [D_out, D_in].
    tensors: by name, as the file stores them.
    column: HUGGING_FACE or GGUF names.
    origin: the file or folder, for error messages.
  """
  shapes = expected_shapes(config)
  slots = {name: shapes[path] for name, path, _ in tensor_names(config, column)}
  for name, tensor in tensors.items():
    if name not in slots:
      raise InputError(f'{origin}: unknown tensor {name!r} for a model of this configuration')
    if tuple(tensor.shape) != slots[name]:
      raise InputError(
        f'{origin}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {slots[name]}')
  missing = sorted(set(slots) - set(tensors))
  if missing:
    raise InputError(f'{origin}: {len(missing)} tensors are missing, first {missing[0]!r}')


def convert(
  config: LlamaConfig,
  tensors: dict[str, StoredTensor],
  column: int,
  placement: Placement,
  origin: str,
) -> dict:
  """Builds the `params` tree, reading one tensor at a time into its final place.

  Beside the finished leaves, memory holds one layer of one projection (or _PIECE_BYTES of an
  embedding) as read. Kernels are stored [D_out, D_in] and become [L, D_in, D_out].

  Args:
    config: the model's, which says the shapes.
    tensors: by name, as the file stores them.
    column: HUGGING_FACE or GGUF names.
    placement: dtype, quantisation of the projections' kernels, sharding.
    origin: the file or folder, for error messages.

  Raises:
    InputError: those of `check_tensors` or of `placement.sharding`, before any tensor is read.
  """
  check_tensors(config, tensors, column, origin)
  shapes = expected_shapes(config)
  pieces: dict[tuple[str, ...], list] = {}
  for name, path, layer in tensor_names(config, column):
    pieces.setdefault(path, []).append((layer, tensors[name]))
  if placement.rounded and config.tie_word_embeddings:
    pieces[_HEAD] = pieces[_EMBEDDING]
    shapes[_HEAD] = shapes[_EMBEDDING]
  leaves = params_shape(config, placement)
  shardings = placement.sharding and placement.sharding(config, leaves)
  params = {'layers': {}}
  for path, parts in pieces.items():
    where = ('layers', *path) if path in _LAYER else path
    node = params
    for key in where[:-1]:
      node = node.setdefault(key, {})
    node[where[-1]] = _fill(
      where, shapes[path], parts, placement, _at(leaves, where),
      shardings and _at(shardings, where))
  return params


def _at(nested: dict, where: tuple[str, ...]):
  """The entry of a tree of dicts at the path `where`."""
  for key in where:
    nested = nested[key]
  return nested


def params_shape(config: LlamaConfig, placement: Placement) -> dict:
  """The `params` tree, kernels [L, D_in, D_out], as jax.ShapeDtypeStructs.

  Nothing is read or allocated.
  """
  params, shapes = {'layers': {}}, expected_shapes(config)
  if placement.rounded:
    shapes[_HEAD] = shapes[_EMBEDDING]
  for path, shape in shapes.items():
    where = ('layers', *path) if path in _LAYER else path
    node = params
    for key in where[:-1]:
      node = node.setdefault(key, {})
    node[where[-1]] = _leaf_shape(
      where, shape, config.num_layers if path in _LAYER else None, placement)
  return params


def _prepare(where: tuple[str, ...], placement: Placement) -> Callable:
  """The function that turns a tensor as read, [D_out, D_in] or [D], into its form in the tree."""
  quantize = QUANTIZATIONS[placement.quantization]
  if where[-1] != 'kernel':
    # As rounding what `dtype` holds, with each product anew.
    dtype = jnp.bfloat16 if placement.rounded and where == _HEAD else placement.dtype
    return lambda raw: raw.astype(placement.dtype).astype(dtype)
  stored = quantize or (lambda kernel: kernel.astype(placement.dtype))
  if placement.rounded:
    return lambda raw: rounded(stored(raw.T))
  return lambda raw: stored(raw.T)


def _leaf_shape(where, shape, layers: int | None, placement: Placement):
  """The shape of a leaf from that of one tensor; `layers` is L, or None outside of layers."""
  single = jax.eval_shape(_prepare(where, placement), jax.ShapeDtypeStruct(shape, jnp.float32))
  if layers is None:
    return single
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((layers, *x.shape), x.dtype), single)


def _fill(where, shape, parts: list, placement: Placement, leaf, shardings):
  """Allocates a leaf in its final form and place and writes its tensors into it, in place."""
  stacked = parts[0][0] is not None
  buffer = jax.jit(
    lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), leaf), out_shardings=shardings)()
  prepare = _prepare(where, placement)

  @partial(jax.jit, donate_argnums=0, out_shardings=shardings)
  def write(buffer, raw, start):
    piece = jax.tree.map(lambda x: x[None], prepare(raw)) if stacked else prepare(raw)
    return jax.tree.map(
      lambda b, x: jax.lax.dynamic_update_slice_in_dim(b, x, start, axis=0), buffer, piece)

  for layer, tensor in parts:
    rows = shape[0]
    step = rows if stacked else max(1, _PIECE_BYTES // (4 * max(1, int(np.prod(shape[1:])))))
    for start in range(0, rows, step):
      raw = tensor.read(slice(start, min(start + step, rows)))
      # Waited for, so that no queue of tensors as read builds up.
      buffer = jax.block_until_ready(write(buffer, raw, layer if stacked else start))
  return buffer
