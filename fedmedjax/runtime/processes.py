"""The processes of a run that is started in several, on one machine or many: who, and how many.

They exchange small values by the key-value store of JAX's coordination service, which process 0
runs. Every wait has a deadline, which counts from the last sign that a missing process gets on
(`watch.py`), and its error names who is missing.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fedmedjax.runtime.watch import BEAT, CALL, Watch, jax_error
from fedmedjax.types import InputError

# Characters of one entry in the key-value store, and seconds of one question for one.
_PIECE, _ASK = 2**20, 10.0
_ROOT = 'fedmedjax/values'


class Processes:
  """Process `index` of `count`; of a single one every exchange is a no-operation."""

  def __init__(
    self, index: int = 0, count: int = 1, service: Any = None, deadline: float = 1800.0,
    call_deadline: float | None = None,
  ):
    """
    Args:
      index: of this process, from 0.
      count: of all.
      service: JAX's, which keeps what they exchange; None for a single process.
      deadline: seconds that a live process is waited for that does not get on.
      call_deadline: seconds that one round, one compilation or one batch of answers may take; None
        = CALL deadlines.
    """
    self.index, self.count = index, count
    self._service, self._number = service, 0
    self.watch = Watch(
      index, [f'process {number}' for number in range(count)], service, deadline,
      CALL * deadline if call_deadline is None else call_deadline)

  @property
  def first(self) -> bool:
    """Whether this process keeps the run's folder and tells what happens."""
    return not self.index

  @contextmanager
  def doing(self, what: str) -> Iterator[None]:
    """While open, a task is under way that gets on by steps, each of them a long call.

    Args:
      what: the task, for errors that name who hangs.
    """
    if self.count == 1:
      yield
      return
    with self.watch.doing(what, self.watch.call_deadline):
      yield

  def stir(self) -> None:
    """A task has got on by a step."""
    self.watch.stir()

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
      with contextlib.suppress(jax_error()):  # what is left there takes a little memory
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
    begun, found, missing = time.monotonic(), [], []
    with self.watch.doing(f'waits at {what!r}', None):
      for place in others:
        text = self._get(place, f'{_ROOT}/{number}/{place}', begun)
        if text is None:
          missing.append(place)
          continue
        theirs, given = json.loads(text)
        if theirs != what:
          raise RuntimeError(
            f'{self.watch.names[place]} is at {theirs!r}, this one at {what!r}: they do not run '
            'alike')
        found.append(given)
    if missing:
      raise RuntimeError(
        f'{what}: waited {time.monotonic() - begun:.1f} s for {self.watch.told(missing)}; the same '
        f'command goes on after what is saved, and {self.watch.flag(missing[0])} waits longer')
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
            f'{told(key)} is not the same in all processes: {self.watch.names[0]} has '
            f'{_short(first.get(key))}, {self.watch.names[number]} {_short(other.get(key))}')

  def begin(self) -> 'Processes':
    """Tells the others where this process runs, and begins to watch them."""
    self.watch.names[:] = [
      f'process {number} ({host}, pid {pid})' for number, (host, pid) in enumerate(self.gather(
        'the start', [socket.gethostname(), os.getpid()]))]
    self.watch.begin()
    return self

  @property
  def hosts(self) -> list[str]:
    """The machines that the processes run on, in their order."""
    return [name.partition('(')[2].partition(',')[0] for name in self.watch.names]

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
      self.watch.over.set()
    except BaseException as error:
      if _of_jax(error):
        time.sleep(self.watch.silence + 3 * BEAT)
      if isinstance(error, KeyboardInterrupt):
        # A signal that all have received, or agreed to heed, stops each of them by itself, whatever
        # it hears of the others.
        self.watch.over.set()
        time.sleep(3 * BEAT)
      self.watch.over.set()
      self.watch.say((str(error).splitlines() or [type(error).__name__])[0])
      if self.first:
        # The others hear of it from this process's own service.
        time.sleep(4 * BEAT)
      raise

  def _put(self, key: str, text: str) -> None:
    pieces = [text[i:i + _PIECE] for i in range(0, len(text), _PIECE)]
    for name, piece in (*enumerate(pieces), ('count', str(len(pieces)))):
      # One whose answer was lost is written twice.
      self._tried(self._service.key_value_set, f'{key}/{name}', piece, allow_overwrite=True)

  def _get(self, place: int, key: str, begun: float) -> str | None:
    """What another process has put there; None where it does not get on any more.

    Args:
      place: number of the process.
      key: of the value.
      begun: when the wait began, by the clock.
    """
    def ask(name: str) -> str | None:
      left = max(min(self.watch.patience(place, begun), _ASK), 0.05)
      try:
        return self._service.blocking_key_value_get(f'{key}/{name}', int(1000 * left))
      except jax_error() as error:
        if 'DEADLINE_EXCEEDED' in str(error):
          return None
        raise

    def read(name: str) -> str | None:
      while (text := self._tried(ask, name)) is None and self.watch.patience(place, begun) > 0:
        pass
      return text

    count = read('count')
    pieces = [read(str(number)) for number in range(int(count or 0))]
    return None if count is None or None in pieces else ''.join(map(str, pieces))

  def _tried(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the service answers; one call may fail, as by a fault of the network."""
    until = time.monotonic() + self.watch.silence
    while True:
      try:
        return call(*arguments, **named)
      except jax_error():
        if time.monotonic() > until:
          raise
      time.sleep(BEAT)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _of_jax(error: BaseException | None) -> bool:
  """Whether an error, or one behind it, is of JAX's runtime."""
  while error is not None:
    if isinstance(error, jax_error()):
      return True
    error = error.__cause__ or error.__context__
  return False


ALONE = Processes()
