"""Annotated notes as self-contained HTML pages: no script, nothing loaded, all text escaped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2

from fedmedjax.types import ENTITY_TYPES, Document

_PAGES = jinja2.Environment(
  loader=jinja2.PackageLoader('fedmedjax.predict'), autoescape=True,
  undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Stretch(NamedTuple):
  """A stretch of text with the same spans over all of it."""

  text: str
  types: tuple[str, ...]   # types of the spans that cover the stretch
  ending: tuple[str, ...]  # types of those of them that end with it


def stretches(document: Document) -> list[Stretch]:
  """The text cut at the start and end of every span; spans may overlap."""
  edges = sorted({0, len(document.text), *(at for span in document.spans for at in span[:2])})
  later = sorted(document.spans, reverse=True)
  covering, parts = [], []
  for start, end in zip(edges, edges[1:], strict=False):
    covering = [span for span in covering if span.end > start]
    while later and later[-1].start <= start:
      covering.append(later.pop())
    parts.append(Stretch(
      document.text[start:end], tuple(span.type for span in covering),
      tuple(span.type for span in covering if span.end == end)))
  return parts


def note_page(document: Document, record: Mapping[str, Any]) -> str:
  """The HTML page of a note, for html/FILE.html; `record` is its line of annotations.jsonl."""
  depth = len(PurePosixPath(document.name).parts) - 1
  spans = record['entities']
  return _PAGES.get_template('note.html').render(
    record=record, index='../' * depth + 'index.html', stretches=stretches(document),
    types=_counted(spans), entity_types=ENTITY_TYPES,
    relations=[(spans[link['head']], link['type'], spans[link['tail']])
               for link in record['relations']])


def index_page(records: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
  """The HTML page that lists all notes and the files that were skipped, {file: why}."""
  types = _counted([span for record in records for span in record['entities']])
  return _PAGES.get_template('notes.html').render(
    types=types, entity_types=ENTITY_TYPES, skipped=sorted(skipped.items()), notes=[
      (record, quote(f'{record["file"]}.html'), Counter(s['type'] for s in record['entities']))
      for record in records])


def _counted(spans: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """{type: number of spans}, entity types first, then modifier types."""
  counts = Counter(span['type'] for span in spans)
  order = [*ENTITY_TYPES, *sorted(counts.keys() - set(ENTITY_TYPES))]
  return {kind: counts[kind] for kind in order if kind in counts}
