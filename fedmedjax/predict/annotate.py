"""Annotates notes: sentences of several notes share a batch; the result is one whole note each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from jax.sharding import Mesh

from fedmedjax.data.chat import make_encoder
from fedmedjax.data.scripts import cut_place
from fedmedjax.data.sentences import note_sentences, trimmed
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.eval import evaluate
from fedmedjax.eval.generation import Generator, most_new_tokens
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.model.files.peft import load_peft
from fedmedjax.model.llama import Llama
from fedmedjax.predict.trained import Trained
from fedmedjax.types import Document, Example, InputError, Relation, Span

# Most tokens of a sentence; longer ones are cut, because memory grows with batch times length. The
# longest of the public corpora's 34,903 sentences has 469.
_LONGEST = 512
_SHORTEST = 32  # tokens; a model whose context has room for fewer is refused
_MARGIN = 64    # tokens around a sentence: the tag of a main entity, the end of the prompt
# Most characters of a token: a text with more than this times the limit is not even tokenised.
_PER_TOKEN = 16
# Batches that are decoded together before finished notes are returned. Rows are idle at the end of
# each such group, so larger groups waste less.
_BATCHES = 8


class Annotator(NamedTuple):
  """A model with its adapter, and the tasks that it is asked."""

  generator: Generator
  base: dict
  adapter: dict
  parts: tuple[TaskData, ...]  # one for each task, without examples
  longest: int                 # most tokens of a sentence


class Annotation(NamedTuple):
  """A note with its predicted entities and relations, and counts."""

  document: Document  # entities, then their modifiers; a relation's head is the main entity
  sentences: int      # number of sentences
  cut: int            # number of sentences too long for the model, which were asked in pieces
  answers: int        # number of answers: for each piece, and for each entity asked for modifiers
  unreadable: int     # number of answers that could not be parsed completely
  dropped: int        # entities and modifiers in answers that do not occur in their sentence


def make_annotator(trained: Trained, base: BaseModel, mesh: Mesh | None = None) -> Annotator:
  """Loads the adapter for the base model.

  Args:
    trained: the adapter, its prompts and settings.
    base: the base model.
    mesh: the devices that the base is placed on; None = a single one.

  Raises:
    InputError: adapter and base do not fit, or the prompt leaves no room for a sentence.
  """
  adapter, lora = load_peft(trained.adapter, base.config)
  ratio = trained.settings['eval.max_new_ratio']
  encoder = make_encoder(base.tokenizer, trained.settings['data.chat'])
  parts = tuple(
    TaskData(ask, encoder.instruction(ask, ()), (), (), (), ()) for ask in trained.asks)
  prompt = max(len(part.instruction) for part in parts)
  context = base.config.max_position_embeddings
  # The largest n with prompt + n + most_new_tokens(n) <= context.
  room = int((context - prompt - most_new_tokens(0, ratio)) / (1 + ratio)) - _MARGIN
  if room < _SHORTEST:
    raise InputError(
      f'{base.name}: its context of {context} tokens has no room for a sentence behind a prompt '
      f'of {prompt}, with eval.max_new_ratio={ratio}')
  llama = Llama(
    base.config, cached_attention, lora_scale=lora.scale,
    dtype=DTYPES[trained.settings['model.dtype']])
  generator = Generator(
    llama, base.tokenizer, trained.settings['eval.batch_size'], ratio,
    trained.settings['eval.guesses'], mesh, encoder)
  return Annotator(generator, base.params, adapter, parts, min(_LONGEST, room))


def sentence_pieces(annotator: Annotator, note: Document) -> tuple[list[Example], int, int]:
  """The sentences of a note, cut into pieces where too long.

  A byte order mark counts in the offsets of the text but is part of no sentence.

  Returns:
    (an example for each piece, number of sentences, number of sentences that were cut).
  """
  text = ' ' + note.text[1:] if note.text.startswith('\ufeff') else note.text
  sentences, cut, examples = note_sentences(note._replace(text=text)), 0, []
  for start, end in sentences:
    pieces = list(_pieces(text, start, end, partial(_fits, annotator)))
    cut += len(pieces) > 1
    examples += [Example(note.name, first, text[first:last], ()) for first, last in pieces]
  return examples, len(sentences), cut


def _fits(annotator: Annotator, text: str) -> bool:
  """Whether a text has at most `annotator.longest` tokens."""
  # A token is at least one byte, so most sentences need no tokenising.
  if len(text.encode()) <= annotator.longest:
    return True
  if len(text) > _PER_TOKEN * annotator.longest:
    return False
  tokens = annotator.generator.tokenizer(text, add_special_tokens=False)['input_ids']
  return len(tokens) <= annotator.longest


def _pieces(
  text: str, start: int, end: int, fits: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
  """Cuts a range in two until its parts fit, see `cut_place`."""
  if fits(text[start:end]) or end - start < 2:
    yield start, end
    return
  at = cut_place(text, start, end)
  for first, last in (trimmed(text, start, at), trimmed(text, at, end)):
    if first < last:
      yield from _pieces(text, first, last, fits)


class _Open(NamedTuple):
  """A note that is still waiting for answers."""

  note: Document
  sentences: int
  cut: int
  last: int            # number of pieces of all notes up to the end of this one
  answers: list[dict]


def annotate(
  annotator: Annotator, notes: Iterable[Document],
  advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Annotation]:
  """Annotates notes in their order; sentences of several notes share a batch.

  Args:
    annotator: the model.
    notes: with different names; annotations that they may have are ignored.
    advance: called with the number of sentence pieces done since the last call.
  """
  size = _BATCHES * annotator.generator.batch_size
  opened: deque[_Open] = deque()
  waiting: list[Example] = []
  asked = done = 0

  def decode(count: int) -> None:
    nonlocal done
    answers = {entry.note.name: entry.answers for entry in opened}
    for record in _answer(annotator, waiting[:count], advance):
      answers[record['document']].append(record)
    del waiting[:count]
    done += count

  def finished() -> Iterator[Annotation]:
    while opened and opened[0].last <= done:
      yield _annotation(opened.popleft())

  for note in notes:
    pieces, sentences, cut = sentence_pieces(annotator, note)
    waiting += pieces
    asked += len(pieces)
    opened.append(_Open(note, sentences, cut, asked, []))
    while len(waiting) >= size:
      decode(size)
    yield from finished()
  if waiting:
    decode(len(waiting))
  yield from finished()


def _answer(
  annotator: Annotator, examples: Sequence[Example], advance: Callable[[int], None]
) -> list[dict]:
  """Prediction records: of the entities of some sentences, then of the entities' modifiers."""
  first, *others = annotator.parts
  asking = evaluate.asking(annotator.generator, first, examples)
  site = SiteData('notes', first.ask.types, (asking, *others), {})
  return evaluate.answer(annotator.generator, annotator.base, annotator.adapter, site, advance)


def _annotation(entry: _Open) -> Annotation:
  linked = [record for record in entry.answers if 'main' in record]
  places = {
    Span(*span): None for record in entry.answers if 'main' not in record
    for span in record['predicted']}
  links = {
    (Span(*record['main']), Span(*span)): None
    for record in linked for span in record['predicted']}
  entities = sorted(places)
  spans = entities + sorted({modifier for _, modifier in links})
  at = {span: index for index, span in enumerate(spans)}
  relations = tuple(
    Relation(modifier.type, at[main], at[modifier]) for main, modifier in sorted(links))
  return Annotation(
    entry.note._replace(spans=tuple(spans), relations=relations), entry.sentences, entry.cut,
    len(entry.answers), sum(record['parse_failed'] for record in entry.answers),
    sum(record['dropped'] for record in entry.answers))
