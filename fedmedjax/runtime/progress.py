"""Progress on the terminal: live bars, or plain lines where there is no terminal."""

import sys
import threading
import time
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

# Seconds between two lines of a task when the output goes to a file.
_QUIET = 10.0


class Reporter:
  """Shows tasks with their counts, a note (such as the loss) and the time left."""

  def __init__(self, console: Console | None = None):
    # Without a terminal rich would wrap tables at 80 columns. What is shown is other people's names
    # and words: brackets and colons in them are no commands.
    self.console = console or Console(
      width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
    self._bars = Progress(
      TextColumn('{task.description:<34}', markup=False), BarColumn(bar_width=24),
      MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(),
      TextColumn('{task.fields[note]}', markup=False), console=self.console)

  def say(self, *renderables) -> None:
    self.console.print(*renderables)

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
    bar = self._bars.add_task(label, total=total, note='')

    def advance(count: int = 1, note: str = '') -> None:
      nonlocal done, last
      with lock:
        done += count
        self._bars.update(bar, advance=count, note=note)
        now = time.monotonic()
        due = done >= total or now - last > _QUIET
        if due and not self.console.is_terminal:
          last = now
          left = (now - started) / max(done, 1) * max(total - done, 0)
          self.console.print(
            f'{label}: {done}/{total}, {now - started:.0f} s, {left:.0f} s left {note}'.rstrip(),
            highlight=False, soft_wrap=True)

    if not self.console.is_terminal:
      self.console.print(f'{label} ...', highlight=False, soft_wrap=True)
    try:
      yield advance
    finally:
      # A finished task needs no bar, only its line.
      self._bars.update(bar, visible=False)
      if self.console.is_terminal:
        self.console.print(f'{label}: {time.monotonic() - started:.1f} s', highlight=False)
