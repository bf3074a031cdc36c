"""Prompts of a study's own words: what is read, asked and refused."""

import re
from pathlib import Path

import pytest

from fedmedjax.data import tasks
from fedmedjax.data.wording import parse_wording, with_wording
from fedmedjax.types import MODIFIER_TYPES, PAPER, Example, InputError, SiteCorpus, Span

_WORDS = """
[definitions]
drug = "any medication"

[ner.markup]
sentence = "Tag each of {types}, as in:"

[re.markup]
prompt = '''
# Question
What modifies it? Of {types}:
{examples}
Meaning {definitions}
{"not": "a placeholder"}
# Text
{input}
# Answer
'''
"""


def schema(text: str):
  return parse_wording(text, 'own.toml', PAPER, tuple(tasks.TASKS), tuple(tasks.STYLES))


def ask(task: str, style: str = 'markup', **changes):
  return tasks.ask(task, SiteCorpus(
    'ward', ('drug', 'test'), (), (), {}, {'drug': ('route',)}, **{
      'schema': schema(_WORDS)} | changes), style)


def test_own_words_take_the_place_of_ours():
  asked = ask('ner')
  assert asked.instruction == (
    '### Task:\nTag each of test, drug, as in:\n<span class="test">chest x-ray</span>\n'
    '<span class="drug">aspirin</span>\n### Definitions:\ntest: a laboratory test, imaging study, '
    'vital sign or examination\ndrug: any medication\n### Input Text:\n')
  example = Example('n', 0, 'oral aspirin', (Span(0, 4, 'route'),), Span(5, 12, 'drug'))
  asked = ask('re')
  assert asked.instruction == (
    '# Question\nWhat modifies it? Of route:\n<span class="route">by mouth</span>\n'
    'Meaning route: how a drug is given\n{"not": "a placeholder"}\n# Text\n')
  source, target = asked.render(example)
  assert source == 'oral <span class="drug">aspirin</span>\n# Answer\n'
  assert asked.parse(target, example).spans == example.entities
  assert (asked.heading, asked.after) == ('# Text\n', '\n# Answer\n')
  # What a site's mapping says of a type goes before; what the file is silent about stays.
  assert 'drug: here\n' in ask('ner', definitions={'drug': 'here'}).instruction
  assert ask('re', 'json').instruction == ask('re', 'json', schema=PAPER).instruction
  assert with_wording(PAPER, '', (), ()) is PAPER
  # A definition that names a placeholder is not filled in.
  odd = schema(_WORDS.replace('any medication', 'as {input}'))
  assert 'drug: as {input}\n' in ask('ner', schema=odd).instruction
  assert odd.modifiers == MODIFIER_TYPES


def test_the_example_of_the_page():
  """docs/data.md shows the file that its command names; both tasks get its words."""
  root = Path(__file__).parents[2]
  page = (root / 'docs' / 'data.md').read_text().split('### Your own words')[1]
  (shown,) = re.findall(r'^```toml\n(.*?)^```$', page.split('\n## ')[0], re.M | re.S)
  assert shown == (root / 'docs' / 'examples' / 'prompt.toml').read_text()
  asked = ask('ner', schema=schema(shown))
  assert asked.instruction.startswith(
    'You read notes of an emergency department. Copy the note and tag every test, drug:\n<span ')
  assert asked.instruction.endswith('drug: any medicine, also one that was stopped\nNote:\n')
  assert asked.render(Example('n', 0, 'x', ()))[0] == 'x\nTagged note:\n'
  assert ' modifies it (route), as in:\n' in ask('re', schema=schema(shown)).instruction


def prompt(text: str) -> str:
  return f"[ner.markup]\nprompt = '''\n{text}'''\n"


@pytest.mark.parametrize('text, line, words', [
  (prompt('x {kinds} {input}'), 1, "unknown placeholder '{kinds}'; allowed are {types}"),
  (prompt('x { input }'), 1, "unknown placeholder '{ input }'"),
  (prompt('x {entity-types} {input}'), 1, "unknown placeholder '{entity-types}'"),
  (prompt('x {types,} {input}'), 1, "unknown placeholder '{types,}'"),
  (prompt('x {types}'), 1, 'has {input} 0 times; once'),
  (prompt('x {input} {input}'), 1, 'has {input} 2 times; once'),
  (prompt('{input}'), 1, 'nothing before {input}'),
  (prompt('x {input} {types}'), 1, '{types} behind {input}'),
  ('[ner.markup]\nsentence = "x {input}"', 1, "unknown placeholder '{input}'; allowed are {types}"),
  ('[ner.markup]\nsentence = "a\\nb"', 1, 'one line of text'),
  ('[ner.markup]\nsentence = ""', 1, 'a text is allowed'),
  ('[ner.markup]\nsentence = "a"\nprompt = "b {input}"', 1, 'one of sentence and prompt'),
  ('[ner.markup]', 1, 'nothing: one of sentence and prompt'),
  ('[ner.html]\nsentence = "a"', 1, 'markup, json are allowed'),
  ('[nerd.markup]\nsentence = "a"', 1, 'definitions, ner, re, text are allowed'),
  ('ner = 3', 1, 'are allowed, as tables'),
  ('[definitions]\ndose = "d"', 2, '[definitions.dose]: is no type of the schema'),
  ('[definitions]\ndrug = ""', 2, 'one line of text'),
  (f'[definitions]\ndrug = "{"w " * 101}"', 2, '101 words'),
  ('', 1, 'no [TASK.STYLE]'), ('[ner', 1, 'no TOML')])
def test_what_is_no_prompt_is_refused_in_one_line(text, line, words):
  with pytest.raises(InputError) as error:
    schema(text)
  assert str(error.value).startswith(f'own.toml:{line}: ') and words in str(error.value)
  assert '\n' not in str(error.value)
