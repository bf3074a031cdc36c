"""Comparisons of runs: differences of mean F1, with intervals that resample notes and seeds.

The statistic is the mean over seeds of the plain mean over sites of typed micro F1. A draw takes
every site's notes with replacement, the same ones for all runs that were tested on them, and, where
there are several seeds, the seeds with replacement too. Intervals are 95 % percentiles; they hold
only the spread over the notes and seeds of the runs, so with few of either they are too narrow.

Letters: K seeds, N notes of a site.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.eval import metrics
from fedmedjax.eval.evaluate import COUNTS
from fedmedjax.types import InputError


class NoteCounts(NamedTuple):
  """The counts that an adapter's score of one kind adds up from, on one site's test notes."""

  notes: tuple[str, ...]
  counts: np.ndarray  # i64[N, 2 match kinds, T + 1, (tp, fp, fn)]


# One run's answers, or one adapter's: {site: {score such as 'ner' or 're.modifier': NoteCounts}}.
Answers = dict[str, dict[str, NoteCounts]]


class Estimate(NamedTuple):
  """A figure and its 95 % interval."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]'


def read_answers(predictions: Path) -> dict[str, Any]:
  """Reads the counts of a finished run.

  Args:
    predictions: the folder of its predictions.

  Returns:
    {'scores': Answers, 'global': Answers, 'cross_site': {adapter: Answers}}; the last two are empty
    where there are none.

  Raises:
    InputError: the file is absent or is none of ours.
  """
  path = predictions / COUNTS
  try:
    stored = json.loads(path.read_text(encoding='utf-8-sig'))
    return {
      'scores': _answers(stored['scores']), 'global': _answers(stored.get('global', {})),
      'cross_site': {name: _answers(row) for name, row in stored.get('cross_site', {}).items()}}
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise InputError(
      f'{path}: no counts by note ({error}); delete {predictions.parent / "summary.json"}, and the '
      'same command scores the run again') from None


def _answers(sites: dict[str, dict]) -> Answers:
  """The counts in a part of the file, {site: {'notes': names, score: counts}}."""
  answers = {}
  for site, stored in sites.items():
    notes = tuple(stored['notes'])
    answers[site] = {
      name: NoteCounts(notes, np.array(counts, np.int64).reshape(len(notes), 2, -1, 3))
      for name, counts in stored.items() if name != 'notes'}
  return answers


def mean_f1(
  runs: Sequence[Answers], sites: Sequence[str], score: str, *, seed: int, samples: int,
  kind: str = 'strict',
) -> Estimate:
  """The mean over seeds and sites of typed F1, with its interval.

  Args:
    runs: the answers of one run a seed.
    sites: the mean is taken over these; all must have the score.
    score: 'ner', 're.modifier', 're.triple' or 're.end_to_end'.
    seed, samples: of the bootstrap.
    kind: 'strict' or 'lenient'.
  """
  value, drawn = _statistic(runs, sites, score, seed, samples, kind)
  return _estimate(value, drawn)


def difference(
  ours: Sequence[Answers], theirs: Sequence[Answers], sites: Sequence[str], score: str, *,
  seed: int, samples: int, kind: str = 'strict',
) -> Estimate:
  """`mean_f1` of `ours` minus that of `theirs`, on the same draws of notes and seeds.

  A note that only one of the two was tested on adds no counts to the other.

  Args:
    ours, theirs: the answers of one run a seed; both have the same seeds, in the same order.
    sites, score, seed, samples, kind: see `mean_f1`.
  """
  if len(ours) != len(theirs):
    raise ValueError(f'{len(ours)} and {len(theirs)} seeds')
  pairs = [_on_all_notes(*pair, sites, score) for pair in zip(ours, theirs, strict=True)]
  ours, theirs = zip(*pairs, strict=True)
  (a, drawn_a), (b, drawn_b) = (
    _statistic(runs, sites, score, seed, samples, kind) for runs in (ours, theirs))
  return _estimate(a - b, drawn_a - drawn_b)


def _on_all_notes(
  ours: Answers, theirs: Answers, sites: Sequence[str], score: str
) -> tuple[Answers, Answers]:
  """The answers with the notes of either run, in one order, so that draws are of the same notes."""
  out = {}, {}
  for site in sites:
    both = ours[site][score], theirs[site][score]
    notes = tuple(dict.fromkeys(both[0].notes + both[1].notes))
    for side, tested in zip(out, both, strict=True):
      counts = np.zeros((len(notes), *tested.counts.shape[1:]), np.int64)
      counts[[notes.index(note) for note in tested.notes]] = tested.counts
      side[site] = {score: NoteCounts(notes, counts)}
  return out


def best_adapter(
  rows: Sequence[dict[str, Answers]], sites: Sequence[str], score: str
) -> str:
  """The name of the adapter of highest mean typed strict F1 over `sites` and seeds.

  It is chosen on the very notes that it is then compared on, which flatters it: a method that
  beats it beats all of them.

  Args:
    rows: {adapter: Answers} of each seed.
    sites: the mean is taken over these.
    score: see `mean_f1`.
  """
  def value(name: str) -> float:
    return float(np.mean([
      _f1(row[name][site][score].counts.sum(0))[0] for row in rows for site in sites]))

  return max(rows[0], key=value)


def having(runs: Iterable[Answers], sites: Sequence[str], score: str) -> list[str]:
  """Those of `sites` for which all runs have a score of this name."""
  runs = list(runs)
  return [site for site in sites if all(score in run.get(site, {}) for run in runs)]


def _statistic(
  runs: Sequence[Answers], sites: Sequence[str], score: str, seed: int, samples: int, kind: str
) -> tuple[float, np.ndarray]:
  """(the mean F1, its draws f64[samples]); see `mean_f1`."""
  k = metrics.KINDS.index(kind)
  values, drawn = np.zeros(len(runs)), np.zeros((len(runs), samples))
  for run, answers in enumerate(runs):
    for site in sites:
      tested = answers[site][score]
      # Notes of the same names are drawn alike for all runs; those of other sites are not.
      stream = zlib.crc32('\n'.join((site, *tested.notes)).encode())
      values[run] += _f1(tested.counts.sum(0))[k] / len(sites)
      draws = metrics.resampled(tested.counts, (seed, stream), samples)
      drawn[run] += _f1(draws)[:, k] / len(sites)
  chosen = np.random.default_rng(seed).integers(len(runs), size=(samples, len(runs)))
  return float(values.mean()), np.take_along_axis(drawn.T, chosen, axis=1).mean(axis=1)


def _f1(counts: np.ndarray) -> np.ndarray:
  """Typed micro F1 of counts: [..., 2, T + 1, 3] -> [..., 2]."""
  return metrics.averages(counts)[..., 0, 2]


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
  """A figure with the interval of its draws f64[samples]."""
  low, high = np.percentile(drawn, (2.5, 97.5))
  return Estimate(value, float(low), float(high))
