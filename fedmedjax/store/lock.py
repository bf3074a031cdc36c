"""A lock file for each folder of a run, so that only one live process writes there."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from fedmedjax.types import InputError

FILE = 'lock'


@contextmanager
def locked(workdir: Path, warn: Callable[[str], None]) -> Iterator[None]:
  """A context manager that holds the lock WORKDIR/lock.

  The kernel locks the open file, so the lock of a dead process is free, even when its process
  number is in use again. The file's content, process and host, is for people and for other hosts,
  whose kernels may not see the lock. The file is empty while nobody holds the lock, and is never
  removed: otherwise two runs could each lock a file of that name.

  Args:
    workdir: a folder that exists.
    warn: called with a sentence when the lock of a dead run is taken over.

  Raises:
    InputError: a live run of this host, or any run of another one, holds it.
    RuntimeError: the folder was deleted meanwhile.
  """
  path = workdir / FILE
  with path.open('a+') as file:
    text = _taken(workdir, file)
    if text:
      warn(f'{path}: {_holder(text)} is dead, its lock is taken over')
    _write(file, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}))
    try:
      yield
    except (OSError, RuntimeError):
      # Whatever could not be read or written, this is why.
      check_there(workdir)
      raise
    finally:
      _write(file, '')
    check_there(workdir)


def free(workdir: Path) -> None:
  """Empties the lock file of a process that holds it and ends without closing `locked`.

  A run that goes on on another host, which does not see that this process is dead, may begin.
  """
  with suppress(OSError):
    if (workdir / FILE).exists():
      (workdir / FILE).write_text('')


def check_there(workdir: Path) -> None:
  """Raises RuntimeError when a folder that this process has locked lacks its lock file."""
  if not (workdir / FILE).exists():
    raise RuntimeError(
      f'{workdir}: the folder, or the file {FILE} in it, was deleted or moved while this run wrote '
      'there; the same command begins again, or goes on where the folder is put back')


def check_free(workdir: Path) -> None:
  """Raises InputError when another run holds the folder; writes nothing."""
  if (workdir / FILE).exists():
    with (workdir / FILE).open() as file:
      _taken(workdir, file)


def _taken(workdir: Path, file: TextIO) -> str:
  """Locks the open file -> its content, which a dead run has left; '' if none.

  Raises:
    InputError: a live run of this host, or any run of another one, holds the lock.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise InputError(
      f'{workdir}: in use by {_holder(file.read())}; wait for it or stop it') from None
  except OSError as error:
    raise InputError(f'{workdir}: its file system keeps no locks: {error}') from None
  file.seek(0)
  text = file.read()
  if text and _read(text).get('host', socket.gethostname()) != socket.gethostname():
    raise InputError(
      f'{workdir}: in use by {_holder(text)}; if that run is dead, delete '
      f'{workdir / FILE}')
  return text


def _write(file: TextIO, text: str) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
  file.flush()


def _read(text: str) -> dict:
  try:
    entry = json.loads(text)
  except ValueError:
    entry = {}
  return entry if isinstance(entry, dict) else {}


def _holder(text: str) -> str:
  entry = _read(text)
  return f'process {entry.get("pid", "unknown")} on host {entry.get("host", "unknown")}'
