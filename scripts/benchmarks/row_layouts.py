"""Ways to lay a step's examples in rows, without what makes ours fast: what each part is worth.

Each is a function of the schedule to a `Layout` of the same examples; the loss function, and the
loss, stay the same.
"""

from collections.abc import Sequence

import jax
import numpy as np

from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.data.site import TaskData
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.types import Batch


def repeated(part: TaskData, example: TokenExample) -> TokenExample:
  """The example with the whole instruction in front."""
  return TokenExample(
    np.concatenate([part.instruction, example.tokens[1:]]),
    len(part.instruction) - 1 + example.prompt_length)


def one_shape(schedule: schedules.Schedule) -> schedules.Layout:
  """Ours, all steps in the shape that holds any."""
  part = schedule.sites[0].tasks[0]
  return schedules.rows_layout(pack.plan_shape(
    schedules.all_steps(schedule.sites, schedule.plan, schedule.batch_size),
    len(part.instruction) - 1, 'completion'), 'completion')


def no_sharing(schedule: schedules.Schedule) -> schedules.Layout:
  """Packed rows, the instruction in every example."""
  part = schedule.sites[0].tasks[0]
  shape = pack.plan_shape([
    [repeated(part, example) for example in step]
    for step in schedules.all_steps(schedule.sites, schedule.plan, schedule.batch_size)],
    0, 'completion')

  def arrays(part: TaskData, examples: Sequence[TokenExample]) -> Batch:
    return pack.pack(
      part.instruction[-1:], [repeated(part, one) for one in examples], shape, 'completion')

  return schedules.Layout(arrays, arrays(part, ()))


def padded(schedule: schedules.Schedule) -> schedules.Layout:
  """One example a row, the instruction in front, all rows as long as the longest."""
  part = schedule.sites[0].tasks[0]
  whole = [repeated(part, example) for example in part.train]
  row = pack.RowShape(
    0, 1, max(len(one.tokens) for one in whole),
    max(pack.supervised(one, 'completion') for one in whole))

  def arrays(part: TaskData, examples: Sequence[TokenExample]) -> Batch:
    rows = [
      pack.pack(part.instruction[-1:], [repeated(part, one)], row, 'completion')
      for one in examples]
    rows += [pack.blank(row, 'completion')] * (schedule.batch_size - len(rows))
    rows = [one._replace(target_row=one.target_row + row) for row, one in enumerate(rows)]
    # No row has an instruction of its own stream: the first three leaves are empty.
    return Batch(*rows[0][:3], *(
      np.concatenate(leaves) for leaves in list(zip(*rows, strict=True))[3:]))

  return schedules.Layout(arrays, arrays(part, ()))


VARIANTS = {'one_shape': one_shape, 'no_sharing': no_sharing, 'padded': padded}


def fed_tokens(schedule: schedules.Schedule, layout: schedules.Layout) -> int:
  """Tokens that the first site's steps of round 0 compute, padding included."""
  batches, _ = schedules.round_arrays(schedule._replace(layout=layout), 0)
  total = 0
  for step in range(len(schedule.plan[0][0])):
    batch = jax.tree.map(lambda x, step=step: x[0, step], batches)
    batch = next(
      (bucket.cut(batch) for bucket in layout.shape_buckets if bucket.holds(batch)), batch)
    total += batch.prefix.size + batch.tokens.size
  return total
