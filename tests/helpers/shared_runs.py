"""Folders that are filled once for all processes of a test session.

Under `pytest -n 2` each process has its own session fixtures. What takes long to make and is only
read, such as a saved model or a finished run, is made by the process that needs it first.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(
  factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]
) -> Path:
  """The folder of this name of the session; fill(folder) makes it, in one process only.

  Tests only read it: one that changes a run takes a copy.
  """
  root = factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent  # of this process alone is a folder below
  folder = root / 'shared' / name
  folder.parent.mkdir(parents=True, exist_ok=True)
  whole = folder.with_name(f'{folder.name}.whole')
  with folder.with_name(f'{folder.name}.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not whole.exists():
      # What a process that died here has left.
      shutil.rmtree(folder, ignore_errors=True)
      fill(folder)
      whole.touch()
  return folder
