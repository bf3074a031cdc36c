"""Loads a model from a GGUF file, a folder of safetensors, or a Hugging Face hub id.

Nothing is unpickled and no code from a model folder is run.
"""

import json
import re
from pathlib import Path

import huggingface_hub
import ml_dtypes  # noqa: F401  numpy knows bfloat16 only once this is imported
import numpy as np
import safetensors
import transformers

from fedmedjax.model.convert import (
  HUGGING_FACE,
  BaseModel,
  Placement,
  StoredTensor,
  check_tensors,
  convert,
)
from fedmedjax.model.gguf_file import load_gguf
from fedmedjax.model.quant import check_quantization
from fedmedjax.model.settings import config_from_hugging_face
from fedmedjax.types import InputError

_FLOAT32 = Placement()
_INDEX = 'model.safetensors.index.json'
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt')
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'vocab.txt')
_DTYPES = ('F64', 'F32', 'F16', 'BF16')
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+(@[\w./-]+)?')
_HUB_FILES = ('config.json', 'generation_config.json', '*.safetensors', _INDEX, 'tokenizer*',
              'special_tokens_map.json', 'vocab.json', 'merges.txt', 'added_tokens.json')
# Buffers of old checkpoints that hold no weights.
_NOT_WEIGHTS = re.compile(r'.*\.rotary_emb\.inv_freq')


def load_model(path: str | Path, placement: Placement = _FLOAT32) -> BaseModel:
  """Loads weights, hyper-parameters and tokenizer.

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
  if len(model.tokenizer) > model.config.vocab_size:
    raise InputError(
      f'{path}: its tokenizer has {len(model.tokenizer)} tokens, the model '
      f'{model.config.vocab_size}')
  return model


def resolve(path: str | Path) -> Path:
  """The GGUF file or the folder behind a path or hub id; see `load_model`."""
  file = Path(path).expanduser()
  if file.is_dir() or file.is_file() and file.suffix == '.gguf':
    return file
  if file.is_file() and file.suffix in _PICKLES:
    raise InputError(_pickle_message(file, file.parent))
  if not file.exists() and _HUB_ID.fullmatch(str(path)):
    return _hub_folder(str(path))
  raise InputError(
    f'config.model.path={str(path)!r}: a .gguf file, a folder with config.json and '
    "*.safetensors, or a hub id 'owner/name' is allowed; nothing like it is there")


def _pickle_message(file: Path, folder: Path) -> str:
  return (
    f'{file}: a pickle, which can run code, is not read; convert it once, where you trust it: '
    f'python -c "from transformers import AutoModelForCausalLM as M; '
    f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"")


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
    if (folder / 'config.json').is_file() and _has_tokenizer(folder) and all(
        file.is_file() for file in _weight_files(folder, {})):
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


def read_settings(folder: Path) -> dict:
  """config.json of a model folder; raises InputError when it cannot be read."""
  try:
    settings = json.loads((folder / 'config.json').read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{folder}/config.json: cannot be read: {error}') from None
  if not isinstance(settings, dict):
    raise InputError(f'{folder}/config.json: a JSON object is expected')
  return settings


def _weight_files(folder: Path, index: dict[str, str]) -> list[Path]:
  """The safetensors files of a folder, by its index when it has one; fills `index` from it.

  Raises InputError when there is none.
  """
  if (folder / _INDEX).is_file():
    try:
      index |= json.loads((folder / _INDEX).read_text())['weight_map']
      # The name only: an index must not lead out of its folder.
      return [folder / Path(name).name for name in sorted(set(index.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(f'{folder}/{_INDEX}: cannot be read: {error}') from None
  whole = folder / 'model.safetensors'
  files = [whole] if whole.is_file() else sorted(folder.glob('*.safetensors'))
  if not files:
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    raise InputError(
      _pickle_message(pickled[0], folder) if pickled else f'{folder}: no *.safetensors file')
  return files


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
  """Every tensor of a folder's safetensors files by name, none of them read yet.

  A file is opened for each read and closed after it, so that its pages do not stay in memory.

  Raises InputError: no file, a shard that is missing, a damaged file, a tensor in two files, a
  dtype that is no plain float.
  """
  index: dict[str, str] = {}
  tensors, home = {}, {}

  def reader(file: Path, name: str):
    def read(rows: slice) -> np.ndarray:
      with safetensors.safe_open(file, 'np') as archive:
        return archive.get_slice(name)[rows]
    return read

  for file in _weight_files(folder, index):
    if not file.is_file():
      raise InputError(f'{folder}: {file.name}, named by {_INDEX}, is missing')
    try:
      with safetensors.safe_open(file, 'np') as archive:
        for name in archive.keys():
          if _NOT_WEIGHTS.fullmatch(name):
            continue
          view = archive.get_slice(name)
          if view.get_dtype() not in _DTYPES:
            raise InputError(
              f'{file}: tensor {name!r} is of type {view.get_dtype()}; {", ".join(_DTYPES)} are '
              'read (load unquantised weights and set config.model.quantization)')
          if name in tensors:
            raise InputError(
              f'{folder}: tensor {name!r} occurs twice, in {home[name]} and {file.name}')
          tensors[name] = StoredTensor(tuple(view.get_shape()), reader(file, name))
          home[name] = file.name
    except (safetensors.SafetensorError, OSError) as error:
      raise InputError(f'{file}: damaged safetensors file: {error}') from None
  return tensors


def _load_folder(folder: Path, placement: Placement, name: str) -> BaseModel:
  config = config_from_hugging_face(read_settings(folder), f'{folder}/config.json')
  tensors = stored_tensors(folder)
  if config.tie_word_embeddings:
    # A tied model may carry its head a second time.
    tensors.pop('lm_head.weight', None)
  # Before the tokenizer and the long reading: mistakes show at once.
  check_tensors(config, tensors, HUGGING_FACE, str(folder))
  tokenizer = _load_tokenizer(folder)
  try:
    params = convert(config, tensors, HUGGING_FACE, placement, str(folder))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{folder}: damaged safetensors file: {error}') from None
  return BaseModel(config, params, tokenizer, name)


def _has_tokenizer(folder: Path) -> bool:
  return any((folder / name).is_file() for name in _TOKENIZERS)


def _load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
  if not _has_tokenizer(folder):
    # transformers would build one that knows no word.
    raise InputError(
      f'{folder}: its tokenizer cannot be loaded: none of {", ".join(_TOKENIZERS)} is there')
  try:
    return transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # the tokenizer library raises bare exceptions for damaged files
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{folder}: its tokenizer cannot be loaded: {line}') from None
