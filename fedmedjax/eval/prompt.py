"""Zero- and few-shot prompts for chat models: our instruction, k solved examples, the question.

Few-shot prompting as in "Language Models are Few-Shot Learners" (Brown et al., NeurIPS 2020,
arXiv:2005.14165): its K demonstrations are `shots`. Deviation: a demonstration is a turn of the
dialogue (user, assistant) and not part of one text, since chat models are tuned on turns. There is
no system turn: some chat templates refuse one.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data import relations, tasks
from fedmedjax.data.site import SiteData
from fedmedjax.types import Example, InputError


class Prompt(NamedTuple):
  """What a site is asked in one task."""

  types: tuple[str, ...]      # asked for, and scored over
  instruction: str
  shots: tuple[Example, ...]  # solved examples shown before every question
  test: tuple[Example, ...]


def ner_prompt(site: SiteData, trained: Sequence[SiteData], count: int, seed: int) -> Prompt:
  """Entity recognition; see `choose_shots`."""
  pool = [
    example._replace(entities=tuple(span for span in example.entities if span.type in site.types))
    for donor in donors(site, trained) for example in donor.sentences]
  shots = choose_shots(site, 'ner', pool, site.test, count, seed)
  return Prompt(site.types, tasks.instruction(site.types), shots, site.test)


def re_prompt(site: SiteData, trained: Sequence[SiteData], count: int, seed: int) -> Prompt | None:
  """Relation extraction; None when the site has no relation example to test on."""
  test = site.relations.test
  if not test:
    return None
  pool = [
    example for donor in donors(site, trained) for example in donor.relations.train
    if example.main.type in site.types]
  shots = choose_shots(site, 're', pool, test, count, seed)
  return Prompt(
    relations.modifier_types(site.types), relations.instruction(site.types), shots, test)


def donors(site: SiteData, trained: Sequence[SiteData]) -> list[SiteData]:
  """Whose training sentences may be shown to a model that is asked about `site`: its own.

  An external cohort has none. It is shown those of the training sites that annotate all of its
  types: another site's sentences would teach that a type is not to be marked.
  """
  if site in trained:
    return [site]
  return [other for other in trained if set(site.types) <= set(other.types)]


def choose_shots(
  site: SiteData, task: str, pool: Sequence[Example], tested: Sequence[Example], count: int,
  seed: int,
) -> tuple[Example, ...]:
  """Draws `count` different sentences with something to find, a function of (seed, site, task).

  Left out are sentences that occur word for word in `tested`: boilerplate stands in the notes
  of both sides.

  Raises:
    InputError: the pool has fewer.
  """
  known = {example.text for example in tested}
  fresh = {e.text: e for e in pool if e.entities and e.text not in known}
  if len(fresh) < count:
    raise InputError(
      f'config.api.shots={count}: {len(fresh)} training sentences can be shown for task {task!r} '
      f'of site {site.name!r}; fewer shots are allowed')
  rng = np.random.default_rng((seed, zlib.crc32(f'{site.name}/{task}'.encode())))
  candidates = list(fresh.values())
  return tuple(candidates[i] for i in rng.permutation(len(candidates))[:count])


def messages(prompt: Prompt, example: Example) -> list[dict[str, str]]:
  """The dialogue that asks for `example`, in the terms of chat completions."""
  turns, before = [], prompt.instruction
  for shot in prompt.shots:
    text, target = tasks.render(shot)
    turns += [
      {'role': 'user', 'content': before + text}, {'role': 'assistant', 'content': target}]
    before = tasks.INPUT_HEADING
  return [*turns, {'role': 'user', 'content': before + tasks.render(example)[0]}]
