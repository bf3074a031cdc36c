"""Sites from notes on disk: the five public corpora, and folders of a user's own.

A mapping (`mappings/*.toml`, see `mapping.py`) translates the type names of a corpus and says which
types were annotated there. Splits are by note, or by the source that notes share, and never depend
on the seed of a run, which must not move a note from test to training.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import relations
from fedmedjax.data.formats.mapping import (
  Mapping,
  apply_mapping,
  check_names,
  read_mapping,
  restricted,
)
from fedmedjax.data.formats.readers import FORMATS, Parts, read_notes, read_parts
from fedmedjax.types import Document, InputError, SiteCorpus

_SPLIT_SEED = 42
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
  is the name of a shipped one or a .toml file. `annotated` are the types that were annotated
  throughout; () = what the mapping says, or else those that occur in the notes.
  """

  name: str
  path: str | os.PathLike
  format: str
  mapping: str | os.PathLike
  test_share: float = 0.2
  annotated: tuple[str, ...] = ()


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


def source_id(document: str) -> str:
  """The trial or PubMed id in a document's name; all sentences of a PHEE abstract share it."""
  return document.split('_')[0]


def load_corpus(name: str, root: str | Path) -> SiteCorpus:
  """Reads one public corpus, maps its types and splits it.

  Training documents whose source is in the test part of a corpus with the same notes are
  dropped, if that corpus lies beside this one; otherwise there is no test to leak into.

  Args:
    name: a key of `CORPORA`.
    root: the folder that holds the folders of the corpora.

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
  site = _site(name, read_mapping(name), *_read(corpus, folder))
  tested = {
    source_id(document.name)
    for other in corpus.shares_notes_with if (Path(root) / other).is_dir()
    for document in _read(CORPORA[other], Path(root) / other)[0].test
  }
  return _without_leaks(site, lambda document: source_id(document.name), tested)


def load_folder(site: SiteFolder) -> SiteCorpus:
  """Reads a site of a user's own.

  Training notes whose text is that of a test note are dropped and counted. A type that its notes
  never have is not asked of the site, unless the mapping or the entry says that it was annotated:
  nobody can tell 'none there' from 'not looked for', and training on notes that were not looked
  through would teach errors. The report counts such types as absent_types.

  Args:
    site: an entry of config.data.folders.

  Raises:
    InputError: the notes or the mapping cannot be read, the mapping does not fit the notes, or
      there are too few notes to split.
  """
  mapping = read_mapping(site.mapping)
  # A `~` that no shell has replaced.
  path = Path(os.path.expanduser(site.path))
  notes, counts = read_parts(path, FORMATS[site.format])
  parts = notes if isinstance(notes, Parts) else _split(site, notes)
  raw = {span.type for part in parts for d in part for span in d.spans}
  check_names(mapping, raw, site.path)
  asked, occurring = tuple(site.annotated), {
    kind for name, kind in mapping.entities.items() if name in raw}
  if not asked:
    # Notes without any annotation say nothing of what was looked for.
    asked = mapping.types if mapping.declared or not occurring else tuple(occurring)
    counts['absent_types'] = len(set(mapping.types) - set(asked))
  corpus = _site(site.name, restricted(mapping, asked, f'site {site.name!r}'), parts, counts)
  if not mapping.declared:
    occur = relations.annotated(corpus._replace(modifiers=None))
    corpus = corpus._replace(modifiers=occur)
  return _without_leaks(corpus, lambda document: document.text,
                        {document.text for document in corpus.test})


def unleaked(
  sites: Sequence[SiteCorpus], external: Sequence[SiteCorpus]
) -> list[SiteCorpus]:
  """The sites that train, without training notes that are tested on somewhere.

  Left out, and counted as leaked_documents, are notes with the text of a test note of any site or
  external cohort. Raises InputError when that leaves a site without training notes.
  """
  tested = {document.text for corpus in (*sites, *external) for document in corpus.test}
  cleaned = [_without_leaks(site, lambda document: document.text, tested) for site in sites]
  for site, kept in zip(sites, cleaned, strict=True):
    if site.train and not kept.train:
      raise InputError(
        f'site {site.name!r}: each of its {len(site.train)} training notes has the text of a test '
        'note, of it or of another site; leave one of the two out')
  return cleaned


def _read(corpus: Corpus, folder: Path) -> tuple[Parts, Counter]:
  """The documents of a public corpus by part, and the reader's counts."""
  form = FORMATS[corpus.format]
  if corpus.files:
    parts, counts = zip(*(read_notes(folder / file, form) for file in corpus.files), strict=True)
    return Parts(*parts), sum(counts, Counter())
  documents, counts = read_notes(folder, form)
  return _split_by_source(documents), counts


def _split_by_source(documents: Sequence[Document]) -> Parts:
  """A random split in which all documents of one source, such as a trial, are in the same part."""
  sources = sorted({source_id(document.name) for document in documents})
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(sources))
  held_out = round(_HELD_OUT * len(sources))
  chosen = np.split(order, [len(sources) - 2 * held_out, len(sources) - held_out])
  parts = ({sources[i] for i in indices} for indices in chosen)
  return Parts(*([d for d in documents if source_id(d.name) in part] for part in parts))


def _split(site: SiteFolder, documents: Sequence[Document]) -> Parts:
  """A random split of documents into training and test notes, by `test_share`."""
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(documents))
  tested = set(order[:round(site.test_share * len(documents))].tolist())
  sides = [[d for i, d in enumerate(documents) if (i in tested) == side] for side in (False, True)]
  if 0 < site.test_share < 1 and not all(sides):
    raise InputError(f'site {site.name!r}: {len(documents)} documents cannot be split with '
                     f'test_share {site.test_share}; give more documents, or a share of 0 or 1')
  return Parts(sides[0], [], sides[1])


def _without_leaks(site: SiteCorpus, key_of, tested: set[Any]) -> SiteCorpus:
  """The site without training notes whose key is among the tested ones; they are counted."""
  train = tuple(document for document in site.train if key_of(document) not in tested)
  return site._replace(train=train, report=site.report | {
    'train_documents': len(train),
    'leaked_documents': len(site.train) - len(train) + site.report.get('leaked_documents', 0),
  })


def _site(name: str, mapping: Mapping, parts: Parts, counts: Counter) -> SiteCorpus:
  """The site of these parts, with its types mapped; dev documents are only counted."""
  report = {{'entities': 'raw_entities', 'relations': 'raw_relations'}.get(key, key): value
            for key, value in counts.items()}
  mapped, map_counts = zip(*(apply_mapping(part, mapping) for part in parts), strict=True)
  report |= sum(map_counts, Counter())
  report |= {f'{part}_documents': len(documents)
             for part, documents in zip(Parts._fields, parts, strict=True)}
  return SiteCorpus(name, mapping.types, tuple(mapped[0]), tuple(mapped[2]), report,
                    mapping.modifiers, mapping.definitions)
