"""Who may import whom, as the architecture lays it down; and what the package never imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedmedjax

ROOT = Path(fedmedjax.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob('*.py'))}
SCRIPTS = sorted((ROOT.parent / 'scripts').glob('*.py'))

# Floors of the architecture, from the ground up. A room imports from lower floors only: never from
# a neighbour on its own floor, never from above.
FLOORS = (
  {'types', 'tree'},
  {'data', 'fed', 'model', 'runtime'},
  {'eval', 'store'},
  {'experiment', 'report'},
  {'train', 'predict', 'describe', 'deploy'},
  {'compare', 'sweep', 'audit'},
  {'main', 'api'},
)
# What nothing in the package imports: other frameworks, what runs what it reads, and the folder of
# configurations at the top level, since users have one of that name.
_NEVER = {'torch', 'pickle', 'peft', 'tensorflow', 'configs'}


def floor(room: str) -> int:
  """Raises StopIteration for a room that the rule does not name."""
  return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported(tree: ast.AST) -> set[str]:
  """Top-level modules, with 'fedmedjax.ROOM' for our own."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute here'
      found |= {node.module} if node.module != 'fedmedjax' else {
        f'fedmedjax.{alias.name}' for alias in node.names}
  return {'.'.join(name.split('.')[:2 if name.startswith('fedmedjax.') else 1]) for name in found}


def wrong_imports(room: str, tree: ast.AST) -> set[str]:
  """What a module of `room` imports against the rule."""
  found = imported(tree)
  rooms = {name.split('.')[1] for name in found if name.startswith('fedmedjax.')} - {room}
  wrong = {other for other in rooms if other != '__version__' and floor(other) >= floor(room)}
  wrong |= found & _NEVER
  if room == 'data':
    wrong |= found & {'jax', 'flax', 'optax'}
  return wrong | (found & {'flax'} if room != 'model' else set())


def test_imports_point_one_way():
  """Every module of the package is in a room that the rule names."""
  for path, tree in TREES.items():
    room = path.relative_to(ROOT).parts[0].removesuffix('.py')
    if room != '__init__':
      assert not wrong_imports(room, tree), path
    else:
      assert not imported(tree) & _NEVER


@pytest.mark.parametrize('room, code', [
  ('fed', 'from fedmedjax.model import lora'), ('store', 'from fedmedjax.eval import metrics'),
  ('predict', 'from fedmedjax.train.run import run'), ('data', 'import jax'),
  ('experiment', 'from configs import base'), ('eval', 'from fedmedjax import compare')])
def test_an_import_against_the_rule_is_noticed(room, code):
  assert wrong_imports(room, ast.parse(code))


def test_files_and_functions_stay_readable():
  for path, tree in TREES.items():
    assert len(path.read_text().splitlines()) <= 320, path
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < 75, f'{path}: {node.name}'


# Modules that run what they read, calls that do, and keywords that let others do it.
_MODULES = {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib', 'yaml'}
_CALLS = {
  'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen', 'np.load', 'torch.load'}
_KEYWORDS = {'trust_remote_code', 'allow_pickle', 'shell'}


def unsafe(tree: ast.AST) -> list[str]:
  """What could run code out of a file or a config value."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      found += [
        ast.unparse(word) for word in node.keywords
        if word.arg in _KEYWORDS and ast.unparse(word.value) != 'False']
      found += [ast.unparse(node.func)] if ast.unparse(node.func) in _CALLS else []
    elif isinstance(node, ast.Import | ast.ImportFrom):
      found += sorted(_MODULES & {*(alias.name for alias in node.names),
                                  getattr(node, 'module', None)})
  return found


def test_nothing_that_is_read_is_run():
  for path, tree in [*TREES.items(), *((path, ast.parse(path.read_text())) for path in SCRIPTS)]:
    assert not unsafe(tree), path


@pytest.mark.parametrize('code', [
  'import pickle', 'from pickle import loads', 'np.load(path, allow_pickle=True)', 'eval(text)',
  'torch.load(path)', 'AutoModel.from_pretrained(name, trust_remote_code=True)',
  'import yaml', 'os.system(name)', 'subprocess.run(line, shell=True)', 'exec(body)'])
def test_what_would_run_it_is_noticed(code):
  assert unsafe(ast.parse(code))


def test_no_clock_that_can_jump():
  """Seconds are of the monotonic clock. The one exception is a date in an endpoint's answer."""
  wall = [
    f'{path.name}: {ast.unparse(node)}' for path, tree in TREES.items()
    for node in ast.walk(tree) if isinstance(node, ast.Call)
    and ast.unparse(node.func) in ('time.time', 'time.time_ns', 'datetime.now', 'date.today')]
  assert wall == ['api.py: time.time()']


def test_importing_the_programs_imports_no_torch():
  code = 'import sys, fedmedjax.main, fedmedjax.compare, fedmedjax.predict; '
  code += 'assert "torch" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
