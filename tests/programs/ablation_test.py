"""The commands that make the table of methods: the tiny model, then two methods on its sites."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str, *argv) -> str:
  return subprocess.run(
    [sys.executable, ROOT / 'scripts' / name, *argv], cwd=ROOT, check=True, capture_output=True,
    text=True).stdout


@pytest.mark.slow
def test_the_table_of_methods(tmp_path):
  """Training lowers the loss, what is unsound is refused in its cell, a second call adds none."""
  said = script('tiny_model.py', f'--output={tmp_path / "tiny"}', '--steps=50')
  assert 'step 50/50' in said
  command = (
    'ablation.py', '--config=configs/ablation_tiny.py', f'--config.model.path={tmp_path / "tiny"}',
    '--config.fed.rounds=1', '--config.fed.local_steps=8', '--config.data.synthetic_notes=8',
    '--config.data.max_length=96', f'--output={tmp_path / "out"}', '--presets=krum',
    '--settings=sizes,ranks', '--seeds=0')
  script(*command)
  lines = [json.loads(line) for line in (
    tmp_path / 'out' / 'results.jsonl').read_text().splitlines()]
  assert [(line['preset'], line['setting']) for line in lines] == [
    ('krum', 'sizes'), ('krum', 'ranks')]
  assert lines[0]['loss'] < lines[0]['before'] and 'one rank' in lines[1]['refused']
  assert f'| krum | {lines[0]["loss"]:.3f} ± 0.000 | refused |' in (
    tmp_path / 'out' / 'table.md').read_text()
  before = (tmp_path / 'out' / 'results.jsonl').read_bytes()
  script(*command)
  assert (tmp_path / 'out' / 'results.jsonl').read_bytes() == before
