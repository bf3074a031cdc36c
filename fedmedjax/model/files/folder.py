"""Model folders in Hugging Face's layout: settings, tensors and tokenizer read, weights written.

Nothing is unpickled and no code from a folder is run.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  numpy knows bfloat16 only once this is imported
import numpy as np
import safetensors.numpy
import transformers

from fedmedjax.types import InputError

INDEX = 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt')
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'vocab.txt')
_TOKENIZER_SETTINGS = (
  'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'merges.txt')
_SHARD = re.compile(r'[^/\\\0]+\.safetensors')
_DTYPES = ('F64', 'F32', 'F16', 'BF16')
# How Git's large-file storage begins the note that it leaves in place of a file.
_POINTER = b'version https://git-lfs.github.com/spec/'
# Buffers of old checkpoints that hold no weights.
_NOT_WEIGHTS = re.compile(r'.*\.rotary_emb\.inv_freq|(.*\.)?embeddings\.position_ids')


class StoredTensor(NamedTuple):
  """A tensor that is still in its file; `read(rows)` reads a slice of its first axis.

  A kernel is stored [D_out, D_in].
  """

  shape: tuple[int, ...]
  read: Callable[[slice], np.ndarray]


def pickle_message(file: Path, folder: Path, model: str = 'AutoModelForCausalLM') -> str:
  """The error for a pickle: why it is not read, and the command that converts it.

  Args:
    file: the pickle.
    folder: the model folder that it belongs to.
    model: transformers' class that loads it.
  """
  return (
    f'{file}: is a pickle and is not read, since it can run code; convert it once, where you trust '
    f'it: python -c "from transformers import {model} as M; '
    f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"")


def check_pointer(file: Path) -> None:
  """Raises InputError for a note of Git's large-file storage where a file of a model should be."""
  try:
    with file.open('rb') as opened:
      begins = opened.read(len(_POINTER))
  except OSError:
    return  # whoever reads the file says why it cannot be read
  if begins == _POINTER:
    raise InputError(
      f'{file}: is a Git LFS pointer and not the file itself; fetch it with: '
      f"git -C '{file.parent}' lfs pull")


def check_dtype(file: Path, name: str, view: Any) -> None:
  """Raises InputError unless a tensor of a safetensors file, as opened, is of plain floats."""
  if view.get_dtype() not in _DTYPES:
    raise InputError(
      f'{file}: tensor {name!r} is of type {view.get_dtype()}; {", ".join(_DTYPES)} are read; use '
      'the unquantised weights')


def read_settings(folder: Path) -> dict[str, Any]:
  """The content of a model folder's config.json; raises InputError when it cannot be read."""
  check_pointer(folder / 'config.json')
  if not (folder / 'config.json').exists() and (folder / 'adapter_config.json').exists():
    raise InputError(
      f'{folder}: is an adapter (adapter_config.json), not a model; name its base, and the adapter '
      'as config.lora.start')
  if (folder / 'adapter_config.json').exists():
    raise InputError(
      f'{folder}: holds a model and an adapter (adapter_config.json), and transformers would apply '
      'the one to the other; put them into two folders, and name the adapter as config.lora.start')
  if not (folder / 'config.json').exists() and any(folder.glob('*.gguf')):
    raise InputError(f'{folder}: no config.json; name the .gguf file in it, not the folder')
  try:
    settings = json.loads((folder / 'config.json').read_text(encoding='utf-8-sig'))
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{folder}/config.json: cannot be read: {error}') from None
  if not isinstance(settings, dict):
    raise InputError(f'{folder}/config.json: a JSON object is expected')
  return settings


def weight_files(folder: Path, model: str = 'AutoModelForCausalLM') -> list[Path]:
  """The safetensors files of a folder: model.safetensors, else those that its index names.

  That is transformers' order: an index beside model.safetensors is left over from other weights.

  Raises InputError when there is none; `model` as in `pickle_message`.
  """
  whole = folder / 'model.safetensors'
  if whole.is_file():
    return [whole]
  if (folder / INDEX).is_file():
    check_pointer(folder / INDEX)
    try:
      text = (folder / INDEX).read_text(encoding='utf-8-sig')
      names = sorted(set(json.loads(text)['weight_map'].values()))
      # An index must not lead out of its folder, nor to what is no safetensors file.
      astray = [name for name in names if not _SHARD.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise InputError(f'{folder}/{INDEX}: cannot be read: {error}') from None
    if astray:
      raise InputError(
        f'{folder}/{INDEX}: names {astray[0]!r}; a *.safetensors file of its folder is allowed')
    return [folder / name for name in names]
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
    raise InputError(
      pickle_message(pickled[0], folder, model) if pickled else f'{folder}: no *.safetensors file')
  return files


def stored_tensors(
  folder: Path, model: str = 'AutoModelForCausalLM'
) -> dict[str, StoredTensor]:
  """Every tensor of a folder's safetensors files by name, such as [D_out, D_in]; none is read yet.

  A file is opened for each read and closed after it, so that its pages do not stay in memory. Of a
  tensor that stands in several files of an index the last counts, as in transformers.

  Raises InputError: no file, a shard that is missing, a damaged file, a tensor in two files without
  an index, a dtype that is no plain float; `model` as in `pickle_message`.
  """
  tensors, home = {}, {}

  def reader(file: Path, name: str):
    def read(rows: slice) -> np.ndarray:
      with safetensors.safe_open(file, 'np') as archive:
        return archive.get_slice(name)[rows]
    return read

  for file in weight_files(folder, model):
    if not file.is_file():
      raise InputError(
        f'{folder}: {file.name}, named by {INDEX}, is missing' if not file.is_symlink() else
        f'{file}: is a link to {file.readlink()}, which is not there')
    check_pointer(file)
    try:
      with safetensors.safe_open(file, 'np') as archive:
        for name in archive.keys():
          if _NOT_WEIGHTS.fullmatch(name):
            continue
          view = archive.get_slice(name)
          check_dtype(file, name, view)
          if name in tensors and not (folder / INDEX).is_file():
            raise InputError(
              f'{folder}: tensor {name!r} occurs twice, in {home[name]} and {file.name}, '
              f'and no {INDEX} orders them')
          tensors[name] = StoredTensor(tuple(view.get_shape()), reader(file, name))
          home[name] = file.name
    except (safetensors.SafetensorError, OSError) as error:
      raise InputError(f'{file}: damaged safetensors file: {error}') from None
  return tensors


def has_tokenizer(folder: Path) -> bool:
  """Whether a folder holds a file of a tokenizer."""
  return any((folder / name).is_file() for name in _TOKENIZERS)


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
  """The tokenizer of a folder; raises InputError when there is none or it cannot be loaded."""
  if not has_tokenizer(folder):
    # transformers would build one that knows no word.
    raise InputError(
      f'{folder}: its tokenizer cannot be loaded: none of {", ".join(_TOKENIZERS)} is there')
  for name in (*_TOKENIZERS, *_TOKENIZER_SETTINGS):
    check_pointer(folder / name)
  try:
    return transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # the tokenizer library raises bare exceptions for damaged files
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{folder}: its tokenizer cannot be loaded: {line}') from None


def write_folder(
  folder: Path, tensors: dict[str, np.ndarray], weights: str, settings: dict[str, Any], config: str
) -> None:
  """Writes tensors and settings; the folder is made when absent, each file replaced atomically.

  Args:
    folder: of the model or adapter.
    tensors: {name: array of any shape}, such as [D_out, D_in].
    weights: name of the safetensors file.
    settings: what the configuration file holds.
    config: name of the configuration file.
  """
  folder.mkdir(parents=True, exist_ok=True)
  part = folder / f'{weights}.part'
  safetensors.numpy.save_file(tensors, part, metadata={'format': 'pt'})
  part.replace(folder / weights)
  part = folder / f'{config}.part'
  part.write_text(json.dumps(settings, indent=2) + '\n')
  part.replace(folder / config)
