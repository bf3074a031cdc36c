"""What every program here begins and ends with: flags, settings of the process, exit status.

Nothing that takes seconds to import is imported with this module: --help and mistakes in flags are
answered first.
"""

import importlib
import importlib.metadata
import logging
import os
import platform
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from fedmedjax import __version__
from fedmedjax.runtime.signals import stoppable
from fedmedjax.types import InputError


def read_flags(
  argv: Sequence[str], define: Callable[[flags.FlagValues], None], needed: Sequence[str] = ()
) -> flags.FlagValues:
  """The flags of a program that takes no configuration; `config.parse` is for those that do.

  Args:
    argv: as sys.argv.
    define: declares them on the given FlagValues.
    needed: names of flags that may not be left out or empty.

  Raises InputError: an unknown flag, a value of the wrong type, one of `needed` that is missing,
  or what is no flag. Leaves with --help.
  """
  values = flags.FlagValues()
  define(values)
  if asks_help(argv):
    print(help_text(define, values))
    raise SystemExit(0)
  try:
    rest = values(list(argv))
  except flags.Error as error:
    raise InputError(str(error)) from None
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r}: not a flag; flags look like --{next(iter(needed), "help")}=...')
  for name in needed:
    if not values[name].value:
      raise InputError(f'--{name} is missing')
  return values


def asks_help(argv: Sequence[str]) -> bool:
  """Whether a command line asks for --help, whatever else it says."""
  return any(word.lstrip('-') in ('help', 'helpfull') or word == '-h'
             for word in argv[1:] if word.startswith('-'))


def help_text(
  define: Callable[[flags.FlagValues], None], values: flags.FlagValues, more: str = ''
) -> str:
  """What --help prints: what the program does, its flags with their defaults, and `more`.

  Args:
    define: of the program; the docstring of its module says what it does, with an example.
    values: what it declared.
    more: on flags that `define` does not know.
  """
  lines = [(sys.modules[define.__module__].__doc__ or '').strip(), '', 'Flags:']
  for name in values:
    flag = values[name]
    default = flag.default_as_str if flag.default not in (None, [], '') else ''
    shown = f'[no]{name}' if flag.boolean else f'{name}={default or "..."}'.replace("'", '')
    lines += [f'  --{shown}', indented(flag.help)]
  return '\n'.join([*lines, *([more] if more else ()), '', '--help or -h prints this.'])


def indented(text: str) -> str:
  """Below a flag in what --help prints."""
  return textwrap.fill(text, 100, initial_indent=' ' * 6, subsequent_indent=' ' * 6)


def set_up() -> None:
  """Settings of the process: compilations are kept between runs, libraries warn only.

  Raises InputError where JAX's own settings ask for a device that is not there, or for 64 bits.
  """
  import jax
  import transformers

  from fedmedjax.runtime import device

  # absl's handler would print every checkpoint's bookkeeping between the progress bars.
  # What goes wrong in a save is raised as well, so its traceback there would say it twice.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  transformers.logging.set_verbosity_error()
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update(
      'jax_compilation_cache_dir', str(Path('~/.cache/fedmedjax/xla').expanduser()))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    # JAX keeps what took a second to compile, a third of a run's fifty programs. The others
    # together take seconds, and some kilobytes each on disk.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  device.check()


def versions() -> dict[str, str]:
  """What computed here: the packages that a run's numbers depend on."""
  return {'python': platform.python_version(), 'fedmedjax': __version__} | {
    name: _version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')}


def _version(name: str) -> str:
  """Of an installed package; of one that is only on PYTHONPATH, what it says itself."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return str(getattr(importlib.import_module(name), '__version__', 'unknown'))


def _of_jax_settings(error: Exception) -> bool:
  """Whether JAX raised this while it read its settings, which it does where it is imported."""
  frames = [frame.f_globals.get('__name__') for frame, _ in traceback.walk_tb(error.__traceback__)]
  return frames[-1] == 'jax._src.config'


def guarded(body: Callable[[], None]) -> int:
  """Runs `body` -> exit status.

  0; 2 for bad input; 1 for a failure while running; 130 or 143 when SIGINT or SIGTERM stopped it.
  """
  try:
    with stoppable():
      body()
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except ValueError as error:
    if not _of_jax_settings(error):
      raise
    print(f"error: JAX's settings in the environment (JAX_*): {error}", file=sys.stderr)
    return 2
  except (RuntimeError, OSError, MemoryError) as error:
    # XLA adds pages on its memory to the line that says it is full.
    line = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.filename and error.strerror:
      line = f'{error.filename}: {error.strerror}'
      if not Path(os.fsdecode(error.filename)).parent.is_dir():
        line += '; its folder is not there any more'
    print(f'failed: {line}', file=sys.stderr)
    return 1
  except KeyboardInterrupt as stop:
    number = getattr(stop, 'number', signal.SIGINT)
    print(
      f'stopped by {signal.Signals(number).name}; the same command goes on after what is saved',
      file=sys.stderr)
    return 128 + number
  return 0
