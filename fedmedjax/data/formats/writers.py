"""The formats in which notes are written: brat, bigbio_kb JSON lines, CoNLL.

brat and bigbio_kb hold the text and all spans and relations of a `Document`, discontinuous entities
as their covering range. CoNLL holds the words of sentences with flat entities, and no relations.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedmedjax.data.schema import plain_name
from fedmedjax.data.scripts import words
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.types import Document, Example, InputError, Relation, Span

_LINE = re.compile('[^\n\r]+')


def write_brat(folder: str | Path, documents: Iterable[Document]) -> None:
  """Writes NAME.txt and NAME.ann of each document.

  A span over several lines is written in as many pieces, as brat wants it; a relation of a span
  to itself as an attribute.

  Raises:
    InputError: a document's name is no file name, brat cannot hold a type, or writing fails.
  """
  folder = Path(folder)
  for document in documents:
    if not re.fullmatch(r'[^/\\\0.][^/\\\0]*', document.name):
      raise InputError(f'{folder}: document name {document.name!r} is no name of a file')
    for kind in {item.type for item in (*document.spans, *document.relations)}:
      if not re.fullmatch(r'\S+', kind):
        raise InputError(f'{folder}: type {kind!r} of document {document.name!r} has blanks, which '
                         'brat has no place for')
    _write(folder / f'{document.name}.txt', document.text)
    _write(folder / f'{document.name}.ann', brat_annotation(document))


def with_plain_names(document: Document) -> Document:
  """The document with names of types that brat and CoNLL can hold, see `schema.plain_name`."""
  return document._replace(
    spans=tuple(span._replace(type=plain_name(span.type)) for span in document.spans),
    relations=tuple(link._replace(type=plain_name(link.type)) for link in document.relations))


def brat_annotation(document: Document) -> str:
  """The content of a document's .ann file."""
  lines = [_brat_span(document.text, i, span) for i, span in enumerate(document.spans, 1)]
  lines += [_brat_relation(i, link) for i, link in enumerate(document.relations, 1)]
  return ''.join(f'{line}\n' for line in lines)


def _brat_span(text: str, number: int, span: Span) -> str:
  """The line of one span."""
  pieces = [piece.span() for piece in _LINE.finditer(text, span.start, span.end)]
  # A span of line breaks only has no text to state.
  pieces = pieces or [(span.start, span.end)]
  stated = ' '.join(' '.join(text[start:end].splitlines()) for start, end in pieces)
  offsets = ';'.join(f'{start} {end}' for start, end in pieces)
  if (pieces[0][0], pieces[-1][1]) != (span.start, span.end):  # line breaks at its edges
    offsets, stated = f'{span.start} {span.end}', ' '.join(text[span.start:span.end].split())
  return f'T{number}\t{span.type} {offsets}\t{stated}'


def _brat_relation(number: int, link: Relation) -> str:
  """The line of one relation, or of an attribute."""
  if link.head == link.tail:
    name, _, value = link.type.partition('=')
    return f'A{number}\t{name} T{link.head + 1} {value}'.rstrip()
  return f'R{number}\t{link.type} Arg1:T{link.head + 1} Arg2:T{link.tail + 1}'


def write_bigbio(path: str | Path, documents: Iterable[Document]) -> None:
  """Writes one file of bigbio_kb, a record a line; a document is one passage."""
  _write(Path(path), ''.join(
    json.dumps(_bigbio_record(document), ensure_ascii=False) + '\n' for document in documents))


def _bigbio_record(document: Document) -> dict:
  """The record of one document."""
  name, text = document.name, document.text
  return {
    'id': name, 'document_id': name,
    'passages': [{'id': f'{name}_text', 'type': 'document', 'text': [text],
                  'offsets': [[0, len(text)]]}],
    'entities': [
      {'id': f'{name}_T{i}', 'type': span.type, 'text': [text[span.start:span.end]],
       'offsets': [[span.start, span.end]], 'normalized': []}
      for i, span in enumerate(document.spans)],
    'events': [], 'coreferences': [],
    'relations': [
      {'id': f'{name}_R{i}', 'type': link.type, 'arg1_id': f'{name}_T{link.head}',
       'arg2_id': f'{name}_T{link.tail}', 'normalized': []}
      for i, link in enumerate(document.relations)],
  }


def write_conll(
  path: str | Path, documents: Iterable[Document], types: Sequence[str]
) -> Counter:
  """Writes one file: a word, a tab and its tag (IOB2) a line, documents named by '# newdoc id'.

  Words are runs of letters and digits, and single signs; a word in which an entity begins or ends
  is cut there, so that the tags keep the entity's exact range.

  Args:
    path: the file.
    documents: with names of one line.
    types: of the entities to write.

  Returns:
    Counts: sentences, entities (written), and left out: nested, crossing, blank; see
    `sentences.sentence_examples`.
  """
  blocks, total = [], Counter()
  for document in documents:
    if not document.name.strip() or re.search(r'[\n\r\t]', document.name):
      raise InputError(f'{path}: document name {document.name!r} is no name in one line')
    examples, counts = sentence_examples(document, types)
    total += counts
    blocks.append(f'# newdoc id = {document.name}\n' + '\n'.join(map(_conll_sentence, examples)))
  _write(Path(path), '\n'.join(blocks))
  return total


def _conll_sentence(example: Example) -> str:
  """The lines of one sentence."""
  lines = []
  edges = sorted({0, len(example.text), *(at for span in example.entities for at in span[:2])})
  kinds = {span.start: span for span in example.entities}
  for start, end in zip(edges, edges[1:], strict=False):
    span, tag = kinds.get(start), 'O'
    if span:
      tag = f'B-{span.type}'
    for word in words(example.text[start:end]):
      lines.append(f'{word}\t{tag}\n')
      tag = tag.replace('B-', 'I-', 1)
  return ''.join(lines)


def _write(path: Path, text: str) -> None:
  """Writes a file and its folders; raises InputError where that fails."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', encoding='utf-8', newline='') as file:
      file.write(text)
  except (OSError, ValueError) as error:
    raise InputError(f'cannot write {path}: {error}') from error
