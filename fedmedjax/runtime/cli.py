"""What every program here begins and ends with: flags, settings of the process, exit status."""

import importlib.metadata
import logging
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import transformers
from absl import flags

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
  flags.DEFINE_bool('help', False, 'Print the flags and leave.', flag_values=values)
  try:
    rest = values(list(argv))
  except flags.Error as error:
    raise InputError(str(error)) from None
  if values.help:
    shown, _, _ = values.get_help().partition('\nabsl.flags:')
    print(f'{sys.modules["__main__"].__doc__}\n{shown}')
    raise SystemExit(0)
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r}: not a flag; flags look like --{next(iter(needed), "help")}=...')
  for name in needed:
    if not values[name].value:
      raise InputError(f'--{name} is missing')
  return values


def set_up() -> None:
  """Settings of the process: compilations are kept between runs, libraries warn only."""
  # absl's handler would print every checkpoint's bookkeeping between the progress bars.
  # What goes wrong in a save is raised as well, so its traceback there would say it twice.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  transformers.logging.set_verbosity_error()
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update(
      'jax_compilation_cache_dir', str(Path('~/.cache/fedmedjax/xla').expanduser()))


def versions() -> dict[str, str]:
  """What computed here: the packages that a run's numbers depend on."""
  return {'python': platform.python_version()} | {
    name: importlib.metadata.version(name) for name in (
      'fedmedjax', 'jax', 'jaxlib', 'flax', 'optax', 'transformers', 'numpy')}


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
  except (RuntimeError, OSError, MemoryError) as error:
    # XLA adds pages on its memory to the line that says it is full.
    line = (str(error).splitlines() or [type(error).__name__])[0]
    print(f'failed: {line}', file=sys.stderr)
    return 1
  except KeyboardInterrupt as stop:
    number = getattr(stop, 'number', signal.SIGINT)
    print(
      f'stopped by {signal.Signals(number).name}; the same command goes on after what is saved',
      file=sys.stderr)
    return 128 + number
  return 0
