"""Scores against their definitions (docs/methods.md), brute force and hand-worked numbers."""

import itertools
import json

import numpy as np
import pytest
import seqeval.metrics
from nervaluate import Evaluator

from fedmedjax.eval import metrics
from fedmedjax.types import Span

TYPES = ('problem', 'drug', 'test')
WORDS = 'w0 w1 w2 w3 w4 w5 w6'


def spans(tags: str, name: str | None = None) -> list[Span]:
  """BIO tags of the words of WORDS, as 'B I O' with one type or 'B-drug I-drug O'."""
  out = []
  for i, tag in enumerate(tags.split()):
    start, end = 3 * i, 3 * i + 2
    if tag[0] == 'B':
      out.append(Span(start, end, name or tag[2:]))
    elif tag[0] == 'I':
      out[-1] = out[-1]._replace(end=end)
  return out


def scored(gold, predicted, text=WORDS, types=TYPES):
  return metrics.scores(metrics.count(gold, predicted, text, types), types)


@pytest.mark.parametrize('gold, predicted, strict, lenient', [
  ('O B I O', 'O B O O', 0, (1, 1, 1)),
  ('B O B O', 'B I I O', 0, (1, .5, .667)),
  ('B I I I O', 'B O B I O', 0, (.5, 1, .667)),
  ('B I I O', 'O B I O', 0, (1, 1, 1)),
  ('B B O', 'B B O', 1, (1, 1, 1)),
  ('B B O', 'B I O', 0, (1, .5, .667)),
])
def test_method_table(gold, predicted, strict, lenient):
  got = scored(spans(gold, 'drug'), spans(predicted, 'drug'))
  for average in metrics.AVERAGES:  # one type: the averages agree
    row = got['lenient'][average]
    assert (row['precision'], row['recall'], row['f1']) == pytest.approx(lenient, abs=5e-4)
    assert got['strict'][average]['f1'] == strict


@pytest.mark.parametrize('text, gold, other, lenient', [
  ('患者发热三天无咳嗽', '发热', '三天', 0), ('患者发热三天', '发热', '发热三', 1),
  ('アスピリンを投与', '投与', 'アスピリン', 0), ('बुखार', 'बु', 'खार', 1),
  ('열이 났다', '열', '이', 1),
])
def test_lenient_pairs_share_a_word_where_blanks_part_none(text, gold, other, lenient):
  """Chinese characters are words apart; a Hindi or Korean word is one, whatever part is marked."""
  got = scored(*([Span(text.index(part), text.index(part) + len(part), 'drug')]
                 for part in (gold, other)), text)
  assert got['lenient']['typed']['f1'] == lenient and got['strict']['typed']['f1'] == 0


def test_typed_against_merged():
  """problem and drug are right, the test is found as a problem, the first problem is cut.

  Merged: 3 gold, 3 predicted; exact: drug and the last one, 2/3; overlapping: 3/3.
  Typed: exact: drug only, 1/3; overlapping: problem and drug, 2/3.
  """
  got = scored(
    spans('B-problem I-problem O B-drug O B-test I-test'),
    spans('B-problem O O B-drug O B-problem I-problem'),
  )
  assert got['strict']['untyped']['f1'] == pytest.approx(2 / 3)
  assert got['lenient']['untyped']['f1'] == 1
  assert got['strict']['typed']['f1'] == pytest.approx(1 / 3)
  assert got['lenient']['typed']['f1'] == pytest.approx(2 / 3)
  # macro strict: problem 0, drug 1, test 0; lenient: problem 2/(2+1) = 2/3, drug 1, test 0.
  assert got['strict']['macro']['f1'] == pytest.approx(1 / 3)
  assert got['lenient']['macro']['f1'] == pytest.approx(5 / 9)


def test_macro_averages_over_the_types_that_occur():
  """test occurs nowhere, drug in the prediction only (F1 0), problem is perfect: macro 1/2."""
  got = scored(spans('B O O', 'problem'), spans('B O B-drug', 'problem')[:1] + spans('O B-drug'))
  assert got['strict']['macro'] == {'precision': .5, 'recall': .5, 'f1': .5, 'ci95': None}
  assert got['per_type']['test'] == {
    'strict': {'precision': 0, 'recall': 0, 'f1': 0},
    'lenient': {'precision': 0, 'recall': 0, 'f1': 0},
    'gold': 0, 'predicted': 0,
  }


def test_nothing_to_find_and_nothing_found_is_zero():
  got = scored([], [])
  for kind, average in itertools.product(metrics.KINDS, metrics.AVERAGES):
    assert set(got[kind][average].values()) == {0.0, None}


def test_types_not_annotated_are_never_counted():
  gold, predicted = spans('B-drug B-problem O'), spans('B-drug O B-problem')
  counts = metrics.count(gold, predicted, WORDS, ('drug',))
  assert counts.tolist() == [[[1, 0, 0]] * 2] * 2


def test_repeated_prediction_is_a_false_positive():
  counts = metrics.count(spans('B-drug'), spans('B-drug') * 2, WORDS, ('drug',))
  assert counts.tolist() == [[[1, 1, 0]] * 2] * 2


@pytest.mark.parametrize('text, gold, predicted, shared', [
  ('take 50mg now', (5, 7), (7, 9), 1),        # '50' and 'mg' are parts of one token
  ('take 50 mg now', (5, 7), (8, 10), 0),
  ('take 50 mg now', (5, 7), (7, 10), 0),      # a blank is no token
  ('take 50 mg now', (0, 7), (4, 5), 0),
  ('pain/fever', (0, 4), (4, 10), 0),          # the slash is a token of its own
  ('Müdigkeit, Ödeme', (0, 9), (8, 9), 1),
])
def test_lenient_tokens(text, gold, predicted, shared):
  counts = metrics.count([Span(*gold, 'drug')], [Span(*predicted, 'drug')], text, ('drug',))
  assert counts[:, 0].tolist() == [[0, 1, 1], [shared, 1 - shared, 1 - shared]]


def random_tags(draw: np.random.Generator) -> list[str]:
  """BIO tags of the words of WORDS; I- only goes on with what is open."""
  tags, kind = [], None
  for what in draw.random(7):
    goes_on = kind and what < .35
    kind = kind if goes_on else draw.choice(TYPES) if what < .7 else None
    tags.append(f'{"I" if goes_on else "B"}-{kind}' if kind else 'O')
  return tags


def one_to_one(gold, predicted) -> bool:
  return all(sum(a.start < b.end and b.start < a.end for b in others) <= 1
             for some, others in ((gold, predicted), (predicted, gold)) for a in some)


def test_scores_agree_with_nervaluate_and_seqeval():
  """nervaluate's strict and exact are our strict, typed and untyped; its ent_type and partial (an
  overlap, with and without the type) count what our lenient does as long as no entity overlaps
  two: of two ours takes the largest matching, theirs the first. seqeval's micro and macro averages
  are our strict ones."""
  draw, simple = np.random.default_rng(0), 0
  for _ in range(300):
    tags = random_tags(draw), random_tags(draw)
    gold, predicted = (spans(' '.join(one)) for one in tags)
    strict, lenient = metrics.count(gold, predicted, WORDS, TYPES)
    theirs = Evaluator([tags[0]], [tags[1]], tags=list(TYPES), loader='list').evaluate()
    overall = theirs['overall']
    for ours, their in ((strict[:-1].sum(0), overall['strict']), (strict[-1], overall['exact'])):
      assert ours.tolist() == [
        their.correct, their.actual - their.correct, their.possible - their.correct]
    for name, ours in zip(TYPES, strict, strict=False):
      their = theirs['entities'].get(name)
      assert (ours[0], ours[:2].sum(), ours[::2].sum()) == (
        (their['strict'].correct, *(sum(s.type == name for s in one) for one in (predicted, gold)))
        if their else (0, 0, 0))
    if one_to_one(gold, predicted):
      simple += 1
      assert lenient[:-1, 0].sum() == overall['ent_type'].correct
      assert lenient[-1, 0] == overall['partial'].correct + overall['partial'].partial
    got = scored(gold, predicted)['strict']
    for average, name in (('typed', 'micro'), ('macro', 'macro')):
      for part, score in (('precision', seqeval.metrics.precision_score),
                          ('recall', seqeval.metrics.recall_score),
                          ('f1', seqeval.metrics.f1_score)):
        if gold or predicted:
          assert got[average][part] == pytest.approx(
            score(*([one] for one in tags), average=name, zero_division=0)), tags
  assert simple > 100


def brute_force(gold, predicted):
  """Largest matching by trying everything: the first gold range goes unpaired or to any."""
  if not gold:
    return 0
  (start, end), rest = gold[0], gold[1:]
  best = brute_force(rest, predicted)
  for i, (s, e) in enumerate(predicted):
    if max(s, start) < min(e, end):
      best = max(best, 1 + brute_force(rest, predicted[:i] + predicted[i + 1:]))
  return best


def test_lenient_matching_is_the_largest():
  """Also where ranges nest and repeat, which flat annotation does not have."""
  draw = np.random.default_rng(0)
  seen = set()
  for _ in range(1500):
    sides = [
      [(s, s + int(draw.integers(1, 7))) for s in draw.integers(0, 9, draw.integers(0, 6)).tolist()]
      for _ in range(2)
    ]
    expected = brute_force(*sides)
    assert metrics._most_pairs(*sides) == expected, sides
    seen.add(expected)
  assert seen == {0, 1, 2, 3, 4, 5}


def test_each_gold_goes_to_one_prediction_only():
  """Pairing the long prediction with the first gold it meets would leave the short one alone:
  gold [0,1) [2,5), predicted [0,3) [0,1): the largest matching has two pairs, not one."""
  gold = [Span(0, 2, 'drug'), Span(6, 14, 'drug')]
  predicted = [Span(0, 8, 'drug'), Span(0, 2, 'drug')]
  assert metrics.count(gold, predicted, WORDS, ('drug',))[1, 0].tolist() == [2, 0, 0]


def test_ranges_without_tokens_overlap_nothing():
  for nothing in ((2, 2), (3, 1)):
    assert metrics._most_pairs([nothing], [(0, 5)]) == metrics._most_pairs([(0, 5)], [nothing]) == 0


def note(tp: int, fp: int, fn: int) -> np.ndarray:
  """Counts of one note with one type, the same for both match kinds."""
  return np.broadcast_to([tp, fp, fn], (2, 2, 3))


def test_bootstrap_draws_notes_and_pools_their_counts():
  """Two notes, (tp, fp, fn) = (8, 0, 0) and (0, 0, 2). Draws: both first, F1 1 (p = 1/4); both
  second, 0 (1/4); one of each, pooled 16/(16+2) = 8/9, where a mean over notes would be 1/2."""
  counts = np.stack([note(8, 0, 0), note(0, 0, 2)])
  drawn = metrics.averages(metrics.resampled(counts, seed=1, samples=4000))[:, 0, 0, 2]
  values, times = np.unique(drawn.round(6), return_counts=True)
  assert values.tolist() == [0, .888889, 1]
  assert times / 4000 == pytest.approx([.25, .5, .25], abs=.03)
  # The interval is wider than the draws are apart: with one degree of freedom nothing is known.
  assert metrics.bootstrap_f1(counts, seed=1).tolist() == [[[0, 1]] * 3] * 2


def test_an_interval_of_sources_by_hand():
  """Four notes with 40, 60, 50, 50 hits of 100: F1 0.5; their standard deviation is
  sqrt(0.02 / 3), that of their mean half of it, 0.040825; t is 3.18245 for 3 degrees of freedom."""
  counts = np.stack([note(tp, 100 - tp, 100 - tp) for tp in (40, 60, 50, 50)])
  low, high = metrics.bootstrap_f1(counts, seed=2, samples=20000)[0, 0]
  assert (low + high) / 2 == pytest.approx(0.5)
  assert (high - low) / 2 == pytest.approx(0.040825 * 3.18245, rel=0.02)


def test_an_interval_is_that_of_f1():
  """Nothing is missed, so recall is 1 in every draw; of 30 predictions 15 are right, F1 is 2/3. By
  default 1,000 draws are taken."""
  counts = np.stack([note(8, 2, 0), note(5, 5, 0), note(2, 8, 0)] * 4)
  low, high = metrics.bootstrap_f1(counts, seed=2)[0, 0]
  assert 0 < low < high < 1 and (low + high) / 2 == pytest.approx(2 / 3)
  assert (metrics.bootstrap_f1(counts, 2) == metrics.bootstrap_f1(counts, 2, 1000)).all()


def test_there_is_no_interval_where_nothing_can_be_drawn():
  """Equal notes, a note alone, and none at all; otherwise it depends on the seed only."""
  same = np.stack([note(2, 1, 1)] * 5)
  for few in (same, same[:1], same[:0]):
    assert np.isnan(metrics.bootstrap_f1(few, seed=0)).all()
  got = metrics.scores(same.sum(0), TYPES[:1], metrics.bootstrap_f1(same, 0))
  assert got['strict']['typed']['ci95'] is None
  unlike = np.stack([note(i, 3, 7 - i % 5) for i in range(9)])
  a, b, c = (metrics.bootstrap_f1(unlike, seed) for seed in (3, 3, 4))
  assert (a == b).all() and (a != c).any()


def test_counts_add_and_scores_are_plain_json():
  gold, predicted = spans('B-problem I-problem O B-drug'), spans('B-problem O O B-drug')
  notes = np.stack([
    metrics.count(gold, predicted, WORDS, TYPES), metrics.count(gold, gold, WORDS, TYPES),
  ])
  got = metrics.scores(notes.sum(0), TYPES, metrics.bootstrap_f1(notes, seed=0))
  assert got['strict']['typed']['f1'] == pytest.approx(3 / 4)  # 2 pi = 2 ri = 3 of 4
  assert got['per_type']['problem']['strict']['f1'] == pytest.approx(1 / 2)
  assert got['per_type']['problem']['lenient']['f1'] == 1
  assert got['strict']['typed']['ci95'] == [0, 1]
  assert json.loads(json.dumps(got)) == got
  assert set(got) == {'strict', 'lenient', 'per_type'}


def test_links_match_when_both_ends_do():
  """'On aspirin 81 mg daily' with tokens 0-3 On, 3-10 aspirin, 11-13 81, 14-16 mg, 17-22 daily.

  Gold: aspirin-81 mg (strength), aspirin-daily (frequency). Predicted: aspirin-81 (strength:
  shares a token), daily-81 mg (strength: another main), aspirin-daily as route. Strict: typed
  none; untyped aspirin-daily. Lenient: aspirin-81 too. One gold pair never answers to two
  predictions.
  """
  text, aspirin = 'On aspirin 81 mg daily', Span(3, 10, 'drug')
  daily = Span(17, 22, 'drug')
  types = ('drug.strength', 'drug.frequency', 'drug.route')

  def link(main, start, end, kind):
    return metrics.Link(main, Span(start, end, kind), f'drug.{kind}')

  gold = [link(aspirin, 11, 16, 'strength'), link(aspirin, 17, 22, 'frequency')]
  predicted = [
    link(aspirin, 11, 13, 'strength'), link(daily, 11, 16, 'strength'),
    link(aspirin, 17, 22, 'route')]
  counts = metrics.count_links(gold, predicted, text, types)
  assert counts[0].tolist() == [[0, 2, 1], [0, 0, 1], [0, 1, 0], [1, 2, 1]]
  assert counts[1].tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0], [2, 1, 0]]
  # '81' and 'mg' are neighbours, not one token.
  apart = [link(aspirin, 11, 13, 'strength')], [link(aspirin, 14, 16, 'strength')]
  assert metrics.count_links(*apart, text, types)[1, 0].tolist() == [0, 1, 1]
  halves = [link(aspirin, 11, 13, 'strength'), link(aspirin, 14, 16, 'strength')]
  assert metrics.count_links(gold[:1], halves, text, types)[1, 0].tolist() == [1, 1, 0]
