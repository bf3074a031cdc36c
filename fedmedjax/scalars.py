"""A run's numbers for TensorBoard, in WORKDIR/tensorboard: one event file.

Its bytes follow from the rounds' lines and the summary: a run that goes on writes anew what was
there, and then appends a round at a time, so that no point is doubled or lost and a run of days can
be watched. Clocks of events count the seconds of the rounds, from 0.

Of tensorboardX only the messages and their checksums are used: its writers name files by host and
time, and start a thread each.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

FILE = 'tensorboard/events.out.tfevents.0.fedmedjax'
# Sites beyond which single ones are no curves anyone reads.
_SITES = 50
# Of a round's line, by the group they are shown in: numbers, and numbers a site.
_NUMBERS = {
  'round': ('seconds', 'simulated_seconds', 'local_steps', 'examples', 'tokens', 'bytes_up',
            'bytes_down', 'useful_step_share', 'step_norm', 'product_gap')}
_OF_SITES = ('train_loss', 'validation_loss', 'weights', 'update_norm', 'cosine')


def restart(workdir: Path, lines: Sequence[dict], sites: Sequence[str]) -> None:
  """The file anew, with the rounds so far; `sites` are all that train."""
  path = workdir / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  records = [_record(Event(file_version='brain.Event:2'))]
  records += [_round(lines[:count + 1], sites) for count in range(len(lines))]
  part = path.with_name('part')
  part.write_bytes(b''.join(records))
  part.replace(path)


def add(workdir: Path, lines: Sequence[dict], sites: Sequence[str]) -> None:
  """Appends the last round."""
  _append(workdir / FILE, _round(lines, sites))


def finish(workdir: Path, lines: Sequence[dict], summary: dict) -> None:
  """Appends the final scores, to the rounds or to nothing."""
  if not lines:
    restart(workdir, lines, ())
  _append(workdir / FILE, _event(lines, len(lines), dict(_scores(summary['scores']))))


def _append(path: Path, record: bytes) -> None:
  with path.open('ab') as file:
    file.write(record)


def _round(lines: Sequence[dict], sites: Sequence[str]) -> bytes:
  return _event(lines, lines[-1]['round'], dict(_values(lines[-1], len(sites) <= _SITES)))


def _values(line: dict, each: bool) -> Iterator[tuple[str, float | None]]:
  """(tag, value) of a round; `each`: of single sites, too."""
  for group, keys in _NUMBERS.items():
    yield from ((f'{group}/{key}', line.get(key)) for key in keys)
  for key in _OF_SITES:
    values = line.get(key) or ()
    known = [value for value in values if value is not None]
    yield f'mean/{key}', sum(known) / len(known) if known else None
    if each:
      yield from zip((f'{key}/{site}' for site in line['sites']), values, strict=False)


def _scores(scores: dict, name: str = 'f1') -> Iterator[tuple[str, float]]:
  """(tag, typed F1) of every task and site, strict and lenient."""
  for key, entry in scores.items():
    if 'typed' in entry:
      yield f'{name}/{key}', entry['typed']['f1']
    elif key != 'per_type':
      yield from _scores(entry, f'{name}/{key}')


def _event(lines: Sequence[dict], step: int, values: dict[str, float | None]) -> bytes:
  event = Event(wall_time=sum(line['seconds'] for line in lines), step=step)
  for tag, value in values.items():
    if value is not None and math.isfinite(value):
      event.summary.MergeFrom(scalar(tag, value))
  return _record(event)


def _record(event: Event) -> bytes:
  """Length, its checksum, message, its checksum: the TFRecord format."""
  message = event.SerializeToString()
  length = struct.pack('<Q', len(message))
  return b''.join((
    length, struct.pack('<I', masked_crc32c(length)), message,
    struct.pack('<I', masked_crc32c(message))))
