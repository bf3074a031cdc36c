"""Greedy outputs of a language model for a site's test examples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.data.pack import round_up
from fedmedjax.data.site import TaskData
from fedmedjax.model.decode import decoder, prefiller
from fedmedjax.model.draft import END
from fedmedjax.model.llama import Llama

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
  guesses: int  # tokens checked in a pass beside the one it makes, see `model/decode.py`
  full: bool = False  # all batches have batch_size rows: one shape for any number of sentences


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
  # Equal batches: 40 sentences at 32 a batch are two of 20, not 32 and a mostly empty one.
  size = generator.batch_size
  if not generator.full:
    size = -(-len(order) // -(-len(order) // size))
  for start in range(0, len(order), size):
    chosen = order[start:start + size]
    width = round_up(len(prompts[chosen[0]]), _INPUT_BUCKET)
    greedy = decoder(
      generator.model, most_new_tokens(width, generator.max_new_ratio), generator.guesses)
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
