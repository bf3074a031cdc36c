"""Notes in a table, with a table of their spans and perhaps one of relations: CSV or Parquet.

    notes.csv      note_id, text                                    one row a note
    spans.csv      note_id, id, start, end, type, text              one row a span
    relations.csv  note_id, type, head, tail                        ids of two spans of the note
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import hint, with_own_names
from fedmedjax.data.formats.part_names import named_papers, named_parts
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.data.formats.table_rows import (
  IDS,
  NOTE_IDS,
  TABLES,
  TEXTS,
  Rows,
  arrow_parquet,
  cell_number,
  cell_text,
  column,
  needed,
  read_rows,
)
from fedmedjax.data.sources import stated
from fedmedjax.types import Document, InputError, Relation, Span

_SOURCES = ('source', 'patient_id', 'subject_id', 'patient', 'hadm_id', 'pmid')
_SPLITS = ('split', 'part')
_STARTS, _ENDS = ('start', 'begin', 'start_offset', 'offset_start'), ('end', 'end_offset', 'stop')
_TYPES = ('type', 'label', 'entity_type', 'category', 'entity', 'tag')
_WORDS = ('text', 'words', 'span_text', 'mention', 'covered_text')
_SPAN_IDS = ('id', 'span_id', 'entity_id', 'annotation_id')
_KINDS = ('type', 'relation', 'relation_type', 'label')
_HEADS = ('head', 'head_id', 'from', 'from_id', 'arg1', 'source')
_TAILS = ('tail', 'tail_id', 'to', 'to_id', 'arg2', 'target')
# Words in the name of a file, by what it holds.
_NAMES = {
  'notes': ('notes', 'note', 'documents', 'texts', 'reports'),
  'spans': ('spans', 'span', 'annotations', 'entities', 'mentions', 'labels'),
  'relations': ('relations', 'relation', 'links')}
# Columns that are written.
_COLUMNS = {
  'notes': ('note_id', 'text'), 'spans': ('note_id', 'id', 'start', 'end', 'type', 'text'),
  'relations': ('note_id', 'type', 'head', 'tail')}


def read_tables(folder: str | Path) -> tuple[list[Document], Counter]:
  """Reads a folder of a table of notes, one of spans, and one of relations if it is there.

  Names of columns count without their case and what stands between words; other columns are not
  read, but for one that names the patient or article of a note (`sources.stated`, or `source`), and
  one named split or part whose value becomes a word of the note's name. Offsets are characters of
  the text; where the table of spans has the words, too, they are looked after as in other formats.

  Args:
    folder: holds the tables; or the folder's table of notes.

  Returns:
    The documents, in the order of the table, and counts: documents, entities, relations, those of
    `settle`, unanchored (relations one of whose spans is not there), empty_records (notes without
    a text), renamed_documents.
  """
  folder = Path(folder)
  files = _files(folder.parent if folder.is_file() else folder)
  notes, spans = read_rows(files['notes']), read_rows(files['spans'])
  relations = read_rows(files['relations']) if 'relations' in files else None
  counts, faults = Counter(), Faults()
  documents = _notes(notes, counts)
  found, index = _spans(spans, documents), {}
  for name, rows in found.items():
    for number, (ident, _, quote) in enumerate(rows):
      with faults:
        if ident and (name, ident) in index:
          raise InputError(f'{quote.place[0]}:{quote.place[1]}: the id {ident!r} occurs twice in '
                           f'note {name!r}')
      index[name, ident] = number
  faults.tell()
  links = _relations(relations, documents, index, counts) if relations else {}
  drafts = []
  for name, document in documents.items():
    rows = found.get(name, [])
    document = document._replace(
      spans=tuple(span for _, span, _ in rows), relations=tuple(links.get(name, ())))
    counts.update(documents=1, entities=len(rows), relations=len(document.relations))
    drafts.append(
      Draft(document, tuple(quote for _, _, quote in rows), as_one_unit(document.text)))
  return with_own_names(settle(drafts, counts), counts), counts


def _files(folder: Path) -> dict[str, Path]:
  """{'notes': path, 'spans': path, 'relations': path if there}, by words of the files' names."""
  if not folder.is_dir():
    raise InputError(f'folder of tables not found: {folder}')
  there = [path for path in sorted(folder.glob('[!.]*')) if path.suffix.lower() in TABLES
           and not named_papers(path.stem)]
  found: dict[str, Path] = {}
  for path in there:
    words = path.stem.casefold().replace('-', '_').replace('.', '_').split('_')
    # The last word says it: 'note_spans' are spans.
    use = next((use for word in reversed(words) for use in _NAMES if word in _NAMES[use]), None)
    if use and use in found:
      raise InputError(f'{folder}: {found[use].name} and {path.name} are both tables of {use}, by '
                       'their names; leave one of them there, parts in folders of their own or '
                       "told by a column 'split'")
    if use:
      found[use] = path
  for use in ('notes', 'spans'):
    if use not in found:
      names = ', '.join(path.name for path in there)
      raise InputError(
        f'{folder}: no table {use}.csv or {use}.parquet'
        + (f'; it has {names}' if there else hint(folder, TABLES)))
  return found


def _notes(table: Rows, counts: Counter) -> dict[str, Document]:
  """{id: document without spans} of the table of notes, in its order."""
  names = needed(table, id=IDS, text=TEXTS)
  source, split = column(table.columns, _SOURCES), column(table.columns, _SPLITS)
  documents, faults = {}, Faults()
  for place, row in table.rows:
    with faults:
      ident, text = (cell_text(place, row, names[use]) for use in ('id', 'text'))
      if not ident.strip():
        raise InputError(f'{place[0]}:{place[1]}: {names["id"]!r} is empty')
      if ident in documents:
        raise InputError(f'{place[0]}:{place[1]}: the id {ident!r} occurs twice')
      part = named_parts(cell_text(place, row, split))
      name = f'{part.pop()}_{ident}' if len(part) == 1 else ident
      of = cell_text(place, row, source) or stated(row)
      counts['empty_records'] += not text.strip()
      documents[ident] = Document(name, text, (), (), '' if of == ident else of)
  faults.tell()
  documents = {ident: document for ident, document in documents.items() if document.text.strip()}
  if not documents:
    raise InputError(f'no row with a text in {table.path}')
  return documents


def _spans(table: Rows, notes: dict[str, Document]) -> dict[str, list[tuple[str, Span, Quote]]]:
  """{note's id: (its own id, span, quote) of each row}."""
  names = needed(table, note=NOTE_IDS, start=_STARTS, end=_ENDS, type=_TYPES)
  own = column([name for name in table.columns if name != names['note']], _SPAN_IDS)
  # A column that names the type is not the one of words.
  words = column([name for name in table.columns if name not in names.values()], _WORDS)
  found, faults = {}, Faults()
  for place, row in table.rows:
    with faults:
      note = _known(place, row, names['note'], notes)
      start, end = (cell_number(place, row, names[use]) for use in ('start', 'end'))
      kind = cell_text(place, row, names['type']).strip()
      if not kind:
        raise InputError(f'{place[0]}:{place[1]}: {names["type"]!r} is empty')
      quote = Quote((*place, kind), ((start, end),), cell_text(place, row, words))
      found.setdefault(note, []).append(
        (cell_text(place, row, own) or str(place[1]), Span(0, 0, kind), quote))
  faults.tell()
  return found


def _relations(
  table: Rows, notes: dict[str, Document], index: dict[tuple[str, str], int], counts: Counter
) -> dict[str, list[Relation]]:
  """{note's id: its relations}; `index` gives the number of a span by its note and id."""
  names = needed(table, note=NOTE_IDS, type=_KINDS, head=_HEADS, tail=_TAILS)
  found, faults = {}, Faults()
  for place, row in table.rows:
    with faults:
      note = _known(place, row, names['note'], notes)
      kind, *ends = (cell_text(place, row, names[use]) for use in ('type', 'head', 'tail'))
      if all((note, end) in index for end in ends):
        found.setdefault(note, []).append(Relation(kind, *(index[note, end] for end in ends)))
      else:
        counts['unanchored'] += 1
  faults.tell()
  return found


def _known(place, row, name: str, notes: dict[str, Document]) -> str:
  """The note that a row is of; raises InputError where the table of notes has none of the id."""
  ident = cell_text(place, row, name)
  if ident not in notes:
    raise InputError(f'{place[0]}:{place[1]}: the table of notes has no note {ident!r} with a text')
  return ident


def table_rows(documents: Iterable[Document]) -> Iterator[tuple[str, Sequence]]:
  """Yields (table, cells) for all that documents hold, tables being those of the module's head."""
  for document in documents:
    yield 'notes', (document.name, document.text)
    for i, span in enumerate(document.spans, 1):
      yield 'spans', (document.name, f'T{i}', *span, document.text[span.start:span.end])
    for link in document.relations:
      yield 'relations', (document.name, link.type, f'T{link.head + 1}', f'T{link.tail + 1}')


def csv_tables(documents: Iterable[Document]) -> dict[str, str]:
  """{file: content}: notes.csv, spans.csv and relations.csv."""
  held = {name: io.StringIO(newline='') for name in _COLUMNS}
  written = {name: csv.writer(file) for name, file in held.items()}
  for name, columns in _COLUMNS.items():
    written[name].writerow(columns)
  for name, cells in table_rows(documents):
    written[name].writerow(cells)
  return {f'{name}.csv': file.getvalue() for name, file in held.items()}


def parquet_tables(documents: Iterable[Document]) -> dict[str, bytes]:
  """{file: content}: notes.parquet, spans.parquet and relations.parquet."""
  parquet = arrow_parquet('notes.parquet')
  import pyarrow

  rows = {name: [] for name in _COLUMNS}
  for name, cells in table_rows(documents):
    rows[name].append(dict(zip(_COLUMNS[name], cells, strict=True)))
  kinds = {'start': pyarrow.int64(), 'end': pyarrow.int64()}
  written = {}
  for name, columns in _COLUMNS.items():
    schema = pyarrow.schema([(column, kinds.get(column, pyarrow.string())) for column in columns])
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows[name], schema), file)
    written[f'{name}.parquet'] = file.getvalue()
  return written
