"""What is wrong with the annotation of some sites of a partition: types, places, missing entities.

Sites whose notes are annotated badly are what methods of aggregation are told apart by. Only what a
site trains on, and the validation notes that are drawn from it, are damaged; tests are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.scripts import word_ranges
from fedmedjax.data.sentences import note_sentences
from fedmedjax.types import Document, InputError, Span


class Damage(NamedTuple):
  """Which sites of a partition are damaged, and how; see config.data.partition."""

  corrupted: float = 0.0                 # share of the sites, drawn
  corrupted_sites: tuple[int, ...] = ()  # or these
  corruption: str = 'mislabel'           # a key of CORRUPTIONS: of either of them
  missing: float = 0.0                   # share of the entities that is left unannotated
  missing_sites: tuple[int, ...] = ()    # at these


CLEAN = Damage()


class Corruption(NamedTuple):
  """A way in which a site annotates wrongly."""

  called: Callable         # (types) -> the type that the site calls each of them, in their order
  change: Callable         # (note, {type: called}) -> the note as the site has it
  keeps_modifiers: bool
  least: int               # number of types that it takes


def corrupted_sites(
  damage: Damage, types: Sequence[str], sites: int, rng: np.random.Generator
) -> set[int]:
  """The sites whose annotation is corrupted: those named, or a share of them that is drawn.

  Raises:
    InputError: there are too few types to mix up.
  """
  if damage.corrupted_sites:
    named, broken = f'corrupted_sites={damage.corrupted_sites}', set(damage.corrupted_sites)
  elif damage.corrupted:
    named = f'corrupted={damage.corrupted}'
    broken = set(rng.permutation(sites)[:round(damage.corrupted * sites)].tolist())
  else:
    return set()
  if len(types) < CORRUPTIONS[damage.corruption].least:
    raise InputError(
      f'config.data.partition.{named}: the pooled sites annotate only {", ".join(types)}; there is '
      "no other name to mix it up with; corruption 'shift' needs none")
  return broken


def mislabelled(note: Document, called: Mapping[str, str]) -> Document:
  """The note as a site has it that mixes up types.

  Modifiers are dropped, since their pairs with the wrong entity would be invalid.

  Args:
    note: with the right types.
    called: {an entity's type: the type that the site calls it}; other entities are dropped.
  """
  return note._replace(
    spans=tuple(
      span._replace(type=called[span.type]) for span in note.spans if span.type in called),
    relations=())


def shifted(note: Document) -> Document:
  """The note with every entity and modifier one word too far on.

  The last one of a sentence is one word too far back instead. A span that is all of its sentence,
  or that no sentence holds whole, stays.
  """
  moved: dict[tuple[int, int], tuple[int, int]] = {}
  for start, end in note_sentences(note):
    words = [
      (start + first, start + last) for first, last in word_ranges(note.text[start:end])
      if any(map(str.isalnum, note.text[start + first:start + last]))]
    for span in note.spans:
      if not start <= span.start < span.end <= end:
        continue
      held = [i for i, (first, last) in enumerate(words) if first < span.end and last > span.start]
      if held:
        step = 1 if held[-1] + 1 < len(words) else -1 if held[0] else 0
        if step:
          moved[span.start, span.end] = words[held[0] + step][0], words[held[-1] + step][1]

  def place(start: int, end: int) -> tuple[int, int]:
    return moved.get((start, end), (start, end))

  return note._replace(
    spans=tuple(Span(*place(span.start, span.end), span.type) for span in note.spans),
    covering=tuple(place(*range_) for range_ in note.covering))


# Value of config.data.partition.corruption -> what it does.
CORRUPTIONS: dict[str, Corruption] = {
  'mislabel': Corruption(lambda types: (*types[1:], *types[:1]), mislabelled, False, 2),
  'shift': Corruption(tuple, lambda note, called: shifted(note), True, 1)}


def incomplete(
  notes: Sequence[Document], types: Sequence[str], share: float, rng: np.random.Generator
) -> list[Document]:
  """The notes of a site that has left out a share of the entities, and their relations.

  The share is of all the notes together, rounded; one entity stays at least. A larger share of the
  same draw leaves out what a smaller one does, and more.

  Args:
    notes: of the site.
    types: of entities; spans of other types are modifiers, which stay.
    share: 0 to 1.
    rng: draws them.
  """
  entities = [
    (i, j) for i, note in enumerate(notes) for j, span in enumerate(note.spans)
    if span.type in types]
  number = min(round(share * len(entities)), len(entities) - 1)
  gone: list[set[int]] = [set() for _ in notes]
  for at in rng.permutation(len(entities))[:max(number, 0)]:
    i, j = entities[at]
    gone[i].add(j)
  return [_without(note, own) if own else note for note, own in zip(notes, gone, strict=True)]


def _without(note: Document, gone: set[int]) -> Document:
  """The note without these spans, by their index, and without the relations that they are in."""
  kept = [i for i in range(len(note.spans)) if i not in gone]
  place = {old: new for new, old in enumerate(kept)}
  return note._replace(
    spans=tuple(note.spans[i] for i in kept),
    relations=tuple(
      r._replace(head=place[r.head], tail=place[r.tail]) for r in note.relations
      if r.head in place and r.tail in place))
