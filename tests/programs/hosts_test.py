"""One run in two processes, each with the notes of its own sites alone; then on in a single one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import differences, in_float64
from xla_flags import compiled_fast

from fedmedjax import main

ROOT = Path(__file__).parents[2]
NAMES = ('ward', 'icu', 'elsewhere')
# Site 0 is of process 0; site 1 and the external cohort are of the last.
OWN = (('ward',), ('icu', 'elsewhere'))
ARGUMENTS = [
  '--config=fedmedjax:ablation:fed_medlora_plus', '--config.data.partition.kind=',
  '--config.tagger.width=8', '--config.tagger.buckets=64', '--config.lora.rank=2',
  '--config.fed.local_steps=2', '--config.fed.batch_size=2', '--config.fed.memory_gib=64.0',
  '--config.data.validation_examples=2', '--config.eval.bootstrap_samples=20',
  '--config.eval.every=1', "--config.data.sites=('ward', 'icu')",
  "--config.data.external=('elsewhere',)", '--config.data.folders=' + repr(tuple(
    {'name': name, 'path': f'{name}.bio', 'format': 'conll', 'mapping': 'schema'}
    for name in NAMES))]


def write_notes(folder: Path, names) -> Path:
  folder.mkdir()
  for number, name in enumerate(NAMES):
    if name in names:
      (folder / f'{name}.bio').write_text(''.join(
        f'# newdoc id = {name} {i}\nSevere O\ncough B-problem\nand O\ncase{number}{i} O\n\n'
        f'Given O\naspirin{number} B-drug\ndaily O\nfor O\ncase{i} O\n' for i in range(8)))
  return folder


@pytest.fixture
def start(tmp_path):
  """start(flags of each process) -> [(status, what it printed)]."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  folders = [write_notes(tmp_path / f'process {rank}', own) for rank, own in enumerate(OWN)]

  def run(flags):
    children = [subprocess.Popen(
      [sys.executable, '-m', 'fedmedjax.main', *ARGUMENTS, '--config.mesh.site=-1',
       f'--coordinator=localhost:{port}', '--num_processes=2', f'--process_id={rank}',
       '--deadline=60', *own], cwd=folders[rank], text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, env=os.environ | {
        'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1',
        'XLA_FLAGS': compiled_fast()})
      for rank, own in enumerate(flags)]
    try:
      said = [child.communicate(timeout=100)[0] for child in children]
    finally:
      for child in children:
        child.kill()
    return [(child.returncode, text) for child, text in zip(children, said, strict=True)]

  return run


def test_two_processes_then_one_are_one(start, tmp_path, monkeypatch):
  """A round in two processes and one in a single process, against two rounds in a single process:
  within 1e-6 of the adapter's norm a round, with the same ledger, predictions and counts. What a
  process prints names no other's progress."""
  two, whole = tmp_path / 'two', tmp_path / 'whole'
  ended = start([[f'--workdir={two}', '--config.fed.rounds=1']] * 2)
  assert [status for status, _ in ended] == [0, 0], ended
  assert 'round 1/1' in ended[0][1] and 'round 1/1' not in ended[1][1]
  monkeypatch.chdir(write_notes(tmp_path / 'all', NAMES))
  described = (two / 'sites.json').read_text()
  for workdir, sites in ((two, 1), (whole, 2)):
    assert main.main([
      'fedmedjax', *ARGUMENTS, f'--workdir={workdir}', f'--config.mesh.site={sites}',
      '--config.fed.rounds=2']) == 0
  found = differences(whole, two, 2)
  assert not found['wrong'], found
  for one, other in zip(
      _numbers(json.loads(described)), _numbers(json.loads((whole / 'sites.json').read_text())),
      strict=True):
    assert one == pytest.approx(other, abs=1e-9)
  inputs = [json.loads((run / 'inputs.json').read_text()) for run in (two, whole)]
  assert inputs[0] == inputs[1] and len(inputs[0]) == 4


def _numbers(value) -> list[float]:
  if isinstance(value, dict | list):
    parts = value.values() if isinstance(value, dict) else value
    return [number for part in parts for number in _numbers(part)]
  return [value] if isinstance(value, int | float) else []


def refused(ended, message: str) -> bool:
  """Whether a process has refused in one line; the other may have heard of it first."""
  lines = [line for status, text in ended if status == 2 for line in text.splitlines()]
  return {status for status, _ in ended} <= {1, 2} and any(
    line.startswith('error: ') and message in line for line in lines) and not any(
      'Traceback' in text for _, text in ended)


def test_another_configuration_is_refused(start, tmp_path):
  ended = start([[f'--workdir={tmp_path / "run"}', f'--config.seed={seed}'] for seed in (1, 2)])
  assert refused(ended, 'config.seed is not the same in all processes: process 0 ('), ended
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(start, tmp_path):
  """A relative path, which means a folder of each process's own."""
  ended = start([['--workdir=run']] * 2)
  assert refused(ended, 'process 1 does not see what process 0 writes there'), ended
  assert not list(tmp_path.rglob('run')) and not list(tmp_path.rglob('.fedmedjax-*'))


@pytest.mark.slow
def test_two_processes_in_float64(tmp_path):
  """Where only the order of sums may differ: 1e-10 of the adapter's norm and of a leaf's."""
  found = in_float64(tmp_path)
  assert not found['wrong'] and found['adapter'] < 1e-12, found
