"""Greedy decoding of any number of examples: rows that have ended are taken by the next ones.

Continuous batching as in Yu et al., "Orca: A Distributed Serving System for Transformer-Based
Generative Models", OSDI 2022, in blocks: the device runs passes until a share of the rows is free,
then the host hands them out. Where a pass costs by its rows, rows are given up when no example is
left to take them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedmedjax.model.decode import (
  Asked,
  Behind,
  Rows,
  begin,
  fitted,
  go_on,
  prefill,
  read,
  take,
)
from fedmedjax.model.llama import Llama
from fedmedjax.model.sharding import SITE

# Each shape costs a compilation: inputs are padded to a multiple of this many tokens, and what
# depends on the longest question is rounded up to a `_rung`.
_INPUT_BUCKET = 32
# Of the cache, for each row.
_FEWEST_SLOTS = 64
# This part of the rows is free before questions take them.
_TAKEN_AT_ONCE = 4
# How often the number of rows may be halved when no question is left to take them.
_HALVINGS = 2


class Decoder(NamedTuple):
  """The functions of `model/decode.py`, compiled; see `decoder`."""

  guesses: int
  copies: int   # of the base
  prefill: Any  # (adapter, base, prefix)
  begin: Any    # (rows, width, most, slots), static
  read: Any     # (behind, asked)
  take: Any     # (rows, places, asked, first, kept, eos); the old rows are given away
  go_on: Any    # (behind, eos, pieces, rows, until); the old rows are given away
  fitted: Any   # (slots) -> (rows, chosen)


# Cached, so that the second call finds the first one's compilations.
@cache
def decoder(model: Llama, guesses: int, mesh: Mesh | None = None) -> Decoder:
  """What decodes with a model, compiled.

  On a mesh, each of the mesh.shape['site'] copies of the base has as many rows as the others: all
  counts of rows are multiples of the copies, `places` and `chosen` are places among a copy's own
  rows, and `until` has an entry for each. Within a copy kernels stay where they are and the
  compiler adds up what their parts give (`model` has no `fetch`): a pass has few tokens, so that is
  less to send than a layer.
  """
  def jitted(function, specs=None, **options):
    if mesh is not None and mesh.shape[SITE] > 1 and specs is not None:
      function = jax.shard_map(
        function, mesh=mesh, axis_names={SITE}, in_specs=specs[:-1], out_specs=specs[-1],
        check_vma=False)
    return jax.jit(function, **options)

  row, keys, same = P(SITE), P(None, None, SITE), P()
  rows = Rows(row, row, row, row, row, row, keys)
  return Decoder(
    guesses, mesh.shape[SITE] if mesh else 1,
    jitted(partial(prefill, model)),
    jax.jit(partial(begin, model), static_argnums=(0, 1, 2, 3), out_shardings=_placed(mesh, rows)),
    jitted(partial(read, model), (same, row, (row, keys))),
    jitted(take, (rows, row, row, row, keys, same, rows), donate_argnums=0),
    jitted(
      partial(go_on, model, guesses), (same, same, same, rows, row, rows), donate_argnums=3),
    cache(lambda slots: jitted(partial(fitted, slots), (rows, row, rows))))


def _placed(mesh: Mesh | None, specs: Any) -> Any:
  return mesh and jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class Question(NamedTuple):
  """What is asked of the model for one example."""

  tokens: np.ndarray  # i32[n], n >= 1: the instruction's last, and the input
  limit: int          # the most tokens to generate


class Continuation(NamedTuple):
  """What was generated for one example."""

  tokens: np.ndarray  # i32[n], without the closing end token
  passes: int         # of the model, that it took


class Sizes(NamedTuple):
  """Shapes of a batch."""

  rows: int   # of each copy of the base
  slots: int  # of the cache, for each row
  width: int  # tokens of an input
  most: int   # new tokens


def decode(
  decoder: Decoder,
  adapter: dict,
  base: dict,
  prefix: np.ndarray,
  questions: Sequence[Question],
  *,
  eos: Sequence[int],
  pieces: np.ndarray,
  rows: int,
  advance: Callable[[int], None] = lambda count: None,
) -> list[Continuation]:
  """Greedy continuations of `questions`, in their order.

  Args:
    decoder: see above; on a mesh, the base lies on it.
    adapter: the `lora` collection; {} is the base model alone.
    base: the `params` collection.
    prefix: i32[P], the instruction without its last token.
    questions: any number.
    eos: tokens that end an output.
    pieces: i32[H], H >= 1, see `model/speculation.py`.
    rows: decoded at once; rounded up to a multiple of the copies of the base.
    advance: called with the number of questions done since the last call.
  """
  if not questions:
    return []
  shared = decoder.prefill(adapter, base, prefix)
  batch = _Batch(
    decoder, Behind(adapter, base, shared, jnp.int32(len(prefix))), jnp.asarray(eos, jnp.int32),
    pieces, questions, rows)
  # Longest first: those that are left when rows stay free are short, and the time left is never
  # underestimated by much.
  queue = deque(sorted(range(len(questions)), key=lambda i: -len(questions[i].tokens)))
  outputs: dict[int, Continuation] = {}
  while len(outputs) < len(questions):
    while batch.take(queue):
      pass
    ended = batch.run(len(queue))
    outputs |= ended
    advance(len(ended))
  return [outputs[index] for index in range(len(questions))]


def largest(decoder: Decoder, questions: Sequence[Question], rows: int) -> Sizes:
  """The largest batch that `decode` may come to."""
  longest = max(len(question.tokens) for question in questions)
  slots = max(len(question.tokens) + question.limit for question in questions)
  return Sizes(
    _levels(-(-rows // decoder.copies), -(-len(questions) // decoder.copies))[0],
    _rung(max(_up(longest, _INPUT_BUCKET), slots + decoder.guesses + 1)), _rung(longest),
    _rung(max(question.limit for question in questions)))


def _up(count: int, multiple: int) -> int:
  return -(-count // multiple) * multiple


def _rung(count: int) -> int:
  """64, 96, 128, 192, 256, 384, 512 ..., the first that is enough."""
  power = max(_FEWEST_SLOTS, 2 ** (count - 1).bit_length())
  return power * 3 // 4 if max(count, _FEWEST_SLOTS) <= power * 3 // 4 else power


def _levels(rows: int, count: int) -> list[int]:
  """Numbers of rows, the largest first, that `count` questions begin with and come down to.

  On an accelerator a pass costs what reading the weights costs: fewer rows are not faster.
  """
  halvings = _HALVINGS if jax.default_backend() == 'cpu' else 0
  levels = sorted({-(-rows // 2**n) for n in range(halvings + 1)})
  enough = next(place for place, level in enumerate(levels) if level >= min(rows, count))
  return levels[enough::-1]


class _Batch:
  """A batch on the device, and which question each of its rows has."""

  def __init__(
    self, decoder: Decoder, behind: Behind, eos: jax.Array, pieces: np.ndarray,
    questions: Sequence[Question], rows: int,
  ):
    self._decoder, self._behind, self._eos, self._pieces = decoder, behind, eos, pieces
    self._questions, copies = questions, decoder.copies
    self._sizes = largest(decoder, questions, rows)
    self._levels = _levels(-(-rows // copies), -(-len(questions) // copies))
    # There are never fewer rows than that, or questions would wait for ever.
    self._at_once = min(-(-rows // copies // _TAKEN_AT_ONCE), self._levels[-1])
    # [copies, rows]: the question, -1 = none, and the slots that it fills.
    self._held = np.full((copies, self._sizes.rows), -1)
    self._filled = np.zeros_like(self._held)
    self._slots = self._room(0)
    self._rows = decoder.begin(
      self._held.size, self._sizes.width, self._sizes.most, self._slots)

  def take(self, queue: deque[int]) -> bool:
    """Gives free rows to the next of the queue, where enough are free -> whether it did."""
    copies, rows = self._held.shape
    places = np.full((copies, self._at_once), rows, np.int32)
    taken = np.full(places.shape, -1)
    for copy, held in enumerate(self._held):
      free, enough = np.flatnonzero(held < 0), min(self._at_once, len(queue))
      if enough and len(free) >= enough:
        places[copy, :enough] = free[:enough]
        taken[copy, :enough] = [queue.popleft() for _ in range(enough)]
        held[free[:enough]] = taken[copy, :enough]
        self._filled[copy, free[:enough]] = [
          len(self._questions[i].tokens) for i in taken[copy, :enough]]
    if (taken < 0).all():
      return False
    asked = self._asked(taken.ravel())
    self._fit(asked.tokens.shape[1], rows)
    first, kept = self._decoder.read(self._behind, asked)
    self._rows = self._decoder.take(
      self._rows, places.ravel(), asked, first, kept, self._eos)
    return True

  def run(self, waiting: int) -> dict[int, Continuation]:
    """Passes until rows are free for those who wait, or can be given up -> {question: output}."""
    busy, rows = (self._held >= 0).sum(axis=1).max(), self._held.shape[1]
    if waiting:
      until = rows - min(self._at_once, waiting)
    else:
      rows = min(level for level in self._levels if level >= busy)
      until = max((level for level in self._levels if level < busy), default=0)
    self._fit(0, rows)
    self._rows = self._decoder.go_on(
      self._behind, self._eos, self._pieces, self._rows,
      np.full(self._decoder.copies, until, np.int32))
    # To the host at once: slicing on the device would compile once per length. Copied, because the
    # next call may write over what a CPU shows.
    done, filled, said = jax.tree.map(
      np.array, (self._rows.done, self._rows.filled, self._rows.said))
    self._filled = filled.reshape(self._held.shape)
    ended = {}
    for row in np.flatnonzero(done & (self._held.ravel() >= 0)):
      ended[int(self._held.flat[row])] = Continuation(
        said.tokens[row, :said.lengths[row]].copy(), int(said.passes[row]))
      self._held.flat[row] = -1
    return ended

  def _asked(self, taken: np.ndarray) -> Asked:
    """The questions of these indices, -1 for none."""
    chosen = [self._questions[i] if i >= 0 else Question(np.zeros(0, np.int32), 0) for i in taken]
    tokens = np.zeros(
      (len(chosen), _up(max(len(one.tokens) for one in chosen), _INPUT_BUCKET)), np.int32)
    for row, one in zip(tokens, chosen, strict=True):
      row[:len(one.tokens)] = one.tokens
    return Asked(
      tokens, np.asarray([len(one.tokens) for one in chosen], np.int32),
      np.asarray([one.limit for one in chosen], np.int32))

  def _fit(self, width: int, rows: int) -> None:
    """Makes room for inputs of `width` and a pass of each row, and gives up rows and room."""
    needed = max(
      width, int(self._filled[self._held >= 0].max(initial=0)) + self._decoder.guesses + 1)
    slots = self._slots
    if needed > slots:
      slots = self._room(needed)
    elif self._room(needed * 5 // 4) < slots:
      # With some to spare, so that it need not grow again at once.
      slots = self._room(needed * 5 // 4)
    if (slots, rows) == (self._slots, self._held.shape[1]):
      return
    # Rows with a question first.
    chosen = np.argsort(self._held < 0, axis=1, kind='stable')[:, :rows].astype(np.int32)
    self._rows = self._decoder.fitted(slots)(self._rows, chosen.ravel())
    if rows < self._held.shape[1]:
      self._held, self._filled = (
        np.take_along_axis(x, chosen, axis=1) for x in (self._held, self._filled))
    self._slots = slots

  def _room(self, needed: int) -> int:
    """So many slots or more, of few different numbers."""
    return min(self._sizes.slots, max(_FEWEST_SLOTS, 2 ** (needed - 1).bit_length()))
