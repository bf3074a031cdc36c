"""Steps whose examples are drawn for differential privacy: Poisson batches of fixed shape.

The unit of privacy is an example (a sentence), a note or a patient. In every step each unit of a
site's task is drawn on its own with probability q = expected / n, whatever was drawn before: the
sampling that the accountants of DP-SGD suppose (Abadi et al., "Deep Learning with Differential
Privacy", CCS 2016, arXiv:1607.00133, section 3.1; there L = q n). A step's arrays have room for
`capacity` units, which follows from the configuration alone; of more, a random subset of that size
stays, as in Chua et al., "Scalable DP-SGD: Shuffling vs. Poisson Subsampling", arXiv:2411.04205.
What was drawn is nobody's to know: whoever knows the seed of the draws has no privacy by sampling.

A step may be without any unit. It is taken all the same: its gradient is noise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import pdtrc

from fedmedjax.data import pack
from fedmedjax.data.layout import Layout
from fedmedjax.data.round_plan import Plan, StepOrder
from fedmedjax.data.site import SiteData, TaskData

# Chance that more units are drawn than a step has room for. Rows without an example cost next to
# nothing, since chunks of them are not computed; a subset costs privacy, see `Draws`.
_OVERFLOW = 1e-9
# A step's room is a multiple of it, so that chunks of 1, 2, 4 and 8 units fill it.
_MULTIPLE = 8


class Units(NamedTuple):
  """What a run's steps draw."""

  kind: str          # of UNITS
  examples: int = 1  # most examples of a unit that count in a step; of more, random ones are taken
  together: int = 8  # units whose gradients are computed at a time; roundings only depend on it
  secret: int | None = None  # that draws are made of; None = of the run's seed


class Draws(NamedTuple):
  """Some steps of a site, as an accountant needs to know them.

  What comes out of each step is a sum over a Poisson sample of `units` units with this probability,
  cut to a random subset of `capacity` where it is larger.
  """

  site: int           # its number
  task: int           # its number among those of the site
  probability: float  # q
  capacity: int
  units: int          # n
  steps: int


def unit_members(part: TaskData) -> list[np.ndarray]:
  """Of each unit of a task, the indices of its examples in `TaskData.train`, in order.

  Without `TaskData.units` every example is a unit.
  """
  if not part.units:
    return list(np.arange(len(part.train))[:, None])
  members: dict[str, list[int]] = {}
  for index, name in enumerate(part.units):
    members.setdefault(name, []).append(index)
  return [np.asarray(one) for one in members.values()]


def most_examples(sites: Sequence[SiteData], units: Units) -> int:
  """Rows that hold any unit of the sites: what counts of the one with most examples.

  Only the shape of a step's arrays follows from it.
  """
  return min(units.examples, max(
    (len(own) for site in sites for part in site.tasks for own in unit_members(part)), default=1))


def unit_count(part: TaskData) -> int:
  """n, the units of a task."""
  return len(set(part.units)) if part.units else len(part.train)


def capacity(expected: int) -> int:
  """Units that a step has room for: more are drawn in one of 10^9 steps at most.

  By the tail of the Poisson distribution, above that of every binomial one of the same mean: it
  depends neither on n nor on the machine.

  Args:
    expected: units of a step, on average.
  """
  # Twice the mean and 30 more are exceeded less often, for every mean.
  numbers = np.arange(2 * expected + 31)
  least = int(np.argmax(pdtrc(numbers, expected) <= _OVERFLOW))
  return pack.round_up(least, _MULTIPLE)


def probability(count: int, expected: int) -> float:
  """q, with which each of `count` units is drawn."""
  return min(1.0, expected / count)


def poisson(units: Units, expected: int, seed: int) -> StepOrder:
  """Draws the units of every step on their own, as a function of (seed, site, round, task).

  Args:
    units: what is drawn.
    expected: units of a step, on average.
    seed: of the run.
  """
  most = capacity(expected)

  def members(part, task, site, number, first, count):
    del first  # steps know nothing of each other
    own = unit_members(part)
    rng = np.random.default_rng((seed, number, site, task, 2))
    return [_step(own, probability(len(own), expected), most, units.examples, rng)
            for _ in range(count)]

  return StepOrder(lambda part: -(-unit_count(part) // expected), members)


def _step(
  members: Sequence[np.ndarray], chance: float, most: int, examples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """(examples, the place of the unit that each is of) of one step."""
  drawn = np.flatnonzero(rng.random(len(members)) < chance)
  if len(drawn) > most:
    drawn = np.sort(rng.permutation(drawn)[:most])
  rows = [members[unit] if len(members[unit]) <= examples else
          np.sort(rng.permutation(members[unit])[:examples]) for unit in drawn]
  places = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
  return np.concatenate([*rows, np.zeros(0, int)]).astype(int), places


def draws(
  sites: Sequence[SiteData], plan: Plan, expected: int, number: int,
  cohort: Sequence[int] | None = None, steps: Sequence[int] | None = None,
) -> list[Draws]:
  """What a round's steps have drawn, by site and task: those taken, not those planned.

  Args:
    sites, plan, expected: as the round was planned with.
    number: of the round, from 0.
    cohort, steps: see `schedule.round_arrays`.
  """
  planned = plan[number]
  taken = list(planned) if cohort is None else [
    planned[index][:count] for index, count in zip(cohort, steps, strict=True)]
  counts: dict[tuple[int, int], int] = {}
  for own in taken:
    for step in own:
      counts[step.site, step.task] = counts.get((step.site, step.task), 0) + 1
  found = []
  for (site, task), count in sorted(counts.items()):
    known = unit_count(sites[site].tasks[task])
    found.append(Draws(
      site, task, probability(known, expected), capacity(expected), known, count))
  return found


def unit_layout(
  group: Callable[[TaskData, Sequence, Sequence], Any], blank: Any, units: Units, expected: int,
  drawn: Callable[[Any], Any],
) -> Layout:
  """Steps as arrays [U, ...], of which each unit has its own, with instruction.

  Args:
    group: (task, the examples of a unit, those of the step) -> its arrays, of one shape.
    blank: the arrays of a unit without examples.
    units, expected: what is drawn.
    drawn: (arrays [U, ...]) -> bool[U], whether a place holds an example; numpy's or traced.
  """
  size = capacity(expected)

  def of_units(part: TaskData, examples: Sequence, places: np.ndarray) -> Any:
    own: list[list] = [[] for _ in range(size)]
    for example, place in zip(examples, places, strict=True):
      own[place].append(example)
    return pack.stack([group(part, one, examples) if one else blank for one in own])

  def alone(part: TaskData, examples: Sequence) -> Any:
    return of_units(part, examples, np.arange(len(examples)))

  return Layout(
    alone, pack.stack([blank] * size), groups=size, pack_units=of_units, drawn=drawn,
    together=min(units.together, expected))
