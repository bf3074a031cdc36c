"""Prompts of a study's own words, in TOML: for each task and style of answers, and definitions.

    [definitions]                      # optional: of types of the schema
    drug = "any medication"

    [ner.markup]                       # a task and a style
    sentence = "Tag each of {types} in the text, as in:"     # the first sentence alone, or:

    [re.markup]
    prompt = '''                       # all of it
    # Question
    What modifies the tagged entity? Possible are {types}, as in:
    {examples}
    {definitions}
    # Text
    {input}
    # Answer
    '''

What stands before {input} is the instruction, which all examples of a site share; what follows it
ends the question. {examples} and {definitions} are a line for each type that a site is asked for.

The task of rows, `text`, has neither styles nor types:

    [text]
    prompt = '''
    Answer the question about the note with yes or no.
    {input}
    Answer:
    '''
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedjax.data.formats.files import read_text
from fedmedjax.data.schema import wrong_line
from fedmedjax.data.text_task import TEXT
from fedmedjax.data.toml_file import parse_toml
from fedmedjax.types import InputError, Schema, Wording

FILE = 'prompt.toml'  # the wording of a run, in its folder
# Braces around words with quotes are an answer in JSON.
_PLACEHOLDER = re.compile(r'\{\s*([^{}"\'\n]*?)\s*\}')
_SENTENCE, _PROMPT = ('types',), ('types', 'definitions', 'examples', 'input')
_KEYS = ('sentence', 'prompt')


def with_wording(
  schema: Schema, name: str | Path, tasks: Sequence[str], styles: Sequence[str]
) -> Schema:
  """The schema with the prompts and definitions of a file.

  Args:
    schema: of the study.
    name: of the file; '' = none.
    tasks, styles: the names that there are; TEXT has no styles.

  Raises:
    InputError: the file cannot be read, or an entry is not allowed; with file and line.
  """
  if not str(name):
    return schema
  path = Path(os.path.expanduser(name))
  try:
    text = read_text(path)
  except InputError as error:
    raise InputError(f'config.data.prompt={str(name)!r}: {error}') from None
  return parse_wording(text, str(path), schema, tasks, styles)


def parse_wording(
  text: str, source: str, schema: Schema, tasks: Sequence[str], styles: Sequence[str]
) -> Schema:
  """The schema with what a file's text says; `source` is the file, for errors."""
  def wrong(entry: str, said: str) -> InputError:
    lines = text.split('\n')
    key = entry.split('.')[-1]
    line = next((i for sign in (f'[{entry}]', key) for i, line in enumerate(lines, 1)
                 if sign in line.replace(' ', '')), 1)
    return InputError(f'{source}:{line}: [{entry}]: {said}')

  table = parse_toml(text, source)
  definitions, rows = table.pop('definitions', {}), []
  if not isinstance(definitions, dict):
    raise wrong('definitions', 'is no table')
  for kind, said in definitions.items():
    if kind not in (*schema.types, *schema.kinds):
      raise wrong(f'definitions.{kind}', 'is no type of the schema; they are '
                  f'{", ".join((*schema.types, *schema.kinds))}')
    if fault := wrong_line('definition', said):
      raise wrong(f'definitions.{kind}', fault)
  for task, by_style in table.items():
    if task not in (*tasks, TEXT) or not isinstance(by_style, dict):
      raise wrong(task, f'{", ".join(("definitions", *tasks, TEXT))} are allowed, as tables')
    for style, row in ([('', by_style)] if task == TEXT else by_style.items()):
      entry = f'{task}.{style}' if style else task
      if style not in styles and style or not isinstance(row, dict):
        raise wrong(entry, f'{", ".join(styles)} are allowed, as tables')
      if fault := _fault(row) if style else _row_fault(row):
        raise wrong(entry, fault)
      before, _, after = row.get('prompt', '').partition('{input}')
      rows.append(Wording(task, style, row.get('sentence', ''), before, after))
  if not rows and not definitions:
    raise InputError(
      f'{source}:1: no [TASK.STYLE] with a prompt or a sentence, and no [definitions]')
  return schema._replace(
    wording=tuple(rows), words=text,
    entities=tuple(_defined(one, definitions) for one in schema.entities),
    relations=tuple(_defined(one, definitions) for one in schema.relations))


def _defined(one: Any, definitions: Mapping[str, str]) -> Any:
  """A type with the definition that is said of it, if one is."""
  return one._replace(definition=definitions.get(one.name, one.definition))


def _row_fault(row: Mapping[str, Any]) -> str:
  """What is not allowed about the entry of the task of rows, or ''."""
  if [*row] != ['prompt']:
    return f'{", ".join(row) or "nothing"}: prompt is allowed'
  return _text_fault('prompt', row['prompt'], ('input',)) or _input_fault(row['prompt'])


def _text_fault(key: str, value: Any, allowed: Sequence[str]) -> str:
  """What is not allowed about a text with placeholders, or ''."""
  if not isinstance(value, str) or not value.strip():
    return f'{key}={value!r}: a text is allowed'
  for found in _PLACEHOLDER.finditer(value):
    if found[1] not in allowed or found[0] != f'{{{found[1]}}}':
      return (f'{key} has the unknown placeholder {found[0]!r}; allowed are '
              + ' '.join(f'{{{name}}}' for name in allowed))
  return ''


def _input_fault(prompt: str) -> str:
  """Whether {input} is missing from a prompt, or there twice."""
  count = prompt.count('{input}')
  return '' if count == 1 else f'prompt has {{input}} {count} times; once is needed'


def _fault(row: Mapping[str, Any]) -> str:
  """What is not allowed about the entry of a task and style, or ''."""
  if len(row) != 1 or next(iter(row)) not in _KEYS:
    return f'{", ".join(row) or "nothing"}: one of {" and ".join(_KEYS)} is allowed'
  ((key, value),) = row.items()
  if fault := _text_fault(key, value, _SENTENCE if key == 'sentence' else _PROMPT):
    return fault
  if key == 'sentence':
    return wrong_line(key, value)
  if fault := _input_fault(value):
    return fault
  before, _, after = value.partition('{input}')
  if not before.strip():
    return 'prompt has nothing before {input}; the words that all examples share are needed'
  if behind := _PLACEHOLDER.search(after):
    return f'prompt has {behind[0]} behind {{input}}; what all examples share stands before it'
  return ''


def filled(before: str, values: Mapping[str, str]) -> str:
  """A text with its placeholders filled; what is filled in is not looked at again."""
  return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), before)
