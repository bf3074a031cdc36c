"""Zero- and few-shot prompts for chat models: our instruction, k solved examples, the question.

Few-shot prompting as in "Language Models are Few-Shot Learners" (Brown et al., NeurIPS 2020,
arXiv:2005.14165): its K demonstrations are `shots`. Deviation: a demonstration is a turn of the
dialogue (user, assistant) and not part of one text, since chat models are tuned on turns. There is
no system turn, since some chat templates refuse one, unless config.data.chat asks for the turns
that the base model's own template takes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fedmedjax.data import shots
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
  pool = [
    example for donor in donors(site, part, trained)
    for example in shots.as_asked(part.ask, donor.solved)]
  return Prompt(part, choose_shots(site.name, part.ask.task, pool, part.test, count, seed))


def donors(site: SiteData, part: TaskData, trained: Sequence[SiteData]) -> list[TaskData]:
  """The tasks whose training examples may be shown with questions about a site's task: its own.

  A site that does not train has none; see `shots.lenders`.
  """
  return [part] if site in trained else shots.lenders(part.ask, trained)


def choose_shots(
  site: str, task: str, pool: Sequence[Example], tested: Sequence[Example], count: int, seed: int
) -> tuple[Example, ...]:
  """Draws `count` different sentences with an answer, a function of (seed, site, task).

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
  found = shots.draw(site, task, [pool], {example.text for example in tested}, count, seed)
  if len(found) < count:
    raise InputError(
      f'config.api.shots={count}: {len(found)} training sentences can be shown for task {task!r} '
      f'of site {site!r}; fewer shots are allowed')
  return found


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
  for text, target in (*ask.shots, *shown):
    said += [
      {'role': 'user', 'content': before + text}, {'role': 'assistant', 'content': target}]
    before = ask.heading
  return [*said, {'role': 'user', 'content': before + question}]


def instructions(sites: Sequence[SiteData]) -> dict[str, dict[str, str]]:
  """{site: {task: the prompt in front of its examples}}, as summary.json holds them."""
  return {site.name: {part.ask.task: part.ask.instruction for part in site.tasks} for site in sites}


def shown_examples(sites: Sequence[SiteData]) -> dict[str, dict[str, list[list[str]]]]:
  """{site: {task: [[input, target], ...]}} of the examples that follow its prompts, if any do."""
  return {
    site.name: {part.ask.task: [list(shot) for shot in part.ask.shots] for part in site.tasks}
    for site in sites if any(part.ask.shots for part in site.tasks)}
