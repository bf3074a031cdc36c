"""The processes of a run that is started in several, on one machine or many: who, and how many.

They exchange small values by the key-value store of JAX's coordination service, which process 0
runs. Every wait has a deadline, and its error names who is missing. Each process gives a sign of
life once a second; where one has stopped, or says that it failed, the others end with status 1,
also from within a computation that waits for it and would never return.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from fedmedjax.types import InputError

# Seconds without a sign of life after which a process counts as dead, and between two signs.
SILENCE, _BEAT = 30.0, 1.0
# Characters of one entry in the key-value store.
_PIECE = 2**20
_ROOT, _ALIVE = 'fedmedjax/values', 'fedmedjax/alive'
_FAILED = 'failed: '


class Processes:
  """Process `index` of `count`; of a single one every exchange is a no-operation."""

  def __init__(
    self, index: int = 0, count: int = 1, service: Any = None, deadline: float = 1800.0
  ):
    """
    Args:
      index: of this process, from 0.
      count: of all.
      service: JAX's, which keeps what they exchange; None for a single process.
      deadline: seconds that a live process is waited for.
    """
    self.index, self.count, self.deadline = index, count, deadline
    self.silence = min(deadline, SILENCE)
    self._service, self._number = service, 0
    self._names = [f'process {number}' for number in range(count)]
    self._beats, self._over, self._saying = 0, threading.Event(), threading.Lock()
    self._contact = time.monotonic()
    # What has to be done where the process ends at once, without leaving what it is in.
    self.before_leaving: Callable[[], None] | None = None

  @property
  def first(self) -> bool:
    """Whether this process keeps the run's folder and tells what happens."""
    return not self.index

  def gather(self, what: str, value: Any = None) -> list:
    """The value that each process gives, in the order of processes.

    All processes have to call it, in the same order. Values are JSON values.

    Raises:
      RuntimeError: a process has not come within the deadline, or comes to something else.
    """
    if self.count == 1:
      return [value]
    found = self._exchanged(what, value, range(self.count))
    if self._number > 1:  # what was read by all, since they have come to this one
      self._service.key_value_delete(f'{_ROOT}/{self._number - 2}/{self.index}/')
    return found

  def collected(self, what: str, value: Any) -> list | None:
    """As `gather`, for process 0 alone; the others go on at once, with None."""
    if self.count == 1:
      return [value]
    found = self._exchanged(what, value, range(self.count) if self.first else ())
    return found if self.first else None

  def _exchanged(self, what: str, value: Any, others: Iterable[int]) -> list:
    number, self._number = self._number, self._number + 1
    self._put(f'{_ROOT}/{number}/{self.index}', json.dumps([what, value]))
    until, found, missing = time.monotonic() + self.deadline, [], []
    for name, key in ((self._names[p], f'{_ROOT}/{number}/{p}') for p in others):
      text = self._get(key, until)
      if text is None:
        missing.append(name)
        continue
      theirs, given = json.loads(text)
      if theirs != what:
        raise RuntimeError(f'{name} is at {theirs!r}, this one at {what!r}: they do not run alike')
      found.append(given)
    if missing:
      raise RuntimeError(
        f'{what}: waited {self.deadline:g} s for {", ".join(missing)}; the same command goes on '
        'after what is saved, and --deadline=... waits longer')
    return found

  def meet(self, what: str) -> None:
    """Waits until all processes have come here."""
    self.gather(what)

  def of_first(self, what: str, value: Callable[[], Any]) -> Any:
    """What process 0 computes, known to all; the others do not call `value`."""
    return self.gather(what, value() if self.first else None)[0]

  def once(self, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in process 0 alone, such as one that writes a file of the run."""
    return call(*arguments) if self.first else None

  def merged(self, what: str, own: dict[str, Any]) -> dict[str, Any]:
    """The entries of all processes; of a key that several give, that of the last."""
    return {key: entry for part in self.gather(what, own) for key, entry in part.items()}

  def most(self, what: str, number: float) -> float:
    """The largest of the numbers that processes give."""
    return max(self.gather(what, number))

  def same(self, what: str, own: dict[str, Any], told: Callable[[str], str] = str) -> None:
    """Compares values by key.

    Raises:
      InputError: a process has another than process 0; `told` words the key.
    """
    first, *others = self.gather(what, own)
    for number, other in enumerate(others, 1):
      for key in sorted(first.keys() | other.keys()):
        if first.get(key) != other.get(key):
          raise InputError(
            f'{told(key)} is not the same in all processes: {self._names[0]} has '
            f'{_short(first.get(key))}, {self._names[number]} {_short(other.get(key))}')

  def begin(self) -> 'Processes':
    """Tells the others where this process runs, and begins to watch them."""
    self._say(str(self._beats))
    self._names = [
      f'process {number} ({host}, pid {pid})' for number, (host, pid) in enumerate(self.gather(
        'the start', [socket.gethostname(), os.getpid()]))]
    self._contact = time.monotonic()
    for watch in (self._watch, self._watch_the_watch):
      threading.Thread(target=watch, daemon=True).start()
    return self

  @property
  def hosts(self) -> list[str]:
    """The machines that the processes run on, in their order."""
    return [name.partition('(')[2].partition(',')[0] for name in self._names]

  @contextmanager
  def taking_part(self) -> Iterator[None]:
    """While open, what goes wrong here is told to the others.

    An error of JAX may be the first sign that another process died: then that is waited for, and
    this process ends with the sentence that names it.
    """
    if self.count == 1:
      yield
      return
    try:
      yield
      self.meet('the end')
      self._over.set()
    except BaseException as error:
      if _of_jax(error):
        time.sleep(self.silence + 3 * _BEAT)
      if isinstance(error, KeyboardInterrupt):
        # A signal that all have received, or agreed to heed, stops each of them by itself, whatever
        # it hears of the others.
        self._over.set()
        time.sleep(3 * _BEAT)
      self._over.set()
      self._say(_FAILED + (str(error).splitlines() or [type(error).__name__])[0])
      if self.first:
        # The others hear of it from this process's own service.
        time.sleep(4 * _BEAT)
      raise

  def _say(self, beat: str) -> None:
    """What it is doing, in the place of its signs of life."""
    try:
      with self._saying:
        self._service.key_value_set(f'{_ALIVE}/{self.index}', beat, allow_overwrite=True)
    except _jax_error():
      pass  # The watch finds that, too.

  def _put(self, key: str, text: str) -> None:
    pieces = [text[i:i + _PIECE] for i in range(0, len(text), _PIECE)]
    for number, piece in enumerate(pieces):
      self._service.key_value_set(f'{key}/{number}', piece)
    self._service.key_value_set(f'{key}/count', str(len(pieces)))

  def _get(self, key: str, until: float) -> str | None:
    """What another process has put there; None when it has not come by then."""
    def read(name: str) -> str:
      left = max(until - time.monotonic(), 0.05)
      return self._service.blocking_key_value_get(f'{key}/{name}', int(1000 * left))

    try:
      return ''.join(read(str(number)) for number in range(int(read('count'))))
    except _jax_error() as error:
      if 'DEADLINE_EXCEEDED' in str(error):
        return None
      raise

  def _watch(self) -> None:
    """Gives signs of life, and ends the process when another one has stopped to."""
    seen: dict[str, tuple[str, float]] = {}
    while not self._over.wait(_BEAT):
      try:
        self._beats += 1
        with self._saying:
          if self._over.is_set():
            return  # its last word stays
          self._service.key_value_set(
            f'{_ALIVE}/{self.index}', str(self._beats), allow_overwrite=True)
        beats = dict(self._service.key_value_dir_get(_ALIVE))
      except _jax_error():
        self._lost([0])
      now = self._contact = time.monotonic()
      silent = []
      for number in range(self.count):
        beat = beats.get(f'{_ALIVE}/{number}', '')
        if beat.startswith(_FAILED) and number != self.index:
          self._leave(f'{self._names[number]} {beat}')
        before = seen.get(number)
        if before is None or before[0] != beat:
          seen[number] = beat, now
        elif now - before[1] > self.silence and number != self.index:
          silent.append(number)
      if silent:
        self._lost(silent)

  def _watch_the_watch(self) -> None:
    """Where even the service does not answer any more, process 0 has stopped."""
    while not self._over.wait(_BEAT):
      if time.monotonic() - self._contact > self.silence + 3 * _BEAT:
        self._lost([0])

  def _lost(self, numbers: list[int]) -> NoReturn:
    self._leave(
      f'{", ".join(self._names[number] for number in numbers)} gave no sign of life for '
      f'{self.silence:g} s, or is gone; the same command goes on after what is saved')

  def _leave(self, why: str) -> NoReturn:
    if self._over.is_set():
      # This process is about to end anyway.
      time.sleep(60)
    print(f'failed: {why}', file=sys.stderr, flush=True)
    if self.before_leaving:
      # A file system that does not answer must not keep the process.
      last = threading.Thread(target=self.before_leaving, daemon=True)
      last.start()
      last.join(5 * _BEAT)
    os._exit(1)


def _jax_error() -> type[Exception]:
  """Imported late, since a single process asks for no such thing and JAX takes seconds."""
  from jax.errors import JaxRuntimeError
  return JaxRuntimeError


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _of_jax(error: BaseException | None) -> bool:
  """Whether an error, or one behind it, is of JAX's runtime."""
  while error is not None:
    if isinstance(error, _jax_error()):
      return True
    error = error.__cause__ or error.__context__
  return False


ALONE = Processes()
