"""--help answers at once: what takes seconds to import is not imported, and it says enough."""

import subprocess
import sys

import pytest

from fedmedjax.compare import __main__ as compare
from fedmedjax.compare import scenarios
from fedmedjax.experiment import command_line
from fedmedjax.experiment.config import CHECKS
from fedmedjax.experiment.config_file import shipped_names
from fedmedjax.experiment.defaults import get_config
from fedmedjax.predict import __main__ as predict
from fedmedjax.predict.forms import FORMS

HEAVY = ('transformers', 'matplotlib', 'scipy', 'torch', 'jax', 'flax', 'optax', 'orbax', 'rich')
CODE = f'''
import runpy, sys
sys.argv = ['program', '--help']
try:
  runpy.run_module(sys.stdin.read(), run_name='__main__', alter_sys=True)
except SystemExit as left:
  assert not left.code, left.code
print('imported:', sorted(set(sys.modules) & set({HEAVY})))
'''


@pytest.mark.parametrize('program', [
  'main', 'compare', 'predict', 'describe', 'audit', 'deploy.app', 'deploy.site', 'deploy.server'])
def test_help_imports_nothing_heavy(program):
  done = subprocess.run(
    [sys.executable, '-c', CODE], input=f'fedmedjax.{program}', capture_output=True, text=True,
    check=True)
  text, _, imported = done.stdout.partition('imported: ')
  assert imported.strip() == '[]'
  assert f'    python -m fedmedjax.{program} --' in text
  if program in ('predict', 'audit'):
    return
  assert all(f'  --config.{key}=' in text for key in command_line.COMMON_KEYS)
  assert all(name in text for name in shipped_names())


def test_what_help_says_is_so():
  """Names that --help would have to import much for are written twice."""
  assert tuple(scenarios.SCENARIOS) == compare.SCENARIOS
  assert tuple(FORMS) == predict.FORMATS
  assert set(command_line.COMMON_KEYS) <= set(CHECKS)
  assert f'  --config.optim.learning_rate={get_config().optim.learning_rate}\n' in (
    command_line._config_help())
