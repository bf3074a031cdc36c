"""How the examples of a step become arrays, of one shape for all steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fedmedjax.data import pack
from fedmedjax.data.groups import deal
from fedmedjax.data.site import TaskData
from fedmedjax.types import Batch


class ShapeBucket(NamedTuple):
  """A smaller shape of a step's arrays, computed instead of the whole for steps that fit into it.

  Both functions take the arrays of one step, numpy's or traced.
  """

  cut: Callable    # (arrays) -> their first rows, tokens and targets, in the smaller shape
  holds: Callable  # (arrays) -> bool[]: whether nothing of the step is left out by `cut`


class Layout(NamedTuple):
  """How the examples of a step become arrays, of the same shapes for all steps."""

  pack: Callable  # (TaskData, examples) -> arrays
  blank: Any      # the arrays of a step without examples: weight zero everywhere
  shape_buckets: tuple[ShapeBucket, ...] = ()  # that some steps are packed into, the cheapest first
  groups: int = 1  # G; where there are several, the leaves of a step's arrays are [G, ...]
  # With units of privacy, of which each is a group (`private_steps.py`):
  # (TaskData, examples, i[examples], the place of the unit of each) -> arrays
  pack_units: Callable | None = None
  drawn: Callable | None = None  # (arrays) -> bool[G]: which places hold an example
  together: int = 1              # units whose gradients are computed at a time


def in_groups(group_arrays: Callable[[Sequence], Any], examples: Sequence, groups: int) -> Any:
  """The arrays of a step whose examples are dealt out to `groups`, [G, ...].

  Args:
    group_arrays: (examples) -> the arrays of a group, of one shape.
    examples: of the step.
    groups: G; of a single one the arrays have no such axis.
  """
  arrays = [group_arrays(group) for group in deal(examples, groups)]
  return pack.stack(arrays) if groups > 1 else arrays[0]


def rows_layout(
  whole: pack.RowShape, loss_on: str, smaller: Sequence[pack.RowShape] = (), groups: int = 1
) -> Layout:
  """A layout of rows [R, N] of one shape, with buckets of smaller shapes.

  Args:
    whole: the shape of all steps' arrays, or of those of a group.
    loss_on: 'completion' or 'all'.
    smaller: shapes of the buckets, the cheapest first; a step is packed so that it fits the first
      of them that can hold it.
    groups: of each step; every group has the instruction, rows and targets of its own.
  """

  def packed(part: TaskData, examples: Sequence) -> Batch:
    shape = pack.first_shape(
      examples, len(part.instruction) - 1, (*smaller, whole), loss_on, groups)
    return in_groups(
      lambda group: pack.pack(part.instruction, group, whole, loss_on, shape.width),
      examples, groups)

  blank = in_groups(lambda group: pack.blank(whole, loss_on), (), groups)
  return Layout(packed, blank, buckets(smaller), groups)


def buckets(shapes: Sequence[pack.RowShape]) -> tuple[ShapeBucket, ...]:
  """The bucket of each of these shapes."""
  return tuple(
    ShapeBucket(partial(pack.bucket, shape), partial(pack.in_bucket, shape)) for shape in shapes)
