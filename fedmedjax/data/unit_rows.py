"""A language model's steps whose units of privacy have rows of their own."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.data import pack
from fedmedjax.data.layout import Layout, buckets
from fedmedjax.data.private_steps import Units, most_examples, unit_layout
from fedmedjax.data.round_plan import Plan, Step
from fedmedjax.data.site import SiteData, TaskData

# Of a further shape, as in `pack.py`.
_LEAST_SAVED = 5000


def unit_rows(
  sites: Sequence[SiteData], plan: Plan, server: Sequence[SiteData], units: Units, expected: int,
  loss_on: str, shapes: int,
) -> Layout:
  """Rows that hold any unit's examples, whichever are drawn; with smaller ones for most steps.

  Args:
    sites: that train.
    plan: their steps.
    server: whose validation examples are the server's own.
    units, expected: what is drawn.
    loss_on: 'completion' or 'all'.
    shapes: the most shapes of training steps.
  """
  every = (*sites, *server)
  examples = [example for site in every for part in site.tasks
              for example in (*part.train, *part.validation)]
  prefix = max(len(part.instruction) for site in every for part in site.tasks) - 1
  rows = most_examples(sites, units)
  whole = pack.RowShape(
    pack.round_up(prefix, 16), rows,
    pack.round_up(max(len(example.tokens) for example in examples), 16),
    pack.round_up(rows * max(pack.supervised(e, loss_on) for e in examples), 16))
  smaller = _smaller(sites, plan, whole, loss_on, shapes - 1)

  def group(part: TaskData, own: Sequence, step: Sequence):
    longest = max(len(example.tokens) for example in step)
    width = next((s.width for s in smaller if longest <= s.width), whole.width)
    return pack.pack(part.instruction, own, whole, loss_on, width)

  return unit_layout(
    group, pack.blank(whole, loss_on), units, expected,
    lambda batch: (batch.segments > 0).any((-2, -1)))._replace(shape_buckets=buckets(smaller))


def _smaller(
  sites: Sequence[SiteData], plan: Plan, whole: pack.RowShape, loss_on: str, most: int
) -> tuple[pack.RowShape, ...]:
  """Narrower shapes that save `_LEAST_SAVED` tokens each over all steps, the cheapest first.

  A unit has one row for each of its examples at most, so they differ in width and targets only.
  """
  needed = np.asarray([
    _needs(sites[step.site].tasks[step.task], step, loss_on)
    for steps in plan for own in steps for step in own if len(step.members)]).reshape(-1, 3)
  longest, targets, counts = needed.T
  candidates = {}
  for width in range(32, whole.width, 32):
    fits = longest <= width
    if fits.any():
      candidates[whole._replace(
        width=width, targets=pack.round_up(int(targets[fits].max()), 16))] = fits
  chosen, cost = [], np.full(len(needed), whole.cost)
  for _ in range(most if candidates else 0):
    saved = {shape: (np.maximum(cost - shape.cost, 0) * counts)[fits].sum()
             for shape, fits in candidates.items()}
    best = max(saved, key=saved.get)
    if saved[best] < _LEAST_SAVED:
      break
    chosen.append(best)
    cost = np.where(candidates[best], np.minimum(cost, best.cost), cost)
  return tuple(sorted(chosen, key=lambda shape: shape.cost))


def _needs(part: TaskData, step: Step, loss_on: str) -> tuple[int, int, int]:
  """(tokens of a step's longest example, most targets of one unit, units)."""
  examples = [part.train[i] for i in step.members]
  targets = np.bincount(step.units, [pack.supervised(e, loss_on) for e in examples])
  return max(len(e.tokens) for e in examples), int(targets.max()), len(targets)
