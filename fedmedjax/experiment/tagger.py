"""A word tagger with LoRA as what a study trains: its notes, parts, predictions and adapter."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data.hashed_words import FEATURES, encode_word_site
from fedmedjax.data.label_steps import label_schedule
from fedmedjax.data.labels import label_names
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.tasks import asked_types
from fedmedjax.eval import tagging
from fedmedjax.experiment import meshes
from fedmedjax.experiment.heads import headed
from fedmedjax.experiment.meshes import replicate
from fedmedjax.experiment.notes import Corpora, encode_sites
from fedmedjax.experiment.types import Data, Trainable
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.model.tagger import (
  TaggerConfig,
  frozen_weights,
  init_adapter,
  word_logits,
  word_loss,
  working_bytes,
)
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import write_json
from fedmedjax.types import InputError


class WordTagger(NamedTuple):
  """A word tagger before training."""

  config: TaggerConfig
  labels: tuple[str, ...]  # names of its outputs
  params: dict             # what is frozen, see `tagger.frozen_weights`


def load_tagger_data(
  config: ConfigDict, reporter: Reporter, base: BaseModel | WordTagger | None,
  read: Callable[[], Corpora],
) -> Data:
  """The notes of all sites, which `read` reads, and config.tagger's network; it needs no file.

  `base` is a tagger whose labels are agreed already; otherwise they are those of the sites.
  """
  with reporter.task('reading notes'):
    corpora = read()
  if not isinstance(base, WordTagger):
    base = word_tagger(config, asked_types('ner', corpora.sites))
  encode = partial(
    encode_word_site, labels=base.labels, buckets=base.config.buckets,
    max_length=config.tagger.max_length)
  return encode_sites(base, encode, config, corpora, reporter)


def word_tagger(config: ConfigDict, types: Sequence[str]) -> WordTagger:
  """config.tagger's network for entities of these types, before training."""
  labels = label_names(types)
  shapes = TaggerConfig(
    len(labels), config.tagger.width, config.tagger.buckets, config.lora.alpha / config.lora.rank)
  return WordTagger(shapes, labels, frozen_weights(shapes))


def tagger_parts(
  config: ConfigDict, data: Data, sizes: np.ndarray, **plan
) -> tuple[Trainable, Schedule]:
  """The tagger with its adapter, and the steps of all rounds."""
  trainable = configured_tagger(config, data)
  schedule = label_schedule(
    data.sites, sizes, labels=data.base.labels, max_length=config.tagger.max_length,
    features=len(FEATURES), server=data.server, **plan)
  return trainable, schedule


def configured_tagger(config: ConfigDict, data: Data) -> Trainable:
  """The tagger of `data` with the adapter that config.lora describes."""
  return headed(tagger_trainable(
    data.base, rank=config.lora.rank, alpha=config.lora.alpha, seed=config.seed,
    max_length=config.tagger.max_length, batch_size=config.eval.batch_size,
    mesh=meshes.mesh_of(config)), config.fed.heads, config.seed)


def tagger_trainable(
  base: WordTagger, *, rank: int, alpha: float, seed: int, max_length: int, batch_size: int,
  mesh: Mesh | None = None,
) -> Trainable:
  """A word tagger, of which the LoRA adapter is trained.

  Args:
    base: before training.
    rank, alpha: of the adapter.
    seed: of the fresh adapter.
    max_length: of a window, in words.
    batch_size: windows labelled at once.
    mesh: of devices that the sites are spread over, if they are.
  """
  shapes = base.config._replace(lora_scale=alpha / rank)
  params = replicate(mesh, base.params)
  _, held = meshes.own_part(mesh, params)
  tagger = tagging.Tagger(
    shapes, base.labels, max_length, batch_size, len(FEATURES), word_logits,
    partial(working_bytes, features=len(FEATURES)))
  return Trainable(
    loss_fn=lambda remat: partial(word_loss, shapes),
    adapter=init_adapter(jax.random.key(seed), shapes, rank), base=params,
    whole_parameters=tree.size(params), whole_bytes=tree.num_bytes(params),
    # Its readout is drawn at random: what it says before training means nothing.
    untrained=None,
    answer=partial(tagging.answer, tagger, held),
    answer_calls=partial(tagging.answer_calls, tagger, held),
    largest_answer=partial(tagging.largest_call, tagger, held),
    save=partial(save_tagger, base._replace(config=shapes)), folder='adapter',
    summary={'labels': list(base.labels)})


def save_tagger(base: WordTagger, adapter: dict, folder: Path) -> None:
  """Writes an adapter: its factors by path, such as 'layers/hidden/a', and tagger.json.

  tagger.json has the tagger's shapes, labels and names of features, from which the frozen weights
  and the hash are made again; see docs/models.md.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tensors = dict(zip(tree.paths(adapter), map(np.asarray, jax.tree.leaves(adapter)), strict=True))
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  written: dict[str, Any] = base.config._asdict() | {
    'labels': list(base.labels), 'features': list(FEATURES)}
  write_json(folder / 'tagger.json', written)


def load_tagger(folder: Path, like: dict) -> dict:
  """The adapter that `save_tagger` wrote.

  Args:
    folder: its folder.
    like: a tree with the same leaves [1, *p], of any rank.

  Raises:
    InputError: there is none, or none of such a tagger.
  """
  path = folder / 'adapter_model.safetensors'
  try:
    tensors = safetensors.numpy.load_file(path)
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise InputError(f'{path}: no adapter can be read: {error}') from None
  if tensors.keys() != set(tree.paths(like)):
    raise InputError(f'{path}: is no adapter of this tagger')
  return jax.tree.unflatten(jax.tree.structure(like), [
    tensors[name] for name in tree.paths(like)])
