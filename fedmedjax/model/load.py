"""Reads LLaMA weights, hyper-parameters and tokenizers from GGUF files and safetensors folders.

One table names every tensor: its place in our tree, its Hugging Face name and its GGUF name.
Conversion is strict both ways: a tensor that is unknown, missing, misshapen or written twice is
an InputError that names it. Nothing is unpickled and no code from a model folder is run.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
import safetensors
import tokenizers
import transformers

from fedmedjax.model.llama import PROJECTIONS, LlamaConfig, RopeScaling
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
_HUGGING_FACE, _GGUF = 0, 1


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


def load_model(path: str | Path, dtype=jnp.float32) -> BaseModel:
  """Loads a `.gguf` file or a folder with config.json, *.safetensors and a tokenizer.

  Raises InputError when the path is neither, or its content is damaged or not a LLaMA.
  """
  path = Path(path).expanduser()
  if path.is_dir():
    model = _load_safetensors(path, dtype)
  elif path.is_file() and path.suffix == '.gguf':
    model = _load_gguf(path, dtype)
  else:
    raise InputError(
      f'config.model.path={str(path)!r}: a .gguf file or a folder with config.json and '
      '*.safetensors is allowed; nothing like it is there')
  if model.tokenizer.eos_token_id is None:
    raise InputError(f'{path}: its tokenizer names no end token (eos_token)')
  if len(model.tokenizer) > model.config.vocab_size:
    raise InputError(
      f'{path}: its tokenizer has {len(model.tokenizer)} tokens, the model '
      f'{model.config.vocab_size}')
  return model


# ---------------------------------------------------------------- safetensors


def config_from_hugging_face(settings: dict, origin: str) -> LlamaConfig:
  """config.json -> LlamaConfig; anything this decoder does not compute is refused by name."""
  try:
    if settings.get('model_type') != 'llama':
      raise InputError(
        f"{origin}: model_type={settings.get('model_type')!r}: 'llama' is supported")
    for flag in ('attention_bias', 'mlp_bias'):
      if settings.get(flag):
        raise InputError(f'{origin}: {flag}={settings[flag]!r} is not supported')
    if settings.get('hidden_act', 'silu') != 'silu':
      raise InputError(f"{origin}: hidden_act={settings['hidden_act']!r}: 'silu' is supported")
    # transformers 5 moved theta and scaling into one entry; older files keep them apart.
    rope = settings.get('rope_parameters') or settings.get('rope_scaling') or {}
    heads = int(settings['num_attention_heads'])
    return LlamaConfig(
      vocab_size=int(settings['vocab_size']),
      hidden_size=int(settings['hidden_size']),
      intermediate_size=int(settings['intermediate_size']),
      num_layers=int(settings['num_hidden_layers']),
      num_heads=heads,
      num_kv_heads=int(settings.get('num_key_value_heads') or heads),
      head_dim=int(settings.get('head_dim') or settings['hidden_size'] // heads),
      rms_norm_eps=float(settings['rms_norm_eps']),
      rope_theta=float(rope.get('rope_theta', settings.get('rope_theta', 10000.0))),
      rope_scaling=_rope_scaling(rope, origin),
      max_position_embeddings=int(settings['max_position_embeddings']),
      tie_word_embeddings=bool(settings.get('tie_word_embeddings', False)),
    )
  except KeyError as error:
    raise InputError(f'{origin}: key {error.args[0]!r} is missing') from None
  except InputError:
    raise
  except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
    raise InputError(f'{origin}: not a LLaMA configuration: {error}') from None


def _rope_scaling(rope: dict, origin: str) -> RopeScaling | None:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise InputError(f"{origin}: rope_type={kind!r}: 'default' and 'llama3' are supported")
  return RopeScaling(
    float(rope['factor']), float(rope['low_freq_factor']), float(rope['high_freq_factor']),
    int(rope['original_max_position_embeddings']))


def _load_safetensors(folder: Path, dtype) -> BaseModel:
  try:
    settings = json.loads((folder / 'config.json').read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{folder}/config.json: cannot be read: {error}') from None
  if not isinstance(settings, dict):
    raise InputError(f'{folder}/config.json: a JSON object is expected')
  config = config_from_hugging_face(settings, f'{folder}/config.json')
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    pickled = sorted(folder.glob('*.bin')) + sorted(folder.glob('*.pt'))
    hint = f' ({pickled[0].name} is a pickle and is not read)' if pickled else ''
    raise InputError(f'{folder}: no *.safetensors file{hint}')

  def tensors():
    for file in files:
      with safetensors.safe_open(file, 'np') as archive:
        for name in archive.keys():
          # A tied model may carry its head a second time.
          if config.tie_word_embeddings and name == 'lm_head.weight':
            continue
          shape = tuple(archive.get_slice(name).get_shape())
          yield name, shape, lambda archive=archive, name=name: archive.get_tensor(name)

  try:
    params = convert(config, tensors(), _HUGGING_FACE, dtype, str(folder))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{folder}: damaged safetensors file: {error}') from None
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except Exception as error:  # the tokenizer library raises bare exceptions for damaged files
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{folder}: its tokenizer cannot be loaded: {line}') from None
  return BaseModel(config, params, tokenizer, folder.name)


# ----------------------------------------------------------------------- GGUF


def _load_gguf(path: Path, dtype) -> BaseModel:
  try:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
  except Exception as error:  # the reader raises whatever its numpy views hit
    raise InputError(f'{path}: not a readable GGUF file: {error}') from None
  try:
    config = _config_from_gguf(fields, {tensor.name for tensor in reader.tensors}, str(path))
    tokenizer = _tokenizer_from_gguf(fields, str(path))
  except KeyError as error:
    raise InputError(f'{path}: GGUF key {error.args[0]!r} is missing') from None

  def read(tensor) -> np.ndarray:
    try:
      values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except Exception as error:
      raise InputError(f'{path}: tensor {tensor.name!r} cannot be dequantised: {error}') from None
    # GGUF interleaves the rotary pairs of q and k; undo it to the half-split layout.
    for name, heads in (('attn_q.', config.num_heads), ('attn_k.', config.num_kv_heads)):
      if name in tensor.name:
        rows, width = values.shape
        values = values.reshape(heads, rows // heads // 2, 2, width)
        values = values.swapaxes(1, 2).reshape(rows, width)
    return values

  def tensors():
    for tensor in reader.tensors:
      if config.tie_word_embeddings and tensor.name == 'output.weight':
        continue
      # GGUF lists dimensions fastest first.
      shape = tuple(int(n) for n in tensor.shape[::-1])
      yield tensor.name, shape, lambda tensor=tensor: read(tensor)

  params = convert(config, tensors(), _GGUF, dtype, str(path))
  return BaseModel(config, params, tokenizer, path.stem)


def _config_from_gguf(fields: dict, names: set[str], origin: str) -> LlamaConfig:
  architecture = fields['general.architecture']
  if architecture != 'llama':
    raise InputError(f"{origin}: architecture {architecture!r}: 'llama' is supported")
  if any(key.startswith('llama.rope.scaling') for key in fields) or 'rope_freqs.weight' in names:
    raise InputError(f'{origin}: scaled rotary frequencies in a GGUF file are not supported')
  width, heads = fields['llama.embedding_length'], fields['llama.attention.head_count']
  return LlamaConfig(
    vocab_size=len(fields['tokenizer.ggml.tokens']),
    hidden_size=width,
    intermediate_size=fields['llama.feed_forward_length'],
    num_layers=fields['llama.block_count'],
    num_heads=heads,
    num_kv_heads=fields.get('llama.attention.head_count_kv', heads),
    head_dim=fields.get('llama.rope.dimension_count', width // heads),
    rms_norm_eps=float(fields['llama.attention.layer_norm_rms_epsilon']),
    rope_theta=float(fields.get('llama.rope.freq_base', 10000.0)),
    rope_scaling=None,
    max_position_embeddings=fields['llama.context_length'],
    tie_word_embeddings='output.weight' not in names,
  )


# GGUF names of pre-tokenizers that split text as GPT-2 does (smollm parts digits besides, which
# its vocabulary does anyway).
_GPT2_SPLITS = ('default', 'gpt-2', 'smollm')


def _tokenizer_from_gguf(fields: dict, origin: str) -> transformers.PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer from GGUF metadata, as transformers rebuilds it."""
  kind = fields['tokenizer.ggml.model']
  if kind != 'gpt2':
    raise InputError(f"{origin}: tokenizer model {kind!r}: 'gpt2' (byte-level BPE) is supported")
  split = fields.get('tokenizer.ggml.pre', 'default')
  if split not in _GPT2_SPLITS:
    raise InputError(
      f'{origin}: pre-tokenizer {split!r}: {", ".join(_GPT2_SPLITS)} are supported; convert the '
      'model to a safetensors folder')
  words = fields['tokenizer.ggml.tokens']
  merges = [tuple(merge.split(' ')) for merge in fields['tokenizer.ggml.merges']]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(
    vocab={word: index for index, word in enumerate(words)}, merges=merges))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  # GGUF token types: 3 = control, never produced by plain text.
  control = [
    word for word, kind in zip(words, fields['tokenizer.ggml.token_type'], strict=True)
    if kind == 3]
  backend.add_special_tokens(control)

  def special(key: str) -> str | None:
    index = fields.get(f'tokenizer.ggml.{key}_token_id')
    return None if index is None else words[index]

  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=special('bos'), eos_token=special('eos'),
    unk_token=special('unknown'), pad_token=special('padding'),
    add_bos_token=bool(fields.get('tokenizer.ggml.add_bos_token', False)))
