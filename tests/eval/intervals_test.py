"""Intervals: hand-worked widths, what is left out, and how often they hold the truth."""

import numpy as np
import pytest

from fedmedjax.eval import intervals, metrics, paired
from fedmedjax.eval.intervals import Part, estimate
from fedmedjax.eval.paired import NoteCounts


def test_widths_by_hand():
  """t quantiles of 97.5 %: 12.7062 for 1 degree of freedom, 2.0930 for 19.

  One part of error 0.01: half of 0.127062. Two, 0.01 and 0.02: sqrt(0.127062^2 + 0.04186^2) =
  0.133780. The p value is 0.05 where the interval ends at 0, and 2 * (1/2 - arctan(t) / pi) with a
  single part of 1 degree of freedom: for t = 1 a half.
  """
  one, both = [Part(0.01, 1)], [Part(0.01, 1), Part(0.02, 19)]
  assert estimate(0.5, one, (0, 1))[:3] == pytest.approx((0.5, 0.372938, 0.627062), abs=1e-6)
  assert estimate(0.5, both, (0, 1)).high == pytest.approx(0.633780, abs=1e-5)
  assert estimate(0.95, both, (0, 1)).high == 1 and estimate(0.05, both, (0, 1)).low == 0
  assert estimate(0.01, one, (-1, 1), test=True).p == pytest.approx(0.5)
  assert estimate(-0.133780, both, (-1, 1), test=True).p == pytest.approx(0.05, abs=1e-4)
  assert estimate(0.005, one, (-1, 1), test=True).p == pytest.approx(0.704833, abs=1e-6)
  assert estimate(0.9, [Part(1e-6, 30), Part(1e-6, 40)], (-1, 1), test=True).p <= 1e-8


def test_parts_by_hand():
  """Draws of variance 1 and 4 from 2 and 5 sources: unbiased 2 and 5, so 7 with Satterthwaite's
  49 / (4 / 1 + 25 / 4) = 4.780 degrees of freedom. Seeds 0.1, 0.2, 0.6: variance 0.07, error
  sqrt(0.07 / 3). Two seeds of 10 sources whose draws have variance 1 and nothing in common: their
  mean has 1/2, all of which is the seeds' own; with equal draws 1, of which nothing is."""
  drawn = np.array([[[1.0, -1.0], [2.0, -2.0]]])
  assert intervals.of_sources(drawn, [2, 5]) == pytest.approx((7**0.5, 49 / 10.25))
  apart = np.array([[[1.0, -1.0, 1.0, -1.0]], [[1.0, 1.0, -1.0, -1.0]]])
  assert intervals.of_sources(apart, [10]) == (0.0, 9)
  assert intervals.of_sources(apart, [5]) == pytest.approx(((0.5 * 5 / 4)**0.5, 4))
  assert intervals.of_sources(apart[[0, 0]], [10]) == pytest.approx(((10 / 9)**0.5, 9))
  assert intervals.of_seeds(np.array([0.1, 0.2, 0.6])) == pytest.approx(((0.07 / 3)**0.5, 2))


def test_the_tail_of_a_single_part_is_told_however_small():
  """Of 2 degrees of freedom 2 P(T > t) is 1 - t / sqrt(t^2 + 2), for t = 10^6 nearly 1 / t^2; with
  two parts no p below 1e-9 is said."""
  assert estimate(1.0, [Part(1e-6, 2)], (-1, 1), test=True).p == pytest.approx(1e-12, rel=1e-4)
  assert estimate(1.0, [Part(1e-6, 9)] * 2, (-1, 1), test=True).p == pytest.approx(1e-9, rel=1e-6)


def test_half_a_width_by_hand():
  """t is 12.7062 and 4.30265 for 2 and 3 sources; times sqrt(2) and sqrt(3 / 2)."""
  assert intervals.half_width(0.1, 2) == pytest.approx(1.796929, abs=1e-5)
  assert intervals.half_width(0.1, 3) == pytest.approx(0.526965, abs=1e-5)


def test_few_sources_keep_the_seeds_part():
  """Two seeds whose draws have nothing in common: 7 sources keep their 1/2, times 7 / 6, 8 do not.
  Where single seeds vary more than their mean says, nothing is taken from another site: of 10
  sources each, one has 0, the other, alike with both seeds, 4 times 10 / 9."""
  apart = np.array([[[1.0, -1.0, 1.0, -1.0]], [[1.0, 1.0, -1.0, -1.0]]])
  assert intervals.of_sources(apart, [7]) == pytest.approx(((0.5 * 7 / 6)**0.5, 6))
  assert intervals.of_sources(apart, [8]) == (0.0, 7)
  against = np.array([[[1.0, -1.0], [2.0, -2.0]], [[-1.0, 1.0], [2.0, -2.0]]])
  assert intervals.of_sources(against, [10, 10]) == pytest.approx(((40 / 9)**0.5, 9))


def test_a_spread_that_is_but_rounding(monkeypatch):
  """Errors of 1e-12 and below are none, larger ones are."""
  draws = np.array([[[1.0, -1.0]]])
  assert intervals.of_sources(1e-9 * draws, [2]) == pytest.approx((2**0.5 * 1e-9, 1.0))
  assert intervals.of_sources(1e-14 * draws, [2]) == (0.0, 1.0)
  assert estimate(0.4, [Part(1e-12, 4)], (0, 1)).low is None
  # Variance 1/2 of four draws, times 2 / 1: exactly as large as the bound.
  monkeypatch.setattr(intervals, '_NONE', 1.0)
  assert intervals.of_sources(np.array([[[1.0, -1.0, 0.0, 0.0]]]), [2]) == (0.0, 1.0)


def test_where_there_is_no_interval():
  """A single source or seed cannot be drawn; equal draws say nothing of other notes."""
  assert intervals.of_sources(np.zeros((1, 2, 9)), [1, 30]) is None
  assert intervals.of_sources(np.zeros((1, 0, 9)), []) is None
  assert intervals.of_seeds(np.ones(1)) is None
  for parts in ([], [None, None], [Part(0.0, 4)], [None, Part(0.0, 1)]):
    found = estimate(0.4, parts, (0, 1), test=True)
    assert found == (0.4, None, None, None) and str(found) == '+0.400 (no interval)'
  assert estimate(0.4, [None, Part(0.01, 1)], (0, 1)).low is not None


@pytest.mark.parametrize(('sources', 'seeds', 'said'), [
  (40, 3, ''), (8, 2, ''), (7, 2, '7 sources only'), (40, 1, 'one seed: how training varies'),
  (1, 5, 'one source: how notes vary'), (2, 1, 'is left out; 2 sources only')])
def test_what_an_interval_leaves_out_is_said(sources, seeds, said):
  found = intervals.caution(sources, seeds)
  assert said in found and bool(said) == bool(found)


def test_holms_correction_by_hand():
  """Of 0.01, 0.04, 0.03: 3 x 0.01, 2 x 0.03, and 1 x 0.04, which is not below the one before."""
  assert intervals.holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
  assert intervals.holm([0.9, 0.8]) == [1.0, 1.0] and intervals.holm([]) == []


GOLD, SPREAD, SEEDS = 8, 0.6, 0.15  # entities a note; logits of notes, and of seeds
QUALITY = 0.6, 0.2                  # logits of two methods


def chances(rng, notes, seeds, quality):
  """Shares of the entities of each note that each seed's model finds, f[seeds, notes]."""
  return 1 / (1 + np.exp(-(quality + notes + rng.normal(0, SEEDS, (seeds, 1)))))


def invented(rng, notes: int, seeds: int):
  """Two methods' answers about the same notes, {site: ...} a seed; F1 is hits over entities."""
  gold, ease = 1 + rng.poisson(GOLD, notes), rng.normal(0, SPREAD, notes)
  rows = []
  for quality in QUALITY:
    hits = rng.binomial(gold, chances(rng, ease, seeds, quality))
    rows.append([
      {'a': {'ner': NoteCounts(tuple(map(str, range(notes))), np.broadcast_to(
        np.stack([tp, gold - tp, gold - tp], 1)[:, None, None], (notes, 2, 2, 3)))}}
      for tp in hits])
  return rows


def test_intervals_hold_the_truth_about_95_times_of_100():
  """Notes and seeds are drawn anew each time; the truth is the mean over very many of both.

  In 100 repetitions a coverage of 0.95 is measured to within 0.044 (two standard errors).
  Percentiles of draws hold the truth 0.5 times with two notes or two seeds. With two of both and
  t quantiles of one degree of freedom an interval is rather too wide.
  """
  rng = np.random.default_rng(0)
  right = [chances(rng, rng.normal(0, SPREAD, 10000), 100, quality).mean() for quality in QUALITY]
  right = right[0] - right[1], right[0]
  every = []
  for notes, seeds in ((2, 2), (3, 5), (8, 3), (20, 2), (20, 3), (20, 5)):
    held = []
    for repetition in range(100):
      ours, theirs = invented(rng, notes, seeds)
      draws = dict(seed=repetition, samples=60)
      found = [paired.difference(ours, theirs, ['a'], 'ner', **draws),
               paired.mean_f1(ours, ['a'], 'ner', **draws)]
      held.append([one.low is not None and one.low <= truth <= one.high
                   for one, truth in zip(found, right, strict=True)])
    every.append(np.mean(held, 0))
    assert (every[-1] >= 0.9).all(), (notes, seeds, every[-1])
  assert 0.94 < np.mean(every) < 0.99


def test_a_single_runs_interval_holds_its_models_truth():
  rng = np.random.default_rng(1)
  for notes in (2, 5, 20):
    held = []
    for repetition in range(150):
      gold, ease = 1 + rng.poisson(GOLD, notes), rng.normal(0, SPREAD, notes)
      tp = rng.binomial(gold, 1 / (1 + np.exp(-ease)))
      counts = np.stack([tp, gold - tp, gold - tp], 1)[:, None, None].repeat(2, 1).repeat(2, 2)
      low, high = metrics.bootstrap_f1(counts, repetition, 100)[0, 0]
      held.append(low <= 0.5 <= high)  # NaN, of equal notes, holds nothing
    assert 0.91 < np.mean(held) <= 1, (notes, np.mean(held))
