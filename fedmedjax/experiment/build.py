"""From a ConfigDict to a study that is ready to run; below this module arguments are plain."""

from functools import partial

import jax
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import communication, meshes
from fedmedjax.experiment.bert import bert_parts, load_bert_data
from fedmedjax.experiment.execution import Execution, executions, sites_at_once
from fedmedjax.experiment.lora import load_lora_data, lora_parts
from fedmedjax.experiment.methods import adds_aggregate, algorithm_parts, needs_validation
from fedmedjax.experiment.types import Data, Options, Study, TrainableKind
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
  'lora': TrainableKind(load_lora_data, lora_parts),
  'bert': TrainableKind(load_bert_data, bert_parts)}


def prepare(config: ConfigDict, data: Data, on_step=None) -> Study:
  """Plans the rounds and composes the algorithm; nothing is compiled yet.

  Where config.fed.chunk or config.model.remat is left to the planner, `algorithm` is the fastest of
  the executions; see `memory.py`.

  Raises InputError when the method needs a validation set and no site has a note for it.
  """
  fed = config.fed
  trainable, schedule = LEARNERS[fed.learner].parts(
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
    trainable = trainable._replace(rate_key='config.optim.sgd_learning_rate')
  sharing = SHARINGS[fed.sharing](tree.paths(trainable.adapter))
  layout = meshes.round_layout(config)
  parts = algorithm_parts(config, trainable.learning_rate) | dict(
    gradient=mean_gradient, sharing=sharing, outbound=communication.outbound(fed),
    num_sites=len(schedule.weights), explosion=fed.explosion, place=layout.place,
    on_step=on_step if config.log.steps else None)

  site_map = partial(
    fitted_map, schedule.steps_taken, vmap=layout.vmap, groups=layout.groups)

  def algorithm_with(execution: Execution) -> FederatedAlgorithm:
    alone = sites_at_once(execution, plan.sampler.size) == 1
    return federated_algorithm(
      loss_fn=trainable.loss_fn(execution.remat), map_sites=site_map(execution.chunk),
      shape_buckets=schedule.layout.shape_buckets if alone else (), **parts)

  plan = communication.plan_communication(config, schedule.weights, trainable.adapter, sharing)
  order = executions(
    fed.chunk, config.model.remat, plan.sampler.size, jax.default_backend() == 'cpu',
    layout.groups)
  return Study(
    data, options(config), trainable, sharing, schedule, plan,
    validation and Validation(*validation), algorithm_with(order[0]), parts['optimizer'], order,
    site_map, algorithm_with, layout.groups)
