"""A BERT token classifier as what a study trains: its notes, parts and predictions."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data.label_steps import encode_label_site, label_schedule
from fedmedjax.data.labels import label_names
from fedmedjax.data.schedule import Schedule, site_sizes
from fedmedjax.data.tasks import asked_types
from fedmedjax.eval import tagging
from fedmedjax.experiment import meshes
from fedmedjax.experiment.meshes import replicate
from fedmedjax.experiment.notes import Corpora, encode_sites
from fedmedjax.experiment.types import Data, DeviceShare, Trainable
from fedmedjax.fed.types import LossFn
from fedmedjax.model.bert import BertTagger, label_loss, split_frozen
from fedmedjax.model.files.bert import Bert, load_bert, save_bert
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError


def load_bert_data(
  config: ConfigDict, reporter: Reporter, _: BaseModel | None, read: Callable[[], Corpora]
) -> Data:
  """The notes of all sites, which `read` reads, and config.bert's classifier."""
  bert = config.bert
  if not bert.path:
    raise InputError(
      f"config.bert.path='': preset {config.fed.preset!r} needs a folder with config.json, "
      'model.safetensors and a tokenizer, such as Bio_ClinicalBERT converted to safetensors')
  with reporter.task('reading notes'):
    corpora = read()
  labels = label_names(asked_types(bert.task, corpora.sites))
  with reporter.task(f'loading {Path(bert.path).name}'):
    base = load_bert(bert.path, labels, config.seed)
  if bert.max_length > base.config.max_position_embeddings:
    raise InputError(
      f'config.bert.max_length={bert.max_length}: {bert.path} has '
      f'{base.config.max_position_embeddings} positions')
  encode = partial(
    encode_label_site, tokenizer=base.tokenizer, task=bert.task, labels=labels,
    max_length=bert.max_length)
  return encode_sites(base, encode, config, corpora, reporter)


def classifier_sizes(config: ConfigDict, data: Data) -> np.ndarray:
  """n_k of the sites that train a token classifier, f32[S]; tokens that count are words."""
  return site_sizes(data.sites, config.fed.weight_by, lambda example: len(example.places))


def bert_parts(
  config: ConfigDict, data: Data, sizes: np.ndarray, **plan
) -> tuple[Trainable, Schedule]:
  """The classifier, and the steps of all rounds."""
  bert = config.bert
  trainable = bert_trainable(
    data.base, max_length=bert.max_length, batch_size=config.eval.batch_size,
    mesh=meshes.mesh_of(config))
  schedule = label_schedule(
    data.sites, sizes, labels=data.base.labels, max_length=bert.max_length,
    server=data.server, **plan)
  return trainable, schedule


def bert_trainable(
  bert: Bert, *, max_length: int, batch_size: int, mesh: Mesh | None = None
) -> Trainable:
  """A BERT token classifier, all of it but the embeddings trained.

  Args:
    bert: the model as loaded.
    max_length: of a window, in tokens.
    batch_size: windows classified at once.
    mesh: of devices that the sites are spread over, if they are.
  """
  model = partial(BertTagger, bert.config, len(bert.labels))
  adapter, base = split_frozen(bert.params)
  base = replicate(mesh, base)
  _, held = meshes.own_part(mesh, base)
  tagger = tagging.Tagger(model(), bert.labels, max_length, batch_size)
  def loss_fn(remat: str) -> LossFn:
    return partial(label_loss, model(remat))

  return Trainable(
    loss_fn=loss_fn, adapter=adapter, base=base,
    whole_parameters=tree.size(bert.params), whole_bytes=tree.num_bytes(bert.params),
    # Its classifier is drawn at random: what it says before training means nothing.
    untrained=None,
    answer=partial(tagging.answer, tagger, held),
    answer_calls=partial(tagging.answer_calls, tagger, held),
    largest_answer=partial(tagging.largest_call, tagger, held), save=partial(save_bert, bert),
    folder='model', summary={'labels': list(bert.labels)},
    share=DeviceShare(loss_fn, adapter, base, tree.num_bytes(adapter)))
