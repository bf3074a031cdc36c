"""Schemas: the types that a study asks for, in TOML; of the study's own, or shipped ones.

    [entities.Disease]                 # the name, as prompts, answers and scores have it
    definition = "a disease or symptom"
    example = "hepatitis"
    colour = "#d6e9f8"                 # optional: on pages

    [relations.CID]                    # optional: types of modifiers
    definition = "a disease that the chemical induces"
    example = "hepatitis"
    of = ["Chemical"]                  # entity types that can have it

Types stand in prompts in the order of the file.
"""

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedmedjax.data.formats.files import read_text
from fedmedjax.data.toml_file import parse_toml
from fedmedjax.types import PAPER, EntityType, InputError, RelationType, Schema

FILE = 'schema.toml'  # the schema of a run, in its folder
_FOLDER = resources.files('fedmedjax.data').joinpath('schemas')
SHIPPED = sorted(
  file.name.removesuffix('.toml') for file in _FOLDER.iterdir() if file.name.endswith('.toml'))
_KEYS = {
  'entities': ('definition', 'example', 'colour'), 'relations': ('definition', 'example', 'of')}
_WORDS, _LETTERS = 100, 60  # most words of a definition, most characters of a name
# Markup, lists of names on a command line, and the signs that stand for a tag in a sentence.
_FORBIDDEN = '<>",\u2039'
# What reports call the given main entity, and the class of all modifiers.
_RESERVED = ('main', 'modifier')


def read_schema(name: str | Path) -> Schema:
  """Reads a schema.

  Args:
    name: of a shipped one (`SHIPPED`), or the path of a file whose name ends in .toml; '' = the
      paper's.

  Raises:
    InputError: there is no such schema, or an entry of it is not allowed; with file and line.
  """
  if not str(name):
    return PAPER
  if str(name).endswith('.toml'):
    path = Path(os.path.expanduser(name))
  elif str(name) in SHIPPED:
    path = Path(str(_FOLDER.joinpath(f'{name}.toml')))
  else:
    raise InputError(
      f'config.data.schema={str(name)!r}: one of {", ".join(SHIPPED)}, a .toml file, or \'\' for '
      "the paper's is allowed")
  try:
    text = read_text(path)
  except InputError as error:
    raise InputError(f'config.data.schema={str(name)!r}: {error}') from None
  return parse_schema(text, str(path))


def parse_schema(text: str, source: str) -> Schema:
  """The schema that a file's text says; `source` is the file, for errors.

  Raises:
    InputError: an entry is not allowed, or it is no TOML; one line with file and line.
  """
  def wrong(section: str, name: Any, said: str) -> InputError:
    entry = f'[{section}.{name}]' if str(name).isprintable() else f'[{section}.{name!r}]'
    return InputError(f'{source}:{_line(text, section, str(name))}: {entry}: {said}')

  table = parse_toml(text, source)
  rows = {}
  for section, entries in table.items():
    if section not in _KEYS:
      raise InputError(f'{source}:{_line(text, section)}: {section!r} is unknown; '
                       f'{" and ".join(_KEYS)} are allowed')
    if not isinstance(entries, dict):
      raise InputError(f'{source}:{_line(text, section)}: {section!r} is no table such as '
                       f'[{section}.NAME]')
    for name, row in entries.items():
      if said := _fault(section, name, row):
        raise wrong(section, name, said)
    rows[section] = entries
  if not rows.get('entities'):
    raise InputError(f'{source}:1: no [entities.NAME] with a definition and an example')
  seen: dict[str, str] = {}
  for section, name in [(part, name) for part in _KEYS for name in rows.get(part, {})]:
    if (other := seen.setdefault(plain_name(name).casefold(), name)) != name or (
        section == 'relations' and name in rows['entities']):
      raise wrong(section, name, f'{other!r} has this name already (case and other signs than '
                  'letters, digits, _ and - do not tell names apart)')
  types = list(rows['entities'])
  for name, row in rows.get('relations', {}).items():
    if unknown := [of for of in row['of'] if of not in types]:
      raise wrong('relations', name, f'of={row["of"]!r}: {unknown[0]!r} is no entity type of it; '
                  f'they are {", ".join(types)}')
  schema = Schema(
    tuple(EntityType(name, **row) for name, row in rows['entities'].items()),
    tuple(RelationType(name, **row | {'of': tuple(row['of'])})
          for name, row in rows.get('relations', {}).items()), source, text)
  _check_pairs(schema, wrong)
  return schema


def plain_name(name: str) -> str:
  """A type's name as formats have it that allow letters, digits, _ and - only, such as brat."""
  return re.sub(r'[^\w-]', '_', name)


def wrong_line(key: str, value: Any) -> str:
  """What is not allowed about a text of one line, or ''."""
  if not isinstance(value, str) or not value.strip() or not value.isprintable():
    return f'{key}={value!r}: one line of text is allowed'
  if (words := len(value.split())) > _WORDS:
    return f'{key} has {words} words; at most {_WORDS} are allowed, since every prompt has them'
  return ''


def _line(text: str, section: str, name: str = '') -> int:
  """The line where an entry begins, or the first that has its name."""
  lines = text.split('\n')
  heading = re.compile(rf'\s*\[\s*{section}\s*\.\s*["\']?{re.escape(name)}["\']?\s*\]')
  return next(
    (i for find in (heading.match, lambda line: (name or section) in line)
     for i, line in enumerate(lines, 1) if find(line)), 1)


def _fault(section: str, name: str, row: Any) -> str:
  """What is not allowed about an entry, or ''."""
  if not name.strip() or name != name.strip():
    return 'a name is not empty, and has no blanks around it'
  if not name.isprintable() or any(sign in name for sign in _FORBIDDEN):
    return f'a name is one line without {" ".join(_FORBIDDEN)}'
  if len(name) > _LETTERS:
    return f'a name has at most {_LETTERS} characters'
  if name.casefold() in _RESERVED:
    return f'the names {" and ".join(_RESERVED)} have a meaning in reports; choose another'
  keys = _KEYS[section]
  if not isinstance(row, dict):
    return f'is no table with {", ".join(keys)}'
  if unknown := [key for key in row if key not in keys]:
    return f'{unknown[0]!r} is unknown; {", ".join(keys)} are allowed'
  if missing := [key for key in keys if key not in row and key != 'colour']:
    return f'{missing[0]!r} is missing'
  return (wrong_line('definition', row['definition']) or wrong_line('example', row['example'])
          or _wrong_value(row))


def _wrong_value(row: Mapping[str, Any]) -> str:
  """What is not allowed about the colour or `of`, or ''."""
  colour, of = row.get('colour', ''), row.get('of', ['x'])
  if not isinstance(colour, str) or colour and not re.fullmatch('#[0-9a-fA-F]{6}', colour):
    return f"colour={colour!r}: such as '#d6e9f8' is allowed"
  if not isinstance(of, list) or not of or not all(isinstance(name, str) for name in of):
    return f'of={of!r}: a list of entity types is allowed'
  if len(set(of)) < len(of):
    return f'of={of!r}: names a type twice'
  return ''


def _check_pairs(schema: Schema, wrong) -> None:
  """Raises InputError where the name of a pair, 'drug.route', could mean two things."""
  seen: Sequence[str] = list(schema.types)
  for main, kinds in schema.modifiers.items():
    for kind in kinds:
      if f'{main}.{kind}' in seen:
        raise wrong('relations', kind, f'{main}.{kind} is the name of two things; take out a dot')
      seen = [*seen, f'{main}.{kind}']
