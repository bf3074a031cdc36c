"""JSON of the Fed-MedLoRA authors' code: a record a sentence, without the note it comes from.

Records have some of `tokens` and `tags` (BIO), `html` (the sentence with span tags), `input` and
`output`. In relation extraction `input` marks the main entity and `output` its modifiers, a
record for each main entity of the sentence.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fedmedjax.data.formats.conll import tag_spans, word_places
from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import Place, json_records, list_field, text_field
from fedmedjax.data.formats.part_names import named_parts
from fedmedjax.data.sources import stated
from fedmedjax.types import Document, InputError, Relation, Span

_FORM = "the reference's JSON (tokens and tags, html, or input and output)"
_TAG = re.compile(
  r'<span\s(?:[^<>]*\s)?class\s*=\s*["\']?([^"\'<>\s]+)["\']?(?:\s[^<>]*)?>|</span\s*>',
  re.IGNORECASE)
_HEADING = re.compile(r'.*### Input Text:|### Output Text:.*', re.DOTALL)


class _Sentence(NamedTuple):
  """A sentence with its annotation, of one record or of several that were merged."""

  text: str
  spans: tuple[Span, ...]
  relations: tuple[Relation, ...] = ()
  source: str = ''
  part: str = ''


def read_reference(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file: an array of records, or a record a line.

  Neighbouring records of the same text and note are one document, as those of a sentence's main
  entities are; a key `split` that names a part becomes a word of its name. A document is a
  sentence. Where records do not name their note (`sources.stated`), notes cannot be told, and a
  split may put two sentences of a note on both sides.

  Args:
    path: the file.

  Returns:
    The documents, FILE_000001 and so on, and counts: see `documents_of`.
  """
  path = Path(path)
  documents, counts = documents_of(path.stem, json_records(path, _FORM))
  if not documents:
    raise InputError(f'no record in {path}')
  return documents, counts


def documents_of(
  stem: str, records: Iterable[tuple[Place, dict]], name_of: Callable[[int], str] | None = None,
) -> tuple[list[Document], Counter]:
  """The documents of records of any source, a file or a data set.

  Args:
    stem: the beginning of the documents' names.
    records: each with its place, for errors.
    name_of: (number) -> the tag, where tags are numbers.

  Returns:
    The documents, and counts: documents, entities, relations, records, merged_records (of a text
    that the one before has too), empty_records (without text, left out), stray_inside,
    empty_tokens (without a character, left out), broken_markup (tags without their partner),
    text_mismatch (records whose input and output are different texts; the output's are lost).
  """
  counts, sentences, faults = Counter(), [], Faults()
  with faults:  # of reading the records
    for place, record in records:
      counts['records'] += 1
      with faults:
        sentence = None if _is_empty(record) else _sentence(
          place, record, counts, name_of)._replace(source=stated(record))
        if not (sentence and sentence.text.strip()):
          counts['empty_records'] += 1
          continue
        part = named_parts(str(record.get('split', '')))
        if len(part) == 1:
          sentence = sentence._replace(part=f'{part.pop()}_')
        if sentences and (sentences[-1].text, *sentences[-1][3:]) == (
            sentence.text, *sentence[3:]):
          counts['merged_records'] += 1
          sentence = _merged(sentences.pop(), sentence)
        sentences.append(sentence)
  faults.tell()
  documents = [
    Document(f'{stem}_{sentence.part}{i:06d}', *sentence[:-1],
             sentences=((0, len(sentence.text)),)) for i, sentence in enumerate(sentences, 1)]
  for document in documents:
    counts.update(documents=1, entities=len(document.spans), relations=len(document.relations))
  return documents, counts


def _is_empty(record: dict) -> bool:
  """Whether a record has keys of the format and nothing under them, as a row may have."""
  values = [record[key] for key in ('tokens', 'html', 'input', 'output') if key in record]
  return bool(values) and all(value in (None, '', []) for value in (*values, record.get('tags')))


def _sentence(place: Place, record: dict, counts: Counter, name_of) -> _Sentence:
  """The sentence of one record; adds to `counts`."""
  if record.get('input') is not None and record.get('output') is not None:
    text, mains = _unmarked(_HEADING.sub('', text_field(place, record, 'input', _FORM)), counts)
    copy, others = _unmarked(_HEADING.sub('', text_field(place, record, 'output', _FORM)), counts)
    if copy != text:
      counts['text_mismatch'] += 1
      others = []
    spans = tuple(dict.fromkeys([*mains, *others]))
    links = (Relation(span.type, 0, spans.index(span)) for span in others)
    return _Sentence(text, spans, tuple(links) if len(mains) == 1 else ())
  if record.get('html') is not None:
    text, spans = _unmarked(text_field(place, record, 'html', _FORM), counts, folded=False)
    return _Sentence(text, tuple(spans))
  words, tags = (list_field(place, record, key, _FORM) for key in ('tokens', 'tags'))
  if name_of:
    tags = [name_of(tag) if isinstance(tag, int) else tag for tag in tags]
  entries = {str(i): entry for i, entry in enumerate([*words, *tags])}
  for key in entries:
    text_field(place, entries, key, _FORM)
  if not words or len(words) != len(tags):
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM}: {len(words)} tokens '
                     f'and {len(tags)} tags')
  counts['empty_tokens'] += words.count('')
  kept = [(word, tag) for word, tag in zip(words, tags, strict=True) if word]
  words, tags = [word for word, _ in kept], [tag for _, tag in kept]
  # Where white space stands among the tokens, they are all of the text.
  joint = '' if any(word.isspace() for word in words) else ' '
  spans = tag_spans(tags, word_places(words, joint), counts)
  if isinstance(spans, int):
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {_FORM}: tag {tags[spans]!r}')
  return _Sentence(joint.join(words), tuple(spans))


def _unmarked(marked: str, counts: Counter, folded: bool = True) -> tuple[str, list[Span]]:
  """The text without span tags, and the spans; runs of white space are one blank if `folded`."""
  if folded:
    marked = ' '.join(marked.replace('<EOS>', '').split())
  pieces, spans, opened, length, at = [], [], [], 0, 0
  for tag in _TAG.finditer(marked):
    pieces.append(marked[at:tag.start()])
    length, at = length + len(pieces[-1]), tag.end()
    if tag[1]:
      opened.append((length, tag[1]))
    elif not opened:
      counts['broken_markup'] += 1
    else:
      start, kind = opened.pop()
      if start < length:
        spans.append(Span(start, length, kind))
      else:
        counts['broken_markup'] += 1
  counts['broken_markup'] += len(opened)
  return ''.join(pieces) + marked[at:], sorted(spans)


def _merged(first: _Sentence, second: _Sentence) -> _Sentence:
  """One sentence with the spans and relations of two that have the same text."""
  spans = tuple(dict.fromkeys(first.spans + second.spans))
  relations = [Relation(link.type, *(spans.index(of.spans[end]) for end in (link.head, link.tail)))
               for of in (first, second) for link in of.relations]
  return first._replace(spans=spans, relations=tuple(dict.fromkeys(relations)))
