"""brat stand-off: a folder of NAME.txt with NAME.ann beside it."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import INT, hint, malformed, numbered_lines, read_text
from fedmedjax.data.formats.part_names import named_papers
from fedmedjax.data.formats.quoted_words import occurrences
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_ID = re.compile(r'([TERAMN#][0-9]+|\*)\t')
# Some tools put a blank in place of the tab. A line is then taken for an annotation only if all of
# it reads like one: it may also be the rest of a span that was broken into lines.
_TARGET = r'[TERter][0-9]+'
_BLANK_ID = re.compile(
  rf'(T[0-9]+) +(?=\S+[ \t]+{INT}[ \t]+{INT}(?:;[ \t]*{INT}[ \t]+{INT})*[ \t]+\S)'
  rf'|(R[0-9]+) +(?=\S+(?:\s+[^\s:]+: ?{_TARGET}){{2,}}\s*$)'
  rf'|(E[0-9]+) +(?=[^\s:]+:T[0-9]+(?:\s+[^\s:]+:{_TARGET})*\s*$)'
  rf'|([AM][0-9]+) +(?=\S+ {_TARGET}(?:\s+\S.*)?$)'
  rf'|([N#][0-9]+) +(?=\S+ (?:{_TARGET}|[AM][0-9]+)(?:\s|$))'
  rf'|(\*) +(?=\S+(?: {_TARGET})+\s*$)')
# First character of a line -> the count that it adds to; of these kinds a Document holds attributes
# only.
_COUNTED = {
  '*': 'nary', 'A': 'attributes', 'M': 'attributes', 'N': 'normalisations', '#': 'notes',
}
# Roles that are the head beside the other, wherever they stand in their line.
_HEADS = {
  'from': 'to', 'head': 'tail', 'source': 'target', 'subject': 'object', 'subj': 'obj',
  'main': 'modifier', 'parent': 'child'}
_ATTRIBUTE = re.compile(r'(\S+) (\S+)(?:\s+(\S.*?))?\s*', re.DOTALL)
_ROLE = re.compile(r'([^\s:]+): ?([^\s:]+)')
_BODY = {
  'T': re.compile(
    rf'(\S+)[ \t]+({INT}[ \t]+{INT}(?:;[ \t]*{INT}[ \t]+{INT})*)[ \t](.*)', re.DOTALL),
  'E': re.compile(r'([^\s:]+):(\S+)((?:\s+[^\s:]+:\S+)*)\s*'),
  'R': re.compile(r'(\S+)((?:\s+[^\s:]+: ?[^\s:]+)+)\s*'),
} | dict.fromkeys(_COUNTED, re.compile(r'\S+ \S+.*')) | dict.fromkeys('AM', _ATTRIBUTE)


def read_brat(folder: str | Path) -> tuple[list[Document], Counter]:
  """Reads every NAME.txt + NAME.ann of a brat folder, in the order of their names.

  A discontinuous span becomes its covering range. A relation's head is Arg1 and its tail Arg2, in
  any order and letter case; of other roles the head is that which stands first in the first
  relation of the same type and roles ('Coref Anaphora:T2 Antecedent:T1'). An event stands for its
  trigger, and its arguments are relations (role, trigger, argument). An attribute is a relation of
  a span to itself, named 'NAME' or 'NAME=VALUE'; one of a relation has no place and is left out.
  Relations are in the order of their lines. A blank may stand for the tab after an id.

  Args:
    folder: holds the pairs; its other files are ignored.

  Returns:
    The documents, and counts: documents, entities, relations (attributes apart), events,
    discontinuous, those of `settle`, nary (also relations of more than two roles), attributes,
    relation_attributes (left out), normalisations, notes.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f'brat folder not found: {folder}')
  found = {p for p in folder.glob('[!.]*') if p.suffix in ('.txt', '.ann')}
  stems = {p.with_suffix('') for p in found
           if not named_papers(p.stem) or p.with_suffix('.ann') in found}
  if not stems:
    raise InputError(
      f'no .txt and .ann files in brat folder {folder}{hint(folder, (".txt", ".ann"))}')
  counts, faults, drafts, heads = Counter(), Faults(), [], {}
  for stem in sorted(stems):
    with faults:
      there, absent = ('.ann', '.txt') if Path(f'{stem}.ann') in found else ('.txt', '.ann')
      if Path(f'{stem}{absent}') not in found:
        raise InputError(f'{folder}: {stem.name}{there} has no {stem.name}{absent} beside it')
      drafts.append(_document(stem, heads, counts))
  faults.tell()
  return settle(drafts, counts), counts


def _document(stem: Path, heads: dict, counts: Counter) -> Draft:
  """The document of one NAME.txt and NAME.ann; adds to `counts` and to `heads`, see `_ends`."""
  text, path = read_text(Path(f'{stem}.txt')), Path(f'{stem}.ann')
  lines, seen, faults = {kind: [] for kind in _BODY}, set(), Faults()
  for number, line in _lines(path):
    with faults:
      ident = _identified(line)
      body = ident and _BODY[line[0]].fullmatch(line, ident.end())
      if not body:
        # Of joined lines the second is wrong, so its number is the useful one.
        raise malformed(path, number + ('\n' in line), 'brat')
      ident = ident[ident.lastindex]
      if line[0] in 'TE' and ident in seen:
        raise InputError(f'{path}:{number}: the id {ident} occurs twice')
      seen.add(ident)
      lines[line[0]].append((number, ident, body.groups()))
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
  for number, _, (kind, roles) in lines['R']:
    with faults:
      ends = _ends(path, number, kind, roles, heads)
      if len(ends) == 2:
        links.append((number, kind, *ends))
      else:
        counts['nary'] += 1
  counts.update(relations=len(links))
  for number, _, (name, target, value) in lines['A'] + lines['M']:
    if target[0] in 'Rr' and target.upper() in seen:
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


def _identified(line: str) -> re.Match | None:
  """The id that a line begins with, as the match's last group; None where it has none."""
  return _ID.match(line) or _BLANK_ID.match(line)


def _ends(path: Path, number: int, kind: str, roles: str, heads: dict) -> list[str]:
  """The ids that a relation links, its head first.

  Args:
    path, number: file and line.
    kind: the relation's type.
    roles: its arguments, ' ROLE:ID ROLE:ID'.
    heads: {(type, roles): the role of the head}, to which a first relation adds.
  """
  ends = [tuple(part.strip() for part in argument) for argument in _ROLE.findall(roles)]
  if len(ends) < 2:
    raise malformed(path, number, 'brat (two roles)')
  names = [role.lower() for role, _ in ends]
  first = next((name for name in names if _HEADS.get(name) in names), names[0])
  if len({name.rstrip('0123456789') for name in names}) == 1:  # Arg1 and Arg2
    first = min(names, key=lambda name: (len(name), name))
  head = heads.setdefault((kind, tuple(sorted(names))), first)
  return [ident for _, ident in sorted(ends, key=lambda end: end[0].lower() != head)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
  """Numbered lines of annotations; a line without an id is joined to the one above it.

  Some tools write a newline inside a span as it is.
  """
  logical = []
  for number, line in numbered_lines(path):
    if line.strip() and (not logical or _identified(line)):
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
  if ident.upper() not in index:
    raise InputError(f'{path}:{number}: no entity or event has the id {ident!r}')
  return index[ident.upper()]
