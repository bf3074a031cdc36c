"""Signs of life and of progress between the processes of a run, once a second.

A thread of each process writes its sign: how often its work was seen to get on, what it does, for
how long that may show nothing, and where its main thread is. It reads those of the others. A
process without signs is dead. One whose signs show no progress for longer than they allow hangs,
and so may this one. One that waits for others may wait as long as these get on. Each of these ends
this process with status 1, also from within a computation that would never return.

Work gets on when a task says so (`stir`), and when a thread is seen at another place than a second
before. A loop that never ends can look like that; a call that never returns cannot.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# Seconds without a sign of life after which a process counts as dead, and between two signs.
SILENCE, BEAT = 30.0, 1.0
# How many deadlines a call may take that shows nothing until it returns, such as a round.
CALL = 12.0
_ALIVE = 'fedmedjax/alive'
_FAILED = 'failed: '


class Sign(NamedTuple):
  """What a process tells of itself."""

  beat: int            # rises while its thread runs
  progress: int        # rises while its work gets on
  limit: float | None  # seconds for which that may stay the same; None = it waits for others
  doing: str           # what; '' = nothing that has a name
  place: str           # of its main thread in this package, FILE:LINE


class Heard(NamedTuple):
  """What this process knows of another, or of itself."""

  text: str           # as it was written
  sign: Sign | None   # None = it has not begun to give any
  at: float           # by the clock, when the text was new
  since: float        # when its progress was

  def after(self, text: str, now: float) -> 'Heard':
    """What is known when `text` stands there at `now`."""
    if text == self.text:
      return self
    sign = Sign(*json.loads(text)) if text.startswith('[') else self.sign
    same = sign and self.sign and sign[1:3] == self.sign[1:3]
    return Heard(text, sign, now, self.since if same else now)


class Watch:
  """The signs of one process, and what it knows of the others."""

  def __init__(
    self, index: int, names: list[str], service: Any, deadline: float, call_deadline: float
  ):
    """
    Args:
      index: of this process, from 0.
      names: of all, for errors.
      service: JAX's, which keeps the signs.
      deadline: seconds that work without a name may show no progress.
      call_deadline: seconds that a task may, between two of its steps.
    """
    self.index, self.names, self._service = index, names, service
    self.deadline, self.call_deadline = deadline, call_deadline
    self.silence = min(deadline, SILENCE)
    self.over = threading.Event()
    # What has to be done where the process ends at once, without leaving what it is in.
    self.before_leaving: Callable[[], None] | None = None
    self._heard: dict[int, Heard] = {}
    self._tasks: list[tuple[str, float | None]] = [('', deadline)]
    self._beat = self._progress = 0
    self._stacks, self._saying = 0, threading.Lock()
    self._contact, self._error = time.monotonic(), ''

  def begin(self) -> None:
    """Begins to give signs and to look at those of the others."""
    self._contact = time.monotonic()
    for watch in (self._watch, self._watch_the_watch):
      threading.Thread(target=watch, daemon=True).start()

  def stir(self) -> None:
    """The work of this process gets on."""
    self._progress += 1

  @contextmanager
  def doing(self, what: str, limit: float | None) -> Iterator[None]:
    """While open, this is what the process does, and `limit` (see `Sign`) is for how long."""
    self._tasks.append((what, limit))
    self.stir()
    try:
      yield
    finally:
      self._tasks.pop()
      self.stir()

  def patience(self, number: int, begun: float) -> float:
    """Seconds for which process `number` is still waited for, if it shows nothing new.

    Args:
      number: of a process; where it has given no sign, `deadline` from `begun` on.
      begun: when the wait began, by the clock.
    """
    _, sign, _, since = self._heard.get(number, Heard('', None, begun, begun))
    limit = self.deadline if sign is None else sign.limit
    # Whoever it waits for is watched, too.
    return float('inf') if limit is None else since + limit - time.monotonic()

  def told(self, numbers: list[int]) -> str:
    """These processes, with what they were last seen to do."""
    def one(number: int) -> str:
      sign = self._heard[number].sign if number in self._heard else None
      if sign is None:
        return self.names[number]
      return f'{self.names[number]}, {sign.doing or "at work"}, at {sign.place or "its start"}'

    return ', and '.join(map(one, numbers))

  def flag(self, number: int) -> str:
    """What would have had this process waited for longer."""
    sign = self._heard[number].sign if number in self._heard else None
    named = sign and sign.limit not in (None, self.deadline)
    return '--call_deadline=...' if named else '--deadline=...'

  def say(self, text: str) -> None:
    """What stands in the place of its signs from now on: why it failed."""
    with contextlib.suppress(jax_error()), self._saying:  # the others' watch finds that, too
      self._service.key_value_set(
        f'{_ALIVE}/{self.index}', _FAILED + text, allow_overwrite=True)

  def _watch(self) -> None:
    while not self.over.wait(BEAT):
      try:
        with self._saying:
          if self.over.is_set():
            return  # its last word stays
          self._service.key_value_set(
            f'{_ALIVE}/{self.index}', json.dumps(self._own_sign()), allow_overwrite=True)
        signs = dict(self._service.key_value_dir_get(_ALIVE))
      except jax_error() as error:
        # It may be the network's; `_watch_the_watch` knows for how long there was none.
        self._error = f' ({(str(error).splitlines() or [""])[0]})'
        continue
      self._contact = time.monotonic()
      self._look({number: signs.get(f'{_ALIVE}/{number}', '') for number in range(len(self.names))})

  def _own_sign(self) -> Sign:
    stacks, place = _stacks()
    self._beat, self._progress = self._beat + 1, self._progress + (stacks != self._stacks)
    self._stacks = stacks
    what, limit = self._tasks[-1]
    return Sign(self._beat, self._progress, limit, what, place)

  def _look(self, signs: dict[int, str]) -> None:
    """Ends this process where one of the signs says so, or has stayed the same for too long."""
    now = time.monotonic()
    for number, text in signs.items():
      if text.startswith(_FAILED) and number != self.index:
        self._leave(f'{self.names[number]} {text}')
      self._heard[number] = self._heard.get(number, Heard('', None, now, now)).after(text, now)
    if silent := [number for number, one in self._heard.items()
                  if now - one.at > self.silence and number != self.index]:
      self._lost(silent)
    # A little later than a process that waits for them, which ends in better order.
    if stuck := [number for number, (_, sign, _, since) in self._heard.items()
                 if sign and sign.limit is not None and now - since > sign.limit + 3 * BEAT]:
      self._stuck(stuck)

  def _watch_the_watch(self) -> None:
    """Where even the service does not answer any more, process 0 has stopped."""
    while not self.over.wait(BEAT):
      if time.monotonic() - self._contact > self.silence + 3 * BEAT:
        self._lost([0])

  def _stuck(self, numbers: list[int]) -> NoReturn:
    sign = self._heard[numbers[0]].sign
    # Those who compute a round together hang together.
    same = [number for number, one in self._heard.items() if number in numbers or (
      sign.doing and one.sign and (one.sign.doing, one.sign.limit) == (sign.doing, sign.limit))]
    why = (
      f'{self.told(same)}: nothing has got on there for {sign.limit:g} s'
      + ('; at least one of them hangs' if len(same) > 1 else '')
      + f'; the same command goes on after what is saved, and {self.flag(numbers[0])} waits longer')
    if not self.index:
      # The others hear of it from this process's own service.
      self.say(why)
      time.sleep(4 * BEAT)
    self._leave(why)

  def _lost(self, numbers: list[int]) -> NoReturn:
    names = ', '.join(self.names[number] for number in numbers)
    self._leave(
      f'{names} gave no sign of life for {self.silence:g} s, or is gone{self._error}; the same '
      'command goes on after what is saved')

  def _leave(self, why: str) -> NoReturn:
    if self.over.is_set():
      # This process is about to end anyway.
      time.sleep(60)
    print(f'failed: {why}', file=sys.stderr, flush=True)
    if self.before_leaving:
      # A file system that does not answer must not keep the process.
      last = threading.Thread(target=self.before_leaving, daemon=True)
      last.start()
      last.join(5 * BEAT)
    os._exit(1)


def _stacks() -> tuple[int, str]:
  """(a number for where all threads are that work, FILE:LINE of the main one in this package).

  Threads that only look at others are daemons.
  """
  frames, found, place = sys._current_frames(), [], ''
  for thread in threading.enumerate():
    frame = None if thread.daemon else frames.get(thread.ident or 0)
    while frame:
      found.append((id(frame.f_code), frame.f_lasti))
      # What a library does there says less.
      if not place and thread is threading.main_thread() and frame.f_globals.get(
          '__name__', '').startswith('fedmedjax'):
        place = f'{Path(frame.f_code.co_filename).name}:{frame.f_lineno}'
      frame = frame.f_back
  return hash(tuple(found)), place


def jax_error() -> type[Exception]:
  """Imported late, since a single process asks for no such thing and JAX takes seconds."""
  from jax.errors import JaxRuntimeError
  return JaxRuntimeError
