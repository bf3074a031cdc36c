"""Whose training loss is told to rise, by numbers."""

import numpy as np
import pytest

from fedmedjax.experiment.round_log import rising, round_sentence

NAN = np.nan


def line(*counts):
  return {'sites': ['a', 'b'][:len(counts)], 'steps': list(counts)}


def said(now, losses, earlier=()):
  return [(name, round(first, 3), round(last, 3))
          for name, first, last in rising(now, earlier, np.array(losses))]


def test_a_sentence_has_the_signal_in_its_unit():
  of = line(4, 0) | {
    'round': 1, 'train_loss': [1.0, None], 'weights': [1.0, 0.0], 'validation_loss': [-2.5, None]}
  said_of = lambda signal: round_sentence(of, 3, signal).partition('loss ')[2]  # noqa: E731
  assert said_of('') == said_of('loss') == 'a 1.000 (weight 1.00), b sent nothing'
  assert said_of('peer') == 'a 1.000 (weight 1.00, judged -2.50 nats an answer), b sent nothing'
  assert round_sentence(of | {'seconds': 128.4}, 3, own_aggregator=True).endswith(
    '/3: 2:08 min, mean training loss a 1.000, b sent nothing')
  unknown = of | {'validation_loss': [None, None]}
  assert round_sentence(unknown, 3, 'peer').endswith('a 1.000 (weight 1.00), b sent nothing')


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
  """Of 8 steps the first two and the last two: 1.5 and 3.5; one step has no end."""
  losses = [[1.0, 2.0, 9, 9, 9, 9, 2.0, 5.0], [5.0] + [NAN] * 7]
  assert said(line(8, 1), losses) == [('a', 1.5, 3.5)]
  assert said(line(8, 0), losses) == [('a', 1.5, 3.5)]


def test_later_rounds_against_the_first_that_a_site_took_part_in():
  """SCAFFOLD that diverges from round to round, each of which begins and ends alike."""
  first = line(32, 32) | {'train_loss': [1.0, None]}
  second = line(32, 32) | {'train_loss': [1.2, 1.0]}
  skipped = line(0, 0) | {'skipped': True}
  now = [[1.5] * 32, [1.1] * 32]
  assert said(line(32, 32), now, [first, skipped, second]) == [('a', 1.0, 1.5)]
  assert said(line(32, 32), now, [first]) == [('a', 1.0, 1.5)]
  unknown = line(32, 32) | {'train_loss': [NAN, NAN]}
  assert said(line(32, 32), now, [unknown]) == []


def test_a_site_is_named_in_the_round_in_which_it_leaves_only():
  started, above = (line(32) | {'train_loss': [mean]} for mean in (1.0, 1.5))
  assert said(line(32), [[9.0] * 32], [started, above]) == []
  assert said(line(32), [[9.0] * 32], [started]) == [('a', 1.0, 9.0)]


def test_few_steps_of_unlike_tasks_are_no_rise():
  """Two standard errors, at a standard deviation of half the mean, of n and n steps: sqrt(2 / n) of
  it. With one step a round entities 0.5 and relations 1 in turns are none (1 < 0.5 (1 + sqrt(2))),
  1.3 is one; with 32 steps a quarter more is."""
  once = [line(1) | {'train_loss': [0.5]}]
  assert said(line(1), [[1.0]], once) == [] and said(line(1), [[1.3]], once) == [('a', 0.5, 1.3)]
  assert said(line(2), [[0.5, 1.0]]) == [] and said(line(2), [[0.5, 1.3]]) == [('a', 0.5, 1.3)]
  often = [line(32) | {'train_loss': [0.5]}]
  assert said(line(32), [[0.62] * 32], often) == []
  assert said(line(32), [[0.64] * 32], often) == [('a', 0.5, 0.64)]
