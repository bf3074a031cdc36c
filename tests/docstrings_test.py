"""Public docstrings of fed/ and model/ state shapes and errors, so that nobody has to guess them.

A name is public when it is a function or a class at the top of a module and does not begin with an
underscore. It *handles arrays* when an annotation of a parameter, of the result or of a field names
an array, a tree of arrays (a bare `dict` is one; other tables are written `dict[KEY, VALUE]`) or a
class that has such a field; when a parameter has no annotation; when a parameter or field annotated
as Any bears the name of an array (`_NAMES`); or when it is a Flax module or a class of functions
(Callable). All others, such as functions of paths, names and numbers, are exempt by this rule
alone: there is no list of exceptions.

A shape stands in the docstring or, of a class, in the comments of its fields: `f32[R, N]`,
`[C, *p]`, `i32[]`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import fedmedjax

ROOT = Path(fedmedjax.__file__).parent
# Rooms whose docstrings the tests below hold to the rule.
ROOMS = ('model', 'fed')
LEAST = 0.95

# Annotations that are arrays or trees of arrays, whoever defines them.
_ARRAYS = {'Array', 'ndarray', 'ArrayLike', 'Tree', 'Batch', 'LabelBatch'}
# Names of arrays and trees of arrays, where the annotation is Any.
_NAMES = {
  'adapter', 'base', 'batch', 'batches', 'cache', 'data', 'kernel', 'momentum', 'params',
  'residual', 'shapes', 'state', 'tensors', 'weights'}
# Parameters without an annotation that are no arrays: a function, a number format.
_NO_ARRAYS = {'fn', 'function', 'dtype'}
# One axis: a letter, a name, a number, '...', '*p', or a sum or product of these.
_ATOM = r"(?:\.\.\.|\*[a-z]|[A-Z][A-Za-z]{0,2}(?:_[a-z]+)?'?|[a-z]+(?:_[a-z]+)*|\d+)"
_AXIS = rf'{_ATOM}(?:\s*[*+/|-]\s*{_ATOM})*'
_AXES = rf'{_AXIS}(?:,\s*{_AXIS})*'
# With a number format anything is a shape, without one what begins with a capital, '*' or '...'.
SHAPE = re.compile(
  rf'\b(?:[fiu](?:8|16|32|64)?|bool|bf16)\[(?:{_AXES})?\]|(?<!\w)\[(?=[A-Z*.]){_AXES}\]')


class Public(NamedTuple):
  """A public name and what a reader is told of it."""

  name: str           # 'model/loss.py: packed_loss'
  text: str           # docstring, and comments of fields; '' without a docstring
  arrays: bool        # whether it handles arrays
  refuses: bool       # whether its own body raises InputError


def _words(annotation: ast.AST | None) -> set[str]:
  """Every name in an annotation, those in quotes too; a bare `dict` is called Tree."""
  if annotation is None:
    return set()
  return set(re.findall(r'\w+', re.sub(r'\bdict\b(?!\[)', 'Tree', ast.unparse(annotation))))


def _is_array(name: str, annotation: ast.AST | None, carriers: set[str]) -> bool:
  """Whether a parameter or field is an array or a tree of them."""
  if annotation is None:
    return name not in _NO_ARRAYS
  words = _words(annotation)
  return bool(words & carriers) or words == {'Any'} and name in _NAMES


def _parameters(node: ast.FunctionDef) -> Iterator[ast.arg]:
  yield from (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
  return [line for line in node.body if isinstance(line, ast.AnnAssign)]


def _handles_arrays(node: ast.FunctionDef | ast.ClassDef, carriers: set[str]) -> bool:
  if isinstance(node, ast.FunctionDef):
    return bool(_words(node.returns) & carriers) or any(
      _is_array(parameter.arg, parameter.annotation, carriers)
      for parameter in _parameters(node) if parameter.arg != 'self')
  if any('Module' in ast.unparse(base) for base in node.bases):
    return True
  calls = [line for line in node.body if isinstance(line, ast.FunctionDef)]
  return any(
    _is_array(field.target.id, field.annotation, carriers) or 'Callable' in _words(field.annotation)
    for field in _fields(node)) or any(_handles_arrays(call, carriers) for call in calls)


def carriers_of(trees: Sequence[ast.Module]) -> set[str]:
  """Names of all types that hold arrays: the known ones, and classes with a field of one."""
  carriers, classes = set(_ARRAYS), [
    node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
  while found := {
      node.name for node in classes if any(
        _is_array(field.target.id, field.annotation, carriers) for field in _fields(node))
  } - carriers:
    carriers |= found
  return carriers


def _comments(source: str, node: ast.ClassDef) -> str:
  """Comments between the lines of a class."""
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  return '\n'.join(
    token.string for token in tokens
    if token.type == tokenize.COMMENT and node.lineno <= token.start[0] <= node.end_lineno)


def public_names(source: str, where: str, carriers: set[str]) -> Iterator[Public]:
  """The public functions and classes of a module's source."""
  for node in ast.parse(source).body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith('_'):
      continue
    text = ast.get_docstring(node) or ''
    if text and isinstance(node, ast.ClassDef):
      methods = [ast.get_docstring(line) or '' for line in node.body
                 if isinstance(line, ast.FunctionDef)]
      text = '\n'.join((text, _comments(source, node), *methods))
    refuses = any(
      isinstance(inner, ast.Raise) and inner.exc is not None
      and 'InputError' in _words(inner.exc) for inner in ast.walk(node))
    yield Public(f'{where}: {node.name}', text, _handles_arrays(node, carriers), refuses)


def names_of(room: str) -> list[Public]:
  """All public names of a room."""
  paths = sorted((ROOT / room).rglob('*.py'))
  carriers = carriers_of([ast.parse(path.read_text()) for path in paths])
  return [
    name for path in paths
    for name in public_names(path.read_text(), str(path.relative_to(ROOT)), carriers)]


def share_with_shapes(names: Sequence[Public]) -> tuple[float, list[str]]:
  """(share of the names that handle arrays whose text has a shape, the names without one)."""
  handling = [name for name in names if name.arrays]
  without = [name.name for name in handling if not SHAPE.search(name.text)]
  return 1 - len(without) / len(handling), without


def silent_refusals(names: Sequence[Public]) -> list[str]:
  """Names that raise InputError themselves, and whose docstring does not say so."""
  return [name.name for name in names if name.refuses and 'InputError' not in name.text]


@pytest.mark.parametrize('room', ROOMS)
def test_public_docstrings_state_shapes(room):
  names = names_of(room)
  assert len(names) > 40
  assert not [name.name for name in names if not name.text], 'without a docstring'
  share, without = share_with_shapes(names)
  assert share >= LEAST, f'{share:.0%}: no shape in the docstrings of\n' + '\n'.join(without)


@pytest.mark.parametrize('room', ROOMS)
def test_public_docstrings_state_errors(room):
  assert not silent_refusals(names_of(room))


_PLANTED = '''
class Pair(NamedTuple):
  """{pair}"""

  left: Array   {comment}
  name: str

def join(pair: Pair, path: Path) -> Pair:
  """{join}"""
  if not path:
    raise InputError('no path')

def size(path: Path) -> int:
  """Bytes of a file."""

def _hidden(x: Array) -> Array:
  return x
'''


def planted(**words) -> list[Public]:
  source = _PLANTED.format(**words)
  return list(public_names(source, 'planted.py', carriers_of([ast.parse(source)])))


def test_planted_docstrings_are_noticed():
  good = planted(pair='Two halves.', comment='# f32[R, N]', join='[R, N] -> [R, N], or InputError.')
  assert [name.arrays for name in good] == [True, True, False]
  assert share_with_shapes(good) == (1.0, []) and not silent_refusals(good)
  bad = planted(pair='See [Smith] and [1].', comment='', join='Raises nothing.')
  assert share_with_shapes(bad) == (0.0, ['planted.py: Pair', 'planted.py: join'])
  assert silent_refusals(bad) == ['planted.py: join']


@pytest.mark.parametrize('text', [
  'f32[]', 'i32[R, N]', 'x [C, *p] -> [*p]', 'leaves [L, KV, R, M, d]', 'bool[P] of', '[..., D_in]',
  '[B, T*G, d]', 'i32[P|0]', '[L, D_in, rank]', 'f32[n + 1]'])
def test_shapes_are_known(text):
  assert SHAPE.search(text)


@pytest.mark.parametrize('text', [
  'see [1]', '[options]', '[Smith et al.]', '[RFC2119](link)', 'argv[1]', 'names[i]', '[]',
  '[a, b]'])
def test_what_is_no_shape(text):
  assert not SHAPE.search(text)
