"""Records and scores of both tasks, worked by hand."""

import pytest

from fedmedjax.data import relations
from fedmedjax.eval import evaluate
from fedmedjax.types import Example, Span

TEXT = 'On aspirin 81 mg daily.'
# The sentence begins at character 40 of its note.
MAIN, STRENGTH, FREQUENCY = (
  Span(3, 10, 'drug'), Span(11, 16, 'strength'), Span(17, 22, 'frequency'))
EXAMPLE = Example('n1', 40, TEXT, (STRENGTH, FREQUENCY), MAIN)
PLAIN = Example('n2', 0, TEXT, (MAIN,))


def test_a_relation_record_names_its_main_entity():
  types = relations.modifier_types(('drug',))
  output = 'On aspirin <span class="strength">81 mg</span> <span class="route">daily</span>.'
  (record,) = evaluate.predictions([EXAMPLE], types, [output])
  assert record == {
    'document': 'n1', 'sentence_start': 40, 'task': 're', 'main': [43, 50, 'drug'],
    'model_input': 'On <span class="drug">aspirin</span> 81 mg daily.\n### Output Text:\n',
    'generated': output, 'predicted': [[51, 56, 'strength'], [57, 62, 'route']],
    'gold': [[51, 56, 'strength'], [57, 62, 'frequency']], 'parse_failed': False, 'copied': True}
  # One of two found and one of two right: precision = recall = f1 = 1/2; untyped all are.
  found = evaluate.score([EXAMPLE], types, [record], seed=0, samples=5)
  assert found.scores['strict']['typed']['f1'] == 0.5
  assert found.scores['strict']['untyped']['f1'] == 1.0
  assert set(found.scores['per_type']) == set(types)


def test_entity_records_have_no_main_entity_and_an_empty_answer_fails():
  records = evaluate.predictions([PLAIN, PLAIN], ('drug',), ['', TEXT])
  assert [record['task'] for record in records] == ['ner', 'ner']
  assert not any('main' in record for record in records)
  assert [record['parse_failed'] for record in records] == [True, False]
  found = evaluate.score([PLAIN, PLAIN], ('drug',), records, seed=0, samples=5)
  assert (found.copy_rate, found.parse_failure_rate) == (0.5, 0.5)
  assert found.scores['strict']['typed']['recall'] == pytest.approx(0.0)
