"""A run's metrics for TensorBoard, one event file in WORKDIR/tensorboard.

The file's bytes follow from the rounds' lines and the summary. A run that resumes rewrites the
finished rounds and then appends each new round, so that no point is doubled or lost, and a long run
can be watched. The time of an event is the sum of the rounds' seconds, from 0.

The format is TensorFlow's record file (length, checksum, message, checksum) of Event messages in
the wire format of protocol buffers, of which a run needs five fields. Libraries that write it
require TensorFlow or import torch where it is installed; the tests compare with tensorboardX.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from fedmedjax.store import points

FILE = 'tensorboard/events.out.tfevents.0.fedmedjax'
# Table of CRC-32C (Castagnoli, RFC 3720), reflected, for each value of a byte.
_CRC = list(range(256))
for _ in range(8):
  _CRC = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in _CRC]


def restart(workdir: Path, lines: Sequence[dict], sites: Sequence[str]) -> None:
  """Rewrites the file with the rounds so far; `sites` are the names of all sites that train."""
  path = workdir / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  records = [_record(_event(0.0, 0, {}) + _field(3, b'brain.Event:2'))]
  records += [_round(lines[:count + 1], sites) for count in range(len(lines))]
  part = path.with_name('part')
  part.write_bytes(b''.join(records))
  part.replace(path)


def add(workdir: Path, lines: Sequence[dict], sites: Sequence[str]) -> None:
  """Appends the last of `lines`, the lines of all rounds so far."""
  _append(workdir / FILE, _round(lines, sites))


def finish(workdir: Path, lines: Sequence[dict], summary: dict) -> None:
  """Appends the scores of the summary; without rounds, to a new file."""
  if not lines:
    restart(workdir, lines, ())
  _append(workdir / FILE, _record(
    _event(points.seconds(lines), len(lines), points.of_scores(summary['scores']))))


def _append(path: Path, record: bytes) -> None:
  with path.open('ab') as file:
    file.write(record)


def _round(lines: Sequence[dict], sites: Sequence[str]) -> bytes:
  line = lines[-1]
  return _record(
    _event(points.seconds(lines), line['round'], points.of_round(lines, sites)))


def _event(clock: float, step: int, values: dict[str, float]) -> bytes:
  """An Event: wall_time = 1, step = 2, summary = 5 of values = 1 with tag = 1, simple_value = 2."""
  summary = b''.join(
    _field(1, _field(1, tag.encode()) + struct.pack('<Bf', 2 << 3 | 5, value))
    for tag, value in values.items())
  return b''.join((
    struct.pack('<Bd', 1 << 3 | 1, clock), bytes([2 << 3]), _varint(step), _field(5, summary)))


def _field(number: int, content: bytes) -> bytes:
  """A field of bytes, text or a message."""
  return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
  """Seven bits a byte, the lowest first."""
  out = []
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def _record(message: bytes) -> bytes:
  length = struct.pack('<Q', len(message))
  return b''.join((length, _checksum(length), message, _checksum(message)))


def _checksum(data: bytes) -> bytes:
  """CRC-32C, rotated by 15 bits plus a constant, as in TensorFlow's record files."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
