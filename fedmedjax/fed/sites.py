"""How the sites of a cohort are laid on the hardware; the results do not depend on it.

Sites that are computed together step together, so those with few steps would wait for those with
many. Hence sites are computed together with others of like number, the steps of a chunk end with
the last one that any of its sites takes, and, when there are halvings, the half with more steps
goes on without the others, then half of those, and so on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedmedjax.fed.types import FedState

# Share of the steps laid out that halvings are chosen for.
USEFUL = 0.9


class Spread(NamedTuple):
  """Sites are computed on different devices: along `axes` of a mesh. The other axes share."""

  mesh: Mesh
  axes: tuple[str, ...]

  @property
  def parts(self) -> int:
    """Groups of devices, each with sites of its own."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes)


class SiteProgram(NamedTuple):
  """What one site does, in pieces: with many steps it can go on without the others.

  init(*site) -> carry; steps(first i32[], until i32[], carry, *site) -> carry, the steps of
  number first ... until - 1 taken; final(carry, *site) -> results.
  """

  init: Callable
  steps: Callable
  final: Callable


class SiteMap(NamedTuple):
  """Maps over the leading (site) axis of every argument."""

  every: Callable     # (fn) -> mapped fn
  staged: Callable    # (SiteProgram, steps i32[C] that each site has to reach) -> mapped
  laid_out: Callable  # (steps i[C]) -> steps computed for them, each for as many sites at once


def map_sites(
  chunk: int, halvings: int = 0, vmap: Callable = jax.vmap, groups: int = 1
) -> SiteMap:
  """The maps for so many sites at once.

  Args:
    chunk: sites computed at once. 0 = all of them (vmap: the sites fold into the batch of each
      frozen matrix product), 1 = one after the other (least memory; on CPU the fastest), n =
      chunks of n, and one of what is left over.
    halvings: how often at most a chunk loses the half of its sites that is done first. Each is a
      program of its own, so it costs compilation.
    vmap: how those computed at once are, `jax.vmap` or `spread_vmap(...)`.
    groups: of devices that they are spread over; fewer sites than those are not fewer steps.
  """
  return SiteMap(
    partial(_every, chunk, vmap), partial(_staged, chunk, halvings, vmap, groups),
    partial(laid_out, chunk, halvings, groups=groups))


def fitted_map(
  rounds: Sequence[np.ndarray], chunk: int, vmap: Callable = jax.vmap, groups: int = 1
) -> SiteMap:
  """`map_sites` with `enough_halvings`."""
  return map_sites(chunk, enough_halvings(rounds, chunk, groups), vmap, groups)


def enough_halvings(rounds: Sequence[np.ndarray], chunk: int, groups: int = 1) -> int:
  """The fewest with which `USEFUL` of the steps laid out are taken, or what comes nearest.

  Args:
    rounds: of each round, i[C] the steps that its sites take.
    chunk, groups: as for `map_sites`.
  """
  taken, widest = sum(steps.sum() for steps in rounds), max(map(len, rounds))
  most = (math.ceil(min(chunk or widest, widest) / groups) - 1).bit_length()
  for halvings in range(most):
    if taken >= USEFUL * sum(laid_out(chunk, halvings, steps, groups) for steps in rounds):
      return halvings
  return most


def laid_out(chunk: int, halvings: int, steps: np.ndarray, groups: int = 1) -> int:
  """Steps that are computed where sites take `steps` i[C], as `map_sites` lays them out.

  Without those of the sites of zeros that `spread_vmap` adds.
  """
  falling = np.sort(steps)[::-1]
  size, odd = _sizes(chunk, len(steps))
  chunks, total = [*falling[odd:].reshape(-1, size)] + [falling[:odd]] * bool(odd), 0
  for own in chunks:
    first = 0
    for width, until in _phases(own, halvings, groups):
      total += width * int(until - first)
      first = until
  return total


def _sizes(chunk: int, count: int) -> tuple[int, int]:
  """(sites of a chunk, sites left over)."""
  size = min(chunk or count, count)
  return size, count % size


def _phases(steps, halvings: int, groups: int) -> Iterator[tuple]:
  """(width, until): the first `width` sites of a chunk go on together up to step `until`.

  `steps` [n] do not rise; numpy's or traced. What goes on fills the groups of devices.
  """
  width = len(steps)
  for left in range(halvings, -1, -1):
    rest = groups * math.ceil(width / (2 * groups)) if left and width > groups else 0
    yield width, steps[rest]
    if not rest:
      return
    width = rest


def _every(chunk: int, vmap: Callable, fn: Callable) -> Callable:
  if chunk == 0:
    return vmap(fn)
  if chunk == 1:
    return lambda *args: jax.lax.map(lambda xs: fn(*xs), args)
  return _chunks(chunk, vmap, fn)


def _chunks(chunk: int, vmap: Callable, fn: Callable) -> Callable:
  """fn over [C, ...] by chunks -> [C, ...]: `jax.lax.map` with a batch size, by this vmap."""

  def mapped(*args):
    size, odd = _sizes(chunk, _count(args))
    whole = _count(args) - odd
    first = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), args)
    out = jax.lax.map(lambda xs: vmap(fn)(*xs), first)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if not odd:
      return out
    rest = vmap(fn)(*jax.tree.map(lambda x: x[whole:], args))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

  return mapped


def _count(args) -> int:
  """C of [C, ...]."""
  return jax.tree.leaves(args)[0].shape[0]


def _staged(
  chunk: int, halvings: int, vmap: Callable, groups: int, stages: SiteProgram, steps: jax.Array
) -> Callable:
  count = len(steps)
  size, odd = _sizes(chunk, count)

  def mapped(*args):
    if size == count and not halvings:
      return _together(stages, vmap, [(count, steps.max())], args)

    def chunk_of(places):
      return _together(
        stages, vmap, _phases(steps[places], halvings, groups),
        jax.tree.map(lambda x: x[places], args))

    def write(out, places):
      return jax.tree.map(
        lambda all_, new: all_.at[places].set(new, unique_indices=True), out,
        chunk_of(places)), None

    # Written in place: results in another order would have to be copied as a whole.
    order = jnp.argsort(-steps)
    out = vmap(lambda x: x)(jax.tree.map(
      lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), jax.eval_shape(chunk_of, order[:size])))
    if odd:  # the sites with the most steps: fewer of them wait for the longest
      out, _ = write(out, order[:odd])
    return jax.lax.scan(write, out, order[odd:].reshape(-1, size))[0]

  return mapped


def _together(stages: SiteProgram, vmap: Callable, phases, args):
  """One chunk; `args` are [n, ...], by falling number of steps where there are several phases."""
  first, done = jnp.int32(0), []
  carry = _vmap_unless_one(vmap, stages.init)(*args)
  for width, until in phases:
    done.append(jax.tree.map(lambda x, width=width: x[width:], carry))
    carry, own = jax.tree.map(lambda x, width=width: x[:width], (carry, args))
    carry = _vmap_unless_one(vmap, partial(stages.steps, first, until))(carry, *own)
    first = until
  carry = jax.tree.map(lambda *parts: jnp.concatenate(parts), carry, *reversed(done))
  return _vmap_unless_one(vmap, stages.final)(carry, *args)


def _vmap_unless_one(vmap: Callable, fn: Callable) -> Callable:
  """fn over the leading axis; a lone site is not batched, as its conditions then spare work."""

  def mapped(*args):
    if _count(args) > 1:
      return vmap(fn)(*args)
    return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))

  return mapped


def spread_vmap(spread: Spread) -> Callable:
  """`jax.vmap` over sites, [C, ...] -> [C, ...], with as many on each group of devices.

  With one group it is `jax.vmap` itself.

  Where they are not a multiple of the groups, sites of zeros fill the places: without steps, and
  of results that are cut off.
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


def spread_state(spread: Spread) -> Callable[[FedState], FedState]:
  """The server's state on every device; what sites keep on those that compute them.

  Sites that the groups of devices do not divide are kept everywhere.
  """
  whole = NamedSharding(spread.mesh, PartitionSpec())
  rows = NamedSharding(spread.mesh, PartitionSpec(spread.axes))

  def of_sites(leaf):
    return jax.lax.with_sharding_constraint(leaf, whole if leaf.shape[0] % spread.parts else rows)

  def place(state: FedState) -> FedState:
    server = jax.lax.with_sharding_constraint(state._replace(sites=()), whole)
    return server._replace(sites=jax.tree.map(of_sites, state.sites))

  return place
