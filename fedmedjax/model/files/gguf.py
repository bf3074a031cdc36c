"""GGUF files: weights, hyper-parameters and a byte-level BPE tokenizer, whole or split in parts.

Block formats are those that the gguf package dequantises (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0,
Q5_1, Q4_K, Q6_K and more).
"""

import math
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import transformers

from fedmedjax.model.files.convert import GGUF, BaseModel, Placement, convert
from fedmedjax.model.files.folder import StoredTensor
from fedmedjax.model.files.gguf_parts import read_parts
from fedmedjax.model.files.hf_config import check_layers, settings_of
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.types import InputError

# Architecture -> whether its q and k rows hold rotary pairs side by side; and features of its
# models that no key of the file tells.
_ARCHITECTURES = {
  'llama': (True, {}),
  'qwen2': (False, {'biases': ('q_proj', 'k_proj', 'v_proj')}),
  'qwen3': (False, {'qk_norm': True}),
}
_ROPE_DIVISORS = 'rope_freqs.weight'
_NO_TOKEN = 0xffffffff  # -1 where a number has no sign


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
  divisors = tensors.pop(_ROPE_DIVISORS, None)
  with settings_of(str(path)):
    config = _config_from_gguf(fields, tensors, divisors, str(path))
    tokenizer = _tokenizer_from_gguf(fields, str(path))
  if _ARCHITECTURES[fields['general.architecture']][0]:
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


def _half_split(read, heads: int):
  """Undoes GGUF's interleaving of the rotary pairs: whole tensors only, all heads at once."""

  def undone(rows: slice) -> np.ndarray:
    values = read(rows)
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)

  return undone


def _config_from_gguf(
  fields: dict, tensors: dict[str, StoredTensor], divisors: StoredTensor | None, origin: str
) -> LlamaConfig:
  """The hyper-parameters in the fields of a file, and in which tensors it has."""
  architecture = fields['general.architecture']
  if architecture not in _ARCHITECTURES:
    raise InputError(
      f'{origin}: architecture {architecture!r}: supported are {", ".join(_ARCHITECTURES)}')
  scaling = fields.get(f'{architecture}.rope.scaling.type', 'none')
  if scaling != 'none':
    raise InputError(
      f"{origin}: rope.scaling.type={scaling!r}: 'none' and the tensor rope_freqs are supported")

  def value(key: str, default=None):
    name = f'{architecture}.{key}'
    found = fields[name] if default is None else fields.get(name, default)
    if not isinstance(found, list):
      return found
    if len(set(found)) != 1:  # one for each layer
      raise InputError(f'{origin}: {name}={found}: the same for all layers is supported')
    return found[0]

  width, heads, layers = (
    value(key) for key in ('embedding_length', 'attention.head_count', 'block_count'))
  check_layers(layers, origin)
  head_dim = value('attention.key_length', value('rope.dimension_count', width // heads))
  rotated = value('rope.dimension_count', head_dim)
  if rotated != head_dim:
    raise InputError(f'{origin}: rope.dimension_count={rotated} of {head_dim}: all are supported')
  for key in ('rope.scale_linear', 'rope.scaling.factor'):
    if value(key, 0.0) not in (0.0, 1.0):
      raise InputError(f'{origin}: {key}={value(key)}: 1 is supported')
  factors = () if divisors is None else tuple(divisors.read(slice(None)).tolist())
  if divisors and (len(factors) != head_dim // 2 or not all(0 < x < math.inf for x in factors)):
    raise InputError(
      f'{origin}: tensor {_ROPE_DIVISORS!r}: {head_dim // 2} finite numbers > 0 are expected')
  window = value('attention.sliding_window', 0)
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
    rope_divisors=factors,
    windows=(window,) * layers if window else (),
    **_ARCHITECTURES[architecture][1],
  )


# How text is split before byte-pair encoding, by GGUF's names for it; None is GPT-2's own pattern.
# smollm parts digits besides, which its vocabulary does anyway.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+')
_GPT2 = (None, False, False)
# name -> (pattern, whether a word that is a token is taken whole, whatever the merges would do,
# whether texts begin with the start token where the file does not say).
_SPLITS = {
  'default': _GPT2, 'gpt-2': _GPT2, 'smollm': _GPT2, 'llama-bpe': (_WORDS % '{1,3}', True, True),
  'qwen2': (_WORDS % '', False, False), 'deepseek-r1-qwen': (_WORDS % '', False, False),
}

# Files from before `tokenizer.ggml.pre` was invented: words of the vocabulary that tell whose it
# is, for each architecture -> the split.
_TOLD_BY_WORDS = {
  'llama': {'<|begin_of_text|>': 'llama-bpe', '<reponame>': 'smollm'},
  'qwen2': {'<|im_start|>': 'qwen2'}, 'qwen3': {'<|im_start|>': 'qwen2'},
}


def _split_name(fields: dict, origin: str) -> str:
  """GGUF's name for how text is split; where the file has none, that which its words tell."""
  if 'tokenizer.ggml.pre' in fields:
    return fields['tokenizer.ggml.pre']
  known = _TOLD_BY_WORDS[fields['general.architecture']]
  words = set(fields['tokenizer.ggml.tokens'])
  told = {split for word, split in known.items() if word in words}
  if len(told) != 1:
    raise InputError(
      f'{origin}: tokenizer.ggml.pre is missing, and its words do not tell how to split text; '
      'write it into a copy, as in: gguf-new-metadata --pre-tokenizer llama-bpe OLD.gguf NEW.gguf '
      f'({", ".join(_SPLITS)} are supported)')
  return told.pop()


def _tokenizer_from_gguf(fields: dict, origin: str) -> transformers.PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer from GGUF metadata, as transformers rebuilds it."""
  kind = fields['tokenizer.ggml.model']
  if kind != 'gpt2':
    raise InputError(f"{origin}: tokenizer model {kind!r}: 'gpt2' (byte-level BPE) is supported")
  split = _split_name(fields, origin)
  if split not in _SPLITS:
    raise InputError(
      f'{origin}: pre-tokenizer {split!r}: {", ".join(_SPLITS)} are supported; use the safetensors '
      'folder of the model')
  words = fields['tokenizer.ggml.tokens']
  merges = [tuple(merge.split(' ')) for merge in fields['tokenizer.ggml.merges']]
  pattern, whole_words, starts = _SPLITS[split]
  try:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={word: index for index, word in enumerate(words)}, merges=merges,
      ignore_merges=whole_words))
  except Exception as error:  # the library raises bare exceptions
    raise InputError(f'{origin}: its tokenizer cannot be rebuilt: {error}') from None
  steps = tokenizers.pre_tokenizers
  backend.pre_tokenizer = steps.ByteLevel(add_prefix_space=False) if pattern is None else (
    steps.Sequence([
      steps.Split(tokenizers.Regex(pattern), 'isolated'),
      steps.ByteLevel(add_prefix_space=False, use_regex=False)]))
  backend.decoder = tokenizers.decoders.ByteLevel()
  kinds = fields['tokenizer.ggml.token_type']
  if len(kinds) != len(words):
    raise InputError(
      f'{origin}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(words)} tokens')
  # Both are taken whole wherever a text has them; control tokens mean something to the model.
  for kind, special in ((gguf.TokenType.CONTROL, True), (gguf.TokenType.USER_DEFINED, False)):
    backend.add_tokens([
      tokenizers.AddedToken(word, special=special, normalized=False)
      for word, number in zip(words, kinds, strict=True) if number == kind])

  def named(key: str) -> str | None:
    index = fields.get(f'tokenizer.ggml.{key}_token_id', _NO_TOKEN)
    if index in (_NO_TOKEN, -1):
      return None
    if not 0 <= index < len(words):
      raise InputError(
        f'{origin}: tokenizer.ggml.{key}_token_id={index}: there are {len(words)} tokens')
    return words[index]

  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=named('bos'), eos_token=named('eos'),
    unk_token=named('unknown'), pad_token=named('padding'),
    chat_template=fields.get('tokenizer.chat_template'),
    add_bos_token=bool(fields.get('tokenizer.ggml.add_bos_token', starts)))
