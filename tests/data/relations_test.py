"""Relation examples: which modifiers belong to which main entity, and the text round trip."""

import pytest

from fedmedjax.data import relations
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort
from fedmedjax.data.tasks import STYLES, ask
from fedmedjax.types import MODIFIER_TYPES, PAPER, Document, Relation, SiteCorpus, Span

TEXT = 'Denies chest pain. On aspirin 81 mg daily for fever.'


def note(*links):
  """Spans of TEXT: 0 chest pain, 1 aspirin, 2 fever, 3 Denies, 4 81 mg, 5 daily, 6 81."""
  words = (
    ('chest pain', 'problem'), ('aspirin', 'drug'), ('fever', 'problem'), ('Denies', 'negation'),
    ('81 mg', 'strength'), ('daily', 'frequency'), ('81', 'strength'))
  spans = tuple(Span(TEXT.index(w), TEXT.index(w) + len(w), kind) for w, kind in words)
  return Document('n', TEXT, spans, tuple(Relation(spans[t].type, h, t) for h, t in links))


def test_one_example_per_main_entity_with_its_modifiers_only():
  asked = ask('re', SiteCorpus('a', ('problem', 'drug'), (), (), {}, MODIFIER_TYPES))
  found, counts = asked.find(note((0, 3), (1, 4), (1, 5)))
  assert [asked.render(example) for example in found] == [
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
    note((2, 3), (1, 4), (1, 6), (0, 4)),
    {kind: MODIFIER_TYPES[kind] for kind in ('problem', 'drug')})
  assert counts == {'mains': 3, 'modifiers': 1, 'nested': 1, 'crossing': 1, 'invalid_pairs': 1}
  assert [len(example.entities) for example in found] == [0, 1, 0]


def test_a_main_entity_that_crosses_a_sentence_is_counted():
  text = 'Severe chest\n\nPain today.'
  found, counts = relations.relation_examples(
    Document('n', text, (Span(7, 18, 'problem'), Span(0, 6, 'severity')),
             (Relation('severity', 0, 1),)), {'problem': ('severity',)})
  assert found == [] and counts == {'crossing_mains': 1, 'crossing': 1}


def test_types_that_were_not_annotated_make_no_examples():
  """Neither other entities, nor modifiers whose type is not asked of this one."""
  found, counts = relations.relation_examples(
    note((0, 3), (1, 4), (1, 5)), {'drug': ('strength',)})
  assert [(e.main.type, [m.type for m in e.entities]) for e in found] == [('drug', ['strength'])]
  assert counts['invalid_pairs'] == 1


def test_of_overlapping_modifiers_a_whole_one_goes_before_one_in_pieces():
  document = note((1, 4), (1, 6))._replace(covering=((30, 35),))  # 81 mg and, within it, 81
  (example,), counts = relations.relation_examples(document, {'drug': ('strength',)})
  assert [TEXT[19:][s.start:s.end] for s in example.entities] == ['81'] and counts['nested'] == 1


def test_an_external_cohort_is_asked_as_the_site_that_asks_for_most():
  """Its own annotation says what it is judged by and nothing of what the prompt names."""
  def site(name, **modifiers):
    return SiteCorpus(name, ('problem', 'drug'), (note((0, 3)),), (note((1, 5)),), {}, modifiers)

  few, most = site('few', problem=('negation',)), site(
    'most', problem=('negation', 'severity'), drug=('strength', 'route'))
  for own, judged in (
      (None, {'problem': ('negation',)}), ({'drug': ('route', 'form')}, {'drug': ('route',)}),
      ({}, {}), (MODIFIER_TYPES, {
        'problem': ('severity', 'negation'), 'drug': ('strength', 'route')})):
    cohort = relations.asked_like(site('out')._replace(modifiers=own), [few, most, few])
    for style in STYLES:
      asked = ask('re', cohort, style)
      trained = ask('re', most, style)
      assert (asked.instruction, asked.pieces) == (trained.instruction, trained.pieces)
      assert asked.shown == trained.asked
    assert asked.asked == judged
  # Entities are asked as before; without a site that knows modifiers nothing changes.
  assert ask('ner', cohort).instruction == ask('ner', site('out')).instruction
  plain = site('out', drug=('route',))
  assert relations.asked_like(plain, [site('none')]) == plain


@pytest.mark.parametrize('name', COHORTS)
def test_cohorts_round_trip(name):
  """What is rendered is parsed back, for every main entity of a cohort."""
  corpus = generate_cohort(name, seed=1)
  asked, modifiers = ask('re', corpus), 0
  for document in (*corpus.train, *corpus.test):
    found, counts = asked.find(document)
    modifiers += counts['modifiers']
    assert not counts['invalid_pairs']
    for example in found:
      parsed = asked.parse(asked.render(example)[1], example)
      assert parsed.spans == example.entities and parsed.copied and not parsed.failed
      main = example.main
      place = Span(example.start + main.start, example.start + main.end, main.type)
      assert place in document.spans
  assert modifiers > 20


def test_what_was_annotated_is_what_occurs_unless_it_is_told():
  """Of the 22 pairs, for entity types of the site; a link that is no pair does not count."""
  assert sum(map(len, MODIFIER_TYPES.values())) == 22 and len(PAPER.kinds) == 16
  notes = (note((0, 3), (1, 4), (0, 4)), note((1, 5)))
  site = SiteCorpus('a', ('problem', 'drug'), notes[:1], notes[1:], {})
  assert relations.annotated(site) == {'problem': ('negation',), 'drug': ('strength', 'frequency')}
  assert relations.annotated(site._replace(types=('problem',))) == {'problem': ('negation',)}
  told = {'drug': ('route',), 'test': ('labvalue',), 'problem': ()}
  assert relations.annotated(site._replace(modifiers=told)) == {'drug': ('route',)}
  assert relations.annotated(site._replace(modifiers={})) == {}
