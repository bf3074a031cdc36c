"""What every site trains on in every round, and the server's validation set: numpy arrays.

All of it is a function of (seed, round, site), known before the first round, so the shape in
which every step fits is planned once and a run resumes without iterator state.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data import pack
from fedmedjax.data.site import SPLIT_SEED, SiteData


class Step(NamedTuple):
  """One step before packing: the site it comes from and its examples' indices."""

  site: int
  members: np.ndarray


class Layout(NamedTuple):
  """How the examples of a step become arrays, of the same shapes for all steps."""

  pack: Callable  # (site, examples) -> arrays
  blank: Any      # the arrays of a step without examples: weight zero everywhere


# plan[round][participant] lists its steps.
Plan = tuple[tuple[tuple[Step, ...], ...], ...]


class Schedule(NamedTuple):
  """Everything the rounds are fed with."""

  sites: tuple[SiteData, ...]
  plan: Plan
  weights: np.ndarray  # f32[S] n_k
  layout: Layout
  batch_size: int


def plan_rounds(
  sites: Sequence[SiteData],
  *,
  rounds: int,
  local_steps: int,
  local_epochs: int,
  batch_size: int,
  seed: int,
  pooled: bool,
) -> Plan:
  """Which examples every step of every round holds.

  A site takes `local_steps` steps a round or, when that is 0, ceil(n / batch_size) *
  local_epochs. Pooled, one participant takes the very steps that all sites would have taken,
  shuffled: the same examples and the same number of steps as the federation.
  """
  plan = []
  for number in range(rounds):
    steps = []
    for index, site in enumerate(sites):
      lengths = np.asarray([len(example.tokens) for example in site.train])
      count = local_steps or local_epochs * -(-len(lengths) // batch_size)
      members = pack.site_steps(lengths, batch_size, seed, index, number * count, count)
      steps.append(tuple(Step(index, chosen) for chosen in members))
    if pooled:
      together = [step for one in steps for step in one]
      order = np.random.default_rng((seed, number)).permutation(len(together))
      steps = [tuple(together[i] for i in order)]
    plan.append(tuple(steps))
  return tuple(plan)


def site_weights(
  sites: Sequence[SiteData], pooled: bool, size: Callable[[Any], int]
) -> np.ndarray:
  """f32[S] (or [1] when pooled): n_k, `size` added up over a site's training examples."""
  weights = np.asarray(
    [sum(size(example) for example in site.train) for site in sites], np.float32)
  return weights.sum(keepdims=True) if pooled else weights


def all_steps(sites: Sequence[SiteData], plan: Plan, batch_size: int) -> list[list]:
  """The examples of every step, of training and of validation: what one shape must hold."""
  return [
    [sites[step.site].train[i] for i in step.members]
    for steps in plan for one in steps for step in one
  ] + [examples for site in sites for examples in _validation_steps(site, batch_size)]


def make_schedule(
  sites: Sequence[SiteData], *, batch_size: int, pooled: bool, weight_by: str, loss_on: str, **plan
) -> Schedule:
  """Plans all steps of all rounds of a language model, and the one packed shape they share.

  Args:
    weight_by: 'examples' or 'tokens' (supervised ones): what n_k counts.
    loss_on: 'completion' or 'all'.
    The others: see `plan_rounds`.
  """
  sites = tuple(sites)
  steps = plan_rounds(sites, batch_size=batch_size, pooled=pooled, **plan)
  sizes = {'examples': lambda example: 1, 'tokens': lambda e: pack.supervised(e, loss_on)}
  prefix = max(len(site.instruction) for site in sites) - 1
  shape = pack.plan_shape(all_steps(sites, steps, batch_size), prefix, loss_on)
  layout = Layout(
    lambda site, examples: pack.pack(site.instruction, examples, shape, loss_on),
    pack.blank(shape, loss_on))
  return Schedule(
    sites, steps, site_weights(sites, pooled, sizes[weight_by]), layout, batch_size)


def _validation_steps(site: SiteData, batch_size: int) -> list[list]:
  """Like training steps, stratified by length, so that they fit the same shape."""
  if not site.validation:
    return []
  lengths = np.asarray([len(example.tokens) for example in site.validation])
  count = -(-len(lengths) // batch_size)
  return [
    [site.validation[i] for i in members]
    for members in pack.site_steps(lengths, batch_size, SPLIT_SEED, 0, 0, count)
  ]


def round_arrays(schedule: Schedule, number: int) -> tuple[Any, np.ndarray]:
  """(batches [C, K, ...], step_mask bool[C, K]) of round `number`, K the most steps of a site."""
  steps = schedule.plan[number]
  longest = max(len(one) for one in steps)
  layout = schedule.layout

  def packed(step: Step):
    site = schedule.sites[step.site]
    return layout.pack(site, [site.train[i] for i in step.members])

  batches = pack.stack([
    pack.stack([packed(step) for step in one] + [layout.blank] * (longest - len(one)))
    for one in steps
  ])
  mask = np.asarray([[k < len(one) for k in range(longest)] for one in steps])
  return batches, mask


def validation_arrays(schedule: Schedule) -> tuple[Any, np.ndarray] | None:
  """(batches [Q, ...], group f32[Q, G]) of V, a group per site; None when V is empty."""
  batches, groups = [], []
  for site in schedule.sites:
    for examples in _validation_steps(site, schedule.batch_size):
      batches.append(schedule.layout.pack(site, examples))
      groups.append(site.name)
  if not batches:
    return None
  names = sorted(set(groups))
  one_hot = np.asarray([[name == group for name in names] for group in groups], np.float32)
  return pack.stack(batches), one_hot


def round_work(schedule: Schedule, number: int) -> tuple[int, int]:
  """(examples trained on, their tokens with the instruction once a step) of one round."""
  examples, tokens = 0, 0
  for one in schedule.plan[number]:
    for step in one:
      site = schedule.sites[step.site]
      examples += len(step.members)
      tokens += len(site.instruction) - 1
      tokens += sum(len(site.train[i].tokens) for i in step.members)
  return examples, tokens
