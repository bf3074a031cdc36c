"""The formats in which notes are read, and how files make the parts of a corpus.

A reader takes a path and returns `(documents, counts)`. Types stay as the corpus names them
(`mapping.apply_mapping` changes that), spans stay in file order and may overlap, nest or repeat.
What a `Document` cannot hold (n-ary relations, notes) or what had to be repaired is counted, never
silently lost; anything malformed is an `InputError` of one line that names the file and the line.
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
from fedmedjax.data.formats.files import with_own_names
from fedmedjax.data.formats.i2b2 import read_i2b2
from fedmedjax.data.formats.phee import read_phee
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.data.formats.reference import read_reference
from fedmedjax.data.formats.saved_datasets import read_datasets
from fedmedjax.types import Document, InputError


class Format(NamedTuple):
  """How notes are read; `suffixes` are those of its files, () where a folder is read as one."""

  read: Callable[[Path], tuple[list[Document], Counter]]
  suffixes: tuple[str, ...] = ()


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
# Names of the parts, and the numbering that data sets add to those of their files.
_PARTS = {
  'train': 'train', 'training': 'train', 'dev': 'dev', 'devel': 'dev', 'validation': 'dev',
  'valid': 'dev', 'test': 'test'}
_SHARD = re.compile(r'-[0-9]{5}-of-[0-9]{5}')


class Parts(NamedTuple):
  """The documents of a corpus by use. `dev` is neither trained nor tested on: it is left for
  choices that a person makes."""

  train: list[Document]
  dev: list[Document]
  test: list[Document]


def read_notes(path: str | Path, form: Format) -> tuple[list[Document], Counter]:
  """Reads a file, or a folder: as one, or file by file in the order of their names.

  Raises:
    InputError: no such path, no file of the format in it, or a reader's.
  """
  path = Path(path)
  if not form.suffixes or not path.is_dir() or _saved(path):
    return form.read(path)
  files = sorted(p for p in path.glob('[!.]*') if p.suffix.lower() in form.suffixes)
  if not files:
    raise InputError(f'no file ending in {", ".join(form.suffixes)} in {path}')
  documents, counts = zip(*(form.read(file) for file in files), strict=True)
  total = sum(counts, Counter())
  return with_own_names([d for part in documents for d in part], total), total


def find_parts(path: Path, form: Format) -> dict[str, list[Path]]:
  """Sub-folders, and files of the format, that are named for a part: {'train': [...], ...}.

  Empty unless the training or test part is among them. Files may be numbered, as in
  train-00000-of-00002.parquet.

  Raises:
    InputError: there is a training part but no test part.
  """
  found: dict[str, list[Path]] = {}
  for entry in sorted(path.glob('[!.]*')) if path.is_dir() else ():
    part = _PARTS.get(_SHARD.sub('', entry.stem).lower())
    if part and (entry.is_dir() or entry.suffix.lower() in form.suffixes):
      found.setdefault(part, []).append(entry)
  if 'train' in found and 'test' not in found:
    raise InputError(f'{path} has {found["train"][0].name} but no test part; name one test')
  return found if 'test' in found else {}


def read_parts(path: Path, form: Format) -> tuple[Parts | list[Document], Counter]:
  """Reads the parts that a folder has, or all of it as one list where it has none."""
  found = find_parts(Path(path), form)
  if not found:
    return read_notes(path, form)
  parts, total = {}, Counter()
  for part, entries in found.items():
    read = [read_notes(entry, form) for entry in entries]
    total += sum((counts for _, counts in read), Counter())
    parts[part] = with_own_names([d for documents, _ in read for d in documents], total)
  return Parts(*(parts.get(part, []) for part in Parts._fields)), total


def _saved(path: Path) -> bool:
  """Whether a folder was written by `Dataset.save_to_disk`."""
  return (path / 'dataset_info.json').is_file() and (path / 'state.json').is_file()
