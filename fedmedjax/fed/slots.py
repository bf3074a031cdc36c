"""Sites that keep to their devices: every group of devices computes the sites of its process alone.

Where a program runs in several processes, each has packed the examples of its own sites only, so a
site has to be computed where it was packed. Every group of devices has as many slots as the others;
a slot holds a site of the cohort or is empty. The slots [Z] of a group lie next to each other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedmedjax.fed.sites import (
  ByRows,
  MapFunction,
  SiteFunction,
  SiteMap,
  SiteProgram,
  Spread,
  map_sites,
  together,
)


class Slots(NamedTuple):
  """Where the sites [C] of a cohort are computed: in which of Z slots."""

  place: Any   # i32[Z], the place in the cohort of each slot's site; any where a slot is empty
  filled: Any  # bool[Z]
  slot: Any    # i32[C], the slot of each site of the cohort


def owner_group(site, sites: int, groups: int):
  """Sites i[] or i[C] -> the groups of devices that compute them; neighbours share one."""
  return site * groups // sites


def slots_needed(cohorts: Sequence[np.ndarray], sites: int, groups: int) -> int:
  """The most sites [C] of any cohort that one group of devices computes.

  Args:
    cohorts: i[C] of each round, padding included.
    sites: S.
    groups: of devices.
  """
  return max(
    int(np.bincount(owner_group(np.asarray(cohort), sites, groups), minlength=groups).max())
    for cohort in cohorts)


def make_slots(
  cohort: np.ndarray, steps: np.ndarray, sites: int, groups: int, width: int
) -> Slots:
  """The slots of a round, of Z = groups * width; those of a group by falling number of steps.

  Args:
    cohort: i[C], numbers of the sites.
    steps: i[C], local steps that each takes.
    sites: S.
    groups: of devices.
    width: of `slots_needed`.
  """
  place = np.zeros(groups * width, np.int32)
  filled, slot = np.zeros(groups * width, bool), np.zeros(len(cohort), np.int32)
  owners = owner_group(np.asarray(cohort), sites, groups)
  for group in range(groups):
    own = np.flatnonzero(owners == group)
    own = own[np.argsort(-np.asarray(steps)[own], kind='stable')]
    first = group * width
    place[first:first + len(own)], filled[first:first + len(own)] = own, True
    slot[own] = np.arange(first, first + len(own))
  return Slots(place, filled, slot)


def slots_computed(slots: Slots, steps: np.ndarray, groups: int, chunk: int) -> int:
  """The number of steps that `slot_map` computes for steps i[C], padded ones included.

  Args:
    slots: of the round.
    steps: i[C], that each site takes.
    groups: of devices.
    chunk: of `slot_map`.
  """
  taken = np.where(slots.filled, np.asarray(steps)[slots.place], 0).reshape(groups, -1)
  width = taken.shape[1]
  size = min(-(-chunk // groups) or width, width)
  ends = [*range(width % size, width, size), width]
  starts = [0, *ends[:-1]] if ends[0] else ends[:-1]
  return sum(
    groups * (end - start) * int(taken[:, start:end].max())
    for start, end in zip(starts, ends if ends[0] else ends[1:], strict=True))


def into_slots(slots: Slots | None, tree):
  """[C, ...] -> [Z, ...]; as it is without slots."""
  return tree if slots is None else jax.tree.map(lambda x: x[slots.place], tree)


def out_of_slots(slots: Slots | None, tree, by_rows: ByRows = lambda x: x):
  """[Z, ...] -> [C, ...]; as it is without slots.

  Args:
    slots: of the round.
    tree: of arrays that each group of devices has of its own slots.
    by_rows: lays them out before; else every device would get what all sites send.
  """
  return tree if slots is None else jax.tree.map(lambda x: x[slots.slot], by_rows(tree))


def slot_map(chunk: int, spread: Spread, vmap: MapFunction) -> SiteMap:
  """Maps over slots [Z, ...]; nothing of a slot leaves its group of devices.

  `every` maps over other leading axes, too, as that of `map_sites` does.

  Args:
    chunk: slots computed at once, a multiple of the groups of devices; 0 = all of them.
    spread: how slots lie on devices.
    vmap: of `spread_vmap(spread)`.
  """
  usual = map_sites(chunk, vmap=vmap, groups=spread.parts)
  return SiteMap(
    usual.every, partial(_staged, chunk, spread, vmap), usual.laid_out,
    partial(_every_slot, chunk, spread, vmap))


def _every_slot(chunk: int, spread: Spread, vmap: MapFunction, fn: SiteFunction) -> SiteFunction:
  """fn over [Z, ...], chunk by chunk."""
  return partial(_chunks, chunk, spread, lambda args: vmap(fn)(*args))


def _staged(
  chunk: int, spread: Spread, vmap: MapFunction, program: SiteProgram, steps: jax.Array
) -> SiteFunction:
  """The program over [Z, ...]; a chunk ends with the last of `steps` i32[Z] of its slots."""

  def mapped(*args):
    def one(args_with_steps):
      own, *rest = args_with_steps
      return together(program, vmap, [(len(own), own.max())], rest)

    return _chunks(chunk, spread, one, steps, *args)

  return mapped


def _chunks(chunk: int, spread: Spread, fn: Callable, *args):
  """fn over chunks of as many slots of every group, [Z, ...] -> [Z, ...]."""
  first, *_ = jax.tree.leaves(args)
  groups, width = spread.parts, len(first) // spread.parts
  size = min(-(-chunk // groups) or width, width)

  def placed(spec):
    return partial(jax.lax.with_sharding_constraint, shardings=NamedSharding(spread.mesh, spec))

  def columns(x, begin, count):
    """Slots begin, ... of every group as chunks: [count / n, groups * n, ...]."""
    x = x.reshape(groups, width, *x.shape[1:])[:, begin:begin + count]
    n = min(size, count)
    x = x.reshape(groups, count // n, n, *x.shape[2:]).swapaxes(0, 1)
    return placed(PartitionSpec(None, spread.axes))(
      x.reshape(count // n, groups * n, *x.shape[3:]))

  def rows(x, count):
    """The inverse: [groups, count, ...]."""
    n = min(size, count)
    x = x.reshape(count // n, groups, n, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(groups, count, *x.shape[3:])

  def part(begin, count):
    xs = jax.tree.map(lambda x: columns(x, begin, count), args)
    out = jax.lax.map(fn, xs) if count > size else jax.tree.map(
      lambda x: x[None], fn(jax.tree.map(lambda x: x[0], xs)))
    return jax.tree.map(lambda x: rows(x, count), out)

  rest = width % size
  parts = [part(0, rest), part(rest, width - rest)] if rest else [part(0, width)]
  return jax.tree.map(
    lambda *x: placed(PartitionSpec(spread.axes))(
      jnp.concatenate(x, axis=1).reshape(groups * width, *x[0].shape[2:])), *parts)
