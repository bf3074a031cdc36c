"""Walks a GGUF file's header before anything believes its numbers.

The gguf package makes what the header's counts say, even past the end of the file: a damaged count
costs hours or all memory. Here every count is held against the bytes that the file has left, and
nothing larger than one string is read. Format: ggml's docs/gguf.md, versions 2 and 3.
"""

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from fedmedjax.types import InputError

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# Type number -> bytes of a value; strings and arrays have no fixed size.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# Bytes that the smallest string, entry and tensor take.
_LEAST_STRING, _LEAST_ENTRY, _LEAST_TENSOR = 8, 13, 24
# More than any model's.
_LONGEST_NAME, _MOST_DIMENSIONS, _LARGEST_ALIGNMENT, _MOST_VALUES = 1 << 16, 4, 1 << 20, 1 << 24


def check_header(path: Path) -> None:
  """Raises InputError when a count, length or offset of the header cannot be true."""
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    try:
      _walk(file, size)
    except (ValueError, struct.error) as error:
      raise InputError(
        f'{path}: not a readable GGUF file: {error} (byte {file.tell()} of {size})') from None


def _walk(file: BinaryIO, size: int) -> None:
  """Raises ValueError or struct.error, which says what is wrong at the file's position."""

  def number(form: str) -> int:
    return struct.unpack(f'<{form}', file.read(struct.calcsize(form)))[0]

  def fitting(count: int, least: int, what: str) -> int:
    if count > (size - file.tell()) // least:
      raise ValueError(f'{count} {what} do not fit in what is left of it')
    return count

  def skip_string() -> None:
    file.seek(fitting(number('Q'), 1, 'bytes of a text'), os.SEEK_CUR)

  if file.read(4) != _MAGIC:
    raise ValueError('it does not begin with GGUF')
  version = number('I')
  if version not in _VERSIONS:
    raise ValueError(f'version {version}; {" and ".join(map(str, _VERSIONS))} are read')
  tensors = number('Q')
  entries = fitting(number('Q'), _LEAST_ENTRY, 'entries')
  fitting(tensors, _LEAST_TENSOR, 'tensors')
  alignment = 32
  for _ in range(entries):
    key = _name(file, number, fitting)
    kind = number('I')
    if key == 'general.alignment':
      if kind != 4:
        raise ValueError('general.alignment is no 32-bit integer')
      alignment = number('I')
      if not 8 <= alignment <= _LARGEST_ALIGNMENT or alignment & alignment - 1:
        raise ValueError(f'general.alignment={alignment}')
    else:
      _skip_value(file, kind, number, fitting, skip_string)
  ends = [_tensor_end(file, number, fitting) for _ in range(tensors)]
  data = -(-file.tell() // alignment) * alignment
  if max(ends, default=0) > size - data:
    raise ValueError('its tensors reach past its end')


def _name(file: BinaryIO, number: Callable, fitting: Callable) -> str:
  length = fitting(number('Q'), 1, 'bytes of a name')
  if length > _LONGEST_NAME:
    raise ValueError(f'a name of {length} bytes')
  return file.read(length).decode('utf-8')  # UnicodeDecodeError is a ValueError


def _skip_value(file: BinaryIO, kind: int, number: Callable, fitting: Callable, skip_string):
  """Skips a value; arrays of arrays, which no model has, are refused."""
  if kind == _STRING:
    skip_string()
  elif kind == _ARRAY:
    inner, count = number('I'), number('Q')
    if count > _MOST_VALUES:  # each of them becomes an object
      raise ValueError(f'an array of {count} values')
    if inner == _STRING:
      for _ in range(fitting(count, _LEAST_STRING, 'texts')):
        skip_string()
    else:
      file.seek(_bytes(inner) * fitting(count, _bytes(inner), 'values'), os.SEEK_CUR)
  else:
    file.seek(fitting(_bytes(kind), 1, 'bytes'), os.SEEK_CUR)


def _bytes(kind: int) -> int:
  if kind not in _SIZES:
    raise ValueError(f'a value of unknown type {kind}')
  return _SIZES[kind]


def _tensor_end(file: BinaryIO, number: Callable, fitting: Callable) -> int:
  """The first byte after a tensor's values, from the beginning of the data."""
  name = _name(file, number, fitting)
  count = number('I')
  if not 1 <= count <= _MOST_DIMENSIONS:
    raise ValueError(f'tensor {name!r} has {count} dimensions')
  shape = [number('Q') for _ in range(count)]
  kind, offset = number('I'), number('Q')
  if kind not in iter(GGMLQuantizationType):
    raise ValueError(f'tensor {name!r} is of unknown type {kind}')
  block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
  if not all(shape) or shape[0] % block:
    raise ValueError(f'tensor {name!r} has shape {shape} in blocks of {block}')
  return offset + math.prod(shape) // block * block_bytes
