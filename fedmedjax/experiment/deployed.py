"""A study whose sites are elsewhere: from a ConfigDict to what the server and a site compute with.

Both ends have a configuration of their own. What has to be equal in them makes the study's
identity, which every message carries.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import SiteData
from fedmedjax.data.tasks import TASKS, ask
from fedmedjax.experiment import communication, matmul, methods
from fedmedjax.experiment.build import LEARNERS, options
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.contracts import check_own_parts
from fedmedjax.experiment.execution import executions
from fedmedjax.experiment.lora import configured_lora, load_base
from fedmedjax.experiment.notes import Corpora, load_corpora
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.own_schema import study_schema
from fedmedjax.experiment.tagger import configured_tagger, word_tagger
from fedmedjax.experiment.types import Data, Options, Trainable
from fedmedjax.experiment.undeployed import check_deployable, objection
from fedmedjax.fed import apart, wire
from fedmedjax.fed.compression import float32
from fedmedjax.fed.gradient import over_groups
from fedmedjax.fed.participation import Sampler
from fedmedjax.fed.sites import SiteMap, map_sites
from fedmedjax.fed.types import Sharing, Validation
from fedmedjax.model.files.load import model_files, model_path
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import file_checksums
from fedmedjax.types import InputError

# Groups of keys, and keys, in which both ends have to agree. What is left is each end's own: where
# its notes and its model are, its hardware, what it scores.
_AGREED_GROUPS = ('fed', 'lora', 'optim', 'tagger')
_AGREED = (
  'seed', 'data.sites', 'data.site_tasks', 'data.tasks', 'data.style', 'data.chat',
  'data.max_length', 'data.shots', 'data.re_share')
_OWN = ('lora.start',)


class Agreed(NamedTuple):
  """What the server and its sites have in common."""

  identity: str
  names: tuple[str, ...]   # of the sites, in the order of their numbers
  parts: apart.Parts
  wire: wire.Wire
  seed: int
  judged: int              # most adapters that a site is sent at once to judge them


class SiteStudy(NamedTuple):
  """What one site computes with."""

  agreed: Agreed
  index: int                # its number
  data: Data                # only its own notes are in it
  size: float               # n_k
  trainable: Trainable
  # The sites of each round -> its own steps, and its validation notes or None
  planned: Callable[[Sequence[Sequence[int]]], tuple[Schedule, Validation | None]]
  # (what is kept of a step, schedule) -> the compiled half of a round, see `apart.site_half`
  half: Callable[..., Callable]
  loss: Callable            # (what is kept of a step, schedule) -> LossFn
  remats: tuple[str, ...]   # to be tried, from the fastest on
  groups: tuple[str, ...]   # the tasks of its validation notes
  answers: tuple[int, ...]  # how many validation examples each of them has
  round_examples: int       # at most in a round; 0 = not known before it


class ServerStudy(NamedTuple):
  """What the server computes with."""

  agreed: Agreed
  adapter: dict             # before the first round, [*p]
  trainable: Trainable      # to save and to describe the adapter; it has no base
  options: Options
  data: Data                # the sites by name, without any notes
  sampler: Callable[[np.ndarray], Sampler]  # of n_k f32[S]
  samples_by_size: bool
  asks_losses: bool         # on validation notes, to weigh the sites
  objection: Callable[..., str | None]  # see `undeployed.objection`
  spread: None = None       # as of a Study in a single process

  @property
  def sharing(self) -> Sharing:
    """Which leaves are trained and sent, as a simulated study has it."""
    return self.agreed.parts.sharing

  @property
  def site_map(self) -> Callable[[int], SiteMap]:
    """Each site computes alone."""
    return lambda chunk: map_sites(1)


def site_study(config: ConfigDict, name: str, reporter: Reporter) -> SiteStudy:
  """The study as site `name` of config.data.sites sees it: no other site's notes are read.

  Raises:
    InputError: no such site, notes or a model that cannot be read, or a study that can only be
      simulated.
  """
  values = _checked(config)
  names = tuple(config.data.sites)
  if name not in names:
    raise InputError(f'--site={name!r}: allowed are the names in config.data.sites, '
                     f'{", ".join(names)}')
  config = matmul.settled(config, reporter)
  own, index = own_parts(values), names.index(name)
  alone = _alone(config, name)
  learner = LEARNERS[config.fed.learner]
  corpora = load_corpora(alone, own)
  alone.data.tasks = _annotated(alone, corpora)
  given = _word_tagger(config) if config.fed.learner == 'tagger' else None
  data = learner.load(alone, reporter, given, lambda: corpora)
  mine, = data.sites
  absent = [SiteData(other, (), (), {}) for other in names]
  data = data._replace(sites=(*absent[:index], mine, *absent[index + 1:]))
  sizes = learner.sizes(alone, data)
  fed = config.fed

  def steps(cohorts: Sequence[Sequence[int]]) -> tuple[Trainable, Schedule]:
    if not any(index in cohort for cohort in cohorts):
      cohorts = [[index]]  # it only judges, and its arrays have to have some shape
    return learner.parts(
      alone, data, sizes, rounds=len(cohorts), local_steps=fed.local_steps,
      local_epochs=fed.local_epochs, round_steps=fed.round_steps, batch_size=fed.batch_size,
      micro_batch=fed.micro_batch, seed=config.seed, pooled=False, cohorts=cohorts, only=index)

  def planned(cohorts):
    _, schedule = steps(cohorts)
    arrays = schedules.validation_arrays(schedule)
    return schedule, arrays and Validation(*arrays)

  trainable, _ = steps([[index]])
  agreed = _agreed(config, values, trainable.adapter)

  def loss(remat: str, schedule: Schedule):
    return over_groups(trainable.loss_fn(remat), schedule.layout.groups)

  owing = communication.sender(fed, float32())
  encode = wire.encoder(agreed.wire, lambda update, outbound: owing.update(
    update, outbound, key=jax.random.key(0))[0])

  def half(remat: str, schedule: Schedule):
    return apart.site_half(
      loss(remat, schedule), agreed.parts, encode, schedule.layout.shape_buckets)

  judged = {part.ask.task: len(part.validation) for part in mine.tasks if part.validation}
  order = executions(1, config.model.remat, 1, jax.default_backend() == 'cpu')
  return SiteStudy(
    agreed, index, data, float(sizes[index]), trainable, planned, half, loss,
    tuple(one.remat for one in order), tuple(sorted(judged)),
    tuple(judged[task] for task in sorted(judged)), fed.local_steps * fed.batch_size)


def server_study(config: ConfigDict, reporter: Reporter) -> ServerStudy:
  """The study as the server sees it: no notes are read.

  Raises:
    InputError: a model that cannot be read, or a study that can only be simulated.
  """
  values = _checked(config)
  config = matmul.settled(config, reporter)
  if config.fed.learner == 'tagger':
    trainable = configured_tagger(config, Data(_word_tagger(config), (), (), ()))
  else:
    trainable = configured_lora(config, Data(load_base(config, reporter), (), (), ()))
  # The server trains nothing and answers nothing: it can do without the model's weights.
  trainable = trainable._replace(
    base={}, loss_fn=None, answer=None, answer_calls=None, largest_answer=None, forced=None,
    share=None)
  return ServerStudy(
    _agreed(config, values, trainable.adapter), trainable.adapter, trainable, options(config),
    Data(None, tuple(SiteData(name, (), (), {}) for name in config.data.sites), (), ()),
    partial(communication.site_sampler, config), values['fed.sampler'] == 'size',
    methods.needs_validation(values), partial(objection, values))


def model_digest(config: ConfigDict) -> str:
  """Of the files of the base model, which has to be the same at all sites."""
  if config.fed.learner == 'tagger':
    return 'tagger'
  sums = file_checksums(*model_files(model_path(config.model.path)))
  # Where the files lie and what else lies beside them makes no other model.
  weights = {name: value for name, value in sums.items()
             if name.endswith(('.gguf', '.safetensors')) or name == 'config.json'}
  return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]


def notes_digest(data: Data) -> str:
  """Of a site's examples; it does not leave the site."""
  content = hashlib.sha256()
  for site in data.sites:
    for part in site.tasks:
      for example in (*part.train, *part.validation):
        content.update(repr([np.asarray(value).tolist() for value in example]).encode())
  return content.hexdigest()[:32]


def _checked(config: ConfigDict) -> dict[str, Any]:
  """The flat configuration; raises InputError where it can only be simulated."""
  values = leaves(config.to_dict())
  check_deployable(values, own_parts(values))
  return values


def _alone(config: ConfigDict, name: str) -> ConfigDict:
  """The configuration of a study of this one site."""
  alone = config.copy_and_resolve_references()
  tasks = dict(zip(config.data.sites, config.data.site_tasks, strict=False))
  alone.data.update(
    sites=(name,), external=(), site_tasks=(tasks[name],) if name in tasks else ())
  return alone


def _annotated(config: ConfigDict, corpora: Corpora) -> tuple[str, ...]:
  """Those of config.data.tasks that the site's notes hold annotations of; all where none is.

  The others are for sites elsewhere.
  """
  corpus, = corpora.sites
  tasks = config.data.tasks
  return tuple(task for task in tasks if task not in TASKS or ask(
    task, corpus, config.data.style).types) or tasks


def _word_tagger(config: ConfigDict):
  """A tagger for all types of the study's schema, since nobody knows those of all sites."""
  return word_tagger(config, study_schema(config.data.schema, config.data.prompt).types)


def _agreed(config: ConfigDict, values: dict[str, Any], adapter: dict) -> Agreed:
  own = own_parts(values)
  parts, paths = methods.method(values, own), tree.paths(adapter)
  sharing, num_sites = methods.sharing(values, own, paths), methods.num_sites(values)
  check_own_parts(
    own, parts, sharing, adapter, num_sites, methods.cohort_size(values),
    methods.needs_validation(values))
  server_ctrl, _ = jax.eval_shape(parts.rule.init, adapter)
  room = jax.tree.leaves(parts.aggregator.fold(adapter))
  width = next(leaf.shape[-1] for path, leaf in zip(
    tree.paths(parts.aggregator.fold(adapter)), room, strict=True) if path.endswith('/a')) if (
      room) else 0
  return Agreed(
    identity(values, study_schema(config.data.schema, config.data.prompt)),
    tuple(config.data.sites),
    apart.Parts(
      methods.local_optimizer(values), parts.rule, sharing, methods.ranks(values),
      communication.sender(config.fed), parts.aggregator, parts.server_optimizer,
      config.fed.explosion, num_sites),
    wire.Wire(
      adapter, sharing, communication.codec(config.fed), tuple(config.fed.ranks),
      parts.rule.control_travels and bool(jax.tree.leaves(server_ctrl)),
      width // max(1, config.fed.rounds)),
    config.seed,
    # Each site's, and one that is made of all.
    num_sites + 2 if methods.needs_validation(values) or 'fed.aggregator' in own else 0)


def identity(values: dict[str, Any], schema) -> str:
  """Hexadecimal digits that are equal at both ends when what has to agree does."""
  own = own_parts(values)
  harmless = {*methods.harmless_keys(values, own), *_OWN}
  agreed = {
    key: value for key, value in values.items()
    if (key.split('.')[0] in _AGREED_GROUPS or key in _AGREED) and key not in harmless}
  agreed['own parts'] = sorted((key, part.checksum) for key, part in own.items())
  agreed['schema'] = [schema.text, schema.words]
  words = json.dumps(agreed, sort_keys=True, default=str)
  return hashlib.sha256(words.encode()).hexdigest()[:32]
