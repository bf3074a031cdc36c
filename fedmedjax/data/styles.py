"""Notes dealt out by how they are written: sites of one style each."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedmedjax.types import Document

# Words whose frequencies tell styles apart: the pool's most frequent ones, as in stylometry.
_STYLE_WORDS = 60


def by_style(notes, types, sites, strength, rng) -> np.ndarray:
  """Sites of one style each: clusters of notes, by k-means on features of style.

  Features: frequencies of the pool's most frequent words, shares of capitals, digits and
  punctuation, mean length of lines and words; each to unit variance. Clusters are of unlike
  size; an empty one takes half of the largest. `strength` is the share of notes that go to
  the site of their cluster (the rest are dealt at random), in [0, 1].
  """
  from scipy.cluster.vq import kmeans2  # half a second, which few runs need

  del types
  features = _style_features(notes)
  clusters = kmeans2(features, sites, minit='++', seed=rng, missing='warn')[1] if (
    sites > 1) else np.zeros(len(notes), int)
  stray = rng.random(len(notes)) >= strength
  return _none_empty(np.where(stray, rng.integers(sites, size=len(notes)), clusters), sites)


def _style_features(notes: Sequence[Document]) -> np.ndarray:
  """Features of each note's style, f64[D, features], of unit variance; see `by_style`."""
  words = [note.text.lower().split() for note in notes]
  frequent = [word for word, _ in Counter(w for own in words for w in own).most_common(
    _STYLE_WORDS)]

  def features(text: str, tokens: list[str]) -> list[float]:
    counts, size = Counter(tokens), max(len(tokens), 1)
    shares = (sum(map(test, text)) / max(len(text), 1) for test in (
      str.isupper, str.isdigit, lambda c: not c.isalnum() and not c.isspace()))
    return [counts[word] / size for word in frequent] + [
      *shares, len(text) / (text.count('\n') + 1), len(text) / size]

  raw = np.asarray([features(note.text, own) for note, own in zip(notes, words, strict=True)])
  return (raw - raw.mean(0)) / np.maximum(raw.std(0), 1e-9)


def _none_empty(dealt: np.ndarray, sites: int) -> np.ndarray:
  """The deal i[D], with half of the largest site's notes given to each empty one."""
  dealt = dealt.copy()
  for site in range(sites):
    if not (dealt == site).any():
      largest = np.flatnonzero(dealt == np.bincount(dealt, minlength=sites).argmax())
      dealt[largest[len(largest) // 2:]] = site
  return dealt
