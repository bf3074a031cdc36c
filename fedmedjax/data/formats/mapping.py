"""Mappings from the type names of a corpus to those of a schema: small TOML files.

    annotated = ["problem", "drug"]      # optional: types annotated throughout; by default those
                                         # that [entities] yields; of a folder of one's own those
                                         # of them that occur in its notes, and so for modifiers
    [entities]                           # raw type = type
    Disease = "problem"

    [definitions]                        # optional: what a type means there, for the prompt
    problem = "a disease"

    [relations.MODIFY]                   # raw type of the relation
    main = "tail"                        # which end is the main entity; "head" by default
    modifiers = {Severity = "severity", Duration = ["duration", "temporal"]}

    [relations.Has_negation]
    modifiers = "negation"               # whatever the raw type of the modifier

    [relations.CID]                      # between concepts of a document (PubTator): links all
    mentions = "sentence"                # mentions that stand in one sentence; by default "first",
    modifiers = "induced"                # the first mention of each, wherever they stand

    [relations."Treatment.Dosage"]       # of an event, whose main entities are the ends of its
    sibling = "Treatment.Drug"           # relations of this type, from the same head
    modifiers = "dosage"

    [attributes."POLARITY=NEG"]          # of an entity; its modifier is the nearest cue that
    modifier = "negation"                # stands in the same sentence
    cues = ["no", "denies"]

Of several modifiers the first is meant that the main entity can have in the schema. A type that no
row names is dropped and counted; a schema type that no row yields was never annotated there, and
its absence from the notes means nothing (docs/methods.md, partial annotation). The mapping 'schema'
has no file: each type of the schema stands for itself.
"""

import difflib
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.data.formats.files import read_text
from fedmedjax.data.schema import plain_name
from fedmedjax.data.toml_file import parse_toml
from fedmedjax.types import PAPER, InputError, Schema

OWN_NAMES = 'schema'  # the mapping that takes any schema's own names
_FOLDER = resources.files('fedmedjax.data.formats').joinpath('mappings')
FILES = sorted(
  file.name.removesuffix('.toml') for file in _FOLDER.iterdir() if file.name.endswith('.toml'))
SHIPPED = sorted([*FILES, OWN_NAMES])


class Rule(NamedTuple):
  """The meaning of a raw relation; see the top of this file."""

  modifiers: dict[str, tuple[str, ...]]  # the modifier's raw type, '' = any -> modifier types
  main: str = 'head'                     # the end that is the main entity
  sibling: str = ''
  by_sentence: bool = False  # of concepts, all mentions in one sentence rather than the first ones


class Cues(NamedTuple):
  """The meaning of an attribute: the modifier type, and the words that may stand for it."""

  modifier: str
  words: re.Pattern


class Mapping(NamedTuple):
  """The content of a mapping file."""

  source: str                             # the file, for messages
  types: tuple[str, ...]                  # entity types annotated, in the order of the schema
  modifiers: dict[str, tuple[str, ...]]   # entity type -> modifiers of it that were annotated
  entities: dict[str, str]                # raw type -> type
  relations: dict[str, Rule]
  attributes: dict[str, Cues]
  definitions: dict[str, str]             # type -> what it means there, in the prompt
  declared: bool                          # whether the file says what was annotated
  schema: Schema = PAPER


def read_mapping(name: str | Path, schema: Schema = PAPER) -> Mapping:
  """Reads a mapping.

  Args:
    name: of a shipped mapping (`SHIPPED`), or the path of a file whose name ends in .toml.
    schema: whose types it yields. Rows of a shipped mapping that yield others are left out; a file
      of one's own must have none.

  Raises:
    InputError: there is no such mapping, or an entry of it has no meaning; with file and line.
  """
  if str(name) == OWN_NAMES:
    return own_names(schema)
  if str(name).endswith('.toml'):
    path = Path(os.path.expanduser(name))
  elif str(name) in SHIPPED:
    path = Path(str(_FOLDER.joinpath(f'{name}.toml')))
  else:
    raise InputError(f'mapping {str(name)!r} is neither one of {", ".join(SHIPPED)} nor a .toml '
                     'file')
  text = read_text(path)
  table = parse_toml(text, path)
  if str(name) in SHIPPED:
    yielded = ', '.join(dict.fromkeys(table['entities'].values()))
    table = _within(table, schema)
    if not table['entities']:
      raise InputError(f'mapping {name!r} yields {yielded} only, none of which is in the schema '
                       f'{schema.source}; name a file of your own, or {OWN_NAMES!r} where the '
                       'notes have its names')
  return _checked(path, text, table, schema)


def own_names(schema: Schema) -> Mapping:
  """The mapping of notes that use a schema's own names: an entity is the head of its modifiers.

  Names as brat has them, without blanks and other signs, stand for the same types.
  """
  entities = {raw: kind for kind in schema.types for raw in (kind, plain_name(kind))}
  rules = {raw: Rule({'': (kind,)}, by_sentence=True)
           for kind in schema.kinds for raw in (kind, plain_name(kind))}
  return Mapping(f'mapping {OWN_NAMES!r}', schema.types, {
    of: kinds for of in schema.types if (kinds := schema.modifiers.get(of))}, entities, rules, {},
    {}, False, schema)


def _within(table: dict[str, Any], schema: Schema) -> dict[str, Any]:
  """The table of a shipped mapping without what the schema lacks."""
  def known(kinds: Any) -> Any:
    if isinstance(kinds, dict):
      return {raw: left for raw, of_raw in kinds.items() if (left := known(of_raw))}
    return [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind in schema.kinds]

  def kept(section: str, key: str) -> dict[str, Any]:
    rows = {raw: row | {key: known(row[key])} for raw, row in table.get(section, {}).items()}
    return {raw: row for raw, row in rows.items() if row[key]}

  attributes = {raw: row | {'modifier': row['modifier'][0]}
                for raw, row in kept('attributes', 'modifier').items()}
  return {
    'entities': {raw: kind for raw, kind in table['entities'].items() if kind in schema.types},
    'definitions': {kind: said for kind, said in table.get('definitions', {}).items()
                    if kind in schema.types},
    'relations': kept('relations', 'modifiers'), 'attributes': attributes,
    **({'annotated': [kind for kind in table['annotated'] if kind in schema.types]}
       if 'annotated' in table else {})}


def _checked(path: Path, text: str, table: dict[str, Any], schema: Schema) -> Mapping:
  """The mapping of a file's table; raises InputError for an entry that has no meaning."""
  def wrong(key: str, said: str) -> InputError:
    lines = text.split('\n')
    line = next((i for i, line in enumerate(lines, 1) if key in line), 1)
    return InputError(f'{path}:{line}: {key!r}: {said}')

  def known(values: Any, allowed: Sequence[str], key: str) -> tuple[str, ...]:
    values = (values,) if isinstance(values, str) else values
    if not isinstance(values, list | tuple) or not values or not all(
        isinstance(v, str) and v in allowed for v in values):
      raise wrong(key, f'{values!r} is not among {", ".join(allowed)}')
    return tuple(values)

  def one(value: Any, allowed: Sequence[str], key: str) -> str:
    if not isinstance(value, str):
      raise wrong(key, f'{value!r} is not one of {", ".join(allowed)}')
    return known(value, allowed, key)[0]

  def section(name: str, keys: Sequence[str]) -> dict:
    rows = table.get(name, {})
    if not isinstance(rows, dict):
      raise wrong(name, 'is no table')
    for key, row in rows.items() if keys else ():
      for entry in row if isinstance(row, dict) else [row]:
        if not isinstance(row, dict) or entry not in keys:
          raise wrong(key, f'{entry!r} is not among {", ".join(keys)}')
    return rows

  for key in table:
    one(key, ('annotated', 'entities', 'relations', 'attributes', 'definitions'), key)
  entities = {raw: one(kind, schema.types, raw)
              for raw, kind in section('entities', ()).items()}
  if not entities:
    raise InputError(f'{path}:1: no [entities] with rows such as Disease = "problem"')
  relations, attributes = {}, {}
  for raw, row in section('relations', ('main', 'modifiers', 'sibling', 'mentions')).items():
    kinds_of = row.get('modifiers', ())
    kinds_of = kinds_of if isinstance(kinds_of, dict) else {'': kinds_of}
    sibling = row.get('sibling', '')
    if not isinstance(sibling, str) or ('main' in row and sibling):
      raise wrong(raw, "'sibling' is the name of a relation, and goes without 'main'")
    relations[raw] = Rule(
      {of: known(kinds, schema.kinds, raw) for of, kinds in kinds_of.items()},
      one(row.get('main', 'head'), ('head', 'tail'), raw), sibling,
      one(row.get('mentions', 'first'), ('first', 'sentence'), raw) == 'sentence')
  for raw, row in section('attributes', ('modifier', 'cues')).items():
    cues = row.get('cues')
    if not isinstance(cues, list) or not cues or not all(isinstance(c, str) and c for c in cues):
      raise wrong(raw, "'cues' is a list of words")
    words = '|'.join(re.escape(cue) for cue in sorted(cues, key=len, reverse=True))
    attributes[raw] = Cues(one(row.get('modifier'), schema.kinds, raw),
                           re.compile(rf'(?<!\w)(?:{words})(?!\w)', re.IGNORECASE))
  definitions = section('definitions', ())
  for kind, meaning in definitions.items():
    one(kind, schema.types, kind)
    if not isinstance(meaning, str) or not meaning.strip() or '\n' in meaning:
      raise wrong(kind, f'{meaning!r} is no line that says what it means')
  yielded = set(entities.values())
  types = set(known(table.get('annotated', sorted(yielded)), schema.types, 'annotated'))
  if outside := sorted(yielded - types):
    raise wrong('annotated', f'leaves out {", ".join(outside)}, which [entities] yields')
  types = tuple(kind for kind in schema.types if kind in types)
  modifiers = _modifiers(types, entities, relations, attributes, schema.modifiers)
  return Mapping(str(path), types, modifiers, entities, relations, attributes, definitions,
                 'annotated' in table, schema)


def _modifiers(types, entities, relations, attributes, pairs_of) -> dict[str, tuple[str, ...]]:
  """The pairs of entity type and modifier that the rows can yield."""
  pairs = set()
  for rule in relations.values():
    mains = {entities[rule.sibling]} if rule.sibling in entities else types
    pairs |= {(of, first_of(pairs_of, of, kinds)) for of in mains
              for kinds in rule.modifiers.values()}
  pairs |= {(of, cues.modifier) for of in types for cues in attributes.values()}
  by_type = {of: tuple(kind for kind in pairs_of.get(of, ()) if (of, kind) in pairs)
             for of in types}
  return {of: kinds for of, kinds in by_type.items() if kinds}


def first_of(pairs, of: str, kinds: Sequence[str]) -> str | None:
  """The first of `kinds` that an entity of type `of` can have; `pairs`: `Schema.modifiers`."""
  return next((kind for kind in kinds if kind in pairs.get(of, ())), None)


def restricted(mapping: Mapping, types: Sequence[str], owner: str) -> Mapping:
  """The mapping for notes in which only `types` were annotated, which may be more than it yields.

  Args:
    mapping: as read.
    types: entity types that were annotated.
    owner: whose notes they are, for the error.

  Raises:
    InputError: the mapping yields none of the types.
  """
  entities = {raw: kind for raw, kind in mapping.entities.items() if kind in types}
  if not entities:
    raise InputError(f'{owner}: annotated={tuple(types)!r} (config.data.folders): '
                     f'{mapping.source} yields {", ".join(mapping.types)} only')
  return mapping._replace(
    types=tuple(kind for kind in mapping.schema.types if kind in types), entities=entities,
    modifiers={of: kinds for of, kinds in mapping.modifiers.items() if of in types},
    definitions={of: meaning for of, meaning in mapping.definitions.items() if of in types})


def check_names(mapping: Mapping, found: set[str], where: str) -> None:
  """Raises InputError when a mapping does not fit the raw types `found` in the notes of `where`.

  That is when no raw type of the mapping is among them, or when one that is absent looks like a
  misspelling of one that would be dropped.
  """
  # In one line, whatever the names are.
  there = ' '.join(', '.join(sorted(found)).split()) or 'no annotation'
  if found and not found & mapping.entities.keys():
    raise InputError(f'{mapping.source}: the types {", ".join(mapping.entities)} do not occur in '
                     f'{where}; it has {there}')
  for raw in mapping.entities.keys() - found:
    if close := difflib.get_close_matches(raw, found - mapping.entities.keys(), 1, 0.75):
      raise InputError(f'{mapping.source}: the type {raw!r} does not occur in {where}; it has '
                       f'{close[0]!r}, which the mapping does not name')
