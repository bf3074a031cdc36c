"""A site of a study between hospitals: holds its model and notes, and answers what it is asked.

    python -m fedmedjax.deploy.site --config=site.py --site=icu --workdir=icu --socket=icu/socket
    python -m fedmedjax.deploy.site --config=site.py --site=icu --workdir=icu --folder=carried
    python -m fedmedjax.deploy.site --config=site.py --site=icu --workdir=icu --score_only
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from absl import flags

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  for name, meaning in (
      ('site', 'Name of this site in config.data.sites.'),
      ('workdir', 'Folder of what this site keeps of the study, and of its manifest.'),
      ('socket', 'Unix socket to answer at, for a relay on this machine.'),
      ('folder', 'Folder of messages that somebody carries, in place of a socket.'),
      ('policy', 'policy.toml, which says what may leave; by default all that is listed.')):
    flags.DEFINE_string(name, None, meaning, flag_values=values)
  flags.DEFINE_bool(
    'list_only', False, 'Print what can leave this site, and end.', flag_values=values)
  flags.DEFINE_bool(
    'score_only', False, 'Score the final adapter on the test notes here, write a report, and '
    'end: nothing leaves.', flag_values=values)
  flags.DEFINE_bool(
    'once', False, 'With --folder: answer what lies there, and end.', flag_values=values)


def site_service(
  config, site: str, workdir: Path, policy_file: Path | None, reporter,
) -> 'SiteService':  # noqa: F821 - its libraries take seconds to import
  """The service of a site, with what can leave it written to WORKDIR/leaves.json and said.

  Args:
    config: validated, a ConfigDict.
    site: its name.
    workdir: what it keeps.
    policy_file: policy.toml; None = the default policy.
    reporter: is told what happens.

  Raises:
    InputError: a mistake in one of these.
  """
  from fedmedjax.deploy.keeping import Keeping
  from fedmedjax.deploy.policy import leaving, listed, read_policy
  from fedmedjax.deploy.scoring import score_site
  from fedmedjax.deploy.service import SiteService
  from fedmedjax.experiment.deployed import model_digest, notes_digest, site_study
  from fedmedjax.fed.ledger import by_tensor, entries
  from fedmedjax.fed.wire import by_path
  policy = read_policy(policy_file)
  study = site_study(config, site, reporter)
  agreed = study.agreed
  kept = Keeping(workdir, agreed.identity, notes_digest(study.data), reporter.warn)
  shared = set(agreed.wire.shared)
  sent = by_tensor(entries(
    'adapter', study.trainable.adapter, agreed.wire.codec, lambda path: path in shared))
  shapes = dict(zip(agreed.wire.paths, (
    leaf.shape for _, leaf in by_path(study.trainable.adapter)), strict=True))
  rows = leaving(
    policy, {name: (shapes[name], size) for (_, name), size in sent.items()},
    agreed.wire.controlled, study.groups)
  kept.list_leaves(row._asdict() for row in rows)
  reporter.say(f'what can leave site {site} (also in {workdir}/leaves.json):')
  reporter.say_unwrapped(listed(rows))
  return SiteService(
    study, kept, policy, model_digest(config), partial(score_site, config, study, kept, reporter),
    reporter.say_unwrapped)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    config, values, _ = parse(argv, define)
    for name in ('site', 'workdir'):
      if not values[name].value:
        raise InputError(f'--{name} is missing')
    modes = bool(values.socket), bool(values.folder), values.list_only, values.score_only
    if sum(modes) != 1:
      raise InputError(
        'one of --socket, --folder, --list_only and --score_only is needed, and no two of them')
    from fedmedjax.deploy import folder, socket
    from fedmedjax.runtime.progress import Reporter
    from fedmedjax.store.lock import locked
    set_up()
    reporter, workdir = Reporter(), Path(values.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir, reporter.warn):
      service = site_service(
        config, values.site, workdir, Path(values.policy) if values.policy else None, reporter)
      if values.score_only:
        service.score()
      elif values.socket:
        reporter.say(f'site {values.site} answers at {values.socket}')
        socket.serve(values.socket, service.handle, socket_limit(service))
      elif values.folder:
        reporter.say(f'site {values.site} answers what comes to {values.folder}')
        stop: Callable[[], bool] = lambda: values.once  # noqa: E731
        folder.answer_folder(
          Path(values.folder), values.site, service.handle, socket_limit(service), stop)

  return guarded(body)


def socket_limit(service) -> int:
  """Most bytes of a whole message, its frame among them."""
  from fedmedjax.deploy.messages import FRAME_LIMIT
  return service.limit + FRAME_LIMIT


if __name__ == '__main__':
  sys.exit(main())
