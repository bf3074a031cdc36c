"""A study's own task: rows of an input and what is to be written about it."""

from collections import Counter

from fedmedjax.data.sources import source_of
from fedmedjax.types import Document, Example

TEXT = 'text'  # its name in config.data.tasks
# More different targets than these are free text, which has no mix.
MOST_LABELS = 100


def row_examples(document: Document) -> tuple[list[Example], Counter]:
  """The example of a row, and how many there are."""
  return [Example(
    document.name, 0, document.text, (), source=source_of(document), target=document.target)
  ], Counter(rows=1)


def is_solved(example: Example) -> bool:
  """Whether an example has something to write: an entity or modifier, or the target of a row."""
  return bool(example.entities) or example.target is not None
