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
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.data import pack
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
  passes = [[part.test_tokens[i] for i in members]
            for part in parts for members in _passes(part, batch_size)]
  prefix = max(len(part.instruction) for part in parts) - 1
  return Forcer(
    jax.jit(partial(packed_choices, model)), tokenizer, batch_size,
    pack.plan_shape(passes, prefix, 'completion'))


def _passes(part: TaskData, batch_size: int) -> list[np.ndarray]:
  """The test sentences of each pass, of about equally many tokens."""
  lengths = np.asarray([len(example.tokens) for example in part.test_tokens])
  return pack.site_steps(
    lengths, batch_size, SPLIT_SEED, 0, 0, -(-len(lengths) // batch_size))


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
        'predicted': _in_document(found, example), 'gold': _in_document(example.entities, example),
        'copied': True, 'parse_failed': False, 'dropped': 0})
  # Intervals are the caller's, from the counts.
  return evaluate.score(site._replace(tasks=parts), [records], seed=0, samples=1)


def _in_document(spans: Sequence[Span], example: Example) -> list:
  return [[span.start + example.start, span.end + example.start, span.type] for span in spans]


def _chosen(
  forcer: Forcer, base: dict, adapter: dict, part: TaskData, advance: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (index of a test sentence, the token chosen at each token of its answer i32[m])."""
  for members in _passes(part, forcer.batch_size):
    examples = [part.test_tokens[i] for i in members]
    batch = pack.pack(part.instruction, examples, forcer.shape, 'completion')
    found, place = np.asarray(forcer.choices(adapter, base, batch)), 0
    for row in pack.fit_rows([len(example.tokens) for example in examples], forcer.shape.width):
      for member in row:
        number = pack.supervised(examples[member], 'completion')
        yield int(members[member]), found[place:place + number]
        place += number
    advance(len(members))


class _Answer(NamedTuple):
  """The right answer of a sentence, token by token, beside what was chosen."""

  example: Example
  right: np.ndarray               # i32[m], the end token last
  chosen: np.ndarray              # i32[m]
  places: list[tuple[int, int]]   # characters of each token in the answer
  tags: list[tuple[int, int, int, int]]  # of each entity: begin and end of both of its tags
  text: Callable[[int], str]      # of a token

  def wrong(self, index: int) -> bool:
    return self.chosen[index] != self.right[index]

  def begins(self, index: int) -> bool:
    """Whether a tag is begun where another token should come."""
    return self.wrong(index) and '<' in self.text(int(self.chosen[index]))

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
  found, inside = [], np.zeros(len(chosen), bool)
  for number, (opened, words, closed, after) in enumerate(answer.tags):
    opening, closing = _covering(answer.places, opened, words), _covering(
      answer.places, closed, after)
    inside[opening[0]:closing[-1] + 1] = True
    kind = _kind(tokenizer, part, answer, number, opening)
    if kind is None:
      continue
    gold = example.entities[number]
    end = _end(answer, gold, opening[-1] + 1, closing[0])
    length = len(example.text[gold.start:end].rstrip())
    if length:
      found.append(Span(gold.start, gold.start + length, kind))
  return sorted([*found, *_invented(answer, inside, part.ask.types[0])])


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
  text = cache(lambda token: tokenizer.decode([token], clean_up_tokenization_spaces=False))
  return _Answer(example, right, np.asarray(chosen), places, tags, text)


def _covering(places: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
  """The tokens that have a character in [start, end)."""
  return [i for i, (first, last) in enumerate(places) if first < end and last > start]


def _kind(tokenizer, part: TaskData, answer: _Answer, number: int, opening) -> str | None:
  """The type that an entity is opened with; None where it is not."""
  entities = answer.example.entities
  miss = next((i for i in opening if answer.wrong(i)), None)
  if miss is None:
    return entities[number].type
  for kind in part.ask.types:
    other = [*entities[:number], entities[number]._replace(type=kind), *entities[number + 1:]]
    ids = tokenizer(markup.write(answer.example.text, other), add_special_tokens=False)['input_ids']
    if ids[:miss] == answer.right[:miss].tolist() and ids[miss] == answer.chosen[miss]:
      return kind
  return None


def _end(answer: _Answer, gold: Span, first: int, close: int) -> int:
  """Where an entity that was opened ends in the sentence.

  Args:
    answer: of the sentence.
    gold: the right entity.
    first: the token after its opening tag.
    close: the first token of its closing tag.
  """
  for index in range(first, close + 1):
    if answer.begins(index):
      return min(answer.in_sentence(answer.places[index][0]), gold.end)
  if not answer.wrong(close):
    return gold.end
  later = (end for start, end in word_ranges(answer.example.text) if start >= gold.end)
  return next(later, gold.end)


def _invented(answer: _Answer, inside: np.ndarray, kind: str) -> list[Span]:
  """The entities begun where none is; `inside` bool[m] are the tokens of true ones."""
  found, last = [], -2
  for index, (first, end) in enumerate(answer.places):
    if inside[index] or not answer.begins(index) or (
        '</' in answer.text(int(answer.chosen[index]))):
      continue
    start, end = answer.in_sentence(first), answer.in_sentence(end)
    words = answer.example.text[start:end]
    start += len(words) - len(words.lstrip())
    if words.strip():
      begun = found.pop().start if index == last + 1 else start
      found.append(Span(begun, start + len(words.strip()), kind))
      last = index
  return found
