"""One site's notes as examples: split by source, sentences or main entities, tokens."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.chat import make_encoder
from fedmedjax.data.labels import LabelExample
from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.sources import source_of
from fedmedjax.data.split import SPLIT_SEED, Split, held_out_sources, split_notes
from fedmedjax.data.tasks import Ask, ask
from fedmedjax.data.text_task import is_solved
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.data.unit_names import first_of_each, rows_of_units
from fedmedjax.data.watched import few
from fedmedjax.types import Document, Example, InputError, SiteCorpus


class TaskData(NamedTuple):
  """A site's notes as examples of one task, tokenised.

  Token sequences are TokenExamples for a language model; for a BERT they are LabelExamples, a
  tuple of them for each test example, and the instruction is without tokens (P = 0).
  """

  ask: Ask
  instruction: np.ndarray  # i32[P + 1]
  train: tuple[TokenExample | LabelExample, ...]
  validation: tuple[TokenExample | LabelExample, ...]
  test: tuple[Example, ...]
  test_tokens: tuple       # the token sequences of `test`
  solved: tuple[Example, ...] = ()  # the examples behind `train`, also those too long for training
  watched: tuple[Example, ...] = ()  # of the held-out notes: a few to answer while training
  watched_tokens: tuple = ()         # their token sequences, as those of `test`
  shots: tuple[Example, ...] = ()    # solved ones that every prompt shows, see `shots.py`
  units: tuple[str, ...] = ()        # the note or patient of each of `train`, where that was asked


class SiteData(NamedTuple):
  """The examples of a site, task by task; tasks that it did not annotate are left out."""

  name: str
  types: tuple[str, ...]
  tasks: tuple[TaskData, ...]
  report: dict[str, int]

  @property
  def train(self) -> tuple[TokenExample | LabelExample, ...]:
    return tuple(example for part in self.tasks for example in part.train)

  @property
  def test(self) -> tuple[Example, ...]:
    return tuple(example for part in self.tasks for example in part.test)


class Form(NamedTuple):
  """How a site's notes become examples and token sequences of one task."""

  ask: Ask
  instruction: np.ndarray  # i32[P + 1]
  encode: Callable         # (examples) -> (token sequences to train on, counts)
  encode_test: Callable    # (examples) -> one entry of `TaskData.test_tokens` for each
  limit: str               # the key that bounds a sequence, with its value, for error messages
  shots: tuple[Example, ...] = ()   # solved examples that every prompt shows
  showing: Callable | None = None   # (solved examples) -> the form whose prompts show them


# (site, form, examples that the site would train on) -> those that its prompts show.
Show = Callable[[str, Form, Sequence[Example]], tuple[Example, ...]]


def encode_site(
  corpus: SiteCorpus,
  tokenizer: Any,
  *,
  max_length: int,
  tasks: Sequence[str] = ('ner',),
  style: str = 'markup',
  chat: bool = False,
  **split,
) -> SiteData:
  """A site for a language model; examples longer than `max_length` tokens are not trained on.

  Args:
    corpus: the site's notes.
    tokenizer: a transformers tokenizer.
    max_length: longest training or validation example in tokens.
    tasks: keys of TASKS, of which a site has those that it annotates, or `text_task.TEXT` alone.
    style: a key of STYLES.
    chat: whether examples are dialogues, see `chat.make_encoder`.
    split: see `read_site`, which also lists the errors.
  """
  encoder = make_encoder(tokenizer, chat)

  def form(asked: Ask, shots: tuple[Example, ...] = (), final: bool = True) -> Form:
    asked = asked._replace(shots=tuple(map(asked.render, shots)))
    # Where prompts will show more, nothing but the length of an example is wanted yet.
    instruction = encoder.instruction(asked, (
      example for note in (*corpus.train, *corpus.test) for example in asked.find(note)[0]
    ) if final else ())
    encode = partial(encoder.encode, asked, instruction)

    def fitting(examples: list[Example]):
      encoded = encode(examples)
      fits = [len(example.tokens) <= max_length for example in encoded]
      lost = [example for example, short in zip(examples, fits, strict=True) if not short]
      return [example for example, short in zip(encoded, fits, strict=True) if short], {
        'too_long': len(lost), 'too_long_entities': _entities(lost),
        'measured_examples': len(examples), 'measured_entities': _entities(examples)}

    return Form(asked, instruction, fitting, encode, f'config.data.max_length={max_length}',
                shots, partial(form, asked))

  final = split.get('show') is None
  return read_site(
    corpus, [form(ask(task, corpus, style), final=final) for task in tasks], **split)


def _entities(examples: Sequence[Example]) -> int:
  return sum(len(example.entities) for example in examples)


def read_site(
  corpus: SiteCorpus,
  forms: Sequence[Form],
  *,
  max_train_notes: int = 0,
  max_train_sentences: int = 0,
  seed: int = 0,
  validation_share: float = 0.0,
  validation_examples: int = 0,
  max_test: int = 0,
  trains: bool = True, tests: bool = True, validates: bool = False,
  show: Show | None = None, planted: tuple[Document, ...] = (),
  unit_of: Callable[[Example], str] | None = None, unit_answers: int = 0,
) -> SiteData:
  """Splits notes into examples, holds out the validation set V by source, and encodes them.

  Sentences that prompts of the site show are neither trained on there nor in its V.

  Args:
    corpus: the site's notes.
    forms: one a task; tasks of which the notes hold no annotation are left out.
    max_train_notes: the first notes used for training; 0 = all.
    max_train_sentences: sentences trained on, at random among those of the notes not held out, with
      all examples in them; a smaller number draws a subset of a larger one's. 0 = all.
    seed: of that draw; the choice of test sentences does not depend on it.
    validation_share: share of the sources of training notes held out for V, with all of their
      notes, the same for all tasks.
    validation_examples: most examples of V of each task, at random among the held-out notes'.
    max_test: test sentences used, at random among all of them, with all examples in them; 0 = all.
    trains: False for a site that is only tested (its training notes are not read).
    tests: False for a site that only trains.
    validates: True for notes of the server's own: all training notes are V, and none trains.
    show: draws what the prompts show; None = nothing.
    planted: canaries of the first task, trained on besides; see `canaries.py`.
    unit_of: (example) -> its unit of privacy; None = units are not looked for.
    unit_answers: most examples of one unit in V of a task; 0 = not bounded.

  Raises:
    InputError: the site annotates nothing of any task, or lacks an example of what it is for.
  """
  rng = np.random.default_rng((SPLIT_SEED, zlib.crc32(corpus.name.encode())))
  notes = corpus.train[:max_train_notes or None] if trains else ()
  held_out = set(range(len(notes))) if validates else set()
  if notes and validation_examples and not validates:
    sources = held_out_sources(notes, validation_share, rng, dealt_out=not tests)
    held_out = {i for i, note in enumerate(notes) if source_of(note) in sources}
  if tests and not any(note_sentences(note) for note in corpus.test):
    raise InputError(f'site {corpus.name!r}: no sentence to test on')
  split = split_notes(corpus, notes, held_out, max_train_sentences, seed, max_test)
  report, parts, whole = Counter(corpus.report), [], tests or validates
  forms = _annotated(corpus, forms, trains) if whole else _trainable(forms, split.train)
  if show:
    forms, split = _showing(corpus.name, forms, split, show)
  for form in forms:
    part = _read_task(form, split, validation_examples, rng, report, unit_of, unit_answers,
                      planted * (form is forms[0]))
    if trains and not validates:
      _check_training(corpus.name, len(notes), len(held_out), part, {
        'max_train_notes': max_train_notes, 'max_train_sentences': max_train_sentences,
        'validation_share': validation_share, 'limit': form.limit})
    # A part of a pool may be too small to have one; V then lacks its group.
    if trains and tests and held_out and not part.validation:
      raise InputError(
        f'site {corpus.name!r}: no validation example (config.data.validation_share='
        f'{validation_share}, {form.limit}); raise one of them')
    parts.append(part)
  if validates and not any(part.validation for part in parts):
    raise InputError(
      f'site {corpus.name!r}: none of its {len(notes)} notes gives a validation example '
      f'(config.data.server_validation, {form.limit}); raise it, or name another site')
  if tests:
    _check_tests(corpus.name, parts, max_test)
  for key in ('train', 'validation', 'test'):
    report[f'{key}_sentences'] = sum(len(getattr(part, key)) for part in parts)
  return SiteData(corpus.name, corpus.types, tuple(parts), dict(report))


def _showing(
  name: str, forms: Sequence[Form], split: Split, show: Show
) -> tuple[list[Form], Split]:
  """The forms whose prompts show what `show` draws of a site's sentences, which are left out."""
  shown = []
  for form in forms:
    solved = [
      example for note in split.train for example in form.ask.find(note)[0]
      if split.trained is None or (example.document, example.start) in split.trained]
    shown.append(form.showing(show(name, form, solved)))
  return shown, split._replace(shown=frozenset(
    example.text for form in shown for example in form.shots))


def _read_task(
  form: Form, split: Split, validation_examples: int, rng: np.random.Generator, report: Counter,
  unit_of: Callable[[Example], str] | None = None, unit_answers: int = 0,
  planted: Sequence[Document] = (),
) -> TaskData:
  """One task of a site; adds counts of examples found, kept and dropped to `report`."""

  def examples(documents: Sequence[Document], wanted: set | None = None) -> list[Example]:
    out = []
    for document in documents:
      in_document, counts = form.ask.find(document)
      out += [e for e in in_document if wanted is None or (e.document, e.start) in wanted]
      # The corpus's own counts are over all its notes, these over the ones read here.
      report.update({f'used_{key}': value for key, value in counts.items()})
    return out

  def encoded(solved: list[Example]) -> list:
    kept, counts = form.encode(solved)
    report.update(counts)
    return kept

  def unseen(found: list[Example]) -> list[Example]:
    left = [example for example in found if example.text not in split.shown]
    if split.shown:
      report['shown_examples'] += len(found) - len(left)
    return left

  solved, held_out = map(unseen, (
    examples(split.train, split.trained), examples(split.validation)))
  solved += [example for canary in planted for example in form.ask.find(canary)[0]]
  train, units = rows_of_units(encoded, solved, unit_of)
  validation, owners = rows_of_units(encoded, held_out, unit_of)
  watched = few(form.encode, held_out, validation_examples)
  order = first_of_each(rng.permutation(len(validation)), owners, unit_answers)
  chosen = np.sort(order[:validation_examples])
  test = examples(split.test, split.tested)
  return TaskData(
    form.ask, form.instruction, tuple(train), tuple(validation[i] for i in chosen), tuple(test),
    tuple(form.encode_test(test)), tuple(solved), tuple(watched),
    tuple(form.encode_test(watched)), form.shots, tuple(units))


def _annotated(corpus: SiteCorpus, forms: Sequence[Form], trains: bool) -> list[Form]:
  """The tasks of which a site's notes hold an annotation.

  Without one, all words would be taught, or scored, as if they were known to be no entity.
  """
  notes = corpus.train if trains else corpus.test
  owned = [
    form for form in forms if form.ask.types
    and any(is_solved(example) for note in notes for example in form.ask.find(note)[0])]
  if not owned and any(note_sentences(note) for note in notes):
    asked = ' and '.join(
      f'{form.ask.task!r} ({", ".join(form.ask.types) or "which it does not annotate"})'
      for form in forms)
    raise InputError(
      f'site {corpus.name!r}: its {len(notes)} notes hold nothing of task {asked}; choose '
      'another of config.data.tasks (a BERT: config.bert.task), or leave the site out')
  return owned or list(forms)


def _trainable(forms: Sequence[Form], notes: Sequence[Document]) -> Sequence[Form]:
  """The tasks of which notes that were dealt out of a pool have an example.

  They may lack all main entities though others of the pool have them. All of `forms` where no task
  has an example, so that the caller's error names them.
  """
  return [form for form in forms if form.ask.types and any(
    form.ask.find(note)[0] for note in notes)] or forms


def _check_training(
  name: str, notes: int, held_out: int, part: TaskData, settings: dict[str, Any]
) -> None:
  """Raises InputError when a site has nothing to train on, and says why."""
  if not part.solved:
    raise InputError(
      f'site {name!r}: no sentence to train on among {notes} notes, {held_out} of them held out'
      + (f' and {len(part.shots)} sentences shown (config.data.shots)' if part.shots else '')
      + f' (config.data.max_train_notes={settings["max_train_notes"]}, '
      f'config.data.max_train_sentences={settings["max_train_sentences"]}, '
      f'config.data.validation_share={settings["validation_share"]})')
  if not part.train:
    raise InputError(
      f'site {name!r}: each of its {len(part.solved)} training examples is longer than '
      f'{settings["limit"]} tokens; allow longer ones')


def _check_tests(name: str, parts: Sequence[TaskData], drawn: int) -> None:
  """Raises InputError when the sentences drawn for testing hold no example of any task."""
  if not any(part.test for part in parts):
    raise InputError(f'site {name!r}: no example to test on in the {drawn} sentences '
                     'drawn (config.eval.max_examples, max_external); raise it')
