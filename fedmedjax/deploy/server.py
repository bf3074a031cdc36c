"""The server of a study between hospitals whose messages are files in a folder that is carried.

    python -m fedmedjax.deploy.server --config=study.py --workdir=runs/study --folder=carried

It waits until the answers lie in the folder; the same command goes on after a stop.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from fedmedjax.deploy.transport import checked_deadline
from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of this run.', flag_values=values)
  flags.DEFINE_string(
    'folder', None, 'Folder of the messages: outbox/SITE to a site, inbox/SITE back.',
    flag_values=values)
  flags.DEFINE_float(
    'deadline', 7 * 86400.0, 'Seconds to wait for the answers to a message; who is late misses the '
    'round.', flag_values=values)


def serve_study(config, workdir: Path, transport_of: Callable, reporter, deadline: float):
  """Runs the study of a configuration over a transport -> `study.Finished`.

  Args:
    config: validated, a ConfigDict.
    workdir: folder of the run.
    transport_of: (names of the sites, most bytes of an answer) -> Transport.
    reporter: is told what happens.
    deadline: seconds that every wait for the sites lasts at most.

  Raises:
    InputError, RuntimeError: as `study.run_study`.
  """
  from fedmedjax.deploy.messages import FRAME_LIMIT
  from fedmedjax.deploy.service import message_limit
  from fedmedjax.deploy.study import run_study
  from fedmedjax.experiment.config import leaves
  from fedmedjax.experiment.deployed import model_digest, server_study
  from fedmedjax.experiment.methods import harmless_keys
  from fedmedjax.store import files
  study = server_study(config, reporter)
  settings = files.plain(leaves(config.to_dict()))
  transport = transport_of(study.agreed.names, message_limit(study.agreed) + FRAME_LIMIT)
  return run_study(
    study, settings, model_digest(config), transport, workdir, reporter, deadline,
    harmless_keys(leaves(config.to_dict())))


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    config, values, _ = parse(argv, define)
    for name in ('workdir', 'folder'):
      if not values[name].value:
        raise InputError(f'--{name} is missing')
    deadline = checked_deadline(values.deadline, '--deadline')
    from fedmedjax.deploy.folder import Folder
    from fedmedjax.runtime.phrases import many
    from fedmedjax.runtime.progress import Reporter
    set_up()
    reporter = Reporter()
    finished = serve_study(
      config, Path(values.workdir), lambda names, limit: Folder(Path(values.folder), limit),
      reporter, deadline)
    reporter.say(f'{values.workdir}: {many(finished.summary["rounds"], "round")} done')
    reporter.repeat_warnings()

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main())
