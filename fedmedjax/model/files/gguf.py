"""GGUF files: weights and hyper-parameters, whole or split in parts.

Block formats are those that the gguf package dequantises (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0,
Q5_1, Q4_K, Q6_K and more).
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from fedmedjax.model.files.convert import GGUF, BaseModel, Placement, convert
from fedmedjax.model.files.folder import StoredTensor
from fedmedjax.model.files.gguf_parts import read_parts
from fedmedjax.model.files.gguf_tokenizer import tokenizer_from_gguf
from fedmedjax.model.files.hf_config import check_layers, settings_of
from fedmedjax.model.files.rope_settings import long_rope_factor
from fedmedjax.model.llama_config import LlamaConfig
from fedmedjax.types import InputError


class Architecture(NamedTuple):
  """What no key of a file tells, or what holds where the file lacks a key, as llama.cpp has it."""

  values: dict[str, Any] = {}   # fields of LlamaConfig
  pairs: bool = False           # whether q and k rows hold rotary pairs side by side
  numbers: dict[str, tuple[str, float]] = {}  # field -> key and the number where it is missing
  partial: bool = False         # whether a part of a head may be rotated
  window: int = 0               # the keys that a query sees where the file does not say; 0 = all
  full_every: int = 0           # of layers with a window every n-th sees all; 0 = none of them
  local_base: float = 0.0       # of the rotation in layers with a window; 0 = as in all
  by_width: int = 0             # models of so many layers scale scores by width / heads
  tokenizers: tuple[str, ...] = ('gpt2',)  # kinds that are read, keys of TOKENIZERS


_GEMMA = {
  'norm_plus_one': True, 'norms_after': True, 'scaled_embedding': True, 'activation': 'gelu_tanh'}
# transformers rebuilds the tokenizer of these from SentencePiece vocabularies.
_EITHER = ('gpt2', 'llama')
_ARCHITECTURES = {
  'llama': Architecture(pairs=True),
  'qwen2': Architecture({'biases': ('q_proj', 'k_proj', 'v_proj')}),
  'qwen3': Architecture({'qk_norm': True}),
  'gemma2': Architecture(
    _GEMMA, numbers={
      'score_cap': ('attn_logit_softcapping', 50.0),
      'logit_cap': ('final_logit_softcapping', 30.0)},
    window=4096, full_every=2, by_width=46, tokenizers=_EITHER),
  'gemma3': Architecture(
    _GEMMA | {'qk_norm': True}, numbers={'logit_cap': ('final_logit_softcapping', 0.0)},
    full_every=6, local_base=10000.0, by_width=62, tokenizers=_EITHER),
  'phi3': Architecture({'fused': True}, partial=True, tokenizers=_EITHER),
}
_ROPE_DIVISORS = 'rope_freqs.weight'
_LONG_ROPE = ('rope_factors_short.weight', 'rope_factors_long.weight')
# Values of rope.scaling.type -> the tensors that it needs.
_SCALINGS: dict[str, tuple[str, ...]] = {'none': (), 'linear': (), 'longrope': _LONG_ROPE}


def load_gguf(path: Path, placement: Placement) -> BaseModel:
  """Loads weights, kernels [L, D_in, D_out], hyper-parameters and tokenizer of a GGUF file.

  Of a split model `path` is any file; all are read.

  Raises:
    InputError: a file is damaged, missing or of an architecture that is not supported.
  """
  parts = read_parts(path)
  fields = parts[0].fields
  tensors: dict[str, StoredTensor] = {}
  for part in parts:
    for tensor in part.tensors:
      if tensor.name in tensors:
        raise InputError(f'{part.path}: tensor {tensor.name!r} occurs twice')
      tensors[tensor.name] = _stored(part.path, tensor)
  rotation = {
    name: tensors.pop(name) for name in (_ROPE_DIVISORS, *_LONG_ROPE) if name in tensors}
  with settings_of(str(path)):
    config = _config_from_gguf(fields, tensors, rotation, str(path))
    tokenizer = tokenizer_from_gguf(
      fields, parts[0].path, _ARCHITECTURES[fields['general.architecture']].tokenizers)
  if config.norm_plus_one:  # which the file has done already
    tensors = {
      name: tensor._replace(read=_less_one(tensor.read)) if name.endswith('norm.weight') else tensor
      for name, tensor in tensors.items()}
  if _ARCHITECTURES[fields['general.architecture']].pairs:
    for name, tensor in tensors.items():
      for part, heads in (('.attn_q.', config.num_heads), ('.attn_k.', config.num_kv_heads)):
        if part in name:
          tensors[name] = tensor._replace(read=_half_split(tensor.read, heads))
  params = convert(config, tensors, GGUF, placement, str(path))
  return BaseModel(config, params, tokenizer, path.stem)


def _stored(path: Path, tensor) -> StoredTensor:
  """A tensor of the file, which reads bytes rather than a memory map, whose pages would stay."""
  # GGUF lists dimensions fastest first. A row of blocks is a row of bytes.
  shape = tuple(int(n) for n in tensor.shape[::-1])
  row_bytes = tensor.n_bytes // shape[0]

  def read(rows: slice) -> np.ndarray:
    start, stop, _ = rows.indices(shape[0])
    try:
      raw = np.fromfile(
        path, np.uint8, (stop - start) * row_bytes, offset=tensor.data_offset + start * row_bytes)
      # float32 whatever the block format.
      values = gguf.dequantize(raw.reshape(stop - start, row_bytes), tensor.tensor_type)
      return values.reshape(stop - start, *shape[1:])
    except Exception as error:
      raise InputError(f'{path}: tensor {tensor.name!r} cannot be dequantised: {error}') from None

  return StoredTensor(shape, read)


def _less_one(read):
  """Undoes GGUF's addition of 1 to the weights of norms."""
  return lambda rows: read(rows) - 1


def _half_split(read, heads: int):
  """Undoes GGUF's interleaving of the rotary pairs: whole tensors only, all heads at once."""

  def undone(rows: slice) -> np.ndarray:
    values = read(rows)
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)

  return undone


def _config_from_gguf(
  fields: dict, tensors: dict[str, StoredTensor], rotation: dict[str, StoredTensor], origin: str
) -> LlamaConfig:
  """The hyper-parameters in the fields of a file, and in which tensors it has."""
  name = fields['general.architecture']
  if name not in _ARCHITECTURES:
    experts = 'a mixture of experts is not computed; ' if fields.get(f'{name}.expert_count') else ''
    raise InputError(
      f'{origin}: architecture {name!r}: {experts}supported are {", ".join(_ARCHITECTURES)}')
  architecture = _ARCHITECTURES[name]

  def value(key: str, default=None):
    full = f'{name}.{key}'
    found = fields[full] if default is None else fields.get(full, default)
    if not isinstance(found, list):
      return found
    if len(set(found)) != 1:  # one for each layer
      raise InputError(f'{origin}: {full}={found}: the same for all layers is supported')
    return found[0]

  if value('expert_count', 0):
    raise InputError(
      f'{origin}: {name}.expert_count={value("expert_count")}: a mixture of experts is not '
      'computed')
  width, heads, layers = (
    value(key) for key in ('embedding_length', 'attention.head_count', 'block_count'))
  check_layers(layers, origin)
  whole = width // heads
  head_dim = value('attention.key_length', whole if architecture.partial else (
    value('rope.dimension_count', whole)))
  windows = _windows(architecture, layers, value('attention.sliding_window', architecture.window),
                     fields.get(f'{name}.attention.sliding_window_pattern'), origin)
  local = float(value('rope.freq_base_swa', architecture.local_base)) if (
    architecture.local_base and windows) else 0.0
  return LlamaConfig(
    vocab_size=tensors['token_embd.weight'].shape[0] if 'token_embd.weight' in tensors else (
      len(fields['tokenizer.ggml.tokens'])),
    hidden_size=width,
    intermediate_size=value('feed_forward_length'),
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=value('attention.head_count_kv', heads),
    head_dim=head_dim,
    rms_norm_eps=float(value('attention.layer_norm_rms_epsilon')),
    rope_theta=float(value('rope.freq_base', 10000.0)),
    max_position_embeddings=value('context_length'),
    tie_word_embeddings='output.weight' not in tensors,
    windows=windows,
    local_rope_theta=local,
    query_scalar=width / heads if architecture.by_width == layers else 0.0,
    **_rotation(architecture, value, head_dim, rotation, origin),
    **{field: float(value(*given)) for field, given in architecture.numbers.items()},
    **architecture.values)


def _windows(
  architecture: Architecture, layers: int, size: int, pattern: Any, origin: str
) -> tuple[int, ...]:
  """Per layer, the keys that a query sees (0 = all); empty when all layers see all.

  Args:
    architecture: its default pattern.
    layers: L.
    size: of the window; 0 = none.
    pattern: every how many layers one sees all, or whether each has a window; None = the default.
    origin: the file, for error messages.
  """
  if not size:
    return ()
  every = architecture.full_every if pattern is None else pattern
  if not isinstance(every, list):
    every = [not every or layer % every < every - 1 for layer in range(layers)]
  if len(every) != layers:
    raise InputError(
      f'{origin}: attention.sliding_window_pattern has {len(every)} entries for {layers} layers')
  return tuple(size if windowed else 0 for windowed in every) if any(every) else ()


def _rotation(
  architecture: Architecture, value, head_dim: int, rotation: dict[str, StoredTensor], origin: str
) -> dict[str, Any]:
  """The fields of LlamaConfig that rotate beside the bases.

  Args:
    architecture: the file's.
    value: (key, default) -> the field of the file.
    head_dim: d.
    rotation: its tensors of divisors, [rotated / 2], by name.
    origin: the file, for error messages.
  """
  kind = value('rope.scaling.type', 'none')
  if kind not in _SCALINGS:
    raise InputError(
      f'{origin}: rope.scaling.type={kind!r}: {", ".join(map(repr, _SCALINGS))} and the tensor '
      'rope_freqs are supported')
  rotated = value('rope.dimension_count', head_dim)
  if rotated != head_dim and not (architecture.partial and 0 < rotated < head_dim and (
      rotated % 2 == 0)):
    raise InputError(f'{origin}: rope.dimension_count={rotated} of {head_dim}: all are supported')
  factor = float(value('rope.scaling.factor', value('rope.scale_linear', 0.0)) or 1.0)
  divisors = {}
  for name, tensor in rotation.items():
    divisors[name] = tuple(tensor.read(slice(None)).tolist())
    if len(divisors[name]) != rotated // 2 or not all(0 < x < math.inf for x in divisors[name]):
      raise InputError(
        f'{origin}: tensor {name!r}: {rotated // 2} finite numbers > 0 are expected')
  fields = {'rotary_dim': 0 if rotated == head_dim else rotated}
  long = [divisors.get(name) for name in _LONG_ROPE]
  if all(long):
    original = value('rope.scaling.original_context_length')
    context = value('context_length')
    return fields | {
      'rope_divisors': long[0], 'long_rope_divisors': long[1], 'rope_original': original,
      'rope_factor': float(value(
        'rope.scaling.attn_factor', long_rope_factor(context, original)))}
  # Here not all that LongRoPE has are there.
  if any(long) or _SCALINGS[kind] or (
      factor != 1.0 and (divisors or not 0 < factor < math.inf)):
    raise InputError(
      f'{origin}: rope.scaling.type={kind!r}, rope.scaling.factor={factor:g} and the tensors '
      f'{sorted(divisors)}: a factor, rope_freqs or both of {", ".join(_LONG_ROPE)} are supported')
  return fields | {'rope_divisors': divisors.get(_ROPE_DIVISORS, ()) if factor == 1.0 else (
    (factor,) * (rotated // 2))}
