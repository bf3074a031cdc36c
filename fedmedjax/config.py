"""Command line and config file to a checked ConfigDict; every mistake is a one-line InputError."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.base import PRESETS, apply_preset
from fedmedjax.data import partition
from fedmedjax.data.pack import LOSS_ON
from fedmedjax.fed.rules import RULES
from fedmedjax.fed.server import SERVER_OPTIMIZERS
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.method import AGGREGATORS, SIGNALS, check_method, needs_validation, num_sites
from fedmedjax.model.llama import REMAT
from fedmedjax.model.quant import QUANTIZATIONS
from fedmedjax.types import InputError


class Check(NamedTuple):
  """What a key may hold: a test and its wording."""

  allows: Callable[[Any], bool]
  wording: str


def _integer(least: int) -> Check:
  return Check(lambda v: type(v) is int and v >= least, f'an integer >= {least}')


def _number(test: Callable[[float], bool], wording: str) -> Check:
  return Check(
    lambda v: type(v) in (int, float) and math.isfinite(v) and test(v), wording)


def _one_of(names) -> Check:
  return Check(lambda v: v in names, 'one of ' + ', '.join(names))


def _names(least: int) -> Check:
  return Check(
    lambda v: isinstance(v, tuple) and len(v) >= least and all(isinstance(n, str) for n in v)
    and len(set(v)) == len(v),
    f'a tuple of {"" if least else "zero or more "}different names')


_TEXT = Check(lambda v: isinstance(v, str), 'a text')
_BOOLEAN = Check(lambda v: isinstance(v, bool), 'True or False')
_POSITIVE = _number(lambda v: v > 0, 'a finite number > 0')
_NOT_NEGATIVE = _number(lambda v: v >= 0, 'a finite number >= 0')
# Of two updates neither is more than twice as long as their mean.
_EXPLOSION = _number(lambda v: v == 0 or v >= 2, 'a finite number >= 2, or 0')
_BELOW_ONE = _number(lambda v: 0 <= v < 1, 'a number in [0, 1)')
# experiment.py maps these names to values; a test holds both sides together.
DTYPES = ('float32', 'bfloat16')
LEARNERS = ('lora', 'bert')
BERT_TASKS = ('ner', 're')
# exchange.py does, of these.
SAMPLERS = ('uniform', 'size', 'poisson')
CODECS = ('float32', 'bfloat16', 'int8', 'int4', 'sign')

CHECKS = {
  'seed': _integer(0),
  'model.path': _TEXT, 'model.dtype': _one_of(DTYPES), 'model.remat': _one_of(tuple(REMAT)),
  'model.quantization': _one_of(tuple(QUANTIZATIONS)),
  'lora.rank': _integer(1), 'lora.alpha': _POSITIVE, 'lora.targets': _names(1),
  'bert.path': _TEXT, 'bert.task': _one_of(BERT_TASKS), 'bert.max_length': _integer(16),
  'bert.learning_rate': _POSITIVE,
  'data.root': _TEXT, 'data.sites': _names(1), 'data.external': _names(0),
  'data.synthetic_notes': _integer(0), 'data.max_train_notes': _integer(0),
  'data.max_length': _integer(8),
  'data.partition.kind': _one_of(('', *partition.KINDS)), 'data.partition.sites': _integer(1),
  'data.partition.unit': _one_of(tuple(partition.UNITS)), 'data.partition.strength': _POSITIVE,
  'data.partition.corrupted': _number(lambda v: 0 <= v <= 1, 'a number in [0, 1]'),
  'data.validation_share': _number(lambda v: 0 < v < 1, 'a number between 0 and 1'),
  'data.validation_examples': _integer(0),
  'fed.preset': _one_of(tuple(PRESETS)), 'fed.rounds': _integer(1),
  'fed.local_epochs': _integer(1), 'fed.local_steps': _integer(0),
  'fed.batch_size': _integer(1), 'fed.chunk': _integer(0),
  'fed.weight_by': _one_of(('examples', 'tokens')), 'fed.size_power': _NOT_NEGATIVE,
  'fed.loss_power': _NOT_NEGATIVE, 'fed.temperature': _POSITIVE, 'fed.loss_on': _one_of(LOSS_ON),
  'fed.sharing': _one_of(tuple(SHARINGS)), 'fed.pooled': _BOOLEAN, 'fed.train': _BOOLEAN,
  'fed.learner': _one_of(LEARNERS),
  'fed.floor': _BELOW_ONE, 'fed.ema': _BELOW_ONE,
  'fed.signal': _one_of(tuple(SIGNALS)), 'fed.aggregator': _one_of(AGGREGATORS),
  'fed.residual_rank': _integer(0), 'fed.fair_penalty': _POSITIVE,
  'fed.trim': _number(lambda v: 0 <= v < 0.5, 'a number in [0, 0.5)'),
  'fed.faulty': _integer(0), 'fed.kept': _integer(1), 'fed.norm_limit': _POSITIVE,
  'fed.ranks': Check(
    lambda v: isinstance(v, tuple) and all(type(r) is int and r >= 1 for r in v),
    'a tuple of integers >= 1, or ()'),
  'fed.rule': _one_of(tuple(RULES)), 'fed.rule_strength': _NOT_NEGATIVE,
  'fed.local_optimizer': _one_of(('adamw', 'sgd')),
  'fed.server_optimizer': _one_of(tuple(SERVER_OPTIMIZERS)),
  'fed.server_learning_rate': _POSITIVE, 'fed.server_momentum': _BELOW_ONE,
  'fed.server_b2': _BELOW_ONE, 'fed.server_tau': _POSITIVE,
  'fed.cohort_size': _integer(0), 'fed.sampler': _one_of(SAMPLERS),
  'fed.clip_update': _NOT_NEGATIVE, 'fed.outbound': _one_of(CODECS), 'fed.block': _integer(0),
  'fed.top_k': _number(lambda v: 0 < v <= 1, 'a number in (0, 1]'), 'fed.error_feedback': _BOOLEAN,
  'fed.explosion': _EXPLOSION, 'fed.max_bad_rounds': _integer(1),
  'fed.secure_aggregation': _BOOLEAN,
  'simulation.step_seconds': _NOT_NEGATIVE, 'simulation.speed_spread': _NOT_NEGATIVE,
  'simulation.bandwidth': _NOT_NEGATIVE, 'simulation.bandwidth_spread': _NOT_NEGATIVE,
  'simulation.failure': _BELOW_ONE, 'simulation.deadline': _NOT_NEGATIVE,
  'optim.sgd_learning_rate': _POSITIVE,
  'optim.learning_rate': _POSITIVE, 'optim.b1': _BELOW_ONE, 'optim.b2': _BELOW_ONE,
  'optim.eps': _POSITIVE, 'optim.weight_decay': _NOT_NEGATIVE,
  'optim.clip_norm': _NOT_NEGATIVE, 'optim.warmup_share': _BELOW_ONE,
  'eval.zero_shot': _BOOLEAN, 'eval.max_examples': _integer(0), 'eval.batch_size': _integer(1),
  'eval.max_new_ratio': _POSITIVE, 'eval.bootstrap_samples': _integer(1),
  'api.tasks': Check(lambda v: v in (('ner',), ('ner', 're')), "('ner',) or ('ner', 're')"),
  'api.shots': _integer(0), 'api.concurrency': _integer(1), 'api.max_attempts': _integer(1),
  'api.timeout': _POSITIVE, 'api.price_input': _NOT_NEGATIVE, 'api.price_output': _NOT_NEGATIVE,
  'api.cache': _TEXT,
  'log.steps': _BOOLEAN,
  'checkpoint.keep': _integer(1), 'checkpoint.keep_best': _integer(0),
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


def validate(config: ConfigDict) -> None:
  """Raises InputError for the first key whose value is not allowed."""
  values = leaves(config.to_dict())
  for key in sorted(set(values) ^ set(CHECKS)):
    raise InputError(f'config.{key}: {"unknown key" if key in values else "missing key"}')
  for key, check in CHECKS.items():
    if not check.allows(values[key]):
      raise InputError(f'config.{key}={values[key]!r}: {check.wording} is allowed')
  both = set(values['data.sites']) & set(values['data.external'])
  if both:
    raise InputError(
      f'config.data.external={sorted(both)[0]!r}: a site that trains is no external cohort')
  if needs_validation(values) and not values['data.validation_examples']:
    raise InputError(
      f"config.data.validation_examples=0: preset {values['fed.preset']!r} weighs sites by their "
      'validation loss; allow at least 1')
  if values['checkpoint.keep_best'] and (
      not needs_validation(values) or values['fed.signal'] != 'loss'):
    raise InputError(
      f"config.checkpoint.keep_best={values['checkpoint.keep_best']}: the best checkpoint is that "
      f"of least validation loss, which preset {values['fed.preset']!r} does not compute; use 0")
  if values['fed.pooled'] and values['fed.sharing'] == 'nothing':
    raise InputError("config.fed.sharing='nothing': pooled training has one site; use 'everything'")
  if values['fed.learner'] == 'bert' and not values['fed.train']:
    raise InputError("config.fed.train=False: an untrained classifier has no answers; use True")
  if values['fed.learner'] == 'bert' and values['fed.loss_on'] != 'completion':
    raise InputError(
      f"config.fed.loss_on={values['fed.loss_on']!r}: a classifier has no prompt to learn; use "
      "'completion'")
  _check_partition(values)
  _check_participation(values)
  check_method(values)


def _check_partition(values: dict[str, Any]) -> None:
  kind, strength = values['data.partition.kind'], values['data.partition.strength']
  if kind in partition.SHARES and strength > 1:
    raise InputError(
      f'config.data.partition.strength={strength}: a share in (0, 1] for kind {kind!r}')
  if values['data.partition.corrupted'] and not kind:
    raise InputError(
      f"config.data.partition.corrupted={values['data.partition.corrupted']}: corrupts sites that "
      f"notes are dealt out to; set config.data.partition.kind, such as 'iid'")


def _check_participation(values: dict[str, Any]) -> None:
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


def parse(
  argv: Sequence[str], define: Callable[[flags.FlagValues], None], check: bool = True
) -> tuple[ConfigDict, flags.FlagValues, dict[str, Any]]:
  """Command line -> (config, flags, the flat config keys that it names).

  Args:
    argv: as sys.argv.
    define: declares the program's other flags on the given FlagValues.
    check: validate the values; False when the caller changes some and validates then.

  Raises:
    InputError: an unknown key or flag (with a suggestion), a value of the wrong type, a config
      file that is missing or fails, or a value that is not allowed.
  """
  values = flags.FlagValues()
  define(values)
  flags.DEFINE_bool('help', False, 'Print the flags and leave.', flag_values=values)
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, with :preset if wanted.', flag_values=values,
    sys_argv=list(argv))
  try:
    rest = values(list(argv))
    if values.help:
      print(f'{sys.modules["__main__"].__doc__}\n{values.main_module_help()}')
      print('  --config.KEY=VALUE: any key of configs/base.py')
      raise SystemExit(0)
    config = values.config
    if config is not None:
      config.to_dict()  # a config file that failed to load raises here, not before
  except Exception as error:  # a config file is a program: it may raise anything
    raise InputError(_one_line(error)) from None
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r}: not a flag; flags look like --workdir=runs/x')
  if config is None:
    raise InputError('--config is missing: name a file, such as --config=configs/quickstart.py')
  overrides = config_flags.get_override_values(values['config'])
  if 'fed.preset' in overrides:
    choose_preset(config, overrides['fed.preset'])
    # What the command line names itself goes before the preset's row.
    config.update_from_flattened_dict(overrides)
  if check:
    validate(config)
  return config, values, overrides


def choose_preset(config: ConfigDict, preset: str) -> None:
  """Applies a row of PRESETS; raises InputError when there is none of that name."""
  try:
    apply_preset(config, preset)
  except ValueError as error:
    raise InputError(f'config.fed.preset: {error}') from None


def _one_line(error: Exception) -> str:
  text = str(error)
  suggestion = re.search(r'Did you mean "([^"]+)" instead of "([^"]+)"', text)
  if suggestion:
    return f'config key {suggestion[2]!r} is unknown; did you mean {suggestion[1]!r}?'
  if isinstance(error, KeyError | AttributeError) and 'has no attribute' not in text:
    key = text.splitlines()[0].strip('\\"\'')
    return f'config key {key!r} is unknown; configs/base.py lists all keys'
  # config_flags wraps whatever the config file raised; its last line says what it was.
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if 'Failed loading config' in text:
    return f'the config file cannot be loaded: {lines[-1]}'
  return f'{lines[0].split(": Error")[0]}: {lines[-1]}' if len(lines) > 1 else lines[0]
