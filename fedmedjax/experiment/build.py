"""From a ConfigDict to a study that is ready to run; below this module arguments are plain."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.data.round_plan import planned_steps
from fedmedjax.data.site import SiteData
from fedmedjax.eval.text_metrics import TextMetrics
from fedmedjax.experiment import communication, meshes, methods, private_sites
from fedmedjax.experiment.bert import bert_parts, classifier_sizes, load_bert_data
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.contracts import check_own_parts
from fedmedjax.experiment.dual_adapters import with_local_adapter
from fedmedjax.experiment.execution import Execution, executions, sites_at_once
from fedmedjax.experiment.lora import load_lora_data, lora_parts, lora_sizes
from fedmedjax.experiment.methods import Own, Values
from fedmedjax.experiment.notes import load_corpora, watched_sites
from fedmedjax.experiment.own_parts import METRIC, OWN_KEYS, is_own, own_parts
from fedmedjax.experiment.privacy import make_ledger
from fedmedjax.experiment.private_training import gradient_maker, planning_units
from fedmedjax.experiment.reading import reading_of
from fedmedjax.experiment.refusals import check_method
from fedmedjax.experiment.tagger import load_tagger_data, tagger_parts
from fedmedjax.experiment.text_scores import known_to_all, text_metrics
from fedmedjax.experiment.types import Data, Options, Study, Trainable, TrainableKind
from fedmedjax.experiment.undeployed import check_one_process
from fedmedjax.fed.gradient import over_groups
from fedmedjax.fed.participation import Sampler
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import Spread
from fedmedjax.fed.slots import slots_needed
from fedmedjax.fed.types import LossFn, Validation
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError, SiteCorpus


def load_data(
  config: ConfigDict, reporter: Reporter, base: BaseModel | None = None, own: Own | None = None,
  given: Mapping[str, SiteCorpus] | None = None, processes: Processes = ALONE,
) -> Data:
  """Reads notes, then weights, then tokenises; notes first, since their mistakes show sooner.

  Args:
    config: validated.
    reporter: is told of each task.
    base: the language model of config.model, if it was loaded before.
    own: parts that were given in Python, by key; a partitioner may be among them.
    given: notes of sites of config.data.sites that were given in Python, by name.
    processes: of the run; each reads the notes of its own sites.
  """
  own = own_parts(leaves(config.to_dict()), own)
  data = LEARNERS[config.fed.learner].load(
    config, reporter, base, partial(
      load_corpora, config, own, given or {}, reading_of(config, processes)))
  return data._replace(given=tuple(given or ()))


def options(config: ConfigDict) -> Options:
  """What running needs to know beside the algorithm."""
  fed, values = config.fed, leaves(config.to_dict())
  return Options(
    fed.preset, [f'{key}={values[key]}' for key in OWN_KEYS
                 if key != METRIC and is_own(values[key])], config.seed,
    f'config.{methods.rate_key(values)}', fed.rounds if fed.train else 0,
    fed.pooled, config.eval.zero_shot, config.eval.max_zero_shot,
    config.eval.bootstrap_samples, config.checkpoint.keep,
    config.checkpoint.keep_best, fed.max_bad_rounds, methods.adds_aggregate(values),
    config.eval.cross_site, config.eval.teacher_forced, fed.size_power, int(fed.memory_gib * 2**30),
    config.eval.every if fed.train else 0, config.store.text, fed.signal if fed.loss_power else '',
    config.log.steps, config.log.trackers)


# Hyper-parameters that a round is given as arrays of its own, by key.
NO_NUMBERS: Values = {}

LEARNERS = {
  'lora': TrainableKind(load_lora_data, lora_sizes, lora_parts),
  'bert': TrainableKind(load_bert_data, classifier_sizes, bert_parts),
  'tagger': TrainableKind(load_tagger_data, classifier_sizes, tagger_parts)}


def prepare(
  config: ConfigDict, data: Data, on_step: Callable[..., None] | None = None,
  own: Own | None = None, judged_by: TextMetrics | None = None, secret: int | None = None,
) -> Study:
  """Plans the rounds and composes the algorithm; nothing is compiled yet.

  n_k, sampler, schedule and communication follow from each other in this order. Where the planner
  (`train/memory.py`) chooses chunk or remat, `algorithm` is the first of the executions.

  Args:
    config: validated.
    data: of `load_data`.
    on_step: host callback of every local step, see `local_training`.
    own: parts that were given in Python, by key.
    judged_by: metrics of texts that were tried before; None = those of the configuration.
    secret: that draws and noise of a private run are made of; None = of config.seed.

  Raises:
    InputError: the method needs V and no site has a note for it, or an own part is not usable.
  """
  fed, values = config.fed, leaves(config.to_dict())
  own, watched, here = own_parts(values, own), _watched(config, data), data.reading.here
  judged_by = judged_by or _text_metrics(values, own, data, watched)
  kind, parts = LEARNERS[fed.learner], methods.method(values, own)
  sizes, sampler, trainable, schedule = _planned(config, data, kind, values, secret)
  parts, private, effective = private_sites.with_noise(
    values, parts, sizes, schedule, trainable.adapter, secret)
  protected = private_sites.round_parts(values) | gradient_maker(private, schedule)
  layout = _layout(config, values)
  validation = _validation(
    config, private_sites.asked_one_by_one(values, schedule), layout.spread, here)
  trainable = trainable._replace(adapter=meshes.anywhere(layout.spread, trainable.adapter))
  sharing = methods.sharing(values, own, tree.paths(trainable.adapter))
  if own:
    check_method(values, own, tree.paths(trainable.adapter))
  check_own_parts(
    own, parts, sharing, trainable.adapter, len(schedule.weights),
    1 if fed.pooled else sampler.size, validation is not None)
  plan = communication.plan_communication(config, sampler, parts, trainable.adapter, sharing,
                                          methods.judges(values, parts, validation))
  step_loss = partial(_step_loss, trainable, schedule.layout.groups)
  site_map = partial(layout.site_map, schedule.steps_taken)

  def algorithm_with(execution: Execution, numbers: Values = NO_NUMBERS, runs: int = 1):
    alone = runs == 1 and sites_at_once(execution, plan.sampler.size) == 1
    chosen = values | dict(numbers)
    method = methods.method(chosen, own) if numbers else parts
    return federated_algorithm(
      step_loss(execution.remat), len(schedule.weights), rule=method.rule, sharing=sharing,
      optimizer=methods.local_optimizer(chosen), ranks=methods.ranks(chosen),
      compression=communication.sender(fed), aggregator=method.aggregator,
      anchors=methods.anchors(chosen), server_optimizer=method.server_optimizer,
      by_rows=layout.by_rows, map_sites=site_map(execution.chunk), place=layout.place,
      told=layout.told, contribution=methods.contribution(chosen),
      on_step=on_step if config.log.steps else None,
      shape_buckets=schedule.layout.shape_buckets if alone else (), **protected)

  order = executions(
    fed.chunk, config.model.remat, plan.sampler.size, jax.default_backend() == 'cpu',
    layout.groups)
  return Study(
    data, options(config), trainable, parts, sharing, schedule, plan,
    validation, algorithm_with(order[0]), methods.local_optimizer(values), order, site_map,
    algorithm_with, layout.groups, step_loss,
    partial(_with_micro_batch, config, data, on_step, own, judged_by, secret), own, watched,
    judged_by, layout.spread, _slot_width(layout, plan, schedule),
    make_ledger(values, private, schedule, parts, effective), secret)


def _slot_width(
  layout: meshes.RoundLayout, plan: communication.Communication, schedule: schedules.Schedule
) -> int:
  """Slots of each group of devices, 0 where these are of one process."""
  return 0 if layout.spread is None else slots_needed(
    [plan.sampler.draw(number).sites for number in range(len(schedule.plan))],
    len(schedule.weights), layout.groups)


def _planned(
  config: ConfigDict, data: Data, kind: TrainableKind, values: Values, secret: int | None
) -> tuple[np.ndarray, Sampler, Trainable, schedules.Schedule]:
  """n_k, who is drawn for the rounds, what is trained, and its steps."""
  fed = config.fed
  sizes = kind.sizes(config, data)
  sampler = communication.site_sampler(config, sizes, planned_steps(
    data.sites, fed.local_steps, fed.local_epochs, fed.batch_size))
  trainable, schedule = kind.parts(
    config, data, sizes, rounds=fed.rounds, local_steps=fed.local_steps,
    local_epochs=fed.local_epochs, round_steps=fed.round_steps, batch_size=fed.batch_size,
    micro_batch=fed.micro_batch, seed=config.seed, pooled=fed.pooled,
    cohorts=communication.cohorts(sampler, fed.rounds), **planning_units(values, secret))
  trainable = with_local_adapter(trainable, fed.local_rank, config.seed)
  return sizes, sampler, trainable, schedule


def _layout(config: ConfigDict, values: Values) -> meshes.RoundLayout:
  """By config.mesh; InputError for what is not laid over several processes."""
  layout = meshes.round_layout(config)
  if layout.spread is not None:
    check_one_process(values)
  return layout


def _text_metrics(
  values: Values, own: Own, data: Data, watched: tuple[SiteData, ...]
) -> TextMetrics:
  """What texts are judged by, tried on those of the sites that are here."""
  # While training, the first metric alone is computed, of held-out rows.
  sites = (*data.tested, *data.external, *(() if values['eval.metrics'] else watched))
  return known_to_all(
    data.reading.processes, text_metrics(values, own, [*filter(data.reading.here, sites)]))


def _validation(
  config: ConfigDict, schedule: schedules.Schedule, spread: Spread | None,
  here: Callable[[SiteData], bool],
) -> Validation | None:
  """V, whose steps each process has packed of its own sites; InputError where it is needed."""
  arrays, values = schedules.validation_arrays(schedule, here), leaves(config.to_dict())
  weighed = methods.needs_validation(values)
  if arrays is None and (weighed or values['fed.contribution'] != 'none'):
    raise InputError(
      f'config.data.validation_share={config.data.validation_share}: no site has a note to spare '
      + (f'for validation, and preset {config.fed.preset!r} weighs sites by their validation loss'
         if weighed else 'for validation, and config.fed.contribution asks for validation losses'))
  return arrays and Validation(meshes.summed(spread, arrays[0]), *arrays[1:])


def _watched(config: ConfigDict, data: Data) -> tuple[SiteData, ...]:
  """`Study.watched`; raises InputError where config.eval.every asks for some and there are none."""
  if not config.eval.every or not config.fed.train:
    return ()
  watched = watched_sites((*data.sites, *data.server))
  if not watched:
    raise InputError(
      f'config.eval.every={config.eval.every}: no site has a held-out sentence to answer while '
      f'training (config.data.validation_examples={config.data.validation_examples}, '
      f'validation_share={config.data.validation_share}); 0 = never')
  return watched


def _step_loss(trainable: Trainable, groups: int, remat: str) -> LossFn:
  """The loss of a step that comes in so many groups."""
  return over_groups(trainable.loss_fn(remat), groups)


def _with_micro_batch(
  config: ConfigDict, data: Data, on_step: Callable[..., None] | None, own: Own,
  judged_by: TextMetrics, secret: int | None, size: int,
) -> Study:
  """The study of `prepare` with so many examples at once, to see whether it fits into memory."""
  other = config.copy_and_resolve_references()
  other.fed.micro_batch = size
  return prepare(other, data, on_step, own, judged_by, secret)
