"""The formats in which notes are read, and the parts (train, dev, test) of a corpus on disk.

A reader takes a path and returns `(documents, counts)`. Types stay as the corpus names them
(`mapping.apply_mapping` translates them), spans stay in file order and may overlap, nest or repeat.
Annotations that a `Document` cannot hold (n-ary relations, notes) or that had to be repaired are
counted, never silently lost; anything malformed is an `InputError` of one line that names the file
and the line.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedmedjax.data.formats.bigbio import read_bigbio
from fedmedjax.data.formats.bioc import read_bioc
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.conll import read_conll
from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import with_own_names
from fedmedjax.data.formats.i2b2 import read_i2b2
from fedmedjax.data.formats.phee import read_phee
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.data.formats.reference import read_reference
from fedmedjax.data.formats.saved_datasets import read_datasets
from fedmedjax.types import Document, InputError


class Format(NamedTuple):
  """How notes of one format are read."""

  read: Callable[[Path], tuple[list[Document], Counter]]
  suffixes: tuple[str, ...] = ()  # of its files; () where a folder is read as a whole


FORMATS = {
  'brat': Format(read_brat),
  'i2b2': Format(read_i2b2),
  'bioc': Format(read_bioc, ('.xml', '.json')),
  'pubtator': Format(read_pubtator, ('.txt', '.pubtator')),
  'phee': Format(read_phee, ('.json', '.jsonl')),
  'conll': Format(read_conll, ('.conll', '.bio', '.iob', '.tsv', '.txt')),
  'reference': Format(read_reference, ('.json', '.jsonl')),
  'bigbio_kb': Format(read_bigbio, ('.jsonl', '.json')),
  'datasets': Format(read_datasets, ('.parquet',)),
}
# Name of a file or folder -> the part that it holds, and the numbering of data sets' files.
_PARTS = {
  'train': 'train', 'training': 'train', 'dev': 'dev', 'devel': 'dev', 'validation': 'dev',
  'valid': 'dev', 'test': 'test'}
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
    raise InputError(f'no file ending in {", ".join(form.suffixes)} in {path}')
  documents, total, faults = [], Counter(), Faults()
  for file in files:
    with faults:
      read, counts = form.read(file)
      documents += read
      total.update(counts)
  faults.tell()
  return with_own_names(documents, total), total


def find_parts(path: Path, form: Format) -> dict[str, list[Path]]:
  """Sub-folders, and files of the format, that are named for a part: {'train': [...], ...}.

  Empty unless the training or test part is among them. Files may be numbered, as in
  train-00000-of-00002.parquet.

  Raises:
    InputError: there is a training part but no test part.
  """
  parts: dict[str, list[Path]] = {}
  for entry in sorted(path.glob('[!.]*')) if path.is_dir() else ():
    part = _PARTS.get(_SHARD.sub('', entry.stem).lower())
    if part and (entry.is_dir() or entry.suffix.lower() in form.suffixes):
      parts.setdefault(part, []).append(entry)
  if 'train' in parts and 'test' not in parts:
    raise InputError(f'{path} has {parts["train"][0].name} but no test part; name one test')
  return parts if 'test' in parts else {}


def read_parts(path: Path, form: Format) -> tuple[Parts | list[Document], Counter]:
  """Reads the parts that a folder has, or all of it as one list where it has none."""
  entries_of = find_parts(Path(path), form)
  if not entries_of:
    return read_notes(path, form)
  parts, total, faults = {}, Counter(), Faults()
  for part, entries in entries_of.items():
    documents = []
    for entry in entries:
      with faults:
        read, counts = read_notes(entry, form)
        documents += read
        total.update(counts)
    parts[part] = with_own_names(documents, total)
  faults.tell()
  return Parts(*(parts.get(part, []) for part in Parts._fields)), total


def _saved(path: Path) -> bool:
  """Whether a folder was written by `Dataset.save_to_disk`."""
  return (path / 'dataset_info.json').is_file() and (path / 'state.json').is_file()
