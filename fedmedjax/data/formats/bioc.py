"""BioC in XML or JSON: collections of documents of passages of sentences (Comeau et al. 2013)."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmedjax.data.formats.concepts import Concepts
from fedmedjax.data.formats.covering import Covered, broken_ranges, cover
from fedmedjax.data.formats.files import (
  Element,
  Layout,
  Located,
  Place,
  Unit,
  int_field,
  lay_out,
  list_field,
  locate,
  parse_json,
  read_text,
  read_xml,
  text_field,
  with_own_names,
)
from fedmedjax.types import Document, InputError, Relation, Span

# Name of an XML element -> the key of the list of such parts in JSON.
_LISTS = {
  'document': 'documents', 'passage': 'passages', 'sentence': 'sentences',
  'annotation': 'annotations', 'location': 'locations', 'relation': 'relations', 'node': 'nodes',
}
_ATTRIBUTES = ('id', 'offset', 'length', 'refid', 'role')
_FORM = 'BioC'
# Infons of an annotation that name its concepts ('identifier', 'MESH', 'NCBI Gene'); and those of a
# relation that say other things than its ends.
_IDS = re.compile(
  r'(?:^|[_ ])ids?(?:$|[_ ])|ident|mesh|omim|gene|cui|umls|snomed|concept|accession|variant|hgvs',
  re.IGNORECASE)
_NO_ENDS = ('type', 'relation', 'novel', 'score', 'note', 'annotator', 'updated_at')


def read_bioc(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one BioC file, as JSON where its name ends in .json, else as XML.

  Passages, or their sentences, make the text (see `files.lay_out`). An annotation in several
  pieces becomes their covering range. A relation's head and tail are its two nodes, in their
  order; an annotation stands for itself, whatever part of the document holds it. A relation whose
  infons name two concepts (entity1 and entity2, role1 and role2, Chemical and Disease) links their
  first mentions, unless its nodes are mentions of them. Sentences stay as they are.

  Args:
    path: the file.

  Returns:
    The documents, and counts: documents, entities, relations, discontinuous, text_mismatch,
    unplaced (annotations without a location), nary (relations of other than two nodes), nested
    relations (an end is a relation) as unanchored, moved_passages, renamed_documents.
  """
  path = Path(path)
  if path.suffix.lower() == '.json':
    content = parse_json(path, read_text(path).removeprefix('\ufeff'))
    # A collection, the answer of PubTator's service, a list of documents, or one alone.
    if isinstance(content, Located):
      content = content.get('documents', content.get('PubTator3', [content]))
    sources = content if isinstance(content, list) else [None]
  else:
    sources = _as_json(read_xml(path)).get('documents', [])
  counts = Counter()
  documents = [_document(path, source, counts) for source in sources]
  if not documents:
    raise InputError(f'no BioC document in {path}')
  return with_own_names(documents, counts), counts


def _as_json(element: Element) -> Located:
  """An XML element as an object of BioC's JSON, with its `line`; other elements are left out."""
  record = Located({key: value for key, value in element.attributes.items() if key in _ATTRIBUTES})
  record['infons'] = {}
  record.line = element.line
  for child in element.children:
    text = ''.join(child.pieces)
    if child.tag in _LISTS:
      record.setdefault(_LISTS[child.tag], []).append(_as_json(child))
    elif child.tag == 'infon':
      record['infons'][child.attributes.get('key', '')] = text
    elif child.tag in ('id', 'offset', 'text'):
      record[child.tag] = text if child.tag == 'text' else text.strip()
  for key in ('offset', 'length'):
    if re.fullmatch('[0-9]{1,9}', record.get(key, '')):
      record[key] = int(record[key])
  return record


def _document(path: Path, source, counts: Counter) -> Document:
  """The document of one entry of a collection; adds to `counts`."""
  if not isinstance(source, Located):
    raise InputError(f'{path}:1: malformed, expected {_FORM} (documents)')
  place = (path, source.line)
  name = text_field(place, source, 'id', _FORM)
  passages = list(_parts(path, source, 'passages'))
  units, holders, given = [], [source], []
  for passage in passages:
    sentences = list(_parts(path, passage, 'sentences'))
    holders += [passage, *sentences]
    split = [holder for holder in sentences if holder.get('text') is not None]
    texts = split or [passage] * (passage.get('text') is not None)
    units += [_unit(path, holder) for holder in texts]
    given += [bool(split)] * len(texts)
  layout = lay_out(units, counts)
  spans, covered, index, concepts = [], {}, {}, Concepts({}, {})
  for holder in holders:
    for annotation in _parts(path, holder, 'annotations'):
      span = _span(path, annotation, layout, covered, counts)
      if span is not None:
        # Some tools number annotations anew in each passage; only relations of such ids are lost.
        ident = text_field((path, annotation.line), annotation, 'id', _FORM, '')
        index[ident] = -1 if ident in index else len(spans)
        for key, ids in _infons(annotation):
          if _IDS.search(key):
            concepts.enter(ids, span.type, len(spans))
        spans.append(span)
  relations = [relation for holder in holders
               for relation in _relations(path, holder, index, concepts, counts)]
  counts.update(documents=1, entities=len(spans), relations=len(relations))
  return Document(
    name, layout.text, tuple(spans), tuple(relations),
    tuple((start, start + len(unit.text)) for unit, start, is_sentence in zip(
      layout.units, layout.starts, given, strict=True) if is_sentence),
    broken_ranges(covered))


def _parts(path: Path, record: Located, key: str) -> Iterator[Located]:
  """The objects of a record's list `key`."""
  for part in list_field((path, record.line), record, key, _FORM):
    if not isinstance(part, Located):
      raise InputError(f'{path}:{record.line}: malformed, expected {_FORM} ({key})')
    yield part


def _unit(path: Path, holder: Located) -> Unit:
  """The text of a passage or sentence, with its offset."""
  place = (path, holder.line)
  return Unit(int_field(place, holder, 'offset', _FORM), text_field(place, holder, 'text', _FORM))


def _kind(place: Place, record: Located, *keys: str) -> str:
  """The type in a record's infons: the value of the first of `keys` that is there."""
  infons = record.get('infons')
  if not isinstance(infons, dict) or not any(key in infons for key in keys):
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM} (infon {keys[0]!r})')
  return text_field(place, infons, next(key for key in keys if key in infons), _FORM)


def _infons(record: Located) -> Iterator[tuple[str, str]]:
  """The infons that are texts; of one that is an object, as PubTator 3 has them, its identifier."""
  infons = record.get('infons')
  for key, value in infons.items() if isinstance(infons, dict) else ():
    if isinstance(value, dict):
      kind, value = value.get('type'), value.get('identifier')
      value = f'{kind}|{value}' if isinstance(kind, str) and isinstance(value, str) else value
    if isinstance(value, str):
      yield key, value


def _span(
  path: Path, annotation: Located, layout: Layout, covered: Covered, counts: Counter
) -> Span | None:
  """The covering range of an annotation's locations; None where it has none."""
  place = (path, annotation.line)
  pieces = []
  for location in _parts(path, annotation, 'locations'):
    start, length = (int_field((path, location.line), location, key, _FORM)
                     for key in ('offset', 'length'))
    pieces.append(locate(layout, (*place, annotation.get('id')), start, start + length))
  if not pieces:
    counts['unplaced'] += 1
    return None
  stated = text_field(place, annotation, 'text', _FORM, '')
  actual = [layout.text[start:end] for start, end in pieces]
  counts['text_mismatch'] += stated.split() != ' '.join(actual).split()
  counts['discontinuous'] += len(pieces) > 1
  return Span(*cover(pieces, layout.text, covered), _kind(place, annotation, 'type'))


def _relations(
  path: Path, holder: Located, index: dict[str, int], concepts: Concepts, counts: Counter
) -> Sequence[Relation]:
  """The relations that a document, passage or sentence holds, between annotations or concepts."""
  kept = []
  for relation in _parts(path, holder, 'relations'):
    place = (path, relation.line)
    nodes = list(_parts(path, relation, 'nodes'))
    ends = [index.get(text_field(place, node, 'refid', _FORM), -1) for node in nodes]
    named = [value for key, value in _infons(relation)
             if key.lower() not in _NO_ENDS and concepts.mentions(value)]
    if len(named) == 2 and not (len(ends) == 2 and all(
        end in concepts.mentions(value) for end, value in zip(ends, named, strict=True))):
      ends = concepts.link(*named) or [-1]
    if len(ends) > 2:
      counts['nary'] += 1
    elif len(ends) < 2 or -1 in ends:
      counts['unanchored'] += 1
    else:
      kept.append(Relation(_kind(place, relation, 'type', 'relation'), *ends))
  return kept
