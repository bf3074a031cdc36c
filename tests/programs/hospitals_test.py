"""A study between real processes over Flower on this machine, beside its simulation."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import hospitals
import numpy as np
import pytest
from xla_flags import compiled_fast

ROOT = Path(__file__).parents[2]
_OLDEST = (1, 42)
REQUIRE = 'FEDMEDJAX_REQUIRE_FLOWER'


def flower_python() -> Path | None:
  """A Python with Flower: that of the tests, or of scripts/flower_environment.sh; None = none."""
  try:
    version = importlib.metadata.version('flwr').split('.')
  except importlib.metadata.PackageNotFoundError:
    version = ['0', '0']
  if (int(version[0]), int(version[1])) >= _OLDEST:
    return Path(sys.executable)
  own = ROOT / '.venv-flower' / 'bin' / 'python'
  return own if own.exists() else None


def test_a_study_over_flower_is_the_simulated_one(tmp_path):
  """SCAFFOLD, whose sites keep a state: SuperLink, two SuperNodes, two sites."""
  python = flower_python()
  if python is None:
    told = f'needs Flower {".".join(map(str, _OLDEST))}: bash scripts/flower_environment.sh'
    if os.environ.get(REQUIRE):
      pytest.fail(told)
    pytest.skip(told)
  out = tmp_path / 'out.json'
  done = subprocess.run(
    [python, ROOT / 'scripts' / 'hospitals.py', '--checks=equal', '--presets=short',
     f'--out={out}'],
    capture_output=True, text=True, timeout=540,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': compiled_fast()})
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads(out.read_text())['equal short']
  assert found['difference'] <= 1e-6 and found['bytes'] > 1000 and found['frame_bytes'] > 1000
  assert found['unequal_rows'] == []


def test_what_differs_is_noticed(tmp_path):
  """A byte more in the ledger; a value that is off by 2e-6 of the largest, 2.0."""
  head = 'round,site,kind,tensor,codec,down,up\n'
  (tmp_path / 'a.csv').write_text(f'{head}1,icu,adapter,w,float32,8,8\n')
  (tmp_path / 'b.csv').write_text(
    f'{head}1,icu,adapter,w,float32,8,9\n1,icu,message,validate,,0,0\n')
  one, other = hospitals.payload(tmp_path / 'a.csv'), hospitals.payload(tmp_path / 'b.csv')
  key = ('1', 'icu', 'adapter', 'w', 'float32')
  assert (one, other) == ({key: (8, 8)}, {key: (8, 9)})
  values = np.array([2.0, 1.0])
  assert hospitals.largest_difference({'w': values}, {'w': values}) == 0
  assert hospitals.largest_difference(
    {'w': values}, {'w': values + 4e-6}) == pytest.approx(2e-6)
  with pytest.raises(RuntimeError, match="tensors differ: .'v', 'w'."):
    hospitals.largest_difference({'w': values}, {'v': values})
