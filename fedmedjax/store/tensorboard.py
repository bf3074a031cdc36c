"""A run's metrics for TensorBoard, one event file in WORKDIR/tensorboard.

The file's bytes follow from the rounds' lines and the summary. A run that resumes rewrites the
finished rounds and then appends each new round, so that no point is doubled or lost, and a long run
can be watched. The time of an event is the sum of the rounds' seconds, from 0.

The format is TensorFlow's record file (length, checksum, message, checksum) of Event messages in
the wire format of protocol buffers, of which a run needs five fields. Libraries that write it
require TensorFlow or import torch where it is installed; the tests compare with tensorboardX.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmedjax.data.text_task import TEXT

FILE = 'tensorboard/events.out.tfevents.0.fedmedjax'
# With more sites than these, there are no curves of single sites.
_SITES = 50
# Keys of a round's line: those with one number, and those with a number for each site.
_NUMBERS = (
  'seconds', 'simulated_seconds', 'local_steps', 'examples', 'tokens', 'bytes_up', 'bytes_down',
  'useful_step_share', 'step_norm', 'product_gap', 'validation_f1')
_OF_SITES = ('train_loss', 'validation_loss', 'weights', 'update_norm', 'cosine')

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
    _event(_clock(lines), len(lines), dict(_scores(summary['scores'])))))


def _append(path: Path, record: bytes) -> None:
  with path.open('ab') as file:
    file.write(record)


def _round(lines: Sequence[dict], sites: Sequence[str]) -> bytes:
  line = lines[-1]
  return _record(
    _event(_clock(lines), line['round'], dict(_values(line, len(sites) <= _SITES))))


def _clock(lines: Sequence[dict]) -> float:
  return sum(line['seconds'] for line in lines)


def _values(line: dict, each: bool) -> Iterator[tuple[str, float | None]]:
  """(tag, value) of a round; with `each`, also those of single sites."""
  yield from ((f'round/{key}', line.get(key)) for key in _NUMBERS)
  for key in _OF_SITES:
    values = line.get(key) or ()
    known = [value for value in values if value is not None]
    yield f'mean/{key}', sum(known) / len(known) if known else None
    if each:
      yield from zip((f'{key}/{site}' for site in line['sites']), values, strict=False)


def _scores(scores: dict, name: str = 'f1') -> Iterator[tuple[str, float]]:
  """(tag, typed F1) of every task and site, strict and lenient, and metrics of texts."""
  for key, entry in scores.items():
    _, _, site = name.partition('/')
    if site and key == TEXT:
      yield from (
        (f'score/{site}/{key}/{metric}', found['value']) for metric, found in entry.items())
    elif 'typed' in entry:
      yield f'{name}/{key}', entry['typed']['f1']
    elif key != 'per_type':
      yield from _scores(entry, f'{name}/{key}')


def _event(clock: float, step: int, values: dict[str, float | None]) -> bytes:
  """An Event: wall_time = 1, step = 2, summary = 5 of values = 1 with tag = 1, simple_value = 2."""
  summary = b''.join(
    _field(1, _field(1, tag.encode()) + struct.pack('<Bf', 2 << 3 | 5, value))
    for tag, value in values.items() if value is not None and math.isfinite(value))
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
