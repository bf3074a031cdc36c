"""Which steps each site takes in every round, and which examples each step holds."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data import step_order
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.types import InputError


class Step(NamedTuple):
  """One step before packing."""

  site: int            # number of the site that it comes from
  task: int            # number of its task among those of the site
  members: np.ndarray  # i[examples], indices of its examples in `TaskData.train`
  # i[examples], the place in the step of the unit of privacy that each is of; None = there are none
  units: np.ndarray | None = None


# (members, units) of a step.
Members = tuple[np.ndarray, np.ndarray | None]


class StepOrder(NamedTuple):
  """How a site's examples come into its steps."""

  epoch: Callable[[TaskData], int]  # steps in which each example comes once, on average at least
  # (task's data, its number, site, round, steps of the task before, steps now) -> their members
  members: Callable[[TaskData, int, int, int, int, int], list[Members]]


def in_epochs(batch_size: int, seed: int) -> StepOrder:
  """Epoch by epoch, without replacement: see `step_order.site_steps`."""

  def members(part, task, site, number, first, count):
    return [(step, None) for step in step_order.site_steps(
      np.asarray([len(example.tokens) for example in part.train]), batch_size, seed, site, first,
      count, task)]

  return StepOrder(lambda part: -(-len(part.train) // batch_size), members)


def planned_steps(
  sites: Sequence[SiteData], local_steps: int, local_epochs: int, batch_size: int
) -> np.ndarray:
  """i[S]: the steps that each site takes in every round of `plan_rounds`, in epochs."""
  epoch = in_epochs(batch_size, 0).epoch
  return np.asarray([
    (local_steps or local_epochs * sum(map(epoch, site.tasks))) * bool(site.train)
    for site in sites])


# plan[round][participant] are the steps of a participant in a round.
Plan = tuple[tuple[tuple[Step, ...], ...], ...]


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
  order: StepOrder | None = None,
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
    order: how examples come into steps; None = `in_epochs`.

  Raises:
    InputError: no site is in any cohort.
  """
  cohorts = cohorts or [range(len(sites))] * rounds
  order = order or in_epochs(batch_size, seed)
  plan, done = [], [0] * len(sites)
  for number in range(rounds):
    steps: list[tuple[Step, ...]] = [()] * len(sites)
    for place, index in enumerate(cohorts[number]):
      if only not in (None, index):
        continue
      site = sites[index]
      epoch = [order.epoch(part) for part in site.tasks]
      count = local_steps or local_epochs * sum(epoch)
      if round_steps:
        # Of the cohort so many take one step more; the next round goes on with those after them.
        count, more = divmod(round_steps, len(cohorts[number]))
        count += (place - number * more) % len(cohorts[number]) < more
      wanted = [shares[part.ask.task] for part in site.tasks] if shares else epoch
      steps[index] = _site_round(
        site, index, number, done[index], count, wanted, order, seed)
      done[index] += count
    if pooled:
      together = [step for own in steps for step in own]
      shuffled = np.random.default_rng((seed, number)).permutation(len(together))
      steps = [tuple(together[i] for i in shuffled)]
    plan.append(tuple(steps))
  if not any(own for steps in plan for own in steps):
    raise InputError(
      f'config.fed.cohort_size: no site is drawn in {rounds} rounds; raise it or take another seed')
  return tuple(plan), sizes.sum(keepdims=True) if pooled else sizes


def _site_round(
  site: SiteData, index: int, number: int, done: int, count: int, wanted: Sequence[float],
  order: StepOrder, seed: int,
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
    iter(order.members(part, task, index, number, first[task], end[task] - first[task]))
    for task, part in enumerate(site.tasks)]
  tasks = np.random.default_rng((seed, number, index, 1)).permutation(
    np.repeat(np.arange(len(site.tasks)), end - first))
  return tuple(Step(index, int(task), *next(steps[task])) for task in tasks)
