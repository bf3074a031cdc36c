"""GGUF models that were split into files such as model-00001-of-00003.gguf, as llama.cpp does it.

The first file holds the metadata; each says in `split.no` (from 0) and `split.count` which one it
is, and all of them in `split.tensors.count` how many tensors the model has.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import gguf

from fedmedjax.model.files.folder import check_pointer
from fedmedjax.model.files.gguf_header import check_header
from fedmedjax.model.files.hf_config import settings_of
from fedmedjax.types import InputError

_NAME = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.gguf', re.DOTALL)


class Part(NamedTuple):
  """A GGUF file: its metadata, and its tensors as the gguf package describes them."""

  path: Path
  fields: dict[str, Any]
  tensors: list[gguf.gguf_reader.ReaderTensor]


def part_files(path: Path) -> list[Path]:
  """The files of the split model of which `path` is one by its name, else `path` alone."""
  match = _NAME.fullmatch(path.name)
  if not match:
    return [path]
  files = [path.with_name(_name(match[1], number, int(match[3])))
           for number in range(1, int(match[3]) + 1)]
  return [file for file in files if file.is_file() or file == path] or [path]


def read_parts(path: Path) -> list[Part]:
  """All files of the model of which `path` is one, the first one first.

  Raises:
    InputError: a file is damaged, is missing, or belongs to another model.
  """
  given = _read(path)
  with settings_of(str(path)):
    count, number = _split(given)
    if count < 2:
      return [given]
    what = f'{path}: is file {number + 1} of {count} of a split model (split.count)'
    match = _NAME.fullmatch(path.name)
    if not match or (int(match[2]), int(match[3])) != (number + 1, count):
      raise InputError(
        f'{what}, but its name does not end in {_name("", number + 1, count)}; give the files the '
        'names that they came with, or join them: llama-gguf-split --merge FIRST.gguf WHOLE.gguf')
    files = [path.with_name(_name(match[1], at + 1, count)) for at in range(count)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
      raise InputError(
        f'{what}; {missing[0]} is not beside it; put all {count} files into one folder, or '
        f"join them: llama-gguf-split --merge '{files[0]}' WHOLE.gguf")
    parts = [given if file == path else _read(file) for file in files]
    for at, part in enumerate(parts):
      if _split(part) != (count, at):
        raise InputError(
          f'{part.path}: says split.no={_split(part)[1]} and split.count={_split(part)[0]}, '
          f'expected {at} and {count} beside {path.name}')
    found = sum(len(part.tensors) for part in parts)
    stated = parts[0].fields.get('split.tensors.count')
    if stated is not None and stated != found:
      raise InputError(
        f'{files[0]}: says split.tensors.count={stated}, the {count} files hold {found} tensors')
    return parts


def _name(stem: str, number: int, count: int) -> str:
  return f'{stem}-{number:05d}-of-{count:05d}.gguf'


def _split(part: Part) -> tuple[int, int]:
  """(number of files, which of them this is, from 0)."""
  return int(part.fields.get('split.count', 1)), int(part.fields.get('split.no', 0))


def _read(path: Path) -> Part:
  check_pointer(path)
  check_header(path)
  try:
    reader = gguf.GGUFReader(path)
    return Part(
      path, {name: field.contents() for name, field in reader.fields.items()}, reader.tensors)
  except Exception as error:  # the reader raises whatever its numpy views hit
    raise InputError(f'{path}: not a readable GGUF file: {error}') from None
