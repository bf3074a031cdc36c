"""What a compiled gradient holds while it goes back through a model's layers, from its trace.

A compiler writes down what products read and give, and what leaves a loop; everything between is
calculated where it is read, and takes no room. Gradients of weights, which nothing waits for, it
leaves to the end, and with them what they are made of. These two rules, seen in XLA's accounts of
memory for GPUs and TPUs (docs/accelerators.md), are applied to the body of each loop here.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from jax.extend.core import Literal

# Their operands and results are written down.
_WRITTEN = frozenset((
  'dot_general', 'scan', 'while', 'cond', 'pallas_call', 'gather', 'scatter', 'scatter-add',
  'sort', 'concatenate', 'dynamic_update_slice'))
# What they give is their operand, or a part of it.
_VIEWS = frozenset((
  'reshape', 'transpose', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'slice', 'split', 'copy',
  'name'))
# Functions in them are not what they calculate once.
_OPAQUE = ('scan', 'while', 'cond', 'pallas_call')


class _Step(NamedTuple):
  """An equation whose values have numbers."""

  written: bool
  reads: tuple[int, ...]
  makes: tuple[int, ...]


def backward(jaxpr: Any) -> int:
  """Bytes that the fullest body of the loops that run backward holds, beside what it is given.

  Args:
    jaxpr: of a gradient, from `jax.make_jaxpr`; one without such a loop gives 0.
  """
  return max(map(fullest, _backward_bodies(getattr(jaxpr, 'jaxpr', jaxpr))), default=0)


def _backward_bodies(jaxpr: Any) -> Iterator[Any]:
  for equation in jaxpr.eqns:
    for part in equation.params.values():
      inner = getattr(part, 'jaxpr', part)
      if hasattr(inner, 'eqns'):
        if equation.params.get('reverse'):
          yield inner
        else:
          yield from _backward_bodies(inner)


def fullest(jaxpr: Any) -> int:
  """Bytes that a traced function has written down at its fullest moment, beside what it is given.

  Args:
    jaxpr: such as the body of a scan.
  """
  sizes: list[int] = []  # bytes of each value, by its number
  steps: list[_Step] = []
  arguments = (*jaxpr.invars, *jaxpr.constvars)
  given = _numbered(arguments, sizes)
  results = _flatten(jaxpr, dict(zip(arguments, given, strict=True)), sizes, steps)
  steps = _in_order(steps)
  written = {one for step in steps if step.written for one in (*step.reads, *step.makes)}
  written = (written | set(results)) - set(given)
  first: dict[int, int] = {}
  last: dict[int, int] = {}
  # Value -> what is written down or given that it is calculated from where it is read.
  sources: dict[int, set[int]] = {one: set() for one in given}
  for place, step in enumerate(steps):
    read = set().union(*(sources.get(one, set()) for one in step.reads))
    if step.written or written.intersection(step.makes):
      last |= dict.fromkeys(read, place)
    for one in step.makes:
      sources[one] = {one} if one in written else read
      if one in written:
        first[one] = last[one] = place
  last |= {one: len(steps) for one in results if one in first}
  alive = [0] * (len(steps) + 1)
  for one, begins in first.items():
    ends = last[one]
    # What is calculated entry by entry may take the place of what it is read from.
    if begins < ends < len(steps) and not steps[ends].written:
      ends -= 1
    for place in range(begins, ends + 1):
      alive[place] += sizes[one]
  return max(alive)


def _numbered(variables: Any, sizes: list[int]) -> list[int]:
  """New numbers of values; what is no array has no size."""
  first = len(sizes)
  sizes.extend(
    prod(getattr(one.aval, 'shape', ())) * getattr(
      getattr(one.aval, 'dtype', None), 'itemsize', 0) for one in variables)
  return list(range(first, len(sizes)))


def _flatten(
  jaxpr: Any, numbers: dict[Any, int], sizes: list[int], steps: list[_Step]
) -> list[int]:
  """Appends the steps of a function and of those that it calls -> numbers of its results.

  Args:
    jaxpr: the function.
    numbers: of its arguments; gets those of its other values.
    sizes, steps: of all functions so far, extended.
  """
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    reads = [numbers[one] for one in equation.invars if not isinstance(one, Literal)]
    inner = next((getattr(part, 'jaxpr', part) for key, part in equation.params.items()
                  if key.endswith('jaxpr')), None)
    if inner is not None and name not in _OPAQUE and len(inner.invars) == len(equation.invars):
      within = {
        parameter: numbers[one] for parameter, one in zip(
          inner.invars, equation.invars, strict=True) if not isinstance(one, Literal)}
      for one in (*inner.invars, *inner.constvars):
        if one not in within:
          within |= {one: _numbered([one], sizes)[0]}
      made = _flatten(inner, within, sizes, steps)
    elif name in _VIEWS and reads:
      made = reads[:1] * len(equation.outvars)
    else:
      made = _numbered(equation.outvars, sizes)
      steps.append(_Step(name in _WRITTEN, tuple(reads), tuple(made)))
    numbers |= dict(zip(equation.outvars, made, strict=True))
  return [
    _numbered([one], sizes)[0] if isinstance(one, Literal) else numbers[one]
    for one in jaxpr.outvars]


def _in_order(steps: list[_Step]) -> list[_Step]:
  """The steps, those last whose values only leave the function."""
  waited_for: set[int] = set()
  late: list[_Step] = []
  soon: list[_Step] = []
  for step in reversed(steps):
    leaves = waited_for.isdisjoint(step.makes)
    (late if leaves else soon).append(step)
    if step.written or not leaves:
      waited_for.update(step.reads)
  return [*reversed(soon), *reversed(late)]
