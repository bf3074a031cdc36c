"""i2b2/VA 2010: notes as lines of words, concepts, assertions and relations by line and word."""

import re
from collections import Counter
from pathlib import Path

from fedmedjax.data.formats.files import INT, malformed, numbered_lines, read_text
from fedmedjax.types import Document, InputError, Relation, Span

_CONCEPT = rf'c="(.*)" ({INT}):({INT}) ({INT}):({INT})'
_LINES = {
  'con': re.compile(rf'{_CONCEPT}\|\|t="([^"]+)"\s*'),
  'ast': re.compile(rf'{_CONCEPT}\|\|t="([^"]+)"\|\|a="([^"]+)"\s*'),
  'rel': re.compile(rf'{_CONCEPT}\|\|r="([^"]+)"\|\|{_CONCEPT}\s*'),
}
_FORMS = {'con': 'i2b2 concept', 'ast': 'i2b2 assertion', 'rel': 'i2b2 relation'}


def read_i2b2(folder: str | Path) -> tuple[list[Document], Counter]:
  """Reads every NAME.txt of a folder with its NAME.con and, where there are, NAME.ast, NAME.rel.

  The files may lie side by side or in folders below (txt/, concept/, ast/, rel/). A place is
  LINE:WORD, lines from 1, words from 0 and apart by white space. An assertion is a relation of
  its concept to itself, 'assertion=absent'.

  Args:
    folder: holds the notes; other files are ignored.

  Returns:
    The documents, in the order of their names, and counts: documents, entities, relations,
    assertions, text_mismatch (the quoted words are not those of the place, whatever their case),
    unanchored (relations and assertions of a place that no concept has).
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f'i2b2 folder not found: {folder}')
  files = {kind: _by_name(folder, kind) for kind in ('txt', *_LINES)}
  if not files['txt']:
    raise InputError(f'no .txt files in i2b2 folder {folder}')
  for name in sorted(files['txt'].keys() ^ files['con'].keys()):
    there, absent = ('.txt', '.con') if name in files['txt'] else ('.con', '.txt')
    raise InputError(f'{folder}: {name}{there} has no {name}{absent} beside it')
  counts = Counter()
  return [_document(name, {kind: of[name] for kind, of in files.items() if name in of}, counts)
          for name in sorted(files['txt'])], counts


def _by_name(folder: Path, kind: str) -> dict[str, Path]:
  """{name: file} of the files NAME.kind; raises InputError where two have one name."""
  files = {}
  for path in sorted(folder.rglob(f'[!.]*.{kind}')):
    if path.stem in files:
      raise InputError(f'{path}: a note of this name is in {files[path.stem]} too')
    files[path.stem] = path
  return files


def _document(name: str, files: dict[str, Path], counts: Counter) -> Document:
  """The document of a note's files, {kind: path}; adds to `counts`."""
  text = read_text(files['txt'])
  words, at = [], 0  # the range of each word, line by line
  for line in text.split('\n'):
    words.append([(at + word.start(), at + word.end()) for word in re.finditer(r'\S+', line)])
    at += len(line) + 1
  spans = []
  for number, line in _matches(files, 'con'):
    start, end = _range((files['con'], number), line.groups()[:5], words, text, counts)
    spans.append(Span(start, end, line[6]))
  index = {(span.start, span.end): i for i, span in reversed(list(enumerate(spans)))}
  relations, asserted = [], 0
  for number, line in _matches(files, 'ast'):
    place = _range((files['ast'], number), line.groups()[:5], words, text, counts)
    asserted += place in index
    counts['unanchored'] += place not in index
    if place in index:
      relations.append(Relation(f'assertion={line[7]}', index[place], index[place]))
  for number, line in _matches(files, 'rel'):
    ends = [_range((files['rel'], number), part, words, text, counts)
            for part in (line.groups()[:5], line.groups()[6:])]
    if all(end in index for end in ends):
      relations.append(Relation(line[6], *(index[end] for end in ends)))
    else:
      counts['unanchored'] += 1
  counts.update(documents=1, entities=len(spans), relations=len(relations) - asserted,
                assertions=asserted)
  return Document(name, text, tuple(spans), tuple(relations))


def _matches(files: dict[str, Path], kind: str):
  """Yields (line number, match) of the lines of a note's file, nothing where there is no file."""
  for number, line in numbered_lines(files[kind]) if kind in files else ():
    if line.strip():
      match = _LINES[kind].fullmatch(line)
      if not match:
        raise malformed(files[kind], number, _FORMS[kind])
      yield number, match


def _range(place, part, words, text: str, counts: Counter) -> tuple[int, int]:
  """The characters of a concept, from its words and the places of the first and last of them."""
  stated, *numbers = part
  first_line, first, last_line, last = map(int, numbers)
  try:
    if not first_line or not last_line:
      raise IndexError
    start, end = words[first_line - 1][first][0], words[last_line - 1][last][1]
  except IndexError:
    start = end = 0
  if start >= end:
    path, number = place
    raise InputError(f'{path}:{number}: {stated!r} has the place {first_line}:{first} to '
                     f'{last_line}:{last}, which its note has not')
  counts['text_mismatch'] += text[start:end].lower().split() != stated.lower().split()
  return start, end
