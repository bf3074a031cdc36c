"""What leaves of a site's scores, by hand: 6 annotated entities, of which 4 are found."""

import numpy as np
import pytest

from fedmedjax.deploy.policy import Policy
from fedmedjax.deploy.scoring import Scored
from fedmedjax.deploy.told_scores import heard_scores, told_scores
from fedmedjax.eval import metrics
from fedmedjax.eval.paired import NoteCounts

# Of two types and both merged: (right, wrong, missed), strictly and leniently; 2 sources.
STRICT, LENIENT = [[3, 1, 2], [0, 2, 1], [3, 3, 3]], [[4, 0, 1], [0, 2, 1], [4, 2, 2]]
HALF = np.asarray([STRICT, LENIENT])
COUNTS = np.stack([HALF, 0 * HALF])
SUMMARY = {
  'scores': {'icu': {'ner': metrics.scores(
    COUNTS.sum(axis=0), ('drug', 'problem'), metrics.bootstrap_f1(COUNTS, 0, 20))}},
  'answers': {'icu': {'asked': 9, 'copied': 1, 'unreadable': 0}}, 'test_sources': [2]}


def told(least: int, counts: np.ndarray = COUNTS, examples: int = 9, **more) -> dict:
  return told_scores(Policy(smallest_count=least, **more), 'icu', Scored(
    SUMMARY, {'ner': NoteCounts(('a', 'b'), counts)}, examples))


def test_sums_over_types_are_told_and_read_as_the_same_scores():
  """3 of 6 found are right, 3 of 6 annotated are found: precision, recall and F1 are 1/2."""
  fields = told(2)
  assert fields['measures']['ner']['counts'] == [[3, 3, 3], [4, 2, 2]]
  assert fields['sources'] == 2 and fields['kept'] == ''
  heard = heard_scores(fields)
  for kind, value in (('strict', 1 / 2), ('lenient', 2 / 3)):
    typed = heard.scores['ner'][kind]['typed']
    assert typed == SUMMARY['scores']['icu']['ner'][kind]['typed']
    assert typed['precision'] == typed['recall'] == typed['f1'] == pytest.approx(value)
  assert heard.scores['ner']['per_type'] == {} and heard.answers == SUMMARY['answers']['icu']


def test_what_few_stand_behind_stays():
  """2 sources of 5 at least are not told; nor is a score of fewer than 7 entities, of 4 found ones
  of 5 at least, or of 4 test examples."""
  nothing_found = COUNTS.copy()
  nothing_found[..., 2] += nothing_found[..., 0]
  nothing_found[..., :2] = 0
  few_found = nothing_found.copy()
  few_found[0, :, 0, 1] = 4
  assert 'ner' in told(5)['measures'] and told(5)['sources'] is None
  assert 'ner' in told(5, nothing_found)['measures']
  for fields in (told(7), told(5, few_found), told(5, examples=4), told(2, scores=False)):
    assert fields['measures'] == {} and fields['sources'] is None
    assert 'scores' in fields['kept'] or 'smallest_count' in fields['kept']
    assert heard_scores(fields).scores == {}
  assert told(5, examples=4)['answers'] is None and told(2, scores=False)['answers'] is None


@pytest.mark.parametrize('change', [
  {'measures': {'ner': {'counts': [[1, 2, -3], [1, 2, 3]], 'ci95': [None, None]}}},
  {'measures': {'ner': {'counts': [[1, 2], [1, 2]], 'ci95': [None, None]}}},
  {'measures': {'ner': {'counts': [[1, 2, 3.5], [1, 2, 3]], 'ci95': [None, None]}}},
  {'measures': {'ner': {'counts': [[1, 2, 3], [1, 2, 3]], 'ci95': [[0.9, 0.1], None]}}},
  {'measures': {'names': {'counts': [[1, 2, 3], [1, 2, 3]], 'ci95': [None, None]}}},
  {'measures': {'text.\x1b[2J': {'value': 1.0, 'ci95': None}}},
  {'measures': {'text.x': {'value': 1e300, 'ci95': None}}},
  {'measures': dict.fromkeys(map(str, range(99)))}, {'measures': [1]}, {'sources': True},
  {'answers': {'asked': 1, 'copied': 2, 'unreadable': 0}}, {'answers': {}}])
def test_a_strangers_scores_are_checked(change):
  assert heard_scores(told(2)) is not None
  assert heard_scores(told(2) | change) is None and heard_scores({}) is None
