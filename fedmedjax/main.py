"""Trains, evaluates and writes one run; the same command again resumes it.

    python -m fedmedjax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import sys
from pathlib import Path

from absl import flags

from fedmedjax.experiment.config import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train.dry_run import dry_run
from fedmedjax.train.run import run
from fedmedjax.types import InputError


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
      dry_run(config, Path(values.workdir) if values.workdir else None, Reporter())
    else:
      run(config, Path(values.workdir), Reporter())

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
