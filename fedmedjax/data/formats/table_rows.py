"""Rows of CSV, Parquet and JSON files, with their places; and columns under their usual names."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import Place, json_records, read_text, text_field
from fedmedjax.types import InputError

TABLES = ('.csv', '.tsv', '.parquet')
LINES = ('.jsonl', '.ndjson', '.json')
# Names of the column or key that names a note, the first that is there counts; compared as `plain`
# has them. NOTE_IDS is for rows that may have an id of their own.
_CLEAR = ('document_id', 'doc_id', 'note_id', 'report_id', 'text_id', 'row_id')
_NAMES = ('file', 'file_name', 'document', 'doc')
IDS = (*_CLEAR, 'id', *_NAMES)
NOTE_IDS = (*_CLEAR, 'note', *_NAMES, 'id')
TEXTS = ('text', 'note_text', 'note', 'content', 'report', 'body')
_DELIMITERS = ',;\t|'
_MOST = 2**31 - 1  # characters of a cell; Python's own limit is shorter than long notes


class Rows(NamedTuple):
  """The rows of a file.

  Cells of CSV are texts, those of Parquet and JSON have the types of the file; None is a cell
  without a value.
  """

  path: Path
  columns: tuple[str, ...]
  rows: list[tuple[Place, dict[str, Any]]]  # the place is a line, in Parquet a row from 1


def read_rows(path: Path) -> Rows:
  """Reads a file of rows by its ending, one of TABLES and LINES.

  A CSV file has its names in the first line, and commas, semicolons, tabs or bars between cells:
  what the first line has most of.

  Raises:
    InputError: the file cannot be read or is none of these, or a row has more or fewer cells than
      the first line; all such rows are told in one error.
  """
  ending = path.suffix.lower()
  if ending == '.parquet':
    return _parquet(path)
  if ending in LINES:
    rows = list(json_records(path, 'rows, an object a line or an array of them'))
    return Rows(path, tuple(dict.fromkeys(key for _, row in rows for key in row)), rows)
  if ending not in TABLES:
    raise InputError(f'{path}: a file ending in {", ".join((*TABLES, *LINES))} is expected')
  text = read_text(path)
  head = text.partition('\n')[0]
  delimiter = '\t' if ending == '.tsv' else max(_DELIMITERS, key=head.count)
  lines, faults = _csv_lines(path, text, delimiter), Faults()
  number, columns = next(lines, (1, []))
  if not any(columns):
    raise InputError(f'{path}:{number}: the first line has no names of columns')
  if len(set(columns)) < len(columns):
    twice = next(name for name in columns if columns.count(name) > 1)
    raise InputError(f'{path}:{number}: the column {twice!r} occurs twice')
  rows = []
  for number, cells in lines:
    if len(cells) == len(columns):
      rows.append(((path, number), dict(zip(columns, cells, strict=True))))
    elif cells:  # an empty line is no row
      faults.found.append(InputError(
        f'{path}:{number}: {len(cells)} cells, the first line has {len(columns)}'))
  faults.tell()
  return Rows(path, tuple(columns), rows)


def _csv_lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
  """Yields (number of the line in which it begins, cells) of each row."""
  limit, first = csv.field_size_limit(_MOST), 1
  lines = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
  try:
    for cells in lines:
      yield first, cells
      first = lines.line_num + 1
  except csv.Error as error:
    raise InputError(f'{path}:{first}: no CSV: {error}') from None
  finally:
    csv.field_size_limit(limit)


def _parquet(path: Path) -> Rows:
  """The rows of a Parquet file."""
  parquet = arrow_parquet(path)
  if not path.is_file():
    raise InputError(f'cannot read {path}: there is no such file')
  try:
    table = parquet.read_table(path)
    # Arrow trusts offsets as they stand in a file; wrong ones would end the process.
    table.validate(full=True)
    rows = [((path, number), row) for number, row in enumerate(table.to_pylist(), 1)]
  except Exception as error:  # whatever a damaged file makes of Arrow
    line = (str(error).splitlines() or [''])[0]
    raise InputError(f'cannot read {path} as Parquet: {type(error).__name__}: {line}') from None
  return Rows(path, tuple(table.column_names), rows)


def arrow_parquet(place: object) -> ModuleType:
  """pyarrow's module for Parquet; raises InputError, naming the extra, where it is not there."""
  try:
    import pyarrow.parquet
  except ImportError:
    raise InputError(f"{place}: Parquet needs a package; pip install 'fedmedjax[datasets]'"
                     ) from None
  return pyarrow.parquet


def plain(name: str) -> str:
  """A column's name as names are compared: letters and figures only, in small letters."""
  return ''.join(filter(str.isalnum, name)).casefold()


def column(columns: Iterable[str], names: Sequence[str]) -> str | None:
  """The column under the first of `names` that is there, None where none is."""
  there = {plain(name): name for name in reversed([*columns])}
  return next((there[plain(name)] for name in names if plain(name) in there), None)


def needed(rows: Rows, **wanted: Sequence[str]) -> dict[str, str]:
  """{use: its column}; raises InputError naming the columns that are there where one is missing.

  Args:
    rows: of a file.
    **wanted: for each use the names that its column may have.
  """
  found = {use: column(rows.columns, names) for use, names in wanted.items()}
  missing = [f'{use} (such as {", ".join(map(repr, wanted[use][:4]))})'
             for use, name in found.items() if name is None]
  if missing:
    there = ', '.join(map(repr, rows.columns)) or 'no column'
    raise InputError(f'{rows.path}:1: has no column for {" and none for ".join(missing)}; '
                     f'it has {there}')
  return found


def name_field(place: Place, record: dict, form: str) -> str:
  """The id of a note's record, under the first of IDS that is there; '' where it has none."""
  key = column(record, IDS)
  if key is None or not isinstance(record[key], str | int):
    return ''
  return text_field(place, {'id': record[key]}, 'id', form)


def cell_text(place: Place, row: Mapping[str, Any], name: str | None) -> str:
  """A cell as text; '' for none, whole numbers without a point.

  Raises:
    InputError: it holds something else than a text or a number.
  """
  value = row.get(name)
  # What pandas has in an empty cell.
  if value is None or isinstance(value, float) and value != value or (
      type(value).__name__ in ('NAType', 'NaTType')):
    return ''
  if isinstance(value, bool | np.bool_):
    raise InputError(
      f"{place[0]}:{place[1]}: {name!r} holds no text but {value}; write it as text, such as 'yes'")
  if isinstance(value, Integral) or isinstance(value, float) and value.is_integer():
    value = int(value)  # floats are those of a column with empty cells
  if not isinstance(value, str | Real):
    raise InputError(f'{place[0]}:{place[1]}: {name!r} holds no text')
  try:
    return str(value).encode().decode()
  except (UnicodeEncodeError, ValueError) as error:
    raise InputError(f'{place[0]}:{place[1]}: {name!r} is no UTF-8 text') from error


def cell_number(place: Place, row: Mapping[str, Any], name: str) -> int:
  """A cell as an offset; raises InputError unless it is a whole number of nine digits at most."""
  text = cell_text(place, row, name).strip()
  text = text[:-2] if text.endswith('.0') else text
  if not (text.isascii() and text.isdigit() and len(text) <= 9):
    raise InputError(f'{place[0]}:{place[1]}: {name!r} is no offset: {text[:40]!r}')
  return int(text)
