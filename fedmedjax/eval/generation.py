"""Greedy outputs of a language model for a site's test examples."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedmedjax.data.pack import round_up
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.model.convert import BaseModel
from fedmedjax.model.decode import Cache, decoder, prefiller
from fedmedjax.model.draft import END
from fedmedjax.model.llama import Llama
from fedmedjax.model.sharding import SITE
from fedmedjax.types import InputError, Program

# Inputs are padded to a multiple of this many tokens: one compilation each.
_INPUT_BUCKET = 32
# Every sentence may grow by this many tokens, whatever its length.
_SPARE_TOKENS = 32


class Generator(NamedTuple):
  """How test sentences are decoded: compiled once per (batch, bucket)."""

  model: Llama
  tokenizer: Any
  batch_size: int
  max_new_ratio: float
  guesses: int  # with an adapter: tokens checked in a pass beside the one it makes
  full: bool = False  # all batches have batch_size rows: one shape for any number of sentences
  mesh: Mesh | None = None  # that the base lies on, if it does


class Continuation(NamedTuple):
  """What was generated for one example."""

  tokens: np.ndarray  # i32[n], without the closing end token
  passes: int         # of the model, that it took


def generate(
  generator: Generator,
  adapter: dict,
  base: dict,
  part: TaskData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
  """The texts of `continuations`."""
  # No clean-up: it would join what the text keeps apart, such as ' .' and ' ,'.
  return [
    generator.tokenizer.decode(one.tokens, clean_up_tokenization_spaces=False)
    for one in continuations(generator, adapter, base, part, advance)]


def continuations(
  generator: Generator,
  adapter: dict,
  base: dict,
  part: TaskData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[Continuation]:
  """Greedy outputs for the test examples of a site's task, in their order.

  Args:
    generator: see above.
    adapter: the `lora` collection; {} is the base model alone.
    base: the `params` collection.
    part: its `test_tokens` are decoded.
    advance: called with the number of examples done since the last call.
  """
  prompts = [example.tokens[:example.prompt_length] for example in part.test_tokens]
  if not prompts:
    return []
  # Like lengths together, longest first: they finish together, and the first batch is the
  # slowest, so the time left is never underestimated by much.
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  outputs: dict[int, Continuation] = {}
  eos = jnp.asarray([generator.tokenizer.eos_token_id], jnp.int32)
  shared = prefiller(generator.model)(adapter, base, part.instruction[:-1])
  pieces = piece_tokens(generator.tokenizer, part.ask.pieces)
  # Most guesses of a model that was never taught to copy are wrong, and cost more than they save.
  guesses = generator.guesses if adapter else 0
  size = _rows(generator, len(order))
  for start in range(0, len(order), size):
    chosen = order[start:start + size]
    width = round_up(len(prompts[chosen[0]]), _INPUT_BUCKET)
    greedy = decoder(
      generator.model, most_new_tokens(width, generator.max_new_ratio), guesses, generator.mesh)
    tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
    for row, index in enumerate(chosen):
      lengths[row] = len(prompts[index])
      tokens[row, :lengths[row]] = prompts[index]
    limits = np.asarray(
      [most_new_tokens(length, generator.max_new_ratio) for length in lengths], np.int32)
    # To the host at once: slicing on the device would compile once per length.
    out = jax.device_get(greedy(
      adapter, base, shared, jnp.int32(len(part.instruction) - 1), tokens, lengths, limits, eos,
      pieces))
    for row, index in enumerate(chosen):
      outputs[index] = Continuation(out.tokens[row, :out.lengths[row]], int(out.passes[row]))
    advance(len(chosen))
  return [outputs[index] for index in range(len(prompts))]


def _rows(generator: Generator, count: int) -> int:
  """Equal batches: 40 sentences at 32 a batch are two of 20, not 32 and a mostly empty one.

  Every copy of the base has as many rows.
  """
  size = generator.batch_size
  size = size if generator.full else -(-count // -(-count // size))
  return round_up(size, _copies(generator))


def _copies(generator: Generator) -> int:
  """Of the base, each of which continues rows of its own."""
  return generator.mesh.shape[SITE] if generator.mesh else 1


def largest_call(
  generator: Generator, base: dict, adapter: dict, sites: Sequence[SiteData]
) -> Program:
  """The batch of `generate` over the sites' test examples that has most keys and values.

  Args:
    generator, base: see `generate`.
    adapter: the `lora` collection, arrays or their shapes.
    sites: at least one example is tested there.
  """
  model = generator.model
  config = model.config

  def batch(part: TaskData) -> tuple[int, int, int]:
    width = round_up(max(example.prompt_length for example in part.test_tokens), _INPUT_BUCKET)
    return _rows(generator, len(part.test_tokens)), width, most_new_tokens(
      width, generator.max_new_ratio)

  def slots(part: TaskData) -> int:
    rows, width, new = batch(part)
    return len(part.instruction) - 1 + rows * (width + new + generator.guesses)

  part = max((p for site in sites for p in site.tasks if p.test_tokens), key=slots)
  rows, width, new = batch(part)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)

  length = len(part.instruction) - 1
  keys = array(model.dtype, config.num_layers, config.num_kv_heads, length, config.head_dim)
  i32 = partial(array, jnp.int32)
  # A layer's keys and values, stacked, and once more as the loop that writes them holds them.
  a_slot = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
  return Program(
    decoder(model, new, generator.guesses, generator.mesh),
    (adapter, base, Cache(keys, keys) if length else None, i32(), i32(rows, width), i32(rows),
     i32(rows), i32(1), i32(*piece_tokens(generator.tokenizer, part.ask.pieces).shape)),
    a_slot * jnp.dtype(model.dtype).itemsize * rows // _copies(generator)
    * (width + new + generator.guesses))


def piece_tokens(tokenizer: Any, pieces: Sequence[str]) -> np.ndarray:
  """i32[H]: the tokens of each piece, behind a word and behind a blank, each closed by END."""
  out = []
  for piece in pieces:
    for before in ('a', 'a '):
      # What the piece's tokens are depends on what stands before it.
      alone, whole = (
        tokenizer(text, add_special_tokens=False)['input_ids'] for text in (before, before + piece))
      shared = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
      out += [*whole[shared:], END]
  return np.asarray(out or [END], np.int32)


def most_new_tokens(prompt_length: int, max_new_ratio: float) -> int:
  """The most tokens that a sentence's output may have."""
  return int(max_new_ratio * prompt_length) + _SPARE_TOKENS


def check_context(
  base: BaseModel, sites: Iterable[SiteData], max_length: int, max_new_ratio: float
) -> None:
  """Raises InputError when training or decoding would run past the model's context."""
  context = base.config.max_position_embeddings
  for site in sites:
    for part in site.tasks:
      prompt = max((example.prompt_length for example in part.test_tokens), default=0)
      needed = len(part.instruction) + max(
        max_length if part.train else 0, prompt + most_new_tokens(prompt, max_new_ratio))
      if needed > context:
        raise InputError(
          f'site {site.name!r} needs up to {needed} positions, the model has {context}: lower '
          f'config.data.max_length={max_length} or config.eval.max_new_ratio={max_new_ratio}')
