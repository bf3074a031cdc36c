"""A unix socket between a site's resident process and whatever relays its messages.

A message is 8 bytes, its length, most significant byte first, and as many bytes. One is sent each
way, then the connection ends. The socket is its user's alone (mode 600). What is longer than the
limit is refused before it is read: the answer is then the length 2^64 - 1 and nothing else.
"""

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmedjax.deploy.transport import Handle
from fedmedjax.types import InputError

_LENGTH = struct.Struct('>Q')
_REFUSED = 2**64 - 1
_CHUNK = 2**20
# Seconds between two looks at whether to stop, and that one who asks may be silent.
_POLL, _SILENCE = 0.5, 60.0


class Nobody(ConnectionError):
  """No process serves at a socket."""


def ask(path: str | Path, message: bytes, limit: int, timeout: float) -> bytes:
  """Sends a message to the process that serves `path` -> its answer.

  Args:
    path: of the socket.
    message: any bytes.
    limit: most bytes of an answer.
    timeout: seconds of silence after which it is given up, the site's work included.

  Raises:
    TimeoutError: no answer came in time.
    Nobody: no process serves there.
    ConnectionError: it went away, or one of the two is too long.
  """
  with socket.socket(socket.AF_UNIX) as peer:
    peer.settimeout(timeout)
    try:
      peer.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
      raise Nobody(f'{path}: no site serves there') from None
    refused = False
    try:
      peer.sendall(_LENGTH.pack(len(message)))
      peer.sendall(message)
    except (BrokenPipeError, ConnectionResetError):
      refused = True  # What it said of that may still be read.
    try:
      length = _length(peer)
    except ConnectionResetError:
      length = _REFUSED if refused else None
    if length == _REFUSED:
      raise ConnectionError(f'{path}: refuses a message of {len(message)} bytes as too long')
    if length is None:
      raise ConnectionError(f'{path}: the site went away without an answer')
    if length > limit:
      raise ConnectionError(f'{path}: an answer of {length} bytes, {limit} are allowed')
    return _read(peer, length)


def serve(
  path: str | Path, handle: Handle, limit: int, stop: Callable[[], bool] = lambda: False
) -> None:
  """Answers messages one after the other, until `stop()` or an exception such as Ctrl-C.

  Args:
    path: of the socket, made here and removed at the end.
    handle: message -> answer.
    limit: most bytes of a message.
    stop: asked about twice a second.

  Raises:
    InputError: the socket cannot be made there, or another process serves it.
  """
  with _listening(Path(path)) as listener:
    while not stop():
      try:
        peer, _ = listener.accept()
      except TimeoutError:
        continue
      with peer:
        peer.settimeout(_SILENCE)
        try:
          _answer(peer, handle, limit)
        except OSError:
          # Who asked went away or fell silent; the answer is kept and given to who asks again.
          continue


def _answer(peer: socket.socket, handle: Handle, limit: int) -> None:
  length = _length(peer)
  if length is None:
    return
  if length > limit:
    peer.sendall(_LENGTH.pack(_REFUSED))
    return
  answer = handle(_read(peer, length))
  peer.sendall(_LENGTH.pack(len(answer)))
  peer.sendall(answer)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
  """A socket at `path` that only this user can connect to."""
  _check_free(path)
  with socket.socket(socket.AF_UNIX) as listener:
    # The mode has to be right from the first moment on.
    mask = os.umask(0o177)
    try:
      listener.bind(os.fspath(path))
    except OSError as error:
      raise InputError(f'--socket={path}: {error.strerror or error}') from None
    finally:
      os.umask(mask)
    try:
      listener.listen()
      listener.settimeout(_POLL)
      yield listener
    finally:
      path.unlink(missing_ok=True)


def _check_free(path: Path) -> None:
  """Removes the socket of a dead process; InputError where there is anything else."""
  try:
    mode = path.lstat().st_mode
  except FileNotFoundError:
    return
  except OSError as error:
    raise InputError(f'--socket={path}: {error.strerror}') from None
  if not stat.S_ISSOCK(mode):
    raise InputError(f'--socket={path}: there is a file of that name; choose another')
  with socket.socket(socket.AF_UNIX) as peer:
    try:
      peer.connect(os.fspath(path))
    except ConnectionRefusedError:
      path.unlink()
      return
    except OSError as error:
      raise InputError(f'--socket={path}: {error.strerror}') from None
  raise InputError(f'--socket={path}: another process serves it; stop that first')


def _length(peer: socket.socket) -> int | None:
  """The length that comes next; None where the other side has gone."""
  try:
    return _LENGTH.unpack(_read(peer, _LENGTH.size))[0]
  except EOFError:
    return None


def _read(peer: socket.socket, length: int) -> bytes:
  """So many bytes; EOFError, a ConnectionError too, where the other side goes before."""
  data = bytearray()
  while len(data) < length:
    part = peer.recv(min(_CHUNK, length - len(data)))
    if not part:
      raise _Gone('the other side went away')
    data += part
  return bytes(data)


class _Gone(ConnectionError, EOFError):
  """The other side closed the connection in the middle."""
