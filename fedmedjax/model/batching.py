"""Greedy decoding of any number of examples: a row whose output has ended is given to the next one.

Continuous batching as in Yu et al., "Orca: A Distributed Serving System for Transformer-Based
Generative Models", OSDI 2022, in blocks: the device runs passes until a share of the rows is free,
then the host gives these to waiting examples. Where the time of a pass grows with its rows, the
batch is halved when no example is left for its free rows.

Letters as in `decode.py`: R rows, W tokens of an input, N of an output, M slots of a row's cache.
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
  DecodeState,
  Prefix,
  Requests,
  begin,
  generate,
  insert,
  prefill,
  prefill_inputs,
  resize,
)
from fedmedjax.model.llama import Llama
from fedmedjax.model.sharding import SITE

# Each shape costs a compilation: inputs are padded to a multiple of this many tokens, and what
# depends on the longest question is rounded up to a `_rung`.
INPUT_BUCKET = 32
# The least number of slots of the cache, for each row.
_FEWEST_SLOTS = 64
# Questions are put into rows once a quarter of the rows is free.
INSERTED_SHARE = 4
# How often the number of rows may be halved when no question is left for the free ones.
_HALVINGS = 2


class Decoder(NamedTuple):
  """The functions of `decode.py`, compiled for one model; see `decoder`.

  Shapes of their arguments are those of the functions; on a mesh R, K and `until` i32[copies] are
  those of all copies of the base together.
  """

  guesses: int
  copies: int               # of the base
  original: int             # `LlamaConfig.rope_original`
  prefill: Callable         # (adapter, base, prefix, reach)
  begin: Callable           # (rows, width, most, slots), static
  prefill_inputs: Callable  # (prefix, requests)
  insert: Callable          # (state, places, requests, first, inputs, eos); donates the old state
  generate: Callable        # (prefix, eos, pieces, state, until); donates the old state
  resize: Callable          # (slots) -> (state, chosen) -> state


# Cached, so that the second call finds the first one's compilations.
@cache
def decoder(model: Llama, guesses: int, mesh: Mesh | None = None) -> Decoder:
  """Compiles what decodes with a model.

  On a mesh, each of the mesh.shape['site'] copies of the base has as many rows as the others: all
  counts of rows are multiples of the copies, `places` i32[K] and `chosen` i32[K] are places among a
  copy's own rows, and `until` is i32[copies]. Within a copy kernels stay where they are and the
  compiler adds up what their parts give (`model` has no `fetch`): a pass has few tokens, so that is
  less to send than a layer.

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
    jitted(insert, (state, row, row, row, keys, same, state), donate_argnums=0),
    jitted(
      partial(generate, model, guesses), (same, same, same, state, row, state), donate_argnums=3),
    cache(lambda slots: jitted(partial(resize, slots), (state, row, state))))


def _placed(mesh: Mesh | None, specs: Any) -> Any:
  return mesh and jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class Question(NamedTuple):
  """The prompt of one example, and how much the model may write to it."""

  tokens: np.ndarray  # i32[W], W >= 1: the instruction's last, and the input
  limit: int          # the most tokens to generate


class Continuation(NamedTuple):
  """The model's output for one example."""

  tokens: np.ndarray  # i32[N], without the closing end token
  passes: int         # passes of the model that the output took


class Sizes(NamedTuple):
  """The sizes R, M, W and N of a batch: numbers of rows, slots and tokens."""

  rows: int   # R, of each copy of the base
  slots: int  # M, of the cache, for each row
  width: int  # W, tokens of an input
  most: int   # N, new tokens


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
  queue = deque(sorted(range(len(questions)), key=lambda i: -len(questions[i].tokens)))
  outputs: dict[int, Continuation] = {}
  while len(outputs) < len(questions):
    while batch.insert(queue):
      pass
    ended = batch.run(len(queue))
    outputs |= ended
    advance(len(ended))
  return [outputs[index] for index in range(len(questions))]


def largest(decoder: Decoder, questions: Sequence[Question], rows: int) -> Sizes:
  """The largest sizes that the batch of `decode` may grow to, such as its cache [L, KV, R, M, d].

  Args as those of `decode`; nothing is computed on the device.
  """
  longest = max(len(question.tokens) for question in questions)
  slots = max(len(question.tokens) + question.limit for question in questions)
  return Sizes(
    levels(-(-rows // decoder.copies), -(-len(questions) // decoder.copies))[0],
    _rung(max(_up(longest, INPUT_BUCKET), slots + decoder.guesses + 1)), _rung(longest),
    _rung(max(question.limit for question in questions)))


def _up(count: int, multiple: int) -> int:
  """`count`, rounded up to a multiple."""
  return -(-count // multiple) * multiple


def _rung(count: int) -> int:
  """The least of 64, 96, 128, 192, 256, 384, 512 ... that is not below `count`."""
  power = max(_FEWEST_SLOTS, 2 ** (count - 1).bit_length())
  return power * 3 // 4 if max(count, _FEWEST_SLOTS) <= power * 3 // 4 else power


def levels(rows: int, count: int) -> list[int]:
  """Numbers of rows, the largest first: what `count` questions begin with and are halved to.

  On an accelerator a pass costs what reading the weights costs: fewer rows are not faster.
  """
  halvings = _HALVINGS if jax.default_backend() == 'cpu' else 0
  levels = sorted({-(-rows // 2**n) for n in range(halvings + 1)})
  enough = next(place for place, level in enumerate(levels) if level >= min(rows, count))
  return levels[enough::-1]


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
    # There are never fewer rows than that, or questions would wait for ever.
    self._at_once = min(-(-rows // copies // INSERTED_SHARE), self._levels[-1])
    # [copies, rows]: each row's question, -1 = none, and how many slots of its cache are filled.
    self._assigned = np.full((copies, self._sizes.rows), -1)
    self._filled = np.zeros_like(self._assigned)
    self._slots = self._rounded_slots(0)
    self._state = decoder.begin(
      self._assigned.size, self._sizes.width, self._sizes.most, self._slots)

  def insert(self, queue: deque[int]) -> bool:
    """Gives free rows to the queue's next questions -> whether enough rows were free for it."""
    copies, rows = self._assigned.shape
    places = np.full((copies, self._at_once), rows, np.int32)
    chosen = np.full(places.shape, -1)
    for copy, assigned in enumerate(self._assigned):
      free, enough = np.flatnonzero(assigned < 0), min(self._at_once, len(queue))
      if enough and len(free) >= enough:
        places[copy, :enough] = free[:enough]
        chosen[copy, :enough] = [queue.popleft() for _ in range(enough)]
        assigned[free[:enough]] = chosen[copy, :enough]
        self._filled[copy, free[:enough]] = [
          len(self._questions[i].tokens) for i in chosen[copy, :enough]]
    if (chosen < 0).all():
      return False
    requests = self._requests(chosen.ravel())
    self._resize(requests.tokens.shape[1], rows)
    first, inputs = self._decoder.prefill_inputs(self._prefix, requests)
    self._state = self._decoder.insert(
      self._state, places.ravel(), requests, first, inputs, self._eos)
    return True

  def run(self, waiting: int) -> dict[int, Continuation]:
    """Runs passes until rows are free for those who wait, or the batch can be made smaller ->
    {question: output} of those that ended."""
    busy, rows = (self._assigned >= 0).sum(axis=1).max(), self._assigned.shape[1]
    if waiting:
      until = rows - min(self._at_once, waiting)
    else:
      rows = min(level for level in self._levels if level >= busy)
      until = max((level for level in self._levels if level < busy), default=0)
    self._resize(0, rows)
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
    width = _up(max(len(question.tokens) for question in chosen), INPUT_BUCKET)
    tokens = np.zeros((len(chosen), width), np.int32)
    for row, question in zip(tokens, chosen, strict=True):
      row[:len(question.tokens)] = question.tokens
    return Requests(
      tokens, np.asarray([len(question.tokens) for question in chosen], np.int32),
      np.asarray([question.limit for question in chosen], np.int32))

  def _resize(self, width: int, rows: int) -> None:
    """Gives the batch `rows` rows, and slots for inputs of `width` tokens and a pass of each row.

    Slots that are no longer needed are given up.
    """
    needed = max(
      width, int(self._filled[self._assigned >= 0].max(initial=0)) + self._decoder.guesses + 1)
    slots = self._slots
    if needed > slots:
      slots = self._rounded_slots(needed)
    elif self._rounded_slots(needed * 5 // 4) < slots:
      # With some to spare, so that it need not grow again at once.
      slots = self._rounded_slots(needed * 5 // 4)
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
    return min(self._sizes.slots, max(_FEWEST_SLOTS, 2 ** (needed - 1).bit_length()))
