"""The script that compares two commits: what it takes for a difference, on invented runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from same_numbers import PRODUCTS, differences, has_key, verdict

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'same_numbers.py'
LINE = {
  'round': 1, 'train_loss': [2.5, 2.0], 'validation_loss': [None, None], 'weights': [0.25, 0.75],
  'update_norm': [1.0, 2.0], 'step_norm': 1.5, 'seconds': 3.0}
SUMMARY = {'scores': {'icu': {'ner': {'f1': 0.5}}}, 'wall_seconds': 9.0, 'global': None}


def write(run: Path, lines=(LINE,), summary=SUMMARY, weights=1.0) -> Path:
  (run / 'adapter').mkdir(parents=True)
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (run / 'summary.json').write_text(json.dumps(summary))
  safetensors.numpy.save_file(
    {'a': np.full(3, weights, np.float32)}, run / 'adapter' / 'adapter_model.safetensors')
  return run


@pytest.fixture
def old(tmp_path) -> Path:
  return write(tmp_path / 'old' / 'preset')


def test_clocks_and_keys_that_are_new_are_no_difference(old, tmp_path):
  new = write(
    tmp_path / 'new' / 'preset', [LINE | {'seconds': 8.0, 'noise': 1.0}],
    SUMMARY | {'wall_seconds': 1.0, 'more': 1})
  assert list(differences(old, new)) == []


@pytest.mark.parametrize('changes, told', [
  (dict(lines=[LINE | {'train_loss': [2.5, 2.0000000000000004]}]),
   'metrics.jsonl, line 1: train_loss[1]: 2.0, then 2.0000000000000004'),
  (dict(lines=[LINE | {'weights': [1.0]}]),
   'metrics.jsonl, line 1: weights: [0.25, 0.75], then [1.0]'),
  (dict(lines=[{key: LINE[key] for key in LINE if key != 'step_norm'}]),
   "metrics.jsonl, line 1: step_norm: 1.5, then 'missing'"),
  (dict(lines=[LINE | {'validation_loss': [None, 0.5]}]),
   'metrics.jsonl, line 1: validation_loss[1]: None, then 0.5'),
  (dict(lines=[LINE, LINE | {'round': 2}]), 'metrics.jsonl: 1 lines, then 2'),
  (dict(summary={**SUMMARY, 'scores': {'icu': {'ner': {'f1': 0.25}}}}),
   'summary.json: scores: icu: ner: f1: 0.5, then 0.25'),
])
def test_a_number_that_differs_is_named_with_its_place(old, tmp_path, changes, told):
  assert list(differences(old, write(tmp_path / 'new' / 'preset', **changes))) == [told]


def test_the_last_bit_of_a_weight_counts_and_so_does_a_missing_file(old, tmp_path):
  new = write(tmp_path / 'new' / 'preset', weights=np.nextafter(np.float32(1), np.float32(2)))
  found, = differences(old, new)
  assert found.startswith('adapter/adapter_model.safetensors: sha256 ')
  shutil.rmtree(new / 'adapter')
  found, = differences(old, new)
  assert found.endswith(', then missing')


def test_runs_that_have_nothing_to_compare_are_not_equal(tmp_path):
  """Neither trained, neither was scored, or a line of both lacks what it has to tell."""
  sides = [write(tmp_path / side / 'preset', lines=(), summary={}) for side in ('old', 'new')]
  for side in sides:
    shutil.rmtree(side / 'adapter')
  assert [line.split(': ')[-1] for line in differences(*sides)] == [
    'nothing was trained', 'no scores']
  assert len(list(differences(*sides, trains=False))) == 1
  less = {key: LINE[key] for key in LINE if key != 'update_norm'}
  sides = [write(tmp_path / side / 'other', lines=[less]) for side in ('old', 'new')]
  assert list(differences(*sides)) == ['metrics.jsonl, line 1: no update_norm']


def test_the_verdict_of_a_preset(old, tmp_path):
  write(tmp_path / 'new' / 'preset')
  sides = [tmp_path / 'old', tmp_path / 'new']
  assert 'status none' in verdict('preset', sides)
  for side in sides:
    (side / 'preset.status').write_text('0')
  assert verdict('preset', sides) == 'equal'
  (tmp_path / 'new' / 'preset.status').write_text('2')
  told = verdict('preset', sides)
  assert told == f'ended with status 2, see {tmp_path / "new" / "log.txt"}'


def test_commits_from_before_a_key_are_not_given_it(tmp_path):
  defaults = tmp_path / 'fedmedjax' / 'experiment' / 'defaults.py'
  assert not has_key(tmp_path, PRODUCTS) and has_key(SCRIPT.parents[1], PRODUCTS)
  defaults.parent.mkdir(parents=True)
  defaults.write_text("  # model.matmul = 'auto'\n  model.remat = 'auto'\n")
  assert not has_key(tmp_path, PRODUCTS)


def test_what_is_no_commit_is_refused():
  done = subprocess.run(
    [sys.executable, SCRIPT, 'no_such_commit', 'HEAD'], capture_output=True, text=True)
  assert done.returncode == 2 and "'no_such_commit': no commit of" in done.stderr
