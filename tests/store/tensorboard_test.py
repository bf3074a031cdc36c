"""TensorBoard's file: every point once, whatever happened; its form is TensorFlow's."""

import json
import struct

import pytest
from invented_run import entry, line
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from fedmedjax.store import tensorboard

SITES = ('icu', 'ward')
LINES = [line(1, SITES), line(2, SITES, train_loss=[None, 0.25]), line(3, SITES, skipped=True)]
SUMMARY = {'scores': {'icu': {'ner': entry(0.5), 're': {'modifier': entry(0.25)}}}}


def points(workdir) -> dict[tuple[str, int], float]:
  """{(tag, step): value} of the file; every record is checked, and no point comes twice."""
  data, found, versions = (workdir / tensorboard.FILE).read_bytes(), {}, []
  while data:
    (size,), message = struct.unpack('<Q', data[:8]), data[12:12 + struct.unpack('<Q', data[:8])[0]]
    assert struct.unpack('<I', data[8:12])[0] == masked_crc32c(data[:8])
    assert struct.unpack('<I', data[12 + size:16 + size])[0] == masked_crc32c(message)
    event, data = Event.FromString(message), data[16 + size:]
    versions.append(event.file_version)
    for value in event.summary.value:
      assert (value.tag, event.step) not in found
      found[value.tag, event.step] = value.simple_value
  assert versions[0] == 'brain.Event:2'
  return found


def test_a_run_that_was_stopped_has_the_points_of_one_that_was_not(tmp_path):
  """A stop after round 1, in the middle of writing round 2; the final scores come last."""
  for name in ('whole', 'stopped'):
    workdir = tmp_path / name
    tensorboard.restart(workdir, [], SITES)
    tensorboard.add(workdir, LINES[:1], SITES)
    if name == 'stopped':
      with (workdir / tensorboard.FILE).open('ab') as file:
        file.write(b'torn')
      tensorboard.restart(workdir, LINES[:1], SITES)
    for count in (2, 3):
      tensorboard.add(workdir, LINES[:count], SITES)
    tensorboard.finish(workdir, LINES, SUMMARY)
  whole, stopped = (
    (tmp_path / name / tensorboard.FILE).read_bytes() for name in ('whole', 'stopped'))
  assert whole == stopped
  assert len(list((tmp_path / 'stopped' / 'tensorboard').iterdir())) == 1


def test_the_points_are_those_of_the_lines(tmp_path):
  tensorboard.restart(tmp_path, LINES, SITES)
  tensorboard.finish(tmp_path, LINES, SUMMARY)
  found = points(tmp_path)
  assert found['train_loss/icu', 1] == 0.5 and found['weights/ward', 3] == 0.5
  # What is None is no point: a site that sent nothing, validation that was not asked for.
  assert ('train_loss/icu', 2) not in found and found['mean/train_loss', 2] == 0.25
  assert not any('validation' in tag for tag, _ in found)
  assert found['round/bytes_up', 2] == 500_000 and found['round/seconds', 3] == 1.5
  assert {(tag, step): value for (tag, step), value in found.items() if tag[:3] == 'f1/'} == {
    ('f1/icu/ner/strict', 3): 0.5, ('f1/icu/ner/lenient', 3): 0.75,
    ('f1/icu/re/modifier/strict', 3): 0.25,
    ('f1/icu/re/modifier/lenient', 3): pytest.approx(0.625)}


def test_metrics_of_texts_are_points(tmp_path):
  tensorboard.finish(tmp_path, [], {'scores': {'icu': {'text': {
    'exact_match': {'value': 0.5, 'ci95': None}, 'mine': {'value': -2.0, 'ci95': [-3, -1]}}}}})
  assert points(tmp_path) == {
    ('score/icu/text/exact_match', 0): 0.5, ('score/icu/text/mine', 0): -2.0}


def test_of_many_sites_the_mean_only(tmp_path):
  many = [f'part_{i}' for i in range(51)]
  tensorboard.restart(tmp_path, [line(1, many)], many)
  assert {tag for tag, _ in points(tmp_path) if '/part_' in tag} == set()
  # A run without rounds has its scores alone.
  tensorboard.finish(tmp_path / 'none', [], json.loads(json.dumps(SUMMARY)))
  assert {step for _, step in points(tmp_path / 'none')} == {0}
