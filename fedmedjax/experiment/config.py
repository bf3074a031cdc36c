"""What every key of a configuration may hold; every mistake is a one-line InputError."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.data import partition, text_task
from fedmedjax.data.pack import LOSS_ON
from fedmedjax.data.tasks import STYLES
from fedmedjax.experiment import privacy_checks, text_scores
from fedmedjax.experiment.checks import (
  BELOW_ONE,
  BOOLEAN,
  EXPLOSION,
  NOT_NEGATIVE,
  POSITIVE,
  TEXT,
  Check,
  integer,
  names,
  number,
  one_of,
)
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.execution import AUTO_CHUNK, AUTO_REMAT
from fedmedjax.experiment.folders import check_folders
from fedmedjax.experiment.matmul import AUTO, FORMS, check_matmul
from fedmedjax.experiment.methods import needs_validation, num_sites
from fedmedjax.experiment.own_parts import OwnPart, is_own, own_parts
from fedmedjax.experiment.own_schema import checked_schema
from fedmedjax.experiment.partitions import PARTITION, check_partition
from fedmedjax.experiment.privacy_refusals import check_privacy
from fedmedjax.experiment.refusals import check_method
from fedmedjax.experiment.stored import check_stored
from fedmedjax.fed.aggregators import AGGREGATORS, SIGNALS
from fedmedjax.fed.compression import CODECS
from fedmedjax.fed.contribution import CONTRIBUTIONS
from fedmedjax.fed.participation import SAMPLERS
from fedmedjax.fed.rules import RULES
from fedmedjax.fed.server import SERVER_OPTIMIZERS
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.model.llama import REMAT
from fedmedjax.model.quant import QUANTIZATIONS
from fedmedjax.store import trackers
from fedmedjax.types import InputError

# build.py maps these names to values and imports too much for here; a test holds both together.
LEARNERS = ('lora', 'bert', 'tagger')
TASK_SETS = (('ner',), ('re',), ('ner', 're'), ('text',))

def one_of_or_own(names: Iterable[str]) -> Check:
  """A name of a table, or a part of the user's own."""
  names = tuple(names)
  return Check(lambda v: v in names or is_own(v),
               f'one of {", ".join(names)}, or FILE.py:FUNCTION,')


CHECKS = {
  'seed': integer(0, 2**32 - 1),
  'model.path': TEXT, 'model.dtype': one_of(tuple(DTYPES)),
  'model.remat': one_of((AUTO_REMAT, *REMAT)),
  'model.attention': one_of(tuple(ATTENTIONS)), 'model.matmul': one_of((AUTO, *FORMS)),
  'model.quantization': one_of(tuple(QUANTIZATIONS)),
  'mesh.site': Check(lambda v: type(v) is int and (v == -1 or v >= 1), 'an integer >= 1, or -1'),
  'mesh.fsdp': integer(1), 'mesh.tensor': integer(1),
  'lora.rank': integer(1, 10_000), 'lora.alpha': POSITIVE, 'lora.targets': names(1),
  'lora.start': TEXT,
  'bert.path': TEXT, 'bert.task': one_of(('ner', 're')), 'bert.max_length': integer(16),
  'bert.learning_rate': POSITIVE,
  'tagger.width': integer(1, 65_536), 'tagger.buckets': integer(1, 2**24),
  'tagger.max_length': integer(1, 65_536),
  'data.folders': Check(
    lambda v: isinstance(v, tuple) and all(isinstance(site, Mapping) for site in v),
    "a tuple of dict(name='st_mary', path='notes/st_mary', format='brat', mapping='schema')"),
  'data.seed': Check(
    lambda v: type(v) is int and -1 <= v < 2**32, f'an integer >= -1 and <= {2**32 - 1}'),
  'data.root': TEXT, 'data.schema': TEXT,
  'data.prompt': TEXT, 'data.sites': names(1), 'data.external': names(0),
  'data.tasks': Check(lambda v: v in TASK_SETS, "('ner',), ('re',), ('ner', 're') or ('text',)"),
  'data.site_tasks': Check(
    lambda v: isinstance(v, tuple) and all(n in ('ner', 're', 'ner+re') for n in v),
    "a tuple of 'ner', 're' and 'ner+re', or ()"),
  'data.re_share': BELOW_ONE, 'data.style': one_of(tuple(STYLES)),
  'data.chat': BOOLEAN, 'data.shots': integer(0),
  'data.synthetic_notes': integer(0, 100_000), 'data.max_train_notes': integer(0),
  'data.max_train_sentences': integer(0),
  'data.max_length': integer(8),
  'data.partition.kind': one_of_or_own(('', *partition.KINDS)), **PARTITION,
  'data.validation_share': number(lambda v: 0 < v < 1, 'a number between 0 and 1'),
  'data.validation_examples': integer(0), 'data.server_validation': TEXT,
  'fed.preset': Check(
    lambda v: v in PRESETS or isinstance(v, str) and bool(re.fullmatch(r'own:[\w-]+', v)),
    f'one of {", ".join(PRESETS)}, or own:NAME of a row of your own,'),
  'fed.rounds': integer(1, 100_000),
  'fed.local_epochs': integer(1, 10_000), 'fed.local_steps': integer(0, 100_000),
  'fed.round_steps': integer(0, 10_000_000),
  'fed.batch_size': integer(1), 'fed.micro_batch': integer(0),
  'fed.chunk': integer(AUTO_CHUNK), 'fed.shapes': integer(1), 'fed.memory_gib': NOT_NEGATIVE,
  'fed.weight_by': one_of(('examples', 'tokens')), 'fed.size_power': NOT_NEGATIVE,
  'fed.loss_power': NOT_NEGATIVE, 'fed.temperature': POSITIVE, 'fed.loss_on': one_of(LOSS_ON),
  'fed.sharing': one_of_or_own(SHARINGS), 'fed.pooled': BOOLEAN, 'fed.train': BOOLEAN,
  'fed.learner': one_of(LEARNERS), 'fed.heads': integer(0, 1024),
  'fed.floor': BELOW_ONE, 'fed.ema': BELOW_ONE,
  'fed.signal': one_of(tuple(SIGNALS)), 'fed.aggregator': one_of_or_own(AGGREGATORS),
  'fed.clusters': integer(1), 'fed.local_rank': integer(0, 10_000),
  'fed.residual_rank': integer(0), 'fed.fair_penalty': POSITIVE,
  'fed.trim': number(lambda v: 0 <= v < 0.5, 'a number in [0, 0.5)'),
  'fed.alignment': number(lambda v: 0 <= v <= 1, 'a number in [0, 1]'),
  'fed.fairness': NOT_NEGATIVE, 'fed.lipschitz': NOT_NEGATIVE, 'fed.mixture_rate': NOT_NEGATIVE,
  'fed.faulty': integer(0), 'fed.kept': integer(1), 'fed.norm_limit': POSITIVE,
  'fed.ranks': Check(
    lambda v: isinstance(v, tuple) and all(type(r) is int and r >= 1 for r in v),
    'a tuple of integers >= 1, or ()'),
  'fed.rule': one_of_or_own(RULES), 'fed.rule_strength': NOT_NEGATIVE,
  'fed.local_optimizer': one_of(('adamw', 'sgd')),
  'fed.server_optimizer': one_of_or_own(SERVER_OPTIMIZERS),
  'fed.server_learning_rate': POSITIVE, 'fed.server_momentum': BELOW_ONE,
  'fed.server_b2': BELOW_ONE, 'fed.server_tau': POSITIVE,
  'fed.cohort_size': integer(0), 'fed.buffer': integer(0), 'fed.sampler': one_of(tuple(SAMPLERS)),
  'fed.clip_update': NOT_NEGATIVE, 'fed.outbound': one_of(tuple(CODECS)), 'fed.block': integer(0),
  'fed.top_k': number(lambda v: 0 < v <= 1, 'a number in (0, 1]'), 'fed.error_feedback': BOOLEAN,
  'fed.secure_aggregation': BOOLEAN,
  'fed.contribution': one_of(('none', *CONTRIBUTIONS)),
  'fed.contribution_samples': integer(2, 100_000),
  'fed.explosion': EXPLOSION, 'fed.max_bad_rounds': integer(1),
  'simulation.step_seconds': NOT_NEGATIVE, 'simulation.speed_spread': NOT_NEGATIVE,
  'simulation.bandwidth': NOT_NEGATIVE, 'simulation.bandwidth_spread': NOT_NEGATIVE,
  'simulation.failure': BELOW_ONE, 'simulation.deadline': NOT_NEGATIVE,
  'optim.sgd_learning_rate': POSITIVE,
  'optim.learning_rate': POSITIVE, 'optim.b1': BELOW_ONE, 'optim.b2': BELOW_ONE,
  'optim.eps': POSITIVE, 'optim.weight_decay': NOT_NEGATIVE,
  'optim.clip_norm': NOT_NEGATIVE, 'optim.warmup_share': BELOW_ONE, **privacy_checks.CHECKS,
  'eval.zero_shot': BOOLEAN, 'eval.max_zero_shot': integer(0), 'eval.max_examples': integer(0),
  'eval.max_external': integer(0), 'eval.batch_size': integer(1),
  'eval.max_new_ratio': number(lambda v: 0 < v <= 1000, 'a number in (0, 1000]'),
  'eval.bootstrap_samples': integer(1, 100_000),
  'eval.guesses': integer(0, 100), 'eval.cross_site': BOOLEAN,
  'eval.teacher_forced': BOOLEAN, 'eval.every': integer(0), **text_scores.CHECKS,
  'api.shots': integer(0), 'api.concurrency': integer(1, 1000), 'api.max_attempts': integer(1),
  'api.timeout': POSITIVE, 'api.price_input': NOT_NEGATIVE, 'api.price_output': NOT_NEGATIVE,
  'api.cache': TEXT,
  'log.steps': BOOLEAN, 'log.trackers': Check(
    lambda v: isinstance(v, tuple) and all(name in trackers.NAMES for name in v)
    and len(set(v)) == len(v), f'a tuple of different ones of {", ".join(trackers.NAMES)}'),
  'report.examples': integer(-1), 'report.ablation': BOOLEAN,
  'store.text': BOOLEAN,
  'checkpoint.keep': integer(1), 'checkpoint.keep_best': integer(0),
}


def leaves(settings: dict, prefix: str = '') -> dict[str, Any]:
  """Nested settings as {'fed.rounds': 3, ...}."""
  out = {}
  for key, value in settings.items():
    if isinstance(value, dict):
      out |= leaves(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def validate(config: ConfigDict, given: Mapping[str, OwnPart] | None = None) -> None:
  """Raises InputError for the first key whose value is not allowed.

  `given` are the user's own parts that were given in Python, by key.
  """
  values = leaves(config.to_dict())
  for key in sorted(set(values) ^ set(CHECKS)):
    raise InputError(f'config.{key}: {"unknown key" if key in values else "missing key"}')
  for key, check in CHECKS.items():
    if not check.allows(values[key]):
      raise InputError(f'config.{key}={values[key]!r}: {check.wording} is allowed')
  check_folders(values['data.folders'], checked_schema(values).types)
  both = set(values['data.sites']) & set(values['data.external'])
  if both:
    raise InputError(
      f'config.data.external={sorted(both)[0]!r}: a site that trains is no external cohort')
  _check_server(values)
  if needs_validation(values) and not values['data.validation_examples']:
    raise InputError(
      f"config.data.validation_examples=0: preset {values['fed.preset']!r} weighs sites by their "
      'validation loss; allow at least 1')
  if values['fed.contribution'] != 'none' and not values['data.validation_examples']:
    raise InputError(
      f"config.data.validation_examples=0: config.fed.contribution={values['fed.contribution']!r} "
      'is judged by validation loss; allow at least 1')
  if values['checkpoint.keep_best'] and (
      not needs_validation(values) or values['fed.signal'] not in ('loss', 'answer')):
    raise InputError(
      f"config.checkpoint.keep_best={values['checkpoint.keep_best']}: the best checkpoint is that "
      f"of least validation loss, which preset {values['fed.preset']!r} does not compute; use 0")
  check_stored(values)
  check_matmul(values)
  _check_learner(values)
  check_partition(values)
  _check_tasks(values)
  text_scores.check_metrics(values)
  _check_participation(values)
  own = own_parts(values, given)
  check_method(values, own)
  check_privacy(values, own)


def _check_learner(values: dict[str, Any]) -> None:
  """What a token classifier cannot do, be it a BERT or a tagger."""
  learner = values['fed.learner']
  if learner == 'lora':
    return
  if not values['fed.train']:
    raise InputError(
      f'config.fed.train=False: an untrained classifier (config.fed.learner={learner!r}) has no '
      'answers; use True')
  if values['data.tasks'] == (text_task.TEXT,):
    raise InputError(
      f"config.data.tasks=('text',): config.fed.learner={learner!r} labels words and writes no "
      "text; use 'lora'")
  if learner == 'bert' and values['fed.loss_on'] != 'completion':
    raise InputError(
      f"config.fed.loss_on={values['fed.loss_on']!r}: a classifier has no prompt to learn; use "
      "'completion'")
  for key in ('mesh.fsdp', 'mesh.tensor'):
    if values[key] != 1:
      raise InputError(
        f'config.{key}={values[key]}: a classifier is not split, its sites are spread only; use 1')
  if learner == 'tagger' and values['data.tasks'] != ('ner',):
    raise InputError(
      f"config.data.tasks={values['data.tasks']!r}: config.fed.learner='tagger' labels entities "
      "only; use ('ner',)")
  if learner == 'tagger' and values['lora.start']:
    raise InputError(
      f"config.lora.start={values['lora.start']!r}: config.fed.learner='tagger' starts from a "
      "fresh adapter; use ''")


def _check_server(values: dict[str, Any]) -> None:
  name = values['data.server_validation']
  for key, use in (('data.sites', 'trains'), ('data.external', 'is tested')):
    if name in values[key]:
      raise InputError(
        f"config.data.server_validation={name!r}: a site that {use} (config.{key}) does not hold "
        "the server's validation set, too; name another one, or '' for V from the sites")
  if name and not values['data.validation_examples']:
    raise InputError(
      'config.data.validation_examples=0: leaves nothing of '
      f'config.data.server_validation={name!r}; allow at least 1')


def _check_tasks(values: dict[str, Any]) -> None:
  tasks, own = values['data.tasks'], values['data.site_tasks']
  if values['data.re_share'] and len(tasks) < 2:
    raise InputError(
      f"config.data.re_share={values['data.re_share']}: config.data.tasks={tasks!r} has nothing to "
      "mix; use 0, or ('ner', 're')")
  if own and len(own) != len(values['data.sites']):
    raise InputError(
      f"config.data.site_tasks={own!r}: {len(values['data.sites'])} entries are allowed, one a "
      'site of config.data.sites, or ()')
  if own and values['data.partition.kind']:
    raise InputError(
      f"config.data.site_tasks={own!r}: the notes of config.data.sites are dealt out "
      f"(config.data.partition.kind={values['data.partition.kind']!r}); () is allowed")
  if own and tasks == (text_task.TEXT,):
    raise InputError(f"config.data.site_tasks={own!r}: config.data.tasks=('text',) is the task of "
                     'all sites; () is allowed')
  if values['eval.teacher_forced'] and (
      values['fed.learner'] != 'lora' or values['data.style'] != 'markup' or 'ner' not in tasks
      or values['data.chat']):
    raise InputError(
      f"config.eval.teacher_forced=True: entities that a LLaMA writes as markup are read only, not "
      f"config.fed.learner={values['fed.learner']!r} with config.data.tasks={tasks!r} in "
      f"config.data.style={values['data.style']!r} and config.data.chat={values['data.chat']!r}; "
      'use False')
  if values['data.chat'] and values['fed.learner'] != 'lora':
    raise InputError(
      f"config.data.chat=True: config.fed.learner={values['fed.learner']!r} writes no answers; "
      'use False')
  if values['data.shots'] and values['fed.learner'] != 'lora':
    raise InputError(
      f"config.data.shots={values['data.shots']}: config.fed.learner={values['fed.learner']!r} "
      'reads no prompt that could show examples; use 0')
  if values['data.shots'] and values['api.shots']:
    raise InputError(
      f"config.api.shots={values['api.shots']}: endpoints are shown the "
      f"{values['data.shots']} examples of config.data.shots already; one of the two has to be 0")
  foreign = {name for one in own for name in one.split('+')} - set(tasks)
  if foreign:
    raise InputError(
      f'config.data.site_tasks={own!r}: {sorted(foreign)[0]!r} is not in '
      f'config.data.tasks={tasks!r}')


def _check_participation(values: dict[str, Any]) -> None:
  if 0 < values['fed.round_steps'] < (values['fed.cohort_size'] or num_sites(values)):
    raise InputError(
      f"config.fed.round_steps={values['fed.round_steps']}: at least one step for each of the "
      f"{values['fed.cohort_size'] or num_sites(values)} sites of a round is allowed, or 0")
  if values['fed.cohort_size'] > num_sites(values):
    where = 'config.data.partition' if values['data.partition.kind'] else 'config.data.sites'
    raise InputError(
      f"config.fed.cohort_size={values['fed.cohort_size']}: there are {num_sites(values)} sites in "
      f'{where}; 0 is all of them')
  if values['fed.sampler'] == 'size' and values['fed.size_power'] != 1:
    raise InputError(
      f"config.fed.sampler='size': sites drawn by size are weighed to undo it, which is exact for "
      f"config.fed.size_power=1 only, not {values['fed.size_power']}; use 'uniform'")
  if values['simulation.deadline'] and not (
      values['simulation.step_seconds'] or values['simulation.bandwidth']):
    raise InputError(
      f"config.simulation.deadline={values['simulation.deadline']}: nothing takes time; set "
      'config.simulation.step_seconds or bandwidth')
