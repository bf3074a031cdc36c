"""GGUF files: weights, hyper-parameters and a byte-level BPE tokenizer from one file."""

from pathlib import Path

import gguf
import numpy as np
import tokenizers
import transformers

from fedmedjax.model.convert import GGUF, BaseModel, convert
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.types import InputError


def load_gguf(path: Path, dtype) -> BaseModel:
  """Raises InputError when the file is damaged or not a LLaMA."""
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

  params = convert(config, tensors(), GGUF, dtype, str(path))
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
