"""doccano's JSON lines, of projects for spans, with or without relations.

Offsets are characters (code points) of the text; no words are quoted.
"""

from collections import Counter
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import (
  Place,
  int_field,
  json_records,
  list_field,
  text_field,
  with_own_names,
)
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.data.formats.table_rows import name_field
from fedmedjax.data.sources import stated
from fedmedjax.types import Document, InputError, Relation, Span

_FORM = "doccano's JSON lines"


def read_doccano(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file, a note a line or an array of them.

  Spans are under `label` or `labels` as [start, end, type], or under `entities` as objects with
  start_offset, end_offset and label; relations, from_id to to_id, are of the latter's ids. The
  text is under `text`, in some versions under `data`.

  Args:
    path: the file.

  Returns:
    The documents, named by an id of theirs, and counts: documents, entities, relations, those of
    `settle`, empty_records (without text, left out), unanchored, comments (left out),
    renamed_documents.
  """
  path = Path(path)
  counts, faults, drafts = Counter(), Faults(), []
  with faults:  # of reading the lines
    for place, record in json_records(path, _FORM):
      with faults:
        key = 'text' if 'text' in record or 'data' not in record else 'data'
        text = text_field(place, record, key, _FORM)
        if text.strip():
          drafts.append(_document(place, record, text, counts))
        else:
          counts['empty_records'] += 1
  faults.tell()
  if not drafts:
    raise InputError(f'no note in {path}')
  return with_own_names(settle(drafts, counts), counts), counts


def _document(place: Place, record: dict, text: str, counts: Counter) -> Draft:
  """The document of one line; adds to `counts`."""
  name = name_field(place, record, _FORM) or f'{place[0].stem}_{place[1]:06d}'
  key = next((key for key in ('label', 'labels', 'entities') if key in record), None)
  if key is None:
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM}: neither label, labels '
                     'nor entities is there')
  spans, quotes, index = [], [], {}
  for entry in list_field(place, record, key, _FORM):
    if isinstance(entry, list | tuple) and len(entry) == 3:
      entry = dict(zip(('start_offset', 'end_offset', 'label'), entry, strict=True))
    if not isinstance(entry, dict):
      raise InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM}: {key!r} holds no '
                       '[start, end, type]')
    kind = text_field(place, entry, 'label', _FORM)
    ends = tuple(int_field(place, entry, at, _FORM) for at in ('start_offset', 'end_offset'))
    if isinstance(entry.get('id'), str | int):
      index[str(entry['id'])] = len(spans)
    spans.append(Span(0, 0, kind))
    quotes.append(Quote((*place, kind), (ends,), ''))
  relations, lost = [], 0
  for link in list_field(place, record, 'relations', _FORM):
    if not isinstance(link, dict):
      raise InputError(f"{place[0]}:{place[1]}: malformed, expected {_FORM}: 'relations' holds no "
                       'objects')
    kind = text_field(place, link, 'type', _FORM)
    heads = [index.get(str(link.get(end))) for end in ('from_id', 'to_id')]
    if None in heads:
      lost += 1
    else:
      relations.append(Relation(kind, *heads))
  comments = record.get('Comments', record.get('comments'))
  counts.update(documents=1, entities=len(spans), relations=len(relations), unanchored=lost,
                comments=len(comments) if isinstance(comments, list) else 0)
  of = stated(record)
  document = Document(name, text, tuple(spans), tuple(relations), '' if of == name else of)
  return Draft(document, tuple(quotes), as_one_unit(text))


def doccano_record(document: Document) -> dict:
  """A note to import into a project for spans and relations."""
  return {
    'document_id': document.name, 'text': document.text,
    'entities': [
      {'id': i, 'label': span.type, 'start_offset': span.start, 'end_offset': span.end}
      for i, span in enumerate(document.spans)],
    'relations': [{'id': i, 'from_id': link.head, 'to_id': link.tail, 'type': link.type}
                  for i, link in enumerate(document.relations)]}
