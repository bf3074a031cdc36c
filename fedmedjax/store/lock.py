"""One live run a folder: a lock file with the holder's process and host."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedmedjax.types import InputError

FILE = 'lock'


@contextmanager
def locked(workdir: Path, warn: Callable[[str], None]) -> Iterator[None]:
  """Holds WORKDIR/lock while open.

  The kernel holds the lock for the open file, so a dead process holds none, whoever has its number
  by now; what the file says is for people and for other hosts, whose locks the kernel may not see.
  It is empty when nobody holds it, and stays: removing it would let two runs lock two files.

  Args:
    workdir: exists.
    warn: told when the lock of a dead run is taken over.

  Raises:
    InputError: a live run of this host, or any run of another one, holds it.
  """
  path = workdir / FILE
  with path.open('a+') as file:
    text = _taken(workdir, file)
    if text:
      warn(f'{path}: {_holder(text)} is dead, its lock is taken over')
    _write(file, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}))
    try:
      yield
    finally:
      _write(file, '')


def check_free(workdir: Path) -> None:
  """Raises InputError when another run holds the folder; writes nothing."""
  if (workdir / FILE).exists():
    with (workdir / FILE).open() as file:
      _taken(workdir, file)


def _taken(workdir: Path, file: TextIO) -> str:
  """Locks the open file -> what it says of a dead run; InputError when a live one has it."""
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
