"""Teacher-forced entities: which tags a model would write if all it wrote before were right.

The right answer of a test sentence is fed, and at each of its tokens the model's likeliest next
token is taken, in one pass and without decoding. It is a cheap upper bound in kind: a mistake never
carries over to what comes after it, and a word that is copied wrongly costs nothing. So it is not
what a user gets, which is what decoding scores; the two together tell a model that does not know
entities from one that loses its way in writing them.

Choices become entities like this. An entity of the annotation is

  opened    where every token of its opening tag is chosen; with another type's name where the
            first wrong token is the one that this type's tag has there; else it is missed.
  closed    before the first of its words at which a wrong token with '<' is chosen; at its end
            where the first token of its closing tag is chosen; else a word later, which is right by
            the lenient count only.

Where a wrong token with '<' but without '</' is chosen outside of entities, one begins that is not
there: it counts as one of the site's first type, over the characters of the token that should have
come, and neighbours of that kind are one. Its type would be chosen later, so figures by type have
no meaning here, and only counts over all types are given.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.data import pack, step_order
from fedmedjax.data.answers import markup
from fedmedjax.data.scripts import word_ranges
from fedmedjax.data.site import SPLIT_SEED, SiteData, TaskData
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.eval import evaluate
from fedmedjax.model.llama import Llama
from fedmedjax.model.loss import packed_choices
from fedmedjax.types import Example, Span

# The task whose answers are read here.
TASK = 'ner'
_CLOSING = '</span>'


class Forcer(NamedTuple):
  """How test sentences are read with their right answers."""

  choices: Callable  # (adapter, base, Batch) -> i32[M], `loss.packed_choices`
  tokenizer: Any
  batch_size: int    # sentences of a pass
  shape: pack.RowShape


def forcer(
  model: Llama, tokenizer: Any, sites: Sequence[SiteData], batch_size: int
) -> Forcer | None:
  """The `Forcer` whose passes hold all test sentences of `sites`; None where they have none.

  Args:
    model: a Llama built with `packed_attention`.
    tokenizer: a fast one, which knows the characters of its tokens.
    sites: all that will be asked about.
    batch_size: sentences of a pass.
  """
  parts = [part for site in sites for part in site.tasks if part.ask.task == TASK and part.test]
  if not parts:
    return None
  passes = [[part.test_tokens[i] for i in members] for part in parts
            for members in step_order.one_pass(part.test_tokens, batch_size, SPLIT_SEED)]
  prefix = max(len(part.instruction) for part in parts) - 1
  return Forcer(
    jax.jit(partial(packed_choices, model)), tokenizer, batch_size,
    pack.plan_shape(passes, prefix, 'completion'))


def forced_scores(
  forcer: Forcer, base: dict, adapter: dict, site: SiteData, advance: Callable[[int], None]
) -> evaluate.SiteScores | None:
  """A site's entity scores by teacher forcing; only typed ones mean something. None without NER.

  Args:
    forcer: see above.
    base: the `params` collection.
    adapter: the `lora` collection; {} is the base model alone.
    site: whose test sentences are read.
    advance: called with the number of sentences read since the last call.
  """
  parts = tuple(part for part in site.tasks if part.ask.task == TASK and part.test)
  if not parts:
    return None
  records = []
  for part in parts:
    for index, chosen in _chosen(forcer, base, adapter, part, advance):
      example = part.test[index]
      found = forced_spans(forcer.tokenizer, part, example, part.test_tokens[index], chosen)
      records.append({
        'document': example.document, 'sentence_start': example.start, 'task': TASK,
        'predicted': [evaluate.in_document(span, example) for span in found],
        'gold': [evaluate.in_document(span, example) for span in example.entities],
        'copied': True, 'parse_failed': False, 'dropped': 0})
  # Intervals are the caller's, from the counts.
  return evaluate.score(site._replace(tasks=parts), [records], seed=0, samples=1)


def _chosen(
  forcer: Forcer, base: dict, adapter: dict, part: TaskData, advance: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (index of a test sentence, the token chosen at each token of its answer i32[m])."""
  for members in step_order.one_pass(part.test_tokens, forcer.batch_size, SPLIT_SEED):
    examples = [part.test_tokens[i] for i in members]
    batch = pack.pack(part.instruction, examples, forcer.shape, 'completion')
    found, place = np.asarray(forcer.choices(adapter, base, batch)), 0
    for row in pack.fit_rows([len(example.tokens) for example in examples], forcer.shape.width):
      for member in row:
        number = pack.supervised(examples[member], 'completion')
        yield members[member], found[place:place + number]
        place += number
    advance(len(members))


class _Answer(NamedTuple):
  """The right answer of a sentence, token by token, beside what was chosen."""

  example: Example
  right: np.ndarray               # i32[m], the end token last
  chosen: np.ndarray              # i32[m]
  pieces: list[str]               # of the chosen
  places: list[tuple[int, int]]   # characters of each token in the answer
  tags: list[tuple[int, int, int, int]]  # of each entity: begin and end of both of its tags

  def wrong(self, index: int) -> bool:
    return self.chosen[index] != self.right[index]

  def begins(self, index: int) -> bool:
    """Whether a tag is begun where another token should come."""
    return self.wrong(index) and '<' in self.pieces[index]

  def in_sentence(self, at: int) -> int:
    """The character of the sentence at which a character of the answer stands."""
    before = 0
    for opened, words, closed, after in self.tags:
      before += max(0, min(at, words) - opened) + max(0, min(at, after) - closed)
    return at - before


def forced_spans(
  tokenizer: Any, part: TaskData, example: Example, tokens: TokenExample, chosen: np.ndarray
) -> list[Span]:
  """The entities that these choices mark in a sentence, see the top of this file.

  Args:
    tokenizer: of `tokens`.
    part: the task at the site; its answers are span markup.
    example: the sentence with its right entities.
    tokens: the sentence and its right answer.
    chosen: i32[m], the token chosen where each of the answer's m tokens should come.
  """
  answer = _answer(tokenizer, part, example, tokens, chosen)
  found = _invented(answer, part.ask.types[0])
  for number, gold in enumerate(example.entities):
    kind = _kind(tokenizer, part, answer, number)
    words = example.text[gold.start:_end(answer, number)].rstrip()
    if kind is not None and words:
      found.append(Span(gold.start, gold.start + len(words), kind))
  return sorted(found)


def _answer(tokenizer, part, example, tokens, chosen) -> _Answer:
  target = markup.write(example.text, example.entities)
  read = tokenizer(target, add_special_tokens=False, return_offsets_mapping=True)
  right = np.asarray(tokens.tokens[tokens.prompt_length:])
  if part.ask.render(example)[1] != target or list(read['input_ids']) != right[:-1].tolist():
    raise ValueError('teacher forcing reads answers in span markup')
  tags, shift = [], 0
  for span in example.entities:
    opening = len(markup.shown(span.type, '')) - len(_CLOSING)
    begin, words = span.start + shift, span.start + shift + opening
    close = words + span.end - span.start
    tags.append((begin, words, close, close + len(_CLOSING)))
    shift += opening + len(_CLOSING)
  places = [tuple(place) for place in read['offset_mapping']] + [(len(target), len(target))]
  # The model may know numbers that the tokenizer does not.
  begun = [tokenizer.convert_ids_to_tokens(int(token)) or '' for token in chosen]
  return _Answer(example, right, np.asarray(chosen), begun, places, tags)


def _covering(places: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
  """The tokens that have a character in [start, end)."""
  return [i for i, (first, last) in enumerate(places) if first < end and last > start]


def _kind(tokenizer, part: TaskData, answer: _Answer, number: int) -> str | None:
  """The type that an entity is opened with; None where it is not."""
  entities, (opened, words, _, _) = answer.example.entities, answer.tags[number]
  miss = next((i for i in _covering(answer.places, opened, words) if answer.wrong(i)), None)
  if miss is None:
    return entities[number].type
  for kind in part.ask.types:
    # What comes later cannot be seen from here.
    other = [*entities[:number], entities[number]._replace(type=kind)]
    ids = tokenizer(markup.write(answer.example.text, other), add_special_tokens=False)['input_ids']
    if ids[:miss] == answer.right[:miss].tolist() and ids[miss] == answer.chosen[miss]:
      return kind
  return None


def _end(answer: _Answer, number: int) -> int:
  """Where an entity ends in the sentence, if it was opened."""
  gold, (_, words, closed, after) = answer.example.entities[number], answer.tags[number]
  for index in _covering(answer.places, words, closed):
    if answer.begins(index):
      return answer.in_sentence(answer.places[index][0])
  close, *_ = _covering(answer.places, closed, after)
  if not answer.wrong(close):
    return gold.end
  return next(
    (end for _, end in word_ranges(answer.example.text) if end > gold.end), gold.end)


def _invented(answer: _Answer, kind: str) -> list[Span]:
  """The entities begun where none is."""
  found: list[Span] = []
  known = [(opened, after) for opened, _, _, after in answer.tags]
  before = False  # whether the token before this one is such an entity's
  for index, (first, last) in enumerate(answer.places):
    start, end = answer.in_sentence(first), answer.in_sentence(last)
    words = answer.example.text[start:end]
    invented = bool(words.strip()) and answer.begins(index) and (
      '</' not in answer.pieces[index]) and not any(
        first < after and last > opened for opened, after in known)
    if invented:
      begun = found.pop().start if before else start + len(words) - len(words.lstrip())
      found.append(Span(begun, start + len(words.rstrip()), kind))
    before = invented
  return found
