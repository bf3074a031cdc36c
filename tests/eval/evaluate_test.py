"""Records and scores of both tasks, worked by hand."""

import numpy as np
import pytest

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import ask
from fedmedjax.eval import evaluate
from fedmedjax.types import Example, SiteCorpus, Span

TEXT = 'On aspirin 81 mg daily, ibuprofen 5 mg.'
# The sentence begins at character 40 of its note.
ASPIRIN, IBUPROFEN = Span(3, 10, 'drug'), Span(24, 33, 'drug')
STRENGTH, FREQUENCY, FIVE = (
  Span(11, 16, 'strength'), Span(17, 22, 'frequency'), Span(34, 38, 'strength'))
SENTENCE = Example('n1', 40, TEXT, (ASPIRIN, IBUPROFEN))
QUIET = Example('n2', 0, 'No pain.', ())
ABOUT_ASPIRIN = Example('n1', 40, TEXT, (STRENGTH, FREQUENCY), ASPIRIN)
ABOUT_IBUPROFEN = Example('n1', 40, TEXT, (FIVE,), IBUPROFEN)
CORPUS = SiteCorpus('ward', ('problem', 'drug'), (), (), {}, {
  'problem': ('severity',), 'drug': ('strength', 'frequency', 'route')})


def site(*examples: list[Example], tasks=('ner', 're')) -> SiteData:
  return SiteData('ward', CORPUS.types, tuple(
    TaskData(ask(task, CORPUS), np.zeros(1, np.int32), (), (), tuple(test), ())
    for task, test in zip(tasks, examples, strict=True)), {})


def tagged(text: str, *spans: Span) -> str:
  for start, end, kind in sorted(spans, reverse=True):
    text = f'{text[:start]}<span class="{kind}">{text[start:end]}</span>{text[end:]}'
  return text


def f1(scores: dict, kind: str = 'strict', average: str = 'typed') -> float:
  return scores[kind][average]['f1']


def test_a_relation_record_names_its_main_entity():
  output = tagged(TEXT, STRENGTH, FREQUENCY._replace(type='route'))
  (record,) = evaluate.predictions(ask('re', CORPUS), [ABOUT_ASPIRIN], [output])
  assert record == {
    'document': 'n1', 'sentence_start': 40, 'task': 're', 'main': [43, 50, 'drug'],
    'model_input': tagged(TEXT, ASPIRIN) + '\n### Output Text:\n',
    'generated': output, 'predicted': [[51, 56, 'strength'], [57, 62, 'route']],
    'gold': [[51, 56, 'strength'], [57, 62, 'frequency']], 'parse_failed': False, 'copied': True,
    'dropped': 0}
  # One of two found and one of two right: precision = recall = f1 = 1/2; untyped all are.
  found = evaluate.score(site([ABOUT_ASPIRIN], tasks=('re',)), [[record]], seed=0, samples=5)
  assert f1(found.scores['re']['modifier']) == 0.5
  assert f1(found.scores['re']['modifier'], average='untyped') == 1.0
  assert list(found.scores['re']['modifier']['per_type']) == [
    'severity', 'strength', 'frequency', 'route']
  # No entities are asked of this site: nobody can say which main entities are right.
  assert list(found.scores['re']) == ['modifier', 'triple']


def test_entity_records_have_no_main_entity_and_an_empty_answer_fails():
  asked = site([SENTENCE, SENTENCE._replace(document='n3')], tasks=('ner',))
  records = evaluate.predictions(asked.tasks[0].ask, asked.test, ['', tagged(TEXT)])
  assert [record['task'] for record in records] == ['ner', 'ner']
  assert not any('main' in record for record in records)
  assert [record['parse_failed'] for record in records] == [True, False]
  found = evaluate.score(asked, [records], seed=0, samples=5)
  assert (found.copy_rate, found.parse_failure_rate) == (0.5, 0.5)
  assert found.scores['ner']['strict']['typed']['recall'] == pytest.approx(0.0)
  made_up, = evaluate.predictions(
    asked.tasks[0].ask, [SENTENCE], [f'<span class="drug">heparin</span> {TEXT}'])
  assert (made_up['dropped'], made_up['predicted']) == (1, [])


def test_a_thought_before_an_answer_changes_nothing_but_what_was_generated():
  """So it is for every way to ask a model, since all of them read outputs here."""
  thought = '<think>Is <span class="drug">daily</span> a drug?</think>\n\n'
  for task, example, found in (
      ('ner', SENTENCE, (ASPIRIN,)), ('re', ABOUT_ASPIRIN, (STRENGTH, FREQUENCY))):
    plain, thinking = evaluate.predictions(
      ask(task, CORPUS), [example] * 2, [tagged(TEXT, *found), thought + tagged(TEXT, *found)])
    assert len(plain['predicted']) == len(found) and plain['copied']
    assert thinking.pop('generated') == thought + plain.pop('generated') and thinking == plain


def answers(examples, write) -> list[dict]:
  """Records of a model that finds aspirin, takes 'daily' for a drug, and misses ibuprofen."""
  asked = site([SENTENCE, QUIET], examples)
  entities, relations = asked.tasks
  records = evaluate.predictions(entities.ask, entities.test, [
    tagged(TEXT, ASPIRIN, FREQUENCY._replace(type='drug')), 'No pain.'])
  records += evaluate.predictions(relations.ask, relations.test, [
    tagged(TEXT, STRENGTH, FREQUENCY._replace(type='route')),
    *[tagged(TEXT, FIVE)] * (len(examples) - 1)])
  return records + evaluate.end_to_end(asked, relations, records, write)


def test_triples_and_end_to_end():
  """Modifiers of the two true main entities: 81 mg and 5 mg are right, 'daily' has a wrong type:
  tp 2, predicted 3, gold 3, f1 2/3; so the triples. On its own the model asks about aspirin, with
  the answer it gave already, and about 'daily': tp 1 (81 mg), predicted 2 + 1, gold 3: f1 1/3.
  """
  asked_about = []

  def write(examples):
    asked_about.extend(examples)
    return [tagged(TEXT, STRENGTH) for _ in examples]

  examples = [ABOUT_ASPIRIN, ABOUT_IBUPROFEN]
  records = answers(examples, write)
  assert [example.main for example in asked_about] == [FREQUENCY._replace(type='drug')]
  chained = [record for record in records if record['task'] == 'end_to_end']
  assert [(r['main'], r['predicted']) for r in chained] == [
    ([43, 50, 'drug'], [[51, 56, 'strength'], [57, 62, 'route']]),
    ([57, 62, 'drug'], [[51, 56, 'strength']])]
  asked = site([SENTENCE, QUIET], examples)
  found = evaluate.score(asked, [records], seed=0, samples=5)
  relations = found.scores['re']
  assert f1(relations['modifier']) == f1(relations['triple']) == pytest.approx(2 / 3)
  assert f1(relations['end_to_end']) == pytest.approx(1 / 3)
  assert list(relations['triple']['per_type']) == [
    'problem.severity', 'drug.strength', 'drug.frequency', 'drug.route']
  assert relations['triple']['per_type']['drug.strength']['strict']['f1'] == 1.0
  assert relations['end_to_end']['per_type']['drug.strength'] == {
    'strict': {'precision': 0.5, 'recall': 0.5, 'f1': 0.5},
    'lenient': {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}, 'gold': 2, 'predicted': 2}
  # The answer about aspirin, no exact copy, is one of five answers, though it is read twice.
  odd = [record | {'copied': record.get('main') != [43, 50, 'drug']} for record in records]
  assert evaluate.score(asked, [odd], seed=0, samples=5).copy_rate == 0.8
  # Every note of the site is drawn from, also the one in which nothing is to be found.
  assert all(counts.shape[0] == 2 for counts in found.counts.values())
  # Two adapters that say the same: twice the counts, the same ratios.
  twice = evaluate.score(asked, [records, records], seed=0, samples=5)
  assert twice.scores['re']['end_to_end']['strict'] == relations['end_to_end']['strict']
  for name, counts in found.counts.items():
    np.testing.assert_array_equal(2 * counts, twice.counts[name])


def test_a_main_entity_is_asked_about_within_its_sentence():
  """Characters 21 to 26 of a note are 17 to 22 of its sentence that begins at character 4."""
  asked = site([SENTENCE._replace(start=4)], [ABOUT_ASPIRIN._replace(start=4)])
  found = []
  evaluate.end_to_end(asked, asked.tasks[1], [
    {'document': 'n1', 'sentence_start': 4, 'task': 'ner', 'predicted': [[21, 26, 'drug']]}],
    lambda examples: [found.append(example) or TEXT for example in examples])
  assert [(example.start, example.main) for example in found] == [(4, Span(17, 22, 'drug'))]


def test_a_pair_counts_once_and_an_impossible_one_not_at_all():
  """Ibuprofen is annotated twice over: modifiers tp 3 of 4 and 4, triples still 2 of 3 and 3.
  A severity of a drug is a pair that no annotation can hold, so that `predict` does not write it.
  """
  examples = [ABOUT_ASPIRIN, ABOUT_IBUPROFEN, ABOUT_IBUPROFEN]
  records = answers(examples, lambda examples: [TEXT] * len(examples))
  found = evaluate.score(site([SENTENCE, QUIET], examples), [records], 0, 5).scores['re']
  assert f1(found['modifier']) == 0.75 and f1(found['triple']) == pytest.approx(2 / 3)
  records[2]['predicted'].append([40, 42, 'severity'])
  found = evaluate.score(site([SENTENCE, QUIET], examples), [records], 0, 5).scores['re']
  assert f1(found['triple']) == pytest.approx(2 / 3)


@pytest.mark.parametrize('name', ['aa', 'zz'])
def test_records_of_other_tasks_change_nothing(name):
  """Whatever a task is called: neither are their entities asked about, nor their answers taken over
  for such a question; a task of that name finds no main entities for another one. They count only
  in the shares of all answers, and come first here."""
  examples = [ABOUT_ASPIRIN, ABOUT_IBUPROFEN]
  write = lambda examples: [tagged(TEXT, STRENGTH)] * len(examples)  # noqa: E731
  records, asked = answers(examples, write), site([SENTENCE, QUIET], examples)
  own = [record for record in records if record['task'] != 'end_to_end']
  foreign = [
    {**own[0], 'task': name, 'predicted': [[64, 73, 'drug']]},
    {**own[2], 'task': name, 'main': [57, 62, 'drug'], 'predicted': [[51, 56, 'route']]}]
  assert evaluate.end_to_end(asked, asked.tasks[1], [*foreign, *own, *foreign], write) == [
    record for record in records if record['task'] == 'end_to_end']
  found, expected = (
    evaluate.score(asked, [given], 0, 5) for given in ([*foreign, *records], records))
  assert found.scores == expected.scores
  assert evaluate.asked(asked, records) and not evaluate.asked(asked, [*foreign, *records])
  assert evaluate.asked(asked, [*foreign, *own[2:]])
  # Without the task that finds main entities there is no score of the whole.
  other = TaskData(
    ask('ner', CORPUS)._replace(task=name), np.zeros(1, np.int32), (), (), (QUIET,), ())
  alone = asked._replace(tasks=(other, asked.tasks[1]))
  assert list(evaluate.score(alone, [own[2:]], 0, 5).scores['re']) == ['modifier', 'triple']


def test_as_many_outputs_as_examples():
  for outputs in ([], ['', '']):
    with pytest.raises(ValueError, match='argument'):
      evaluate.predictions(ask('ner', CORPUS), [SENTENCE], outputs)


def test_shares_of_several_sites_by_hand():
  """Means over sites of 2/2 and 2/4, of 0/2 and 1/4; 3 + 0 entities dropped."""
  scores = [evaluate.SiteScores({}, (), {}, *figures) for figures in (
    (2, 2, 0, 3), (4, 2, 1, 0))]
  assert evaluate.rates(iter(scores)) == {
    'copy_rate': 0.75, 'parse_failure_rate': 0.125, 'dropped': 3}


def test_records_on_disk_are_complete_or_not():
  examples = [ABOUT_ASPIRIN, ABOUT_IBUPROFEN]
  records, asked = answers(examples, lambda e: [TEXT] * len(e)), site([SENTENCE, QUIET], examples)
  assert evaluate.asked(asked, records)
  assert not evaluate.asked(asked, records[1:]) and not evaluate.asked(asked, [])
