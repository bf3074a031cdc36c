"""Which compiled calls answer a site's test sentences, and how often, before any is answered."""

from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.data.pack import round_up
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.eval import generation
from fedmedjax.eval.generation import Generator
from fedmedjax.model import batch_sizes, batching, input_blocks
from fedmedjax.model.decode import begin
from fedmedjax.model.prefill import Block, Cache, Prefix
from fedmedjax.types import Program

# Share of guesses that a model makes, too, once it has learnt to copy: of 64 real sentences 2 gave
# 2.5 tokens a pass and 3 gave 3.2 (docs/log.md).
_RIGHT = 0.85
# Instructions of like length are counted as one of a multiple of so many tokens.
_BUCKET = 64


def answer_calls(
  generator: Generator, base: dict, adapter: dict, site: SiteData
) -> list[tuple[Program, int]]:
  """(call, how often) of all calls that answer a site's test examples; none is made.

  With an adapter an answer is supposed to be as long as the right one, without one as long as it
  may be. Questions about entities that the model itself will find are not among them.

  Args:
    generator, base, site: see `evaluate.answer`.
    adapter: the `lora` collection, arrays or their shapes; {} is the base model alone.
  """
  calls = []
  for part in site.tasks:
    if part.test_tokens:
      calls += _task_calls(generator, base, adapter, part)
  return calls


def _task_calls(
  generator: Generator, base: dict, adapter: dict, part: TaskData
) -> list[tuple[Program, int]]:
  decoder, model = generation.decoder_of(generator, adapter), generator.model
  questions = generation.questions(generator, part)
  sizes, array = batching.largest(decoder, questions, generator.batch_size), jax.ShapeDtypeStruct
  kept = sum(_RIGHT**place for place in range(decoder.guesses + 1))
  answers = [
    min(question.limit, len(example.tokens) - example.prompt_length) if adapter else question.limit
    for question, example in zip(questions, part.test_tokens, strict=True)]
  passes = [max(1, round(answer / kept)) for answer in answers]
  # Copies of the program share the questions, long and short ones alike.
  own = sorted(range(len(questions)), key=lambda i: len(questions[i].tokens))[::decoder.copies]
  runs = batch_passes(
    [len(questions[i].tokens) for i in own], [passes[i] for i in own],
    -(-generator.batch_size // decoder.copies))
  config, length = model.config, round_up(len(part.instruction) - 1, _BUCKET)
  keys = array((config.num_layers, config.num_kv_heads, length, config.head_dim), model.dtype)
  prefix = Prefix(
    adapter, base, Cache(keys, keys) if length else None, array((), jnp.int32))
  pieces = generation.piece_tokens(generator.tokenizer, part.ask.pieces)
  calls = [(Program(
    decoder.prefill, (adapter, base, array((length,), jnp.int32)), 0, 0), 1)] if length else []
  for (rows, width), times in runs.items():
    if width:
      total = rows * decoder.copies
      tokens = array((total, width), jnp.int32)
      block = Block(tokens, tokens, tokens, array((total * input_blocks.MOST,), jnp.int32))
      calls.append((Program(decoder.prefill_inputs, (prefix, block), 0, 0), times))
    else:
      state = jax.eval_shape(lambda rows=rows: begin(
        model, rows * decoder.copies, sizes.places, sizes.most, sizes.slots))
      calls.append((Program(decoder.generate, (
        prefix, array((1,), jnp.int32), array(pieces.shape, jnp.int32), state,
        array((decoder.copies,), jnp.int32)), 0, 0), times))
  return calls


def batch_passes(widths: Sequence[int], passes: Sequence[int], rows: int) -> Counter:
  """{(rows, width of the inputs that are read, or 0 for a pass): times} of one batch.

  Rows are filled, and the batch made smaller, as `batching.decode` does it.

  Args:
    widths: tokens of each question.
    passes: passes that each answer takes.
    rows: most rows at once.
  """
  sizes = batching.levels(rows, len(widths))
  now, most = sizes[0], batch_sizes.read_rows(sizes[0])
  queue, read = sorted(range(len(widths)), key=lambda i: -widths[i]), []
  left, calls = np.zeros(0, int), Counter()
  while queue or read or left.size:
    while (queue or read) and left.size < now:
      if not read:
        shape = input_blocks.shape(queue, widths, most, 1)
        read = [one.question for one in input_blocks.take(queue, widths, *shape, len(queue))]
        calls[shape] += 1
      free = now - left.size
      left = np.append(left, [passes[i] for i in read[:free]])
      read = read[free:]
    waiting = len(queue) + len(read)
    if waiting:
      until = now - batch_sizes.rows_awaited(now, waiting)
    else:
      now = min(size for size in sizes if size >= left.size)
      until = max((size for size in sizes if size < left.size), default=0)
    taken = int(np.sort(left)[left.size - until - 1])
    calls[now, 0] += taken
    left = left[left > taken] - taken
  return calls
