"""Messages as files in a folder that somebody carries, or that both sides can see.

FOLDER/outbox/SITE/NAME.safetensors is a message to a site, FOLDER/inbox/SITE/NAME.safetensors its
answer, of the same name. The name is made from the message's content. So a server that was stopped
and asks again finds the answer that came meanwhile, and a site knows what it has answered. Only
what a site says of itself before it takes part is said anew whenever its process begins, since its
policy may have changed. A file is written under another name and renamed when all of it is on disk.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fedmedjax.deploy.messages import kind
from fedmedjax.deploy.transport import Absent, Handle
from fedmedjax.types import InputError

OUTBOX, INBOX = 'outbox', 'inbox'
_SUFFIX, _PART = '.safetensors', '.part'
# Of each site so many newest messages and answers are kept: those of the round before, too, which
# a server asks for again when it was killed before its checkpoint.
_KEPT = 16
_POLL = 0.5


class Folder:
  """The transport over a folder; see the module for its files."""

  def __init__(self, folder: Path, limit: int):
    """folder: made when absent; limit: most bytes of an answer."""
    self._folder, self._limit = folder, limit

  def exchange(
    self, messages: Mapping[str, bytes], deadline_seconds: float
  ) -> dict[str, bytes | Absent]:
    """Writes all messages, then waits until every answer is there or the deadline is over."""
    until, answers = time.monotonic() + deadline_seconds, {}
    paths = {site: self._written(site, message) for site, message in messages.items()}
    while True:
      for site, path in paths.items():
        if site not in answers and (answer := _read(path, self._limit)) is not None:
          answers[site] = answer
      if len(answers) == len(paths) or time.monotonic() >= until:
        break
      time.sleep(min(_POLL, max(0.0, until - time.monotonic())))
    return {site: answers.get(site, Absent('late')) for site in paths}

  def _written(self, site: str, message: bytes) -> Path:
    """Where the answer to `message` will be; the message is there to be carried."""
    outbox, inbox = (_of_site(self._folder, box, site) for box in (OUTBOX, INBOX))
    inbox.mkdir(parents=True, exist_ok=True)
    name = _name(message)
    if not (outbox / name).exists():
      _write(outbox / name, message)
      for box in (outbox, inbox):
        _prune(box)
    return inbox / name


def answer_folder(
  folder: Path, site: str, handle: Handle, limit: int, stop: Callable[[], bool],
) -> None:
  """Answers what lies in the site's part of `folder`, and what comes, until `stop()`.

  Args:
    folder: as the server has it, or a copy that was carried here.
    site: the name of this site.
    handle: message -> answer.
    limit: most bytes of a message; a longer file is left alone and not read.
    stop: asked after every look at the folder.
  """
  outbox, inbox = (_of_site(folder, box, site) for box in (OUTBOX, INBOX))
  inbox.mkdir(parents=True, exist_ok=True)
  for path in _by_age(outbox):
    if _asks_for_description(path, limit):
      (inbox / path.name).unlink(missing_ok=True)
  while True:
    for path in unanswered(outbox, inbox):
      message = _read(path, limit)
      if isinstance(message, bytes):
        _write(inbox / path.name, handle(message))
    if stop():
      return
    time.sleep(_POLL)


def unanswered(outbox: Path, inbox: Path) -> Iterator[Path]:
  """The messages without an answer, oldest first."""
  for path in _by_age(outbox):
    if not (inbox / path.name).exists():
      yield path


def _name(message: bytes) -> str:
  return hashlib.sha256(message).hexdigest()[:32] + _SUFFIX


def _of_site(folder: Path, box: str, site: str) -> Path:
  """Raises InputError where a site's name is no name of a folder."""
  if site in ('', '.', '..') or '/' in site or '\0' in site:
    raise InputError(f'site {site!r}: messages to it lie in a folder of that name; rename the site')
  return folder / box / site


def _asks_for_description(path: Path, limit: int) -> bool:
  message = _read(path, limit)
  try:
    return isinstance(message, bytes) and kind(message) == 'describe'
  except (ValueError, RecursionError, KeyError, TypeError):
    return False


def _read(path: Path, limit: int) -> bytes | Absent | None:
  """The file's bytes; Absent where it is longer than `limit`, which is not read; None = no file."""
  if not path.is_file():  # What else may lie there, such as a pipe, would have no end.
    return None
  try:
    with path.open('rb') as file:
      length = os.fstat(file.fileno()).st_size
      if length > limit:
        return Absent(f'an answer of {length} bytes, {limit} are allowed')
      return file.read(length)
  except FileNotFoundError:
    return None
  except OSError as error:
    return Absent(f'an answer that cannot be read: {error.strerror}')


def _write(path: Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + _PART)
  # A file of that name is of a write that was killed, or a link to somewhere else.
  part.unlink(missing_ok=True)
  with part.open('xb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def _by_age(box: Path) -> list[Path]:
  files = [path for path in box.glob(f'*{_SUFFIX}') if path.is_file()]
  return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _prune(box: Path) -> None:
  for path in _by_age(box)[:-_KEPT]:
    path.unlink(missing_ok=True)
