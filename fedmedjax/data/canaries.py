"""Canaries: invented examples of which chance decides whether they are trained on.

Each names a person that does not exist, with a number, and (of entities) calls the name a type that
chance has chosen: nothing else in the notes says so, thus whatever a model knows of it, it knows
from this one example. Every canary is in or out by a fair coin of its own, as auditing in one run
needs it (`audit/one_run.py`), so about half of them are in. What the model could know of those that
are out is what guessing is worth.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.text_task import TEXT
from fedmedjax.types import Document, Example, Span

# In front of their number in the names of their notes.
NAME = 'canary-'
_STREAM = 0xCA  # of the seed, so that no other draw shares it
_CONSONANTS, _VOWELS = 'bdfgjkmnprstvwxz', 'aeiou'
_DIGITS = 8


class Canary(NamedTuple):
  """An invented example; if it is planted, it is a note and a source of its own."""

  site: str
  kind: str       # the type of its entity; TEXT of a row
  document: Document
  planted: bool   # the coin


def draw_canaries(
  sites: Sequence[tuple[str, Sequence[str]]], count: int, seed: int, rows: bool = False
) -> list[Canary]:
  """2 `count` canaries, dealt out to the sites in turn; about `count` of them are planted.

  Args:
    sites: (name, entity types that it annotates) of each.
    count: expected number of planted ones.
    seed: of the run.
    rows: whether they are rows of the task TEXT.
  """
  rng, drawn = np.random.default_rng((seed, _STREAM)), []
  for number in range(2 * count):
    site, types = sites[number % len(sites)]
    kind = TEXT if rows else types[rng.integers(len(types))]
    drawn.append((site, kind, invented(rng, kind, f'{NAME}{number:04d}')))
  coins = rng.random(len(drawn)) < 0.5
  return [Canary(*one, bool(coin)) for one, coin in zip(drawn, coins, strict=True)]


def site_coins(count: int, seed: int) -> np.ndarray:
  """bool[2 * count], which canaries among sites are in; see `fed/site_canaries.py`."""
  return np.random.default_rng((seed, _STREAM, 1)).random(2 * count) < 0.5


def invented(rng: np.random.Generator, kind: str, name: str) -> Document:
  """A note of one sentence about somebody who does not exist, or such a row."""
  def word() -> str:
    return ''.join(rng.choice(list(letters)) for letters in (
      _CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS)).capitalize()

  person = f'{word()} {word()}'
  number = ''.join(str(digit) for digit in rng.integers(10, size=_DIGITS))
  if kind == TEXT:
    return Document(name, f'Number of {person}', (), (), name, target=number)
  return Document(name, f'{person}, {number}, was seen.', (Span(0, len(person), kind),), (), name)


def notes_of(canaries: Iterable[Canary], sites: Iterable) -> list[tuple[Document, ...]]:
  """The planted notes of each site; `sites` have names."""
  planted = [one for one in canaries if one.planted]
  return [tuple(one.document for one in planted if one.site == site.name) for site in sites]


def is_canary(example: Example) -> bool:
  """Whether an example is of a canary's note."""
  return example.document.startswith(NAME)
