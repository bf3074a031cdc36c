"""Sentences as hashed features of words, for a tagger that needs no tokenizer and no vocabulary.

A word is what `scripts.word_ranges` calls one. Each of its F features, such as 's3=itis', is hashed
to a row of a table (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
ICML 2009, arXiv:0902.2206), so that words which were never seen share features with known ones. The
hash is CRC-32 of the feature's UTF-8 bytes: the same in every process and on every machine.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedmedjax.data.label_steps import read_windows
from fedmedjax.data.labels import LabelExample, consecutive, word_labels
from fedmedjax.data.scripts import word_ranges
from fedmedjax.data.site import SiteData
from fedmedjax.types import Example, SiteCorpus, Span

# Of a word w, its lower-cased form l and its shape: what F features are called and what they are.
FEATURES = {
  'word': lambda w: w, 'lower': str.lower, 'p2': lambda w: w.lower()[:2],
  'p4': lambda w: w.lower()[:4], 's2': lambda w: w.lower()[-2:], 's3': lambda w: w.lower()[-3:],
  's4': lambda w: w.lower()[-4:], 'shape': lambda w: shape(w)}


def shape(word: str) -> str:
  """What a word looks like: X for capitals, x for other letters, 9 for digits, runs as one.

  'HbA1c' is 'XxX9x', '12' is '9', and any other character stands for itself.
  """
  kinds = ''.join(
    '9' if c.isdigit() else 'X' if c.isupper() else 'x' if c.isalpha() else c for c in word)
  return ''.join(c for at, c in enumerate(kinds) if c != kinds[at - 1:at])


@lru_cache(maxsize=1 << 16)
def features(word: str, buckets: int) -> tuple[int, ...]:
  """The rows of a word's F features in a table of `buckets` rows."""
  return tuple(
    zlib.crc32(f'{name}={of(word)}'.encode()) % buckets for name, of in FEATURES.items())


def encode_words(
  examples: Sequence[Example], labels: Sequence[str], buckets: int, max_length: int
) -> tuple[list[tuple[LabelExample, ...]], Counter]:
  """Cuts sentences into windows of at most `max_length` words and labels the words.

  Args:
    examples: their entities are flat and of types that `labels` names.
    labels: the Y label names, from `labels.label_names`.
    buckets: rows of the table of features.
    max_length: most words of a window.

  Returns:
    The windows of every example (none for a text without words), and counts: cut_sentences
    (longer than a window) and unlabelled (entities that share a word with another, or hold none).
  """
  out, counts = [], Counter()
  for example in examples:
    words = [Span(start, end, '') for start, end in word_ranges(example.text)]
    tags = word_labels(words, example.entities, labels)
    hashed = np.asarray(
      [features(example.text[word.start:word.end], buckets) for word in words], np.int32)
    places = np.asarray([word[:2] for word in words], np.int32).reshape(-1, 2)
    out.append(tuple(
      LabelExample(
        hashed[a:b], np.arange(b - a, dtype=np.int32), np.asarray(tags[a:b], np.int32),
        places[a:b])
      for a, b in consecutive([1] * len(words), max_length)))
    counts.update(
      cut_sentences=int(len(words) > max_length),
      unlabelled=len(example.entities) - sum(labels[tag].startswith('B') for tag in tags))
  return out, counts


def encode_word_site(
  corpus: SiteCorpus, *, labels: Sequence[str], buckets: int, max_length: int, **split
) -> SiteData:
  """A site for a word tagger; every training example is one window of one sentence.

  Args:
    corpus: the site's notes.
    labels: of the tagger; they name all types of a site that trains.
    buckets, max_length: see `encode_words`.
    split: see `site.read_site`, which also lists the errors.
  """
  return read_windows(
    corpus, 'ner', lambda examples: encode_words(examples, labels, buckets, max_length),
    f'config.tagger.max_length={max_length}', **split)
