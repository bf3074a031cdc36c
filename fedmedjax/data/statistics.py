"""Statistics of a site's notes: sizes, lengths, annotated types; and divergences between sites.

Words are runs of letters and digits, and single signs: no tokenizer, so that the numbers are those
of the notes and not of a model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.scripts import words as split_words
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.site import SiteData
from fedmedjax.data.text_task import MOST_LABELS
from fedmedjax.types import SiteCorpus


class SiteStatistics(NamedTuple):
  """Statistics of one site, training and test notes together. N sentences, D notes."""

  name: str
  types: tuple[str, ...]
  train_notes: int
  test_notes: int
  sentence_words: np.ndarray  # i64[N]
  note_words: np.ndarray      # i64[D]
  vocabulary: Counter         # lower-cased word -> how often
  entities: Counter           # type -> how many, as training sees them: whole and flat
  modifiers: Counter          # modifier type -> relations
  report: dict[str, int]      # counts of the reader, with used_nested and used_crossing
  targets: Counter | None = None  # of an own task's rows: target -> how many rows; None = notes


def site_statistics(corpus: SiteCorpus) -> SiteStatistics:
  """Statistics of all notes of a site."""
  sentence_words, note_words, vocabulary = [], [], Counter()
  entities, modifiers, counts = Counter(), Counter(), Counter()
  for document in corpus.train + corpus.test:
    examples, document_counts = sentence_examples(document, corpus.types)
    counts += document_counts
    words = [split_words(example.text.lower()) for example in examples]
    sentence_words += map(len, words)
    note_words.append(sum(map(len, words)))
    for sentence in words:
      vocabulary.update(sentence)
    entities.update(span.type for example in examples for span in example.entities)
    modifiers.update(link.type for link in document.relations)
  report = corpus.report | {f'used_{key}': counts[key] for key in ('nested', 'crossing')}
  return SiteStatistics(
    corpus.name, corpus.types, len(corpus.train), len(corpus.test), np.array(sentence_words, int),
    np.array(note_words, int), vocabulary, entities, modifiers, report,
    _targets(document.target for document in corpus.train + corpus.test))


def _targets(found: Iterable[str | None]) -> Counter | None:
  counts = Counter(target for target in found if target is not None)
  return counts or None


def used_statistics(site: SiteData) -> SiteStatistics:
  """Statistics of the sentences of a site that a run uses: training ones not held out, test ones.

  Entities are those of entity recognition; where only relations are read, their main entities.
  """
  texts, entities, mains, modifiers = {}, Counter(), {}, Counter()
  for part in site.tasks:
    for example in (*part.solved, *part.test):
      texts[example.document, example.start] = example.text
      kinds = (span.type for span in example.entities)
      (modifiers if part.ask.given else entities).update(kinds)
      if example.main is not None:
        mains[example.document, example.start, example.main] = example.main.type
  words = {place: split_words(text.lower()) for place, text in texts.items()}
  note_words = Counter()
  for (document, _), sentence in words.items():
    note_words[document] += len(sentence)
  train, test = ({example.document for part in site.tasks for example in getattr(part, key)}
                 for key in ('solved', 'test'))
  vocabulary = Counter(word for sentence in words.values() for word in sentence)
  return SiteStatistics(
    site.name, site.types, len(train), len(test), np.array([*map(len, words.values())], int),
    np.array([*note_words.values()], int), vocabulary, entities or Counter(mains.values()),
    modifiers, site.report, _targets(
      example.target for part in site.tasks for example in (*part.solved, *part.test)))


def target_words(targets: Mapping[str, int]) -> np.ndarray:
  """Words of the target of each row, i64[N]."""
  lengths = [len(split_words(target)) for target in targets]
  return np.repeat(np.array(lengths, int), list(targets.values()))


def lacking(report: Mapping[str, int]) -> str:
  """The raw types that a site's mapping left out, with counts, the most frequent first; '' = none.

  Args:
    report: of the site, see `formats/mapped.py`.
  """
  def listed(prefix: str) -> str:
    found = sorted((-count, key.removeprefix(prefix)) for key, count in report.items()
                   if key.startswith(prefix) and count)
    return ', '.join(f'{" ".join(kind.split())} {-count:,}' for count, kind in found)

  relations = listed('lacking_relation_')
  return '; '.join(filter(None, (
    listed('lacking_type_'), relations and f'relations {relations}')))


def divergence(counts: np.ndarray) -> float:
  """Generalised Jensen-Shannon divergence of the rows of `counts` [S, T], in bits.

  Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory
  37 (1991): H(mean of the rows' shares) - mean of their H, with equal weights and base 2. Rows
  without any count are left out.

  Returns:
    0 where all shares are equal, at most log2 of the number of rows.
  """
  totals = counts.sum(1, keepdims=True)
  shares = (counts / np.maximum(totals, 1))[totals[:, 0] > 0]
  if not len(shares):
    return 0.0
  # Rounding may leave -1e-17 of equal shares.
  return max(0.0, _entropy(shares.mean(0)) - np.mean([_entropy(row) for row in shares]).item())


def word_divergence(sites: Iterable[Iterable[str]]) -> float:
  """`divergence` of the words of sites, in bits; `sites` gives the texts of each.

  Words are counted and shares added up site by site: a thousand sites of a large vocabulary would
  fill the memory at once.
  """
  mean, entropies = Counter(), []
  for texts in sites:
    counts = Counter(word for text in texts for word in split_words(text.lower()))
    total = counts.total()
    if not total:
      continue
    shares = np.fromiter(counts.values(), float) / total
    entropies.append(_entropy(shares))
    mean.update(dict(zip(counts, shares.tolist(), strict=True)))
  if not entropies:
    return 0.0
  mixed = np.fromiter(mean.values(), float) / len(entropies)
  return max(0.0, _entropy(mixed) - float(np.mean(entropies)))


def jensen_shannon(p: Mapping[str, int], q: Mapping[str, int]) -> float:
  """`divergence` of two tables of counts, in [0, 1] bits; NaN if one of them is empty."""
  names = sorted(p.keys() | q.keys())
  counts = np.array([[of.get(name, 0) for name in names] for of in (p, q)], float)
  return divergence(counts) if counts.any(1).all() else float('nan')


def _entropy(shares: np.ndarray) -> float:
  """The entropy of shares f64[T], in bits, with 0 log 0 = 0."""
  positive = shares[shares > 0]
  return float(-(positive * np.log2(positive)).sum())


def type_divergence(a: SiteStatistics, b: SiteStatistics) -> float:
  """Divergence of two sites' mixes of entity types, in bits, over types that both annotated.

  NaN if that is one type only, whose share is always 1.
  """
  both = [kind for kind in a.types if kind in b.types]
  if len(both) < 2:
    return float('nan')
  return jensen_shannon(*({kind: s.entities[kind] for kind in both} for s in (a, b)))


def target_divergence(a: SiteStatistics, b: SiteStatistics) -> float:
  """Divergence of two sites' mixes of targets, in bits; NaN where they are free text."""
  mixes = [site.targets or {} for site in (a, b)]
  return float('nan') if max(map(len, mixes)) > MOST_LABELS else jensen_shannon(*mixes)


def vocabulary_divergence(a: SiteStatistics, b: SiteStatistics) -> float:
  """Divergence of the words of two sites, in bits."""
  return jensen_shannon(a.vocabulary, b.vocabulary)


def matrix(divergence, sites: Sequence[SiteStatistics]) -> np.ndarray:
  """A divergence of every pair of S sites -> f64[S, S]."""
  out = np.zeros((len(sites), len(sites)))
  for i, a in enumerate(sites):
    for j, b in enumerate(sites[:i]):
      out[i, j] = out[j, i] = divergence(a, b)
  return out


def shares(counts: Mapping[str, int], names: Iterable[str]) -> dict[str, float]:
  """{name: its share of all counts}; 0 where nothing was counted."""
  total = sum(counts.values())
  return {name: counts.get(name, 0) / total if total else 0.0 for name in names}
