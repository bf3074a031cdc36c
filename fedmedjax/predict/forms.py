"""The values of --format: in which files annotated notes are written."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedmedjax.data.formats.cas_files import library
from fedmedjax.data.formats.doccano import doccano_record
from fedmedjax.data.formats.label_studio import label_studio_task, labelling
from fedmedjax.data.formats.table_rows import arrow_parquet
from fedmedjax.data.formats.tables import csv_tables, parquet_tables
from fedmedjax.data.formats.uima_writer import type_system, uima_json, uima_xmi
from fedmedjax.data.formats.writers import brat_annotation, with_plain_names
from fedmedjax.data.schema import plain_name
from fedmedjax.data.tasks import Asked
from fedmedjax.predict.pages import index_page, note_page
from fedmedjax.predict.places import place, stem
from fedmedjax.types import Document, Schema


def _no_files(name: str) -> tuple[str, ...]:
  return ()


def _no_texts(document: Document, record: dict, schema: Schema) -> tuple[str, ...]:
  return ()


def _nothing_whole(
  records: dict, skipped: dict, asked: Mapping[str, Asked], schema: Schema
) -> dict[str, str]:
  return {}


class Form(NamedTuple):
  """A value of --format: the files that are written beside the records."""

  files: Callable[[str], tuple[str, ...]] = _no_files  # (note's name) -> paths below the output
  # (document, record, schema) -> text of each path
  texts: Callable[[Document, dict, Schema], tuple[str, ...]] = _no_texts
  # ({name: record}, {name: why skipped}, what was asked, schema) -> {path: text}, once for all
  # notes
  whole: Callable[[dict, dict, Mapping[str, Asked], Schema], dict[str, str]] = _nothing_whole
  joint: tuple[str, ...] = ()  # paths of files that each hold all notes
  # (all documents) -> content of each of these paths
  joined: Callable[[Sequence[Document]], tuple[str | bytes, ...]] | None = None
  needs: Callable[[str], Any] | None = None  # raises InputError where a package is not there


def _types(asked: Mapping[str, Asked]) -> tuple[list[str], dict[str, list[str]]]:
  """(entity types, {modifier type: entity types that can have it}) that were asked for."""
  mains: dict[str, list[str]] = {}
  for of, kinds in (pair for pairs in asked.values() for pair in pairs.items() if pair[0]):
    for kind in kinds:
      mains.setdefault(kind, []).append(of)
  return [kind for pairs in asked.values() for kind in pairs.get('', ())], mains


def _brat_types(asked: Mapping[str, Asked]) -> str:
  """The text of brat's annotation.conf, without which brat shows the annotations as errors."""
  entities, mains = _types(asked)
  entities = [*map(plain_name, entities)]
  mains = {plain_name(kind): [*map(plain_name, of)] for kind, of in mains.items()}
  lines = [
    '[entities]', *entities, *mains, '[relations]',
    '<OVERLAP>\tArg1:<ENTITY>, Arg2:<ENTITY>, <OVL-TYPE>:<ANY>',
    *(f'{kind}\tArg1:{"|".join(of)}, Arg2:{kind}' for kind, of in mains.items()),
    '[events]', '[attributes]']
  return ''.join(f'{line}\n' for line in lines)


def _labelling(asked: Mapping[str, Asked]) -> str:
  """The labelling configuration of a project of Label Studio."""
  entities, mains = _types(asked)
  return labelling([*entities, *mains], list(mains))


def _tasks(documents: Sequence[Document]) -> str:
  return json.dumps([label_studio_task(one) for one in documents], ensure_ascii=False, indent=1)


def _lines(documents: Sequence[Document]) -> str:
  return ''.join(
    json.dumps(doccano_record(one), ensure_ascii=False) + '\n' for one in documents)


_TABLES = ('notes', 'spans', 'relations')
FORMS = {
  'brat': Form(
    lambda name: (f'brat/{stem(name)}.txt', f'brat/{stem(name)}.ann'),
    lambda document, record, schema: (
      document.text, brat_annotation(with_plain_names(document))),
    lambda records, skipped, asked, schema: {'brat/annotation.conf': _brat_types(asked)}),
  'jsonl': Form(),
  'html': Form(
    lambda name: (f'html/{place(name)}.html',),
    lambda document, record, schema: (note_page(document, record, schema),),
    lambda records, skipped, asked, schema: {
      'html/index.html': index_page(
        [records[name] for name in sorted(records)], skipped, schema)}),
  'label_studio': Form(
    whole=lambda records, skipped, asked, schema: {'label_studio/labelling.xml': _labelling(asked)},
    joint=('label_studio/tasks.json',), joined=lambda documents: (_tasks(documents),)),
  'doccano': Form(
    joint=('doccano/notes.jsonl',), joined=lambda documents: (_lines(documents),)),
  'uima_xmi': Form(
    lambda name: (f'uima_xmi/{stem(name)}.xmi',),
    lambda document, record, schema: (uima_xmi(document),),
    lambda records, skipped, asked, schema: {'uima_xmi/TypeSystem.xml': type_system()},
    needs=library),
  'uima_json': Form(
    lambda name: (f'uima_json/{stem(name)}.json',),
    lambda document, record, schema: (uima_json(document),), needs=library),
  'csv': Form(
    joint=tuple(f'csv/{name}.csv' for name in _TABLES),
    joined=lambda documents: tuple(csv_tables(documents).values())),
  'parquet': Form(
    joint=tuple(f'parquet/{name}.parquet' for name in _TABLES),
    joined=lambda documents: tuple(parquet_tables(documents).values()), needs=arrow_parquet),
}
