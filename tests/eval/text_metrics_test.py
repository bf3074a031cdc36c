"""Metrics of texts, worked by hand: values, counts by source, intervals, what is not counted."""

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import Ask
from fedmedjax.eval import evaluate, metrics, paired, text_metrics
from fedmedjax.eval.own_metric import OwnMetric
from fedmedjax.eval.text_metrics import TextMetrics, label, rouge_words
from fedmedjax.types import Example, InputError


def unread(generated, example):
  raise AssertionError('an answer of this task is not parsed')


_TYPES = {'': ('text',)}
ASK = Ask('text', '', _TYPES, _TYPES, ('text',), lambda note: ([], {}), '',
          lambda row: (f'{row.text}\n### Output Text:\n', row.target), unread, ())


def site(*rows: tuple, name: str = 'ward') -> SiteData:
  """Rows (target, source), each its own document."""
  examples = tuple(Example(f'row {i}', 0, f'Question {i}?', (), source=source, target=target)
                   for i, (target, source) in enumerate(rows))
  return SiteData(name, (), (TaskData(ASK, np.zeros(1, np.int32), (), (), examples, ()),), {})


def records(asked: SiteData, answers) -> list[dict]:
  return evaluate.predictions(ASK, asked.test, answers)


def scored(asked: SiteData, *answers, samples: int = 50, **text):
  return evaluate.score(
    asked, [records(asked, one) for one in answers], seed=3, samples=samples,
    text=TextMetrics(**text))


YES_NO = site(('yes', 'a'), ('no', 'a'), ('yes', 'b'), ('unsure', 'c'))


def test_a_record_has_its_answer_as_written_and_no_spans():
  (record,) = evaluate.predictions(ASK._replace(after='\n=> '), YES_NO.test[:1], [' Yes.\n'])
  assert record == {
    'document': 'row 0', 'sentence_start': 0, 'task': 'text', 'target': 'yes',
    'model_input': 'Question 0?\n### Output Text:\n', 'generated': ' Yes.\n',
    'output_heading': '\n=> '}


@pytest.mark.parametrize('text, shown', [
  ('Yes.', 'yes'), ('  YES \n', 'yes'), ('yes .', 'yes'), ('yes\t no', 'yes no'), ('no!', 'no'),
  ('Straße', 'strasse'), ('yes..', 'yes.'), ('?', '?'), ('', ''), (' ', ''), ('1,5', '1,5'),
  ('(yes)', '(yes)'), ('\u00a0yes\u3000', 'yes')])
def test_a_text_as_a_label(text, shown):
  assert label(text) == shown


def test_values_by_hand():
  """Exact: ' yes ' and 'unsure' of four = 1/2. Labels: 'No.' too = 3/4; 'maybe' is none.

  yes: tp 1, fn 1 (row 2), fp 0: F1 = 2 / (2 + 1) = 2/3. no: tp 1: 1. unsure: tp 1: 1. Their mean is
  8/9. 'maybe' is no label's false positive."""
  found = scored(YES_NO, [' yes ', 'No.', 'maybe', 'unsure'],
                 names=('macro_f1', 'accuracy', 'exact_match'))
  values = {name: entry['value'] for name, entry in found.scores['text'].items()}
  assert list(values) == ['macro_f1', 'accuracy', 'exact_match']
  assert values == pytest.approx({'macro_f1': 8 / 9, 'accuracy': 0.75, 'exact_match': 0.5})
  assert evaluate.headline(found.scores) == values['macro_f1']
  assert found.sources == ('a', 'b', 'c')
  # Two kinds of matches that are equal, one type and all together, (s, n - s, n - s).
  means = found.counts['text.exact_match']
  assert means.shape == (3, 2, 2, 3)
  assert means[:, 0, 0].tolist() == means[:, 1, 1].tolist() == [[1, 1, 1], [0, 1, 1], [1, 0, 0]]
  labels = found.counts['text.macro_f1']
  assert labels.shape == (3, 2, 4, 3) and np.array_equal(labels[:, 0], labels[:, 1])
  assert labels[:, 0].sum(0).tolist() == [[1, 0, 1], [1, 0, 0], [1, 0, 0], [3, 0, 1]]


def test_a_wrong_label_is_a_false_positive_of_that_label():
  """no is said for yes twice: yes tp 0, fn 2: 0. no tp 1, fp 2: 2 / (2 + 2) = 1/2. unsure: 1.
  Mean 1/2, as in a confusion matrix by hand."""
  found = scored(YES_NO, ['no', 'no', 'NO', 'Unsure'], names=('macro_f1',))
  assert found.scores['text']['macro_f1']['value'] == pytest.approx(0.5)
  assert found.counts['text.macro_f1'][:, 0].sum(0).tolist() == [
    [0, 0, 2], [1, 2, 0], [1, 0, 0], [2, 2, 2]]


def test_macro_f1_is_that_of_a_confusion_matrix():
  """Of precision and recall from the matrix of 4 labels, 200 random rows, 3 wrong words besides."""
  rng = np.random.default_rng(0)
  targets, answers = rng.integers(0, 4, 200), rng.integers(0, 7, 200)
  matrix = np.zeros((4, 7))
  np.add.at(matrix, (targets, answers), 1)
  right = np.diag(matrix[:, :4])
  precision, recall = right / matrix[:, :4].sum(0), right / matrix.sum(1)
  asked = site(*((f'label {t}', f'note {i % 9}') for i, t in enumerate(targets)))
  found = scored(asked, [f'Label {a}' for a in answers], names=('macro_f1',))
  assert found.scores['text']['macro_f1']['value'] == pytest.approx(
    (2 * precision * recall / (precision + recall)).mean(), abs=1e-12)


TEXTS = [
  'The patient denies chest pain; BP 120/80.', 'the PATIENT has_pain (chest), bp: 120-80',
  'No acute distress', '', '___', 'a_b__c', "don't stop", 'x' * 30, '1.5 mg q.d.', '\tnew\nlines ']


def test_rouge_l_of_ascii_is_that_of_the_library():
  """The library's own words, and its own scorer without words of ours, on every pair."""
  usual = RougeScorer(['rougeL'], use_stemmer=False)
  asked = site(*((target, '') for target in TEXTS))
  for text in TEXTS:
    assert rouge_words(text) == DefaultTokenizer().tokenize(text)
  for shift in range(len(TEXTS)):
    answers = TEXTS[shift:] + TEXTS[:shift]
    found = scored(asked, answers, names=('rouge_l',), samples=1)
    assert found.scores['text']['rouge_l']['value'] == pytest.approx(np.mean([
      usual.score(target, answer)['rougeL'].fmeasure
      for target, answer in zip(TEXTS, answers, strict=True)]), abs=1e-12)


def test_rouge_l_by_hand_and_in_other_scripts():
  """Of 4 and 3 words the longest common subsequence has 2: P 2/3, R 2/4, F 4/7. Of 'é' and 'e' no
  word is shared, of two capitals both are; words of Chinese are found without blanks."""
  for answer, target, value in (
      ('fever since monday', 'Fever and cough: Monday', 4 / 7), ('É', 'é', 1), ('é', 'e', 0),
      ('患者发烧', '患者发烧', 1), ('.', 'fever', 0), ('fever', '.', 0)):
    found = scored(site((target, '')), [answer], names=('rouge_l',))
    assert found.scores['text']['rouge_l']['value'] == pytest.approx(value), answer
  assert rouge_words('發燒 и Кашель, naïve_2') == ['發', '燒', 'и', 'кашель', 'naïve', '2']


ROWS = [(f'{i % 3}', f's{i % 5}') for i in range(24)]
ANSWERS = [f'{(i * i) % 4}' for i in range(24)]


def test_intervals_are_those_of_the_same_f1_counts():
  """tp = right answers of a source, fp = fn = wrong ones: F1 is the share of right answers."""
  asked = site(*ROWS)
  found = scored(asked, ANSWERS, names=('accuracy', 'macro_f1'))
  table = np.zeros((5, 2, 2, 3))
  for i, ((target, _), answer) in enumerate(zip(ROWS, ANSWERS, strict=True)):
    table[i % 5, :, :] += [1, 0, 0] if target == answer else [0, 1, 1]
  for name, counts, average in (('accuracy', table, 'typed'),
                                ('macro_f1', found.counts['text.macro_f1'], 'macro')):
    low, high = metrics.bootstrap_f1(counts, 3, 50)[0, metrics.AVERAGES.index(average)]
    assert found.scores['text'][name]['ci95'] == pytest.approx([low, high])
    assert 0 <= low < found.scores['text'][name]['value'] < high <= 1
  # So are those of comparisons, which draw by the names of sources.
  answers = paired._answers(evaluate.source_counts({'ward': found}))
  for name in ('accuracy', 'macro_f1'):
    estimate = paired.mean_f1([answers], ['ward'], f'text.{name}', seed=0, samples=500)
    assert estimate.value == pytest.approx(found.scores['text'][name]['value'])
    assert estimate.low < estimate.value < estimate.high


def test_no_interval_of_one_source_nor_where_nothing_varies():
  one = scored(site(('yes', 'a'), ('no', 'a')), ['yes', 'yes'])
  assert one.scores['text']['exact_match'] == {'value': 0.5, 'ci95': None}
  right = scored(YES_NO, ['yes', 'no', 'yes', 'unsure'],
                 names=('exact_match', 'accuracy', 'macro_f1', 'rouge_l'))
  assert list(right.scores['text'].values()) == [{'value': 1.0, 'ci95': None}] * 4


def test_intervals_of_shipped_metrics_end_at_0_and_1():
  """Shares 1/2, 1 and 1 of three sources: their t interval would go beyond 1."""
  found = scored(YES_NO, ['yes', 'x', 'yes', 'unsure'], names=('exact_match', 'macro_f1'))
  assert [entry['ci95'][1] for entry in found.scores['text'].values()] == [1.0, 1.0]
  answers = paired._answers(evaluate.source_counts({'ward': found}))
  for name in ('exact_match', 'macro_f1'):
    assert paired.mean_f1([answers], ['ward'], f'text.{name}', seed=0, samples=99).high == 1.0


def own(function, **gives) -> OwnMetric:
  return OwnMetric("config.eval.metric='my.py:score'", function, gives or None)


def lengths(answers, targets):
  return {'longer': [len(a) - len(t) for a, t in zip(answers, targets, strict=True)],
          'words': float(sum(len(a.split()) for a in answers))}


def test_own_numbers_a_row_have_an_interval_of_any_size_and_one_a_site_has_none():
  """Differences of length (-1, 0, 4, -6) by source a: -1, b: 4, c: -6; mean -3/4. s = -1 of n = 2
  rows: tp -1, fp = fn = 3."""
  found = scored(YES_NO, ['no', 'no', 'yes it is'[:7], ''], own=own(lengths), samples=400)
  entry = found.scores['text']['longer']
  assert list(found.scores['text']) == ['exact_match', 'longer', 'words']
  assert entry['value'] == pytest.approx(-0.75)
  assert found.counts['text.longer'][:, 0, 0].tolist() == [[-1, 3, 3], [4, -3, -3], [-6, 7, 7]]
  # Not cut off at 0 and 1.
  low, high = entry['ci95']
  assert low < -1.5 and high > 1.5 and (low + high) / 2 == pytest.approx(-0.75)
  assert found.scores['text']['words'] == {'value': 4.0, 'ci95': None}
  assert 'text.words' not in found.counts
  answers = paired._answers(evaluate.source_counts({'ward': found}))
  estimate = paired.mean_f1([answers], ['ward'], 'text.longer', seed=0, samples=400)
  assert estimate.value == pytest.approx(-0.75) and estimate.low < -1.5
  twice = {'ward': {'text.longer': paired.NoteCounts(
    ('a', 'b', 'c'), found.counts['text.longer'] * [9, 1, 1] + [0, 8, 8])}}
  assert paired.difference([twice], [answers], ['ward'], 'text.longer', seed=0, samples=9).low < -1


def test_own_numbers_that_are_all_the_same_do_not_vary():
  """Roundings of large ones would look as if they did."""
  rows = site(*((f'{i}', f's{i % 4}') for i in range(7)))
  found = scored(rows, ['x'] * 7, own=own(lambda a, t: {'cost': [123456.7] * len(a)}))
  assert found.scores['text']['cost'] == {'value': pytest.approx(123456.7), 'ci95': None}


def test_counts_of_several_adapters_add_up_and_their_single_numbers_are_averaged():
  """Two adapters: right 3 of 4 and 1 of 4, 4 of 8 in all. Words: 4 and 8, mean 6."""
  first, second = ['yes', 'no', 'yes', 'x'], ['yes x', 'x no', 'yes y', 'unsure ']
  found = scored(YES_NO, first, second, own=own(lengths))
  alone = [scored(YES_NO, one, own=own(lengths)) for one in (first, second)]
  assert found.scores['text']['exact_match']['value'] == 0.5
  assert found.scores['text']['words'] == {'value': 5.5, 'ci95': None}
  for name, counts in found.counts.items():
    np.testing.assert_array_equal(counts, sum(one.counts[name] for one in alone))


def test_answers_of_this_task_are_none_that_were_read():
  found = scored(YES_NO, ['yes'] * 4)
  assert (found.asked, found.copied, found.unreadable, found.dropped) == (0, 0, 0, 0)
  assert found.copy_rate is found.parse_failure_rate is None
  assert evaluate.rates([found]) == {'copy_rate': None, 'parse_failure_rate': None, 'dropped': 0}
  spans = evaluate.SiteScores({}, (), {}, 4, 2, 1, 3)
  assert evaluate.rates([found, spans]) == {
    'copy_rate': 0.5, 'parse_failure_rate': 0.25, 'dropped': 3}


def test_records_without_their_answers_are_none():
  """They cannot be scored again."""
  given = records(YES_NO, ['yes'] * 4)
  assert evaluate.asked(YES_NO, given) and not evaluate.asked(YES_NO, given[1:])
  assert not evaluate.asked(
    YES_NO, [{key: record[key] for key in ('document', 'sentence_start', 'task')}
             for record in given])


@pytest.mark.parametrize('limit, most', [('_MOST_COUNTS', 8), ('_MOST_LABELS', 2)])
def test_too_many_labels_are_none(limit, most, monkeypatch):
  monkeypatch.setattr(text_metrics, limit, most)
  with pytest.raises(InputError, match="'ward' has 3 different targets from 3 sources, too many"):
    text_metrics.tried(TextMetrics(('macro_f1',)), [YES_NO])
  assert text_metrics.tried(TextMetrics(('accuracy',)), [YES_NO]).names == ('accuracy',)
  two = site(('a', 's'), ('b', 't'))
  assert text_metrics.tried(TextMetrics(('macro_f1',)), [two]).own is None


FAULTS = [
  (lambda a, t: None, 'it gives NoneType; {name: a number, or a list of one a row} is allowed'),
  (lambda a, t: [1.0], 'it gives list'), (lambda a, t: {}, 'it gives an empty dict'),
  (lambda a, t: {1: 1.0}, 'it gives the name 1;'), (lambda a, t: {'': 1.0}, "the name '';"),
  (lambda a, t: {'a\nb': 1.0}, r"the name 'a\nb'; a text of one to 60 characters in one line"),
  (lambda a, t: {'x' * 61: 1.0}, 'in one line is allowed'),
  (lambda a, t: {' a': 1.0}, "the name ' a'"),
  (lambda a, t: {'rouge_l': 1.0},
   "the name 'rouge_l', which is one of config.eval.metrics; choose another one"),
  (lambda a, t: {'x': math.nan}, "'x' is nan; a number between -1e+09 and 1e+09 is allowed"),
  (lambda a, t: {'x': -math.inf}, "'x' is -inf;"), (lambda a, t: {'x': 1e10}, "'x' is 1e+10;"),
  (lambda a, t: {'x': [1, 2, math.nan, 4]}, "'x' is nan in row 3; a number"),
  (lambda a, t: {'x': [1, 2, 3]}, "'x' has 3 numbers for 4 rows"),
  (lambda a, t: {'x': []}, "'x' has 0 numbers for 4 rows"),
  (lambda a, t: {'x': '1'}, "'x' is '1'; a number, or a list of 4, one a row, is allowed"),
  (lambda a, t: {'x': ['1'] * 4}, "'x' is ['1', '1', '1', '1']; a number"),
  (lambda a, t: {'x': None}, "'x' is None;"), (lambda a, t: {'x': [None] * 4}, "'x' is [None"),
  (lambda a, t: {'x': 1j}, "'x' is 1j;"), (lambda a, t: {'x': [[1], [2, 3]]}, "'x' is [[1], ["),
  (lambda a, t: {'x': np.ones((4, 1))}, "'x' is array([[1.]"),
  (lambda a, t: {'x': {1}}, "'x' is {1};"),
  (lambda a, t: {'x': 10**400}, "'x' is 1000"), (lambda a, t: {'x': (i for i in a)}, "'x' is <gen"),
]


@pytest.mark.parametrize('function, message', FAULTS)
def test_what_a_metric_may_not_give(function, message):
  with pytest.raises(InputError) as error:
    text_metrics.tried(TextMetrics((), own(function)), [YES_NO])
  text = str(error.value)
  assert text.startswith(
    "config.eval.metric='my.py:score': site 'ward', tried with its targets as answers: ")
  assert message in text and '\n' not in text and len(text) < 300


@pytest.mark.parametrize('value', [
  1, True, np.float32(0.25), np.array(2.0), [1, 2, 3, 4], (0.5,) * 4, np.arange(4), [True] * 4])
def test_what_a_metric_may_give(value):
  found = scored(YES_NO, ['x'] * 4, names=(), own=own(lambda a, t: {'x': value}))
  assert found.scores['text']['x']['value'] == pytest.approx(np.mean(value))
  assert type(found.scores['text']['x']['value']) is float


def test_a_metric_is_tried_on_right_and_on_empty_answers_and_gives_the_same_everywhere():
  clinic = site(('no', ''), name='clinic')
  seen = []

  def metric(answers, targets):
    seen.append((answers, list(targets)))
    targets.clear()  # a copy, which is the metric's own
    return {'b': 1.0, 'a': [0] * len(answers)}

  text = text_metrics.tried(TextMetrics((), own(metric)), [YES_NO, clinic])
  targets = ['yes', 'no', 'yes', 'unsure']
  assert seen == [(targets, targets), ([''] * 4, targets), (['no'], ['no']), ([''], ['no'])]
  assert text.own.gives == {'b': False, 'a': True}

  def fault(metric, sites=(YES_NO, clinic)):
    with pytest.raises(InputError) as error:
      text_metrics.tried(TextMetrics((), own(metric)), sites)
    return str(error.value).split(': ', 1)[1]

  assert fault(lambda a, t: {'x': 1.0} if len(t) > 1 else {'y': 1.0}) == (
    "site 'clinic', tried with its targets as answers: it gives 'y' (one number), and gave 'x' "
    '(one number) before; the same at every site is allowed')
  assert "tried with empty answers: it gives 'x' (one number), and gave 'x' (a number a row)" in (
    fault(lambda a, t: {'x': [1.0] * 4 if a[0] else 0.0}, [YES_NO]))
  # After training, too; names come in the order of the first time.
  turned = own(lambda a, t: {'a': [0] * 4, 'b': 1.0}, b=False, a=True)
  assert list(scored(YES_NO, ['x'] * 4, names=(), own=turned).scores['text']) == ['b', 'a']
  with pytest.raises(InputError, match="my.py:score': site 'ward': it gives 'z'"):
    scored(YES_NO, ['x'] * 4, own=own(lambda a, t: {'z': 1.0}, x=False))


def test_the_headline_alone():
  text = TextMetrics(('accuracy', 'rouge_l'), own(lengths))
  assert text.headline() == TextMetrics(('accuracy',), None)
  alone = TextMetrics((), text.own)
  assert alone.headline() == alone
