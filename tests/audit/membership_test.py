"""Membership inference and exposure by hand."""

import numpy as np
import pytest

from fedmedjax.audit import identifiers, membership
from fedmedjax.audit.membership import Scores


def test_area_by_hand():
  """3 beats 2 and 0, 1 and 2 beat 0, and 2 ties with 2: four and a half of six pairs."""
  members = Scores(np.array([3.0, 1.0, 2.0]), ('a', 'a', 'b'))
  others = Scores(np.array([2.0, 0.0]), ('c', 'd'))
  won, mine, theirs = membership.wins(members, others)
  assert won.tolist() == [[1.0, 2.0], [0.5, 1.0]]
  assert (mine.tolist(), theirs.tolist()) == ([2.0, 1.0], [1.0, 1.0])
  assert membership.area(members, others, 100, 0).value == 4.5 / 6
  alone = membership.area(
    Scores(members.values, ('a',) * 3), Scores(others.values, ('c',) * 2), 100, 0)
  assert (alone.value, alone.low) == (4.5 / 6, None)


def test_the_interval_covers_what_is_true():
  """Members are a standard deviation higher: the area is Phi(1 / sqrt(2)) = 0.760. Of 100 draws of
  40 sources with effects of their own 95 are to cover it; without the sources they would not."""
  rng, covered = np.random.default_rng(2), {True: 0, False: 0}
  for _ in range(100):
    draws = []
    for mean in (1.0, 0.0):
      source = np.repeat(np.arange(20), 5)
      values = mean + np.sqrt(0.5) * (rng.standard_normal(20)[source] + rng.standard_normal(100))
      draws.append((values, source))
    for by_source in covered:
      found = membership.area(*(Scores(values, tuple(
        map(str, source if by_source else range(100)))) for values, source in draws), 200, 0)
      covered[by_source] += found.low <= 0.7602 <= found.high
  assert covered[True] >= 90 > covered[False]


def test_members_caught():
  others = np.arange(1000.0)
  members = np.array([998.5, 989.5, 999.5, 0.0])
  # One of 1,000 may pass: above 998 are two; ten may: above 989 are three.
  assert [membership.caught(members, others, false) for false in membership.FALSE] == [0.5, 0.75]
  # None of 100 may pass at 0.1 %.
  assert membership.caught(members, others[:100], 0.001) == 0.75


def test_what_an_untrained_model_finds_is_no_leak():
  """Losses that training has not changed: the calibrated attack guesses, whatever the texts are."""
  rng = np.random.default_rng(3)
  losses = rng.random(50), rng.random(40) + 1
  found = membership.attacks(losses, losses, (['a', 'b'] * 25, ['c', 'd'] * 20), 50, 0)
  assert found['calibrated']['auc'] == 0.5 and found['calibrated']['tpr'] == [0, 0]
  assert found['loss']['auc'] == found['untrained']['auc'] == 1.0


def test_exposure_by_hand():
  """256 identifiers: the likeliest has 8 bits, one behind 127 others 1; and 1.44 on average where
  nothing was learnt."""
  others = np.arange(255.0)
  assert identifiers.exposures(np.array([-1.0, 126.5, 300.0]), others).tolist() == [8.0, 1.0, 0.0]
  assert identifiers.exposures(np.array([0.0]), others)[0] == pytest.approx(8 - np.log2(1.5))
  rng = np.random.default_rng(4)
  mean = identifiers.exposures(rng.random(20_000), rng.random(255)).mean()
  assert mean == pytest.approx(np.log2(np.e), abs=0.15)
