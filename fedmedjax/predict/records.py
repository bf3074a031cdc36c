"""Annotated notes on disk: a line of JSON each, and files in the formats that people use."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedmedjax.predict.annotate import Annotation
from fedmedjax.predict.forms import FORMS
from fedmedjax.store.files import read_lines, write_lines, write_text
from fedmedjax.types import Document, InputError, Relation, Schema, Span

RECORDS, SKIPPED = 'annotations.jsonl', 'skipped.jsonl'


def _checksum(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def record_of(annotation: Annotation) -> dict:
  """A note's line of annotations.jsonl."""
  document = annotation.document
  counts = {key: value for key, value in annotation._asdict().items() if key != 'document'}
  return {
    'file': document.name, 'sha256': _checksum(document.text), **counts,
    'entities': [
      {'start': span.start, 'end': span.end, 'type': span.type,
       'text': document.text[span.start:span.end]} for span in document.spans],
    'relations': [link._asdict() for link in document.relations],
  }


def held_document(record: Any, note: Document) -> Document | None:
  """The note with the annotation of its record; None when the text has changed or it is damaged."""
  try:
    if record['sha256'] != _checksum(note.text):
      return None
    spans = tuple(Span(e['start'], e['end'], e['type']) for e in record['entities'])
    links = tuple(Relation(link['type'], link['head'], link['tail'])
                  for link in record['relations'])
    same_texts = (
      [note.text[s.start:s.end] for s in spans] == [e['text'] for e in record['entities']])
    has_counts = {*Annotation._fields} - {'document'} <= record.keys()
    ends_exist = all(0 <= at < len(spans) for link in links for at in (link.head, link.tail))
  except (KeyError, TypeError):
    return None
  whole = same_texts and has_counts and ends_exist
  return note._replace(spans=spans, relations=links) if whole else None


def read_records(output: Path) -> dict[str, dict]:
  """{note's file: its record}; of several records of a note, the last.

  Raises:
    InputError: annotations.jsonl is damaged.
  """
  try:
    lines = read_lines(output / RECORDS)
  except UnicodeDecodeError as error:
    raise InputError(f'{output / RECORDS}: damaged ({error.reason}); delete it, and all notes are '
                     'annotated again') from None
  return {
    line['file']: line for line in lines
    if isinstance(line, dict) and isinstance(line.get('file'), str)}


def _in_order(records: dict[str, dict]) -> list[dict]:
  """The records, by file name."""
  return [records[file] for file in sorted(records)]


def missing_files(output: Path, form: str, file: str) -> list[Path]:
  """The paths of a note in format `form` that do not exist yet."""
  return [path for path in _paths(output, form, file) if not path.exists()]


def write_files(
  output: Path, form: str, document: Document, record: dict, schema: Schema,
  only_missing: bool = False,
) -> None:
  """Writes a note's files.

  With `only_missing`, files that exist stay as they are, since people may have corrected them.
  """
  paths = _paths(output, form, document.name)
  wanted = missing_files(output, form, document.name) if only_missing else paths
  for path, text in zip(paths, FORMS[form].texts(document, record, schema), strict=True):
    if path in wanted:
      write_text(path, text)


def take_away_other_forms(output: Path, form: str, file: str) -> None:
  """Removes a note's files in all formats but `form`; a later command writes them again."""
  for other in FORMS:
    if other != form:
      for path in _paths(output, other, file):
        path.unlink(missing_ok=True)


def write_joint(output: Path, form: str, documents: Iterable[Document]) -> None:
  """Writes the files of a format that hold all notes, if it has such."""
  chosen = FORMS[form]
  if chosen.joined:
    for name, content in zip(chosen.joint, chosen.joined(list(documents)), strict=True):
      if isinstance(content, str):
        write_text(output / name, content)
      else:
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + '.part')
        part.write_bytes(content)
        part.replace(path)


def take_away_joint(output: Path, form: str) -> None:
  """Removes what holds all notes in all formats but `form`; a later command writes it again."""
  for other in FORMS:
    if other != form:
      for name in FORMS[other].joint:
        (output / name).unlink(missing_ok=True)


def _paths(output: Path, form: str, file: str) -> list[Path]:
  return [output / name for name in FORMS[form].files(file)]


def append_record(output: Path, record: dict) -> None:
  """Appends a line to annotations.jsonl and waits until it is on disk."""
  with (output / RECORDS).open('a', encoding='utf-8') as file:
    # In ASCII, so that a line cut off by a crash leaves no broken UTF-8 character.
    file.write(json.dumps(record) + '\n')
    file.flush()
    os.fsync(file.fileno())


def write_lists(output: Path, records: dict[str, dict], skipped: dict[str, str]) -> None:
  """Writes annotations.jsonl and skipped.jsonl whole, by file name."""
  write_lines(output / RECORDS, _in_order(records))
  write_lines(output / SKIPPED, (
    {'file': file, 'reason': reason} for file, reason in sorted(skipped.items())))


