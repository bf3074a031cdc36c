"""SIGINT and SIGTERM: the first ends the program where nothing is lost, the second at once."""

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
  """A signal asked the program to leave."""

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


# Handlers belong to the process, and so does what they have seen.
_depth = 0
_pending: list[int] = []
_late_writers = False


def _handle(number, frame) -> None:
  # Kept also when raised: raised within a destructor it would be dropped, and the signal with it.
  _pending.append(number)
  if not _depth:
    raise Stopped(number)


def _quiet(unraisable) -> None:
  """What is raised where nobody can catch it is told, but for two things that are told anyway.

  A signal in a destructor: the next round minds it. And writers of a checkpoint that come too late:
  when the disk is full the first of them ends the save, which says so, and its event loop.
  """
  late = unraisable.object is None and str(unraisable.exc_value) == 'Event loop is closed'
  if not late and not isinstance(unraisable.exc_value, Stopped):
    sys.__unraisablehook__(unraisable)


def _heard(record: logging.LogRecord) -> bool:
  """False for what asyncio tells of tasks that failed, or were left, when nobody waits for them."""
  return not record.getMessage().startswith(
    ('Task exception was never retrieved', 'Task was destroyed but it is pending'))


def expect_late_writers() -> None:
  """A save has failed, which is told: its other writers may end when `stoppable` has closed.

  They are heard of neither through `_quiet` nor, where their event loop is still there, through
  asyncio's logger.
  """
  global _late_writers
  _late_writers = True
  logging.getLogger('asyncio').addFilter(_heard)


@contextmanager
def deferred() -> Iterator[None]:
  """Holds a signal's `Stopped` back until this closes without another exception."""
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

  Python runs handlers in the main thread only, between two of its own instructions, so one that
  waits for a compiled round hears nothing. A thread of its own reads the signals' numbers from the
  handlers' wake-up socket, tells of the first and leaves on the second.
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
