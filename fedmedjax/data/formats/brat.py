"""brat stand-off: a folder of NAME.txt with NAME.ann beside it."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import INT, hint, malformed, numbered_lines, read_text
from fedmedjax.data.formats.quoted_words import occurrences
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_ID = re.compile(r'([TERAMN#][0-9]+|\*)\t')
# First character of a line -> the count that it adds to; of these kinds a Document holds attributes
# only.
_COUNTED = {
  '*': 'nary', 'A': 'attributes', 'M': 'attributes', 'N': 'normalisations', '#': 'notes',
}
_ATTRIBUTE = re.compile(r'(\S+) (\S+)(?:\s+(\S.*?))?\s*', re.DOTALL)
_BODY = {
  'T': re.compile(rf'(\S+) ({INT} {INT}(?:;{INT} {INT})*)\t(.*)', re.DOTALL),
  'E': re.compile(r'([^\s:]+):(\S+)((?: [^\s:]+:\S+)*)\s*'),
  'R': re.compile(r'(\S+) Arg1:(\S+) Arg2:(\S+)\s*'),
} | dict.fromkeys(_COUNTED, re.compile(r'\S+ \S+.*')) | dict.fromkeys('AM', _ATTRIBUTE)


def read_brat(folder: str | Path) -> tuple[list[Document], Counter]:
  """Reads every NAME.txt + NAME.ann of a brat folder, in the order of their names.

  A discontinuous span becomes its covering range. A relation's head is Arg1 and its tail Arg2;
  an event stands for its trigger, and its arguments are relations (role, trigger, argument). An
  attribute is a relation of a span to itself, named 'NAME' or 'NAME=VALUE'; one of a relation has
  no place and is left out. Relations are in the order of their lines.

  Args:
    folder: holds the pairs; its other files are ignored.

  Returns:
    The documents, and counts: documents, entities, relations (attributes apart), events,
    discontinuous, those of `settle`, nary, attributes, relation_attributes (left out),
    normalisations, notes.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f'brat folder not found: {folder}')
  stems = {p.with_suffix('') for p in folder.glob('[!.]*') if p.suffix in ('.txt', '.ann')}
  if not stems:
    raise InputError(
      f'no .txt and .ann files in brat folder {folder}{hint(folder, (".txt", ".ann"))}')
  counts, faults, drafts = Counter(), Faults(), []
  for stem in sorted(stems):
    with faults:
      drafts.append(_document(stem, counts))
  faults.tell()
  return settle(drafts, counts), counts


def _document(stem: Path, counts: Counter) -> Draft:
  """The document of one NAME.txt and NAME.ann; adds to `counts`."""
  text, path = read_text(Path(f'{stem}.txt')), Path(f'{stem}.ann')
  lines, seen, faults = {kind: [] for kind in _BODY}, set(), Faults()
  for number, line in _lines(path):
    with faults:
      ident = _ID.match(line)
      body = ident and _BODY[line[0]].fullmatch(line, ident.end())
      if not body:
        # Of joined lines the second is wrong, so its number is the useful one.
        raise malformed(path, number + ('\n' in line), 'brat')
      if line[0] in 'TE' and ident[1] in seen:
        raise InputError(f'{path}:{number}: the id {ident[1]} occurs twice')
      seen.add(ident[1])
      lines[line[0]].append((number, ident[1], body.groups()))
  index, spans, quotes, links = {}, [], [], []
  for number, ident, (kind, offsets, stated) in lines['T']:
    with faults:
      quotes.append(_quote((path, number, ident), offsets, stated, text))
    index[ident] = len(spans)
    spans.append(Span(0, 0, kind))
    counts['discontinuous'] += ';' in offsets
  # What refers to a line that cannot be read is no error of its own.
  faults.tell()
  for number, ident, (_, trigger, arguments) in lines['E']:
    with faults:
      index[ident] = _resolve(path, number, trigger, index)
    links += [(number, role, ident, target) for role, _, target in
              (argument.partition(':') for argument in arguments.split())]
  links += [(number, *body) for number, _, body in lines['R']]
  counts.update(relations=len(links))
  for number, _, (name, target, value) in lines['A'] + lines['M']:
    if target[0] == 'R' and target in seen:
      counts['relation_attributes'] += 1
    else:
      kind = f'{name}={"_".join(value.split())}' if value else name
      links.append((number, kind, target, target))
  relations = []
  for number, kind, *ends in sorted(links, key=lambda link: link[0]):
    with faults:
      relations.append(Relation(kind, *(_resolve(path, number, end, index) for end in ends)))
  faults.tell()
  for kind, name in _COUNTED.items():
    counts[name] += len(lines[kind])
  counts.update(documents=1, entities=len(spans), events=len(lines['E']))
  document = Document(stem.name, text, tuple(spans), tuple(relations))
  return Draft(document, tuple(quotes), as_one_unit(text))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
  """Numbered lines of annotations; a line without an id is joined to the one above it.

  Some tools write a newline inside a span as it is.
  """
  logical = []
  for number, line in numbered_lines(path):
    if line.strip() and (not logical or _ID.match(line)):
      logical.append((number, [line]))
    elif line.strip():
      logical[-1][1].append(line)
  for number, lines in logical:
    yield number, '\n'.join(lines)


def _quote(place, offsets: str, stated: str, text: str) -> Quote:
  """An annotation's offsets and text as they are stated.

  Raises InputError where the text goes on in a line that is no part of it.
  """
  pieces = tuple(tuple(map(int, part.split())) for part in offsets.split(';'))
  actual = ' '.join(text[start:end] for start, end in pieces)  # as brat joins them
  if '\n' in stated and actual.split() != stated.split() and not occurrences(text, stated):
    raise malformed(place[0], place[1] + 1, 'brat')
  return Quote(place, pieces, stated)


def _resolve(path: Path, number: int, ident: str, index: dict[str, int]) -> int:
  """The number of the span that an id stands for; raises InputError where there is none."""
  if ident not in index:
    raise InputError(f'{path}:{number}: no entity or event has the id {ident!r}')
  return index[ident]
