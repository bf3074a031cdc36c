"""One output of a notebook cell that is drawn anew, where a terminal would scroll."""

import io
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

# Seconds between two drawings of what only moves.
_PAUSE = 0.25


class Drawing:
  """What a cell shows: HTML, or the text of it where a frontend has none."""

  def __init__(self, html: str, text: str):
    self.html, self.text = html, text

  def _repr_html_(self) -> str:
    return f'<pre style="white-space:pre;line-height:1.2;overflow-x:auto">{self.html}</pre>'

  def __repr__(self) -> str:
    return self.text


class Block:
  """Lines that stay and, below them, what moves; all of it one output of the cell."""

  def __init__(self, width: int, display: Callable[..., Any] | None = None):
    """
    Args:
      width: in characters.
      display: IPython's `display`, which answers a `display_id` with a handle to update; by
        default that of the notebook.
    """
    self._width, self._display = width, display
    self._html, self._text, self._handle = '', '', None
    self._lock, self._drawn = threading.Lock(), -_PAUSE

  def add(self, *renderables: Any, moving: Any = '', **style: Any) -> None:
    """Adds lines that stay, and draws."""
    with self._lock:
      html, text = self._rendered(*renderables, **style)
      self._html, self._text = self._html + html, self._text + text
      self._draw(moving)

  def move(self, moving: Any) -> None:
    """Draws what moves, unless that was done just now."""
    with self._lock:
      if time.monotonic() - self._drawn >= _PAUSE:
        self._draw(moving)

  def _draw(self, moving: Any) -> None:
    html, text = self._rendered(moving) if moving else ('', '')
    drawing = Drawing(self._html + html, self._text + text)
    if self._handle is None:
      if self._display is None:
        from IPython.display import display  # there is one where there is a notebook
        self._display = display
      self._handle = self._display(drawing, display_id=True)
    else:
      self._handle.update(drawing)
    self._drawn = time.monotonic()

  def _rendered(self, *renderables: Any, **style: Any) -> tuple[str, str]:
    """(HTML, text) of what a console would print."""
    console = Console(
      file=io.StringIO(), record=True, width=self._width, markup=False, emoji=False,
      force_jupyter=False, force_terminal=False)
    console.print(*renderables, **style)
    return (console.export_html(inline_styles=True, code_format='{code}', clear=False),
            console.export_text())
