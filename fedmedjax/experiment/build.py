"""From a ConfigDict to a study that is ready to run; below this module arguments are plain."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.data.formats.corpora import CORPORA, SiteFolder, load_corpus, load_folder, unleaked
from fedmedjax.data.label_steps import encode_label_site, label_schedule
from fedmedjax.data.labels import label_names
from fedmedjax.data.partition import asked_alike, partition
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import SiteData, encode_site
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort
from fedmedjax.data.tasks import asked_types
from fedmedjax.eval.generation import check_context
from fedmedjax.experiment import communication, meshes
from fedmedjax.experiment.execution import Arrangement, arrangements, sites_at_once
from fedmedjax.experiment.learners import Learner, bert_learner, lora_learner
from fedmedjax.experiment.methods import adds_aggregate, algorithm_parts, needs_validation
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.fed.sites import SiteMap, fitted_map
from fedmedjax.fed.types import FederatedAlgorithm, LocalOptimizer, Sharing, Validation
from fedmedjax.model.files.bert import Bert, load_bert
from fedmedjax.model.files.convert import BaseModel, Placement
from fedmedjax.model.files.load import load_model, model_path
from fedmedjax.model.lora import LoraConfig, check_lora
from fedmedjax.model.sharding import base_shardings
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError, SiteCorpus, Skew

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Data(NamedTuple):
  """The model and every site's tokenised notes: what all regimes with one learner share."""

  base: BaseModel | Bert
  sites: tuple[SiteData, ...]      # that train
  tested: tuple[SiteData, ...]     # in-domain: the same, or those whose notes were dealt out
  external: tuple[SiteData, ...]   # tested, too, and never trained on
  skew: Skew | None = None         # of the notes dealt out


class Options(NamedTuple):
  """What running needs to know beside the algorithm."""

  preset: str
  seed: int
  rounds: int            # 0 when nothing is trained
  pooled: bool
  zero_shot: bool
  bootstrap_samples: int
  keep: int              # newest checkpoints
  keep_best: int
  max_bad_rounds: int
  adds_aggregate: bool   # the server's step must be the aggregate itself
  cross_site: bool
  size_power: float      # of n_k, where sites' own leaves are averaged at the end
  memory: int            # bytes that a run may count on; 0 = what the device says


class Study(NamedTuple):
  """A run ready to start."""

  data: Data
  options: Options
  learner: Learner
  sharing: Sharing
  schedule: Schedule
  meeting: communication.Meeting
  validation: Validation | None
  algorithm: FederatedAlgorithm
  optimizer: LocalOptimizer
  arrangements: tuple[Arrangement, ...]  # that memory is planned with, fastest first
  site_map: Callable[[int], SiteMap]     # of a chunk
  arranged: Callable[[Arrangement], FederatedAlgorithm]
  groups: int                            # of devices, each with sites of its own


def data_root(path: str) -> Path:
  """config.data.root, else FEDMEDJAX_DATA, else ../shared/data."""
  return Path(path or os.environ.get('FEDMEDJAX_DATA') or '../shared/data')


class Corpora(NamedTuple):
  """The notes of a study."""

  sites: list[SiteCorpus]      # config.data.sites
  external: list[SiteCorpus]   # config.data.external
  parts: list[SiteCorpus]      # what the sites' training notes were dealt out to, if they were
  skew: Skew | None


def load_corpora(config: ConfigDict) -> Corpora:
  """Reads the notes of all sites, and deals them out if config.data.partition says so."""
  folders = {site['name']: site for site in config.data.folders}

  def load(key: str, name: str) -> SiteCorpus:
    if name in COHORTS:
      wanted = config.data.synthetic_notes if key == 'sites' else 0
      return generate_cohort(name, seed=config.seed, train_notes=wanted or None)
    if name in CORPORA:
      return load_corpus(name, data_root(config.data.root))
    if name in folders:
      # A site that never trains is tested on all of its notes, unless its entry says otherwise.
      share = {'test_share': 1.0} if key == 'external' else {}
      return load_folder(SiteFolder(**(share | folders[name])))
    raise InputError(
      f'config.data.{key}: unknown site {name!r}; allowed are '
      f'{", ".join((*COHORTS, *CORPORA, *folders))}')

  sites, external = (
    [load(key, name) for name in config.data[key]] for key in ('sites', 'external'))
  sites, chosen = unleaked(sites, external), config.data.partition
  parts, skew = partition(
    sites, chosen.kind, unit=chosen.unit, sites=chosen.sites, strength=chosen.strength,
    corrupted=chosen.corrupted, seed=config.seed) if chosen.kind else ([], None)
  return Corpora(asked_alike(sites) if parts else sites, external, parts, skew)


def load_data(config: ConfigDict, reporter: Reporter, base: BaseModel | None = None) -> Data:
  """Reads notes, then weights, then tokenises; notes first, since their mistakes show sooner.

  `base` is the language model of config.model, if it was loaded before.
  """
  return LEARNERS[config.fed.learner].load(config, reporter, base)


def _load_lora(config: ConfigDict, reporter: Reporter, base: BaseModel | None) -> Data:
  lora = lora_config(config)
  check_lora(lora)
  mesh = meshes.mesh_of(config)
  with reporter.task('reading notes'):
    corpora = load_corpora(config)
  if base is None:
    path = model_path(config.model.path)
    placement = Placement(
      DTYPES[config.model.dtype], config.model.quantization,
      mesh and partial(base_shardings, mesh))
    with reporter.task(f'loading {Path(path).name}'):
      base = load_model(path, placement)
  own = dict(zip(config.data.sites, config.data.site_tasks, strict=False))

  def encode(corpus: SiteCorpus, **split) -> SiteData:
    tasks = own[corpus.name].split('+') if corpus.name in own else config.data.tasks
    return encode_site(
      corpus, base.tokenizer, tasks=tasks, style=config.data.style,
      max_length=config.data.max_length, **split)

  data = _encoded(base, encode, config, corpora, reporter)
  _check_tasks(config.data.tasks, data.sites)
  check_context(
    base, {site.name: site for site in (*data.sites, *data.tested, *data.external)}.values(),
    config.data.max_length, config.eval.max_new_ratio)
  return data


def _load_bert(config: ConfigDict, reporter: Reporter, _: BaseModel | None) -> Data:
  bert = config.bert
  if not bert.path:
    raise InputError(
      f"config.bert.path='': preset {config.fed.preset!r} needs a folder with config.json, "
      'model.safetensors and a tokenizer, such as Bio_ClinicalBERT converted to safetensors')
  with reporter.task('reading notes'):
    corpora = load_corpora(config)
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
  return _encoded(base, encode, config, corpora, reporter)


def _encoded(
  base, encode: Callable[..., SiteData], config: ConfigDict, corpora: Corpora, reporter: Reporter
) -> Data:
  """Sites that train are tested, too, unless their notes were dealt out."""
  data, scored = config.data, config.eval
  training = partial(
    encode, max_test=scored.max_examples, max_train_notes=data.max_train_notes,
    max_train_sentences=data.max_train_sentences, seed=config.seed,
    validation_share=data.validation_share, validation_examples=data.validation_examples)
  with reporter.task('tokenising', sum(map(len, corpora[:3]))) as advance:

    def encoded(notes: list[SiteCorpus], how: Callable[..., SiteData]) -> tuple[SiteData, ...]:
      found = []
      for corpus in notes:
        found.append(how(corpus))
        advance()
      return tuple(found)

    parts = encoded(corpora.parts, partial(training, tests=False))
    sites = encoded(corpora.sites, partial(
      encode, trains=False, max_test=scored.max_examples) if parts else training)
    external = encoded(corpora.external, partial(
      encode, trains=False, max_test=scored.max_external or scored.max_examples))
  return Data(base, parts or sites, sites, external, corpora.skew)


def _check_tasks(tasks: Sequence[str], sites: Sequence[SiteData]) -> None:
  """Raises InputError when no site trains one of `tasks`."""
  for task in tasks:
    if not any(part.ask.task == task for site in sites for part in site.tasks):
      raise InputError(
        f'config.data.tasks={tuple(tasks)!r}: the notes of no site hold anything of {task!r}; '
        'leave it out')


def lora_config(config: ConfigDict) -> LoraConfig:
  return LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))


def options(config: ConfigDict) -> Options:
  fed = config.fed
  return Options(
    fed.preset, config.seed, fed.rounds if fed.train else 0, fed.pooled, config.eval.zero_shot,
    config.eval.bootstrap_samples, config.checkpoint.keep, config.checkpoint.keep_best,
    fed.max_bad_rounds, adds_aggregate(fed), config.eval.cross_site, fed.size_power,
    int(fed.memory_gib * 2**30))


def _lora_parts(config: ConfigDict, data: Data, **plan) -> tuple[Learner, Schedule]:
  learner = lora_learner(
    data.base, (*data.tested, *data.external), lora_config(config),
    start=config.lora.start, learning_rate=config.optim.learning_rate, seed=config.seed,
    dtype=DTYPES[config.model.dtype], batch_size=config.eval.batch_size,
    max_new_ratio=config.eval.max_new_ratio, guesses=config.eval.guesses,
    attention=config.model.attention, mesh=meshes.mesh_of(config))
  related = config.data.re_share
  schedule = schedules.make_schedule(
    data.sites, loss_on=config.fed.loss_on, shapes=config.fed.shapes,
    shares={'ner': 1 - related, 're': related} if related else None, **plan)
  return learner, schedule


def _bert_parts(config: ConfigDict, data: Data, **plan) -> tuple[Learner, Schedule]:
  bert = config.bert
  learner = bert_learner(
    data.base, learning_rate=bert.learning_rate, max_length=bert.max_length,
    batch_size=config.eval.batch_size, mesh=meshes.mesh_of(config))
  schedule = label_schedule(
    data.sites, labels=data.base.labels, max_length=bert.max_length, **plan)
  return learner, schedule


class LearnerKind(NamedTuple):
  """A value of config.fed.learner.

  load(config, reporter, base) -> Data; parts(config, data, **plan), where the plan's keywords are
  those that all learners share.
  """

  load: Callable[..., Data]
  parts: Callable[..., tuple[Learner, Schedule]]


LEARNERS = {
  'lora': LearnerKind(_load_lora, _lora_parts), 'bert': LearnerKind(_load_bert, _bert_parts)}


def prepare(config: ConfigDict, data: Data, on_step=None) -> Study:
  """Plans the rounds and composes the algorithm; nothing is compiled yet.

  Where config.fed.chunk or config.model.remat is left to the planner, `algorithm` is the fastest of
  the arrangements; see `memory.py`.

  Raises InputError when the method needs a validation set and no site has a note for it.
  """
  fed = config.fed
  learner, schedule = LEARNERS[fed.learner].parts(
    config, data, rounds=fed.rounds, local_steps=fed.local_steps, local_epochs=fed.local_epochs,
    batch_size=fed.batch_size, seed=config.seed, pooled=fed.pooled, weight_by=fed.weight_by,
    cohorts_of=partial(communication.cohorts, config))
  validation = schedules.validation_arrays(schedule)
  if validation is None and needs_validation(
      {'fed.loss_power': fed.loss_power, 'fed.signal': fed.signal}):
    raise InputError(
      f'config.data.validation_share={config.data.validation_share}: no site has a note to spare '
      f'for validation, and preset {fed.preset!r} weighs sites by their validation loss')
  if fed.local_optimizer == 'sgd':
    learner = learner._replace(rate_key='config.optim.sgd_learning_rate')
  sharing = SHARINGS[fed.sharing](tree.paths(learner.adapter))
  layout = meshes.round_layout(config)
  parts = algorithm_parts(config, learner.learning_rate) | dict(
    gradient=mean_gradient, sharing=sharing, outbound=communication.outbound(fed),
    num_sites=len(schedule.weights), explosion=fed.explosion, place=layout.place,
    on_step=on_step if config.log.steps else None)

  site_map = partial(
    fitted_map, schedule.steps_taken, vmap=layout.vmap, groups=layout.groups)

  def arranged(arrangement: Arrangement) -> FederatedAlgorithm:
    alone = sites_at_once(arrangement, meeting.sampler.size) == 1
    return federated_algorithm(
      loss_fn=learner.loss_fn(arrangement.remat), map_sites=site_map(arrangement.chunk),
      corners=schedule.layout.corners if alone else (), **parts)

  meeting = communication.meeting(config, schedule.weights, learner.adapter, sharing)
  order = arrangements(
    fed.chunk, config.model.remat, meeting.sampler.size, jax.default_backend() == 'cpu',
    layout.groups)
  return Study(
    data, options(config), learner, sharing, schedule, meeting,
    validation and Validation(*validation), arranged(order[0]), parts['optimizer'], order, site_map,
    arranged, layout.groups)
