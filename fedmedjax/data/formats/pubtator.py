"""PubTator: title and abstract of an id, then its mentions and the relations of concepts."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedmedjax.data.formats.concepts import Concepts
from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import INT, malformed, numbered_lines
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_PUBTATOR_TEXT = re.compile(r'([^|\t]+)\|([ta])\|(.*)')
_PUBTATOR_MENTION = re.compile(
  rf'([^\t]+)\t({INT})\t({INT})\t([^\t]*)\t([^\t]+)(?:\t([^\t]*))?(?:\t([^\t]*))?'
)
# The kind is no number, so that a mention with a part missing is not taken for one; a
# column after the two concepts, such as BioRED's 'Novel', has no place in a Relation.
_PUBTATOR_RELATION = re.compile(
  r'([^\t]+)\t(?![0-9]+\t)([^\t]+)\t([^\t]+)\t([^\t]+)(?:\t([^\t]*))?\s*')


def read_pubtator(path: str | Path) -> tuple[list[Document], Counter]:
  r"""Reads one PubTator file; a text is title + '\n' + abstract, which keeps its offsets.

  A relation links concepts: its ends are their first mentions (see `concepts`), and all of them are
  in `Document.linked`; without one it is counted 'unanchored' and dropped. A repeated document is
  dropped; a repeated id becomes ID_2, ID_3, ...

  Args:
    path: the file.

  Returns:
    The documents, and counts: documents, entities, relations, composite, those of `settle`,
    unanchored, relation_notes (a fifth column of a relation, left out), duplicate_documents,
    duplicate_entities (in dropped ones), renamed_documents.
  """
  path = Path(path)
  counts, versions, drafts, faults = Counter(), {}, [], Faults()
  for block in _pubtator_blocks(path):
    own, draft = Counter(), None
    with faults:
      draft = _pubtator_document(path, block, own)
    if draft is None:
      continue
    document = draft.document
    same_id = versions.setdefault(document.name, [])
    if document in same_id:
      counts.update(duplicate_documents=1, duplicate_entities=len(document.spans))
      continue
    same_id.append(document)
    if len(same_id) > 1:
      own['renamed_documents'] += 1
      document = document._replace(
        name=f'{document.name}_{len(same_id)}', source=document.name)
    drafts.append(draft._replace(document=document))
    counts.update(own)
  faults.tell()
  if not drafts:
    raise InputError(f'no PubTator document in {path}')
  return settle(drafts, counts), counts


def _pubtator_blocks(path: Path) -> Iterator[list[tuple[int, str]]]:
  """Yields the numbered lines of each document, which a title begins; blank lines are left out."""
  block = []
  for number, line in numbered_lines(path):
    head = _PUBTATOR_TEXT.fullmatch(line)
    if head and head[2] == 't' and block:
      yield block
      block = []
    if line.strip():
      block.append((number, line))
  if block:
    yield block


def _pubtator_document(path: Path, block: list[tuple[int, str]], counts: Counter) -> Draft:
  """The document of one block of numbered lines; adds to `counts`."""
  heads = [_PUBTATOR_TEXT.fullmatch(line) for _, line in block[:2]]
  if [h and h[2] for h in heads] != ['t', 'a'] or heads[0][1] != heads[1][1]:
    raise malformed(path, block[0][0], 'PubTator (title, then abstract, of one id)')
  name, text = heads[0][1], f'{heads[0][3]}\n{heads[1][3]}'
  spans, quotes, links, concepts, faults = [], [], [], Concepts({}, {}), Faults()
  for number, line in block[2:]:
    mention = _PUBTATOR_MENTION.fullmatch(line)
    link = None if mention else _PUBTATOR_RELATION.fullmatch(line)
    if not (mention or link) or (mention or link)[1] != name:
      faults.found.append(malformed(path, number, f'PubTator (document {name})'))
      continue
    if link:
      links.append(link.groups()[1:4])
      if link[5]:
        counts['relation_notes'] += 1
      continue
    start, end = int(mention[2]), int(mention[3])
    quotes.append(Quote((path, number, mention[4]), ((start, end),), mention[4]))
    # 'renal and liver failure' is one mention of two concepts: BC5CDR adds a column that spells
    # them out, NCBI has a type for it.
    counts['composite'] += bool(mention[7]) or mention[5] == 'CompositeMention'
    if start < end:
      concepts.enter(mention[6] or '', mention[5], len(spans))
    spans.append(Span(start, end, mention[5]))
  faults.tell()
  ends = [(kind, concepts.link(*named)) for kind, *named in links]
  relations = tuple(Relation(kind, *pair) for kind, pair in ends if pair)
  linked = tuple((kind, *(tuple(concepts.mentions(name)) for name in named))
                 for (kind, *named), (_, pair) in zip(links, ends, strict=True) if pair)
  counts.update(documents=1, entities=len(spans), relations=len(relations),
                unanchored=len(links) - len(relations))
  document = Document(name, text, tuple(spans), relations, linked=linked)
  return Draft(document, tuple(quotes), as_one_unit(text))
