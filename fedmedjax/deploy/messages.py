"""Messages between the server and a site: tensors in safetensors, all else as JSON in its header.

A message is bytes. Nothing in it can be run. Its data section holds exactly the arrays that the
ledger charges (`fed/ledger.py`); the header of safetensors with the fields of `Message` is the
frame around them. What cannot be read is no exception but a `Fault`, a sentence to be told.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

# Raised when a message means something else than before; a side refuses what is later than its own.
PROTOCOL = 1
# Longest frame in bytes: names and shapes of the tensors of a large adapter, and the fields.
FRAME_LIMIT = 4 * 2**20
# Bytes in front of the header that say how long it is.
_LENGTH = 8
# Larger numbers of a stranger are not read: all sums of smaller ones are finite float32.
_LARGEST, _MOST_ROUNDS = 1e30, 2**31
# The longest sentence of a stranger that is shown.
_LONGEST = 300
_KEY = 'fedmedjax'


class Message(NamedTuple):
  """What travels. `tensors` are numpy arrays, `fields` JSON values of the kind's own."""

  kind: str    # 'describe', 'local_round', 'validate', 'finish', 'score'; of an answer, or 'error'
  study: str   # both sides were set up for the same study when these are equal
  site: str    # name of the site that is asked or answers
  round: int   # from 0; -1 = before the first
  nonce: str   # an answer repeats that of its question
  fields: Mapping[str, Any] = {}
  tensors: Mapping[str, np.ndarray] = {}

  @property
  def payload(self) -> int:
    """Bytes of the tensors, without the frame."""
    return sum(array.nbytes for array in self.tensors.values())


class Fault(NamedTuple):
  """Why bytes are no message that can be used, in one line."""

  reason: str


def encode(message: Message) -> bytes:
  """The message as bytes: the same bytes for the same message."""
  fields = message._asdict() | {'protocol': PROTOCOL, 'fields': dict(message.fields)}
  del fields['tensors']
  # safetensors keeps several keys in no certain order, so there is one.
  words = json.dumps(fields, sort_keys=True, allow_nan=False)
  tensors = {
    name: np.ascontiguousarray(array).reshape(np.shape(array))
    for name, array in sorted(message.tensors.items())}
  return safetensors.numpy.save(tensors, {_KEY: words})


def decode(data: bytes, limit: int) -> Message | Fault:
  """The message in `data`, or why it cannot be used; whatever the bytes are, nothing is raised.

  Args:
    data: of a stranger.
    limit: most bytes of tensors that may come, known from the adapter's shapes.
  """
  if len(data) > limit + FRAME_LIMIT:
    return Fault(f'a message of {len(data)} bytes, {limit + FRAME_LIMIT} are allowed')
  try:
    fields = _fields(data)
  except (ValueError, RecursionError, KeyError, TypeError) as error:
    return Fault(f'no message of fedmedjax: {_line(error)}')
  version = fields.get('protocol')
  if type(version) is not int:
    return Fault('no message of fedmedjax: it says no version of the protocol')
  if version != PROTOCOL:
    return Fault(
      f'a message of protocol {version}, this side speaks {PROTOCOL}: install the same version of '
      'fedmedjax at both ends')
  try:
    message = _checked(fields)
    tensors = safetensors.numpy.load(data)
    # The ledger names them, in lines whose columns are parted by commas.
    if not all(name.isprintable() and not set(name) & set(' ,"') for name in tensors):
      raise ValueError('a tensor has a name with blanks, commas or quotes')
    return message._replace(tensors=tensors)
  except Exception as error:  # noqa: BLE001 - whatever the library finds in a stranger's bytes
    return Fault(f'no message of fedmedjax: {_line(error)}')


def frame_bytes(data: bytes) -> int:
  """Bytes of a well-formed message that are no tensors: safetensors' header and our fields."""
  return _LENGTH + int.from_bytes(data[:_LENGTH], 'little')


def kind(data: bytes) -> str:
  """The kind of a message that this side has made, without reading its tensors."""
  return str(_fields(data)['kind'])


def _fields(data: bytes) -> dict[str, Any]:
  """Our JSON in safetensors' header; ValueError, KeyError and the like where there is none."""
  length = int.from_bytes(data[:_LENGTH], 'little')
  if len(data) < _LENGTH or length > min(len(data) - _LENGTH, FRAME_LIMIT):
    raise ValueError('the length of its header is not that of what follows')
  header = json.loads(data[_LENGTH:_LENGTH + length])
  fields = json.loads(header['__metadata__'][_KEY], parse_constant=_no_constant)
  if not isinstance(fields, dict):
    raise ValueError('its fields are no JSON object')
  return fields


def _no_constant(word: str) -> None:
  raise ValueError(f'{word} is no JSON')


def _checked(fields: Mapping[str, Any]) -> Message:
  """A message without tensors; ValueError names a field that is missing or of another kind."""
  kinds = {'kind': str, 'study': str, 'site': str, 'round': int, 'nonce': str, 'fields': dict}
  for name, kind in kinds.items():
    if type(fields.get(name)) is not kind:
      raise ValueError(f'field {name!r} is missing or not {kind.__name__}')
  if not -1 <= fields['round'] < _MOST_ROUNDS:
    raise ValueError("field 'round' is no number of a round")
  return Message(**{name: fields[name] for name in kinds})


def _line(error: BaseException) -> str:
  """The first line of an exception, or its name; shortened, since it may quote what came."""
  words = str(error).splitlines() or ['']
  return shown(words[0])[:200] or type(error).__name__


def shown(text: object) -> str:
  """A stranger's text as a line that can be printed and written: no control codes, not too long."""
  if not isinstance(text, str):
    return ''
  words = ''.join(letter if letter.isprintable() else ' ' for letter in text[:_LONGEST])
  return ' '.join(words.split())


def number(fields: Mapping[str, Any], name: str) -> float | None:
  """A finite number among the fields of a stranger; None where it is missing, beyond 1e30, or
  something else."""
  value = fields.get(name)
  return value if type(value) in (int, float) and abs(value) <= _LARGEST else None
