"""Training notes that are tested on: by source, by text, and nearly by text.

Texts are compared without white space and case. A near-duplicate shares a run of words with a test
note: of the shorter one's 8-word shingles (Broder, "On the resemblance and containment of
documents", 1997) at least the share SHARE stand in the other one, too. So a copy with another
date, and a copy with an addendum, are found; what boilerplate two notes share is less than that.
A note of less than _FEWEST + _LENGTH - 1 words is compared by its whole text only: what a sentence
says may stand in hundreds of notes, and one word of it makes another note. So it is with rows
of the task 'text': many questions are asked about one note, in the same words about many notes.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedmedjax.data.pieces import is_piece
from fedmedjax.data.sources import known_sources, origin_of
from fedmedjax.types import Document, InputError, SiteCorpus

SHARE = 0.5
_LENGTH = 8  # words of a shingle
_FACTORS = np.random.default_rng(0).integers(2**63, size=_LENGTH, dtype=np.uint64) * 2 + 1
_FEWEST = 8  # shingles of a note that is no mere sentence
# A character of a script without blanks between words is a word here.
_WORD = re.compile(r'[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+')


def _key(document: Document) -> str:
  """The text without white space and case."""
  return ''.join(document.text.split()).casefold()


def _shingles(document: Document) -> np.ndarray:
  """Hashes of the different runs of _LENGTH words, u64[...], sorted."""
  words = _WORD.findall(document.text.casefold())
  if len(words) < _LENGTH:
    return np.zeros(0, np.uint64)
  hashed = np.array([*map(same_everywhere, words)], np.int64).view(np.uint64)
  # Sums modulo 2^64; equal runs have equal ones, and unlike runs all but surely unlike ones.
  return np.unique(sliding_window_view(hashed, _LENGTH) @ _FACTORS)


@lru_cache(2**18)
def same_everywhere(word: str) -> int:
  """A hash of a word, i64, that all processes agree on; Python's own differs between them."""
  return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), 'big', signed=True)


class Traces(NamedTuple):
  """What a site's test notes leave for others to compare their training notes with: hashes."""

  keys: list[int]                 # of the whole texts
  shingles: list[np.ndarray]      # of each note that is no row, u64[...]
  own: list[int]                  # of its sources, see `known_sources`
  anywhere: list[int]             # of those that mean the same in corpora of another origin


def traces(documents: Sequence[Document]) -> Traces:
  """The traces of test notes, or of the server's validation notes, of one site."""
  whole = [document for document in documents if not is_piece(document)]
  return Traces(
    [same_everywhere(_key(document)) for document in whole],
    [_shingles(document) for document in whole if document.target is None],
    *(sorted(map(same_everywhere, known_sources(documents, anywhere=anywhere)))
      for anywhere in (False, True)))


class TextIndex:
  """Test notes, to which training notes are compared."""

  def __init__(self, documents: Sequence[Document] = (), found: Iterable[Traces] = ()):
    """
    Args:
      documents: of all sites; sentences that were cut out of a longer document do not count.
      found: traces of documents that are not here.
    """
    found = [traces(documents), *found]
    self._keys = {key for part in found for key in part.keys}
    shingles = [own for part in found for own in part.shingles]
    self._sizes = np.array([*map(len, shingles)], int)
    hashes = np.concatenate([np.zeros(0, np.uint64), *shingles])
    order = hashes.argsort(kind='stable')
    self._hashes = hashes[order]
    self._holders = np.repeat(np.arange(len(shingles)), self._sizes)[order]

  def has(self, document: Document) -> bool:
    """Whether a test note has this text."""
    return not is_piece(document) and same_everywhere(_key(document)) in self._keys

  def nearly_has(self, document: Document) -> bool:
    """Whether a test note is a near-duplicate of this one."""
    if is_piece(document) or document.target is not None:
      return False
    shingles = _shingles(document)
    first, end = (self._hashes.searchsorted(shingles, side) for side in ('left', 'right'))
    shared = np.zeros(len(self._sizes), int)
    for i in np.flatnonzero(end > first):
      shared[self._holders[first[i]:end[i]]] += 1
    fewer = np.minimum(len(shingles), self._sizes)
    return bool(((fewer >= _FEWEST) & (shared >= SHARE * fewer)).any())


def without_sources(site: SiteCorpus, tested: set[str]) -> SiteCorpus:
  """The site without training notes of these sources, which are counted as leaked_documents."""
  return _kept(site, [d for d in site.train if origin_of(d) not in tested], 'leaked_documents')


def without_traces(
  site: SiteCorpus, found: Sequence[tuple[str, Traces]], index: TextIndex, judges: bool
) -> SiteCorpus:
  """A site that trains, without training notes that are tested on at any site or cohort.

  Args:
    site: that trains.
    found: (name, traces) of all sites and cohorts that are tested, and of the server's notes.
    index: of these traces.
    judges: whether the server's are among them.

  Raises:
    InputError: that leaves it without training notes.
  """
  known = {key for name, part in found
           for key in (part.own if name == site.name else part.anywhere)}
  kept = [d for d in site.train if same_everywhere(origin_of(d)) not in known]
  cleaned = without_texts(_kept(site, kept, 'leaked_documents'), index)
  _check_left(site, cleaned, judges)
  return cleaned


def without_texts(site: SiteCorpus, tested: TextIndex) -> SiteCorpus:
  """The site without training notes whose text is tested on, or nearly.

  They are counted as leaked_documents and near_duplicate_documents.
  """
  site = _kept(site, [d for d in site.train if not tested.has(d)], 'leaked_documents')
  return _kept(
    site, [d for d in site.train if not tested.nearly_has(d)], 'near_duplicate_documents')


def unjudged(server: SiteCorpus, tested: Sequence[SiteCorpus]) -> SiteCorpus:
  """The training notes alone of the server's validation set, without those tested on anywhere.

  Args:
    server: as it was read.
    tested: all sites and cohorts whose test notes are tested on.

  Raises:
    InputError: no note is left.
  """
  if not server.train:
    raise InputError(
      f'config.data.server_validation={server.name!r}: it has no training note, which the '
      "server's validation set would be made of")
  return unleaked([server._replace(test=())], tested)[0]


def unleaked(
  sites: Sequence[SiteCorpus], external: Sequence[SiteCorpus], server: Sequence[SiteCorpus] = ()
) -> list[SiteCorpus]:
  """The sites that train, without training notes that are tested on at any site or cohort.

  Args:
    sites: that train.
    external: cohorts that are tested.
    server: of `unjudged`; its notes are kept out of training like test notes.

  Raises:
    InputError: that leaves a site without training notes.
  """
  found = [(corpus.name, traces(corpus.test)) for corpus in (*sites, *external)]
  found += [(corpus.name, traces(corpus.train)) for corpus in server]
  index = TextIndex(found=[part for _, part in found])
  return [without_traces(site, found, index, bool(server)) for site in sites]


def _check_left(site: SiteCorpus, cleaned: SiteCorpus, judges: bool) -> None:
  """Raises InputError where no training note is left; `judges`: V has notes of its own."""
  # Those of a folder were compared with its own test notes when it was read.
  lost = len(site.train) or sum(
    site.report.get(f'{key}_documents', 0) for key in ('leaked', 'near_duplicate'))
  if lost and not cleaned.train:
    raise InputError(
      f'site {site.name!r}: each of its {lost} training notes has the source, the text'
      f' or nearly the text of a test note{" or a note of V" if judges else ""}, of it or of'
      ' another site; leave one of the two out')


def _kept(site: SiteCorpus, train: Sequence[Document], key: str) -> SiteCorpus:
  """The site with these training notes; how many the others are is added to its count `key`."""
  gone = len(site.train) - len(train)
  counted = {key: gone + site.report.get(key, 0)} if gone or key == 'leaked_documents' else {}
  return site._replace(
    train=tuple(train), report=site.report | {'train_documents': len(train)} | counted)
