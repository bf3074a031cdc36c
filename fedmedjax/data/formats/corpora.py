"""Sites from notes on disk: the five public corpora, and folders of a user's own.

A mapping (`mappings/*.toml`, see `mapping.py`) translates the type names of a corpus and says which
types were annotated there. Splits are by the source of notes (`data/sources.py`) and never depend
on the seed of a run, which must not move a note from test to training.
"""

import os
from collections import Counter, abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import relations
from fedmedjax.data.formats.mapped import apply_mapping
from fedmedjax.data.formats.mapping import (
  Mapping,
  check_names,
  own_names,
  read_mapping,
  restricted,
)
from fedmedjax.data.formats.readers import (
  FORMATS,
  Parts,
  asking,
  of_rows,
  read_notes,
  read_parts,
)
from fedmedjax.data.formats.text_rows import ROWS, given_rows
from fedmedjax.data.leaks import TextIndex, without_sources, without_texts
from fedmedjax.data.pieces import drawable
from fedmedjax.data.sources import (
  distinct,
  known_sources,
  origin_of,
  source_of,
  with_sources,
)
from fedmedjax.types import PAPER, Document, InputError, Schema, SiteCorpus

_SPLIT_SEED = 42
UNDIVIDED = 'undivided'  # in the report of rows: how many wait for `divided`
_HELD_OUT = 0.1  # share of dev, and of test, where a corpus has no official split


class Corpus(NamedTuple):
  """How a public corpus is read; its mapping is the one of the same name."""

  format: str
  files: tuple[str, ...] = ()  # train, dev, test; () = one folder, split here
  shares_notes_with: tuple[str, ...] = ()  # corpora made from some of the same abstracts


class SiteFolder(NamedTuple):
  """A site of a user's own: an entry of config.data.folders.

  `path` is a file or folder in the `format` of that name. Parts named train, (dev,) test are
  kept; otherwise `test_share` of the notes is tested on, where 0 and 1 are allowed. `mapping`
  is the name of a shipped one or a .toml file; rows of the format 'rows' have none. `annotated` are
  the types that were annotated throughout; () = what the mapping says, or else those that occur in
  the notes. `source` is a regular expression that finds the patient, article or trial in a note's
  name; '' = the rule of `data/sources.py`.
  """

  name: str
  path: str | os.PathLike
  format: str
  mapping: str | os.PathLike = ''  # of rows none
  test_share: float = 0.2
  annotated: tuple[str, ...] = ()
  source: str = ''


CORPORA = {
  'maccrobat2020': Corpus('brat'),
  'chia': Corpus('brat'),
  'phee': Corpus('phee', ('train.json', 'dev.json', 'test.json'), ('bc5cdr',)),
  'bc5cdr': Corpus(
    'pubtator',
    tuple(f'CDR_{part}Set.PubTator.txt' for part in ('Training', 'Development', 'Test')),
    ('phee',)),
  'ncbi_disease': Corpus(
    'pubtator', tuple(f'NCBI{part}set_corpus.txt' for part in ('train', 'develop', 'test'))),
}


def load_corpus(name: str, root: str | Path, schema: Schema = PAPER) -> SiteCorpus:
  """Reads one public corpus, maps its types and splits it.

  The mapping is that of its name, as far as its types are in the schema; a schema that has none of
  them is taken to have the corpus's own names.

  Training documents whose source is in the test part of a corpus with the same notes are
  dropped, if that corpus lies beside this one; otherwise there is no test to leak into.

  Args:
    name: a key of `CORPORA`.
    root: the folder that holds the folders of the corpora.
    schema: the study's types.

  Returns:
    The site. Its report counts over all that was read: the reader's counts (its entities and
    relations as raw_entities and raw_relations) and those of `apply_mapping`; and then
    train_documents, dev_documents (unused), test_documents and leaked_documents (dropped).
  """
  if name not in CORPORA:
    raise InputError(f'unknown corpus {name!r}; choose from {", ".join(CORPORA)}')
  corpus, folder = CORPORA[name], Path(root) / name
  if not folder.is_dir():
    raise InputError(f'FEDMEDJAX_DATA (or config key data.root) must name the folder that holds '
                     f'{name}/; looked for {folder}')
  parts, counts = _read(corpus, folder)
  if set(read_mapping(name).types) & set(schema.types):
    site = _site(name, read_mapping(name, schema), parts, counts)
  else:
    site = _occurring(name, own_names(schema), parts, counts, folder)
  tested = {
    source for other in corpus.shares_notes_with if (Path(root) / other).is_dir()
    for source in distinct(_read(CORPORA[other], Path(root) / other)[0].test)
  }
  return without_sources(site, tested | known_sources(site.test))


def load_folder(site: SiteFolder, schema: Schema = PAPER) -> SiteCorpus:
  """Reads a site of a user's own.

  Training notes that have the source, the text or nearly the text of a test note are dropped and
  counted (`data/leaks.py`). A type that its notes
  never have is not asked of the site, unless the mapping or the entry says that it was annotated:
  nobody can tell 'none there' from 'not looked for', and training on notes that were not looked
  through would teach errors. The report counts such types as absent_types.

  Args:
    site: an entry of config.data.folders.
    schema: the study's types and words.

  Raises:
    InputError: the notes or the mapping cannot be read, the mapping does not fit the notes, or
      there are too few notes to split.
  """
  # A `~` that no shell has replaced.
  path = Path(os.path.expanduser(site.path))
  if site.format == ROWS:
    notes, counts = read_parts(path, FORMATS[ROWS])
    return _row_site(site.name, _parted(site, notes, counts), counts)._replace(schema=schema)
  mapping = read_mapping(site.mapping, schema)
  form = asking(FORMATS[site.format], mapping.entities)
  notes, counts = read_parts(path, form)
  parts = _parted(site, notes, counts)
  corpus = _occurring(site.name, mapping, parts, counts, site.path, tuple(site.annotated))
  return without_texts(
    without_sources(corpus, known_sources(corpus.test)), TextIndex(corpus.test))


def site_of_rows(
  name: str, rows: Iterable[abc.Mapping[str, Any]], test_share: float | None = None
) -> SiteCorpus:
  """A site of rows that were given in Python, for the task 'text'.

  Args:
    name: of the site.
    rows: {'input': ..., 'target': ...}, with 'source' and 'part' if wanted, as in a file of rows.
    test_share: of its sources, where no row says its part; None = as `divided` is told later.

  Raises:
    InputError: a row lacks a text, or there are too few to split.
  """
  documents, counts = given_rows(name, rows)
  parts = of_rows(documents)
  if test_share is None and not isinstance(parts, Parts):
    return SiteCorpus(name, (), tuple(documents), (), {UNDIVIDED: len(documents)}, {})
  share = SiteFolder(name, '', ROWS, test_share=test_share or 0.0)
  return _row_site(name, _parted(share, parts, counts), counts)


def divided(site: SiteCorpus, test_share: float) -> SiteCorpus:
  """A site of rows of which nobody has said what is tested on, with that share tested on."""
  counts = Counter(documents=len(site.train))
  share = SiteFolder(site.name, '', ROWS, test_share=test_share)
  return _row_site(site.name, _parted(share, list(site.train), counts), counts)


def _row_site(name: str, parts: Parts, counts: Counter) -> SiteCorpus:
  """A site of rows, without training rows that have the source or the input of a tested one."""
  report = counts | {f'{part}_documents': len(documents)
                     for part, documents in zip(Parts._fields, parts, strict=True)}
  site = SiteCorpus(name, (), tuple(parts.train), tuple(parts.test), dict(report), {})
  return without_texts(
    without_sources(site, known_sources(site.test)), TextIndex(site.test))


def _occurring(
  name: str, mapping: Mapping, parts: Parts, counts: Counter, where: str | os.PathLike,
  annotated: tuple[str, ...] = (),
) -> SiteCorpus:
  """The site of these parts, asked for `annotated`, or else for what occurs in its notes.

  Raises InputError when the mapping does not fit the notes, which are those of `where`.
  """
  raw = {span.type for part in parts for d in part for span in d.spans}
  check_names(mapping, raw, where)
  asked, occurring = annotated, {kind for raw_kind, kind in mapping.entities.items()
                                 if raw_kind in raw}
  if not asked:
    # Notes without any annotation say nothing of what was looked for.
    asked = mapping.types if mapping.declared or not occurring else tuple(occurring)
    counts['absent_types'] = len(set(mapping.types) - set(asked))
  corpus = _site(name, restricted(mapping, asked, f'site {name!r}'), parts, counts)
  if not mapping.declared:
    occur = relations.annotated(corpus._replace(modifiers=None))
    corpus = corpus._replace(modifiers=occur)
  return corpus


def _read(corpus: Corpus, folder: Path) -> tuple[Parts, Counter]:
  """The documents of a public corpus by part, and the reader's counts."""
  form = FORMATS[corpus.format]
  if corpus.files:
    read, counts = zip(*(read_notes(folder / file, form) for file in corpus.files), strict=True)
    return Parts(*(with_sources(part, corpus.format) for part in read)), sum(counts, Counter())
  documents, counts = read_notes(folder, form)
  documents = with_sources(documents, corpus.format)
  sources = sorted(distinct(documents))
  held_out = round(_HELD_OUT * len(sources))
  sizes = len(sources) - 2 * held_out, held_out, held_out
  return Parts(*_divided(documents, sources, sizes)), counts


def _parted(site: SiteFolder, notes: Parts | list[Document], counts: Counter) -> Parts:
  """The site's documents with their sources, by part: as they came, or split by `test_share`."""
  def sourced(documents: list[Document]) -> list[Document]:
    return with_sources(documents, site.format, site.source, f'site {site.name!r}'
                        ) if documents else []

  if isinstance(notes, Parts):
    parts = Parts(*map(sourced, notes))
    # Before a part of one source is taken apart: its notes stand for themselves then.
    tested = known_sources(parts.test)
    train = [document for document in parts.train if origin_of(document) not in tested]
    counts['leaked_documents'] += len(parts.train) - len(train)
    parts = parts._replace(train=train)
    return parts._replace(train=drawable(parts.train, counts), test=drawable(parts.test, counts))
  documents = drawable(sourced(notes), counts)
  sources = distinct(documents)
  tested = round(site.test_share * len(sources))
  test, train = _divided(documents, sources, (tested, len(sources) - tested))
  if 0 < site.test_share < 1 and not (train and test):
    of = f' of {len(sources)} sources' * (len(sources) < len(documents))
    raise InputError(f'site {site.name!r}: {len(documents)} documents{of} cannot be split with '
                     f'test_share {site.test_share}; give more documents, or a share of 0 or 1')
  return Parts(train, [], test)


def _divided(
  documents: Sequence[Document], sources: Sequence[str], sizes: Sequence[int]
) -> list[list[Document]]:
  """The documents of so many random sources each, in their order; all of a source together."""
  chosen = np.split(
    np.random.default_rng(_SPLIT_SEED).permutation(len(sources)), np.cumsum(sizes)[:-1])
  sides = [{sources[i] for i in indices} for indices in chosen]
  return [[d for d in documents if source_of(d) in side] for side in sides]


def _site(name: str, mapping: Mapping, parts: Parts, counts: Counter) -> SiteCorpus:
  """The site of these parts, with its types mapped; dev documents are only counted."""
  report = {{'entities': 'raw_entities', 'relations': 'raw_relations'}.get(key, key): value
            for key, value in counts.items()}
  mapped, map_counts = zip(*(apply_mapping(part, mapping) for part in parts), strict=True)
  report |= sum(map_counts, Counter())
  report |= {f'{part}_documents': len(documents)
             for part, documents in zip(Parts._fields, parts, strict=True)}
  return SiteCorpus(name, mapping.types, tuple(mapped[0]), tuple(mapped[2]), report,
                    mapping.modifiers, mapping.definitions, schema=mapping.schema)
