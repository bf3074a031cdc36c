"""How the sites of a cohort are laid on the hardware; the results do not depend on it.

Sites that are computed together step together, so those with few steps would wait for those with
many. Hence sites are computed together with others of like number, the steps of a chunk end with
the last one that any of its sites takes, and, when there are halvings, the half with more steps
goes on without the others, then half of those, and so on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Share of the steps laid out that halvings are chosen for.
USEFUL = 0.9


class Stages(NamedTuple):
  """What one site does, in pieces: with many steps it can go on without the others.

  begin(*site) -> carry; advance(first i32[], until i32[], carry, *site) -> carry, the steps of
  number first ... until - 1 taken; finish(carry, *site) -> results.
  """

  begin: Callable
  advance: Callable
  finish: Callable


class SiteMap(NamedTuple):
  """Maps over the leading (site) axis of every argument."""

  every: Callable     # (fn) -> mapped fn
  staged: Callable    # (Stages, steps i32[C], the numbers that `advance` has to reach) -> mapped
  laid_out: Callable  # (steps i[C]) -> steps computed for them, each for as many sites at once


def map_sites(chunk: int, halvings: int = 0) -> SiteMap:
  """The maps for so many sites at once.

  Args:
    chunk: sites computed at once. 0 = all of them (vmap: the sites fold into the batch of each
      frozen matrix product), 1 = one after the other (least memory; on CPU the fastest), n =
      chunks of n, and one of what is left over.
    halvings: how often at most a chunk loses the half of its sites that is done first. Each is a
      program of its own, so it costs compilation.
  """
  return SiteMap(
    partial(_every, chunk), partial(_staged, chunk, halvings), partial(laid_out, chunk, halvings))


def fitted_map(rounds: Sequence[np.ndarray], chunk: int) -> SiteMap:
  """`map_sites` with `enough_halvings`."""
  return map_sites(chunk, enough_halvings(rounds, chunk))


def enough_halvings(rounds: Sequence[np.ndarray], chunk: int) -> int:
  """The fewest with which `USEFUL` of the steps laid out are taken, or what comes nearest.

  Args:
    rounds: of each round, i[C] the steps that its sites take.
    chunk: as for `map_sites`.
  """
  taken, widest = sum(steps.sum() for steps in rounds), max(map(len, rounds))
  most = (min(chunk or widest, widest) - 1).bit_length()
  for halvings in range(most):
    if taken >= USEFUL * sum(laid_out(chunk, halvings, steps) for steps in rounds):
      return halvings
  return most


def laid_out(chunk: int, halvings: int, steps: np.ndarray) -> int:
  """Steps that are computed where sites take `steps` i[C], as `map_sites` lays them out."""
  falling = np.sort(steps)[::-1]
  size, odd = _sizes(chunk, len(steps))
  chunks, total = [*falling[odd:].reshape(-1, size)] + [falling[:odd]] * bool(odd), 0
  for own in chunks:
    first = 0
    for width, until in _phases(own, halvings):
      total += width * int(until - first)
      first = until
  return total


def _sizes(chunk: int, count: int) -> tuple[int, int]:
  """(sites of a chunk, sites left over)."""
  size = min(chunk or count, count)
  return size, count % size


def _phases(steps, halvings: int) -> Iterator[tuple]:
  """(width, until): the first `width` sites of a chunk go on together up to step `until`.

  `steps` [n] do not rise; numpy's or traced.
  """
  width = len(steps)
  for left in range(halvings, -1, -1):
    rest = (width + 1) // 2 if left and width > 1 else 0
    yield width, steps[rest]
    if not rest:
      return
    width = rest


def _every(chunk: int, fn: Callable) -> Callable:
  if chunk == 0:
    return jax.vmap(fn)
  batch_size = None if chunk == 1 else chunk
  return lambda *args: jax.lax.map(lambda xs: fn(*xs), args, batch_size=batch_size)


def _staged(chunk: int, halvings: int, stages: Stages, steps: jax.Array) -> Callable:
  count = len(steps)
  size, odd = _sizes(chunk, count)

  def mapped(*args):
    if size == count and not halvings:
      return _together(stages, [(count, steps.max())], args)

    def chunk_of(places):
      return _together(
        stages, _phases(steps[places], halvings), jax.tree.map(lambda x: x[places], args))

    def write(out, places):
      return jax.tree.map(
        lambda all_, new: all_.at[places].set(new, unique_indices=True), out,
        chunk_of(places)), None

    # Written in place: results in another order would have to be copied as a whole.
    order = jnp.argsort(-steps)
    out = jax.tree.map(
      lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), jax.eval_shape(chunk_of, order[:size]))
    if odd:  # the sites with the most steps: fewer of them wait for the longest
      out, _ = write(out, order[:odd])
    return jax.lax.scan(write, out, order[odd:].reshape(-1, size))[0]

  return mapped


def _together(stages: Stages, phases, args):
  """One chunk; `args` are [n, ...], by falling number of steps where there are several phases."""
  first, done = jnp.int32(0), []
  carry = _lanes(stages.begin)(*args)
  for width, until in phases:
    done.append(jax.tree.map(lambda x, width=width: x[width:], carry))
    carry, own = jax.tree.map(lambda x, width=width: x[:width], (carry, args))
    carry = _lanes(partial(stages.advance, first, until))(carry, *own)
    first = until
  carry = jax.tree.map(lambda *parts: jnp.concatenate(parts), carry, *reversed(done))
  return _lanes(stages.finish)(carry, *args)


def _lanes(fn: Callable) -> Callable:
  """fn over the leading axis; a lone site is not batched, as its conditions then spare work."""

  def mapped(*args):
    if jax.tree.leaves(args)[0].shape[0] > 1:
      return jax.vmap(fn)(*args)
    return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))

  return mapped
