"""The training steps of every site in every round, and the server's validation set, in numpy.

A step holds examples of one site and one task, since it has one instruction; the arrays of all
steps of all sites and tasks have one shape, so that a round is one program. All of it is a function
of (seed, round, site), known before the first round, so shapes are planned once and a run resumes
without iterator state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import pack, step_order
from fedmedjax.data.groups import deal, groups_needed
from fedmedjax.data.layout import Layout, rows_layout
from fedmedjax.data.private_steps import Draws, Units, draws, poisson
from fedmedjax.data.round_plan import Plan, Step, plan_rounds
from fedmedjax.data.site import SPLIT_SEED, SiteData, TaskData
from fedmedjax.data.unit_rows import unit_rows
from fedmedjax.types import SERVER


class Schedule(NamedTuple):
  """The steps of all rounds, and how they become arrays."""

  sites: tuple[SiteData, ...]
  plan: Plan
  weights: np.ndarray  # f32[S], the sizes n_k of the sites
  layout: Layout
  batch_size: int
  server: tuple[SiteData, ...] = ()  # whose validation examples are the server's own
  units: Units | None = None         # of privacy, which steps are drawn of; None = there are none

  @property
  def most_steps(self) -> int:
    """K, the largest number of steps of any participant in any round."""
    return max(len(own) for steps in self.plan for own in steps)

  @property
  def steps_taken(self) -> list[np.ndarray]:
    """Numbers of steps i[C] of the participants that have some, of each round that has any."""
    counts = [[len(own) for own in steps if own] for steps in self.plan]
    return [np.asarray(numbers) for numbers in counts if numbers]

  def draws(
    self, number: int, cohort: Sequence[int] | None = None, steps: Sequence[int] | None = None
  ) -> list[Draws]:
    """What the steps of round `number` drew of units of privacy, see `private_steps.draws`."""
    return draws(self.sites, self.plan, self.batch_size, number, cohort, steps)


def _step_examples(sites: Sequence[SiteData], step: Step) -> tuple[TaskData, list]:
  """The task and the examples of a step."""
  part = sites[step.site].tasks[step.task]
  return part, [part.train[i] for i in step.members]


def site_sizes(
  sites: Sequence[SiteData], weight_by: str, supervised: Callable[[Any], int]
) -> np.ndarray:
  """n_k of every site, f32[S].

  Args:
    weight_by: 'examples', or 'tokens': what n_k counts of a site's training examples.
    supervised: tokens of an example that are supervised.
  """
  size = {'examples': lambda example: 1, 'tokens': supervised}[weight_by]
  return np.asarray([sum(size(example) for example in site.train) for site in sites], np.float32)


def _training_steps(sites: Sequence[SiteData], plan: Plan) -> list[tuple[TaskData, list]]:
  """The task and the examples of every step."""
  return [_step_examples(sites, step) for steps in plan for own in steps for step in own]


def drawn_rounds(
  sites: Sequence[SiteData], sizes: np.ndarray, batch_size: int, units: Units,
  plan: Mapping[str, Any],
) -> tuple[Plan, np.ndarray]:
  """`plan_rounds` with steps that are drawn, of `batch_size` units on average."""
  return plan_rounds(
    sites, sizes, batch_size=batch_size, **plan, order=poisson(
      units, batch_size, plan['seed'] if units.secret is None else units.secret))


def all_steps(
  sites: Sequence[SiteData], plan: Plan, batch_size: int, server: Sequence[SiteData] = ()
) -> list[list]:
  """The examples of every step of training and of validation, all of which one shape must hold."""
  return [examples for _, examples in _training_steps(sites, plan)] + [
    examples for site in (*sites, *server) for part in site.tasks
    for examples in _validation_steps(part, batch_size)]


def make_schedule(
  sites: Sequence[SiteData], sizes: np.ndarray, *, batch_size: int, loss_on: str, shapes: int,
  micro_batch: int = 0, server: Sequence[SiteData] = (), units: Units | None = None, **plan,
) -> Schedule:
  """Plans all steps of all rounds of a language model, and the shapes they are packed in.

  Args:
    sites, batch_size: see `plan_rounds`.
    sizes: f32[S] n_k, of `site_sizes`.
    loss_on: 'completion' or 'all'.
    shapes: the most shapes of training steps, see `pack.smaller_shapes`.
    micro_batch: the most examples of a step that are computed at once; 0 = all.
    server: whose validation examples are the server's own.
    units: of privacy, of which steps are drawn; there are no groups but these.
    plan: see `plan_rounds`.
  """
  sites, server = tuple(sites), tuple(server)
  if units:
    steps, weights = drawn_rounds(sites, sizes, batch_size, units, plan)
    return Schedule(
      sites, steps, weights, unit_rows(
        sites, steps, server, units, batch_size, loss_on, shapes), batch_size, server, units)
  steps, weights = plan_rounds(sites, sizes, batch_size=batch_size, **plan)
  prefix = max(
    len(part.instruction) for site in (*sites, *server) for part in site.tasks) - 1
  computed = all_steps(sites, steps, batch_size, server)
  groups = groups_needed(computed, micro_batch)
  whole = pack.plan_shape(
    [group for step in computed for group in deal(step, groups)], prefix, loss_on)
  parts, examples = zip(*_training_steps(sites, steps), strict=True)
  smaller = pack.smaller_shapes(
    examples, [len(part.instruction) - 1 for part in parts], whole, loss_on, shapes - 1, groups)
  return Schedule(
    sites, steps, weights, rows_layout(whole, loss_on, smaller, groups), batch_size, server)


def _validation_steps(part: TaskData, batch_size: int) -> list[list]:
  """The steps of a task's validation examples, stratified by length as training steps are.

  So they fit the same shape.
  """
  if not part.validation:
    return []
  return [[part.validation[i] for i in members]
          for members in step_order.one_pass(part.validation, batch_size, SPLIT_SEED)]


def _taken(schedule: Schedule, number: int, cohort, steps) -> list[tuple[Step, ...]]:
  """The steps that each participant of the cohort takes: the first `steps` of those planned."""
  plan = schedule.plan[number]
  if cohort is None:
    return list(plan)
  return [plan[index][:count] for index, count in zip(cohort, steps, strict=True)]


def round_arrays(
  schedule: Schedule,
  number: int,
  cohort: Sequence[int] | None = None,
  steps: Sequence[int] | None = None,
) -> tuple[Any, np.ndarray]:
  """The arrays of one round: (batches [C, K, ...], step_mask bool[C, K]), K = schedule.most_steps.

  Args:
    schedule: of the run.
    number: of the round, from 0.
    cohort: i[C], the participants; None = all of them with all their steps.
    steps: i[C], how many steps each takes; the others are padding.
  """
  longest, taken = schedule.most_steps, _taken(schedule, number, cohort, steps)
  batches = pack.stack([_packed(schedule, own) for own in taken])
  mask = np.asarray([[k < len(own) for k in range(longest)] for own in taken])
  return batches, mask


def slot_arrays(
  schedule: Schedule, number: int, cohort: Sequence[int], steps: Sequence[int],
  places: Sequence[int],
) -> Any:
  """The batches [Z, K, ...] of some participants of a round, each in a slot of its own.

  Args:
    schedule, number, cohort, steps: see `round_arrays`.
    places: i[Z], the place in the cohort of the participant of each slot; -1 = an empty slot.
  """
  taken = _taken(schedule, number, cohort, steps)
  return pack.stack([_packed(schedule, taken[place] if place >= 0 else ()) for place in places])


def _packed(schedule: Schedule, steps: Sequence[Step]) -> Any:
  """The steps of a participant as arrays [K, ...], K = schedule.most_steps, blank ones behind."""
  layout = schedule.layout

  def arrays(step: Step) -> Any:
    part, examples = _step_examples(schedule.sites, step)
    return layout.pack(part, examples) if step.units is None else layout.pack_units(
      part, examples, step.units)

  return pack.stack(
    [arrays(step) for step in steps] + [layout.blank] * (schedule.most_steps - len(steps)))


def validation_arrays(
  schedule: Schedule, here: Callable[[SiteData], bool] = lambda site: True
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray] | None:
  """The arrays of the validation set V; None when it is empty.

  Args:
    schedule: of the run.
    here: whether a site's notes are here; the steps of the others are zeros.

  Returns:
    (batches [Q, ...], group f32[Q, G], answers f32[Q], group_site i32[G]), see
    `fed.types.Validation`: Q steps, each of one of G groups, a group for every site and task.
  """
  batches, groups, answers = [], [], []
  zeros = type(schedule.layout.blank)(*map(np.zeros_like, schedule.layout.blank))
  owned = (*enumerate(schedule.sites), *((SERVER, site) for site in schedule.server))
  for number, site in owned:
    for part in site.tasks:
      for examples in _validation_steps(part, schedule.batch_size):
        batches.append(schedule.layout.pack(part, examples) if here(site) else zeros)
        groups.append((site.name, part.ask.task, number))
        answers.append(len(examples))
  if not batches:
    return None
  names = sorted(set(groups))
  one_hot = np.asarray([[name == group for name in names] for group in groups], np.float32)
  return (
    pack.stack(batches), one_hot, np.asarray(answers, np.float32),
    np.asarray([number for *_, number in names], np.int32))


def round_work(
  schedule: Schedule,
  number: int,
  cohort: Sequence[int] | None = None,
  steps: Sequence[int] | None = None,
) -> tuple[int, int]:
  """(number of examples trained on, number of their tokens) of a round; see `round_arrays`.

  The instruction's tokens count once a step.
  """
  examples, tokens = 0, 0
  for own in _taken(schedule, number, cohort, steps):
    for step in own:
      part, members = _step_examples(schedule.sites, step)
      examples += len(members)
      tokens += len(part.instruction) - 1
      tokens += sum(len(example.tokens) for example in members)
  return examples, tokens
