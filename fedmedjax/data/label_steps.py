"""A BERT's sites and steps: the tasks it can be trained for, and batches of fixed shape.

Sites and rounds are planned by `data/schedule.py` as for a language model; what differs is how
notes become examples and how a step's examples become arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import schedule as schedules
from fedmedjax.data.labels import LabelExample, allowed_labels, encode_labels
from fedmedjax.data.pack import round_up
from fedmedjax.data.relations import modifier_types, relation_examples
from fedmedjax.data.schedule import Layout, Schedule
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.site import Form, SiteData, read_site
from fedmedjax.types import Document, InputError, LabelBatch, SiteCorpus


class Task(NamedTuple):
  """What is labelled.

  find(document, types) -> (examples, counts); asked(entity types of a site) -> types to label;
  annotated(document) -> types that occur in its annotation.
  """

  find: Callable
  asked: Callable
  annotated: Callable


TASKS = {
  'ner': Task(sentence_examples, tuple, lambda document: {s.type for s in document.spans}),
  're': Task(
    relation_examples, modifier_types, lambda document: {r.type for r in document.relations}),
}


def encode_label_site(
  corpus: SiteCorpus,
  tokenizer: Any,
  *,
  task: str,
  labels: Sequence[str],
  max_length: int,
  trains: bool = True,
  **split,
) -> SiteData:
  """A site for a token classifier; every training example is one window.

  Args:
    corpus: the site's notes.
    tokenizer: a fast transformers tokenizer.
    task: a key of TASKS.
    labels: of the classifier; they name all types of a site that trains.
    max_length: longest window in tokens, special tokens included.
    trains, split: see `site.read_site`, which also lists the errors.

  Raises:
    InputError: the site's notes annotate nothing that the task asks for: its words would be
      taught, or scored, as if they were known to be outside of everything.
  """
  asks = TASKS[task]
  notes: Sequence[Document] = corpus.train if trains else corpus.test
  asked = set(asks.asked(corpus.types))
  if not any(asked & asks.annotated(note) for note in notes):
    raise InputError(
      f'site {corpus.name!r}: none of its {len(notes)} notes annotates what '
      f'config.bert.task={task!r} asks for ({", ".join(sorted(asked))})')

  def windows(examples):
    encoded, counts = encode_labels(tokenizer, examples, labels, max_length)
    return [window for one in encoded for window in one], counts

  def unlabelled(examples):
    # What is to be found is not told, and may be of a type that no site trains.
    hidden = [example._replace(entities=()) for example in examples]
    return encode_labels(tokenizer, hidden, labels, max_length)[0]

  return read_site(
    corpus,
    Form(
      np.zeros(1, np.int32), asks.find, windows, unlabelled,
      f'config.bert.max_length={max_length}'),
    trains=trains, **split)


def label_schedule(
  sites: Sequence[SiteData], *, task: str, labels: Sequence[str], max_length: int,
  batch_size: int, weight_by: str, **plan,
) -> Schedule:
  """Plans all steps of all rounds, and the shape [B, T] they share.

  Args:
    task, labels, max_length: as the sites were encoded.
    weight_by: 'examples' or 'tokens' (labelled words): what n_k counts.
    The others: see `schedule.plan_rounds`.
  """
  sites = tuple(sites)
  sizes = {'examples': lambda example: 1, 'tokens': lambda example: len(example.places)}
  rounds, weights = schedules.plan_rounds(
    sites, sizes[weight_by], batch_size=batch_size, **plan)
  steps = schedules.all_steps(sites, rounds, batch_size)
  rows = max(len(step) for step in steps)
  longest = max(len(example.tokens) for step in steps for example in step)
  width = min(round_up(longest, 16), max_length)

  def pack(site: SiteData, examples: Sequence[LabelExample]) -> LabelBatch:
    return label_batch(
      examples, rows, width, allowed_labels(labels, TASKS[task].asked(site.types)))

  blank = label_batch((), rows, width, allowed_labels(labels, ()))
  return Schedule(sites, rounds, weights, Layout(pack, blank), batch_size)


def label_batch(
  examples: Sequence[LabelExample], rows: int, width: int, allowed: np.ndarray
) -> LabelBatch:
  """Examples as arrays [rows, width], the first rows filled; see `types.LabelBatch`."""
  tokens, labels = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
  valid, weight = np.zeros((rows, width), bool), np.zeros((rows, width), np.float32)
  for row, example in enumerate(examples):
    tokens[row, :len(example.tokens)] = example.tokens
    valid[row, :len(example.tokens)] = True
    labels[row, example.places] = example.labels
    weight[row, example.places] = 1.0
  return LabelBatch(tokens, valid, labels, weight, allowed)
