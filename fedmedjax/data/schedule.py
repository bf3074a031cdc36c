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
from fedmedjax.data.site import SPLIT_SEED, SiteData, TaskData
from fedmedjax.types import SERVER, InputError


class Step(NamedTuple):
  """One step before packing."""

  site: int            # number of the site that it comes from
  task: int            # number of its task among those of the site
  members: np.ndarray  # i[examples], indices of its examples in `TaskData.train`


# plan[round][participant] are the steps of a participant in a round.
Plan = tuple[tuple[tuple[Step, ...], ...], ...]


class Schedule(NamedTuple):
  """The steps of all rounds, and how they become arrays."""

  sites: tuple[SiteData, ...]
  plan: Plan
  weights: np.ndarray  # f32[S], the sizes n_k of the sites
  layout: Layout
  batch_size: int
  server: tuple[SiteData, ...] = ()  # whose validation examples are the server's own

  @property
  def most_steps(self) -> int:
    """K, the largest number of steps of any participant in any round."""
    return max(len(own) for steps in self.plan for own in steps)

  @property
  def steps_taken(self) -> list[np.ndarray]:
    """Numbers of steps i[C] of the participants that have some, of each round that has any."""
    counts = [[len(own) for own in steps if own] for steps in self.plan]
    return [np.asarray(numbers) for numbers in counts if numbers]


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


def plan_rounds(
  sites: Sequence[SiteData],
  sizes: np.ndarray,
  *,
  rounds: int,
  local_steps: int,
  local_epochs: int,
  batch_size: int,
  seed: int,
  pooled: bool,
  round_steps: int = 0,
  cohorts: Sequence[Sequence[int]] | None = None,
  shares: Mapping[str, float] | None = None,
  only: int | None = None,
) -> tuple[Plan, np.ndarray]:
  """Plans the examples of every step of every round -> (plan, n_k f32[S], or f32[1] when pooled).

  A site takes `local_steps` steps a round or, when that is 0, ceil(n / batch_size) *
  local_epochs, added up over its tasks. It goes on in its epoch where it stopped in the last round
  in which it was drawn. Pooled, one participant takes the very steps that the cohort would have
  taken, shuffled: the same examples and the same number of steps as the federation.

  Args:
    sites: S of them.
    sizes: f32[S] n_k, of `site_sizes`.
    rounds: number of rounds.
    local_steps, local_epochs: steps of a site in a round, see above.
    batch_size: most examples of a step.
    seed: of the orders of examples and tasks.
    pooled: whether one participant takes the steps of all sites.
    round_steps: steps of all sites of a round together, instead of the above; of two sites neither
      takes more than one step more, and they take turns in that. 0 = as above.
    cohorts: the sites of each round, the others take no step; None = all of them in every round.
    shares: {task: its share of a site's steps}, relative to the site's other tasks; None = as many
      as the task has in an epoch, so that every example comes as often as any other.
    only: number of the one site whose notes are here and whose steps are planned; None = of all.

  Raises:
    InputError: no site is in any cohort.
  """
  cohorts = cohorts or [range(len(sites))] * rounds
  plan, done = [], [0] * len(sites)
  for number in range(rounds):
    steps: list[tuple[Step, ...]] = [()] * len(sites)
    for place, index in enumerate(cohorts[number]):
      if only not in (None, index):
        continue
      site = sites[index]
      epoch = [-(-len(part.train) // batch_size) for part in site.tasks]
      count = local_steps or local_epochs * sum(epoch)
      if round_steps:
        # Of the cohort so many take one step more; the next round goes on with those after them.
        count, more = divmod(round_steps, len(cohorts[number]))
        count += (place - number * more) % len(cohorts[number]) < more
      wanted = [shares[part.ask.task] for part in site.tasks] if shares else epoch
      steps[index] = _site_round(
        site, index, number, done[index], count, wanted, batch_size, seed)
      done[index] += count
    if pooled:
      together = [step for own in steps for step in own]
      order = np.random.default_rng((seed, number)).permutation(len(together))
      steps = [tuple(together[i] for i in order)]
    plan.append(tuple(steps))
  if not any(own for steps in plan for own in steps):
    raise InputError(
      f'config.fed.cohort_size: no site is drawn in {rounds} rounds; raise it or take another seed')
  return tuple(plan), sizes.sum(keepdims=True) if pooled else sizes


def _site_round(
  site: SiteData, index: int, number: int, done: int, count: int, wanted: Sequence[float],
  batch_size: int, seed: int,
) -> tuple[Step, ...]:
  """The `count` steps of a site in round `number`, of its tasks in the proportion `wanted`.

  Each task's steps go on after the `done` ones. The proportion holds within one step after
  every round, since the number of steps so far is rounded and not that of the round. The order of
  the tasks is a function of (seed, round, site), so that a site that stops early has taken some of
  each.
  """
  upto = np.cumsum(wanted) / sum(wanted)
  first, end = (
    np.diff(np.floor(upto * n + 0.5).astype(int), prepend=0) for n in (done, done + count))
  steps = [
    iter(step_order.site_steps(
      np.asarray([len(example.tokens) for example in part.train]), batch_size, seed, index,
      first[task], end[task] - first[task], task))
    for task, part in enumerate(site.tasks)]
  order = np.random.default_rng((seed, number, index, 1)).permutation(
    np.repeat(np.arange(len(site.tasks)), end - first))
  return tuple(Step(index, int(task), next(steps[task])) for task in order)


def _training_steps(sites: Sequence[SiteData], plan: Plan) -> list[tuple[TaskData, list]]:
  """The task and the examples of every step."""
  return [_step_examples(sites, step) for steps in plan for own in steps for step in own]


def all_steps(
  sites: Sequence[SiteData], plan: Plan, batch_size: int, server: Sequence[SiteData] = ()
) -> list[list]:
  """The examples of every step of training and of validation, all of which one shape must hold."""
  return [examples for _, examples in _training_steps(sites, plan)] + [
    examples for site in (*sites, *server) for part in site.tasks
    for examples in _validation_steps(part, batch_size)]


def make_schedule(
  sites: Sequence[SiteData], sizes: np.ndarray, *, batch_size: int, loss_on: str, shapes: int,
  micro_batch: int = 0, server: Sequence[SiteData] = (), **plan,
) -> Schedule:
  """Plans all steps of all rounds of a language model, and the shapes they are packed in.

  Args:
    sites, batch_size: see `plan_rounds`.
    sizes: f32[S] n_k, of `site_sizes`.
    loss_on: 'completion' or 'all'.
    shapes: the most shapes of training steps, see `pack.smaller_shapes`.
    micro_batch: the most examples of a step that are computed at once; 0 = all.
    server: whose validation examples are the server's own.
    plan: see `plan_rounds`.
  """
  sites, server = tuple(sites), tuple(server)
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
  return pack.stack(
    [layout.pack(*_step_examples(schedule.sites, step)) for step in steps]
    + [layout.blank] * (schedule.most_steps - len(steps)))


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
