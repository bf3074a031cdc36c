"""Mappings from the type names of a corpus to those of `types`: small TOML files, and their use.

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

    [relations."Treatment.Dosage"]       # of an event, whose main entities are the ends of its
    sibling = "Treatment.Drug"           # relations of this type, from the same head
    modifiers = "dosage"

    [attributes."POLARITY=NEG"]          # of an entity; its modifier is the nearest cue that
    modifier = "negation"                # stands in the same sentence
    cues = ["no", "denies"]

Of several modifiers the first is meant that the main entity can have (`types.MODIFIER_TYPES`). A
type that no row names is dropped and counted; a schema type that no row yields was never annotated
there, and its absence from the notes means nothing (docs/methods.md, partial annotation).
"""

import difflib
import os
import re
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.data.formats.files import read_text
from fedmedjax.data.sentences import note_sentences
from fedmedjax.types import ENTITY_TYPES, MODIFIER_TYPES, Document, InputError, Relation, Span

SHIPPED = sorted(
  file.name.removesuffix('.toml')
  for file in resources.files('fedmedjax.data.formats').joinpath('mappings').iterdir()
  if file.name.endswith('.toml'))
MODIFIERS = tuple(dict.fromkeys(name for names in MODIFIER_TYPES.values() for name in names))


class Rule(NamedTuple):
  """The meaning of a raw relation; see the top of this file."""

  modifiers: dict[str, tuple[str, ...]]  # the modifier's raw type, '' = any -> modifier types
  main: str = 'head'                     # the end that is the main entity
  sibling: str = ''


class Cues(NamedTuple):
  """The meaning of an attribute: the modifier type, and the words that may stand for it."""

  modifier: str
  words: re.Pattern


class Mapping(NamedTuple):
  """The content of a mapping file."""

  source: str                             # the file, for messages
  types: tuple[str, ...]                  # entity types annotated, in the order of ENTITY_TYPES
  modifiers: dict[str, tuple[str, ...]]   # entity type -> modifiers of it that were annotated
  entities: dict[str, str]                # raw type -> type
  relations: dict[str, Rule]
  attributes: dict[str, Cues]
  definitions: dict[str, str]             # type -> what it means there, in the prompt
  declared: bool                          # whether the file says what was annotated


def read_mapping(name: str | Path) -> Mapping:
  """Reads a mapping.

  Args:
    name: of a shipped mapping (`SHIPPED`), or the path of a file whose name ends in .toml.

  Raises:
    InputError: there is no such mapping, or an entry of it has no meaning; with file and line.
  """
  if str(name).endswith('.toml'):
    path = Path(os.path.expanduser(name))
  elif str(name) in SHIPPED:
    path = Path(str(resources.files('fedmedjax.data.formats').joinpath('mappings', f'{name}.toml')))
  else:
    raise InputError(f'mapping {str(name)!r} is neither one of {", ".join(SHIPPED)} nor a .toml '
                     'file')
  text = read_text(path)
  try:
    table = tomllib.loads(text)
  except (ValueError, RecursionError) as error:  # not all of them are TOMLDecodeErrors
    line = re.search(r'at line (\d+)', str(error))
    line = line[1] if line else text.count('\n') + 1
    raise InputError(f'{path}:{line}: no TOML: {error}') from None
  return _checked(path, text, table)


def _checked(path: Path, text: str, table: dict[str, Any]) -> Mapping:
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
  entities = {raw: one(kind, ENTITY_TYPES, raw)
              for raw, kind in section('entities', ()).items()}
  if not entities:
    raise InputError(f'{path}:1: no [entities] with rows such as Disease = "problem"')
  relations, attributes = {}, {}
  for raw, row in section('relations', ('main', 'modifiers', 'sibling')).items():
    kinds_of = row.get('modifiers', ())
    kinds_of = kinds_of if isinstance(kinds_of, dict) else {'': kinds_of}
    sibling = row.get('sibling', '')
    if not isinstance(sibling, str) or ('main' in row and sibling):
      raise wrong(raw, "'sibling' is the name of a relation, and goes without 'main'")
    relations[raw] = Rule(
      {of: known(kinds, MODIFIERS, raw) for of, kinds in kinds_of.items()},
      one(row.get('main', 'head'), ('head', 'tail'), raw), sibling)
  for raw, row in section('attributes', ('modifier', 'cues')).items():
    cues = row.get('cues')
    if not isinstance(cues, list) or not cues or not all(isinstance(c, str) and c for c in cues):
      raise wrong(raw, "'cues' is a list of words")
    words = '|'.join(re.escape(cue) for cue in sorted(cues, key=len, reverse=True))
    attributes[raw] = Cues(one(row.get('modifier'), MODIFIERS, raw),
                           re.compile(rf'(?<!\w)(?:{words})(?!\w)', re.IGNORECASE))
  definitions = section('definitions', ())
  for kind, meaning in definitions.items():
    one(kind, ENTITY_TYPES, kind)
    if not isinstance(meaning, str) or not meaning.strip() or '\n' in meaning:
      raise wrong(kind, f'{meaning!r} is no line that says what it means')
  yielded = set(entities.values())
  types = set(known(table.get('annotated', sorted(yielded)), ENTITY_TYPES, 'annotated'))
  if outside := sorted(yielded - types):
    raise wrong('annotated', f'leaves out {", ".join(outside)}, which [entities] yields')
  types = tuple(kind for kind in ENTITY_TYPES if kind in types)
  modifiers = _modifiers(types, entities, relations, attributes)
  return Mapping(str(path), types, modifiers, entities, relations, attributes, definitions,
                 'annotated' in table)


def _modifiers(types, entities, relations, attributes) -> dict[str, tuple[str, ...]]:
  """The pairs of entity type and modifier that the rows can yield."""
  pairs = set()
  for rule in relations.values():
    mains = {entities[rule.sibling]} if rule.sibling in entities else types
    pairs |= {(of, _first(of, kinds)) for of in mains for kinds in rule.modifiers.values()}
  pairs |= {(of, _first(of, (cues.modifier,))) for of in types for cues in attributes.values()}
  by_type = {of: tuple(kind for kind in MODIFIER_TYPES[of] if (of, kind) in pairs) for of in types}
  return {of: kinds for of, kinds in by_type.items() if kinds}


def _first(of: str, kinds: Sequence[str]) -> str | None:
  """The first of `kinds` that an entity of type `of` can have."""
  return next((kind for kind in kinds if kind in MODIFIER_TYPES[of]), None)


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
    types=tuple(kind for kind in ENTITY_TYPES if kind in types), entities=entities,
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


def apply_mapping(
  documents: Iterable[Document], mapping: Mapping
) -> tuple[list[Document], Counter]:
  """Translates types of spans and relations, drops those without a row, and merges equal spans.

  The spans of a mapped document are its entities, in their order, and then its modifiers.

  Returns:
    The documents, and counts: entities and relations (kept), unmapped and duplicate (entities
    dropped), mapped_TYPE (before merging), unmapped_relations (their type, or what they link),
    invalid_pairs (modifiers that the main entity cannot have), mapped_TYPE_MODIFIER,
    unmapped_attributes, attributes_without_cue.
  """
  mapped, counts = [], Counter()
  for document in documents:
    kept, spans = {}, {}  # index of a raw span -> of its new one; new span -> its index
    for i, span in enumerate(document.spans):
      if span.type in mapping.entities:
        new = span._replace(type=mapping.entities[span.type])
        counts[f'mapped_{new.type}'] += 1
        counts['duplicate'] += new in spans
        kept[i] = spans.setdefault(new, len(spans))
    counts.update(entities=len(spans), unmapped=len(document.spans) - len(kept))
    entities, relations = list(spans), []
    for main, modifier, kinds in (
        *_linked(document, mapping, kept, counts), *_cued(document, mapping, kept, counts)):
      of = entities[kept[main]].type
      kind = _first(of, kinds)
      if kind is None:
        counts['invalid_pairs'] += 1
        continue
      counts[f'mapped_{of}_{kind}'] += 1
      tail = spans.setdefault(modifier._replace(type=kind), len(spans))
      relations.append(Relation(kind, kept[main], tail))
    relations = tuple(dict.fromkeys(relations))
    counts['relations'] += len(relations)
    mapped.append(document._replace(spans=tuple(spans), relations=relations))
  return mapped, counts


def _linked(document: Document, mapping: Mapping, kept, counts: Counter):
  """Yields (index of the main entity's raw span, raw modifier, its types) of each relation."""
  ends: dict[tuple[str, int], list[int]] = {}
  for link in document.relations:
    ends.setdefault((link.type, link.head), []).append(link.tail)
  for link in document.relations:
    if link.head == link.tail:
      continue  # an attribute
    rule = mapping.relations.get(link.type)
    if rule is None:
      counts['unmapped_relations'] += 1
      continue
    mains, other = [link.head], link.tail
    if rule.main == 'tail':
      mains, other = [link.tail], link.head
    elif rule.sibling:
      mains = ends.get((rule.sibling, link.head), [])
    modifier = document.spans[other]
    kinds = rule.modifiers.get(modifier.type) or rule.modifiers.get('')
    mains = [main for main in mains if main in kept] if kinds else []
    counts['unmapped_relations'] += not mains
    for main in mains:
      yield main, modifier, kinds


def _cued(document: Document, mapping: Mapping, kept, counts: Counter):
  """Yields as `_linked` does, of each attribute: its nearest cue, one inside the entity first."""
  attributes = [link for link in document.relations if link.head == link.tail]
  if not attributes:
    return
  sentences = note_sentences(document)
  starts = [start for start, _ in sentences]
  for link in attributes:
    cues = mapping.attributes.get(link.type)
    if not cues or link.head not in kept:
      counts['unmapped_attributes'] += 1
      continue
    span = document.spans[link.head]
    number = max(bisect_right(starts, span.start) - 1, 0)
    first, last = sentences[number] if sentences else (0, 0)
    places = [cue.span() for cue in cues.words.finditer(document.text, first, last)]
    if not places:
      counts['attributes_without_cue'] += 1
      continue
    nearest = min(places, key=lambda cue: max(span.start - cue[1], cue[0] - span.end, -1))
    yield link.head, Span(*nearest, ''), (cues.modifier,)
