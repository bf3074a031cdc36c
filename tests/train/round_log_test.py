"""Whose training loss is told to rise, by numbers."""

import numpy as np
import pytest

from fedmedjax.train.round_log import rising

NAN = np.nan


def line(*counts):
  return {'sites': ['a', 'b'][:len(counts)], 'steps': list(counts)}


def said(now, losses, earlier=()):
  return [(name, round(first, 3), round(last, 3))
          for name, first, last in rising(now, earlier, np.array(losses))]


@pytest.mark.parametrize('losses, expected', [
  ([1.0, 0.9, 0.7, 0.5], []),
  ([1.0, 2.0, 5.0, 9.0], [('a', 1.0, 9.0)]),
  ([1.0, 1.0, 1.0, 1.2], []),           # a fifth more is noise
  ([0.01, 0.01, 0.01, 0.05], []),       # of nearly nothing
  ([1.0, 0.5, 0.5, NAN], []),           # is left out, and told so
])
def test_a_first_round_against_its_own_start(losses, expected):
  assert said(line(4), [losses]) == expected


def test_quarters_of_a_round_and_padding():
  """Of 8 steps the first two and the last two: 1.5 and 3; of a site's one step there is no end."""
  losses = [[1.0, 2.0, 9, 9, 9, 9, 2.0, 4.0], [5.0] + [NAN] * 7]
  assert said(line(8, 1), losses) == [('a', 1.5, 3.0)]
  assert said(line(8, 0), losses) == [('a', 1.5, 3.0)]


def test_later_rounds_against_the_first_that_a_site_took_part_in():
  """SCAFFOLD that diverges from round to round, each of which begins and ends alike."""
  first = line(2, 2) | {'train_loss': [1.0, None]}
  second = line(2, 2) | {'train_loss': [9.0, 1.0]}
  skipped = line(0, 0) | {'skipped': True}
  now = [[1.5, 1.5], [1.1, 1.1]]
  assert said(line(2, 2), now, [first, skipped, second]) == [('a', 1.0, 1.5)]
  assert said(line(2, 2), now, [first]) == [('a', 1.0, 1.5)]
  unknown = line(2, 2) | {'train_loss': [NAN, NAN]}
  assert said(line(2, 2), now, [unknown]) == []
