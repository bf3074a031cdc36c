"""Zero- and few-shot prompts for chat models: our instruction, k solved examples, the question.

Few-shot prompting as in "Language Models are Few-Shot Learners" (Brown et al., NeurIPS 2020,
arXiv:2005.14165): its K demonstrations are `shots`. Deviation: a demonstration is a turn of the
dialogue (user, assistant) and not part of one text, since chat models are tuned on turns. There is
no system turn, since some chat templates refuse one, unless config.data.chat asks for the turns
that the base model's own template takes.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.chat import turns
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.types import Example, InputError


class Prompt(NamedTuple):
  """The prompt of one task at one site, before the question itself."""

  part: TaskData
  shots: tuple[Example, ...]  # solved examples shown before every question


def make_prompt(
  site: SiteData, part: TaskData, trained: Sequence[SiteData], count: int, seed: int
) -> Prompt:
  """The prompt of one of a site's tasks, with `count` solved examples; see `choose_shots`.

  Args:
    site: the site that is asked about.
    part: its task.
    trained: the sites that train, whose solved examples may be shown.
    count: number of solved examples.
    seed: of their draw.
  """
  asked = part.ask.shown
  pool = []
  for donor in donors(site, part, trained):
    for example in donor.solved:
      kinds = asked.get('' if example.main is None else example.main.type)
      if kinds is not None:
        pool.append(example._replace(
          entities=tuple(span for span in example.entities if span.type in kinds)))
  return Prompt(part, choose_shots(site.name, part.ask.task, pool, part.test, count, seed))


def donors(site: SiteData, part: TaskData, trained: Sequence[SiteData]) -> list[TaskData]:
  """The tasks whose training examples may be shown with questions about a site's task: its own.

  An external cohort has none. It is shown those of the training sites that annotate all types of
  its prompt: another site's sentences would teach that a type is not to be marked.
  """
  if site in trained:
    return [part]
  return [
    other for donor in trained for other in donor.tasks
    if other.ask.task == part.ask.task and all(
      set(kinds) <= set(other.ask.asked.get(main, ())) for main, kinds in part.ask.shown.items())]


def choose_shots(
  site: str, task: str, pool: Sequence[Example], tested: Sequence[Example], count: int, seed: int
) -> tuple[Example, ...]:
  """Draws `count` different sentences with something to find, a function of (seed, site, task).

  Left out are sentences that occur word for word in `tested`: boilerplate stands in the notes
  of both sides.

  Args:
    site, task: names.
    pool: solved examples to draw from.
    tested: the examples that will be asked about.
    count: number of sentences.
    seed: of the draw.

  Raises:
    InputError: the pool has fewer.
  """
  known = {example.text for example in tested}
  fresh = {e.text: e for e in pool if e.entities and e.text not in known}
  if len(fresh) < count:
    raise InputError(
      f'config.api.shots={count}: {len(fresh)} training sentences can be shown for task {task!r} '
      f'of site {site!r}; fewer shots are allowed')
  rng = np.random.default_rng((seed, zlib.crc32(f'{site}/{task}'.encode())))
  candidates = list(fresh.values())
  return tuple(candidates[i] for i in rng.permutation(len(candidates))[:count])


def messages(
  prompt: Prompt, example: Example, system: bool | None = None
) -> list[dict[str, str]]:
  """The dialogue that asks for `example`, in the terms of chat completions.

  Args:
    prompt: of the task at the site.
    example: what is asked about.
    system: with config.data.chat, whether the instruction is the system's turn: then these are the
      turns that a model is trained on. None = without config.data.chat.
  """
  ask = prompt.part.ask
  question, _ = ask.render(example)
  shown = [ask.render(shot) for shot in prompt.shots]
  if system is not None:
    return turns(
      ask, [*(text for text, _ in shown), question], [target for _, target in shown], system)
  said, before = [], ask.instruction
  for text, target in shown:
    said += [
      {'role': 'user', 'content': before + text}, {'role': 'assistant', 'content': target}]
    before = ask.heading
  return [*said, {'role': 'user', 'content': before + question}]
