"""CoNLL: a word a line with its tag in the last column, a blank line between sentences."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import malformed, numbered_lines, with_own_names
from fedmedjax.types import Document, InputError, Span

# B begins an entity, I continues it, E and L end it, S and U are one of a single word, O is none.
_TAG = re.compile(r'([BIELSU])[-_](\S+)|O')
_NAME = re.compile(r'# *newdoc id *= *(.*\S)\s*')


def tag_spans(
  tags: Sequence[str], places: Sequence[tuple[int, int]], counts: Counter
) -> list[Span] | int:
  """Spans of one sentence's tags (IOB1, IOB2, IOE, BIOES, BILOU), as conlleval reads them.

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
    parts = _TAG.fullmatch(tag)
    if not parts:
      return i
    prefix, this = parts.groups()
    if this and (ended or this != kind or prefix in 'BSU'):
      counts['stray_inside'] += prefix in 'IEL'
      spans.append(Span(start, end, this))
    elif this:
      spans[-1] = spans[-1]._replace(end=end)
    kind, ended = this, this is None or prefix in 'ELSU'
  return spans


def read_conll(path: str | Path) -> tuple[list[Document], Counter]:
  r"""Reads one file. Words are joined by a blank, sentences by '\n'.

  Columns are apart by tabs, or by blanks where a line has no tab; the word is the first, the tag
  the last. '-DOCSTART-' or '# newdoc id = NAME' begins a document; a file with neither is one.

  Args:
    path: the file.

  Returns:
    The documents, named FILE_1, FILE_2, ... where they have no name, and counts: documents,
    entities, stray_inside (see `tag_spans`), renamed_documents.
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
        documents.append(_document(path, name or f'{path.stem}_{parts}', sentences, counts))
      sentences.clear()

  for number, line in numbered_lines(path):
    named = _NAME.fullmatch(line)
    if named or line.startswith('-DOCSTART-'):
      finish()
      name, parts = named and named[1], parts + 1
    elif not line.strip():
      close()
    else:
      columns = [c for c in (line.split('\t') if '\t' in line else line.split()) if c.strip()]
      if len(columns) < 2:
        faults.found.append(malformed(path, number, 'CoNLL (a word and its tag)'))
      else:
        sentence.append((number, columns[0].strip(), columns[-1].strip()))
  if not parts:
    name = path.stem
  finish()
  faults.tell()
  if not documents:
    raise InputError(f'no CoNLL sentence in {path}')
  return with_own_names(documents, counts), counts


def _document(path: Path, name: str, sentences, counts: Counter) -> Document:
  """The document of some sentences of (line number, word, tag); adds to `counts`."""
  lines, spans, at, faults = [], [], 0, Faults()
  for sentence in sentences:
    numbers, words, tags = zip(*sentence, strict=True)
    places = word_places(words, ' ', at)
    read = tag_spans(tags, places, counts)
    if isinstance(read, int):
      faults.found.append(malformed(
        path, numbers[read], f'CoNLL (a tag such as O, B-drug; not {tags[read]!r})'))
      continue
    spans += read
    lines.append(' '.join(words))
    at += len(lines[-1]) + 1
  faults.tell()
  counts.update(documents=1, entities=len(spans))
  return Document(name, '\n'.join(lines), tuple(spans), ())


def word_places(words: Sequence[str], joint: str, at: int = 0) -> list[tuple[int, int]]:
  """Character ranges of words that are joined by `joint`, the first at `at`."""
  places = []
  for word in words:
    places.append((at, at + len(word)))
    at += len(word) + len(joint)
  return places
