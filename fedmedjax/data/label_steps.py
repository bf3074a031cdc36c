"""A token classifier's sites and steps: one task, batches of fixed shape.

Sites and rounds are planned by `schedule.py` as for a language model; what differs is how
notes become examples and how a step's examples become arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedmedjax.data import schedule as schedules
from fedmedjax.data.groups import deal, groups_needed
from fedmedjax.data.labels import LabelExample, allowed_labels, encode_labels
from fedmedjax.data.layout import Layout, in_groups
from fedmedjax.data.pack import round_up
from fedmedjax.data.private_steps import Units, most_examples, unit_layout
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import Form, SiteData, TaskData, read_site
from fedmedjax.data.tasks import ask
from fedmedjax.types import LabelBatch, SiteCorpus


def encode_label_site(
  corpus: SiteCorpus,
  tokenizer: Any,
  *,
  task: str,
  labels: Sequence[str],
  max_length: int,
  **split,
) -> SiteData:
  """A site for a token classifier; every training example is one window.

  Args:
    corpus: the site's notes.
    tokenizer: a fast transformers tokenizer.
    task: a key of `tasks.TASKS`.
    labels: of the classifier; they name all types of a site that trains.
    max_length: longest window in tokens, special tokens included.
    split: see `site.read_site`, which also lists the errors.
  """
  return read_windows(
    corpus, task, lambda examples: encode_labels(tokenizer, examples, labels, max_length),
    f'config.bert.max_length={max_length}', **split)


def read_windows(
  corpus: SiteCorpus, task: str, encode: Callable, limit: str, **split
) -> SiteData:
  """A site whose examples are read in windows, each a training example.

  Args:
    corpus: the site's notes.
    task: a key of `tasks.TASKS`.
    encode: (examples) -> (the windows of each, counts).
    limit: the key and value that bound a window, for errors.
    split: see `site.read_site`, which also lists the errors.
  """

  def windows(examples):
    encoded, counts = encode(examples)
    return [window for of_example in encoded for window in of_example], counts

  def unlabelled(examples):
    # Entities to be found are no input, and may be of a type that no site trains.
    return encode([example._replace(entities=()) for example in examples])[0]

  form = Form(ask(task, corpus), np.zeros(1, np.int32), windows, unlabelled, limit)
  return read_site(corpus, [form], **split)


def label_schedule(
  sites: Sequence[SiteData], sizes: np.ndarray, *, labels: Sequence[str], max_length: int,
  batch_size: int, micro_batch: int = 0, features: int = 0, server: Sequence[SiteData] = (),
  units: Units | None = None, **plan,
) -> Schedule:
  """Plans all steps of all rounds, and the shape [B, T] they share.

  Args:
    sites: from `encode_label_site` or `hashed_words.encode_word_site`.
    labels, max_length: as the sites were encoded.
    batch_size: examples of a step.
    micro_batch: the most of them that are computed at once; 0 = all.
    sizes: f32[S] n_k, of `schedule.site_sizes`; labelled words where they count tokens.
    server: whose validation examples are the server's own.
    units: of privacy, of which steps are drawn: each has rows of its own, and there are no groups
      but these.
    plan: see `schedule.plan_rounds`.
  """
  sites, server = tuple(sites), tuple(server)
  if units:
    rounds, weights = schedules.drawn_rounds(sites, sizes, batch_size, units, plan)
    return Schedule(
      sites, rounds, weights,
      _rows_of_units((*sites, *server), labels, max_length, units, batch_size, features),
      batch_size, server, units)
  rounds, weights = schedules.plan_rounds(sites, sizes, batch_size=batch_size, **plan)
  steps = schedules.all_steps(sites, rounds, batch_size, server)
  groups = groups_needed(steps, micro_batch)
  rows = max(len(group) for step in steps for group in deal(step, groups))
  longest = max(len(example.tokens) for step in steps for example in step)
  width = min(round_up(longest, 16), max_length)

  def arrays(types: Sequence[str], examples: Sequence[LabelExample]) -> LabelBatch:
    allowed = allowed_labels(labels, types)
    return in_groups(
      lambda group: label_batch(group, rows, width, allowed, features), examples, groups)

  def pack(part: TaskData, examples: Sequence[LabelExample]) -> LabelBatch:
    return arrays(part.ask.types, examples)

  return Schedule(
    sites, rounds, weights, Layout(pack, arrays((), ()), groups=groups), batch_size, server)


def _rows_of_units(
  sites: Sequence[SiteData], labels: Sequence[str], max_length: int, units: Units,
  batch_size: int, features: int,
) -> Layout:
  """Rows that hold any unit's examples, whichever are drawn."""
  longest = max(len(example.tokens) for site in sites for part in site.tasks
                for example in (*part.train, *part.validation))
  width, count = min(round_up(longest, 16), max_length), most_examples(sites, units)

  def rows(types: Sequence[str], examples: Sequence[LabelExample]) -> LabelBatch:
    return label_batch(examples, count, width, allowed_labels(labels, types), features)

  return unit_layout(
    lambda part, own, step: rows(part.ask.types, own), rows((), ()), units, batch_size,
    lambda batch: batch.valid.any((-2, -1)))


def label_batch(
  examples: Sequence[LabelExample], rows: int, width: int, allowed: np.ndarray, features: int = 0
) -> LabelBatch:
  """Examples as arrays [B, T] = [rows, width], the first rows filled; see `types.LabelBatch`.

  Args:
    examples: at most `rows` windows of at most `width` tokens.
    rows, width: B and T.
    allowed: bool[Y], labels that the site annotates.
    features: F; tokens are then [B, T, F]. 0 = they are [B, T].
  """
  labels = np.zeros((rows, width), np.int32)
  tokens = np.zeros((rows, width, features) if features else (rows, width), np.int32)
  valid, weight = np.zeros((rows, width), bool), np.zeros((rows, width), np.float32)
  for row, example in enumerate(examples):
    tokens[row, :len(example.tokens)] = example.tokens
    valid[row, :len(example.tokens)] = True
    labels[row, example.places] = example.labels
    weight[row, example.places] = 1.0
  return LabelBatch(tokens, valid, labels, weight, allowed)
