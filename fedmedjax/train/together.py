"""What several processes of a run make sure of before they begin: one configuration, one folder."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from fedmedjax.experiment.config import leaves
from fedmedjax.runtime.cli import versions
from fedmedjax.runtime.processes import Processes
from fedmedjax.store import files, lock
from fedmedjax.types import InputError

# Seconds in which a file of another machine has to be seen; network file systems keep what they
# know of a folder for some.
_SEEN = 15.0


def check_start(processes: Processes, config: ConfigDict, workdir: Path) -> None:
  """Raises InputError where processes see other configurations, packages or folders."""
  if processes.count == 1:
    return
  processes.same('the configuration', files.plain(leaves(config.to_dict())), 'config.{}'.format)
  processes.same('the packages', versions(), 'the version of {}'.format)
  workdir = workdir.absolute()
  near = next(path for path in (workdir, *workdir.parents) if path.is_dir())
  processes.same('the place', {
    '--workdir': workdir.relative_to(near).as_posix()}, '{}, as far as it is not there yet,'.format)
  name = processes.of_first('a token', lambda: f'{files.TOKEN}{uuid.uuid4().hex}')
  try:
    processes.once(files.write_text, near / name, '')
    processes.meet('the token is there')
    _all_see(processes, workdir, lambda: (near / name).exists())
  finally:
    processes.once((near / name).unlink, True)


@contextmanager
def kept(
  processes: Processes, workdir: Path, warn: Callable[[str], None]
) -> Iterator[None]:
  """Process 0 holds the folder's lock while this is open; the others have seen it."""
  if not processes.first:
    held = processes.of_first('the lock', lambda: None)
    _all_see(processes, workdir, lambda: _reads(workdir) == held)
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  with lock.locked(workdir, warn):
    if processes.count == 1:
      yield
      return
    processes.watch.before_leaving = partial(lock.free, workdir)
    try:
      processes.of_first('the lock', lambda: _reads(workdir))
      _all_see(processes, workdir, lambda: True)
      yield
    finally:
      processes.watch.before_leaving = None


def _reads(workdir: Path) -> str:
  path = workdir / lock.FILE
  return path.read_text() if path.exists() else ''


def _all_see(processes: Processes, workdir: Path, seen: Callable[[], bool]) -> None:
  """Raises InputError where a process does not see what process 0 has written."""
  until = time.monotonic() + _SEEN
  while not (found := seen()) and time.monotonic() < until:
    time.sleep(0.1)
  blind = [number for number, one in enumerate(
    processes.gather('the folder is shared', found)) if not one]
  if blind:
    raise InputError(
      f'--workdir={workdir}: process {blind[0]} does not see what process 0 writes there; all '
      'processes need one folder, on a file system that they share')
