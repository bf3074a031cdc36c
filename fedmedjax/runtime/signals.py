"""SIGINT and SIGTERM: the first stops the program when its work is saved, the second at once."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
  """Raised in the main thread when a signal asks the program to stop."""

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


# Module state, since signal handlers belong to the whole process.
_depth = 0
_pending: list[int] = []
_late_writers = False


def _handle(number, frame) -> None:
  # Recorded even when it is raised now: Python drops an exception raised within a destructor, and
  # the signal would be lost with it.
  _pending.append(number)
  if not _depth:
    raise Stopped(number)


def _quiet(unraisable) -> None:
  """A hook for uncaught exceptions of destructors: prints all but two kinds.

  Not printed: `Stopped`, since the next round notices the signal; and late writers of a checkpoint,
  which find their event loop closed: the first failed writer has ended the save, whose error is
  printed.
  """
  late = unraisable.object is None and str(unraisable.exc_value) == 'Event loop is closed'
  if not late and not isinstance(unraisable.exc_value, Stopped):
    sys.__unraisablehook__(unraisable)


def _is_logged(record: logging.LogRecord) -> bool:
  """False for asyncio's messages about failed or unfinished tasks that nobody waits for."""
  return not record.getMessage().startswith(
    ('Task exception was never retrieved', 'Task was destroyed but it is pending'))


def expect_late_writers() -> None:
  """Silences the other writers of a checkpoint whose save has failed.

  They may end later, even after `stoppable` has closed, and the failure has been raised already.
  `_quiet` then stays in place, and asyncio's logger does not report their tasks.
  """
  global _late_writers
  _late_writers = True
  logging.getLogger('asyncio').addFilter(_is_logged)


def pending() -> int:
  """The number of the first signal that came and is not heeded yet; 0 = none."""
  return _pending[0] if _pending else 0


@contextmanager
def deferred() -> Iterator[None]:
  """A context manager that delays `Stopped` until it closes; another exception takes precedence."""
  global _depth
  if _pending and not _depth:
    raise Stopped(_pending[0])
  _depth += 1
  try:
    yield
  finally:
    _depth -= 1
  if _pending and not _depth:
    raise Stopped(_pending[0])


@contextmanager
def stoppable() -> Iterator[None]:
  """While open, signals raise `Stopped` in the main thread; a second one ends the process at once.

  Python runs handlers in the main thread only, between two bytecode instructions, so not while the
  main thread waits for a compiled round. Another thread therefore reads the signals' numbers from
  the wake-up socket, prints a line for the first signal and ends the process on the second.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reader, sender = socket.socketpair()
  sender.setblocking(False)

  def watch():
    seen = 0
    while number := reader.recv(1):
      if number[0] not in SIGNALS:
        continue
      seen += 1
      if seen > 1:
        os._exit(128 + number[0])
      print(
        f'{signal.Signals(number[0]).name}: leaving as soon as nothing is lost by it; once more '
        'leaves at once', file=sys.stderr, flush=True)

  _pending.clear()
  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  told, sys.unraisablehook = sys.unraisablehook, _quiet
  before = {number: signal.signal(number, _handle) for number in SIGNALS}
  woken = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(woken)
    if not _late_writers:
      sys.unraisablehook = told
    _pending.clear()
    for number, handler in before.items():
      signal.signal(number, handler)
    sender.close()  # ends the thread
    thread.join()
    reader.close()
