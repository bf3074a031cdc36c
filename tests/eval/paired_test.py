"""Differences between runs: hand-worked, paired, and what must not matter."""

import json

import numpy as np
import pytest

from fedmedjax.eval import metrics, paired
from fedmedjax.eval.paired import NoteCounts
from fedmedjax.types import InputError

DRAWS = dict(seed=0, samples=2000)


def note(tp, fp, fn):
  """Counts of one note with one type, the same for both match kinds."""
  return np.broadcast_to([tp, fp, fn], (2, 2, 3))


def answers(prefix='note', **_notes) -> paired.Answers:
  """{site: {'ner': ...}}; keywords are lists of notes' counts by site."""
  return {
    name: {'ner': NoteCounts(tuple(f'{prefix}{i}' for i in range(len(notes))), np.stack(notes))}
    for name, notes in _notes.items()}


def test_the_mean_is_over_sites_and_then_over_seeds():
  """Seed 0: F1 8/10 at a and 0 at b, mean 0.4. Seed 1: 1 and 1/2, mean 0.75. Together 0.575; with
  one note a site only the seeds can be drawn: 0.4, 0.575 or 0.75, the outer ones 1 in 4 each."""
  first = answers(a=[note(4, 1, 1)], b=[note(0, 2, 2)])
  second = answers(a=[note(5, 0, 0)], b=[note(1, 1, 1)])
  found = paired.mean_f1([first, second], ['a', 'b'], 'ner', **DRAWS)
  assert found == pytest.approx((0.575, 0.4, 0.75))
  assert paired.mean_f1([first], ['a', 'b'], 'ner', **DRAWS) == pytest.approx((0.4, 0.4, 0.4))


def test_a_difference_uses_the_same_notes_for_both():
  """Notes differ much, the runs little: theirs misses one more of each note's 20 entities. Paired,
  the difference is about .03 in every draw; drawn apart, the interval would span 0."""
  hits = np.random.default_rng(0).integers(2, 20, 30)
  ours = answers(a=[note(tp, 0, 20 - tp) for tp in hits])
  theirs = answers(a=[note(tp - 1, 0, 21 - tp) for tp in hits])
  f1 = [2 * tp.sum() / (tp.sum() + 600) for tp in (hits, hits - 1)]
  found = paired.difference([ours], [theirs], ['a'], 'ner', **DRAWS)
  assert found.value == pytest.approx(f1[0] - f1[1])
  assert .01 < found.low <= found.value <= found.high < .06
  other = answers(prefix='foreign', a=theirs['a']['ner'].counts)
  assert paired.difference([ours], [other], ['a'], 'ner', **DRAWS).low < 0
  # Nor does what else is tested matter, nor the order of the sites.
  both = [run | answers(prefix='b', b=[note(1, 0, 0)]) for run in (ours, theirs)]
  assert paired.difference(*([run] for run in both), ['a'], 'ner', **DRAWS) == found
  assert paired.difference(*([run] for run in both), ['a', 'b'], 'ner', **DRAWS) == pytest.approx(
    paired.difference(*([run] for run in both), ['b', 'a'], 'ner', **DRAWS))
  assert paired.difference([ours], [ours], ['a'], 'ner', **DRAWS) == (0, 0, 0)
  with pytest.raises(ValueError, match='1 and 2 seeds'):
    paired.difference([ours], [theirs, theirs], ['a'], 'ner', **DRAWS)


def test_seeds_are_paired_too():
  """Ours 0.8 and 0.4, theirs 0.7 and 0.3: the difference is 0.1 whichever seeds are drawn; drawn
  apart it would range from -0.3 to 0.5."""
  ours, theirs = (
    [answers(a=[note(tp, 10 - tp, 10 - tp)]) for tp in hits] for hits in ((8, 4), (7, 3)))
  found = paired.difference(ours, theirs, ['a'], 'ner', **DRAWS)
  assert found == pytest.approx((0.1, 0.1, 0.1))


def test_a_note_that_one_run_has_nothing_of_counts_nothing():
  """A classifier is asked about notes with a main entity only: equal counts are no difference."""
  hits = [note(i, 3, 7 - i % 5) for i in range(9)]
  ours, theirs = answers(a=hits), answers(a=[*hits, note(0, 0, 0)])
  assert paired.difference([ours], [theirs], ['a'], 'ner', **DRAWS) == (0, 0, 0)
  assert paired.difference([theirs], [ours], ['a'], 'ner', **DRAWS) == (0, 0, 0)


def test_one_seed_and_site_is_the_plain_bootstrap():
  counts = np.stack([note(i, 3, 7 - i % 5) for i in range(9)])
  found = paired.mean_f1([answers(a=counts)], ['a'], 'ner', **DRAWS)
  assert found.value == metrics.averages(counts.sum(0))[0, 0, 2]
  # Another stream of the same draws: near the plain one, not on it.
  assert [found.low, found.high] == pytest.approx(
    metrics.bootstrap_f1(counts, 0, 2000)[0, 0], abs=.01)


def test_the_best_adapter_is_that_of_the_highest_mean():
  """a is better at its own site (1 against 2/3), b over both: (2/3 + 1) / 2 against (1 + 0) / 2."""
  rows = [{
    'a': answers(a=[note(3, 0, 0)], b=[note(0, 3, 3)]),
    'b': answers(a=[note(2, 1, 1)], b=[note(3, 0, 0)])}]
  assert paired.best_adapter(rows, ['a', 'b'], 'ner') == 'b'
  assert paired.best_adapter(rows, ['a'], 'ner') == 'a'


@pytest.mark.parametrize('text', [
  None, '', '[]', '{"scores": {"a": {}}}', '{"scores": {"a": {"notes": ["n"], "ner": [1]}}}'])
def test_counts_that_are_none_are_named(tmp_path, text):
  if text is not None:
    (tmp_path / 'counts.json').write_text(text)
  with pytest.raises(InputError, match=r'counts\.json: no counts by note .*delete .*summary.json'):
    paired.read_answers(tmp_path)


def test_counts_come_back_from_their_file(tmp_path):
  counts = np.arange(24).reshape(2, 2, 2, 3)
  (tmp_path / 'counts.json').write_text(json.dumps(
    {'scores': {'a': {'notes': ['x', 'y'], 'ner': counts.tolist()}}}))
  held = paired.read_answers(tmp_path)
  assert held['scores']['a']['ner'].notes == ('x', 'y')
  np.testing.assert_array_equal(held['scores']['a']['ner'].counts, counts)
  assert held['cross_site'] == held['global'] == {}
