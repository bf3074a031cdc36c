"""Walks a GGUF file's header before anything believes its numbers.

The gguf package makes what the header's counts say, even past the end of the file: a damaged count
costs hours or all memory. Here every count is held against the bytes that the file has left, and
nothing larger than one string is read. Format: ggml's docs/gguf.md, versions 2 and 3.
"""

import math
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from fedmedjax.types import InputError

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# Bytes that the smallest string, entry and tensor of a header take.
_LEAST_STRING, _LEAST_ENTRY, _LEAST_TENSOR = 8, 13, 24
# Limits above those of any model.
_LONGEST_NAME, _MOST_DIMENSIONS, _LARGEST_ALIGNMENT, _MOST_VALUES = 1 << 16, 4, 1 << 20, 1 << 24


class Header(NamedTuple):
  """An open file, read from its position on; a number that cannot be true raises ValueError."""

  file: BinaryIO
  size: int  # bytes of the file

  def number(self, form: str) -> int:
    """The next number, of a format of `struct`; struct.error where the file ends."""
    return struct.unpack(f'<{form}', self.file.read(struct.calcsize(form)))[0]

  def fitting(self, count: int, least: int, what: str) -> int:
    """`count`, if so many things of `least` bytes fit in what is left of the file."""
    if count > (self.size - self.file.tell()) // least:
      raise ValueError(f'{count} {what} do not fit in what is left of it')
    return count

  def skip(self, count: int) -> None:
    """Moves the position by `count` bytes."""
    self.file.seek(count, os.SEEK_CUR)


def check_header(path: Path) -> None:
  """Raises InputError when a count, length or offset of a GGUF file's header cannot be true."""
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    try:
      _walk(Header(file, size))
    except (ValueError, struct.error) as error:
      raise InputError(
        f'{path}: not a readable GGUF file: {error} (byte {file.tell()} of {size})') from None


def _walk(header: Header) -> None:
  """Reads the whole header; raises ValueError or struct.error for what is wrong at the position."""
  if header.file.read(4) != _MAGIC:
    raise ValueError('it does not begin with GGUF')
  version = header.number('I')
  if version not in _VERSIONS:
    raise ValueError(f'version {version}; {" and ".join(map(str, _VERSIONS))} are read')
  tensors = header.number('Q')
  entries = header.fitting(header.number('Q'), _LEAST_ENTRY, 'entries')
  header.fitting(tensors, _LEAST_TENSOR, 'tensors')
  alignment = 32
  for _ in range(entries):
    key, kind = _name(header), header.number('I')
    if key == 'general.alignment':
      if kind != GGUFValueType.UINT32:
        raise ValueError('general.alignment is no 32-bit integer')
      alignment = header.number('I')
      if not 8 <= alignment <= _LARGEST_ALIGNMENT or alignment & alignment - 1:
        raise ValueError(f'general.alignment={alignment}')
    else:
      _skip_values(header, _VALUES, kind, 1)
  ends = [_tensor_end(header) for _ in range(tensors)]
  data = -(-header.file.tell() // alignment) * alignment
  if max(ends, default=0) > header.size - data:
    raise ValueError('its tensors reach past its end')


def _name(header: Header) -> str:
  length = header.fitting(header.number('Q'), 1, 'bytes of a name')
  if length > _LONGEST_NAME:
    raise ValueError(f'a name of {length} bytes')
  return header.file.read(length).decode('utf-8')  # UnicodeDecodeError is a ValueError


def _skip_sized(size: int, header: Header, count: int) -> None:
  header.skip(size * header.fitting(count, size, 'values'))


def _skip_strings(header: Header, count: int) -> None:
  for _ in range(header.fitting(count, _LEAST_STRING, 'texts')):
    header.skip(header.fitting(header.number('Q'), 1, 'bytes of a text'))


def _skip_arrays(header: Header, count: int) -> None:
  for _ in range(count):
    kind, length = header.number('I'), header.number('Q')
    if length > _MOST_VALUES:  # each of them becomes an object
      raise ValueError(f'an array of {length} values')
    _skip_values(header, _ELEMENTS, kind, length)


# Type number -> the function that skips (header, number of values). Arrays of arrays, which no
# model has, are refused.
_ELEMENTS: dict[int, Callable[[Header, int], None]] = {
  kind: partial(_skip_sized, size) for kind, size in (
    (GGUFValueType.UINT8, 1), (GGUFValueType.INT8, 1), (GGUFValueType.BOOL, 1),
    (GGUFValueType.UINT16, 2), (GGUFValueType.INT16, 2), (GGUFValueType.UINT32, 4),
    (GGUFValueType.INT32, 4), (GGUFValueType.FLOAT32, 4), (GGUFValueType.UINT64, 8),
    (GGUFValueType.INT64, 8), (GGUFValueType.FLOAT64, 8))
} | {GGUFValueType.STRING: _skip_strings}
_VALUES = _ELEMENTS | {GGUFValueType.ARRAY: _skip_arrays}


def _skip_values(header: Header, known: dict[int, Callable], kind: int, count: int) -> None:
  if kind not in known:
    raise ValueError(f'a value of unknown type {kind}')
  known[kind](header, count)


def _tensor_end(header: Header) -> int:
  """The first byte after a tensor's values, from the beginning of the data."""
  name, count = _name(header), header.number('I')
  if not 1 <= count <= _MOST_DIMENSIONS:
    raise ValueError(f'tensor {name!r} has {count} dimensions')
  shape = [header.number('Q') for _ in range(count)]
  kind, offset = header.number('I'), header.number('Q')
  if kind not in iter(GGMLQuantizationType):
    raise ValueError(f'tensor {name!r} is of unknown type {kind}')
  block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
  if not all(shape) or shape[0] % block:
    raise ValueError(f'tensor {name!r} has shape {shape} in blocks of {block}')
  return offset + math.prod(shape) // block * block_bytes
