"""The formats in which notes are read, and the parts (train, dev, test) of a corpus on disk.

A reader takes a path and returns `(documents, counts)`. Types stay as the corpus names them
(`mapping.apply_mapping` translates them), spans stay in file order and may overlap, nest or repeat.
Annotations that a `Document` cannot hold (n-ary relations, notes) or that had to be repaired are
counted, never silently lost; anything malformed is an `InputError` of one line that names the file
and the line.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fedmedjax.data.formats.bigbio import read_bigbio
from fedmedjax.data.formats.bioc import read_bioc
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.conll import read_conll
from fedmedjax.data.formats.doccano import read_doccano
from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import hint, with_own_names
from fedmedjax.data.formats.i2b2 import read_i2b2
from fedmedjax.data.formats.label_studio import read_label_studio
from fedmedjax.data.formats.part_names import named_parts, parts_by_name
from fedmedjax.data.formats.phee import read_phee
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.data.formats.reference import read_reference
from fedmedjax.data.formats.saved_datasets import read_datasets
from fedmedjax.data.formats.table_rows import LINES, TABLES
from fedmedjax.data.formats.tables import read_tables
from fedmedjax.data.formats.text_rows import ROWS, read_text_rows, stated_parts
from fedmedjax.data.formats.uima import read_uima
from fedmedjax.types import Document, InputError


class Format(NamedTuple):
  """How notes of one format are read."""

  read: Callable[[Path], tuple[list[Document], Counter]]
  suffixes: tuple[str, ...] = ()  # of its files; () where a folder is read as a whole
  together: bool = False  # whether the files of a note may lie in several folders of a part
  asks: bool = False  # whether `read` takes the names of types that a mapping has, as `wanted`


FORMATS = {
  'brat': Format(read_brat),
  'i2b2': Format(read_i2b2, together=True),
  'bioc': Format(read_bioc, ('.xml', '.json')),
  'pubtator': Format(read_pubtator, ('.txt', '.pubtator')),
  'phee': Format(read_phee, ('.json', '.jsonl')),
  'conll': Format(read_conll, (
    '.conll', '.conllu', '.bio', '.bioes', '.bmes', '.iob', '.iob2', '.tsv', '.txt')),
  'reference': Format(read_reference, ('.json', '.jsonl')),
  'bigbio_kb': Format(read_bigbio, ('.jsonl', '.json')),
  'datasets': Format(read_datasets, ('.parquet',)),
  'label_studio': Format(read_label_studio, ('.json',)),
  'doccano': Format(read_doccano, ('.jsonl', '.json')),
  'uima': Format(read_uima, ('.xmi', '.json'), asks=True),
  'tables': Format(read_tables),
  ROWS: Format(read_text_rows, (*LINES, *TABLES)),
}
# The numbering of data sets' files.
_SHARD = re.compile(r'-[0-9]{5}-of-[0-9]{5}')


class Parts(NamedTuple):
  """The documents of a corpus by use.

  `dev` is neither trained nor tested on: it is left for choices that a person makes.
  """

  train: list[Document]
  dev: list[Document]
  test: list[Document]


def read_notes(path: str | Path, form: Format) -> tuple[list[Document], Counter]:
  """Reads a file, or a folder: as a whole, or file by file in the order of their names.

  Args:
    path: of the file or folder.
    form: an entry of FORMATS.

  Raises:
    InputError: there is no such path, no file of the format in it, or the reader refuses a file.
  """
  path = Path(path)
  if not form.suffixes or not path.is_dir() or _saved(path):
    return form.read(path)
  files = sorted(p for p in path.glob('[!.]*') if p.suffix.lower() in form.suffixes)
  if not files:
    raise InputError(
      f'no file ending in {", ".join(form.suffixes)} in {path}{hint(path, form.suffixes)}')
  _check_forms(files)
  documents, total, faults = [], Counter(), Faults()
  for file in files:
    with faults:
      read, counts = form.read(file)
      documents += read
      total.update(counts)
  faults.tell()
  return with_own_names(documents, total), total


def asking(form: Format, names: Collection[str]) -> Format:
  """The format, told the names of types that are wanted of it, where that matters to it."""
  return form._replace(read=partial(form.read, wanted=names)) if form.asks else form


def find_parts(path: Path, form: Format) -> dict[str, list[Path]]:
  """Sub-folders, and files of the format, that are named for a part: {'train': [...], ...}.

  Empty where they are not. Files may be numbered, as in train-00000-of-00002.parquet; see
  `part_names.parts_by_name`, and what it raises.
  """
  entries = [entry for entry in sorted(path.glob('[!.]*')) if entry.suffix.lower() in form.suffixes
             or entry.is_dir()] if path.is_dir() and not _saved(path) else []
  names = {entry: _SHARD.sub('', entry.name if entry.is_dir() else entry.stem) for entry in entries}
  # Folders that are named for none are not read by formats of files, and may be parts of others.
  asked = [names[entry] for entry in entries if named_parts(names[entry]) or not entry.is_dir()]
  parts = parts_by_name(list(dict.fromkeys(asked)), str(path))
  _check_forms([entry for entry in entries if parts and not entry.is_dir()])
  return {part: [entry for entry in entries if names[entry] in parts[part]] for part in parts}


def read_parts(path: Path, form: Format) -> tuple[Parts | list[Document], Counter]:
  """Reads the parts that a folder has, or all of it as one list where it has none."""
  entries_of = find_parts(Path(path), form)
  if not entries_of:
    documents, counts = read_notes(path, form)
    return _by_part(documents, str(path)) or documents, counts
  parts, total, faults = {}, Counter(), Faults()
  for part, entries in entries_of.items():
    documents = []
    for group in [entries] if form.together else zip(entries):
      with faults:
        read, counts = form.read(*group) if form.together else read_notes(*group, form)
        documents += read
        total.update(counts)
    parts[part] = with_own_names(documents, total)
  faults.tell()
  return Parts(*(parts.get(part, []) for part in Parts._fields)), total


def of_rows(documents: list[Document]) -> Parts | list[Document]:
  """Rows by the part that they say themselves, or all of them where none says one."""
  parts = stated_parts(documents)
  return documents if parts is None else Parts(*(parts.get(part, []) for part in Parts._fields))


def _by_part(documents: list[Document], where: str) -> Parts | None:
  """The documents by the part that their names say; None where not both train and test are named.

  So it is with notes of a format that has one in each file, and with records that say their part.

  Args:
    documents: as read.
    where: they are from, for errors, see `part_names.parts_by_name`.
  """
  if any(document.target is not None for document in documents):  # an id of a row says no part
    found = of_rows(documents)
    return found if isinstance(found, Parts) else None
  named = {document.name: named_parts(document.name) for document in documents}
  if not {part for parts in named.values() if len(parts) == 1 for part in parts} >= {
      'train', 'test'}:
    return None
  parts = parts_by_name(list(named), where)
  return Parts(*([d for d in documents if d.name in parts.get(part, ())]
                 for part in Parts._fields))


def _check_forms(files: Sequence[Path]) -> None:
  """Raises InputError where two files have one name but for their ending, as notes in two forms."""
  seen = {}
  for file in files:
    other = seen.setdefault(file.stem.casefold(), file)
    if other is not file:
      raise InputError(f'{file.parent}: {other.name} and {file.name} are the same notes in two '
                       'forms, by their names; leave one of them there')


def _saved(path: Path) -> bool:
  """Whether a folder was written by `Dataset.save_to_disk`."""
  return (path / 'dataset_info.json').is_file() and (path / 'state.json').is_file()
