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
  one note a site only the seeds vary: error 0.35 / 2, times 12.7 for one degree of freedom."""
  first = answers(a=[note(4, 1, 1)], b=[note(0, 2, 2)])
  second = answers(a=[note(5, 0, 0)], b=[note(1, 1, 1)])
  assert paired.mean_f1([first, second], ['a', 'b'], 'ner', **DRAWS)[:3] == pytest.approx(
    (0.575, 0, 1))
  near = answers(a=[note(4, 1, 1)], b=[note(1, 199, 199)])
  found = paired.mean_f1([first, near], ['a', 'b'], 'ner', **DRAWS)
  assert found[:3] == pytest.approx(
    (0.40125, 0.40125 - 0.00125 * 12.7062, 0.40125 + 0.00125 * 12.7062), abs=1e-6)
  assert str(paired.mean_f1([first], ['a', 'b'], 'ner', **DRAWS)) == '+0.400 (no interval)'


def test_what_a_site_adds_to_each_draw():
  """Equal notes of F1 0.8 and 0.4 at two sites: 0.4 and 0.2 of a mean of 0.6, in every draw."""
  run = answers(a=[note(4, 1, 1)] * 3, b=[note(2, 3, 3)] * 2)
  values, drawn = paired._statistic([run], ['a', 'b'], 'ner', 0, 5, 'strict')
  np.testing.assert_allclose(values, [0.6])
  np.testing.assert_allclose(drawn, [[[0.4] * 5, [0.2] * 5]])
  assert paired.fewest_sources([run, answers(a=[note(1, 0, 0)] * 4, b=[note(1, 0, 0)])], [
    'a', 'b'], 'ner') == 1


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
  assert paired.difference([ours], [ours], ['a'], 'ner', **DRAWS) == (0, None, None, None)
  with pytest.raises(ValueError, match='longer'):
    paired.difference([ours], [theirs, theirs], ['a'], 'ner', **DRAWS)


def test_seeds_are_paired_too():
  """Ours 0.80, 0.40, 0.60, theirs 0.70, 0.30, 0.47: the differences are 0.10, 0.10, 0.13, of mean
  0.11 and error 0.01; t is 4.30265 for two degrees of freedom. Unpaired it would be 0.17."""
  ours, theirs = (
    [answers(a=[note(tp, 100 - tp, 100 - tp)]) for tp in hits]
    for hits in ((80, 40, 60), (70, 30, 47)))
  found = paired.difference(ours, theirs, ['a'], 'ner', **DRAWS)
  assert found[:3] == pytest.approx((0.11, 0.11 - 0.0430265, 0.11 + 0.0430265), abs=1e-6)
  assert 0.005 < found.p < 0.01


def test_a_note_that_one_run_has_nothing_of_counts_nothing():
  """A classifier is asked about notes with a main entity only: equal counts are no difference."""
  hits = [note(i, 3, 7 - i % 5) for i in range(9)]
  ours, theirs = answers(a=hits), answers(a=[*hits, note(0, 0, 0)])
  assert paired.difference([ours], [theirs], ['a'], 'ner', **DRAWS)[:2] == (0, None)
  assert paired.difference([theirs], [ours], ['a'], 'ner', **DRAWS)[:2] == (0, None)


def test_one_seed_and_site_is_the_plain_bootstrap():
  counts = np.stack([note(i, 3, 7 - i % 5) for i in range(9)])
  found = paired.mean_f1([answers(a=counts)], ['a'], 'ner', **DRAWS)
  assert found.value == metrics.averages(counts.sum(0))[0, 0, 2]
  # Another stream of the same draws: near the plain one, not on it.
  assert [found.low, found.high] == pytest.approx(
    metrics.bootstrap_f1(counts, 0, 2000)[0, 0], abs=.01)


@pytest.mark.parametrize('text', [
  None, '', '[]', '{"scores": {"a": {}}}', '{"scores": {"a": {"sources": ["n"], "ner": [1]}}}',
  *('{"scores": {"a": {"sources": ["n"], "ner": [[[[X, 1, 1]], [[1, 1, 1]]]]}}}'.replace('X', value)
    for value in ('"1"', 'null', '[1]'))])
def test_counts_that_are_none_are_named(tmp_path, text):
  if text is not None:
    (tmp_path / 'counts.json').write_text(text)
  with pytest.raises(InputError, match=r'counts\.json: no counts by source .*delete .*summary'):
    paired.read_answers(tmp_path)


def test_counts_come_back_from_their_file(tmp_path):
  counts = np.arange(24).reshape(2, 2, 2, 3)
  (tmp_path / 'counts.json').write_text(json.dumps(
    {'scores': {'a': {'sources': ['x', 'y'], 'ner': counts.tolist()}},
     'validation': {'a': 0.5, 'b': None}}))
  held = paired.read_answers(tmp_path)
  assert held['scores']['a']['ner'].sources == ('x', 'y')
  np.testing.assert_array_equal(held['scores']['a']['ner'].counts, counts)
  assert held['cross_site'] == held['global'] == {}
  assert held['validation'] == {'a': 0.5, 'b': np.inf}
