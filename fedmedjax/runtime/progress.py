"""Progress: live bars on a terminal, one output in a notebook, plain lines in a file."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from fedmedjax.runtime.notebook import Block

# Seconds between two lines of a task when the output goes to a file.
_QUIET = 10.0


class Reporter:
  """Shows tasks with their counts, a note (such as the loss) and the time left; keeps warnings."""

  def __init__(
    self, console: Console | None = None, display: Callable[..., Any] | None = None
  ):
    """
    Args:
      console: of rich; by default the process's output.
      display: of the notebook that the console is in, see `Block`.
    """
    # Without a terminal rich would wrap tables at 80 columns. What is shown is other people's names
    # and words: brackets and colons in them are no commands.
    self.console = console or Console(
      width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
    self.warnings: list[str] = []  # each once, in the order of their first time
    self._bars = Progress(
      TextColumn('{task.description:<34}', markup=False), BarColumn(bar_width=24),
      MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(),
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

  def repeat_warnings(self) -> None:
    """Says every warning once more: the last screen is what people see of a long run."""
    if self.warnings:
      self.say('Warnings of this run, again:')
    for text in self.warnings:
      self.say(f'warning: {text}')

  def _print(self, *renderables: Any, **style: Any) -> None:
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
  def task(self, label: str, total: int = 1):
    """Yields advance(count=1, note=''); safe to call from another thread."""
    lock, started = threading.Lock(), time.monotonic()
    done, last = 0, started
    # A file has no bars: it gets a line at the start, now and then, and at the end.
    in_file = not self.console.is_terminal and not self._block
    bar = self._bars.add_task(label, total=total, note='')

    def advance(count: int = 1, note: str = '') -> None:
      nonlocal done, last
      with lock:
        done += count
        self._bars.update(bar, advance=count, note=note)
        if self._block:
          self._block.move(self._moving())
        now = time.monotonic()
        due = done >= total or now - last > _QUIET
        if due and in_file:
          last = now
          left = (now - started) / max(done, 1) * max(total - done, 0)
          self.say_unwrapped(
            f'{label}: {done}/{total}, {now - started:.0f} s, {left:.0f} s left {note}'.rstrip())

    if in_file:
      self.say_unwrapped(f'{label} ...')
    elif self._block:
      self._block.move(self._moving())
    try:
      yield advance
    finally:
      # A finished task needs no bar, only its line.
      self._bars.update(bar, visible=False)
      if not in_file:
        self._print(f'{label}: {time.monotonic() - started:.1f} s', highlight=False)
