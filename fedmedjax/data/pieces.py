"""Notes cut into sentences that stand for notes: where a study deals out sentences, or has to."""

from collections import Counter
from collections.abc import Sequence

from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.sources import distinct, source_of
from fedmedjax.types import Document

# The count of documents that stand for themselves, since all of a part are of one source.
ONE_SOURCE = 'documents_of_one_source'


def sentences_of(note: Document) -> list[Document]:
  """The sentences of a note as notes of their own, named NAME#START by their first character.

  Entities that cross a sentence's end, and relations between two sentences, are left out. Their
  source is the note's.
  """
  sentences, source = [], source_of(note)
  for start, end in note_sentences(note):
    inside = [i for i, span in enumerate(note.spans) if start <= span.start and span.end <= end]
    place = {old: new for new, old in enumerate(inside)}
    sentences.append(Document(
      f'{note.name}#{start}', note.text[start:end],
      tuple(note.spans[i]._replace(
        start=note.spans[i].start - start, end=note.spans[i].end - start) for i in inside),
      tuple(r._replace(head=place[r.head], tail=place[r.tail]) for r in note.relations
            if r.head in place and r.tail in place), source,
      sentences=((0, end - start),), covering=tuple(
        (first - start, last - start) for first, last in note.covering
        if start <= first and last <= end), target=note.target))
  return sentences


def drawable(documents: Sequence[Document], counts: Counter) -> list[Document]:
  """The documents, such that some can be held out and others kept, if that can be at all.

  Documents of two sources or more stay as they are. Of a single source, each document stands for
  itself, since there is nothing else to draw; they are counted as documents_of_one_source. A
  document alone, such as a CoNLL file that does not say where notes begin, is cut into its
  sentences; they are counted as sentences_as_notes, the entities lost by it as cut_entities.
  """
  if len(distinct(documents)) != 1:
    return list(documents)
  if len(documents) > 1:
    counts[ONE_SOURCE] += len(documents)
    return [document._replace(source=document.name) for document in documents]
  pieces = [piece._replace(source=piece.name) for piece in sentences_of(documents[0])]
  if len(pieces) < 2:
    return list(documents)
  counts['sentences_as_notes'] += len(pieces)
  counts['cut_entities'] += len(documents[0].spans) - sum(len(piece.spans) for piece in pieces)
  return pieces


def is_cut(document: Document) -> bool:
  """Whether it is a sentence of a note that other sentences of the same note stand beside."""
  return '#' in document.name and document.source not in ('', document.name)


def is_piece(document: Document) -> bool:
  """Whether `drawable` made it of a longer document, so that its text is no whole note's."""
  return document.source == document.name and '#' in document.name
