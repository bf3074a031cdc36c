"""Who may import whom, as the architecture lays it down; and what the package never imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedmedjax

ROOT = Path(fedmedjax.__file__).parent
FILES = sorted(ROOT.rglob('*.py'))
SCRIPTS = sorted((ROOT.parent / 'scripts').glob('*.py'))

PROGRAMS = {'main', 'compare', 'describe', 'predict'}
# Part -> the parts it may import beside itself.
ALLOWED = {
  'types': set(), 'tree': set(),
  'model': {'types', 'tree'}, 'data': {'types'}, 'fed': {'types', 'tree'},
  'eval': {'types', 'tree', 'model', 'data'},
  # From files to a page: knows nothing of how they came about.
  'page': {'types', 'report', 'writer'}, 'scalars': set(),
}


def imported(path: Path) -> set[str]:
  """Top-level modules, with 'fedmedjax.PART' for our own."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module} if node.module != 'fedmedjax' else {
        f'fedmedjax.{alias.name}' for alias in node.names}
  return {'.'.join(name.split('.')[:2 if name.startswith('fedmedjax.') else 1]) for name in found}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
  part = path.relative_to(ROOT).parts[0].removesuffix('.py')
  ours = {name.split('.')[1] for name in imported(path) if name.startswith('fedmedjax.')}
  if part in ALLOWED:
    assert ours - {part} <= ALLOWED[part]
  else:
    assert part in PROGRAMS or not ours & PROGRAMS
  foreign = imported(path)
  assert not foreign & {'torch', 'pickle', 'peft', 'tensorflow'}
  if part == 'data':
    assert not foreign & {'jax', 'flax', 'optax'}
  if part not in ('model',):
    assert 'flax' not in foreign


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
  tree = ast.parse(path.read_text())
  assert len(path.read_text().splitlines()) <= 320
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < 75, f'{path.name}: {node.name}'


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


@pytest.mark.parametrize('path', [*FILES, *SCRIPTS], ids=lambda path: path.name)
def test_nothing_that_is_read_is_run(path):
  assert not unsafe(ast.parse(path.read_text()))


@pytest.mark.parametrize('code', [
  'import pickle', 'from pickle import loads', 'np.load(path, allow_pickle=True)', 'eval(text)',
  'torch.load(path)', 'AutoModel.from_pretrained(name, trust_remote_code=True)',
  'import yaml', 'os.system(name)', 'subprocess.run(line, shell=True)', 'exec(body)'])
def test_what_would_run_it_is_noticed(code):
  assert unsafe(ast.parse(code))


def test_no_clock_that_can_jump():
  """Seconds are of the monotonic clock. The one exception is a date in an endpoint's answer."""
  wall = [
    f'{path.name}: {ast.unparse(node)}' for path in FILES for node in ast.walk(
      ast.parse(path.read_text())) if isinstance(node, ast.Call)
    and ast.unparse(node.func) in ('time.time', 'time.time_ns', 'datetime.now', 'date.today')]
  assert wall == ['api.py: time.time()']


def test_importing_the_programs_imports_no_torch():
  code = 'import sys, fedmedjax.main, fedmedjax.compare, fedmedjax.predict; '
  code += 'assert "torch" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
