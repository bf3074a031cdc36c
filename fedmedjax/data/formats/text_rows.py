"""Rows of an input and what is to be written about it: JSON lines, CSV, Parquet.

    {"input": "Chest pain since Monday.\\nDoes the patient have pain?", "target": "yes"}
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import with_own_names
from fedmedjax.data.formats.part_names import PARTS, named_parts
from fedmedjax.data.formats.table_rows import IDS, cell_text, column, needed, read_rows
from fedmedjax.data.sources import is_counter, stated
from fedmedjax.types import Document, InputError

ROWS = 'rows'  # the format's name
_INPUTS, _TARGETS = ('input',), ('target',)
_SOURCES = ('source', 'patient_id', 'subject_id', 'patient', 'hadm_id', 'pmid')
_SPLITS = ('part', 'split')
_SHOWN = 40  # characters of a wrong cell that an error quotes
_PART_END = '/'  # ends the part at the head of a row's name, where the row says its part


def read_text_rows(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file of rows.

  Names of columns count without their case. `input` and `target` are needed; `source` (or a column
  that names the patient or article, see `sources.stated`) says which rows belong together, `part`
  is train, dev or test, an id names the row. Cells keep their blanks; numbers become their text.

  Args:
    path: of a file of JSON, CSV or Parquet, by its ending.

  Returns:
    The documents, in the order of the file, with `target`; and counts: documents,
    renamed_documents.

  Raises:
    InputError: a column is missing, or a cell is empty or no text; all such rows in one error.
  """
  rows = read_rows(Path(path))
  if not rows.rows:
    raise InputError(f'no row in {path}')
  names = needed(rows, input=_INPUTS, target=_TARGETS)
  return _documents(
    rows.columns, names, rows.rows, rows.path.stem.replace(_PART_END, '_'))


def given_rows(
  site: str, rows: Iterable[Mapping[str, Any]]
) -> tuple[list[Document], Counter]:
  """As `read_text_rows`, with its errors, of rows that were given in Python.

  Args:
    site: its name, for errors.
    rows: objects with the keys that a file has as columns.
  """
  origin, placed = f'site {site!r}, row', []
  for number, row in enumerate(rows, 1):
    if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
      raise InputError(
        f"{origin}:{number}: {type(row).__name__}: {{'input': TEXT, 'target': TEXT}} is allowed")
    placed.append(((origin, number), row))
  if not placed:
    raise InputError(f'site {site!r}: there is no row')
  columns = tuple(dict.fromkeys(key for _, row in placed for key in row))
  found = {use: column(columns, (use,)) for use in ('input', 'target')}
  for use, name in found.items():
    if name is None:
      raise InputError(
        f"{origin}:1: has no {use!r}; it has {', '.join(map(repr, columns)) or 'nothing'}")
  return _documents(columns, found, placed, site)


def _documents(
  columns: Sequence[str], names: Mapping[str, str], rows: Sequence[tuple[tuple, Mapping]],
  stem: str,
) -> tuple[list[Document], Counter]:
  """The documents of rows (place, row); `names` are the columns of input and target."""
  others = [name for name in columns if name not in names.values()]
  source, split, ident = (column(others, known) for known in (_SOURCES, _SPLITS, IDS))
  parted = any(cell_text(place, row, split).strip() for place, row in rows)
  documents, faults = [], Faults()
  for place, row in rows:
    with faults:
      cells = {use: cell_text(place, row, name) for use, name in names.items()}
      for use, text in cells.items():
        if not text.strip():
          raise InputError(f'{place[0]}:{place[1]}: {names[use]!r} is empty')
      own = cell_text(place, row, ident).strip()
      of = cell_text(place, row, source).strip() or stated(row)
      of = '' if of == own else of
      # Within one site a small number is a source like any other; see `sources.known_sources`.
      of = f'source-{of}' if is_counter(of) else of
      name = own.replace(_PART_END, '_') or f'row_{stem}_{place[1]:06d}'
      part = f'{_part(place, row, split)}{_PART_END}' if parted else ''
      documents.append(
        Document(f'{part}{name}', cells['input'], (), (), of, target=cells['target']))
  faults.tell()
  counts = Counter(documents=len(documents))
  return with_own_names(documents, counts), counts


def stated_parts(documents: Sequence[Document]) -> dict[str, list[Document]] | None:
  """{part: its rows} where rows say their part; None where no row says one.

  Raises:
    InputError: some rows say their part, and others do not.
  """
  parts: dict[str, list[Document]] = {}
  for document in documents:
    part, end, _ = document.name.partition(_PART_END)
    parts.setdefault(part if end else '', []).append(document)
  silent = parts.get('', [])
  if silent and len(parts) > 1:
    raise InputError(
      f'row {silent[0].name!r} says no part, and others do; train, dev or test in all rows, or in '
      'none, is allowed')
  return None if silent else parts


def _part(place: tuple, row: Mapping, name: str | None) -> str:
  """The part that a row says it is of."""
  said = cell_text(place, row, name).strip()
  found = named_parts(said)
  if len(found) != 1:
    raise InputError(
      f'{place[0]}:{place[1]}: {name!r} is {said[:_SHOWN]!r}; one of {", ".join(PARTS)} is '
      'allowed, or nothing in all rows')
  return found.pop()

