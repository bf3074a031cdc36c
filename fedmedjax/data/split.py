"""Which notes of a site are held out, and which of its sentences are used."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.pieces import is_cut
from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.sources import distinct
from fedmedjax.types import Document, SiteCorpus

# The validation set V is held out by source with this seed, whatever the seed of the run
# (docs/methods.md).
SPLIT_SEED = 42


class Split(NamedTuple):
  """A site's notes by use, and the sentences (note, start) of them that are used; None = all."""

  train: Sequence[Document]
  validation: Sequence[Document]
  test: Sequence[Document]
  trained: set[tuple[str, int]] | None = None
  tested: set[tuple[str, int]] | None = None
  shown: frozenset[str] = frozenset()  # texts of sentences that prompts of the site show


def held_out_sources(
  notes: Sequence[Document], share: float, rng: np.random.Generator, dealt_out: bool
) -> set[str]:
  """The sources that are held out for V: of several at least one, and never all of them.

  `dealt_out`: whether the notes, or sentences of notes, are a part of a pool.
  """
  sources = distinct(notes)
  if dealt_out and any(map(is_cut, notes)):
    # Sentences of one note were dealt out to several sites, which must hold out the same notes: so
    # a checksum of its name decides, and a site of few sentences may have none.
    chosen = {source for source in sources
              if zlib.crc32(f'{SPLIT_SEED} {source}'.encode()) < share * 2**32}
    return chosen if len(chosen) < len(sources) else set()
  # A site with one source keeps it to train on.
  number = min(max(1, round(share * len(sources))), len(sources) - 1)
  return {sources[i] for i in rng.permutation(len(sources))[:number]}


def drawn_sentences(
  name: str, notes: Sequence[Document], number: int, seed: int
) -> set[tuple[str, int]] | None:
  """The sentences (note, start) of `notes` that a site trains on; None = all.

  A smaller number draws a subset of a larger one's; another seed draws others.

  Args:
    name: of the site.
    notes: training notes that are not held out.
    number: how many sentences, or as many as there are; 0 = all.
    seed: of the draw.
  """
  return drawn(notes, number, (seed, zlib.crc32(name.encode()), 1))


def drawn(
  notes: Sequence[Document], number: int, seed: tuple[int, ...]
) -> set[tuple[str, int]] | None:
  """`number` random sentences (note, start) of the notes; a larger number draws them, too."""
  if not number:
    return None
  places = [(note.name, start) for note in notes for start, _ in note_sentences(note)]
  order = np.random.default_rng(seed).permutation(len(places))
  return {places[i] for i in order[:number]}


def split_notes(
  corpus: SiteCorpus, notes: Sequence[Document], held_out: set[int], max_train_sentences: int,
  seed: int, max_test: int,
) -> Split:
  """A site's notes by use.

  Args:
    corpus: the site.
    notes: its training notes that are used.
    held_out: places of those among them that are V's.
    max_train_sentences, seed: of `drawn_sentences`.
    max_test: sentences that are tested; 0 = all.
  """
  train = [note for i, note in enumerate(notes) if i not in held_out]
  return Split(
    train, [notes[i] for i in sorted(held_out)], corpus.test,
    drawn_sentences(corpus.name, train, max_train_sentences, seed),
    drawn(corpus.test, max_test, (SPLIT_SEED, zlib.crc32(corpus.name.encode()), 2)))
