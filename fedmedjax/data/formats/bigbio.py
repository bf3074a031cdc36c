"""The knowledge-base schema of BigBio (`bigbio_kb`; Fries et al., arXiv:2206.15076)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import (
  Place,
  Unit,
  json_records,
  lay_out,
  list_field,
  text_field,
  with_own_names,
)
from fedmedjax.data.formats.quotes import Draft, Quote
from fedmedjax.data.formats.settle import settle
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
    events, discontinuous, those of `settle`, unanchored (relations and arguments whose end is no
    entity or event), coreferences (left out), empty_records (without passages, left out),
    moved_passages, renamed_documents.
  """
  counts, faults, drafts = Counter(), Faults(), []
  with faults:  # of reading the records
    for place, record in records:
      with faults:
        if not _is_empty(place, record, counts):
          drafts.append(_document(place, record, counts))
  faults.tell()
  return with_own_names(settle(drafts, counts), counts), counts


def _is_empty(place: Place, record: dict, counts: Counter) -> bool:
  """Whether a record has no passage and no annotation; adds to `counts`."""
  empty = 'passages' in record and not any(
    list_field(place, record, key, _FORM) for key in ('passages', 'entities', 'events'))
  if empty:
    counts['empty_records'] += 1
  return empty


def _document(place: Place, record: dict, counts: Counter) -> Draft:
  """The document of one record; adds to `counts`."""
  name = text_field(place, record, 'document_id' if 'document_id' in record else 'id', _FORM)
  if 'passages' not in record:
    raise _malformed(place, 'passages')
  units = []
  for passage in _parts(place, record, 'passages'):
    pieces, offsets = _pieces(place, passage)
    units += [Unit(start, piece) for piece, (start, _) in zip(pieces, offsets, strict=True)]
  layout = lay_out(units, counts)
  spans, quotes, index, links = [], [], {}, []
  for entity in _parts(place, record, 'entities'):
    _enter(place, entity, index, len(spans))
    spans.append(Span(0, 0, text_field(place, entity, 'type', _FORM)))
    quotes.append(_quote(place, entity, entity, counts))
  for event in _parts(place, record, 'events'):
    trigger = event.get('trigger')
    if not isinstance(trigger, dict):
      raise _malformed(place, 'trigger')
    _enter(place, event, index, len(spans))
    spans.append(Span(0, 0, text_field(place, event, 'type', _FORM)))
    quotes.append(_quote(place, event, trigger, counts))
    links += [(text_field(place, argument, 'role', _FORM), text_field(place, event, 'id', _FORM),
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
  return Draft(Document(name, layout.text, tuple(spans), relations), tuple(quotes), layout)


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


def _quote(place: Place, record: dict, named: dict, counts: Counter) -> Quote:
  """What `named` states: an entity itself, or the trigger of an event."""
  texts, offsets = _pieces(place, named)  # both may be empty: it has no place
  counts['discontinuous'] += len(offsets) > 1
  return Quote((*place, record['id']), tuple(offsets), ' '.join(texts))


def _malformed(place: Place, part: str) -> InputError:
  return InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM} ({part})')
