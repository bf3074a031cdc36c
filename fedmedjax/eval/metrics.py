"""Strict and lenient entity scores, with confidence intervals by source.

strict   same type, same start, same end
lenient  same type and at least one token in common
Either way one gold entity answers to at most one prediction, and the largest number of such pairs
is the count of true positives; so precision and recall share it. Three averages:
typed    micro average over types, the headline
untyped  all types merged into one before pairing, as the paper's code scores
macro    plain mean over the types that occur in gold or predictions

Sums travel, means are taken once: counts of sentences, notes and sites add. A ratio with nothing
in its denominator is 0, as in seqeval and nervaluate; so a set without gold and without
predictions scores 0, not 1.

Letters: N sources (articles, trials, patients; see `data/sources.py`), T types. Counts are
i64[2 match kinds, T types + untyped, (tp, fp, fn)].
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from fedmedjax.data.scripts import word_ranges
from fedmedjax.eval.intervals import half_width
from fedmedjax.types import Span

KINDS = ('strict', 'lenient')
AVERAGES = ('typed', 'untyped', 'macro')


class Link(NamedTuple):
  """A (main entity, modifier) pair of one text and its type, such as 'drug.route'."""

  main: Span
  modifier: Span
  type: str


def count(
  gold: Sequence[Span], predicted: Sequence[Span], text: str, types: Sequence[str],
) -> np.ndarray:
  """Counts of one text; `types` are the ones annotated there, all others are left out.

  Args:
    gold: entities with offsets into `text`, in any order; they may overlap.
    predicted: likewise. An entity predicted twice counts twice.
    text: tokens are its words and its other visible characters, see `scripts.word_ranges`.
    types: the T types, in the order of the second axis of the result.

  Returns:
    i64[2, T + 1, 3].
  """
  covered = _covered(text)
  rows = []
  for kinds in [(name,) for name in types] + [tuple(types)]:
    true = [span for span in gold if span.type in kinds]
    found = [span for span in predicted if span.type in kinds]
    exact = Counter(span[:2] for span in true) & Counter(span[:2] for span in found)
    pairs = (exact.total(), _most_pairs(map(covered, true), map(covered, found)))
    rows.append([(tp, len(found) - tp, len(true) - tp) for tp in pairs])
  return np.array(rows, np.int64).transpose(1, 0, 2)


def count_links(
  gold: Iterable[Link], predicted: Iterable[Link], text: str, types: Sequence[str],
) -> np.ndarray:
  """Counts of (main entity, modifier) pairs of one text, as `count` does of single entities.

  Both spans of a pair must match. Strict: both spans and types are the same. Lenient: both types
  are, and both spans share a token.

  Args:
    gold, predicted: each pair once; all are of one of `types`.
    text, types: as in `count`.

  Returns:
    i64[2, T + 1, 3].
  """
  covered = _covered(text)

  def overlap(a: Span, b: Span) -> bool:
    (first, end), (other_first, other_end) = covered(a), covered(b)
    return max(first, other_first) < min(end, other_end)

  rows = []
  for kinds in [(name,) for name in types] + [tuple(types)]:
    true, found = (
      [link for link in links if link.type in kinds] for links in (gold, predicted))
    exact = Counter((link.main[:2], link.modifier[:2]) for link in true) & Counter(
      (link.main[:2], link.modifier[:2]) for link in found)
    touching = np.array([
      [overlap(a.main, b.main) and overlap(a.modifier, b.modifier) for b in found]
      for a in true], bool).reshape(len(true), len(found))
    pairs = (exact.total(), _matched(touching))
    rows.append([(tp, len(found) - tp, len(true) - tp) for tp in pairs])
  return np.array(rows, np.int64).transpose(1, 0, 2)


def _matched(edges: np.ndarray) -> int:
  """Size of the largest one-to-one matching in bool[G, P]."""
  if not edges.any():
    return 0
  return int((maximum_bipartite_matching(csr_array(edges)) >= 0).sum())


def _covered(text: str) -> Callable[[Span], tuple[int, int]]:
  """(span) -> the tokens [first, last) of the text that share a character with it."""
  tokens = word_ranges(text)
  starts, ends = [start for start, _ in tokens], [end for _, end in tokens]
  return lambda span: (bisect_right(ends, span.start), bisect_left(starts, span.end))


def _most_pairs(
  gold: Iterable[tuple[int, int]], predicted: Iterable[tuple[int, int]],
) -> int:
  """Size of the largest one-to-one matching of overlapping half-open ranges.

  Greedy: the range x that ends first of all is paired with the range y of the other side that
  overlaps it and ends first. This is never worse than another choice. If the best matching has
  x-z and w-y instead, then z covers x's last token and reaches y's end or further, and w begins
  before y ends and ends no earlier than x; hence w overlaps z, and x-y, w-z is as large.
  """
  sides = [sorted((r for r in side if r[0] < r[1]), key=lambda r: r[1])
           for side in (gold, predicted)]
  pairs = 0
  while sides[0] and sides[1]:
    first = min(range(2), key=lambda side: sides[side][0][1])
    _, end = sides[first].pop(0)
    others = sides[1 - first]
    partner = next((i for i, other in enumerate(others) if other[0] < end), None)
    if partner is not None:
      others.pop(partner)
      pairs += 1
  return pairs


def _named(ratios: np.ndarray) -> dict[str, float]:
  precision, recall, f1 = ratios.tolist()
  return {'precision': precision, 'recall': recall, 'f1': f1}


def scores(
  counts: np.ndarray, types: Sequence[str], ci95: np.ndarray | None = None,
) -> dict[str, Any]:
  """Precision, recall and F1 of added-up counts, in the form of summary.json for one task.

  Args:
    counts: i64[2, T + 1, 3], from `count`.
    types: the same T types.
    ci95: f64[2, 3, 2] from `bootstrap_f1`; without it, and where it is NaN, a 'ci95' is None.
  """
  every, averaged = _ratios(counts), averages(counts)
  out: dict[str, Any] = {}
  for k, kind in enumerate(KINDS):
    out[kind] = {}
    for a, average in enumerate(AVERAGES):
      out[kind][average] = _named(averaged[k, a])
      known = ci95 is not None and np.isfinite(ci95[k, a]).all()
      out[kind][average]['ci95'] = ci95[k, a].tolist() if known else None
  out['per_type'] = {}
  for t, name in enumerate(types):
    out['per_type'][name] = {
      kind: _named(every[k, t]) for k, kind in enumerate(KINDS)}
    (tp, fp, fn), *_ = counts[:, t].tolist()  # of either kind of match the sums are the same
    out['per_type'][name] |= {'gold': tp + fn, 'predicted': tp + fp}
  return out


def bootstrap_f1(
  counts: np.ndarray, seed: int, samples: int = 1000, limits: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
  """95 % interval of each F1: a t interval whose standard error is that of draws of sources.

  Percentiles of the draws would be too narrow for few sources: of two there are three draws.

  Args:
    counts: i64[N, 2, T + 1, 3], one entry per source.
    seed: of the draws.
    samples: number of draws.
    limits: of what the F1 stands for, see `text_metrics.py`.

  Returns:
    f64[2 match kinds, 3 averages, (low, high)]; NaN where there is nothing to draw, with a single
    source, or where no draw differs from another.
  """
  f1 = averages(counts.sum(0))[..., 2]
  error = averages(resampled(counts, seed, samples))[..., 2].std(axis=0)
  half = half_width(error, len(counts)) if len(counts) > 1 else np.full(f1.shape, np.nan)
  half = np.where(error > 1e-12, half, np.nan)
  return np.clip(np.stack([f1 - half, f1 + half], axis=-1), *limits)


def resampled(
  counts: np.ndarray, seed: int | Sequence[int], samples: int
) -> np.ndarray:
  """Sums of counts over N sources drawn from N with replacement, f64[samples, 2, T + 1, 3].

  Args:
    counts: i64[N, 2, T + 1, 3].
    seed: of the draws.
    samples: number of draws.
  """
  number = len(counts)
  if not number:
    return np.zeros((samples, *counts.shape[1:]))
  # How often each is drawn. Floats: the product goes through BLAS and stays exact.
  times = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), samples)
  flat = times.astype(float) @ counts.reshape(number, -1).astype(float)
  return flat.reshape(samples, *counts.shape[1:])


def _ratios(counts: np.ndarray) -> np.ndarray:
  """Ratios of counts: [..., (tp, fp, fn)] -> [..., (precision, recall, f1)]."""
  tp, fp, fn = np.moveaxis(np.asarray(counts, float), -1, 0)
  return np.stack([
    _divide(tp, tp + fp), _divide(tp, tp + fn), _divide(2 * tp, 2 * tp + fp + fn),
  ], axis=-1)


def averages(counts: np.ndarray) -> np.ndarray:
  """The three averages of counts: [..., T + 1, 3] -> [..., 3 averages, (precision, recall, f1)]."""
  by_type, untyped = counts[..., :-1, :], counts[..., -1, :]
  present = by_type.any(-1, keepdims=True).sum(-2)  # the others add 0 to the mean
  macro = _divide(_ratios(by_type).sum(-2), present)
  return np.stack([_ratios(by_type.sum(-2)), _ratios(untyped), macro], axis=-2)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a / b, and 0 where b is 0; b broadcasts to a."""
  return a / np.where(b, b, np.inf)
