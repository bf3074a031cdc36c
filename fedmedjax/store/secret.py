"""The secret that a private run's noise and draws are made from: a file of the run, mode 600."""

import os
import secrets
from pathlib import Path

from fedmedjax.types import InputError

FILE = 'noise_secret'
BYTES = 16


def read_or_drawn(workdir: Path, begun: bool) -> int:
  """The secret that the folder holds, or a new one of the system's entropy; writes nothing.

  Args:
    workdir: of the run; may be absent.
    begun: whether rounds are kept there, whose noise a new secret would not go on with.

  Raises:
    InputError: rounds are there and the secret is not, or the file holds none.
  """
  path = workdir / FILE
  if path.exists():
    text = path.read_text(encoding='utf-8').strip()
    try:
      found = int(text, 16)
    except ValueError:
      found = -1
    if found < 0 or len(text) != 2 * BYTES:
      raise InputError(f'{path}: {2 * BYTES} hexadecimal digits are expected')
    return found
  if begun:
    raise InputError(
      f'{path}: is not there, and without it the noise of the rounds that are done cannot be gone '
      'on with; choose another workdir')
  return drawn()


def drawn() -> int:
  """A new secret, of the system's entropy."""
  return secrets.randbits(8 * BYTES)


def keep(workdir: Path, secret: int) -> None:
  """Writes the secret, readable by its owner alone; it is on the disk when this returns."""
  path = workdir / FILE
  if path.exists():
    return
  part = path.with_name(f'{FILE}.part')
  part.unlink(missing_ok=True)
  with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w') as file:
    file.write(f'{secret:0{2 * BYTES}x}\n')
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)
