"""How the examples of a step become arrays, of one shape for all steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fedmedjax.data import pack
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


def rows_layout(
  whole: pack.RowShape, loss_on: str, smaller: Sequence[pack.RowShape] = ()
) -> Layout:
  """A layout of rows [R, N] of one shape, with buckets of smaller shapes.

  Args:
    whole: the shape of all steps' arrays.
    loss_on: 'completion' or 'all'.
    smaller: shapes of the buckets, the cheapest first; a step is packed so that it fits the first
      of them that can hold it.
  """

  def packed(part: TaskData, examples: Sequence) -> Batch:
    shape = pack.first_shape(
      examples, len(part.instruction) - 1, (*smaller, whole), loss_on)
    return pack.pack(part.instruction, examples, whole, loss_on, shape.width)

  return Layout(packed, pack.blank(whole, loss_on), tuple(
    ShapeBucket(partial(pack.bucket, shape), partial(pack.in_bucket, shape)) for shape in smaller))
