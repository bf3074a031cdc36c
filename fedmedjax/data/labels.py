"""Sentences as token labels for a BERT classifier, and labels back to spans.

A word is what the tokenizer's own pre-tokeniser calls one (for BERT a run of letters and digits,
or one punctuation mark); its label stands on its first sub-token, the others are ignored. Labels
are O, B-type, I-type. A word that only overlaps an entity belongs to it as a whole.

Entity recognition labels the entities of a sentence. A sentence longer than `max_length` tokens is
cut into windows between words; their labels are joined before spans are read, so an entity that
the cut divides is still found whole.

Relation extraction labels the modifiers of one main entity, which is marked in the input as
'@ * problem * chest pain @': the typed marker in punctuation of Zhou & Chen, "An Improved Baseline
for Sentence-level Relation Extraction", AACL 2022, arXiv:2102.01373. It is made of marks and words
that BERT vocabularies have, so none grows; a new token's embedding, frozen, could not learn. The
marker carries no label, the main entity's own words do, since a modifier may lie inside it. Of a
sentence that is too long the window around the main entity is kept; modifiers outside it are not
trained on, and remain to be found when scored.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.types import Example, Span

OUTSIDE = 'O'


class LabelExample(NamedTuple):
  """One window of one example, with W labelled words."""

  # i32[T] with the tokenizer's first and last special token, or i32[T, F]: F features of each word
  tokens: np.ndarray
  places: np.ndarray  # i32[W]     first sub-token of each labelled word
  labels: np.ndarray  # i32[W]     index into the label names
  words: np.ndarray   # i32[W, 2]  its characters [start, end) in the example's text


class _Word(NamedTuple):
  """A word of the input: its tokens, and its characters [start, end); both -1 in a marker."""

  tokens: list[int]
  start: int
  end: int


def label_names(types: Sequence[str]) -> tuple[str, ...]:
  """Names of all labels: O first, then B and I of every type, in their order."""
  return (OUTSIDE, *(f'{mark}-{name}' for name in types for mark in 'BI'))


def allowed_labels(labels: Sequence[str], types: Sequence[str]) -> np.ndarray:
  """Which of the Y labels a site annotates, bool[Y]: O, and the labels of `types`."""
  return np.asarray([label == OUTSIDE or label[2:] in types for label in labels])


def marked_text(example: Example) -> str:
  """The text that the model reads: the example's, with its main entity marked if it has one."""
  return ''.join(text for text, _ in _pieces(example))


def _pieces(example: Example) -> list[tuple[str, int | None]]:
  """The input in pieces, each with the place of its first character in the text; None = marker."""
  text, main = example.text, example.main
  if main is None:
    return [(text, 0)]
  return [
    (text[:main.start], 0), (f'@ * {main.type} * ', None),
    (text[main.start:main.end], main.start), (' @', None), (text[main.end:], main.end)]


def encode_labels(
  tokenizer: Any, examples: Sequence[Example], labels: Sequence[str], max_length: int
) -> tuple[list[tuple[LabelExample, ...]], Counter]:
  """Cuts examples into windows of tokens and labels their words.

  Args:
    tokenizer: a fast transformers tokenizer.
    examples: their entities are flat and of types that `labels` names.
    labels: the Y label names, from `label_names`.
    max_length: longest window in tokens, special tokens included; at least 3.

  Returns:
    The windows of every example (none for a text without words), and counts: cut_sentences
    (longer than a window) and unlabelled (entities that no word of a window stands for).
  """
  inputs = [_pieces(example) for example in examples]
  texts = [text for pieces in inputs for text, _ in pieces]
  if not texts:
    return [], Counter()
  read = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
  piece, room, out, counts = 0, max_length - 2, [], Counter()
  for example, pieces in zip(examples, inputs, strict=True):
    words: list[_Word] = []
    for _, origin in pieces:
      words += _words(
        read['input_ids'][piece], read.word_ids(piece), read['offset_mapping'][piece], origin)
      piece += 1
    tags = word_labels(words, example.entities, labels)
    # More sub-tokens of one word than a window holds say nothing more.
    sizes = [min(len(word.tokens), room) for word in words]
    ranges = consecutive(sizes, room) if example.main is None else _around(sizes, words, room)
    windows = tuple(_window(tokenizer, words[a:b], tags[a:b], room) for a, b in ranges)
    out.append(windows)
    begun = sum(labels[tag].startswith('B') for window in windows for tag in window.labels)
    counts.update(
      cut_sentences=int(sum(sizes) > room), unlabelled=len(example.entities) - begun)
  return out, counts


def _words(ids, word_ids, offsets, origin: int | None) -> list[_Word]:
  """The words of one piece, put together from its sub-tokens."""
  words: list[_Word] = []
  previous = None
  for token, number, (start, end) in zip(ids, word_ids, offsets, strict=True):
    start, end = (-1, -1) if origin is None else (origin + start, origin + end)
    if number == previous and words:
      words[-1] = _Word([*words[-1].tokens, token], words[-1].start, end)
    else:
      words.append(_Word([token], start, end))
    previous = number
  return words


def word_labels(words: Sequence, entities: Sequence[Span], labels: Sequence[str]) -> list[int]:
  """The label of every word, as an index; a word that two entities share goes to the first.

  Args:
    words: in order, each with its characters [start, end).
    entities: flat, of types that `labels` names.
    labels: the Y label names, from `label_names`.
  """
  names = {name: index for index, name in enumerate(labels)}
  tags = [0] * len(words)
  for span in entities:
    touched = [
      i for i, word in enumerate(words)
      if word.start < span.end and word.end > span.start and not tags[i]]
    for order, i in enumerate(touched):
      tags[i] = names[f'{"I" if order else "B"}-{span.type}']
  return tags


def consecutive(sizes: Sequence[int], room: int) -> list[tuple[int, int]]:
  """As few ranges of words as possible that hold at most `room` tokens each."""
  ranges, start, filled = [], 0, 0
  for i, size in enumerate(sizes):
    if filled + size > room:
      ranges.append((start, i))
      start, filled = i, 0
    filled += size
  return [*ranges, (start, len(sizes))] if sizes else []


def _around(sizes: Sequence[int], words: Sequence[_Word], room: int) -> list[tuple[int, int]]:
  """The range of words around the marked main entity, on both sides, of at most `room` tokens."""
  marker = [i for i, word in enumerate(words) if word.end < 0]
  first, last = marker[0], marker[-1] + 1
  while sum(sizes[first:last]) > room:
    last -= 1
  free, grew = room - sum(sizes[first:last]), True
  while grew:
    grew = False
    if last < len(sizes) and sizes[last] <= free:
      free, last, grew = free - sizes[last], last + 1, True
    if first and sizes[first - 1] <= free:
      free, first, grew = free - sizes[first - 1], first - 1, True
  return [(first, last)]


def _window(
  tokenizer: Any, words: Sequence[_Word], tags: Sequence[int], room: int
) -> LabelExample:
  """The window of these words, with the tokenizer's special tokens around them."""
  tokens, places = [tokenizer.cls_token_id], []
  for word in words:
    places.append(len(tokens))
    tokens += word.tokens[:room]
  # Markers, and words that the tokenizer gives no character, carry no label.
  kept = [i for i, word in enumerate(words) if word.start < word.end]
  return LabelExample(
    np.asarray([*tokens, tokenizer.sep_token_id], np.int32),
    np.asarray([places[i] for i in kept], np.int32), np.asarray([tags[i] for i in kept], np.int32),
    np.asarray([words[i][1:] for i in kept], np.int32).reshape(-1, 2))


def spans(tags: Sequence[str], words: Sequence[Sequence[int]]) -> tuple[Span, ...]:
  """The spans that labels of consecutive words stand for.

  B starts a span; I continues a span of its own type, and starts one where there is none.

  Args:
    tags: a label name for each word.
    words: characters [start, end) of each word.
  """
  joined: list[Span] = []
  previous = ''
  for tag, (start, end) in zip(tags, words, strict=True):
    kind = tag[2:]
    if tag.startswith('I') and kind == previous:
      joined[-1] = joined[-1]._replace(end=int(end))
    elif kind:
      joined.append(Span(int(start), int(end), kind))
    previous = kind
  return tuple(joined)
