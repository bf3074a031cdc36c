"""Trains, evaluates and writes one run; the same command again resumes it.

    python -m fedmedjax.main --config=fedmedjax:quickstart --workdir=runs/quickstart
    python -m fedmedjax.main --config=mine.py:fed_medlora --workdir=runs/b --config.fed.rounds=5
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from fedmedjax.experiment.command_line import config_arguments, parse
from fedmedjax.runtime import launch
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError

if TYPE_CHECKING:
  from fedmedjax.runtime.processes import Processes


def define(values: flags.FlagValues) -> None:
  launch.define(values)
  flags.DEFINE_string('workdir', None, 'Folder of this run.', flag_values=values)
  flags.DEFINE_bool(
    'validate_only', False, 'Check everything, print what would run, and write nothing.',
    flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    config, values, overrides = parse(argv, define)
    if not values.workdir and not values.validate_only:
      raise InputError('--workdir is missing: name a folder, such as --workdir=runs/quickstart')
    started = launch.launch_of(values)
    with launch.together(started) as processes:
      train(argv, config, values, overrides, processes)

  status = 1  # of an error that nobody expects
  try:
    status = guarded(body)
  finally:
    launch.leave(status)
  return status


def train(
  argv: Sequence[str], config: ConfigDict, values: flags.FlagValues, overrides: dict[str, Any],
  processes: 'Processes',
) -> None:
  """The run, or what it would do, and what process 0 tells of it.

  Args:
    argv, config, values, overrides: the command line, and what `parse` found there.
    processes: of the run.
  """
  from fedmedjax.runtime.progress import Reporter
  reporter = Reporter(quiet=not processes.first, follow=processes)
  # Imported here since they take seconds: --help and mistakes are answered before.
  reporter.say('loading JAX ...')
  from fedmedjax.report.next_steps import next_steps
  from fedmedjax.train.dry_run import dry_run
  from fedmedjax.train.run import run
  set_up()
  if values.validate_only:
    if processes.count > 1:
      raise InputError(
        f'--validate_only: with {processes.count} processes; start it as a single one')
    dry_run(config, Path(values.workdir) if values.workdir else None, reporter)
    return
  workdir = Path(values.workdir)
  summary = run(config, workdir, reporter, processes=processes)
  if not processes.first:
    return
  if config.report.ablation:
    from fedmedjax.compare.first_claims import first_claims
    from fedmedjax.experiment.stored import quoted_sentences
    first_claims(workdir, quoted_sentences(config), reporter)
  for line in next_steps(
      workdir, summary, config.fed.learner, config_arguments(argv, overrides)):
    reporter.say_unwrapped(line)
  reporter.repeat_warnings()


if __name__ == '__main__':
  sys.exit(main())
