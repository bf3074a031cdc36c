"""The notes that are to be annotated: text files, rows of tables or of JSON, FHIR resources."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.fhir import is_fhir, read_fhir
from fedmedjax.data.formats.files import read_text
from fedmedjax.data.formats.table_rows import (
  IDS,
  LINES,
  TABLES,
  TEXTS,
  Rows,
  cell_text,
  column,
  plain,
  read_rows,
)
from fedmedjax.predict.places import in_own_places, too_long
from fedmedjax.types import Document, InputError

_ENDINGS = (*TABLES, *LINES)


class Notes(NamedTuple):
  """The notes of an input."""

  names: list[str]         # files below its folder, or ids
  skipped: dict[str, str]  # {name: why it cannot be a note}; more are added while notes are read
  # (names) -> the notes that can be read; the others are added to `skipped`
  read: Callable[[Sequence[str]], Iterator[Document]]


def find_notes(source: Path, text_column: str = '', id_column: str = '') -> Notes:
  """Finds the notes of `--input`.

  Args:
    source: a folder with text files, *.txt in UTF-8, in it and any sub-folders, of which hidden
      files are ignored; or, where it has none, with tables and files of JSON; or one of these.
    text_column: the column or key of the texts; '' = text or a usual name of it.
    id_column: that of the ids; '' = note_id, id or a usual name, and the row's number without one.

  Raises:
    InputError: there is no such input, a column is missing, an id occurs twice, or a file cannot
      be read; all errors are told in one.
  """
  chosen = {'--text_column': text_column, '--id_column': id_column}
  if source.is_dir():
    notes = _text_files(source)
    if notes.names or notes.skipped:
      for flag, value in chosen.items():
        if value:
          raise InputError(f'{flag}={value}: goes with rows of a table or of JSON, and '
                           f'--input={source} holds .txt files')
      return notes
    files = sorted(path for path in source.rglob('[!.]*')
                   if path.suffix.lower() in _ENDINGS and path.is_file() and not any(
                     part.startswith('.') for part in path.relative_to(source).parts))
    if not files:
      raise InputError(f'--input={source}: holds no .txt file, nor one ending in '
                       f'{", ".join(_ENDINGS)}')
  elif source.is_file():
    if source.suffix.lower() not in _ENDINGS:
      raise InputError(f'--input={source}: a folder of .txt files is expected, or a file ending in '
                       f'{", ".join(_ENDINGS)}')
    files = [source]
  else:
    raise InputError(f'--input={source}: a folder of .txt files is expected, or a file ending in '
                     f'{", ".join(_ENDINGS)}; none is there')
  texts, skipped = _held(files, chosen)
  skipped |= {name: why for name in texts if (why := too_long(name))}
  names = in_own_places((name for name in texts if name not in skipped), skipped)
  return Notes(names, skipped, lambda names: (
    Document(name, texts[name], (), ()) for name in names))


def _held(files: Sequence[Path], chosen: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """({id: text}, {id: why it has none}) of files of rows or of FHIR resources."""
  texts, skipped, faults = {}, {}, Faults()
  for path in files:
    with faults:
      if path.suffix.lower() in LINES and is_fhir(path):
        found, without = read_fhir(path)
        for flag, value in chosen.items():
          if value:
            raise InputError(f'{flag}={value}: goes with rows, and {path} holds FHIR resources')
      else:
        found, without = _of_rows(read_rows(path), chosen)
      twice = next((name for name in (*found, *without) if name in texts or name in skipped), None)
      if twice is not None:
        raise InputError(f'{path}:1: the id {twice!r} occurs in another file, too')
      texts |= found
      skipped |= without
  faults.tell()
  if not texts and not skipped:
    raise InputError(f'{files[0]}: has no row')
  return texts, skipped


def _of_rows(rows: Rows, chosen: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """({id: text}, {id: why it has none}) of the rows of a file."""
  text = _column(rows, '--text_column', chosen, TEXTS)
  if text is None and rows.rows:
    raise InputError(f'{rows.path}:1: has no column {TEXTS[0]!r}; --text_column names one of '
                     f'{", ".join(map(repr, rows.columns))}')
  ids = rows._replace(columns=tuple(name for name in rows.columns if name != text))
  ident = _column(ids, '--id_column', chosen, IDS)
  texts, skipped, faults = {}, {}, Faults()
  for number, (place, row) in enumerate(rows.rows, 1):
    with faults:
      name = cell_text(place, row, ident) if ident else f'{rows.path.stem}_{number:06d}'
      if not name.strip():
        raise InputError(f'{place[0]}:{place[1]}: {ident!r} is empty')
      if name in texts or name in skipped:
        raise InputError(f'{place[0]}:{place[1]}: the id {name!r} occurs twice')
      words = '' if row.get(text) is None else cell_text(place, row, text)
      if words.strip():
        texts[name] = words
      else:
        skipped[name] = f'{place[1]}: has no {text!r}'
  faults.tell()
  return texts, skipped


def _column(rows: Rows, flag: str, chosen: dict[str, str], usual: Sequence[str]) -> str | None:
  """The column that a flag names, or a usual one, or None; raises InputError for one not there."""
  name = chosen[flag]
  if not name:
    return column(rows.columns, usual)
  found = name if name in rows.columns else next(
    (there for there in rows.columns if plain(there) == plain(name)), None)
  if found is None and rows.rows:
    raise InputError(f'{flag}={name}: {rows.path}:1 has no such column; it has '
                     f'{", ".join(map(repr, rows.columns))}')
  return found


def _text_files(folder: Path) -> Notes:
  """The text files below a folder."""
  names, skipped = [], {}

  def place(path: str | Path) -> str:
    return os.fsencode(Path(path).relative_to(folder)).decode(errors='backslashreplace')

  def unreadable(error: OSError) -> None:
    skipped[place(error.filename)] = f'cannot read the folder: {error.strerror}'

  for parent, folders, files in os.walk(folder, onerror=unreadable):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    skipped |= {place(path): 'a link to a folder, which is not followed'
                for path in (Path(parent, name) for name in folders) if path.is_symlink()}
    for name in sorted(files):
      if name.startswith('.') or not name.lower().endswith('.txt'):
        continue
      path = Path(parent, name)
      reason = _unusable(path, path.relative_to(folder))
      if reason:
        skipped[place(path)] = reason
      else:
        names.append(place(path))

  def read(wanted: Sequence[str]) -> Iterator[Document]:
    for file in wanted:
      try:
        text = read_text(folder / file, mark=True)
      except InputError as error:
        # skipped.jsonl names the file anyway.
        skipped[file] = str(error).removeprefix(f'cannot read {folder / file}: ').removeprefix(
          f'{folder / file}:')
        continue
      yield Document(file, text, (), ())

  return Notes(in_own_places(sorted(names), skipped), skipped, read)


def _unusable(path: Path, file: Path) -> str:
  """Why a file cannot be a note, or ''."""
  try:
    os.fsencode(file).decode()
  except UnicodeDecodeError:
    return 'its name is no UTF-8 text'
  return too_long(file.as_posix()) or ('' if os.path.isfile(path) else 'is no file')
