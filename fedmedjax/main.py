"""Trains, evaluates and writes one run; the same command again resumes it.

    python -m fedmedjax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import transformers
from absl import flags

from fedmedjax.config import parse
from fedmedjax.preview import preview
from fedmedjax.progress import Reporter
from fedmedjax.run import run
from fedmedjax.stopping import stoppable
from fedmedjax.types import InputError


def set_up() -> None:
  """Settings of the process: compilations are kept between runs, libraries warn only."""
  # absl's handler would print every checkpoint's bookkeeping between the progress bars.
  # What goes wrong in a save is raised as well, so its traceback there would say it twice.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  transformers.logging.set_verbosity_error()
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update(
      'jax_compilation_cache_dir', str(Path('~/.cache/fedmedjax/xla').expanduser()))


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
  except (RuntimeError, OSError) as error:
    print(f'failed: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt as stop:
    number = getattr(stop, 'number', signal.SIGINT)
    print(
      f'stopped by {signal.Signals(number).name}; the same command goes on after the last finished '
      'round', file=sys.stderr)
    return 128 + number
  return 0


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of this run.', flag_values=values)
  flags.DEFINE_bool(
    'validate_only', False, 'Check everything, print what would run, and write nothing.',
    flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    config, values, _ = parse(argv, define)
    if not values.workdir and not values.validate_only:
      raise InputError('--workdir is missing: name a folder, such as --workdir=runs/quickstart')
    set_up()
    if values.validate_only:
      preview(config, Path(values.workdir) if values.workdir else None, Reporter())
    else:
      run(config, Path(values.workdir), Reporter())

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
