"""i2b2/VA 2010: notes as lines of words, concepts, assertions and relations by line and word."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import INT, hint, malformed, numbered_lines, read_text
from fedmedjax.data.formats.offset_rules import PLAIN
from fedmedjax.data.formats.quotes import Draft, Pieces, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span

_CONCEPT = rf'c="(.*)" ({INT}):({INT}) ({INT}):({INT})'
_LINES = {
  'con': re.compile(rf'{_CONCEPT}\|\|t="([^"]+)"\s*'),
  'ast': re.compile(rf'{_CONCEPT}\|\|t="([^"]+)"\|\|a="([^"]+)"\s*'),
  'rel': re.compile(rf'{_CONCEPT}\|\|r="([^"]+)"\|\|{_CONCEPT}\s*'),
}
# How lines and words are found: a word, a line end, the numbers of the first line and word. The
# format says the first of these. Tools have cut at blanks only, so that a protected blank is part
# of a word, or at each blank, so that two make an empty word; have cut lines at all that Unicode
# calls a line end; and have counted from 1 or 0.
_READINGS = tuple(
  (word, line_end, first_line, first_word)
  for line_end in ('\n', '\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]')
  for first_line in (1, 0) for first_word in (0, 1)
  for word in (r'\S+', r'[^ \t\r]+', r'(?:(?<= )|^)[^ \r]*', r'(?:(?<=[ \t])|^)[^ \t\r]*'))
_FORMS = {'con': 'i2b2 concept', 'ast': 'i2b2 assertion', 'rel': 'i2b2 relation'}


def read_i2b2(folder: str | Path, *others: str | Path) -> tuple[list[Document], Counter]:
  """Reads every NAME.txt of a folder with its NAME.con and, where there are, NAME.ast, NAME.rel.

  The files may lie side by side or in folders below (txt/, concept/, ast/, rel/). A place is
  LINE:WORD, lines from 1, words from 0 and apart by white space; other ways to count are tried
  where the quoted words say so (`_READINGS`). An assertion is a relation of its concept to itself,
  'assertion=absent'.

  Args:
    folder: holds the notes; other files are ignored.
    others: folders with files of the same notes, as where the concepts lie apart from the texts.

  Returns:
    The documents, in the order of their names, and counts: documents, entities, relations,
    assertions, those of `settle` (words are compared whatever their case), unanchored (relations
    and assertions of a place that no concept has).
  """
  folders = [*map(Path, (folder, *others))]
  for one in folders:
    if not one.is_dir():
      raise InputError(f'i2b2 folder not found: {one}')
  files = {kind: _by_name(folders, kind) for kind in ('txt', *_LINES)}
  if not files['txt']:
    raise InputError(f'no .txt files in i2b2 folder {folders[0]}{hint(folders[0], (".txt",))}')
  for name in sorted(files['txt'].keys() ^ files['con'].keys()):
    there, absent = ('.txt', '.con') if name in files['txt'] else ('.con', '.txt')
    raise InputError(f'{folders[0]}: {name}{there} has no {name}{absent} beside it')
  counts, faults, drafts = Counter(), Faults(), []
  for name in sorted(files['txt']):
    with faults:
      own = {kind: of[name] for kind, of in files.items() if name in of}
      drafts.append(_document(name, own, counts, faults))
  faults.tell()
  return settle(drafts, counts, (PLAIN,), cased=False), counts


def _by_name(folders: Sequence[Path], kind: str) -> dict[str, Path]:
  """{name: file} of the files NAME.kind; raises InputError where two have one name."""
  files = {}
  for path in sorted(path for folder in folders for path in folder.rglob(f'[!.]*.{kind}')):
    if path.stem in files:
      raise InputError(f'{path}: a note of this name is in {files[path.stem]} too')
    files[path.stem] = path
  return files


def _document(name: str, files: dict[str, Path], counts: Counter, faults: Faults) -> Draft:
  """The document of a note's files, {kind: path}; adds to `counts` and `faults`."""
  text = read_text(files['txt'])
  spans, quotes, places = [], [], []
  words = _words(text, *_READINGS[0])
  for number, line in _matches(files, 'con', faults):
    stated, *place = line.groups()[:5]
    places.append(tuple(map(int, place)))
    spans.append(Span(0, 0, line[6]))
    ident = '{} {}:{} {}:{}'.format(stated, *place)
    quotes.append(Quote((files['con'], number, ident), _range(places[-1], words), stated))
  index = {place: i for i, place in reversed(list(enumerate(places)))}
  relations, asserted = [], 0
  for _, line in _matches(files, 'ast', faults):
    place = tuple(map(int, line.groups()[1:5]))
    asserted += place in index
    counts['unanchored'] += place not in index
    if place in index:
      relations.append(Relation(f'assertion={line[7]}', index[place], index[place]))
  for _, line in _matches(files, 'rel', faults):
    ends = [tuple(map(int, part)) for part in (line.groups()[1:5], line.groups()[7:])]
    if all(end in index for end in ends):
      relations.append(Relation(line[6], *(index[end] for end in ends)))
    else:
      counts['unanchored'] += 1
  counts.update(documents=1, entities=len(spans), relations=len(relations) - asserted,
                assertions=asserted)

  def readings() -> list[tuple[str, list[Pieces]]]:
    return [(f'places_otherwise:{number}', [_range(place, _words(text, *reading))
                                            for place in places])
            for number, reading in enumerate(_READINGS[1:], 1)]

  return Draft(Document(name, text, tuple(spans), tuple(relations)), tuple(quotes),
               as_one_unit(text), readings)


def _matches(files: dict[str, Path], kind: str, faults: Faults):
  """Yields (line number, match) of the lines of a note's file, nothing where there is no file."""
  for number, line in numbered_lines(files[kind]) if kind in files else ():
    if line.strip():
      match = _LINES[kind].fullmatch(line)
      if match:
        yield number, match
      else:
        faults.found.append(malformed(files[kind], number, _FORMS[kind]))


@lru_cache(2 * len(_READINGS))
def _words(
  text: str, word: str, line_end: str, first_line: int, first_word: int
) -> dict[tuple[int, int], tuple[int, int]]:
  """{(line, word): its characters} of a note."""
  found, at = {}, 0
  for number, line in enumerate(re.split(f'({line_end})', text)):
    if number % 2 == 0:
      found |= {(number // 2 + first_line, i): (at + match.start(), at + match.end())
                for i, match in enumerate(re.finditer(word, line), first_word)}
    at += len(line)
  return found


def _range(place: tuple[int, ...], words: dict[tuple[int, int], tuple[int, int]]) -> Pieces:
  """The characters from the first word of a place to the last; () where its note has no such."""
  first, last = words.get(place[:2]), words.get(place[2:])
  return ((first[0], last[1]),) if first and last and first[0] < last[1] else ()
