"""The chaos script on six disturbances; BUILD_NOTES has the figures of a hundred."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_disturbed_runs_end_as_undisturbed_ones(tmp_path):
  """Killed, terminated, out of disk, checkpoint truncated and flipped, metrics torn."""
  done = subprocess.run(
    [sys.executable, ROOT / 'scripts' / 'chaos.py', '--kills=6', f'--out={tmp_path / "out.json"}'],
    capture_output=True, text=True, timeout=550)
  assert done.returncode == 0, done.stdout + done.stderr
  report = json.loads((tmp_path / 'out.json').read_text())
  assert (report['kills'], report['equal'], report['different']) == (6, 6, [])
  assert len(report['kinds']) == 6
