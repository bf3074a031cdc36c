"""The tokenizer in a GGUF file's metadata: byte-level BPE, and SentencePiece by transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import tokenizers
import transformers

from fedmedjax.types import InputError

_NO_TOKEN = 0xffffffff  # -1 where a number has no sign
# How text is split before byte-pair encoding, by GGUF's names for it; None is GPT-2's own pattern.
# smollm parts digits besides, which its vocabulary does anyway.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+')
# The same as GPT-4o parts them: capitals and small letters, with what hangs on them.
_CASED = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
  r'|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+').replace(
    '%s', r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
_GPT2 = (None, False, False)
# name -> (pattern, whether a word that is a token is taken whole, whatever the merges would do,
# whether texts begin with the start token where the file does not say).
_SPLITS = {
  'default': _GPT2, 'gpt-2': _GPT2, 'smollm': _GPT2, 'llama-bpe': (_WORDS % '{1,3}', True, True),
  'qwen2': (_WORDS % '', False, False), 'deepseek-r1-qwen': (_WORDS % '', False, False),
  # Phi-4 and Phi-4-mini.
  'dbrx': (_WORDS % '{1,3}', False, False), 'gpt-4o': (_CASED, False, False),
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
  known = _TOLD_BY_WORDS.get(fields['general.architecture'], {})
  words = set(fields['tokenizer.ggml.tokens'])
  told = {split for word, split in known.items() if word in words}
  if len(told) != 1:
    raise InputError(
      f'{origin}: tokenizer.ggml.pre is missing, and its words do not tell how to split text; '
      'write it into a copy, as in: gguf-new-metadata --pre-tokenizer llama-bpe OLD.gguf NEW.gguf '
      f'({", ".join(_SPLITS)} are supported)')
  return told.pop()


def tokenizer_from_gguf(
  fields: dict, path: Path, kinds: Sequence[str]
) -> transformers.PreTrainedTokenizerBase:
  """A tokenizer from GGUF metadata, as transformers rebuilds it.

  Args:
    fields: the metadata.
    path: the file that holds it.
    kinds: keys of TOKENIZERS that the architecture may have.

  Raises:
    InputError: it is of a kind that is not read, or damaged.
  """
  kind = fields['tokenizer.ggml.model']
  if kind not in kinds:
    allowed = ' and '.join(f'{name!r} ({TOKENIZERS[name].called})' for name in kinds)
    raise InputError(f'{path}: tokenizer model {kind!r}: {allowed} is supported')
  tokenizer = TOKENIZERS[kind].read(fields, path)
  tokenizer.chat_template = fields.get('tokenizer.chat_template')
  return tokenizer


def _sentence_piece(fields: dict, path: Path) -> transformers.PreTrainedTokenizerBase:
  """SentencePiece as transformers rebuilds it, which reads the file itself."""
  try:
    return transformers.AutoTokenizer.from_pretrained(
      path.parent, gguf_file=path.name, local_files_only=True)
  except Exception as error:  # whatever its reader and the tokenizer library raise
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{path}: its tokenizer cannot be rebuilt: {line}') from None


def _byte_level(fields: dict, path: Path) -> transformers.PreTrainedTokenizerFast:
  """Byte-level BPE from a file's words, merges and the name of how it splits text."""
  origin = str(path)
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
    add_bos_token=bool(fields.get('tokenizer.ggml.add_bos_token', starts)))


class TokenizerKind(NamedTuple):
  """A value of the field tokenizer.ggml.model."""

  read: Callable  # (fields, path) -> the tokenizer
  called: str     # in messages


TOKENIZERS = {
  'gpt2': TokenizerKind(_byte_level, 'byte-level BPE'),
  'llama': TokenizerKind(_sentence_piece, 'SentencePiece'),
}
