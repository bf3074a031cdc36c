"""What a report is made of: sections of tables, charts, sentences and examples, as plain data.

The templates turn these into HTML; nothing here is HTML but the drawings of `svg.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup


class Cell(NamedTuple):
  """A table's cell: what it says, and in small letters below."""

  text: str
  below: str = ''


class Table(NamedTuple):
  """Rows begin with their name; all other cells are aligned as numbers unless `words`."""

  title: str
  note: str                       # one line that explains the numbers
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell | str]]
  words: bool = False
  beside: bool = False            # leaves room for a chart, where the screen has it
  kind = 'table'


class Plot(NamedTuple):
  """Lines that a caller wants drawn: {name: [(x, y, low, high), ...]}, low and high may be None."""

  title: str
  note: str
  x_label: str
  series: dict[str, Sequence[tuple[float, float, float | None, float | None]]]


class Chart(NamedTuple):
  """A drawing with its title and one line that explains it.

  A legend is (place in the palette, name) each, with the marks of lines and dots, or swatches.
  """

  title: str
  note: str
  drawing: Markup
  legend: Sequence[tuple[int, str]] = ()
  marks: bool = True


class Charts(NamedTuple):
  """Drawings, perhaps with one legend for all."""

  charts: Sequence[Chart]
  legend: Sequence[tuple[int, str]] = ()
  note: str = ''                  # what is not drawn
  kind = 'charts'


class Sentences(NamedTuple):
  """Plain lines."""

  lines: Sequence[str]
  kind = 'sentences'


class Figures(NamedTuple):
  """Key figures: (value, what it is) each."""

  entries: Sequence[tuple[str, str]]
  kind = 'figures'


class Piece(NamedTuple):
  """A stretch of a sentence. `type` '' = plain text; `verdict` says what is wrong with it, if
  anything is."""

  text: str
  type: str = ''
  verdict: str = ''


class Excerpt(NamedTuple):
  """A sentence, as annotated and as answered: (whose, pieces) each, gold first."""

  place: str                      # document and character
  task: str
  lines: Sequence[tuple[str, Sequence[Piece]]]


class Excerpts(NamedTuple):
  """Sentences of a site."""

  site: str
  entries: Sequence[Excerpt]
  folded: bool                    # shown at a click
  kind = 'excerpts'


class Settings(NamedTuple):
  """Keys with their values, folded away."""

  title: str
  entries: Sequence[tuple[str, str]]
  kind = 'settings'


class Section(NamedTuple):
  """A heading, what it is about, and its blocks; empty ones are left out."""

  name: str                       # of its anchor
  title: str
  lead: str
  blocks: Sequence[Any]
