"""One site's notes as examples: split by note, sentences or main entities, tokens."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.labels import LabelExample
from fedmedjax.data.relations import relation_examples
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.tokenize import TokenExample, encode_examples, encode_instruction
from fedmedjax.types import Document, Example, InputError, SiteCorpus

# METHOD section 3: V is held out by note with seed 42, whatever the seed of the run.
SPLIT_SEED = 42


class RelationExamples(NamedTuple):
  """A site's relation examples; none where its notes hold no modifier of its main entities."""

  train: tuple[Example, ...] = ()
  test: tuple[Example, ...] = ()  # only those of the sentences that are tested on


class SiteData(NamedTuple):
  """A site's notes as sentences, tokenised. `instruction` is i32[P + 1].

  Token sequences are TokenExamples for a language model; for a BERT they are LabelExamples, a
  tuple of them for each test sentence, and the instruction is without tokens (P = 0).
  """

  name: str
  types: tuple[str, ...]
  instruction: np.ndarray
  train: tuple[TokenExample | LabelExample, ...]
  validation: tuple[TokenExample | LabelExample, ...]
  test: tuple[Example, ...]
  test_tokens: tuple
  report: dict[str, int]
  sentences: tuple[Example, ...] = ()  # what `train` was made from, too long ones included
  relations: RelationExamples = RelationExamples()


class Form(NamedTuple):
  """How a site's notes become examples and token sequences.

  find(document, types) -> (examples, counts)
  encode(examples) -> (what training holds, counts), encode_test(examples) -> one entry each
  limit: the key that bounds a sequence, with its value, for error messages.
  """

  instruction: np.ndarray
  find: Callable
  encode: Callable
  encode_test: Callable
  limit: str


def encode_site(
  corpus: SiteCorpus,
  tokenizer: Any,
  *,
  max_length: int,
  **split,
) -> SiteData:
  """A site for a language model: drops what is longer than `max_length` tokens from training.

  Args:
    corpus: the site's notes.
    tokenizer: a transformers tokenizer.
    max_length: longest training or validation example in tokens.
    split: see `read_site`, which also lists the errors.
  """
  instruction = encode_instruction(tokenizer, corpus.types)

  def fitting(found: list[Example]):
    encoded = encode_examples(tokenizer, instruction, found)
    kept = [example for example in encoded if len(example.tokens) <= max_length]
    return kept, {'too_long': len(encoded) - len(kept)}

  form = Form(
    instruction, sentence_examples, fitting, partial(encode_examples, tokenizer, instruction),
    f'config.data.max_length={max_length}')
  return read_site(corpus, form, **split)


def read_site(
  corpus: SiteCorpus,
  form: Form,
  *,
  max_train_notes: int = 0,
  validation_share: float = 0.0,
  validation_examples: int = 0,
  max_test: int = 0,
  trains: bool = True,
  tests: bool = True,
) -> SiteData:
  """Splits notes into examples, holds out V by note, and encodes.

  Args:
    corpus: the site's notes.
    form: how its examples are found and encoded.
    max_train_notes: the first notes used for training; 0 = all.
    validation_share: share of the training notes held out for V.
    validation_examples: most examples of V, at random among the held-out notes'.
    max_test: the first test examples used; 0 = all.
    trains: False for a site that is only tested (its training notes are not read).
    tests: False for a site that only trains.

  Raises:
    InputError: the site has no example to test on or, when it trains, to train on.
  """
  rng = np.random.default_rng((SPLIT_SEED, zlib.crc32(corpus.name.encode())))
  notes = corpus.train[:max_train_notes or None] if trains else ()
  held_out = set()
  if notes and validation_examples:
    # A site with one note keeps it to train on.
    number = min(max(1, round(validation_share * len(notes))), len(notes) - 1)
    held_out = set(rng.permutation(len(notes))[:number].tolist())
  report = dict(corpus.report)

  def examples(documents: Sequence[Document]) -> list[Example]:
    out = []
    for document in documents:
      found, counts = form.find(document, corpus.types)
      out += found
      for key, value in counts.items():
        # The corpus's own counts are over all its notes, these over the ones read here.
        report[f'used_{key}'] = report.get(f'used_{key}', 0) + value
    return out

  def encoded(found: list[Example]) -> list:
    kept, counts = form.encode(found)
    for key, value in counts.items():
      report[key] = report.get(key, 0) + value
    return kept

  used = [note for i, note in enumerate(notes) if i not in held_out]
  sentences = examples(used)
  train = encoded(sentences)
  validation = encoded(examples([notes[i] for i in sorted(held_out)]))
  chosen = np.sort(rng.permutation(len(validation))[:validation_examples])
  validation = [validation[i] for i in chosen]
  test = examples(corpus.test)[:max_test or None]
  report |= {
    'train_sentences': len(train), 'validation_sentences': len(validation),
    'test_sentences': len(test)}
  if trains:
    _check_training(corpus.name, len(notes), len(held_out), sentences, train, {
      'max_train_notes': max_train_notes, 'validation_share': validation_share,
      'limit': form.limit})
    if held_out and not validation:
      raise InputError(
        f'site {corpus.name!r}: no validation example (config.data.validation_share='
        f'{validation_share}, {form.limit}); raise one of them')
  if tests and not test:
    raise InputError(f'site {corpus.name!r}: no sentence to test on')
  return SiteData(
    corpus.name, corpus.types, form.instruction, tuple(train), tuple(validation), tuple(test),
    tuple(form.encode_test(test)), report, tuple(sentences), _relations(corpus, used, test))


def _relations(
  corpus: SiteCorpus, used: Sequence[Document], tested: Sequence[Example]
) -> RelationExamples:
  """Relation examples of the notes `used` for training and of the sentences `tested`."""
  train, test = (
    [example for note in notes for example in relation_examples(note, corpus.types)[0]]
    for notes in (used, corpus.test))
  if not any(example.entities for example in (*train, *test)):
    return RelationExamples()
  places = {(sentence.document, sentence.start) for sentence in tested}
  return RelationExamples(
    tuple(train), tuple(e for e in test if (e.document, e.start) in places))


def _check_training(name, notes, held_out, sentences, fitting, settings) -> None:
  """Raises InputError when a site has nothing to train on, and says why."""
  if not sentences:
    raise InputError(
      f'site {name!r}: no sentence to train on among {notes} notes, {held_out} of them held out '
      f'(config.data.max_train_notes={settings["max_train_notes"]}, '
      f'config.data.validation_share={settings["validation_share"]})')
  if not fitting:
    raise InputError(
      f'site {name!r}: each of its {len(sentences)} training examples is longer than '
      f'{settings["limit"]} tokens; allow longer ones')
