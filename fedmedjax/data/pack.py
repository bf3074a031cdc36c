"""From token sequences to steps of fixed shape: which examples, in which rows.

One step = the instruction once + its examples packed into rows (`types.Batch`). The arrays of all
steps of a federation have one shape, so that a round compiles once. Where it pays, a step is packed
into a bucket of them of a smaller shape, and that bucket alone is computed. Steps larger than the
memory are packed in groups, each with the instruction and arrays of its own (`groups.py`).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.groups import deal
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.types import Batch

LOSS_ON = ('completion', 'all')

# One token's linear layers cost as much as this many (query, key) pairs of attention; measured
# on the 135M model on CPU (2.3 ms against 3.1 us). Larger models care less about attention, and
# lose at most a few per cent by a width chosen with this number.
_PAIRS_PER_TOKEN = 750

# A further shape has to save this many tokens over all rounds: SmolLM2 trains on them in 17 s of
# two cores, and a shape takes 5 s to compile.
_LEAST_SAVED = 5000
# Shapes are chosen by about this many steps, evenly spread over all of them.
_SAMPLE = 1000


class RowShape(NamedTuple):
  """The static shape of a step: P, R, N and M of `types.Batch`."""

  prefix: int
  rows: int
  width: int
  targets: int

  @property
  def tokens(self) -> int:
    """Tokens that a step computes, padding included."""
    return self.prefix + self.rows * self.width

  @property
  def cost(self) -> float:
    """Relative time of a step, in tokens."""
    pairs = self.rows * self.width * (self.prefix + self.width)
    return self.tokens + pairs / _PAIRS_PER_TOKEN


def round_up(number, multiple: int):
  """An integer, or each integer of an array, rounded up to a multiple."""
  return -(-number // multiple) * multiple


def fit_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
  """The indices of the examples in each row of `width` tokens, packed by first-fit decreasing.

  Args:
    lengths: tokens of each example, `width` at most.
    width: tokens of a row.
  """
  rows: list[list[int]] = []
  room: list[int] = []
  for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
    length = lengths[index]
    for row, free in enumerate(room):
      if length <= free:
        rows[row].append(index)
        room[row] -= length
        break
    else:
      rows.append([index])
      room.append(width - length)
  return rows


def supervised(example: TokenExample, loss_on: str) -> int:
  """The number of places of an example whose next token is supervised."""
  start = {'completion': example.prompt_length - 1, 'all': 0}[loss_on]
  return len(example.tokens) - 1 - start


def plan_shape(
  steps: Sequence[Sequence[TokenExample]], prefix: int, loss_on: str
) -> RowShape:
  """The cheapest shape that holds every one of `steps`.

  Widths tried are the first 8 multiples of 32 that hold the longest example: a row may hold
  several examples, so the best width is seldom the least one.

  Args:
    steps: the examples of each step.
    prefix: the longest instruction, without its last token.
    loss_on: 'completion' or 'all'.
  """
  least = round_up(max(len(example.tokens) for step in steps for example in step), 32)
  targets = max(_targets(step, loss_on) for step in steps)

  def shape(width):
    rows = max(_rows(step, width) for step in steps)
    return RowShape(round_up(prefix, 16), rows, width, round_up(targets, 16))

  widths = itertools.islice(itertools.count(least, 32), 8)
  return min(map(shape, widths), key=lambda shape: shape.cost)


def smaller_shapes(
  steps: Sequence[Sequence[TokenExample]], prefixes: Sequence[int], whole: RowShape, loss_on: str,
  most: int, groups: int = 1,
) -> tuple[RowShape, ...]:
  """Shape buckets of `whole` that save `_LEAST_SAVED` tokens each, the cheapest first.

  A step is computed in the first that holds it, or in `whole`. They are chosen one after the other,
  the one that saves most first.

  Args:
    steps: the examples of each step that may be computed in a bucket.
    prefixes: the instruction of each, without its last token.
    whole: a shape that holds every step.
    loss_on: 'completion' or 'all'.
    most: the largest number of shapes.
    groups: that the examples of a step are dealt out to; a shape is that of each.
  """
  if not most:
    return ()
  chosen, stride = [], -(-len(steps) // _SAMPLE)
  sample = steps[::stride]
  candidates = _candidates(
    [deal(step, groups) for step in sample], prefixes[::stride], whole, loss_on)
  cost = np.full(len(sample), whole.cost)
  for _ in range(most):
    saved = {
      shape: np.maximum(cost - shape.cost, 0)[fits].sum() for shape, fits in candidates.items()}
    best = max(saved, key=saved.get)
    if saved[best] * stride * groups < _LEAST_SAVED:
      break
    chosen.append(best)
    cost = np.where(candidates[best], np.minimum(cost, best.cost), cost)
  return tuple(sorted(chosen, key=lambda shape: shape.cost))


def _candidates(
  steps: Sequence[Sequence[Sequence[TokenExample]]], prefixes: Sequence[int], whole: RowShape,
  loss_on: str,
) -> dict[RowShape, np.ndarray]:
  """{a shape bucket of `whole`: which of n steps, given as groups of examples, it holds, bool[n]};
  every one holds some."""
  candidates, instructions = {}, round_up(np.asarray(prefixes), 16)
  sized = [(step, _longest(step)) for step in steps]
  least = round_up(min(longest for _, longest in sized), 32)
  targets = np.asarray([max(_targets(group, loss_on) for group in step) for step in steps])
  for width in (*range(least, whole.width, 32), whole.width):
    needed = np.asarray([
      max(_rows(group, width) for group in step) if longest <= width else math.inf
      for step, longest in sized])
    for rows, prefix in itertools.product(
        np.unique(needed[needed <= whole.rows]), np.unique(instructions)):
      fits = (needed <= rows) & (instructions <= prefix)
      if fits.any():
        shape = RowShape(int(prefix), int(rows), width, round_up(int(targets[fits].max()), 16))
        candidates[shape] = fits
  return candidates


def _longest(groups: Sequence[Sequence[TokenExample]]) -> int:
  """Tokens of the longest example of a step; a group may be empty."""
  return max(len(example.tokens) for group in groups for example in group)


def _rows(step: Sequence[TokenExample], width: int) -> int:
  """The number of rows of `width` tokens that a step needs; none of its examples is longer."""
  return len(fit_rows([len(example.tokens) for example in step], width))


def _targets(step: Sequence[TokenExample], loss_on: str) -> int:
  """The number of supervised targets of a step."""
  return sum(supervised(example, loss_on) for example in step)


def first_shape(
  step: Sequence[TokenExample], prefix: int, shapes: Sequence[RowShape], loss_on: str,
  groups: int = 1,
) -> RowShape:
  """The first of `shapes` that holds a step, or the last one, which holds every step.

  Args:
    step: its examples.
    prefix: the instruction's tokens without its last.
    shapes: the cheapest first.
    loss_on: 'completion' or 'all'.
    groups: that the examples are dealt out to; the shape holds each of them.
  """
  dealt = deal(step, groups)
  longest = _longest(dealt)
  targets = max(_targets(group, loss_on) for group in dealt)
  for shape in shapes[:-1]:
    if (longest <= shape.width and prefix <= shape.prefix and targets <= shape.targets
        and all(_rows(group, shape.width) <= shape.rows for group in dealt)):
      return shape
  return shapes[-1]


def bucket(shape: RowShape, batch: Batch) -> Batch:
  """The first rows, tokens and targets of a step, as many as `shape` has; numpy's or traced.

  Where a step comes in groups, those of each.
  """
  prefix, rows, width, targets = shape
  return Batch(
    prefix=batch.prefix[..., :prefix], prefix_targets=batch.prefix_targets[..., :prefix],
    prefix_weight=batch.prefix_weight[..., :prefix], tokens=batch.tokens[..., :rows, :width],
    positions=batch.positions[..., :rows, :width], segments=batch.segments[..., :rows, :width],
    target_row=batch.target_row[..., :targets], target_index=batch.target_index[..., :targets],
    targets=batch.targets[..., :targets], target_weight=batch.target_weight[..., :targets])


def in_bucket(shape: RowShape, batch: Batch):
  """Whether a bucket of this shape holds all of a step, bool[]; numpy's or traced."""
  prefix, rows, width, targets = shape
  outside = (
    batch.prefix[..., prefix:] >= 0, batch.segments[..., rows:, :], batch.segments[..., width:],
    batch.target_weight[..., targets:])
  return sum(part.any() for part in outside) < 1


def pack(
  instruction: np.ndarray, examples: Sequence[TokenExample], shape: RowShape, loss_on: str,
  width: int | None = None,
) -> Batch:
  """The arrays of one step: the instruction once, and the examples packed into rows [R, N].

  Args:
    instruction: i32[P + 1]; its last token opens every example.
    examples: of the step.
    shape: of the arrays.
    loss_on: 'completion' or 'all'.
    width: tokens of a row that are used; None = all of them.
  """
  length = len(instruction) - 1
  prefix = np.full(shape.prefix, -1, np.int32)
  prefix[:length] = instruction[:-1]
  supervise = {'completion': 0, 'all': shape.prefix}[loss_on]
  prefix_targets = np.zeros(supervise, np.int32)
  prefix_weight = np.zeros(supervise, np.float32)
  if supervise:
    prefix_targets[:length] = instruction[1:]
    # Each example, fed alone, would count the instruction's own loss once.
    prefix_weight[:length] = len(examples)
  size, filled = (shape.rows, shape.width), 0
  tokens, positions, segments = (np.zeros(size, np.int32) for _ in range(3))
  rows, index, targets = (np.zeros(shape.targets, np.int32) for _ in range(3))
  weight = np.zeros(shape.targets, np.float32)
  for row, members in enumerate(fit_rows(
      [len(e.tokens) for e in examples], width or shape.width)):
    place = 0
    for segment, member in enumerate(members, start=1):
      example = examples[member]
      end = place + len(example.tokens)
      tokens[row, place:end] = example.tokens
      positions[row, place:end] = length + np.arange(len(example.tokens))
      segments[row, place:end] = segment
      number = supervised(example, loss_on)
      span = slice(filled, filled + number)
      rows[span] = row
      index[span] = np.arange(end - 1 - number, end - 1)
      targets[span] = example.tokens[len(example.tokens) - number:]
      weight[span] = 1.0
      place, filled = end, filled + number
  return Batch(
    prefix, prefix_targets, prefix_weight, tokens, positions, segments, rows, index, targets,
    weight)


def blank(shape: RowShape, loss_on: str) -> Batch:
  """The arrays of a step without examples: weight zero everywhere."""
  return pack(np.zeros(1, np.int32), (), shape, loss_on)


def stack(batches: Sequence):
  """Stacks batches (of one NamedTuple, with equal shapes) on a new leading axis."""
  (kind,) = set(map(type, batches))
  return kind(*(np.stack(parts) for parts in zip(*batches, strict=True)))
