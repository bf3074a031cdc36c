"""What a site is asked: prompts, examples and answers of both tasks in both styles."""

import json

import pytest

from fedmedjax.data import tasks
from fedmedjax.data.formats.mapping import read_mapping
from fedmedjax.types import ENTITY_TYPES, MODIFIER_TYPES, Example, InputError, SiteCorpus, Span


def corpus(*types, modifiers=MODIFIER_TYPES) -> SiteCorpus:
  return SiteCorpus('ward', types, (), (), {}, modifiers)


EVERY = corpus(*ENTITY_TYPES)


@pytest.mark.parametrize('style', tasks.STYLES)
@pytest.mark.parametrize('task, count, limit', [('ner', 4, 170), ('re', 16, 500)])
def test_instruction_names_the_types_asked_and_no_other(task, count, limit, style):
  every = tasks.ask(task, EVERY, style)
  assert every.instruction.startswith('### Task:\n')
  assert every.instruction.endswith('\n' + tasks.INPUT_HEADING)
  # A GPT-2-like tokenizer makes about one token of 4 characters of prose, fewer of markup.
  assert len(every.instruction) < 4 * limit
  some = tasks.ask(task, corpus('drug', 'test'), style)
  assert some.instruction == tasks.ask(task, corpus('test', 'drug'), style).instruction
  assert len(every.types) == count and set(some.types) < set(every.types)
  line = {'markup': '<span class="{}">', 'json': '{{"entity": "{}", "text": '}[style]
  for name in every.types:
    assert line.format(name) in every.instruction and f'\n{name}: ' in every.instruction
    shown = line.format(name) in some.instruction, f'\n{name}: ' in some.instruction
    assert shown == (name in some.types,) * 2
  with pytest.raises(InputError, match="'ward': entity types .*'dose'.*problem, treatment, test"):
    tasks.ask('ner', corpus('drug', 'dose'))
  with pytest.raises(InputError, match='some of problem'):
    tasks.ask('ner', corpus())


def test_the_words_of_the_quick_start_are_pinned():
  """Every saved adapter knows just these; the public results were made with them."""
  asked = tasks.ask('ner', corpus('drug', 'problem'))
  assert asked.instruction == (
    '### Task:\nCopy the clinical text word for word and put a tag around every entity, as in:\n'
    '<span class="problem">fever</span>\n<span class="drug">aspirin</span>\n### Definitions:\n'
    'problem: a disease, symptom, abnormal finding or injury\n'
    'drug: a medication, by name or by class\n### Input Text:\n')
  example = Example('n1', 40, 'No rash\r\non aspirin', (Span(3, 7, 'problem'),))
  assert asked.render(example) == (
    'No rash\r\non aspirin\n### Output Text:\n',
    'No <span class="problem">rash</span>\r\non aspirin')


def test_a_site_whose_types_mean_something_else():
  """Drugs are among the treatments of i2b2 2010, and its prompt must not deny it."""
  mapping = read_mapping('i2b2_2010')
  asked = tasks.ask('ner', corpus(*mapping.types)._replace(definitions=mapping.definitions))
  usual = tasks.ask('ner', corpus(*mapping.types))
  line = 'treatment: a procedure, device or therapy, not a drug\n'
  assert line in usual.instruction and 'not a drug' not in asked.instruction
  assert asked.instruction == usual.instruction.replace(
    line, 'treatment: a procedure, device, therapy or drug\n')


@pytest.mark.parametrize('style', tasks.STYLES)
def test_answers_are_read_as_they_are_written(style):
  """Also where the sentence holds a tag of its own, which gets a look-alike on both sides."""
  asked = tasks.ask('re', EVERY, style)
  text = 'no "mild" <span>pain\\ in the left knee'
  example = Example('n', 7, text, (
    Span(0, 2, 'negation'), Span(3, 9, 'severity'), Span(25, 38, 'bodyloc')),
    Span(16, 20, 'problem'))
  question, target = asked.render(example)
  assert '<span class="problem">pain</span>' in question
  assert asked.parse(target, example) == (example.entities, False, True, 0)
  plain = example._replace(entities=())
  assert asked.parse(asked.render(plain)[1], plain) == ((), False, True, 0)
  if style == 'json':
    assert json.loads(target)[1] == {'entity': 'severity', 'text': '"mild"'}


def test_pairs_that_were_not_annotated_are_neither_asked_nor_judged():
  """This site annotates negation of problems, not of drugs, and severity. A negation of a drug is
  then neither right nor wrong; a severity of a drug, which no annotation can hold, is left out."""
  site = corpus('problem', 'drug', modifiers={
    'problem': ('negation', 'severity'), 'drug': ('route',)})
  asked = tasks.ask('re', site)
  assert asked.types == ('severity', 'negation', 'route')
  assert 'absent or was not done (of a problem)\n' in asked.instruction
  assert '(of a' not in tasks.ask('re', EVERY).instruction
  output = ('<span class="severity">no</span> <span class="negation">more</span> oral aspirin '
            '<span class="route">now</span>')
  text = 'no more oral aspirin now'
  kinds = {
    main.type: [span.type for span in asked.parse(output, Example('n', 0, text, (), main)).spans]
    for main in (Span(13, 20, 'drug'), Span(13, 20, 'problem'))}
  assert kinds == {
    'drug': ['route'], 'problem': ['severity', 'negation']}
  assert tasks.asked_types('re', [site, corpus('test', modifiers={'test': ('labvalue',)})]) == (
    'severity', 'negation', 'route', 'labvalue')
