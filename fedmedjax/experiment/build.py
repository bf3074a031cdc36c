"""From a ConfigDict to a study that is ready to run; below this module arguments are plain."""

from functools import partial

import jax
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import communication, meshes
from fedmedjax.experiment.bert import _bert_parts, _load_bert
from fedmedjax.experiment.execution import Arrangement, arrangements, sites_at_once
from fedmedjax.experiment.lora import _load_lora, _lora_parts
from fedmedjax.experiment.methods import adds_aggregate, algorithm_parts, needs_validation
from fedmedjax.experiment.types import Data, LearnerKind, Options, Study
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.fed.sites import fitted_map
from fedmedjax.fed.types import FederatedAlgorithm, Validation
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError


def load_data(config: ConfigDict, reporter: Reporter, base: BaseModel | None = None) -> Data:
  """Reads notes, then weights, then tokenises; notes first, since their mistakes show sooner.

  `base` is the language model of config.model, if it was loaded before.
  """
  return LEARNERS[config.fed.learner].load(config, reporter, base)


def options(config: ConfigDict) -> Options:
  fed = config.fed
  return Options(
    fed.preset, config.seed, fed.rounds if fed.train else 0, fed.pooled, config.eval.zero_shot,
    config.eval.bootstrap_samples, config.checkpoint.keep, config.checkpoint.keep_best,
    fed.max_bad_rounds, adds_aggregate(fed), config.eval.cross_site, fed.size_power,
    int(fed.memory_gib * 2**30))


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
