"""Relation examples: which modifiers belong to which main entity, and the text round trip."""

import pytest

from fedmedjax.data import relations, tasks
from fedmedjax.data.cohorts import COHORTS, generate_cohort
from fedmedjax.types import (
  ENTITY_TYPES,
  MODIFIER_TYPES,
  Document,
  InputError,
  Relation,
  Span,
)

TEXT = 'Denies chest pain. On aspirin 81 mg daily for fever.'


def note(*links):
  """Spans of TEXT: 0 chest pain, 1 aspirin, 2 fever, 3 Denies, 4 81 mg, 5 daily, 6 81."""
  words = (
    ('chest pain', 'problem'), ('aspirin', 'drug'), ('fever', 'problem'), ('Denies', 'negation'),
    ('81 mg', 'strength'), ('daily', 'frequency'), ('81', 'strength'))
  spans = tuple(Span(TEXT.index(w), TEXT.index(w) + len(w), kind) for w, kind in words)
  return Document('n', TEXT, spans, tuple(Relation(spans[t].type, h, t) for h, t in links))


def test_one_example_per_main_entity_with_its_modifiers_only():
  found, counts = relations.relation_examples(
    note((0, 3), (1, 4), (1, 5)), ENTITY_TYPES)
  assert [tasks.render(example) for example in found] == [
    ('Denies <span class="problem">chest pain</span>.\n### Output Text:\n',
     '<span class="negation">Denies</span> chest pain.'),
    ('On <span class="drug">aspirin</span> 81 mg daily for fever.\n### Output Text:\n',
     'On aspirin <span class="strength">81 mg</span> <span class="frequency">daily</span> for '
     'fever.'),
    ('On aspirin 81 mg daily for <span class="problem">fever</span>.\n### Output Text:\n',
     'On aspirin 81 mg daily for fever.'),
  ]
  assert counts == {'mains': 3, 'modifiers': 3, 'nested': 0}


def test_what_is_set_aside_is_counted():
  """A modifier in another sentence, one inside another, one its main entity cannot have."""
  found, counts = relations.relation_examples(
    note((2, 3), (1, 4), (1, 6), (0, 4)), ('problem', 'drug'))
  assert counts == {'mains': 3, 'modifiers': 1, 'nested': 1, 'crossing': 1, 'invalid_pairs': 1}
  assert [len(example.entities) for example in found] == [0, 1, 0]


def test_types_that_were_not_annotated_make_no_examples():
  found, _ = relations.relation_examples(note((0, 3), (1, 4)), ('drug',))
  assert [example.main.type for example in found] == ['drug']


@pytest.mark.parametrize('name', COHORTS)
def test_cohorts_round_trip(name):
  """What is rendered is parsed back, for every main entity of a cohort."""
  corpus = generate_cohort(name, seed=1)
  asked = relations.modifier_types(corpus.types)
  modifiers = 0
  for document in (*corpus.train, *corpus.test):
    found, counts = relations.relation_examples(document, corpus.types)
    modifiers += counts['modifiers']
    assert not counts['invalid_pairs']
    for example in found:
      parsed = tasks.parse(tasks.render(example)[1], example.text, asked)
      assert parsed.spans == example.entities and parsed.copied and not parsed.failed
      main = example.main
      place = Span(example.start + main.start, example.start + main.end, main.type)
      assert place in document.spans
  assert modifiers > 20


def test_instruction_names_just_the_possible_modifiers():
  whole = relations.instruction(ENTITY_TYPES)
  assert relations.modifier_types(ENTITY_TYPES) == tuple(relations._GUIDE)
  assert len(relations._GUIDE) == 16 and sum(map(len, MODIFIER_TYPES.values())) == 22
  assert all(f'<span class="{name}">' in whole for name in relations._GUIDE)
  only = relations.instruction(('test',))
  assert 'class="labvalue"' in only and 'class="route"' not in only
  with pytest.raises(InputError, match='surgery'):
    relations.instruction(('surgery',))
