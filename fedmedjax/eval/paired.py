"""Comparisons of runs: differences of mean F1, with intervals over sources and seeds.

The statistic is the mean over seeds of the plain mean over sites of typed micro F1, or of a metric
of texts, whose counts have it as their F1 (see `text_metrics.py`). A draw takes every site's
sources with replacement, the same ones for all runs that were tested on them; over seeds the
interval is a t interval, of a difference that of the paired differences. See `intervals.py`, which
also says where there is none.

Letters: K seeds, N sources of a site.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.eval import intervals, metrics, text_metrics
from fedmedjax.eval.evaluate import COUNTS
from fedmedjax.eval.intervals import Estimate
from fedmedjax.types import InputError


class NoteCounts(NamedTuple):
  """The counts that an adapter's score of one kind adds up from, on one site's test notes.

  Notes of one source are counted together.
  """

  sources: tuple[str, ...]
  counts: np.ndarray  # i64 or f64[N, 2 match kinds, T + 1, (tp, fp, fn)]


# One run's answers, or one adapter's: {site: {score such as 'ner' or 're.modifier': NoteCounts}}.
Answers = dict[str, dict[str, NoteCounts]]


def read_answers(predictions: Path) -> dict[str, Any]:
  """Reads the counts of a finished run.

  Args:
    predictions: the folder of its predictions.

  Returns:
    {'scores': Answers, 'global': Answers, 'zero_shot': Answers, 'beside_zero_shot': Answers of the
    run to the sentences of zero-shot, 'cross_site': {adapter: Answers}, 'validation': {adapter: its
    loss on the validation set V}, 'teacher_forced': Answers, 'teacher_forced_cross_site': {adapter:
    Answers}}; all but the first are empty where there are none.

  Raises:
    InputError: the file is absent or is none of ours.
  """
  path = predictions / COUNTS
  try:
    stored = json.loads(path.read_text(encoding='utf-8-sig'))
    return {
      'scores': _answers(stored['scores']), 'global': _answers(stored.get('global', {})),
      'zero_shot': _answers(stored.get('zero_shot', {})),
      'beside_zero_shot': _answers(stored.get('beside_zero_shot', {})),
      'cross_site': {name: _answers(row) for name, row in stored.get('cross_site', {}).items()},
      # None = a loss that was no number.
      'validation': {name: np.inf if loss is None else float(loss)
                     for name, loss in stored.get('validation', {}).items()},
      'teacher_forced': _answers(stored.get('teacher_forced', {})),
      'teacher_forced_cross_site': {
        name: _answers(row)
        for name, row in stored.get('teacher_forced_cross_site', {}).items()}}
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise InputError(
      f'{path}: no counts by source ({error}); delete {predictions.parent / "summary.json"}, and '
      'the same command scores the run again') from None


def _answers(sites: dict[str, dict]) -> Answers:
  """The counts in a part of the file, {site: {'sources': names, score: counts}}."""
  answers = {}
  for site, stored in sites.items():
    sources = tuple(stored['sources'])
    answers[site] = {
      name: NoteCounts(sources, _table(counts, len(sources)))
      for name, counts in stored.items() if name != 'sources'}
  return answers


def _table(counts: list, sources: int) -> np.ndarray:
  """Counts of a file, [N, 2, T + 1, 3]: integers as such, floats where a metric has them."""
  table = np.array(counts)
  if table.dtype.kind not in 'if':
    raise ValueError('counts are numbers')
  return table.reshape(sources, 2, -1, 3)


def mean_f1(
  runs: Sequence[Answers], sites: Sequence[str], score: str, *, seed: int, samples: int,
  kind: str = 'strict',
) -> Estimate:
  """The mean over seeds and sites of typed F1, with its interval.

  Args:
    runs: the answers of one run a seed.
    sites: the mean is taken over these; all must have the score.
    score: 'ner', 're.modifier', 're.triple', 're.end_to_end' or 'text.METRIC'.
    seed, samples: of the bootstrap.
    kind: 'strict' or 'lenient'.
  """
  values, drawn = _statistic(runs, sites, score, seed, samples, kind)
  first, *_ = runs
  return intervals.estimate(
    float(values.mean()),
    [intervals.of_sources(drawn, _numbers(first, sites, score)), intervals.of_seeds(values)],
    text_metrics.limits(score))


def difference(
  ours: Sequence[Answers], theirs: Sequence[Answers], sites: Sequence[str], score: str, *,
  seed: int, samples: int, kind: str = 'strict',
) -> Estimate:
  """`mean_f1` of `ours` minus that of `theirs`, on the same draws of sources, seed by seed.

  A source that only one of the two was tested on adds no counts to the other.

  Args:
    ours, theirs: the answers of one run a seed; both have the same seeds, in the same order.
    sites, score, seed, samples, kind: see `mean_f1`.
  """
  pairs = [_on_all_sources(*pair, sites, score) for pair in zip(ours, theirs, strict=True)]
  (a, drawn_a), (b, drawn_b) = (
    _statistic([pair[side] for pair in pairs], sites, score, seed, samples, kind)
    for side in (0, 1))
  (first, _), *_ = pairs
  low, high = text_metrics.limits(score)
  return intervals.estimate(
    float((a - b).mean()), [
      intervals.of_sources(drawn_a - drawn_b, _numbers(first, sites, score)),
      intervals.of_seeds(a - b)], (low - high, high - low), test=True)


def fewest_sources(runs: Sequence[Answers], sites: Sequence[str], score: str) -> int:
  """The smallest number of sources that any of `sites` was tested on."""
  return min(number for answers in runs for number in _numbers(answers, sites, score))


def _numbers(answers: Answers, sites: Sequence[str], score: str) -> list[int]:
  """The number of sources of each site."""
  return [len(answers[site][score].sources) for site in sites]


def _on_all_sources(
  ours: Answers, theirs: Answers, sites: Sequence[str], score: str
) -> tuple[Answers, Answers]:
  """The answers with the sources of either run, in one order, so that draws are of the same."""
  def spread(tested: NoteCounts, sources: tuple[str, ...]) -> NoteCounts:
    place = {source: i for i, source in enumerate(sources)}
    counts = np.zeros((len(sources), *tested.counts.shape[1:]), tested.counts.dtype)
    counts[[place[source] for source in tested.sources]] = tested.counts
    return NoteCounts(sources, counts)

  mine, other = {}, {}
  for site in sites:
    one, two = ours[site][score], theirs[site][score]
    sources = tuple(dict.fromkeys(one.sources + two.sources))
    mine[site], other[site] = ({score: spread(tested, sources)} for tested in (one, two))
  return mine, other


def having(runs: Iterable[Answers], sites: Sequence[str], score: str) -> list[str]:
  """Those of `sites` for which all runs have a score of this name."""
  runs = list(runs)
  return [site for site in sites if all(score in run.get(site, {}) for run in runs)]


def _statistic(
  runs: Sequence[Answers], sites: Sequence[str], score: str, seed: int, samples: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
  """Mean F1 of each run, and what each site contributes to it in each draw of its sources.

  Returns:
    f64[K], f64[K, S, samples]; see `mean_f1`.
  """
  k = metrics.KINDS.index(kind)
  values, drawn = np.zeros(len(runs)), np.zeros((len(runs), len(sites), samples))
  for run, answers in enumerate(runs):
    for place, site in enumerate(sites):
      tested = answers[site][score]
      # Sources of the same names are drawn alike for all runs; those of other sites are not.
      stream = zlib.crc32('\n'.join((site, *tested.sources)).encode())
      values[run] += _f1(tested.counts.sum(0), score)[k] / len(sites)
      draws = metrics.resampled(tested.counts, (seed, stream), samples)
      drawn[run, place] = _f1(draws, score)[:, k] / len(sites)
  return values, drawn


def _f1(counts: np.ndarray, score: str) -> np.ndarray:
  """F1 of counts in the average that a score is: [..., 2, T + 1, 3] -> [..., 2]."""
  average = metrics.AVERAGES.index(text_metrics.average(score))
  return metrics.averages(counts)[..., average, 2]
