"""CoNLL: a word a line with its tag in the last column, a blank line between sentences."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import malformed, numbered_lines, with_own_names
from fedmedjax.types import Document, InputError, Span

# B begins an entity, I and M continue it, E and L end it, S, U and W are one of a single word, O is
# none. The mark stands before the type or, in some corpora, behind it; a mark alone is of the one
# type that the corpus has.
_TAG = re.compile(r'([BIMELSUW])[-_](\S+)|(\S+)[-_]([BIMELSUW])|([BI])|O')
_ONLY_TYPE = 'entity'
# Lines that begin a document: '# newdoc' of CoNLL-U, '###MEDLINE:95' of JNLPBA, '#begin document
# (a);' of CoNLL-2012.
_NEW = re.compile(
  r'#\s*newdoc(?:\s+id\s*=\s*(\S.*?))?\s*'
  r'|##+\s*(?:MEDLINE|PMID|PMCID|DOC\w*)\s*[:=]?\s*(\S.*?)\s*'
  r'|#\s*begin document\s*\(?([^()]*?)\)?;?(?:\s*part.*)?\s*', re.IGNORECASE)
# '# text = No rash' and '# id 7a', which MultiCoNER has, are never words.
_COMMENT = re.compile(r'#+ *[\w.:-]+ *=(?: |$)|# (?:id|sent_?id|text)\b', re.IGNORECASE)

# Numbers of CoNLL-U for several words that are written as one, and for words that nobody wrote.
_NO_WORD = re.compile(r'\d+[-.]\d+')


def tag_spans(
  tags: Sequence[str], places: Sequence[tuple[int, int]], counts: Counter
) -> list[Span] | int:
  """Spans of one sentence's tags (IOB1, IOB2, IOE, BIOES, BILOU, BMES), as conlleval reads them.

  A continuing tag where no entity of its type is open begins one; 'stray_inside' counts those, for
  IOB1 means them so and IOB2 does not.

  Args:
    tags: a tag for each word.
    places: character range of each word.
    counts: stray_inside is added to it.

  Returns:
    The spans, or the index of the first word whose tag cannot be read.
  """
  spans, kind, ended = [], None, True  # the type that is open, and whether it was closed
  for i, (tag, (start, end)) in enumerate(zip(tags, places, strict=True)):
    parts = read_tag(tag)
    if not parts:
      return i
    prefix, this = parts
    if this and (ended or this != kind or prefix in 'BSUW'):
      counts['stray_inside'] += prefix in 'IMEL'
      spans.append(Span(start, end, this))
    elif this:
      spans[-1] = spans[-1]._replace(end=end)
    kind, ended = this, this is None or prefix in 'ELSUW'
  return spans


def read_tag(tag: str) -> tuple[str, str | None] | None:
  """A tag's mark and type, the type None where it is of no entity; None for what is no tag."""
  found = _TAG.fullmatch(tag)
  if not found:
    return None
  before, kind, other, behind, alone = found.groups()
  return before or behind or alone or 'O', kind or other or (_ONLY_TYPE if alone else None)


class _Line(NamedTuple):
  """A line: its number, and its columns that are not blank."""

  number: int
  text: str
  columns: tuple[str, ...]


def read_conll(path: str | Path) -> tuple[list[Document], Counter]:
  r"""Reads one file. Words are joined by a blank, sentences by '\n', and stay as they are.

  Columns are apart by tabs, or by blanks where a line has no tab; the word is the first (the second
  where the first numbers the words), the tag the last. '-DOCSTART-', '# newdoc id = NAME' or
  '###MEDLINE:NAME' begins a document; a file with none of them is one. Other lines with '#' are
  comments unless they read like the words around them: as many columns, the last one a tag.

  Args:
    path: the file.

  Returns:
    The documents, named FILE_1, FILE_2, ... where they have no name, and counts: documents,
    entities, stray_inside (see `tag_spans`), comments, empty_tokens (without a character, left
    out), unnumbered_tokens (CoNLL-U's '1-2' and '3.1', left out), renamed_documents.
  """
  path = Path(path)
  counts, documents, name, sentences, sentence = Counter(), [], None, [], []
  parts, faults = 0, Faults()

  def close() -> None:
    if sentence:
      sentences.append(tuple(sentence))
      sentence.clear()

  def finish() -> None:
    close()
    if sentences:
      with faults:
        documents.append(_document(path, name or f'{path.stem}_{parts}', sentences, at, counts))
      sentences.clear()

  lines = [_Line(number, line, tuple(
    cell.strip() for cell in _cells(line) if cell.strip()))
    for number, line in numbered_lines(path)]
  widths = Counter(len(line.columns) for line in lines if line.columns and line.text[:1] != '#')
  width = widths.most_common(1)[0][0] if widths else 0
  at = int(_numbered(lines))  # the column of the words
  for line in lines:
    named = _NEW.fullmatch(line.text)
    if named or line.text.startswith('-DOCSTART-'):
      finish()
      name, parts = named and next(filter(None, named.groups()), None), parts + 1
    elif not line.text.strip():
      close()
    elif _is_comment(line, bool(sentence), width or len(line.columns)):
      counts['comments'] += 1
    elif at and _NO_WORD.fullmatch(line.columns[0]):
      counts['unnumbered_tokens'] += 1
    # Blank where the word should be; more white space before a word is none.
    elif line.text[0].isspace() and len(line.columns) < max(width, 2) and read_tag(
        line.columns[-1]):
      counts['empty_tokens'] += 1
    elif len(line.columns) < 2:
      faults.found.append(malformed(path, line.number, 'CoNLL (a word and its tag)'))
    else:
      sentence.append(line)
  if not parts:
    name = path.stem
  finish()
  faults.tell()
  if not documents:
    raise InputError(f'no CoNLL sentence in {path}')
  return with_own_names(documents, counts), counts


def _cells(line: str) -> list[str]:
  """The columns of a line; a protected blank is part of a word unless nothing else is between."""
  if '\t' in line:
    return line.split('\t')
  cells = line.strip().split(' ')
  return cells if len(cells) > 1 else line.split()


def _numbered(lines: Sequence[_Line]) -> bool:
  """Whether the first of three or more columns numbers the words, of each sentence or of all."""
  expected, words = {'0', '1'}, 0
  for line in lines:
    if not line.text.strip():
      expected |= {'0', '1'}
    elif line.text[0] != '#' and not line.text.startswith('-DOCSTART-'):
      if len(line.columns) < 3:
        return False
      if _NO_WORD.fullmatch(line.columns[0]):
        continue
      if line.columns[0] not in expected:
        return False
      expected, words = {str(int(line.columns[0]) + 1)}, words + 1
  return words > 1


def _is_comment(line: _Line, inside: bool, width: int) -> bool:
  """Whether a line that begins with '#' is none of a word.

  Args:
    line: not blank.
    inside: whether words of its sentence were read.
    width: the number of columns that lines of words have.
  """
  if line.text[0] != '#':
    return False
  if _COMMENT.match(line.text):
    return True
  # Within a sentence a line of a word whose tag is wrong is an error, not a comment.
  tagged = len(line.columns) > 1 and read_tag(line.columns[-1])
  return len(line.columns) != width or not (tagged or inside)


def _document(path: Path, name: str, sentences, at: int, counts: Counter) -> Document:
  """The document of the lines of some sentences, words in column `at`; adds to `counts`."""
  texts, spans, ranges, length, faults = [], [], [], 0, Faults()
  for sentence in sentences:
    words, tags = zip(*((line.columns[at], line.columns[-1]) for line in sentence), strict=True)
    places = word_places(words, ' ', length)
    read = tag_spans(tags, places, counts)
    if isinstance(read, int):
      faults.found.append(malformed(
        path, sentence[read].number, f'CoNLL (a tag such as O, B-drug; not {tags[read]!r})'))
      continue
    spans += read
    texts.append(' '.join(words))
    ranges.append((length, length + len(texts[-1])))
    length += len(texts[-1]) + 1
  faults.tell()
  counts.update(documents=1, entities=len(spans))
  return Document(name, '\n'.join(texts), tuple(spans), (), sentences=tuple(ranges))


def word_places(words: Sequence[str], joint: str, at: int = 0) -> list[tuple[int, int]]:
  """Character ranges of words that are joined by `joint`, the first at `at`."""
  places = []
  for word in words:
    places.append((at, at + len(word)))
    at += len(word) + len(joint)
  return places
