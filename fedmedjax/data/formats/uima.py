"""UIMA CAS, as INCEpTION, WebAnno, DKPro and cTAKES write it: XMI with a type system, or JSON.

Offsets are UTF-16 units there, and characters here; the library `cassis` (dkpro-cassis) reads,
writes and converts.
"""

import json
import re
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fedmedjax.data.formats.files import read_bytes, read_text
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_ANNOTATION, _DOCUMENT = 'uima.tcas.Annotation', 'uima.tcas.DocumentAnnotation'
# Features of an annotation that name what it is, the first that has a value; `type_` is how the
# library calls a feature `type`.
_LABELS = ('value', 'label', 'type_', 'category', 'entityType', 'relationType')
# Those of a relation that lead to its head; of others the first declared is the head.
_HEADS = ('governor', 'arg1', 'source', 'from', 'head', 'subject')
# What describes the text and not what it says: not read unless a mapping names it.
_STRUCTURE = re.compile(
  r'.*\.(segmentation|syntax|lexmorph|textspan|metadata|transform|morph)\..*|'
  r'(.*\.)?(Token|Sentence|Paragraph|Section|Segment|Lemma|Stem|POS|Chunk|DocumentMetaData|'
  r'TagDescription|TagsetDescription)')
_OFFSET = re.compile(r'offset \[([^\]]*)\]')
_FEATURE = re.compile('[A-Za-z_][A-Za-z0-9_]*')
_NAMED = 8  # most types in a message


def library(place: object) -> ModuleType:
  """The module `cassis`; raises InputError, naming the extra, where it is not there."""
  try:
    import cassis
  except ImportError:
    raise InputError(f"{place}: UIMA CAS needs a package; pip install 'fedmedjax[uima]'") from None
  return cassis


def read_uima(
  path: str | Path, wanted: Collection[str] = ()
) -> tuple[list[Document], Counter]:
  """Reads one note: a file .json, or .xmi with a TypeSystem.xml beside it or in a folder around it.

  An annotation's type is what `wanted` has of TYPE=LABEL, LABEL and TYPE, the first of them; where
  it has none, its label, or its type's last part without one. Its label is the value of the feature
  value or label (or category, entityType, relationType), or of the only feature that holds a text.
  TYPE may be a whole name (webanno.custom.Finding) or its last part. An annotation with exactly two
  features that lead to annotations is a relation (Governor, arg1, source or the first is its head);
  other features that lead to annotations are relations named for their feature or role; what else
  has a value is an attribute. Tokens, syntax and the like are left out. Sentences stay as they are.

  Args:
    path: the file.
    wanted: the names of types that a mapping has.

  Returns:
    The document, named by its DocumentMetaData or else the file, and counts: documents, entities,
    relations, attributes, those of `settle`, unanchored, other_views (texts besides the first).

  Raises:
    InputError: it is no CAS, its type system lacks a type that it has or that is wanted, or an
      offset is outside of the text or inside a character.
  """
  path = Path(path)
  cas = _loaded(path)
  views = [cas.get_view(sofa.sofaID) for sofa in cas.sofas if sofa.sofaString is not None]
  if not views:
    raise InputError(f'{path}: the CAS has no text (a sofa with a sofaString)')
  _check_wanted(path, cas.typesystem, wanted)
  text = views[0].sofa_string
  counts = Counter(other_views=len(views) - 1)
  found = _Annotations(cas.typesystem, wanted)
  for structure in sorted(views[0].select_all_fs(), key=lambda fs: fs.xmiID):  # as in the file
    found.enter(structure)
  lines = _lines_of_ids(read_text(path))
  spans = tuple(Span(0, 0, kind) for _, kind in found.spans)
  quotes = tuple(
    Quote((path, lines(fs.xmiID), fs.xmiID), ((fs.begin or 0, fs.end or 0),), '')
    for fs, _ in found.spans)
  links = list(found.links())
  relations = tuple(Relation(kind, *ends) for kind, ends in links if None not in ends)
  lost = len(links) - len(relations)
  attributes = sum(link.head == link.tail for link in relations)
  counts.update(documents=1, entities=len(spans), relations=len(relations) - attributes,
                attributes=attributes, unanchored=lost)
  document = Document(found.title or path.stem, text, spans, relations,
                      sentences=_ordered(found.sentences, len(text)))
  return settle([Draft(document, quotes, as_one_unit(text))], counts), counts


def _loaded(path: Path) -> Any:
  """The CAS of a file, with offsets in characters."""
  cassis = library(path)
  content = read_bytes(path)
  if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
    raise InputError(f'{path}:1: XML entities are not read')
  text = read_text(path)
  place, types = path, None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      # An offset without a place would be taken as it is, and mean another one.
      warnings.filterwarnings('error', message='Not mapping')
      if path.suffix.lower() == '.json':
        named = json.loads(text)['%TYPES'].values()
        _check_features(path, (key for kind in named for key in kind if not key.startswith('%')))
        return cassis.load_cas_from_json(text)
      types = _type_system_file(path)
      place = types
      system = _type_system(types, types.stat().st_mtime_ns)
      place = path
      return cassis.load_cas_from_xmi(text, typesystem=system)
  except InputError:
    raise
  except UserWarning as error:
    at = _OFFSET.search(str(error))
    at = at[1] if at else '?'
    written = re.search(rf'\b(?:begin|end)"?\s*[=:]\s*"?{re.escape(at)}\b', text)
    line = text.count('\n', 0, written.start()) + 1 if written else 1
    raise InputError(f'{path}:{line}: the offset {at}, in UTF-16 units, is outside of the text or '
                     'inside a character') from None
  except Exception as error:  # whatever a damaged file makes of the library
    if type(error).__name__ == 'TypeNotFoundError':
      lacks = re.search(r'\[([^\]]+)\]', str(error))
      lacks = lacks[1] if lacks else str(error)
      used = re.search(rf'\b{re.escape(_last(lacks))}\b', text)
      line = text.count('\n', 0, used.start()) + 1 if used else 1
      where = f'its type system {types}' if types else 'its type system'
      raise InputError(f'{path}:{line}: {where} lacks the type {lacks}') from None
    line = getattr(error, 'lineno', None) or 1
    said = (str(error).splitlines() or [''])[0]
    raise InputError(f'{place}:{line}: no UIMA CAS that can be read '
                     f'({type(error).__name__}: {said})') from None


def _type_system_file(path: Path) -> Path:
  """The type system of an XMI file: beside it, or in one of three folders around it."""
  for folder in path.absolute().parents[:4]:
    found = [file for file in sorted(folder.glob('*.[xX][mM][lL]'))
             if 'typesystem' in file.stem.casefold().replace('_', '').replace('-', '')]
    if found:
      return found[0]
  raise InputError(f'{path}: no TypeSystem.xml beside it, which says what its types are')


@lru_cache(maxsize=4)
def _type_system(path: Path, changed: int) -> Any:
  """The type system of a file, which all notes of a folder share; `changed` is its time."""
  content = read_bytes(path)
  if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
    raise InputError(f'{path}:1: XML entities are not read')
  with path.open('rb') as file:
    system = library(path).load_typesystem(file)
  _check_features(path, (feature.name for kind in system.get_types() for feature in kind.features))
  return system


def _check_features(path: Path, names: Iterable[str]) -> None:
  """Raises InputError for a feature whose name is none: the library makes Python of names."""
  wrong = next((name for name in names if not _FEATURE.fullmatch(name)), None)
  if wrong is not None:
    raise InputError(f'{path}:1: its type system has a feature {wrong[:40]!r}; letters and figures '
                     'are allowed')


def _check_wanted(path: Path, system: Any, wanted: Collection[str]) -> None:
  """Raises InputError where a name that says a type is of none in the type system.

  Names without a dot or an equals sign may be labels, which a type system does not list.
  """
  own = [kind.name for kind in system.get_types() if system.is_instance_of(kind, _ANNOTATION)]
  there = {name for kind in own for name in (kind, _last(kind))}
  asked = {name: name.partition('=')[0] for name in wanted if '.' in name or '=' in name}
  lacking = [name for name, kind in asked.items() if kind not in there]
  if lacking:
    names = [name for name in own
             if not name.startswith('uima.') and not _STRUCTURE.fullmatch(name)]
    there = ', '.join(names[:_NAMED]) + ', ...' * (len(names) > _NAMED)
    raise InputError(f'{path}:1: its type system lacks {", ".join(map(repr, lacking))}, which the '
                     f'mapping names; it has {there or "no types of its own"}')


def _last(name: str) -> str:
  return name.rpartition('.')[2]


class _Shape(NamedTuple):
  """The features of a type."""

  label: tuple[str, ...]       # that may name what an annotation is, the first with a value
  primitive: tuple[str, ...]   # others that hold a text, number or truth value
  references: tuple[str, ...]  # that lead to annotations, or to what has an argument or target
  relation: tuple[str, str] | None  # its head and tail, where the type is one of relations


class _Annotations:
  """What the feature structures of a view are: spans, relations, sentences and the title."""

  def __init__(self, system: Any, wanted: Collection[str]):
    self.system, self.wanted = system, frozenset(wanted)
    self.spans: list[tuple[Any, str]] = []  # annotation, its type here
    self.sentences: list[tuple[int, int]] = []
    self.title = ''
    self._relations: list[tuple[Any, str, tuple[str, str]]] = []
    self._attributes: list[tuple[Any, str]] = []  # annotation, feature
    self._named: list[tuple[Any, str]] = []       # annotation, feature that leads to others
    self._shapes: dict[str, _Shape] = {}

  def enter(self, fs: Any) -> None:
    """Takes up a feature structure."""
    name = fs.type.name
    if self.system.is_instance_of(name, _DOCUMENT):
      title = getattr(fs, 'documentTitle', None) or getattr(fs, 'documentId', None)
      self.title = self.title or (title if isinstance(title, str) else '')
      return
    shape = self._shape(fs.type)
    label = next((value for feature in shape.label
                  if isinstance(value := fs[feature], str) and value.strip()), '')
    kinds = [f'{name}={label}', f'{_last(name)}={label}', label] if label else []
    kinds += [name, _last(name)]
    kind = next((kind for kind in kinds if kind in self.wanted), '')
    if not kind:
      if _last(name) == 'Sentence':
        self.sentences.append((fs.begin, fs.end))
      if name.startswith('uima.') or _STRUCTURE.fullmatch(name):
        return
    kind = '_'.join((kind or label or _last(name)).split())
    if shape.relation:
      self._relations.append((fs, kind, shape.relation))
    elif self.system.is_instance_of(name, _ANNOTATION):
      self.spans.append((fs, kind))
      self._attributes += [(fs, feature) for feature in shape.primitive]
      self._named += [(fs, feature) for feature in shape.references]

  def links(self) -> Iterator[tuple[str, tuple[int | None, int | None]]]:
    """Yields (type, numbers of the spans it links) of relations and attributes; None = no span."""
    index = {fs.xmiID: number for number, (fs, _) in enumerate(self.spans)}

    def number(target: Any) -> int | None:
      return index.get(getattr(target, 'xmiID', None))

    for fs, kind, (head, tail) in self._relations:
      yield kind, (number(_target(fs[head])), number(_target(fs[tail])))
    for fs, feature in self._named:
      value = fs[feature]
      parts = getattr(value, 'elements', None)
      for part in parts if isinstance(parts, list) else [value]:
        role = getattr(part, 'role', None)
        target = number(_target(part))
        # Others than spans, such as concepts of a dictionary, are no ends of relations.
        if target is not None:
          kind = role if isinstance(role, str) and role.strip() else feature
          yield '_'.join(kind.split()), (index[fs.xmiID], target)
    for fs, feature in self._attributes:
      value = fs[feature]
      # False and 0 are what a feature has that nobody has set.
      if value and str(value).strip():
        feature = feature.rstrip('_')
        stated = feature if value is True else f'{feature}={"_".join(str(value).split())}'
        yield stated, (index[fs.xmiID], index[fs.xmiID])

  def _shape(self, kind: Any) -> _Shape:
    """The features of a type, by what they hold."""
    if kind.name not in self._shapes:
      texts, others, references = [], [], []
      for feature in kind.all_features:
        held = feature.rangeType.name
        if feature.name in ('begin', 'end', 'sofa'):
          continue
        if held == 'uima.cas.String' or self.system.is_instance_of(held, 'uima.cas.String'):
          texts.append(feature.name)
        elif self.system.is_primitive(held):
          others.append(feature.name)
        elif held == 'uima.cas.FSArray' or not held.startswith('uima.cas.'):
          references.append(feature.name)
      label = tuple(name for name in _LABELS if name in texts) or (
        tuple(texts) if len(texts) == 1 else ())
      ends = [name for name in references
              if self._is_end(kind.get_feature(name).rangeType)]
      relation = None
      if len(ends) == 2:
        head = next((name for name in ends if name.casefold() in _HEADS), ends[0])
        relation = head, next(name for name in ends if name != head)
      self._shapes[kind.name] = _Shape(
        label, tuple(name for name in (*texts, *others) if name not in label), tuple(references),
        relation)
    return self._shapes[kind.name]

  def _is_end(self, held: Any) -> bool:
    """Whether a feature of this range leads to an annotation, or to an argument that does."""
    return self.system.is_instance_of(held.name, _ANNOTATION) or any(
      feature.name == 'argument' for feature in held.all_features)


def _target(value: Any) -> Any:
  """The annotation that a value is or leads to, as arguments of relations and links do."""
  for name in ('argument', 'target'):
    value = getattr(value, name, None) or value
  return value


def _lines_of_ids(text: str) -> Callable[[int], int]:
  """The function (id of a feature structure) -> the line in which it stands."""
  found = {int(match[1]): match.start()
           for match in re.finditer(r'(?:xmi:id="|"%ID"\s*:\s*)(\d+)', text)}
  breaks = [match.start() for match in re.finditer('\n', text)]
  return lambda ident: bisect_left(breaks, found.get(ident, 0)) + 1


def _ordered(ranges: list[tuple[int, int]], length: int) -> tuple[tuple[int, int], ...]:
  """Sentences in their order, without those that are empty, overlap or leave the text."""
  kept = []
  for start, end in sorted(set(ranges)):
    if (kept[-1][1] if kept else 0) <= start < end <= length:
      kept.append((start, end))
  return tuple(kept)
