"""Mappings: what is renamed, merged, joined and dropped; and that every shipped one is sound."""

import pytest

from fedmedjax.data.formats.mapped import apply_mapping
from fedmedjax.data.formats.mapping import SHIPPED, read_mapping
from fedmedjax.types import ENTITY_TYPES, MODIFIER_TYPES, Document, Relation, Span


@pytest.fixture
def mapping_of(tmp_path):
  def read(text):
    (tmp_path / 'own.toml').write_text(text)
    return read_mapping(tmp_path / 'own.toml')
  return read


def test_identical_spans_merge_and_relations_that_no_row_names_are_dropped(mapping_of):
  mapping = mapping_of('[entities]\nDisease = "problem"\nSign = "problem"\n'
                       '[relations.MODIFY]\nmain = "tail"\nmodifiers = {Severity = "severity"}\n')
  document = Document('note', 'severe cough', (
    Span(0, 6, 'Severity'), Span(7, 12, 'Disease'), Span(0, 6, 'Sign'), Span(7, 12, 'Sign'),
  ), (Relation('MODIFY', 0, 1), Relation('CAUSE', 2, 3), Relation('MODIFY', 0, 3),
      Relation('MODIFY', 2, 1)))  # the last one's modifier has a raw type that means nothing
  (mapped,), counts = apply_mapping([document], mapping)
  assert mapped.spans == (Span(7, 12, 'problem'), Span(0, 6, 'problem'), Span(0, 6, 'severity'))
  assert mapped.relations == (Relation('severity', 0, 2),)
  assert counts == {
    'entities': 2, 'unmapped': 1, 'duplicate': 1,
    'mapped_problem': 3, 'relations': 1, 'mapped_problem_severity': 2, 'unmapped_relations': 2,
    'lacking_relation_CAUSE': 1}


def test_a_modifier_means_what_its_main_entity_can_have(mapping_of):
  """Duration of a drug is its duration, of a problem a time; a test can have none of severity."""
  mapping = mapping_of(
    '[entities]\nP = "problem"\nD = "drug"\nX = "test"\n'
    '[relations.R]\nmodifiers = {Time = ["duration", "temporal"], Bad = "severity"}\n')
  assert mapping.modifiers == {
    'problem': ('severity', 'temporal'), 'test': ('temporal',), 'drug': ('duration',)}
  spans = (Span(0, 1, 'P'), Span(2, 3, 'D'), Span(4, 5, 'X'), Span(6, 7, 'Time'), Span(8, 9, 'Bad'))
  links = tuple(Relation('R', head, tail) for head in (0, 1, 2) for tail in (3, 4))
  (mapped,), counts = apply_mapping([Document('n', 'p d x t b', spans, links)], mapping)
  named = [(mapped.spans[r.head].type, r.type, mapped.spans[r.tail]) for r in mapped.relations]
  assert named == [
    ('problem', 'temporal', Span(6, 7, 'temporal')),
    ('problem', 'severity', Span(8, 9, 'severity')),
    ('drug', 'duration', Span(6, 7, 'duration')), ('test', 'temporal', Span(6, 7, 'temporal'))]
  assert counts['invalid_pairs'] == 2


def test_siblings_are_joined_through_their_event():
  """An event's dosage belongs to each of its drugs, its severity to its effect."""
  spans = (Span(0, 1, 'Adverse_event'), Span(2, 3, 'Treatment.Drug'), Span(4, 5, 'Treatment.Drug'),
           Span(6, 7, 'Treatment.Dosage'), Span(8, 9, 'Effect'), Span(10, 11, 'Severity'))
  document = Document('n', 'e a b 5 r s', spans, tuple(
    Relation(spans[i].type, 0, i) for i in range(1, 6)))
  (mapped,), counts = apply_mapping([document], read_mapping('phee'))
  assert {(r.type, mapped.spans[r.head], mapped.spans[r.tail].start) for r in mapped.relations} == {
    ('dosage', Span(2, 3, 'drug'), 6), ('dosage', Span(4, 5, 'drug'), 6),
    ('severity', Span(8, 9, 'problem'), 10)}
  assert counts['unmapped_relations'] == 3  # the three that lead to the entities themselves


def test_an_attribute_is_the_nearest_cue_of_its_sentence():
  text = 'Not seen. No cough, no fever without chills. Afebrile.'
  spans = [Span(text.index(word), text.index(word) + len(word), 'Sign_symptom')
           for word in ('cough', 'fever', 'Afebrile')]
  links = tuple(Relation('POLARITY=NEG', i, i) for i in range(3)) + (Relation('TREND=INC', 0, 0),)
  (mapped,), counts = apply_mapping(
    [Document('n', text, tuple(spans), links)], read_mapping('maccrobat2020'))
  assert [(r.type, r.head, text[slice(*mapped.spans[r.tail][:2])], mapped.spans[r.tail].start)
          for r in mapped.relations] == [('negation', 0, 'No', 10), ('negation', 1, 'no', 20)]
  assert (counts['attributes_without_cue'], counts['unmapped_attributes']) == (1, 1)


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_mappings_yield_only_the_schema(name):
  mapping = read_mapping(name)
  assert set(mapping.types) == set(mapping.entities.values()) <= set(ENTITY_TYPES)
  for kind, modifiers in mapping.modifiers.items():
    assert kind in mapping.types and set(modifiers) <= set(MODIFIER_TYPES[kind])


def test_the_schema_itself_is_kept_whole():
  assert read_mapping('schema').modifiers == MODIFIER_TYPES
