"""scripts/proof.sh: names that it knows, and tests that it goes on with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('argument, allowed', [
  ('moon', 'slow fuzz oracle privacy kills hosts mutants lowest'), ('--minutes=', 'a whole number'),
  ('--minutes=ten', 'a whole number')])
def test_one_line_and_status_two(argument, allowed):
  done = subprocess.run(
    ['bash', ROOT / 'scripts' / 'proof.sh', argument], capture_output=True, text=True)
  assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1
  assert f"'{argument}'" in done.stderr and allowed in done.stderr


def test_what_passed_is_left_out_and_what_came_too_late_is_named(tmp_path):
  """One passes, one fails: of the next call only the latter is left. Without time none runs."""
  (tmp_path / 'pytest.ini').write_text('[pytest]\n')
  (tmp_path / 'test_two.py').write_text(
    'def test_good():\n  pass\n\n\ndef test_bad():\n  assert False\n')

  def session(**more) -> str:
    return subprocess.run(
      [sys.executable, '-m', 'pytest', '-p', 'proof_session', '-p', 'no:xdist',
       '-p', 'no:cacheprovider', tmp_path],
      cwd=tmp_path, capture_output=True, text=True, env=os.environ | more | {
        'PROOF_PASSED': str(tmp_path / 'passed'), 'PYTHONPATH': str(ROOT / 'scripts'),
        # That of the session that runs this test.
        'PYTEST_XDIST_WORKER': ''}).stdout

  late = session(PROOF_DEADLINE='0')
  assert '2 tests that did not run, as no time was left' in late and '2 skipped' in late
  assert 'test_two.py::test_good\n' in late and not (tmp_path / 'passed').exists()
  assert '1 failed, 1 passed' in session()
  assert (tmp_path / 'passed').read_text() == 'test_two.py::test_good\n'
  assert '1 failed, 1 deselected' in session()
