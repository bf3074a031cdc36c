"""BioC in XML or JSON: collections of documents of passages of sentences (Comeau et al. 2013)."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmedjax.data.formats.concepts import Concepts
from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import (
  Element,
  Located,
  Place,
  Unit,
  int_field,
  lay_out,
  list_field,
  parse_json,
  read_text,
  read_xml,
  text_field,
  with_own_names,
)
from fedmedjax.data.formats.quotes import Draft, Quote
from fedmedjax.data.formats.settle import settle
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
    The documents, and counts: documents, entities, relations, discontinuous, those of `settle`
    (unplaced are annotations without a location, too), nary (relations of other than two nodes),
    nested relations (an end is a relation) as unanchored, moved_passages, renamed_documents.
  """
  path = Path(path)
  if path.suffix.lower() == '.json':
    sources = list(_json_documents(path))
  else:
    sources = _as_json(read_xml(path)).get('documents', [])
  counts, faults, drafts = Counter(), Faults(), []
  for source in sources:
    with faults:
      drafts.append(_document(path, source, counts))
  faults.tell()
  if not drafts:
    raise InputError(f'no BioC document in {path}')
  return with_own_names(settle(drafts, counts), counts), counts


def _json_documents(path: Path) -> Iterator:
  """The documents of a JSON file, or what stands in their place.

  The file is a collection, the answer of PubTator's service, a list of documents or one alone; or
  has one of these a line.
  """
  text = read_text(path)
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  if len(lines) > 1 and all(line[0] == '{' and line[-1] == '}' for line in lines):
    text = '[' + ',\n'.join(lines) + ']'
  content = parse_json(path, text)
  for part in content if isinstance(content, list) else [content]:
    found = part.get('documents', part.get('PubTator3', [part])) if isinstance(
      part, Located) else [part]
    yield from found if isinstance(found, list) else [None]


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


def _document(path: Path, source, counts: Counter) -> Draft:
  """The document of one entry of a collection; adds to `counts`."""
  if not isinstance(source, Located):
    raise InputError(f'{path}:1: malformed, expected {_FORM} (documents)')
  place = (path, source.line)
  name = text_field(place, source, 'id', _FORM)
  passages = list(_parts(path, source, 'passages'))
  # `homes` are the units in which the holders begin.
  units, given, holders, homes, faults = [], [], [source], [0], Faults()
  for passage in passages:
    sentences = list(_parts(path, passage, 'sentences'))
    holders.append(passage)
    homes.append(len(units))
    split = any(sentence.get('text') is not None for sentence in sentences)
    for holder in sentences if split else [*sentences, passage]:
      if holder is not passage:
        holders.append(holder)
        homes.append(len(units))
      if holder.get('text') is not None:
        with faults:
          units.append(_unit(path, holder))
          given.append(split)
  layout = lay_out(units, counts)
  spans, quotes, starts, index, concepts = [], [], [], {}, Concepts({}, {})
  for holder, home in zip(holders, homes, strict=True):
    for annotation in _parts(path, holder, 'annotations'):
      with faults:
        found = _span(path, annotation, home, counts)
        if found is not None:
          # Some tools number annotations anew in each passage; only relations of such ids are lost.
          ident = text_field((path, annotation.line), annotation, 'id', _FORM, '')
          index[ident] = -1 if ident in index else len(spans)
          for key, ids in _infons(annotation):
            if _IDS.search(key):
              concepts.enter(ids, found[0].type, len(spans))
          spans.append(found[0])
          quotes.append(found[1])
          starts.append(holder.get('offset', 0))
  relations = []
  for holder in holders:
    with faults:
      relations += _relations(path, holder, index, concepts, counts)
  faults.tell()
  counts.update(documents=1, entities=len(spans), relations=len(relations))

  def readings() -> list:
    return [('offsets_of_passages', [
      tuple((start + first, end + first) for start, end in quote.pieces)
      for quote, first in zip(quotes, starts, strict=True)])]

  sentences = tuple(
    (start, start + len(unit.text))
    for unit, start, split in zip(layout.units, layout.starts, given, strict=True) if split)
  document = Document(name, layout.text, tuple(spans), tuple(relations), sentences=sentences)
  return Draft(document, tuple(quotes), layout, readings)


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
  path: Path, annotation: Located, home: int, counts: Counter
) -> tuple[Span, Quote] | None:
  """An annotation as it is stated, in the unit `home`; None where it has no location."""
  place = (path, annotation.line)
  pieces = []
  for location in _parts(path, annotation, 'locations'):
    start, length = (int_field((path, location.line), location, key, _FORM)
                     for key in ('offset', 'length'))
    pieces.append((start, start + length))
  if not pieces:
    counts['unplaced'] += 1
    return None
  stated = text_field(place, annotation, 'text', _FORM, '')
  counts['discontinuous'] += len(pieces) > 1
  quote = Quote((*place, annotation.get('id')), tuple(pieces), stated, home)
  return Span(0, 0, _kind(place, annotation, 'type')), quote


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
