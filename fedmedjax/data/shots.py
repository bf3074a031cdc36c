"""Solved examples that stand in the prompt of every question: config.data.shots and api.shots.

A site that trains shows sentences of its own training notes. One that does not (an external cohort,
a site whose notes were dealt out, the server's validation notes) is shown those of sites that train
and annotate all types of its prompt: another site's sentences would teach that a type is not to be
marked. A tested sentence is never shown, also where boilerplate repeats it word for word.

What a site shows leaves its training and its part of V, or a model would learn to copy the answer
from its prompt. So a cohort is shown first what the sites that train show themselves, which nobody
trains on. Where that is too little it is lent further training sentences. These stay in training
where they came from: they tell a model nothing of the cohort, and what is trained on does not
depend on which cohorts are tested.
"""

import zlib
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice

import numpy as np

from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.site import Form, SiteData, TaskData
from fedmedjax.data.tasks import Ask
from fedmedjax.data.text_task import is_solved
from fedmedjax.types import Example, InputError, SiteCorpus


def lenders(ask: Ask, trained: Sequence[SiteData]) -> list[TaskData]:
  """The tasks of sites that train whose examples may be shown where none of one's own may be.

  Args:
    ask: the task that shows them.
    trained: the sites that train.
  """
  return [
    other for donor in trained for other in donor.tasks
    if other.ask.task == ask.task and all(
      set(kinds) <= set(other.ask.asked.get(main, ())) for main, kinds in ask.shown.items())]


def as_asked(ask: Ask, solved: Iterable[Example]) -> list[Example]:
  """Solved examples with those entities alone that a prompt asks for."""
  found = []
  for example in solved:
    kinds = ask.shown.get('' if example.main is None else example.main.type)
    if kinds is not None:
      found.append(example._replace(
        entities=tuple(span for span in example.entities if span.type in kinds)))
  return found


def draw(
  site: str, task: str, pools: Sequence[Sequence[Example]], tested: Container[str], count: int,
  seed: int, fits: Callable[[Example], bool] = lambda example: True,
) -> tuple[Example, ...]:
  """At most `count` different sentences with an answer, a function of (seed, site, task).

  Args:
    site, task: names.
    pools: solved examples to draw from; the second pool only where the first is used up.
    tested: sentences that are never shown.
    count: number of sentences.
    seed: of the draw.
    fits: whether an example may be shown.
  """
  rng = np.random.default_rng((seed, zlib.crc32(f'{site}/{task}'.encode())))
  order: dict[str, Example] = {}
  for pool in pools:
    fresh = list({
      example.text: example for example in pool if is_solved(example)
      and example.text not in tested and example.text not in order}.values())
    order |= {fresh[i].text: fresh[i] for i in rng.permutation(len(fresh))}
  return tuple(islice(filter(fits, order.values()), count))


def shots_of(
  site: str, form: Form, solved: Sequence[Example], *, count: int, seed: int,
  tested: Container[str], trained: Sequence[SiteData] | None = None,
) -> tuple[Example, ...]:
  """What the prompts of a site show, as config.data.shots asks for.

  Args:
    site: its name.
    form: of its task, without any shots yet; what it does not encode is too long to be shown.
    solved: examples that the site would train on.
    count: number of examples.
    seed: of the draw.
    tested: texts of all sentences that are tested on anywhere.
    trained: the sites that train, where this one does not; None = it shows its own.

  Raises:
    InputError: there are fewer, or no site could lend one.
  """
  pools, whose = [solved], 'its training sentences'
  if trained is not None:
    lent = lenders(form.ask, trained)
    if not lent:
      raise InputError(
        f'config.data.shots={count}: nothing can be shown for task {form.ask.task!r} of site '
        f'{site!r}, since no site that trains annotates all types of its prompt; use 0')
    pools = [[example for part in lent for example in part.shots],
             [example for part in lent for example in part.solved]]
    whose = 'the training sentences of sites that annotate all its types'
  found = draw(
    site, form.ask.task, [as_asked(form.ask, pool) for pool in pools], tested, count, seed,
    lambda example: bool(form.encode([example])[0]))
  if len(found) < count:
    raise InputError(
      f'config.data.shots={count}: {len(found)} of {whose} can be shown for task '
      f'{form.ask.task!r} of site {site!r}: those with an answer that are not tested and no longer '
      f'than {form.limit}; use fewer, or 0')
  return found


def tested_texts(corpora: Iterable[SiteCorpus]) -> frozenset[str]:
  """The texts of all sentences, or whole rows, of test notes."""
  return frozenset(
    note.text[start:end] for corpus in corpora for note in corpus.test
    for start, end in note_sentences(note))
