"""What a model is asked about a site's notes: the tasks, the styles of answers, and their words.

One sentence is an example of entity recognition, one (sentence, main entity) pair an example of
relation extraction; its input marks that entity (docs/methods.md). An answer is written as span
markup or as a JSON list, see `answers/markup.py` and `answers/json_list.py`. A site is asked for
the types that it annotates and for no others: those are neither in its prompt nor in its score.

In a study's own task, TEXT, an example is a row: its input is what the model reads behind the
instruction, its target what it is to write. Nothing is looked for in either.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from fedmedjax.data import relations
from fedmedjax.data.answers import json_list, markup
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.text_task import TEXT, row_examples
from fedmedjax.data.wording import filled
from fedmedjax.types import (
  Document,
  EntityType,
  Example,
  InputError,
  Parse,
  RelationType,
  Schema,
  SiteCorpus,
  Span,
  Wording,
)

INPUT_HEADING = '### Input Text:\n'  # the last line of every instruction
# What ends a question; both are so unless a study has words of its own.
OUTPUT_HEADING = '\n### Output Text:\n'

# Types asked for, by the type of the main entity that they are asked about; '' where there is
# none, in entity recognition.
Asked = Mapping[str, tuple[str, ...]]


class Style(NamedTuple):
  """How answers are written and read: a value of config.data.style."""

  shown: Callable[[str, str], str]                       # (type, words) -> a line of the guide
  write: Callable[[str, Sequence[Span]], str]            # (text, spans) -> the answer
  parse: Callable[[str, str, Sequence[str], Span | None], Parse]  # (generated, text, types, main)


STYLES = {
  'markup': Style(markup.shown, markup.write, markup.parse),
  'json': Style(json_list.shown, json_list.write, json_list.parse),
}


class Task(NamedTuple):
  """A value of config.data.tasks."""

  asked: Callable[[SiteCorpus], Asked]  # (site) -> the types that it annotates
  find: Callable[[Document, Asked], tuple[list[Example], Mapping[str, int]]]  # -> examples, counts
  guide: Callable[[Schema], Sequence[EntityType | RelationType]]  # -> in the order of prompts
  words: Mapping[str, str]              # style -> the prompt's first sentence, which asks
  given: str = ''                       # the task whose entities are this one's main entities


def _entities(corpus: SiteCorpus) -> Asked:
  """The entity types that a site annotates; raises InputError where one is unknown, or none."""
  if any(note.target is not None for note in (*corpus.train, *corpus.test)):
    raise InputError(
      f"site {corpus.name!r}: holds rows of input and target; config.data.tasks=('text',) takes "
      'them')
  known = corpus.schema.types
  unknown = [name for name in corpus.types if name not in known]
  if unknown or not corpus.types:
    raise InputError(
      f'site {corpus.name!r}: entity types {tuple(corpus.types)!r}: some of '
      f'{", ".join(known)} are allowed')
  return {'': tuple(corpus.types)}


TASKS = {
  'ner': Task(
    _entities, lambda document, asked: sentence_examples(document, asked['']),
    lambda schema: schema.entities, {
      'markup': 'Copy the clinical text word for word and put a tag around every entity, as in:',
      'json': 'List every entity of the clinical text, word for word and in order, as JSON like:',
    }),
  're': Task(
    relations.annotated, relations.relation_examples, lambda schema: schema.relations, {
      'markup':
        'One entity of the clinical text is tagged. Copy the text word for word without that tag '
        'and put a tag around every word or phrase that modifies this entity, as in:',
      'json':
        'One entity of the clinical text is tagged. List every word or phrase that modifies this '
        'entity, word for word and in order, as JSON like:',
    }, given='ner'),
}


# What stands between a row's input and its target, unless a study has words of its own.
_ROW_END = '\n'


class Ask(NamedTuple):
  """One task at one site: its prompt, and how its answers are read.

  The order of a site's types does not matter: sites that annotate the same types share one
  instruction.
  """

  task: str
  given: str              # see `Task.given`
  asked: Asked            # what can be right or wrong
  shown: Asked            # what the prompt names: `asked`, or more (see `SiteCorpus.prompted`)
  types: tuple[str, ...]  # all types of `asked`, in the order of prompts; scores are over these
  find: Callable[[Document], tuple[list[Example], Mapping[str, int]]]  # -> examples, counts
  instruction: str        # the prompt in front of every example
  render: Callable[[Example], tuple[str, str]]  # -> (input after the instruction, target)
  # (generated, example); None in TEXT, whose answers are scored as they are
  parse: Callable[[str, Example], Parse] | None
  pieces: tuple[str, ...]  # texts that an answer puts around the words that it copies
  heading: str = INPUT_HEADING  # of the question, its instruction's last line
  after: str = OUTPUT_HEADING   # what ends the question
  # (input, target) of solved examples that stand between the instruction and every question.
  shots: tuple[tuple[str, str], ...] = ()


def ask(task: str, corpus: SiteCorpus, style: str = 'markup') -> Ask:
  """One task at one site; `types` is empty where the site annotates no type of the task.

  Args:
    task: a key of TASKS, or TEXT.
    corpus: the site.
    style: a key of STYLES; it does not matter to TEXT.

  Raises:
    InputError: the site has an unknown entity type, or no type at all; or rows where the task is of
      notes, or notes where it is of rows.
  """
  if task == TEXT:
    return _ask_rows(corpus)
  row, form = TASKS[task], STYLES[style]
  asked = row.asked(corpus)
  shown = corpus.prompted if row.given and corpus.prompted else asked
  guide = row.guide(corpus.schema)
  named = [one for one in guide if any(one.name in kinds for kinds in shown.values())]
  types = tuple(one.name for one in guide if any(one.name in kinds for kinds in asked.values()))
  own = next((one for one in corpus.schema.wording if one[:2] == (task, style)), None)
  instruction = _instruction(row.words[style], own, form, shown, named, corpus)
  after = own.after if own and own.before else OUTPUT_HEADING
  return Ask(
    task, row.given, asked, shown, types, partial(row.find, asked=asked), instruction,
    partial(_render, form, after), partial(_parse, form, asked, types),
    _pieces(form, [one.name for one in named]), instruction.splitlines(keepends=True)[-1], after)


def _ask_rows(corpus: SiteCorpus) -> Ask:
  """The task TEXT at a site."""
  if any(note.target is None for note in (*corpus.train, *corpus.test)):
    raise InputError(
      f"site {corpus.name!r}: holds notes; config.data.tasks=('text',) takes sites of rows "
      "(format 'rows' of config.data.folders) only: leave it out of config.data.sites, external "
      '(external=() if you did not name it) and server_validation')
  own = next((one for one in corpus.schema.wording if one.task == TEXT), None)
  before, after = (own.before, own.after) if own else ('', _ROW_END)
  asked = {'': (TEXT,)}
  return Ask(
    TEXT, '', asked, asked, (TEXT,), row_examples, before,
    lambda example: (f'{example.text}{after}', example.target), None, (),
    before.splitlines(keepends=True)[-1] if before else '', after)


def asked_types(task: str, corpora: Sequence[SiteCorpus]) -> tuple[str, ...]:
  """The types that any of `corpora` is asked for in a task, in the order of prompts."""
  names = {name for corpus in corpora for name in ask(task, corpus).types}
  # The sites of a study have one schema.
  return tuple(one.name for one in TASKS[task].guide(corpora[0].schema) if one.name in names)


def _instruction(
  words: str, own: Wording | None, form: Style, asked: Asked,
  named: Sequence[EntityType | RelationType], corpus: SiteCorpus,
) -> str:
  """The prompt: the sentence that asks, an example of each type, and definitions.

  Args:
    words: the usual sentence.
    own: the study's own words, if it has any.
    form: of answers.
    asked: what the prompt names.
    named: its types.
    corpus: the site.
  """
  pairs = corpus.schema.modifiers

  def defined(one: EntityType | RelationType) -> str:
    # Main entities are named only where not all that can have the modifier were annotated with it.
    able = [main for main in asked if one.name in pairs.get(main, ())]
    some = [main for main in able if one.name in asked[main]]
    of = '' if len(some) == len(able) else f' (of a {" or ".join(some)})'
    return f'{one.name}: {corpus.definitions.get(one.name, one.definition)}{of}'

  examples = [form.shown(one.name, one.example) for one in named]
  definitions = [*map(defined, named)]
  values = {'types': ', '.join(one.name for one in named), 'examples': '\n'.join(examples),
            'definitions': '\n'.join(definitions)}
  if own and own.before:
    return filled(own.before, values)
  return '\n'.join([
    '### Task:', filled(own.sentence, values) if own else words, *examples,
    '### Definitions:', *definitions, INPUT_HEADING])


def _pieces(form: Style, types: Sequence[str]) -> tuple[str, ...]:
  """The texts that stand before and after an entity of each type in an answer."""
  word = '\uffff'  # in no name of a type
  return tuple(dict.fromkeys(
    piece for name in types for piece in form.shown(name, word).split(word)))


def _render(form: Style, after: str, example: Example) -> tuple[str, str]:
  """(the input after the instruction, the target) of an example."""
  main = () if example.main is None else (example.main,)
  return (
    f'{markup.write(example.text, main)}{after}',
    form.write(markup.guard(example.text), example.entities))


def _parse(form: Style, asked: Asked, types: Sequence[str], generated: str, example: Example):
  return form.parse(
    generated, markup.guard(example.text), judged(asked, types, example), example.main)


def judged(asked: Asked, types: Sequence[str], example: Example) -> list[str]:
  """Those of `types` that can be right or wrong in an example.

  Left out are types that its main entity cannot have, in scores as in annotations of new notes, and
  those that were not annotated of it.
  """
  main = '' if example.main is None else example.main.type
  return [name for name in types if name in asked.get(main, ())]
