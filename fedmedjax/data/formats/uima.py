"""UIMA CAS, as INCEpTION, WebAnno, DKPro and cTAKES write it: XMI with a type system, or JSON.

Offsets are UTF-16 units there, and characters here; the library `cassis` (dkpro-cassis) reads,
writes and converts.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.data.formats.cas_files import (
  ANNOTATION,
  STRUCTURE,
  check_wanted,
  last_part,
  load_cas,
)
from fedmedjax.data.formats.files import read_text
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_DOCUMENT = 'uima.tcas.DocumentAnnotation'
# Features of an annotation that name what it is, the first that has a value; `type_` is how the
# library calls a feature `type`.
_LABELS = ('value', 'label', 'type_', 'category', 'entityType', 'relationType')
# Those of a relation that lead to its head; of others the first declared is the head.
_HEADS = ('governor', 'arg1', 'source', 'from', 'head', 'subject')


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
  cas = load_cas(path)
  views = [cas.get_view(sofa.sofaID) for sofa in cas.sofas if sofa.sofaString is not None]
  if not views:
    raise InputError(f'{path}: the CAS has no text (a sofa with a sofaString)')
  check_wanted(path, cas.typesystem, wanted)
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
    kinds = [f'{name}={label}', f'{last_part(name)}={label}', label] if label else []
    kinds += [name, last_part(name)]
    kind = next((kind for kind in kinds if kind in self.wanted), '')
    if not kind:
      if last_part(name) == 'Sentence':
        self.sentences.append((fs.begin, fs.end))
      if name.startswith('uima.') or STRUCTURE.fullmatch(name):
        return
    kind = kind or label or last_part(name)
    if shape.relation:
      self._relations.append((fs, kind, shape.relation))
    elif self.system.is_instance_of(name, ANNOTATION):
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
          yield kind, (index[fs.xmiID], target)
    for fs, feature in self._attributes:
      value = fs[feature]
      # False and 0 are what a feature has that nobody has set.
      if value and str(value).strip():
        feature = feature.rstrip('_')
        yield feature if value is True else f'{feature}={value}', (index[fs.xmiID], index[fs.xmiID])

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
      ends = [name for name in references if self._is_end(kind.get_feature(name).rangeType.name)]
      relation = None
      if len(ends) == 2:
        head = next((name for name in ends if name.casefold() in _HEADS), ends[0])
        relation = head, next(name for name in ends if name != head)
      self._shapes[kind.name] = _Shape(
        label, tuple(name for name in (*texts, *others) if name not in label), tuple(references),
        relation)
    return self._shapes[kind.name]

  def _is_end(self, held: str) -> bool:
    """Whether a feature of this range leads to an annotation, or to an argument that does."""
    # Asked by name: a feature may hold its range as it was before it had features of its own.
    return self.system.is_instance_of(held, ANNOTATION) or any(
      feature.name == 'argument' for feature in self.system.get_type(held).all_features)


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
