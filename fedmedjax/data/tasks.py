"""What a model is asked about a site's notes: the tasks, the styles of answers, and their words.

One sentence is an example of entity recognition, one (sentence, main entity) pair an example of
relation extraction; its input marks that entity (docs/methods.md, section 5). An answer is written
as span markup or as a JSON list, see `data/answers/`. A site is asked for what it annotates and for
nothing else: what it left out is neither in its prompt nor in its score.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from fedmedjax.data import relations
from fedmedjax.data.answers import json_list, markup
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.types import (
  ENTITY_TYPES,
  MODIFIER_TYPES,
  Document,
  Example,
  InputError,
  Parse,
  SiteCorpus,
  Span,
)

# Per type: an example, and a definition. Few words on purpose: every step of training pays for
# each token of the instruction.
_ENTITIES = {
  'problem': ('fever', 'a disease, symptom, abnormal finding or injury'),
  'treatment': ('dialysis', 'a procedure, device or therapy, not a drug'),
  'test': ('chest x-ray', 'a laboratory test, imaging study, vital sign or examination'),
  'drug': ('aspirin', 'a medication, by name or by class'),
}

INPUT_HEADING = '### Input Text:\n'  # the last line of every instruction

# Types asked for, by the type of the main entity that they are asked about; '' where there is
# none, in entity recognition.
Asked = Mapping[str, tuple[str, ...]]


class Style(NamedTuple):
  """How answers are written: a value of config.data.style."""

  shown: Callable[[str, str], str]                       # (type, words) -> a line of the guide
  write: Callable[[str, Sequence[Span]], str]            # (text, spans) -> the answer
  parse: Callable[[str, str, Sequence[str]], Parse]      # (generated, text, types)


STYLES = {
  'markup': Style(markup.shown, markup.write, markup.parse),
  'json': Style(json_list.shown, json_list.write, json_list.parse),
}


class Task(NamedTuple):
  """A value of config.data.tasks."""

  asked: Callable[[SiteCorpus], Asked]  # what a site annotates of it
  find: Callable[[Document, Asked], tuple[list[Example], Mapping[str, int]]]  # and counts
  guide: Mapping[str, tuple[str, str]]  # type -> (example, definition), in the order of prompts
  words: Mapping[str, str]              # style -> the sentence that asks
  given: str = ''                       # the task whose entities are this one's main entities


def _entities(corpus: SiteCorpus) -> Asked:
  unknown = [name for name in corpus.types if name not in ENTITY_TYPES]
  if unknown or not corpus.types:
    raise InputError(
      f'site {corpus.name!r}: entity types {tuple(corpus.types)!r}: some of '
      f'{", ".join(ENTITY_TYPES)} are allowed')
  return {'': tuple(corpus.types)}


TASKS = {
  'ner': Task(
    _entities, lambda document, asked: sentence_examples(document, asked['']), _ENTITIES, {
      'markup': 'Copy the clinical text word for word and put a tag around every entity, as in:',
      'json': 'List every entity of the clinical text, word for word and in order, as JSON like:',
    }),
  're': Task(
    relations.annotated, relations.relation_examples, relations.GUIDE, {
      'markup':
        'One entity of the clinical text is tagged. Copy the text word for word without that tag '
        'and put a tag around every word or phrase that modifies this entity, as in:',
      'json':
        'One entity of the clinical text is tagged. List every word or phrase that modifies this '
        'entity, word for word and in order, as JSON like:',
    }, given='ner'),
}


class Ask(NamedTuple):
  """One task at one site. The order of a site's types does not matter: sites that annotate the
  same share one instruction."""

  task: str
  given: str
  asked: Asked
  types: tuple[str, ...]  # all of `asked`, in the order of prompts; what is scored over
  find: Callable[[Document], tuple[list[Example], Mapping[str, int]]]
  instruction: str        # the prompt in front of every example
  render: Callable[[Example], tuple[str, str]]  # what follows it, and what is to be written
  parse: Callable[[str, Example], Parse]        # (generated, example)
  pieces: tuple[str, ...]  # what an answer puts around the words that it copies


def ask(task: str, corpus: SiteCorpus, style: str = 'markup') -> Ask:
  """What `corpus` is asked in a task; `types` is empty where it annotates nothing of it.

  Args:
    task: a key of TASKS.
    corpus: the site.
    style: a key of STYLES.

  Raises:
    InputError: the site has an entity type that is unknown, or none.
  """
  row, form = TASKS[task], STYLES[style]
  asked = row.asked(corpus)
  types = tuple(name for name in row.guide if any(name in kinds for kinds in asked.values()))
  return Ask(
    task, row.given, asked, types, partial(row.find, asked=asked),
    _instruction(row, form, style, asked, types, corpus.definitions), partial(_render, form),
    partial(_parse, form, asked, types), _pieces(form, types))


def asked_types(task: str, corpora: Sequence[SiteCorpus]) -> tuple[str, ...]:
  """The types that any of `corpora` is asked for, in the order of prompts."""
  found = {name for corpus in corpora for name in ask(task, corpus).types}
  return tuple(name for name in TASKS[task].guide if name in found)


def _instruction(
  row: Task, form: Style, style: str, asked: Asked, types: Sequence[str],
  definitions: Mapping[str, str],
) -> str:
  def defined(name: str) -> str:
    # Said only where it is not all that can have it: the others were not annotated.
    able = [main for main in asked if name in MODIFIER_TYPES.get(main, ())]
    some = [main for main in able if name in asked[main]]
    of = '' if len(some) == len(able) else f' (of a {" or ".join(some)})'
    return f'{name}: {definitions.get(name, row.guide[name][1])}{of}'

  return '\n'.join([
    '### Task:', row.words[style], *(form.shown(name, row.guide[name][0]) for name in types),
    '### Definitions:', *map(defined, types), INPUT_HEADING])


def _pieces(form: Style, types: Sequence[str]) -> tuple[str, ...]:
  """What stands before and behind an entity of each type."""
  word = 'word'
  return tuple(dict.fromkeys(
    piece for name in types for piece in form.shown(name, word).split(word)))


def _render(form: Style, example: Example) -> tuple[str, str]:
  main = () if example.main is None else (example.main,)
  return (
    f'{markup.write(example.text, main)}\n### Output Text:\n',
    form.write(markup.guard(example.text), example.entities))


def _parse(form: Style, asked: Asked, types: Sequence[str], generated: str, example: Example):
  return form.parse(generated, markup.guard(example.text), judged(asked, types, example))


def judged(asked: Asked, types: Sequence[str], example: Example) -> list[str]:
  """Those of `types` that can be right or wrong in an example: not those that its main entity can
  have but whose annotation lacks there."""
  main = '' if example.main is None else example.main.type
  return [
    name for name in types
    if name in asked.get(main, ()) or name not in MODIFIER_TYPES.get(main, ())]
