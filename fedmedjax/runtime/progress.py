"""Progress: live bars on a terminal, one output in a notebook, plain lines in a file."""

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedmedjax.runtime.notebook import Block
from fedmedjax.runtime.phrases import duration
from fedmedjax.runtime.processes import ALONE, Processes

# Seconds between two lines of a task when the output goes to a file. A task that advances by the
# clock gets no more than `_LINES` lines in the time that it is expected to take.
_QUIET, _LINES = 10.0, 20
# Seconds between two moves of a bar that advances by the clock, and the share at which it waits.
_TICK, _NEARLY = 1.0, 0.99
# Share of a task from which on its pace says something of the rest.
_TELLING = 0.02
# Lines that people see at once of an output that is no terminal.
_SCREEN = 40


class Forecast(NamedTuple):
  """How long a task is expected to take that does not tell how far it is."""

  seconds: float
  basis: str  # where the number is from: 'from the rounds before'


class Reporter:
  """Shows tasks with their counts, a note (such as the loss) and the time left; keeps warnings."""

  def __init__(
    self, console: Console | None = None, display: Callable[..., Any] | None = None,
    quiet: bool = False, follow: Processes = ALONE,
  ):
    """
    Args:
      console: of rich; by default the process's output.
      display: of the notebook that the console is in, see `Block`.
      quiet: shows nothing, as where another process tells the same.
      follow: are told which task is under way, and when it has got on.
    """
    # Without a terminal rich would wrap tables at 80 columns. What is shown is other people's names
    # and words: brackets and colons in them are no commands.
    self.console = console or Console(
      width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, quiet=quiet)
    self._follow = follow
    self.warnings: list[str] = []  # each once, in the order of their first time
    # Lines said so far, and where among them each warning was said the last time.
    self._lines, self._warned = 0, dict[str, int]()
    self._bars = Progress(
      TextColumn('{task.description:<34}', markup=False), BarColumn(bar_width=24),
      TextColumn('{task.fields[count]}'), TimeElapsedColumn(), TextColumn('{task.fields[left]}'),
      TextColumn('{task.fields[note]}', markup=False), console=self.console)
    self._block = Block(self.console.width, display) if self.console.is_jupyter else None

  def say(self, *renderables: Any) -> None:
    self._print(*renderables)

  def say_unwrapped(self, line: str) -> None:
    """A line that is to be copied: a terminal that is too narrow for it breaks it, not we."""
    self._print(line, highlight=False, soft_wrap=True)

  def warn(self, text: str) -> None:
    """Says what a user should know of now, and again at the end, see `repeat_warnings`."""
    if text not in self.warnings:
      self.warnings.append(text)
    self.say(f'warning: {text}')
    self._warned[text] = self._lines

  def repeat_warnings(self) -> None:
    """Says once more what is not on the last screen, which is what people see of a long run."""
    screen = self.console.height if self.console.is_terminal else _SCREEN
    above = [text for text in self.warnings if self._lines - self._warned[text] > screen]
    if above:
      self.say('Warnings of this run, again:')
    for text in above:
      self.say(f'warning: {text}')

  def _print(self, *renderables: Any, **style: Any) -> None:
    options = self.console.options.update(markup=False)
    for shown in renderables:
      self._lines += len(self.console.render_lines(shown, options, pad=False))
    if self._block:
      self._block.add(*renderables, moving=self._moving(), **style)
    else:
      self.console.print(*renderables, **style)

  def _moving(self) -> Any:
    """Bars of the tasks under way; '' = none."""
    under_way = any(task.visible for task in self._bars.tasks)
    return self._bars.get_renderable() if under_way else ''

  @contextmanager
  def live(self):
    """Bars are drawn while this is open."""
    if not self.console.is_terminal:
      yield self
      return
    with self._bars:
      yield self

  @contextmanager
  def task(self, label: str, total: int = 1, last_line: bool = True):
    """Yields advance(count=1, note=''); safe to call from another thread.

    Without `last_line` the caller itself says how long it took. A task of nothing is not shown.
    """
    if not total:
      yield lambda count=1, note='': None
      return
    lock, started = threading.Lock(), time.monotonic()
    done, last = 0, started
    bar = self._bars.add_task(label, total=total, count=f'0/{total}', left='', note='')

    def advance(count: int = 1, note: str = '') -> None:
      nonlocal done, last
      self._follow.stir()
      with lock:
        done += count
        now = time.monotonic()
        left = '' if done < _TELLING * total else (
          f'{duration((now - started) / max(done, 1) * max(total - done, 0))} left')
        self._bars.update(bar, advance=count, count=f'{done}/{total}', left=left, note=note)
        if self._block:
          self._block.move(self._moving())
        due = done >= total or now - last > _QUIET
        if due and self._in_file:
          last = now
          told = ', '.join(filter(None, (f'{done}/{total}', duration(now - started), left)))
          self.say_unwrapped(f'{label}: {told} {note}'.rstrip())

    self._begin(label)
    try:
      with self._follow.doing(label):
        yield advance
    finally:
      # A finished task needs no bar, only its line.
      self._bars.update(bar, visible=False)
      if last_line and not self._in_file:
        self._end(label, started)

  @contextmanager
  def clock(self, label: str, forecast: Forecast | None = None, last_line: bool = True):
    """Shows a task that does not tell how far it is: what is shown advances by the clock.

    A thread looks at the clock once a second. It says that the time left is an estimate, stays
    below 100 % until the task ends, and ends with it. Without a forecast only the time so far is
    shown. Without `last_line` the caller itself says how long it took.
    """
    started, ended = time.monotonic(), threading.Event()
    expected = forecast.seconds if forecast and 0 < forecast.seconds < math.inf else None
    bar = self._bars.add_task(label, total=expected, count='', left='', note='')

    def show(last: float) -> float:
      """Shows the time; returns when the last line was written to a file, in seconds."""
      now = time.monotonic() - started
      count, left, line = '', '', duration(now)
      if expected:
        share = min(now / expected, _NEARLY)
        # Rounded down: nothing is done by the clock alone.
        count, note = f'{int(100 * share)} %', f'estimated {forecast.basis}'
        left = (
          f'about {duration(max(expected - now, 1))} left' if now < expected else
          'longer than expected')
        line = f'{line}, {left} ({count}, {note})'
        self._bars.update(bar, completed=share * expected, count=count, left=left, note=note)
      if self._block:
        self._block.move(self._moving())
      if self._in_file and now - last >= max(_QUIET, max(now, expected or 0) / _LINES):
        self.say_unwrapped(f'{label}: {line}')
        return now
      return last

    def watch() -> None:
      last = 0.0
      try:
        while not ended.wait(_TICK):
          last = show(last)
      except (OSError, ValueError):
        pass  # nobody reads the output any more, which is said where the program writes next

    thread = threading.Thread(target=watch, daemon=True)
    self._begin(label)
    thread.start()
    try:
      with self._follow.doing(label):
        yield
    finally:
      ended.set()
      thread.join()
      self._bars.update(bar, visible=False)
      if last_line:
        self._end(label, started)

  @property
  def _in_file(self) -> bool:
    """A file has no bars: it gets a line at the start, now and then, and at the end."""
    return not self.console.is_terminal and not self._block

  def _end(self, label: str, started: float) -> None:
    """Says how long a task took; tenths of a second matter in short ones only."""
    seconds = time.monotonic() - started
    self._print(
      f'{label}: ' + (f'{seconds:.1f} s' if seconds < 10 else duration(seconds)), highlight=False)

  def _begin(self, label: str) -> None:
    """Shows that a task begins."""
    if self._in_file:
      self.say_unwrapped(f'{label} ...')
    elif self._block:
      self._block.move(self._moving())
