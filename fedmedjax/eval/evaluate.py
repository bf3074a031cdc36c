"""Decodes a site's test sentences and scores answers against its annotation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.data import tasks
from fedmedjax.data.pack import round_up
from fedmedjax.data.site import SiteData
from fedmedjax.eval import metrics
from fedmedjax.model.decode import decoder, prefiller
from fedmedjax.model.llama import Llama
from fedmedjax.types import Example, Span

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


def generate(
  generator: Generator,
  adapter: dict,
  base: dict,
  site: SiteData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
  """Greedy outputs for a site's test sentences, in their order.

  Args:
    generator: see above.
    adapter: the `lora` collection; {} is the base model alone.
    base: the `params` collection.
    site: its `test_tokens` are decoded.
    advance: called with the number of sentences done since the last call.
  """
  prompts = [example.tokens[:example.prompt_length] for example in site.test_tokens]
  # Like lengths together, longest first: they finish together, and the first batch is the
  # slowest, so the time left is never underestimated by much.
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  outputs: list[str] = [''] * len(prompts)
  eos = jnp.asarray([generator.tokenizer.eos_token_id], jnp.int32)
  shared = prefiller(generator.model)(adapter, base, site.instruction[:-1])
  # Equal batches: 40 sentences at 32 a batch are two of 20, not 32 and a mostly empty one.
  size = -(-len(order) // -(-len(order) // generator.batch_size))
  for start in range(0, len(order), size):
    chosen = order[start:start + size]
    width = round_up(len(prompts[chosen[0]]), _INPUT_BUCKET)
    greedy = decoder(generator.model, most_new_tokens(width, generator.max_new_ratio))
    tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
    for row, index in enumerate(chosen):
      lengths[row] = len(prompts[index])
      tokens[row, :lengths[row]] = prompts[index]
    limits = np.asarray(
      [most_new_tokens(length, generator.max_new_ratio) for length in lengths], np.int32)
    # To the host at once: slicing on the device would compile once per length.
    out, counts = jax.device_get(greedy(
      adapter, base, shared, jnp.int32(len(site.instruction) - 1), tokens, lengths, limits, eos))
    for row, index in enumerate(chosen):
      # No clean-up: it would join what the text keeps apart, such as ' .' and ' ,'.
      outputs[index] = generator.tokenizer.decode(
        out[row, :counts[row]], clean_up_tokenization_spaces=False)
    advance(len(chosen))
  return outputs


def most_new_tokens(prompt_length: int, max_new_ratio: float) -> int:
  """The most tokens that a sentence's output may have."""
  return int(max_new_ratio * prompt_length) + _SPARE_TOKENS


def predictions(
  examples: Sequence[Example], types: Sequence[str], outputs: Sequence[str]
) -> list[dict]:
  """One record an example, as `predictions/SITE.jsonl` holds them.

  Offsets of `predicted`, `gold` and `main` are into the document; `model_input` follows the
  instruction. `main`, the main entity [start, end, type], makes a record one of task 're'; without
  it the task is 'ner'.

  Args:
    examples: of either task.
    types: the types asked for: entity types, or those of modifiers.
    outputs: what was generated for each.
  """
  records = []
  for example, output in zip(examples, outputs, strict=True):
    parsed = tasks.parse(output, example.text, types)
    record = {
      'document': example.document, 'sentence_start': example.start,
      'task': 'ner' if example.main is None else 're',
      'model_input': tasks.render(example)[0], 'generated': output,
      'predicted': [_in_document(span, example) for span in parsed.spans],
      'gold': [_in_document(span, example) for span in example.entities],
      'parse_failed': parsed.failed, 'copied': parsed.copied,
    }
    main = {} if example.main is None else {'main': _in_document(example.main, example)}
    records.append(record | main)
  return records


def _in_document(span: Span, example: Example) -> list:
  return [span.start + example.start, span.end + example.start, span.type]


def by_task(task: str, scores: dict) -> dict:
  """Scores as summary.json holds them, {'ner': scores} or {'re': {'modifier': scores}}.

  Relations have several scores: this one is of the modifiers, their main entity given.
  """
  return {task: {'modifier': scores} if task == 're' else scores}


class SiteScores(NamedTuple):
  """A site's scores in the shape of summary.json, and what they add up from."""

  scores: dict
  counts: np.ndarray     # i64[notes, 2, T + 1, 3], see eval/metrics.py
  copy_rate: float
  parse_failure_rate: float


def score(
  examples: Sequence[Example], types: Sequence[str], records: Sequence[dict], seed: int,
  samples: int,
) -> SiteScores:
  """Scores prediction records of one task of a site; intervals resample its notes.

  Args:
    examples: what was asked, for the texts.
    types: the types scored over: entity types, or those of modifiers.
    records: from `predictions`, in the order of `examples`, once for every adapter that
      answered; counts add up over adapters.
    seed, samples: of the bootstrap.
  """
  by_note: dict[str, np.ndarray] = {}
  repeated = tuple(examples) * (len(records) // len(examples))
  for example, record in zip(repeated, records, strict=True):
    gold, predicted = (
      [Span(start - example.start, end - example.start, kind) for start, end, kind in spans]
      for spans in (record['gold'], record['predicted']))
    found = metrics.count(gold, predicted, example.text, types)
    by_note[example.document] = by_note.get(example.document, 0) + found
  counts = np.stack(list(by_note.values()))
  interval = metrics.bootstrap_f1(counts, seed, samples)
  return SiteScores(
    metrics.scores(counts.sum(axis=0), types, interval), counts,
    float(np.mean([record['copied'] for record in records])),
    float(np.mean([record['parse_failed'] for record in records])))
