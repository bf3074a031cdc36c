"""What every site trains on in every round, and the server's validation set: numpy arrays.

All of it is a function of (seed, round, site), known before the first round, so the shape in
which every step fits is planned once and a run resumes without iterator state.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import pack
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.tokenize import TokenExample, encode_examples, encode_instruction
from fedmedjax.types import Batch, Document, Example, InputError, SiteCorpus

# METHOD section 3: V is held out by note with seed 42, whatever the seed of the run.
SPLIT_SEED = 42


class SiteData(NamedTuple):
  """A site's notes as sentences, tokenised. `instruction` is i32[P + 1]."""

  name: str
  types: tuple[str, ...]
  instruction: np.ndarray
  train: tuple[TokenExample, ...]
  validation: tuple[TokenExample, ...]
  test: tuple[Example, ...]
  test_tokens: tuple[TokenExample, ...]
  report: dict[str, int]


def encode_site(
  corpus: SiteCorpus,
  tokenizer: Any,
  *,
  max_length: int,
  max_train_notes: int = 0,
  validation_share: float = 0.0,
  validation_examples: int = 0,
  max_test: int = 0,
  trains: bool = True,
) -> SiteData:
  """Splits notes into sentences, holds out V by note, tokenises, and drops what is too long.

  Args:
    corpus: the site's notes.
    tokenizer: a transformers tokenizer.
    max_length: longest training or validation example in tokens.
    max_train_notes: the first notes used for training; 0 = all.
    validation_share: share of the training notes held out for V.
    validation_examples: most examples of V, at random among the held-out notes'.
    max_test: the first test sentences used; 0 = all.
    trains: False for a site that is only tested (its training notes are not read).

  Raises:
    InputError: the site has no example to test on or, when it trains, to train on.
  """
  instruction = encode_instruction(tokenizer, corpus.types)
  rng = np.random.default_rng((SPLIT_SEED, zlib.crc32(corpus.name.encode())))
  notes = corpus.train[:max_train_notes or None] if trains else ()
  held_out = set()
  if notes and validation_examples:
    number = max(1, round(validation_share * len(notes)))
    held_out = set(rng.permutation(len(notes))[:number].tolist())
  report = dict(corpus.report)

  def examples(documents: Sequence[Document]) -> list[Example]:
    out = []
    for document in documents:
      found, counts = sentence_examples(document, corpus.types)
      out += found
      for key, value in counts.items():
        # The corpus's own counts are over all its notes, these over the ones read here.
        report[f'used_{key}'] = report.get(f'used_{key}', 0) + value
    return out

  def fitting(found: list[Example]) -> list[TokenExample]:
    encoded = encode_examples(tokenizer, instruction, found)
    kept = [example for example in encoded if len(example.tokens) <= max_length]
    report['too_long'] = report.get('too_long', 0) + len(encoded) - len(kept)
    return kept

  sentences = examples([note for i, note in enumerate(notes) if i not in held_out])
  train = fitting(sentences)
  validation = fitting(examples([notes[i] for i in sorted(held_out)]))
  chosen = np.sort(rng.permutation(len(validation))[:validation_examples])
  validation = [validation[i] for i in chosen]
  test = examples(corpus.test)[:max_test or None]
  report |= {
    'train_sentences': len(train), 'validation_sentences': len(validation),
    'test_sentences': len(test)}
  if trains:
    _check_training(corpus.name, len(notes), len(held_out), sentences, train, {
      'max_train_notes': max_train_notes, 'validation_share': validation_share,
      'max_length': max_length})
    if validation_examples and not validation:
      raise InputError(
        f'site {corpus.name!r}: no validation example (config.data.validation_share='
        f'{validation_share}, config.data.max_length={max_length}); raise one of them')
  if not test:
    raise InputError(f'site {corpus.name!r}: no sentence to test on')
  return SiteData(
    corpus.name, corpus.types, instruction, tuple(train), tuple(validation), tuple(test),
    tuple(encode_examples(tokenizer, instruction, test)), report)


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
      f'config.data.max_length={settings["max_length"]} tokens; allow longer ones')


class Step(NamedTuple):
  """One step before packing: the site it comes from and its examples' indices."""

  site: int
  members: np.ndarray


class Schedule(NamedTuple):
  """Everything the rounds are fed with. `plan[round][participant]` lists its steps."""

  sites: tuple[SiteData, ...]
  plan: tuple[tuple[tuple[Step, ...], ...], ...]
  weights: np.ndarray  # f32[S] n_k
  shape: pack.RowShape
  loss_on: str
  batch_size: int

  @property
  def most_steps(self) -> int:
    """K: so many of any participant in any round."""
    return max(len(one) for steps in self.plan for one in steps)


def site_sizes(sites: Sequence[SiteData], weight_by: str, loss_on: str) -> np.ndarray:
  """f32[S] n_k: training examples, or their supervised tokens."""
  return np.asarray([
    len(site.train) if weight_by == 'examples'
    else sum(pack.supervised(example, loss_on) for example in site.train) for site in sites
  ], np.float32)


def make_schedule(
  sites: Sequence[SiteData],
  *,
  rounds: int,
  local_steps: int,
  local_epochs: int,
  batch_size: int,
  seed: int,
  pooled: bool,
  weight_by: str,
  loss_on: str,
  cohorts: Sequence[Sequence[int]] | None = None,
) -> Schedule:
  """Plans all steps of all rounds and the one shape they share.

  A site takes `local_steps` steps a round or, when that is 0, ceil(n / batch_size) *
  local_epochs. Pooled, one participant takes the very steps that the cohort would have taken,
  shuffled: the same examples and the same number of steps as the federation.

  Args:
    cohorts: the sites of each round, the others take no step; None = all of them in every round.

  Raises:
    InputError: no site is in any cohort.
  """
  plan = []
  for number in range(rounds):
    steps: list[tuple[Step, ...]] = []
    for index, site in enumerate(sites):
      if cohorts is not None and index not in cohorts[number]:
        steps.append(())
        continue
      lengths = np.asarray([len(example.tokens) for example in site.train])
      count = local_steps or local_epochs * -(-len(lengths) // batch_size)
      members = pack.site_steps(lengths, batch_size, seed, index, number * count, count)
      steps.append(tuple(Step(index, chosen) for chosen in members))
    if pooled:
      together = [step for one in steps for step in one]
      order = np.random.default_rng((seed, number)).permutation(len(together))
      steps = [tuple(together[i] for i in order)]
    plan.append(tuple(steps))
  if not any(one for steps in plan for one in steps):
    raise InputError(
      f'config.fed.cohort_size: no site is drawn in {rounds} rounds; raise it or take another seed')
  weights = site_sizes(sites, weight_by, loss_on)
  if pooled:
    weights = weights.sum(keepdims=True)
  packed = [
    [sites[step.site].train[i] for i in step.members]
    for steps in plan for one in steps for step in one
  ] + [examples for site in sites for examples in _validation_steps(site, batch_size)]
  prefix = max(len(site.instruction) for site in sites) - 1
  shape = pack.plan_shape(packed, prefix, loss_on)
  return Schedule(tuple(sites), tuple(plan), weights, shape, loss_on, batch_size)


def _validation_steps(site: SiteData, batch_size: int) -> list[list[TokenExample]]:
  """Like training steps, stratified by length, so that they fit the same shape."""
  if not site.validation:
    return []
  lengths = np.asarray([len(example.tokens) for example in site.validation])
  count = -(-len(lengths) // batch_size)
  return [
    [site.validation[i] for i in members]
    for members in pack.site_steps(lengths, batch_size, SPLIT_SEED, 0, 0, count)
  ]


def _taken(schedule: Schedule, number: int, cohort, steps) -> list[tuple[Step, ...]]:
  """The steps of each participant of the cohort, the first `steps` of those planned."""
  plan = schedule.plan[number]
  if cohort is None:
    return list(plan)
  return [plan[index][:count] for index, count in zip(cohort, steps, strict=True)]


def round_arrays(
  schedule: Schedule,
  number: int,
  cohort: Sequence[int] | None = None,
  steps: Sequence[int] | None = None,
) -> tuple[Batch, np.ndarray]:
  """(batches [C, K, ...], step_mask bool[C, K]) of round `number`, K = schedule.most_steps.

  Args:
    cohort: i[C] participants; None = all of them with all their steps.
    steps: i[C] how many steps each takes; the others are padding.
  """
  longest, empty = schedule.most_steps, pack.blank(schedule.shape, schedule.loss_on)
  taken = _taken(schedule, number, cohort, steps)

  def packed(step: Step) -> Batch:
    site = schedule.sites[step.site]
    return pack.pack(
      site.instruction, [site.train[i] for i in step.members], schedule.shape, schedule.loss_on)

  batches = pack.stack([
    pack.stack([packed(step) for step in one] + [empty] * (longest - len(one)))
    for one in taken
  ])
  mask = np.asarray([[k < len(one) for k in range(longest)] for one in taken])
  return batches, mask


def validation_arrays(schedule: Schedule) -> tuple[Batch, np.ndarray] | None:
  """(batches [Q, ...], group f32[Q, G]) of V, a group per site; None when V is empty."""
  batches, groups = [], []
  for site in schedule.sites:
    for examples in _validation_steps(site, schedule.batch_size):
      batches.append(pack.pack(site.instruction, examples, schedule.shape, schedule.loss_on))
      groups.append(site.name)
  if not batches:
    return None
  names = sorted(set(groups))
  one_hot = np.asarray([[name == group for name in names] for group in groups], np.float32)
  return pack.stack(batches), one_hot


def round_work(
  schedule: Schedule,
  number: int,
  cohort: Sequence[int] | None = None,
  steps: Sequence[int] | None = None,
) -> tuple[int, int]:
  """(examples trained on, their tokens with the instruction once a step), see `round_arrays`."""
  examples, tokens = 0, 0
  for one in _taken(schedule, number, cohort, steps):
    for step in one:
      site = schedule.sites[step.site]
      examples += len(step.members)
      tokens += len(site.instruction) - 1
      tokens += sum(len(site.train[i].tokens) for i in step.members)
  return examples, tokens
