"""Parts of a method, and a metric, that a user wrote: from a file, or given in Python.

On the command line a part is FILE.py:FUNCTION, a builder in the user's file. It is called with
those hyper-parameters of the run that its signature names (`fed/builders.py`); a metric is called
with texts alone (`text_scores.py`). The file's text and SHA-256 go into the run's folder, and the
checksum into what resuming compares.
"""

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.types import InputError

# Keys that may name a part of one's own, and the keyword of `fedmedjax.run` that gives it.
OWN_KEYS = {
  'fed.aggregator': 'aggregator', 'fed.rule': 'rule', 'fed.sharing': 'sharing',
  'fed.server_optimizer': 'server_optimizer', 'data.partition.kind': 'partition',
  'eval.metric': 'metric'}
METRIC = 'eval.metric'  # the one of them that is no part of the method
_FILE = re.compile(r'(?P<path>.+\.py):(?P<function>\w+)')
_PYTHON = re.compile(r'python:\w+')
# What of a function's globals counts: numbers, texts and arrays that it names.
_PLAIN = int | float | str | bool | tuple | list | np.ndarray


class OwnPart(NamedTuple):
  """A user's part as the run knows it."""

  name: str          # 'methods.py:fednova', or 'python:fednova' of one given in Python
  builder: Callable  # called with the hyper-parameters that its signature names; or the metric
  text: str          # its source
  checksum: str      # SHA-256 of the text, and of the numbers that a given part closes over


def is_own(value: Any) -> bool:
  """Whether a value of one of OWN_KEYS names a part of the user's own."""
  return isinstance(value, str) and bool(_FILE.fullmatch(value) or _PYTHON.fullmatch(value))


def own_parts(
  values: Mapping[str, Any], given: Mapping[str, OwnPart] | None = None
) -> dict[str, OwnPart]:
  """The user's own parts of a configuration, by key.

  Args:
    values: flat configuration, {'fed.aggregator': 'methods.py:fednova', ...}.
    given: those that were given in Python, by key.

  Raises:
    InputError: a file that is missing or fails, a function that it lacks, or a part that was given
      in Python once and is not given now.
  """
  parts = {}
  for key, keyword in OWN_KEYS.items():
    value = values.get(key)
    if not is_own(value):
      continue
    if _PYTHON.fullmatch(value):
      if key not in (given or {}):
        raise InputError(
          f'config.{key}={value!r}: this part was given in Python; give it again, as '
          f'fedmedjax.run(..., {keyword}=...)')
      parts[key] = given[key]
    else:
      parts[key] = _from_file(key, value)
  return parts


def _from_file(key: str, value: str) -> OwnPart:
  match = _FILE.fullmatch(value)
  path = Path(match['path'])
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else 'it is no text in UTF-8'
    raise InputError(f'config.{key}={value!r}: {path} cannot be read: {reason}') from None
  checksum = hashlib.sha256(text.encode()).hexdigest()
  # Named by its place and text: another version of the file, or the same text beside other files,
  # is another module of the same process.
  place = hashlib.sha256(f'{path.absolute()}\n{checksum}'.encode()).hexdigest()
  name = f'fedmedjax_own_{place[:16]}'
  if name not in sys.modules:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # It may import what lies beside it.
    sys.path.insert(0, str(path.parent.absolute()))
    try:
      spec.loader.exec_module(module)
    except Exception as error:  # a user's program: it may raise anything
      del sys.modules[name]
      raise InputError(f'config.{key}={value!r}: {where_it_failed(error, path)}') from None
    finally:
      sys.path.remove(str(path.parent.absolute()))
  module = sys.modules[name]
  builder = getattr(module, match['function'], None)
  if not callable(builder):
    allowed = sorted(
      name for name, one in vars(module).items()
      if inspect.isfunction(one) and one.__module__ == module.__name__ and name[0] != '_')
    raise InputError(
      f'config.{key}={value!r}: {path} has no function {match["function"]!r}; allowed are '
      f'{", ".join(allowed) or "none"}')
  return OwnPart(value, builder, text, checksum)


def where_it_failed(error: BaseException, path: Path | str) -> str:
  """File, line, kind and text of what a user's file raised, in one line."""
  if match := _FILE.fullmatch(str(path)):
    path = match['path']
  own = [
    frame for frame in traceback.extract_tb(error.__traceback__)
    if Path(frame.filename).resolve() == Path(path).resolve()]
  line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else None
  place = str(path) if line is None else f'{path}, line {line}'
  text = ' '.join(str(error).split())
  return f'{place}: {type(error).__name__}{": " if text else ""}{text}'


def from_python(key: str, part: Any) -> OwnPart:
  """A part that was given in Python: a value of `fed/types.py`, or a builder of one.

  Args:
    key: one of OWN_KEYS.
    part: such as an `Aggregator`, an optax transformation, a partitioner, or a function that
      returns one when it is called with hyper-parameters of the run; of METRIC, a function.
  """
  if key == METRIC and (isinstance(part, tuple) or not callable(part)):
    raise InputError(
      f'{OWN_KEYS[key]}={part!r}: a function (predictions, targets) -> {{name: number}} is allowed')
  functions = [one for one in part if callable(one)] if isinstance(part, tuple) else [part]
  if not functions or not all(map(callable, functions)):
    raise InputError(
      f'{OWN_KEYS[key]}={part!r}: a builder, or what it returns, such as fedmedjax.Aggregator, is '
      'allowed')
  # What a value leaves at the default is not the user's.
  usual = set(map(id, getattr(part, '_field_defaults', {}).values()))
  functions = [function for function in functions if id(function) not in usual]
  texts = [_source(function) for function in functions]
  closed = [repr(_closed_over(function, set())) for function in functions]
  # What it is called after: where its update or its correction of the gradient is written.
  main = getattr(part, 'correct', getattr(part, 'update', functions[0]))
  return OwnPart(
    f'python:{_label(main)}', (lambda: part) if isinstance(part, tuple) else part,
    '\n\n'.join(dict.fromkeys(texts)),
    hashlib.sha256('\n'.join(texts + closed).encode()).hexdigest())


def _label(function: Callable) -> str:
  """The name of the outermost function around a part's, or of its class."""
  function = getattr(function, 'func', function)
  name = getattr(function, '__qualname__', type(function).__name__).split('.')[0]
  return re.sub(r'\W', '', name) or 'part'


def _source(function: Callable) -> str:
  """The text of the file that a function is in, else of itself, where Python still has it."""
  function = inspect.unwrap(getattr(function, 'func', function))
  if not hasattr(function, '__code__'):
    function = type(function).__call__
  try:
    file = inspect.getsourcefile(function)
    if file and Path(file).is_file():
      return Path(file).read_text(encoding='utf-8')
    return inspect.getsource(function)
  except (OSError, TypeError):
    code = getattr(function, '__code__', None)
    return f'# no source: {function!r}' if code is None else (
      f'# no source: {function.__qualname__} {code.co_code.hex()} {code.co_names} {code.co_consts}')


def _closed_over(value: Any, seen: set[int]) -> Any:
  """Numbers, texts, arrays and names that a function closes over, in arguments, cells, globals."""
  if id(value) in seen:
    return ()
  seen.add(id(value))
  if isinstance(value, int | float | str | bool | type(None)):
    return value
  if isinstance(value, list | tuple):
    return [_closed_over(one, seen) for one in value]
  if isinstance(value, dict):
    return {str(name): _closed_over(one, seen) for name, one in value.items()}
  if hasattr(value, '__array__'):
    array = np.asarray(value)
    return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
  inner = [getattr(value, 'func', None), getattr(value, 'args', None),
           getattr(value, 'keywords', None), getattr(value, '__defaults__', None),
           getattr(value, '__kwdefaults__', None)]
  cells = [cell.cell_contents for cell in getattr(value, '__closure__', None) or ()]
  names = getattr(getattr(value, '__code__', None), 'co_names', ())
  known = getattr(value, '__globals__', {})
  cells += [known[name] for name in names if isinstance(known.get(name), _PLAIN)]
  return [getattr(value, '__qualname__', ''), *(
    _closed_over(one, seen) for one in (*inner, *cells) if one is not None)]
