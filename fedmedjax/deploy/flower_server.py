"""The server of a study as a Flower ServerApp; a study's app has it in study/server_app.py."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmedjax.deploy.flower import Flower
from fedmedjax.deploy.server import serve_study
from fedmedjax.deploy.transport import checked_deadline
from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import set_up
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.lock import check_free
from fedmedjax.types import InputError

# Seconds that a server may take to end once its SuperLink is gone.
_LEAVING = 60.0


def server_app(config: Path) -> ServerApp:
  """The ServerApp of the study whose configuration is the file `config`."""
  app = ServerApp()

  @app.main()
  def main(grid: Grid, context: Context) -> None:
    try:
      _serve(config, grid, context.run_config)
    except InputError as error:
      # Flower shows a traceback of whatever is raised; this is the line that counts.
      print(f'error: {error}', flush=True)
      raise RuntimeError(str(error)) from None

  return app


def _serve(config: Path, grid: Grid, given: Mapping[str, Any]) -> None:
  """Runs the study with the run's configuration: workdir, deadline, overrides."""
  workdir = _folder(given)
  deadline = checked_deadline(given.get('deadline'), 'the run configuration: deadline')
  # The user's files that the configuration names lie beside it.
  os.chdir(config.parent)
  settings, *_ = parse(
    ['server_app', f'--config={config}', *str(given.get('overrides', '')).split()],
    lambda flags: None)
  set_up()
  reporter = Reporter()
  _wait_until_free(workdir)
  finished = serve_study(
    settings, workdir, lambda names, limit: Flower(grid, limit), reporter, deadline)
  reporter.say(f'{workdir}: {many(finished.summary["rounds"], "round")} done')
  reporter.repeat_warnings()


def _wait_until_free(workdir: Path) -> None:
  """Raises InputError where another process still runs the study after a minute.

  That of a SuperLink that was killed notices it, but goes some seconds later.
  """
  until = time.monotonic() + _LEAVING
  while True:
    try:
      return check_free(workdir)
    except InputError:
      if time.monotonic() > until:
        raise
    time.sleep(1.0)


def _folder(given: Mapping[str, Any]) -> Path:
  folder = given.get('workdir')
  if not isinstance(folder, str) or not folder:
    raise InputError(f'workdir={folder!r} in the run configuration: name a folder')
  return Path(folder).absolute()
