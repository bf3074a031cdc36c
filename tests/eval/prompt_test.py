"""Who shows solved examples, and which are drawn."""

import numpy as np
import pytest

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import INPUT_HEADING, ask
from fedmedjax.eval import prompt
from fedmedjax.types import Example, InputError, SiteCorpus, Span

DRUG, PAIN = Span(0, 7, 'drug'), Span(12, 16, 'problem')


def solved(name: str, count: int) -> tuple[Example, ...]:
  return tuple(
    Example(f'{name}{i}', 0, f'Aspirin for pain {name} {i}.', (DRUG, PAIN)) for i in range(count))


def site(name: str, types: tuple[str, ...], tasks=('ner',), count: int = 4, test=()) -> SiteData:
  corpus = SiteCorpus(name, types, (), (), {}, {'problem': ('severity',), 'drug': ('route',)})
  return SiteData(name, types, tuple(
    TaskData(ask(task, corpus), np.zeros(1, np.int32), (), (), tuple(test), (),
             solved(f'{name}_{task}', count)) for task in tasks), {})


BOTH, PROBLEMS = site('both', ('problem', 'drug'), ('ner', 're')), site('problems', ('problem',))
EXTERNAL = site('cohort', ('problem', 'drug'), count=0)


def test_a_training_site_shows_its_own_and_a_cohort_those_that_annotate_all_its_types():
  """A site without drugs would teach that none is to be marked; other tasks do not help either."""
  assert prompt.donors(PROBLEMS, PROBLEMS.tasks[0], (BOTH, PROBLEMS)) == [PROBLEMS.tasks[0]]
  assert prompt.donors(EXTERNAL, EXTERNAL.tasks[0], (BOTH, PROBLEMS)) == [BOTH.tasks[0]]
  few = site('few', ('problem',), count=0)
  assert prompt.donors(few, few.tasks[0], (BOTH, PROBLEMS)) == [BOTH.tasks[0], PROBLEMS.tasks[0]]


def test_shown_are_the_types_that_are_asked_for():
  few = site('few', ('problem',), count=0)
  shots = prompt.make_prompt(few, few.tasks[0], (BOTH,), 2, seed=1).shots
  assert len(shots) == 2 and all(shot.entities == (PAIN,) for shot in shots)
  assert all('both_ner' in shot.text for shot in shots)


def test_the_draw_is_a_function_of_seed_site_and_task_and_leaves_out_what_is_tested():
  pool = solved('x', 6)
  quiet = Example('q', 0, 'Nothing here.', ())
  tested = [pool[2]]
  draw = lambda *of: prompt.choose_shots(*of[:2], [*pool, *pool, quiet], tested, 5, of[2])  # noqa: E731
  first = draw('a', 'ner', 0)
  assert first == draw('a', 'ner', 0) and len({shot.text for shot in first}) == 5
  assert pool[2] not in first and quiet not in first
  fewer = prompt.choose_shots('a', 'ner', pool, tested, 3, 0)
  assert len(fewer) == 3 and fewer == prompt.choose_shots('a', 'ner', pool, tested, 5, 0)[:3]
  assert len({draw(*other) for other in (
    ('a', 'ner', 0), ('b', 'ner', 0), ('a', 're', 0), ('a', 'ner', 1))}) > 2
  with pytest.raises(InputError, match='config.api.shots=6: 5 training sentences can be shown for '
                                       "task 'ner' of site 'a'"):
    prompt.choose_shots('a', 'ner', pool, tested, 6, 0)


def test_the_dialogue_by_hand():
  """The instruction once, in front of the first turn; a turn a shot, then the question."""
  shot, part = solved('x', 1)[0], BOTH.tasks[0]
  question = Example('n', 0, 'Codeine.', ())
  said = prompt.messages(prompt.Prompt(part, (shot,)), question)
  text, target = part.ask.render(shot)
  assert said == [
    {'role': 'user', 'content': part.ask.instruction + text},
    {'role': 'assistant', 'content': target},
    {'role': 'user', 'content': INPUT_HEADING + part.ask.render(question)[0]}]
  # Those that models are trained with stand in the same places.
  given = part._replace(ask=part.ask._replace(shots=((text, target),)))
  assert prompt.messages(prompt.Prompt(given, ()), question) == said
  assert prompt.messages(prompt.Prompt(part, ()), question) == [
    {'role': 'user', 'content': part.ask.instruction + part.ask.render(question)[0]}]
