"""Readers of annotated notes: brat folders, PubTator files, PHEE's JSON lines.

Each returns `(documents, counts)`. Types stay as the corpus names them (mapping is
`corpora.map_types`), spans stay in file order and may overlap, nest or repeat. Files are opened
with newline='' because offsets count carriage returns. What a `Document` cannot hold (n-ary
relations, attributes, notes) is counted, never silently lost; anything malformed is an
`InputError` of one line that names the file and the line.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedmedjax.types import Document, InputError, Relation, Span

# At most nine digits: Python refuses to convert absurdly long ones, with an untyped error.
_INT = '[0-9]{1,9}'
_BRAT_ID = re.compile(r'([TERAMN#][0-9]+|\*)\t')
# Lines that are checked for their form and counted, because a Document has no place for them.
_BRAT_COUNTED = {
  '*': 'nary', 'A': 'attributes', 'M': 'attributes', 'N': 'normalisations', '#': 'notes',
}
_BRAT_BODY = {
  'T': re.compile(rf'(\S+) ({_INT} {_INT}(?:;{_INT} {_INT})*)\t(.*)', re.DOTALL),
  'E': re.compile(r'([^\s:]+):(\S+)((?: [^\s:]+:\S+)*)\s*'),
  'R': re.compile(r'(\S+) Arg1:(\S+) Arg2:(\S+)\s*'),
} | dict.fromkeys(_BRAT_COUNTED, re.compile(r'\S+ \S+.*'))
_PUBTATOR_TEXT = re.compile(r'([^|\t]+)\|([ta])\|(.*)')
_PUBTATOR_MENTION = re.compile(
  rf'([^\t]+)\t({_INT})\t({_INT})\t([^\t]*)\t([^\t]+)(?:\t([^\t]*))?(?:\t([^\t]*))?'
)
_PUBTATOR_RELATION = re.compile(r'([^\t]+)\t([^\t]+)\t([^\t]+)\t([^\t]+)')


def read_brat(folder: str | Path) -> tuple[list[Document], Counter]:
  """Reads every NAME.txt + NAME.ann of a brat folder, in the order of their names.

  A discontinuous span becomes its covering range. A relation's head is Arg1 and its tail Arg2;
  an event stands for its trigger, and its arguments are relations (role, trigger, argument).

  Args:
    folder: holds the pairs; its other files are ignored.

  Returns:
    The documents, and counts: documents, entities, relations, events, discontinuous,
    text_mismatch, nary, attributes, normalisations, notes.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f'brat folder not found: {folder}')
  stems = {p.with_suffix('') for p in folder.glob('[!.]*') if p.suffix in ('.txt', '.ann')}
  if not stems:
    raise InputError(f'no .txt and .ann files in brat folder {folder}')
  counts = Counter()
  return [_brat_document(stem, counts) for stem in sorted(stems)], counts


def _brat_document(stem: Path, counts: Counter) -> Document:
  text, path = _read_text(Path(f'{stem}.txt')), Path(f'{stem}.ann')
  lines, seen = {kind: [] for kind in _BRAT_BODY}, set()
  for number, line in _brat_lines(path):
    ident = _BRAT_ID.match(line)
    body = ident and _BRAT_BODY[line[0]].fullmatch(line, ident.end())
    if not body:
      # The surplus of a joined line is what is wrong, so its own number is the useful one.
      raise _malformed(path, number + ('\n' in line), 'brat')
    if line[0] in 'TE' and ident[1] in seen:
      raise InputError(f'{path}:{number}: the id {ident[1]} occurs twice')
    seen.add(ident[1])
    lines[line[0]].append((number, ident[1], body.groups()))
  index, spans, links = {}, [], []
  for number, ident, (kind, offsets, stated) in lines['T']:
    index[ident] = len(spans)
    spans.append(_brat_span((path, number, ident), kind, offsets, stated, text, counts))
  for number, ident, (_, trigger, arguments) in lines['E']:
    index[ident] = _resolve(path, number, trigger, index)
    links += [(number, role, ident, target) for role, _, target in
              (argument.partition(':') for argument in arguments.split())]
  links += [(number, *body) for number, _, body in lines['R']]
  relations = tuple(Relation(kind, *(_resolve(path, number, end, index) for end in ends))
                    for number, kind, *ends in links)
  for kind, name in _BRAT_COUNTED.items():
    counts[name] += len(lines[kind])
  counts.update(documents=1, entities=len(spans), relations=len(links), events=len(lines['E']))
  return Document(stem.name, text, tuple(spans), relations)


def _brat_lines(path: Path) -> Iterator[tuple[int, str]]:
  """Numbered lines; one that begins like no annotation goes on the one above, because some tools
  write the newline inside a span as it is."""
  logical = []
  for number, line in _numbered_lines(path):
    if line.strip() and (not logical or _BRAT_ID.match(line)):
      logical.append((number, [line]))
    elif line.strip():
      logical[-1][1].append(line)
  for number, lines in logical:
    yield number, '\n'.join(lines)


def _brat_span(place, kind: str, offsets: str, stated: str, text: str, counts: Counter) -> Span:
  ranges = [tuple(map(int, part.split())) for part in offsets.split(';')]
  for start, end in ranges:
    _check_range(place, start, end, text)
  actual = ' '.join(text[start:end] for start, end in ranges).split()  # as brat joins them
  if actual != stated.split():
    if '\n' in stated:
      raise _malformed(place[0], place[1] + 1, 'brat')
    counts['text_mismatch'] += 1
  counts['discontinuous'] += len(ranges) > 1
  return Span(min(start for start, _ in ranges), max(end for _, end in ranges), kind)


def _resolve(path: Path, number: int, ident: str, index: dict[str, int]) -> int:
  if ident not in index:
    raise InputError(f'{path}:{number}: no entity or event has the id {ident!r}')
  return index[ident]


def read_pubtator(path: str | Path) -> tuple[list[Document], Counter]:
  r"""Reads one PubTator file; a text is title + '\n' + abstract, which keeps its offsets.

  A relation links concepts: its ends are their first mentions; without one it is counted
  'unanchored' and dropped. A repeated document is dropped; a repeated id becomes ID_2, ID_3, ...

  Args:
    path: the file.

  Returns:
    The documents, and counts: documents, entities, relations, composite, text_mismatch,
    unanchored, duplicate_documents, duplicate_entities (in dropped ones), renamed_documents.
  """
  path = Path(path)
  counts, versions, documents = Counter(), {}, []
  for block in _pubtator_blocks(path):
    found = Counter()
    document = _pubtator_document(path, block, found)
    same_id = versions.setdefault(document.name, [])
    if document in same_id:
      counts.update(duplicate_documents=1, duplicate_entities=len(document.spans))
      continue
    same_id.append(document)
    if len(same_id) > 1:
      found['renamed_documents'] += 1
      document = document._replace(name=f'{document.name}_{len(same_id)}')
    documents.append(document)
    counts.update(found)
  if not documents:
    raise InputError(f'no PubTator document in {path}')
  return documents, counts


def _pubtator_blocks(path: Path) -> Iterator[list[tuple[int, str]]]:
  """Groups numbered lines by document: a title opens one, blank lines mean nothing."""
  block = []
  for number, line in _numbered_lines(path):
    head = _PUBTATOR_TEXT.fullmatch(line)
    if head and head[2] == 't' and block:
      yield block
      block = []
    if line.strip():
      block.append((number, line))
  if block:
    yield block


def _pubtator_document(path: Path, block: list[tuple[int, str]], counts: Counter) -> Document:
  heads = [_PUBTATOR_TEXT.fullmatch(line) for _, line in block[:2]]
  if [h and h[2] for h in heads] != ['t', 'a'] or heads[0][1] != heads[1][1]:
    raise _malformed(path, block[0][0], 'PubTator (title, then abstract, of one id)')
  name, text = heads[0][1], f'{heads[0][3]}\n{heads[1][3]}'
  spans, links, first = [], [], {}
  for number, line in block[2:]:
    mention = _PUBTATOR_MENTION.fullmatch(line)
    link = None if mention else _PUBTATOR_RELATION.fullmatch(line)
    if not (mention or link) or (mention or link)[1] != name:
      raise _malformed(path, number, f'PubTator (document {name})')
    if link:
      links.append(link.groups()[1:])
      continue
    start, end = int(mention[2]), int(mention[3])
    _check_range((path, number, mention[4]), start, end, text)
    counts['text_mismatch'] += text[start:end] != mention[4]
    # 'renal and liver failure' is one mention of two concepts: BC5CDR adds a column that spells
    # them out, NCBI has a type for it.
    counts['composite'] += bool(mention[7]) or mention[5] == 'CompositeMention'
    for concept in (mention[6] or '').split('|'):
      first.setdefault(concept, len(spans))
    spans.append(Span(start, end, mention[5]))
  relations = tuple(Relation(kind, first[head], first[tail]) for kind, head, tail in links
                    if head in first and tail in first)
  counts.update(documents=1, entities=len(spans), relations=len(relations),
                unanchored=len(links) - len(relations))
  return Document(name, text, tuple(spans), relations)


def read_phee(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file of PHEE, a JSON object a line, each with one sentence and its events.

  A trigger's type is its event's type; an argument's is its path, as in 'Treatment.Drug'. The
  fragments of an argument are mentions apart ('paroxetine' ... 'fentanyl'), so each is a span.
  Relations go from the trigger to every other span of its event. 'Combination' only pairs up
  drugs that the event names already; arguments that have it are counted, and it is left out.

  Args:
    path: the file.

  Returns:
    The documents, and counts: documents, entities, relations, events, fragments (spans of an
    argument in several pieces), combinations, text_mismatch.
  """
  path = Path(path)
  counts, documents, names = Counter(), [], set()
  for number, line in _numbered_lines(path):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      name, text = record['id'], record['context']
      events = [event for group in record['annotations'] for event in group['events']]
      (name + text).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
      raise _malformed(path, number, 'PHEE') from error
    if name in names:
      raise InputError(f'{path}:{number}: document id {name!r} occurs twice')
    names.add(name)
    spans, relations = [], []
    for event in events:
      head, found = len(spans), _phee_event((path, number), event, text, counts)
      relations += [Relation(span.type, head, head + i) for i, span in enumerate(found) if i]
      spans += found
    counts.update(documents=1, entities=len(spans), relations=len(relations), events=len(events))
    documents.append(Document(name, text, tuple(spans), tuple(relations)))
  if not documents:
    raise InputError(f'no PHEE document in {path}')
  return documents, counts


def _phee_event(place, event, text: str, counts: Counter) -> list[Span]:
  """The spans of one event, its trigger first; arguments have at most one level below them."""
  if not isinstance(event, dict) or not isinstance(event.get('event_type'), str):
    raise _malformed(*place, 'PHEE (event)')
  trigger = _phee_spans(place, event['event_type'], event.get('Trigger'), text, counts)
  if len(trigger) != 1:
    raise _malformed(*place, 'PHEE (event with one trigger)')
  named = []
  for role, node in event.items():
    if role != 'Trigger' and isinstance(node, dict):
      below = {f'{role}.{key}': value for key, value in node.items()}
      named += [(role, node)] + [pair for pair in below.items() if isinstance(pair[1], dict)]
      counts['combinations'] += 'Combination' in node
  return trigger + [span for role, node in named
                    for span in _phee_spans(place, role, node, text, counts)]


def _phee_spans(place, role: str, node, text: str, counts: Counter) -> list[Span]:
  """The fragments of one argument: parallel lists of lists of strings and of offsets."""
  try:
    pieces = [list(zip(*mention, strict=True))
              for mention in zip(node['text'], node['start'], strict=True)]
  except (KeyError, TypeError, ValueError) as error:
    raise _malformed(*place, f'PHEE ({role})') from error
  counts['fragments'] += sum(len(piece) for piece in pieces if len(piece) > 1)
  spans = []
  for stated, start in (fragment for piece in pieces for fragment in piece):
    if not isinstance(stated, str) or type(start) is not int:
      raise _malformed(*place, f'PHEE ({role})')
    end = start + len(stated)
    _check_range((*place, role), start, end, text)
    counts['text_mismatch'] += text[start:end] != stated
    spans.append(Span(start, end, role))
  return spans


def _check_range(place, start: int, end: int, text: str) -> None:
  if not 0 <= start < end <= len(text):
    path, number, ident = place
    raise InputError(f'{path}:{number}: annotation {ident!r} has the offsets {start} to {end}, '
                     f'which is no range of its text of {len(text)} characters')


def _malformed(path: Path, number: int, form: str) -> InputError:
  return InputError(f'{path}:{number}: malformed line, expected {form}')


def _read_text(path: Path) -> str:
  try:
    with open(path, encoding='utf-8', newline='') as file:
      return file.read()
  except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
    raise InputError(f'cannot read {path}: {error}') from error


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
  """Lines from 1, cut at line feeds only, with a Windows line end or mark taken off."""
  for number, line in enumerate(_read_text(path).removeprefix('\ufeff').split('\n'), 1):
    yield number, line.removesuffix('\r')
