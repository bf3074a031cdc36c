"""Greedy outputs of a language model for a site's test examples."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedmedjax import tree
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import Ask
from fedmedjax.data.tokenize import Encoder, plain_encoder
from fedmedjax.eval.copies import piece_tokens, sources
from fedmedjax.model import batching
from fedmedjax.model.decode import begin
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.model.llama import Llama
from fedmedjax.model.prefill import Cache, Prefix
from fedmedjax.types import InputError, Program

# Every sentence may grow by this many tokens, whatever its length.
_SPARE_TOKENS = 32


class Generator(NamedTuple):
  """How test sentences are decoded."""

  model: Llama
  tokenizer: Any
  batch_size: int       # sentences decoded at once
  max_new_ratio: float  # new tokens allowed, in multiples of a sentence's tokens
  guesses: int  # with an adapter: tokens checked in a pass beside the one it makes
  mesh: Mesh | None = None  # devices that the base lies on; None = one device
  encoder: Encoder | None = None  # of the test sentences; None = `plain_encoder`


def generate(
  generator: Generator,
  adapter: dict,
  base: dict,
  part: TaskData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
  """The outputs of `continuations` as texts."""
  read = encoder_of(generator).read
  # No clean-up: it would remove blanks of the text, such as those of ' .' and ' ,'.
  return [
    read(generator.tokenizer.decode(output.tokens, clean_up_tokenization_spaces=False))
    for output in continuations(generator, adapter, base, part, advance)]


def continuations(
  generator: Generator,
  adapter: dict,
  base: dict,
  part: TaskData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[batching.Continuation]:
  """Greedy outputs for the test examples of a site's task, in their order.

  Args:
    generator: see above.
    adapter: the `lora` collection, leaves [L, *p]; {} is the base model alone.
    base: the `params` collection.
    part: the site's task, whose `test_tokens` are decoded.
    advance: called with the number of examples done since the last call.
  """
  return batching.decode(
    decoder_of(generator, adapter), adapter, base, part.instruction[:-1],
    questions(generator, part), eos=list(encoder_of(generator).ends),
    pieces=piece_tokens(generator.tokenizer, part.ask.pieces), rows=generator.batch_size,
    advance=advance)


def encoder_of(generator: Generator) -> Encoder:
  """How its sentences become tokens."""
  return generator.encoder or plain_encoder(generator.tokenizer)


def decoder_of(generator: Generator, adapter: dict) -> batching.Decoder:
  """The compiled functions for an adapter; without one nothing is guessed."""
  # Most guesses of a model that was never taught to copy are wrong, and cost more than they save.
  return batching.decoder(generator.model, generator.guesses if adapter else 0, generator.mesh)


def questions(generator: Generator, part: TaskData) -> list[batching.Question]:
  encoder = generator.encoder
  within = encoder.within(part.ask, part.instruction) if encoder else 0
  inputs = [example.tokens[:example.prompt_length] for example in part.test_tokens]
  return [
    batching.Question(
      tokens, most_new_tokens(within + len(tokens), generator.max_new_ratio), source)
    for tokens, source in zip(
      inputs, sources(generator.tokenizer, part.ask.pieces, inputs), strict=True)]


def largest_call(
  generator: Generator, base: dict, adapter: dict, sites: Sequence[SiteData]
) -> Program:
  """The largest compiled call of `generate` over the sites' test examples, to plan its memory by.

  It is that of the task with most keys and values.

  Args:
    generator, base: see `continuations`.
    adapter: the `lora` collection, arrays or their shapes.
    sites: at least one of them has a test example.
  """
  model, compiled = generator.model, decoder_of(generator, adapter)
  config = model.config

  def sizes(part: TaskData) -> batching.Sizes:
    return batching.largest(compiled, questions(generator, part), generator.batch_size)

  def slots(part: TaskData) -> int:
    batch = sizes(part)
    return len(part.instruction) + batch.rows * batch.slots

  part = max((p for site in sites for p in site.tasks if p.test_tokens), key=slots)
  batch = sizes(part)
  array = jax.ShapeDtypeStruct
  length = len(part.instruction) - 1
  keys = array(
    (config.num_layers, config.num_kv_heads, length, config.head_dim), model.dtype)
  state = jax.eval_shape(partial(
    begin, model, batch.rows * compiled.copies, batch.places, batch.most, batch.slots))
  own = tree.num_bytes(state) // compiled.copies
  read = array((*keys.shape[:2], batch.read * batch.width, keys.shape[-1]), keys.dtype)
  pieces = piece_tokens(generator.tokenizer, part.ask.pieces)
  return Program(
    compiled.generate,
    (Prefix(adapter, base, Cache(keys, keys) if length else None, array((), jnp.int32),
            array((), jnp.int32) if compiled.original else None),
     array((1,), jnp.int32), array(pieces.shape, jnp.int32), state,
     array((compiled.copies,), jnp.int32)),
    tree.num_bytes((adapter, keys, keys, read, read)) + own,
    # The old state, where it is resized. Reading inputs, a quarter of the rows at once, needs less.
    own)


def most_new_tokens(prompt_length: int, max_new_ratio: float) -> int:
  """The most tokens that the output may have to a sentence of `prompt_length` tokens."""
  return int(max_new_ratio * prompt_length) + _SPARE_TOKENS


def check_context(
  base: BaseModel, sites: Iterable[SiteData], max_length: int, max_new_ratio: float,
  within: Callable[[Ask, np.ndarray], int] = lambda ask, instruction: 0,
) -> None:
  """Raises InputError when training or decoding would need more positions than the model has.

  `within` is that of the sites' `Encoder`.
  """
  context = base.config.max_position_embeddings
  for site in sites:
    for part in site.tasks:
      prompt = max((example.prompt_length for example in part.test_tokens), default=0)
      decoding = prompt + most_new_tokens(
        within(part.ask, part.instruction) + prompt, max_new_ratio)
      needed = len(part.instruction) + (max(max_length, decoding) if part.train else decoding)
      if needed > context:
        shown = f'config.data.shots={len(part.shots)}, ' if part.shots else ''
        raise InputError(
          f'site {site.name!r} needs up to {needed} positions, the model has {context}: lower '
          f'{shown}config.data.max_length={max_length} or config.eval.max_new_ratio='
          f'{max_new_ratio}')
