"""Greedy decoding of any number of examples: a row whose output has ended is given to the next one.

Continuous batching as in Yu et al., "Orca: A Distributed Serving System for Transformer-Based
Generative Models", OSDI 2022, in blocks: the device runs passes until a share of the rows is free,
then the host gives these to waiting examples. Where the time of a pass grows with its rows, the
batch is halved when no example is left for its free rows.

Letters as in `decode.py`: R rows, W tokens of an input, N of an output, M slots of a row's cache.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedmedjax.model import input_blocks, speculation
from fedmedjax.model.batch_sizes import Question as Question
from fedmedjax.model.batch_sizes import Sizes as Sizes
from fedmedjax.model.batch_sizes import largest as largest
from fedmedjax.model.batch_sizes import levels as levels
from fedmedjax.model.batch_sizes import rows_awaited, source_of
from fedmedjax.model.decode import (
  DecodeState,
  Picked,
  Requests,
  begin,
  generate,
  insert,
  resize,
)
from fedmedjax.model.input_blocks import FEWEST, Place
from fedmedjax.model.llama import Llama
from fedmedjax.model.prefill import Block, Prefix, prefill, prefill_inputs
from fedmedjax.model.sharding import SITE


class Decoder(NamedTuple):
  """The functions of `decode.py`, compiled for one model; see `decoder`.

  Shapes of their arguments are those of the functions; on a mesh R, K and `until` i32[copies] are
  those of all copies of the base together.
  """

  guesses: int
  copies: int               # of the base
  original: int             # `LlamaConfig.rope_original`
  prefill: Callable         # (adapter, base, prefix, reach)
  begin: Callable           # (rows, places, most, slots), static
  prefill_inputs: Callable  # (prefix, block)
  insert: Callable          # (state, places, requests, picked, first, block, eos); donates state
  generate: Callable        # (prefix, eos, pieces, state, until); donates the old state
  resize: Callable          # (slots) -> (state, chosen) -> state


# Cached, so that the second call finds the first one's compilations.
@cache
def decoder(model: Llama, guesses: int, mesh: Mesh | None = None) -> Decoder:
  """Compiles what decodes with a model.

  On a mesh, each of the mesh.shape['site'] copies of the base has as many rows as the others: all
  counts of rows are multiples of the copies, `places` i32[K] and `chosen` i32[K] are places among a
  copy's own rows, `Picked` and `Block.ends` are of a copy's own block, and `until` is i32[copies].
  Within a copy kernels stay where they are and the compiler adds up what their parts give (`model`
  has no `fetch`): a pass has few tokens, so that is less to send than a layer.

  Args:
    model: a Llama built with `cached_attention`.
    guesses: tokens guessed and checked in each pass beside the one that it makes.
    mesh: devices that the base lies on; None = one device.
  """
  def jitted(function, specs=None, **options):
    if mesh is not None and mesh.shape[SITE] > 1 and specs is not None:
      function = jax.shard_map(
        function, mesh=mesh, axis_names={SITE}, in_specs=specs[:-1], out_specs=specs[-1],
        check_vma=False)
    return jax.jit(function, **options)

  row, keys, same = P(SITE), P(None, None, SITE), P()
  state = DecodeState(row, row, row, row, row, row, keys)
  return Decoder(
    guesses, mesh.shape[SITE] if mesh else 1, model.config.rope_original,
    jitted(partial(prefill, model)),
    jax.jit(partial(begin, model), static_argnums=(0, 1, 2, 3), out_shardings=_placed(mesh, state)),
    jitted(partial(prefill_inputs, model), (same, row, (row, keys))),
    jitted(insert, (state, row, row, row, row, keys, same, state), donate_argnums=0),
    jitted(
      partial(generate, model, guesses), (same, same, same, state, row, state), donate_argnums=3),
    cache(lambda slots: jitted(partial(resize, slots), (state, row, state))))


def _placed(mesh: Mesh | None, specs: Any) -> Any:
  return mesh and jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class Continuation(NamedTuple):
  """The model's output for one example."""

  tokens: np.ndarray  # i32[N], without the closing end token
  passes: int         # passes of the model that the output took


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
    adapter: the `lora` collection, leaves [L, *p]; {} is the base model alone.
    base: the `params` collection.
    prefix: i32[P], the instruction without its last token.
    questions: any number.
    eos: tokens that end an output.
    pieces: i32[F], F >= 1, see `speculation.guess`.
    rows: R, questions decoded at once; rounded up to a multiple of the copies of the base.
    advance: called with the number of questions done since the last call.
  """
  if not questions:
    return []
  # All rows rotate as the longest text has to.
  reach = jnp.int32(len(prefix) + max(
    len(question.tokens) + question.limit for question in questions) - 1) if (
      decoder.original) else None
  shared = decoder.prefill(adapter, base, prefix, reach)
  batch = _Batch(
    decoder, Prefix(adapter, base, shared, jnp.int32(len(prefix)), reach),
    jnp.asarray(eos, jnp.int32), pieces, questions, rows)
  # Longest first: those that are left when rows stay free are short, and the time left is never
  # underestimated by much.
  queue = sorted(range(len(questions)), key=lambda i: -len(questions[i].tokens))
  outputs: dict[int, Continuation] = {}
  while len(outputs) < len(questions):
    while batch.insert(queue):
      pass
    ended = batch.run(len(queue))
    outputs |= ended
    advance(len(ended))
  return [outputs[index] for index in range(len(questions))]


class _Batch:
  """A batch on the device, and the question that each of its rows continues."""

  def __init__(
    self, decoder: Decoder, prefix: Prefix, eos: jax.Array, pieces: np.ndarray,
    questions: Sequence[Question], rows: int,
  ):
    self._decoder, self._prefix, self._eos, self._pieces = decoder, prefix, eos, pieces
    self._questions, copies = questions, decoder.copies
    self._sizes = largest(decoder, questions, rows)
    self._levels = levels(-(-rows // copies), -(-len(questions) // copies))
    self._inputs = [question.tokens for question in questions]
    self._lengths = [len(tokens) for tokens in self._inputs]
    # Of each copy: inputs that wait in the block (first, Cache) that was read last.
    self._read: list[list[Place]] = [[] for _ in range(copies)]
    self._block: Any = None
    self._picked = np.zeros(len(questions), np.int32)  # their numbers in the block
    # [copies, rows]: each row's question, -1 = none, and how many slots of its cache are filled.
    self._assigned = np.full((copies, self._sizes.rows), -1)
    self._filled = np.zeros_like(self._assigned)
    self._slots = self._rounded_slots(0)
    self._state = decoder.begin(
      self._assigned.size, self._sizes.places, self._sizes.most, self._slots)

  def insert(self, queue: list[int]) -> bool:
    """Gives free rows to the next questions -> whether there were rows and questions."""
    copies, rows = self._assigned.shape
    if (self._assigned >= 0).all() or not (queue or any(self._read)):
      return False
    if not any(self._read):
      self._read_block(queue)
    count = self._sizes.read
    places = np.full((copies, count), rows, np.int32)
    chosen = np.full(places.shape, -1)
    picked = np.zeros((3, *places.shape), np.int32)
    for copy, (assigned, waiting) in enumerate(zip(self._assigned, self._read, strict=True)):
      for at, place in enumerate(np.flatnonzero(assigned < 0)[:min(count, len(waiting))]):
        one = waiting.pop(0)
        places[copy, at], chosen[copy, at] = place, one.question
        picked[:, copy, at] = self._picked[one.question], one.row, one.column
        assigned[place] = one.question
        self._filled[copy, place] = self._lengths[one.question]
    if (chosen < 0).all():  # other copies have the free rows
      return False
    self._resize(rows)
    self._state = self._decoder.insert(
      self._state, places.ravel(), self._requests(chosen.ravel()),
      Picked(*picked.reshape(3, -1)), *self._block, self._eos)
    return True

  def _read_block(self, queue: list[int]) -> None:
    """Reads the next inputs."""
    copies = len(self._assigned)
    rows, width = input_blocks.shape(queue, self._lengths, self._sizes.read, copies)
    for copy in range(copies):
      self._read[copy] = input_blocks.take(
        queue, self._lengths, rows, width, -(-len(queue) // (copies - copy)))
      for number, one in enumerate(self._read[copy]):
        self._picked[one.question] = number
    self._block = None  # or two would be kept at once
    self._block = self._decoder.prefill_inputs(self._prefix, Block(*(
      np.concatenate(parts) for parts in zip(
        *(input_blocks.block(taken, self._inputs, rows, width) for taken in self._read),
        strict=True))))

  def run(self, waiting: int) -> dict[int, Continuation]:
    """Runs passes until rows are free for those who wait, or the batch can be made smaller ->
    {question: output} of those that ended."""
    busy, rows = (self._assigned >= 0).sum(axis=1).max(), self._assigned.shape[1]
    waiting += max(map(len, self._read))
    if waiting:
      until = rows - rows_awaited(rows, waiting)
    else:
      rows = min(level for level in self._levels if level >= busy)
      until = max((level for level in self._levels if level < busy), default=0)
    self._resize(rows)
    self._state = self._decoder.generate(
      self._prefix, self._eos, self._pieces, self._state,
      np.full(self._decoder.copies, until, np.int32))
    # To the host at once: slicing on the device would compile once per length. Copied, because the
    # next call may write over what a CPU shows.
    done, filled, outputs = jax.tree.map(
      np.array, (self._state.done, self._state.filled, self._state.outputs))
    self._filled = filled.reshape(self._assigned.shape)
    ended = {}
    for row in np.flatnonzero(done & (self._assigned.ravel() >= 0)):
      ended[int(self._assigned.flat[row])] = Continuation(
        outputs.tokens[row, :outputs.lengths[row]].copy(), int(outputs.passes[row]))
      self._assigned.flat[row] = -1
    return ended

  def _requests(self, indices: np.ndarray) -> Requests:
    """The questions of these indices, -1 for none."""
    nothing = Question(np.zeros(0, np.int32), 0)
    chosen = [self._questions[i] if i >= 0 else nothing for i in indices]
    return Requests(
      speculation.stacked([source_of(question) for question in chosen], self._sizes.places),
      np.asarray([len(question.tokens) for question in chosen], np.int32),
      np.asarray([question.limit for question in chosen], np.int32))

  def _resize(self, rows: int) -> None:
    """Gives the batch `rows` rows, and slots for a pass of each of them.

    Slots that are no longer needed are given up.
    """
    needed = int(self._filled[self._assigned >= 0].max(initial=0)) + self._decoder.guesses + 1
    slots, spare = self._slots, self._rounded_slots(needed * 5 // 4)
    if needed > slots:
      slots = self._rounded_slots(needed)
    elif spare < slots or rows < self._assigned.shape[1]:
      # With some to spare, so that it need not grow again at once: each size is a compilation, and
      # fewer rows are one anyway.
      slots = spare
    if (slots, rows) == (self._slots, self._assigned.shape[1]):
      return
    # Rows with a question first.
    chosen = np.argsort(self._assigned < 0, axis=1, kind='stable')[:, :rows].astype(np.int32)
    self._state = self._decoder.resize(slots)(self._state, chosen.ravel())
    if rows < self._assigned.shape[1]:
      self._assigned, self._filled = (
        np.take_along_axis(x, chosen, axis=1) for x in (self._assigned, self._filled))
    self._slots = slots

  def _rounded_slots(self, needed: int) -> int:
    """`needed` slots, rounded up to a power of two so that few sizes are compiled, at most all."""
    return min(self._sizes.slots, max(FEWEST, 2 ** (needed - 1).bit_length()))
