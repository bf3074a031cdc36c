"""The building blocks of a report: sections of tables, charts, sentences and examples, as data.

The templates turn them into HTML. Of the data only the drawings of `svg.py` are HTML.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

# What stands in a table where there is no value.
NONE = '\N{EN DASH}'


class Cell(NamedTuple):
  """A table's cell: its text, and a second text in small letters below."""

  text: str
  below: str = ''


class Table(NamedTuple):
  """A table whose rows begin with their name."""

  title: str
  note: str                       # one line that explains the numbers
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell | str]]
  words: bool = False             # whether cells are aligned as text rather than as numbers
  beside: bool = False            # leaves room for a chart beside it on a wide screen
  kind = 'table'

  def told(self) -> 'Table':
    """The table without columns of dashes alone, and without rows where these were all."""
    kept = [place for place in range(len(self.columns)) if not place or any(
      row[place] not in (NONE, Cell(NONE)) for row in self.rows)]
    if len(kept) == 1 < len(self.columns):
      return self._replace(rows=())
    return self._replace(
      columns=[self.columns[place] for place in kept],
      rows=[[row[place] for place in kept] for row in self.rows])


class Plot(NamedTuple):
  """A chart of lines: {name: [(x, y, low, high), ...]}, where low and high may be None."""

  title: str
  note: str
  x_label: str
  series: dict[str, Sequence[tuple[float, float, float | None, float | None]]]


class Chart(NamedTuple):
  """A drawing with its title and one line that explains it."""

  title: str
  note: str
  drawing: Markup
  # (place, see `charts.py`, or an entity type, which has a colour of its own; name)
  legend: Sequence[tuple[int | str, str]] = ()
  marks: bool = True              # the legend shows marks of lines and dots; False = swatches


class Charts(NamedTuple):
  """Drawings side by side, which may have one legend in common."""

  charts: Sequence[Chart]
  legend: Sequence[tuple[int | str, str]] = ()  # (place, name)
  note: str = ''                  # what is left out of the drawings
  kind = 'charts'


class Sentences(NamedTuple):
  """Sentences, a paragraph each."""

  lines: Sequence[str]
  kind = 'sentences'


class Command(NamedTuple):
  """A command for a shell, which a narrow window breaks into lines and which can be pasted."""

  words: Sequence[str]            # quoted where a shell needs it
  kind = 'command'


class Figures(NamedTuple):
  """Key figures in large letters: (value, its meaning)."""

  entries: Sequence[tuple[str, str]]
  kind = 'figures'


class Piece(NamedTuple):
  """A stretch of a sentence: plain text, or a span."""

  text: str
  type: str = ''                  # of the span; '' = plain text
  verdict: str = ''               # the kind of error of the span; '' = right


class Excerpt(NamedTuple):
  """A sentence as it was annotated and as runs answered it."""

  place: str                      # document and character
  task: str
  lines: Sequence[tuple[str, Sequence[Piece]]]  # ('annotated' or the run, pieces of the sentence)


class Excerpts(NamedTuple):
  """Sentences of a site."""

  site: str
  entries: Sequence[Excerpt]
  folded: bool                    # hidden until it is clicked
  unit: str = 'sentence'          # what the entries are
  kind = 'excerpts'


class Folded(NamedTuple):
  """Blocks, hidden until they are clicked."""

  title: str
  blocks: Sequence[Any]
  kind = 'folded'


class Settings(NamedTuple):
  """Keys with their values, hidden until clicked."""

  title: str
  entries: Sequence[tuple[str, str]]
  kind = 'settings'


class Section(NamedTuple):
  """A heading, a paragraph about it, and blocks; a section without blocks is left out."""

  name: str                       # of the HTML anchor
  title: str
  lead: str                       # the paragraph
  blocks: Sequence[Any]
  folded: bool = True             # hidden until it is clicked
