"""Annotated notes as self-contained HTML pages: nothing is loaded, all text is escaped.

The page of a note has one script, with which a person checks its spans and saves the result
(review.js in templates/); the Content-Security-Policy names its checksum and allows no other.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from fedmedjax.data.schema import plain_name
from fedmedjax.predict.places import place, stem
from fedmedjax.report.type_colours import type_colours
from fedmedjax.types import PAPER, Document, Schema

# The colours of entity types are those of reports (types.css there).
_PAGES = jinja2.Environment(
  loader=jinja2.ChoiceLoader(
    [jinja2.PackageLoader(f'fedmedjax.{room}') for room in ('predict', 'report')]),
  autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_SCRIPT = ''.join(
  _PAGES.loader.get_source(_PAGES, name)[0] for name in ('characters.js', 'review.js'))
_CHECKSUM = 'sha256-' + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_UNCHECKED = 'Found by a language model and not checked by anybody.'


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


def note_page(document: Document, record: Mapping[str, Any], schema: Schema = PAPER) -> str:
  """The HTML page of a note, for html/FILE.html.

  Args:
    document: the note with its annotation.
    record: its line of annotations.jsonl.
    schema: whose types there are.
  """
  depth = len(PurePosixPath(place(document.name)).parts) - 1
  spans = record['entities']
  return _PAGES.get_template('note.html').render(
    record=record, index='../' * depth + 'index.html', stretches=stretches(document),
    types=_counted(spans, schema.types), colours=type_colours(schema),
    relations=[(spans[link['head']], link['type'], spans[link['tail']])
               for link in record['relations']],
    modifier_types=schema.kinds, unchecked=_UNCHECKED, script=Markup(_SCRIPT), checksum=_CHECKSUM,
    held=_in_script({
      'record': record, 'text': document.text, 'entity_types': schema.types,
      'allowed': schema.modifiers,
      'plain': {kind: plain_name(kind) for kind in (*schema.types, *schema.kinds)},
      # As in brat's folder.
      'name': PurePosixPath(stem(document.name)).name}))


def _in_script(value: Mapping[str, Any]) -> Markup:
  """JSON inside of a <script>: no sign of it can end the element or begin a comment."""
  return Markup(json.dumps(value).replace('<', '\\u003c'))


def index_page(
  records: Sequence[Mapping[str, Any]], skipped: Mapping[str, str], schema: Schema = PAPER
) -> str:
  """The HTML page that lists all notes and the files that were skipped, {file: why}."""
  types = _counted([span for record in records for span in record['entities']], schema.types)
  return _PAGES.get_template('notes.html').render(
    types=types, colours=type_colours(schema), unchecked=_UNCHECKED,
    skipped=sorted(skipped.items()), notes=[
      (record, quote(f'{place(record["file"])}.html'),
       Counter(span['type'] for span in record['entities'])) for record in records])


def _counted(spans: Sequence[Mapping[str, Any]], types: Sequence[str]) -> dict[str, int]:
  """{type: number of spans}, entity types first, then modifier types."""
  counts = Counter(span['type'] for span in spans)
  order = [*types, *sorted(counts.keys() - set(types))]
  return {kind: counts[kind] for kind in order if kind in counts}
