"""How the sites of a cohort are laid on the hardware; the results do not depend on it.

Sites in one vmap take their steps in lockstep, so a site with few steps would be computed on until
the site with the most steps is done. Three measures against that: a chunk consists of sites with
similar numbers of steps; a chunk ends with the last step that any of its sites takes; and with
*halvings*, once the half of a chunk with fewer steps is done, only the other half is computed
further, then half of those, and so on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedmedjax.fed.types import FedState, SiteState

# Halvings are added until this share of the computed steps is taken by sites, not padding.
USEFUL = 0.9

# A function of trees whose leaves belong to one site, or [C, ...] to several; or to trees of them.
SiteFunction = Callable[..., Any]
# Maps a function of one site over the leading axis of all its arguments, as `jax.vmap` does.
MapFunction = Callable[[SiteFunction], SiteFunction]
# Lays a tree of [C, ...] out on devices, see `spread_rows`.
ByRows = Callable[[Any], Any]


class Spread(NamedTuple):
  """Places the sites [C, ...] on different devices, along `axes` of a mesh.

  Devices that differ only in the other axes compute the same sites together.
  """

  mesh: Mesh
  axes: tuple[str, ...]

  @property
  def parts(self) -> int:
    """i[]: number of groups of devices; each group has sites of its own."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes)


class Steps(Protocol):
  """Takes a stretch of one site's steps; the carry is one site's, [*p] and the like."""

  def __call__(self, first: jax.Array, until: jax.Array, carry: Any, /, *site: Any) -> Any:
    """(first i32[], until i32[], carry, *site) -> carry after the steps first, ..., until - 1."""


class SiteProgram(NamedTuple):
  """What one site does in a round, in pieces, so that its steps can be taken in stretches.

  `*site` are the site's own arguments, without a leading axis [C].
  """

  init: SiteFunction    # (*site) -> carry before the first step
  steps: Steps
  final: SiteFunction   # (carry, *site) -> results


class Staged(Protocol):
  """Maps a `SiteProgram` over the sites [C, ...]."""

  def __call__(self, program: SiteProgram, steps: jax.Array, /) -> SiteFunction:
    """(program, steps i32[C], how far each site has to go) -> function [C, ...] -> [C, ...]."""


class SiteMap(NamedTuple):
  """Maps over the sites, the leading axis [C, ...] of every argument."""

  every: MapFunction
  staged: Staged
  laid_out: Callable[[np.ndarray], int]   # steps i[C] -> steps computed, see `laid_out`
  every_slot: MapFunction | None = None   # over slots [Z, ...] of `slots.py`; None = there are none


def map_sites(
  chunk: int, halvings: int = 0, vmap: MapFunction = jax.vmap, groups: int = 1
) -> SiteMap:
  """The maps over [C, ...] that compute `chunk` sites at once.

  Args:
    chunk: sites computed at once. 0 = all of them (vmap: the sites fold into the batch of each
      frozen matrix product); 1 = one after the other (least memory; the fastest on CPU); n =
      chunks of n sites, and one chunk of the remainder.
    halvings: the largest number of times that a chunk is halved. Each halving is compiled as a
      program of its own.
    vmap: maps over the sites of a chunk, `jax.vmap` or `spread_vmap(...)`.
    groups: number of device groups that a chunk is spread over. A chunk is not made smaller than
      that, since it would not save time.
  """
  return SiteMap(
    partial(_every, chunk, vmap), partial(_staged, chunk, halvings, vmap, groups),
    partial(laid_out, chunk, halvings, groups=groups))


def fitted_map(
  rounds: Sequence[np.ndarray], chunk: int, vmap: MapFunction, groups: int
) -> SiteMap:
  """`map_sites` with the halvings that suit the steps i[C] of the rounds, see `enough_halvings`."""
  return map_sites(chunk, enough_halvings(rounds, chunk, groups), vmap, groups)


def enough_halvings(rounds: Sequence[np.ndarray], chunk: int, groups: int = 1) -> int:
  """The fewest halvings with which a share `USEFUL` of the computed steps is taken by sites.

  Where no number of halvings reaches that share, the largest number that is possible.

  Args:
    rounds: for each round, i[C], the steps that its sites take.
    chunk, groups: as for `map_sites`.
  """
  taken, widest = sum(steps.sum() for steps in rounds), max(map(len, rounds))
  most = (math.ceil(min(chunk or widest, widest) / groups) - 1).bit_length()
  for halvings in range(most):
    if taken >= USEFUL * sum(laid_out(chunk, halvings, steps, groups) for steps in rounds):
      return halvings
  return most


def laid_out(chunk: int, halvings: int, steps: np.ndarray, groups: int = 1) -> int:
  """The number of steps that `map_sites` computes, padded ones included, for steps i[C].

  Not counted are the steps of the sites of zeros that `spread_vmap` adds.
  """
  falling = np.sort(steps)[::-1]
  size, remainder = _sizes(chunk, len(steps))
  chunks = [falling[start:start + size] for start in range(remainder, len(falling), size)]
  chunks += [falling[:remainder]] * bool(remainder)
  total = 0
  for chunk_steps in chunks:
    first = 0
    for width, until in _phases(chunk_steps, halvings, groups):
      total += width * int(until - first)
      first = until
  return total


def _sizes(chunk: int, count: int) -> tuple[int, int]:
  """(number of sites in a chunk, number of sites in the remainder)."""
  size = min(chunk or count, count)
  return size, count % size


def _phases(steps, halvings: int, groups: int) -> Iterator[tuple]:
  """(width, until) of each phase: the first `width` sites of a chunk advance up to step `until`.

  `steps` i32[n] fall or stay equal; they are numpy's or traced. A width is a multiple of the groups
  of devices, from the second phase on.
  """
  width = len(steps)
  for left in reversed(range(halvings + 1)):
    rest = groups * math.ceil(width / (2 * groups)) if left and width > groups else 0
    yield width, steps[rest]
    if not rest:
      return
    width = rest


def _every(chunk: int, vmap: MapFunction, fn: SiteFunction) -> SiteFunction:
  """fn over [C, ...], `chunk` sites at once."""
  if not chunk:
    return vmap(fn)
  return _chunks(chunk, vmap, fn)


def _chunks(chunk: int, vmap: MapFunction, fn: SiteFunction) -> SiteFunction:
  """fn over [C, ...] by chunks: like `jax.lax.map` with a batch size, but by the given vmap."""

  def mapped(*args):
    size, remainder = _sizes(chunk, _count(args))
    whole = _count(args) - remainder
    # Not -1: a leaf may have no numbers at all.
    first = jax.tree.map(lambda x: x[:whole].reshape(whole // size, size, *x.shape[1:]), args)
    out = jax.lax.map(lambda xs: _vmap_unless_one(vmap, fn)(*xs), first)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if not remainder:
      return out
    rest = _vmap_unless_one(vmap, fn)(*jax.tree.map(lambda x: x[whole:], args))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

  return mapped


def _count(args) -> int:
  """C, from arguments [C, ...]."""
  first, *_ = jax.tree.leaves(args)
  return len(first)


def _staged(
  chunk: int, halvings: int, vmap: MapFunction, groups: int, program: SiteProgram,
  steps: jax.Array,
) -> SiteFunction:
  """The program over [C, ...], by chunks of sites of similar `steps` i32[C]."""
  count = len(steps)
  size, remainder = _sizes(chunk, count)

  def mapped(*args):
    if size == count and not halvings:
      return together(program, vmap, [(count, steps.max())], args)

    def chunk_of(places):
      return together(
        program, vmap, _phases(steps[places], halvings, groups),
        jax.tree.map(lambda x: x[places], args))

    def write(out, places):
      return jax.tree.map(
        lambda all_, new: all_.at[places].set(new, unique_indices=True), out,
        chunk_of(places)), None

    # Each chunk is written to its places in the cohort's order. Results collected in order of
    # steps would need a copy of all of them to be put back.
    order = jnp.argsort(steps, descending=True)
    out = vmap(lambda x: x)(jax.tree.map(
      lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), jax.eval_shape(chunk_of, order[:size])))
    if remainder:  # The smallest chunk has the sites with the most steps: fewest are padded.
      out, _ = write(out, order[:remainder])
    return jax.lax.scan(write, out, order[remainder:].reshape(-1, size))[0]

  return mapped


def together(program: SiteProgram, vmap: MapFunction, phases, args):
  """One chunk; `args` are [n, ...], by falling number of steps where there are several phases."""
  first, done = jnp.int32(0), []
  carry = _vmap_unless_one(vmap, program.init)(*args)
  for width, until in phases:
    done.append(jax.tree.map(lambda x, width=width: x[width:], carry))
    carry, phase_args = jax.tree.map(lambda x, width=width: x[:width], (carry, args))
    carry = _vmap_unless_one(vmap, partial(program.steps, first, until))(carry, *phase_args)
    first = until
  carry = jax.tree.map(lambda *parts: jnp.concatenate(parts), carry, *reversed(done))
  return _vmap_unless_one(vmap, program.final)(carry, *args)


def _vmap_unless_one(vmap: MapFunction, fn: SiteFunction) -> SiteFunction:
  """fn over the leading axis; a single site is not batched, so that its branches skip work."""

  def mapped(*args):
    if _count(args) > 1:
      return vmap(fn)(*args)
    alone = jax.tree.map(lambda x: x.reshape(x.shape[1:]), args)
    return jax.tree.map(lambda x: x[None], fn(*alone))

  return mapped


def spread_vmap(spread: Spread) -> MapFunction:
  """`jax.vmap` over sites, [C, ...] -> [C, ...], with equally many sites on each group of devices.

  With one group it is `jax.vmap` itself. When C is not a multiple of the number of groups, sites
  of zeros are added, which take no steps, and their results are cut off again.
  """
  mesh, axes, parts = *spread, spread.parts
  if parts == 1:
    return jax.vmap

  def split(tree):
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(axes)))

  def vmap(fn):
    def mapped(*args):
      count = _count(args)
      missing = -count % parts
      args = jax.tree.map(
        lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x, args)
      out = split(jax.vmap(fn, spmd_axis_name=axes)(*split(args)))
      return jax.tree.map(lambda x: x[:count], out)

    return mapped

  return vmap


def spread_rows(spread: Spread) -> ByRows:
  """(tree of [C, ...]) -> the same, every group of devices with some rows of all sites' matrices.

  Rows, or columns where these are more, take the place of sites: a device keeps as many numbers as
  where it had sites of its own, and sends no more than that. Leaves that are no matrices stay.
  """
  def one(x: jax.Array) -> jax.Array:
    if x.ndim < 3:
      return x
    axis = x.ndim - 1 - (x.shape[-2] > x.shape[-1])
    return jax.lax.with_sharding_constraint(x, NamedSharding(
      spread.mesh, PartitionSpec(*[None] * axis, spread.axes)))

  return partial(jax.tree.map, one)


def spread_state(spread: Spread) -> Callable[[FedState], FedState]:
  """Keeps the server's state [*p] on every device, and site state [S, ...] on the site's devices.

  Site state is kept on every device when S is not a multiple of the number of device groups.
  """
  whole = NamedSharding(spread.mesh, PartitionSpec())
  rows = NamedSharding(spread.mesh, PartitionSpec(spread.axes))

  def of_sites(leaf):
    return jax.lax.with_sharding_constraint(leaf, whole if leaf.shape[0] % spread.parts else rows)

  def place(state: FedState) -> FedState:
    server = jax.lax.with_sharding_constraint(
      state._replace(sites=SiteState((), (), ())), whole)
    return server._replace(sites=jax.tree.map(of_sites, state.sites))

  return place
