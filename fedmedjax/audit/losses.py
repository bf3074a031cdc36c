"""The loss of every single example by a run's model, in nats per supervised token."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data import pack, step_order
from fedmedjax.data.chat import make_encoder
from fedmedjax.data.hashed_words import FEATURES, encode_words
from fedmedjax.data.label_steps import label_batch
from fedmedjax.data.labels import LabelExample, allowed_labels
from fedmedjax.data.site import SPLIT_SEED, TaskData
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.experiment import meshes
from fedmedjax.experiment.lora import lora_config
from fedmedjax.experiment.types import Data
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.model.label_loss import row_nats
from fedmedjax.model.llama import Llama
from fedmedjax.model.loss import packed_attention, packed_nats
from fedmedjax.model.sharding import fetch_on, head_parts, stream_on
from fedmedjax.model.tagger import word_logits
from fedmedjax.types import Example

# Words of a batch of a tagger's windows are padded to a multiple of this.
_WIDTH = 16


class Group(NamedTuple):
  """Token sequences of one task at one site."""

  part: TaskData
  tokens: tuple[TokenExample | LabelExample, ...]  # n


class Reader(NamedTuple):
  """How examples become token sequences, and these losses."""

  # (task at a site, examples) -> the token sequences of each; none of one that is never trained on
  encode: Callable[[TaskData, Sequence[Example]], list[tuple]]
  # (groups, adapters [*p], advance) -> for each adapter a list of the groups' losses f64[n]
  losses: Callable[[Sequence[Group], Sequence[Any], Callable[[int], None]], list[list[np.ndarray]]]


def lora_reader(config: ConfigDict, data: Data) -> Reader:
  """Of a language model: the loss of what the run supervised (config.fed.loss_on), without that of
  the instruction, which is the same for all examples."""
  encoder, base = make_encoder(data.base.tokenizer, config.data.chat), data.base
  dtype = DTYPES[config.model.dtype]
  mesh, held = meshes.own_part(meshes.mesh_of(config), base.params)
  attention = partial(
    packed_attention, attend=ATTENTIONS[config.model.attention](base.config, dtype, mesh))
  model = Llama(
    base.config, attention, lora_scale=lora_config(config).scale, dtype=dtype,
    fetch=fetch_on(mesh), stream=stream_on(mesh))
  nats = jax.jit(partial(
    packed_nats, model, head_parts=head_parts(mesh, base.config.vocab_size)))

  def encode(part: TaskData, examples: Sequence[Example]) -> list[tuple]:
    return [(one,) if len(one.tokens) <= config.data.max_length else ()
            for one in encoder.encode(part.ask, part.instruction, examples)]

  return Reader(encode, partial(
    _packed_losses, nats, held, config.fed.loss_on, config.eval.batch_size))


def _packed_losses(
  nats: Callable, base: dict, loss_on: str, batch_size: int, groups: Sequence[Group],
  adapters: Sequence[Any], advance: Callable[[int], None],
) -> list[list[np.ndarray]]:
  """`Reader.losses` of a language model; all passes have one shape."""
  passes = [
    (number, members) for number, group in enumerate(groups) if group.tokens
    for members in step_order.one_pass(group.tokens, batch_size, SPLIT_SEED)]
  steps = [[groups[number].tokens[i] for i in members] for number, members in passes]
  shape = pack.plan_shape(
    steps, max(len(groups[number].part.instruction) for number, _ in passes) - 1, loss_on)
  found = [[np.zeros(len(group.tokens)) for group in groups] for _ in adapters]
  for (number, members), examples in zip(passes, steps, strict=True):
    batch = pack.pack(groups[number].part.instruction, examples, shape, loss_on)
    counts = [pack.supervised(example, loss_on) for example in examples]
    # Targets stand in the order in which rows are filled.
    order = [one for row in pack.fit_rows(
      [len(example.tokens) for example in examples], shape.width) for one in row]
    owner = np.repeat(order, [counts[one] for one in order])
    for losses, adapter in zip(found, adapters, strict=True):
      values = np.asarray(nats(adapter, base, batch), np.float64)[:len(owner)]
      losses[number][members] = np.bincount(owner, values, len(examples)) / counts
    advance(len(members))
  return found


def tagger_reader(config: ConfigDict, data: Data) -> Reader:
  """Of a word tagger: the loss of the labels of a window."""
  base = data.base
  shapes = base.config._replace(lora_scale=config.lora.alpha / config.lora.rank)
  rows = jax.jit(lambda adapter, base, batch: row_nats(
    word_logits(shapes, adapter, base, batch), batch))

  def encode(part: TaskData, examples: Sequence[Example]) -> list[tuple]:
    return encode_words(
      examples, base.labels, base.config.buckets, config.tagger.max_length)[0]

  return Reader(encode, partial(
    _window_losses, rows, base.params, base.labels, config.eval.batch_size))


def _window_losses(
  rows: Callable, base: dict, labels: Sequence[str], batch_size: int, groups: Sequence[Group],
  adapters: Sequence[Any], advance: Callable[[int], None],
) -> list[list[np.ndarray]]:
  """`Reader.losses` of a tagger; like lengths are computed together."""
  found = [[np.zeros(len(group.tokens)) for group in groups] for _ in adapters]
  for number, (part, windows) in enumerate(groups):
    allowed = allowed_labels(labels, part.ask.types)
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].tokens), reverse=True)
    for start in range(0, len(order), batch_size):
      members = order[start:start + batch_size]
      width = pack.round_up(len(windows[members[0]].tokens), _WIDTH)
      batch = label_batch(
        [windows[i] for i in members], batch_size, width, allowed, len(FEATURES))
      counts = np.maximum([len(windows[i].labels) for i in members], 1)
      for losses, adapter in zip(found, adapters, strict=True):
        values = np.asarray(rows(adapter, base, batch), np.float64)[:len(members)]
        losses[number][members] = values / counts
      advance(len(members))
  return found


READERS = {'lora': lora_reader, 'tagger': tagger_reader}
