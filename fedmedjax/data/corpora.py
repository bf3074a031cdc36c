"""The five public corpora of the federation, and a user's own brat folder.

Each maps its raw types onto `types.ENTITY_TYPES` by a table. A type that no row names is dropped
and counted; a schema type that no row yields was never annotated there and is left out of the
site's `types`, because its absence from the notes means nothing (METHOD section 4).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedmedjax.data.readers import read_brat, read_phee, read_pubtator
from fedmedjax.types import ENTITY_TYPES, Document, InputError, Relation, SiteCorpus

_SPLIT_SEED = 42  # fixed: a run's own seed must never move a note from test to training
_HELD_OUT = 0.1  # share of dev, and of test, where a corpus has no official split


class Parts(NamedTuple):
  """The documents of a corpus by use. `dev` is neither trained nor tested on: it is left for
  choices that a person makes."""

  train: list[Document]
  dev: list[Document]
  test: list[Document]


class Corpus(NamedTuple):
  """How one corpus is read and what its types mean."""

  mapping: Mapping[str, str]  # raw type -> schema type
  read: Callable[[Path], tuple[Parts, Counter]]  # from its folder
  shares_notes_with: tuple[str, ...] = ()  # corpora made from some of the same abstracts


def source_id(document: str) -> str:
  """The trial or PubMed id in a document's name; all sentences of a PHEE abstract share it."""
  return document.split('_')[0]


def map_types(
  documents: Iterable[Document], table: Mapping[str, str]
) -> tuple[list[Document], Counter]:
  """Renames the types of spans by a table, drops the others and merges identical spans.

  A relation is kept, with its type, if both of its ends are.

  Args:
    documents: with raw types.
    table: raw type -> new type.

  Returns:
    The documents, and counts: entities and relations (kept), unmapped and duplicate (spans
    dropped), unlinked (relations dropped), mapped_TYPE (spans of a type before merging).
  """
  mapped, counts = [], Counter()
  for document in documents:
    kept, spans = {}, {}  # index of a raw span -> of its new one; new span -> its index
    for i, span in enumerate(document.spans):
      if span.type in table:
        new = span._replace(type=table[span.type])
        counts[f'mapped_{new.type}'] += 1
        counts['duplicate'] += new in spans
        kept[i] = spans.setdefault(new, len(spans))
    relations = tuple(Relation(link.type, kept[link.head], kept[link.tail])
                      for link in document.relations if link.head in kept and link.tail in kept)
    counts.update(entities=len(spans), unmapped=len(document.spans) - len(kept),
                  relations=len(relations), unlinked=len(document.relations) - len(relations))
    mapped.append(document._replace(spans=tuple(spans), relations=relations))
  return mapped, counts


def _read_official(
  folder: Path, reader: Callable, files: Sequence[str]
) -> tuple[Parts, Counter]:
  parts, counts = zip(*(reader(folder / file) for file in files), strict=True)
  return Parts(*parts), sum(counts, Counter())


def _read_shuffled(folder: Path) -> tuple[Parts, Counter]:
  """Splits a brat folder by source, so that both files of a trial land on the same side."""
  documents, counts = read_brat(folder)
  sources = sorted({source_id(document.name) for document in documents})
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(sources))
  held_out = round(_HELD_OUT * len(sources))
  chosen = np.split(order, [len(sources) - 2 * held_out, len(sources) - held_out])
  parts = ({sources[i] for i in indices} for indices in chosen)
  return Parts(*([d for d in documents if source_id(d.name) in part] for part in parts)), counts


CORPORA = {
  'maccrobat2020': Corpus(
    {
      'Sign_symptom': 'problem',
      'Disease_disorder': 'problem',
      'Therapeutic_procedure': 'treatment',
      'Diagnostic_procedure': 'test',
      'Medication': 'drug',
    },
    _read_shuffled,
  ),
  'chia': Corpus(
    {'Condition': 'problem', 'Procedure': 'treatment', 'Measurement': 'test', 'Drug': 'drug'},
    _read_shuffled,
  ),
  'phee': Corpus(
    {
      'Effect': 'problem',
      'Subject.Disorder': 'problem',
      'Treatment.Disorder': 'problem',
      'Treatment.Drug': 'drug',
    },
    partial(_read_official, reader=read_phee, files=('train.json', 'dev.json', 'test.json')),
    shares_notes_with=('bc5cdr',),
  ),
  'bc5cdr': Corpus(
    {'Disease': 'problem', 'Chemical': 'drug'},
    partial(
      _read_official, reader=read_pubtator,
      files=[f'CDR_{part}Set.PubTator.txt' for part in ('Training', 'Development', 'Test')],
    ),
    shares_notes_with=('phee',),
  ),
  'ncbi_disease': Corpus(
    dict.fromkeys(('SpecificDisease', 'DiseaseClass', 'Modifier', 'CompositeMention'), 'problem'),
    partial(
      _read_official, reader=read_pubtator,
      files=[f'NCBI{part}set_corpus.txt' for part in ('train', 'develop', 'test')],
    ),
  ),
}


def load_corpus(name: str, root: str | Path) -> SiteCorpus:
  """Reads one public corpus, maps its types and splits it.

  Training documents whose source is in the test part of a corpus with the same notes are
  dropped, if that corpus lies beside this one; otherwise there is no test to leak into.

  Args:
    name: a key of `CORPORA`.
    root: the folder that holds the folders of the corpora.

  Returns:
    The site. Its report counts over all that was read: the reader's counts (its entities and
    relations as raw_entities and raw_relations) and those of `map_types`; and then
    train_documents, dev_documents (unused), test_documents and leaked_documents (dropped).
  """
  if name not in CORPORA:
    raise InputError(f'unknown corpus {name!r}; choose from {", ".join(CORPORA)}')
  corpus, folder = CORPORA[name], Path(root) / name
  if not folder.is_dir():
    raise InputError(f'FEDMEDJAX_DATA (or config key data.root) must name the folder that holds '
                     f'{name}/; looked for {folder}')
  types = [kind for kind in ENTITY_TYPES if kind in corpus.mapping.values()]
  site = _site(name, types, corpus.mapping, *corpus.read(folder))
  tested = {
    source_id(document.name)
    for other in corpus.shares_notes_with if (Path(root) / other).is_dir()
    for document in CORPORA[other].read(Path(root) / other)[0].test
  }
  train = tuple(document for document in site.train if source_id(document.name) not in tested)
  return site._replace(train=train, report=site.report | {
    'train_documents': len(train), 'leaked_documents': len(site.train) - len(train),
  })


def load_brat_site(
  name: str, path: str | Path, mapping: Mapping[str, str], types: Sequence[str],
  test_share: float, seed: int,
) -> SiteCorpus:
  """Reads a site's own brat folder and splits it by document.

  Args:
    name: of the site.
    path: the folder.
    mapping: raw type -> schema type; every raw type of it must occur.
    types: the schema types the site annotated throughout.
    test_share: part of the documents to test on; 0 and 1 are allowed.
    seed: of the split.

  Returns:
    The site, with the same report as `load_corpus`.
  """
  unknown = sorted({*types, *mapping.values()} - set(ENTITY_TYPES))
  if unknown or not types:
    raise InputError(f'site {name!r}: types {unknown} are not among {", ".join(ENTITY_TYPES)}'
                     if unknown else f'site {name!r} has no entity type')
  if outside := sorted(set(mapping.values()) - set(types)):
    raise InputError(f'site {name!r}: its mapping yields {", ".join(outside)}, which its types '
                     f'({", ".join(types)}) leave out')
  if not 0 <= test_share <= 1:
    raise InputError(f'site {name!r}: test_share {test_share} is not between 0 and 1')
  documents, counts = read_brat(path)
  found = {span.type for document in documents for span in document.spans}
  if absent := sorted(set(mapping) - found):
    raise InputError(f'site {name!r}: the types {", ".join(absent)} of its mapping do not occur '
                     f'in {path}; it has {", ".join(sorted(found)) or "no annotation"}')
  order = np.random.default_rng(seed).permutation(len(documents))
  tested = set(order[:round(test_share * len(documents))].tolist())
  sides = [[d for i, d in enumerate(documents) if (i in tested) == side] for side in (False, True)]
  if 0 < test_share < 1 and not all(sides):
    raise InputError(f'site {name!r}: {len(documents)} documents cannot be split with '
                     f'test_share {test_share}; give more documents, or a share of 0 or 1')
  return _site(name, types, mapping, Parts(sides[0], [], sides[1]), counts)


def _site(
  name: str, types: Sequence[str], mapping: Mapping[str, str], parts: Parts, counts: Counter
) -> SiteCorpus:
  report = {{'entities': 'raw_entities', 'relations': 'raw_relations'}.get(key, key): value
            for key, value in counts.items()}
  mapped, map_counts = zip(*(map_types(part, mapping) for part in parts), strict=True)
  report |= sum(map_counts, Counter())
  report |= {f'{part}_documents': len(documents)
             for part, documents in zip(Parts._fields, parts, strict=True)}
  return SiteCorpus(name, tuple(types), tuple(mapped[0]), tuple(mapped[2]), report)
