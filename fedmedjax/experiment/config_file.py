"""A configuration file, of the user or shipped with the package, to the ConfigDict it returns."""

import importlib.machinery
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

import fedmedjax
from fedmedjax.experiment import shipped
from fedmedjax.types import InputError

# What stands before the name of a shipped configuration.
PACKAGE = 'fedmedjax'
_MODULE = 'config_config'  # what the file's code sees as its __name__


def shipped_names() -> tuple[str, ...]:
  """Names of the configurations in the package, as `fedmedjax:NAME` takes them."""
  files = Path(shipped.__file__).parent.glob('*.py')
  return tuple(sorted(path.stem for path in files if path.stem != '__init__'))


def load_config_file(place: str) -> ConfigDict:
  """What `get_config` of a configuration file returns.

  Args:
    place: FILE, FILE:PRESET, fedmedjax:NAME or fedmedjax:NAME:PRESET.

  Raises:
    InputError: no such file or name, or the file raises: with its name and the line.
  """
  name, *preset = place.split(':', 1)
  file = Path(name)
  if name == PACKAGE:
    file, preset = _shipped(place, *preset)
  if not file.is_file():
    raise InputError(
      f'--config={place}: {name!r} is no file here; shipped ones are named as in '
      f'--config={PACKAGE}:quickstart')
  try:
    with _imports_from_here():
      module = _module(file)
      if not callable(getattr(module, 'get_config', None)):
        raise InputError(f'--config={place}: the file has no function get_config')
      config = module.get_config(*preset)
  except Exception as error:  # a configuration file is a program: it may raise anything
    raise InputError(_told(error, file, place)) from None
  if not isinstance(config, ConfigDict):
    raise InputError(
      f'--config={place}: its get_config returns {type(config).__name__}; what '
      'fedmedjax.experiment.defaults.get_config() returns, with other values, is expected')
  return config


def _shipped(place: str, rest: str = '') -> tuple[Path, list[str]]:
  name, *preset = rest.split(':', 1)
  if name not in shipped_names():
    raise InputError(
      f'--config={place}: {name!r} is not shipped; allowed are {", ".join(shipped_names())}')
  return Path(shipped.__file__).parent / f'{name}.py', preset


@contextmanager
def _imports_from_here() -> Iterator[None]:
  """The file finds modules beside the user, as with `python -m`, from a console script, too."""
  here = str(Path.cwd())
  added = not {'', here} & set(sys.path)
  if added:
    sys.path.insert(0, here)
  try:
    yield
  finally:
    if added and here in sys.path:
      sys.path.remove(here)


def _module(file: Path):
  loader = importlib.machinery.SourceFileLoader(_MODULE, str(file))
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_file_location(_MODULE, file, loader=loader))
  sys.modules[_MODULE] = module  # dataclasses look there for the module they are defined in
  loader.exec_module(module)
  return module


def _told(error: Exception, file: Path, place: str) -> str:
  """File, line and what was raised there, in one line.

  Where the file called another of the user's, that one and its line follow. What libraries and
  this package did in between is no matter of the user's.
  """
  frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
  if isinstance(error, SyntaxError) and error.filename:
    frames.append((error.filename, error.lineno))
  own = [(name, line) for name, line in frames if _users(name, file)]
  lines = dict(own)  # the innermost of each file
  told = [f'{_short(name)}, line {line}' for name, line in lines.items()
          if Path(name) == file or name == own[-1][0]]
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  what = unknown_key(error) or (
    '' if isinstance(error, InputError) else f'{type(error).__name__}: ') + ' '.join(text.split())
  if what.startswith('--config='):
    return what
  return ': '.join([*(told or [f'--config={place}']), what])


def unknown_key(error: Exception) -> str | None:
  """What a ConfigDict says of a key that it has not, in short; None for any other error."""
  text = str(error)
  suggestion = re.search(r'Did you mean "([^"]+)" instead of "([^"]+)"', text)
  if suggestion:
    return f'config key {suggestion[2]!r} is unknown; did you mean {suggestion[1]!r}?'
  key = re.search(r'Key "([^"]+)" does not exist and cannot be added', text)
  return key and (
    f'config key {key[1]!r} is unknown; fedmedjax/experiment/defaults.py lists all keys')


def _users(name: str, file: Path) -> bool:
  """Whether a file of a traceback is the configuration or another that the user wrote."""
  path = Path(name)
  package = Path(fedmedjax.__file__).parent
  libraries = [Path(sysconfig.get_path(key)) for key in ('stdlib', 'purelib', 'platlib')]
  others = [package] if path == file else [package, *libraries]
  return not name.startswith('<') and not any(
    path.resolve().is_relative_to(folder.resolve()) for folder in others)


def _short(name: str) -> str:
  path = Path(name)
  return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
