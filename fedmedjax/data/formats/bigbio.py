"""The knowledge-base schema of BigBio (`bigbio_kb`; Fries et al., arXiv:2206.15076)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedmedjax.data.formats.covering import Covered, broken_ranges, cover
from fedmedjax.data.formats.files import (
  Layout,
  Place,
  Unit,
  json_records,
  lay_out,
  list_field,
  locate,
  text_field,
  with_own_names,
)
from fedmedjax.types import Document, InputError, Relation, Span

_FORM = 'bigbio_kb'


def read_bigbio(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file, a record a line or an array of them; see `documents_of`."""
  path = Path(path)
  documents, counts = documents_of(json_records(path, _FORM))
  if not documents:
    raise InputError(f'no bigbio_kb record in {path}')
  return documents, counts


def documents_of(
  records: Iterable[tuple[Place, dict]]
) -> tuple[list[Document], Counter]:
  """The documents of records of any source, a file or a data set.

  Passages make the text (see `files.lay_out`). A discontinuous entity becomes its covering
  range. An event stands for its trigger, and its arguments are relations (role, trigger, end).

  Args:
    records: each with its place, for errors.

  Returns:
    The documents, named by their document_id, and counts: documents, entities, relations,
    events, discontinuous, text_mismatch, unanchored (relations and arguments whose end is no
    entity or event), coreferences (left out), empty_records (without passages, left out),
    moved_passages, renamed_documents.
  """
  counts = Counter()
  documents = [_document(place, record, counts) for place, record in records
               if not _is_empty(place, record, counts)]
  return with_own_names(documents, counts), counts


def _is_empty(place: Place, record: dict, counts: Counter) -> bool:
  """Whether a record has no passage and no annotation; adds to `counts`."""
  empty = 'passages' in record and not any(
    list_field(place, record, key, _FORM) for key in ('passages', 'entities', 'events'))
  if empty:
    counts['empty_records'] += 1
  return empty


def _document(place: Place, record: dict, counts: Counter) -> Document:
  """The document of one record; adds to `counts`."""
  name = text_field(place, record, 'document_id' if 'document_id' in record else 'id', _FORM)
  units = []
  for passage in _parts(place, record, 'passages'):
    pieces, offsets = _pieces(place, passage)
    units += [Unit(start, piece) for piece, (start, _) in zip(pieces, offsets, strict=True)]
  layout = lay_out(units, counts)
  spans, covered, index, links = [], {}, {}, []
  for entity in _parts(place, record, 'entities'):
    _enter(place, entity, index, len(spans))
    spans.append(_span(place, entity, entity, layout, covered, counts))
  for event in _parts(place, record, 'events'):
    trigger = event.get('trigger')
    if not isinstance(trigger, dict):
      raise _malformed(place, 'trigger')
    _enter(place, event, index, len(spans))
    spans.append(_span(place, event, trigger, layout, covered, counts))
    links += [(text_field(place, argument, 'role', _FORM), event['id'],
               text_field(place, argument, 'ref_id', _FORM))
              for argument in _parts(place, event, 'arguments')]
    counts['events'] += 1
  links += [tuple(text_field(place, link, key, _FORM) for key in ('type', 'arg1_id', 'arg2_id'))
            for link in _parts(place, record, 'relations')]
  relations = tuple(Relation(kind, index[head], index[tail]) for kind, head, tail in links
                    if head in index and tail in index)
  counts.update(documents=1, entities=len(spans), relations=len(relations),
                unanchored=len(links) - len(relations),
                coreferences=len(list_field(place, record, 'coreferences', _FORM)))
  return Document(
    name, layout.text, tuple(spans), relations, covering=broken_ranges(covered))


def _enter(place: Place, record: dict, index: dict[str, int], number: int) -> None:
  """Enters an id's span, by its number, into the index; raises InputError where it occurs twice."""
  ident = text_field(place, record, 'id', _FORM)
  if ident in index:
    raise InputError(f'{place[0]}:{place[1]}: the id {ident!r} occurs twice')
  index[ident] = number


def _parts(place: Place, record: dict, key: str) -> Iterator[dict]:
  """The objects of a record's list `key`."""
  for part in list_field(place, record, key, _FORM):
    if not isinstance(part, dict):
      raise _malformed(place, key)
    yield part


def _pieces(place: Place, record: dict) -> tuple[list[str], list[tuple[int, int]]]:
  """The parallel lists of texts and of offsets that passages, entities and triggers have."""
  texts, offsets = (list_field(place, record, key, _FORM) for key in ('text', 'offsets'))
  if len(texts) != len(offsets):
    raise _malformed(place, 'text and offsets of one length')
  for text, pair in zip(texts, offsets, strict=True):
    text_field(place, {'text': text}, 'text', _FORM)
    if (not isinstance(pair, list | tuple) or len(pair) != 2
        or not all(type(at) is int and 0 <= at < 10**9 for at in pair)):
      raise _malformed(place, 'offsets')
  return texts, [tuple(pair) for pair in offsets]


def _span(
  place: Place, record: dict, named: dict, layout: Layout, covered: Covered, counts: Counter
) -> Span:
  """The covering range of `named`: an entity itself, or the trigger of an event."""
  texts, offsets = _pieces(place, named)
  if not offsets:
    raise _malformed(place, 'offsets')
  ident = record['id']
  pieces = [locate(layout, (*place, ident), start, end) for start, end in offsets]
  actual = ' '.join(layout.text[start:end] for start, end in pieces)
  counts['text_mismatch'] += actual.split() != ' '.join(texts).split()
  counts['discontinuous'] += len(pieces) > 1
  return Span(*cover(pieces, layout.text, covered), text_field(place, record, 'type', _FORM))


def _malformed(place: Place, part: str) -> InputError:
  return InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM} ({part})')
