"""The method part of a configuration: its values to the parts of a federated algorithm.

The tables that map a value to a builder stand beside the builders, in `fed/`; a value may also name
a builder in a user's file (`own_parts.py`). Which parts go together is `refusals.py`'s.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedmedjax.data.unit_names import UNITS
from fedmedjax.experiment.own_parts import OwnPart, own_parts, where_it_failed
from fedmedjax.fed.aggregators import AGGREGATORS, SIGNALS
from fedmedjax.fed.aggregators.private_mean import SumFn, private_mean
from fedmedjax.fed.anchors import Anchors, newest
from fedmedjax.fed.buffered import places
from fedmedjax.fed.builders import build
from fedmedjax.fed.clusters import clustered
from fedmedjax.fed.contribution import (
  CONTRIBUTIONS,
  ContributionMaker,
  contribution_program,
  no_contribution,
)
from fedmedjax.fed.dual import GLOBAL, in_turns
from fedmedjax.fed.flight import in_flight
from fedmedjax.fed.local import adamw, sgd
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.ranks import mixed_ranks, same_ranks
from fedmedjax.fed.rules import RULES
from fedmedjax.fed.server import SERVER_OPTIMIZERS
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.fed.types import (
  Aggregator,
  LocalOptimizer,
  LocalRule,
  Ranks,
  Sharing,
  Validation,
)
from fedmedjax.store.files import HARMLESS
from fedmedjax.types import InputError

Values = Mapping[str, Any]  # flat configuration, {'fed.rule': 'plain', ...}
Own = Mapping[str, OwnPart]


class Method(NamedTuple):
  """The parts of a method that are functions alone."""

  aggregator: Aggregator
  rule: LocalRule
  server_optimizer: optax.GradientTransformation

  @property
  def needs(self) -> frozenset[str]:
    """What the parts ask of the rest of the method, see `refusals.py`."""
    return self.aggregator.needs | self.rule.needs


def method(values: Values, own: Own) -> Method:
  """The parts that a configuration names.

  Args:
    values: each allowed on its own.
    own: the user's own parts, by key.

  Raises:
    InputError: an own builder that fails, or names what is no hyper-parameter.
  """
  hyper = hyper_parameters(values)
  return Method(
    _aggregator(values, own, hyper),
    _built('fed.rule', RULES, values, own, hyper | {
      'strength': values['fed.rule_strength'], 'rate': values[rate_key(values)]},
      LocalRule),
    _built('fed.server_optimizer', SERVER_OPTIMIZERS, values, own, hyper | {
      'learning_rate': values['fed.server_learning_rate'],
      'momentum': values['fed.server_momentum'], 'b2': values['fed.server_b2'],
      'tau': values['fed.server_tau']}, optax.GradientTransformation))


def _aggregator(values: Values, own: Own, hyper: dict[str, Any]) -> Aggregator:
  """config.fed.aggregator, or where sites are protected their mean with noise yet to be planned."""
  if not protects_sites(values) or 'fed.aggregator' in own:
    return _built('fed.aggregator', AGGREGATORS, values, own, hyper, Aggregator)
  # Until noise is planned it is NaN, so that a round without the planned one cannot go unnoticed.
  return site_mean(values, Private(
    values['privacy.clip'], math.nan, float(cohort_size(values)), values['privacy.clipping']))


def protects_sites(values: Values) -> bool:
  """Whether the unit of privacy is a site."""
  return values['privacy.unit'] == 'site' and values['fed.train']


def site_mean(values: Values, private: Private, total: SumFn | None = None) -> Aggregator:
  """The noised mean over sites; `total`: see `private_mean`."""
  return private_mean(
    private, size_power=values['fed.size_power'], size_cap=values['privacy.size_cap'],
    loss_power=values['fed.loss_power'], temperature=values['fed.temperature'],
    floor=values['fed.floor'], signal=SIGNALS[values['fed.signal']], total=total)


def hyper_parameters(values: Values) -> dict[str, Any]:
  """What a builder may name: the keys of config.fed, and five more.

  rank, lora_alpha, num_sites; cohort_size, how many sites a round has, also where
  config.fed.cohort_size is 0 (all); local_rate, the `RateFn` of the sites' optimiser.
  """
  return {key.removeprefix('fed.'): value for key, value in values.items()
          if key.startswith('fed.')} | {
    'rank': values['lora.rank'], 'lora_alpha': values['lora.alpha'], 'num_sites': num_sites(values),
    'cohort_size': cohort_size(values), 'local_rate': local_optimizer(values).rate}


def _built(
  key: str, table: Mapping[str, Callable], values: Values, own: Own, hyper: dict[str, Any],
  kind: type,
) -> Any:
  """A part of the table, or of the user's own, which is told to ask for single updates."""
  if key not in own:
    return build(table[values[key]], hyper)
  name = f'config.{key}={own[key].name!r}'
  try:
    part = build(own[key].builder, hyper, name)
  except InputError:
    raise
  except Exception as error:  # a user's program: it may raise anything
    raise InputError(f'{name}: {where_it_failed(error, own[key].name)}') from None
  if not isinstance(part, kind):
    # A plain tuple of functions in the right order will do.
    try:
      part = kind(*part)
    except TypeError:
      raise InputError(
        f'{name}: it gives {type(part).__name__}; fedmedjax.fed.types or '
        f'optax have {kind.__name__}, which is allowed') from None
  if kind is Aggregator:
    return part._replace(needs=frozenset(part.needs) | {'single_updates'})
  return _told_of_control(part) if kind is LocalRule else part


def _told_of_control(rule: LocalRule) -> LocalRule:
  """An own rule with what its control variates ask for, whether it says so or not."""
  pair = {'a': jax.ShapeDtypeStruct((1, 2, 1), 'float32'),
          'b': jax.ShapeDtypeStruct((1, 1, 2), 'float32')}
  try:
    controls = jax.eval_shape(rule.init, {'layers': {'q_proj': pair}})
  except Exception:  # noqa: BLE001 - `contracts.py` says what is wrong, on the true adapter
    return rule
  needs = {'steady_factors'} if jax.tree.leaves(controls) else set()
  if rule.control_travels and needs:
    needs |= {'clear_control'}
  return rule._replace(needs=frozenset(rule.needs) | needs)


def unread_weights(values: Values, own: Own) -> list[str]:
  """Keys that are set to weigh sites, and that the builder of an own aggregator does not name."""
  part = own.get('fed.aggregator')
  if part is None:
    return []
  named = inspect.signature(part.builder).parameters
  if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values()):
    return []
  return [f'config.fed.{key}={values[f"fed.{key}"]}' for key in ('loss_power', 'floor', 'ema')
          if values[f'fed.{key}'] and key not in named]


def sharing(values: Values, own: Own, paths: Sequence[str]) -> Sharing:
  """config.fed.sharing's predicates, in turns with config.fed.local_rank's.

  Args:
    paths: of the adapter's leaves, which a builder that names `paths` is given.
  """
  dual = values['fed.local_rank'] > 0
  if dual:
    mark = f'{GLOBAL}/'
    paths = [path.removeprefix(mark) for path in paths if path.startswith(mark)]
  hyper = hyper_parameters(values) | {'paths': list(paths)}
  chosen = _built('fed.sharing', SHARINGS, values, own, hyper, Sharing)
  return in_turns(chosen) if dual else chosen


def ranks(values: Values) -> Ranks:
  """config.fed.ranks, one for each site, or the same for all."""
  own = values['fed.ranks']
  # Those of several runs are a traced array.
  return mixed_ranks(own, values['lora.rank']) if len(own) else same_ranks()


def rate_key(values: Values) -> str:
  """The key that the local steps' peak learning rate comes from."""
  if values['fed.local_optimizer'] == 'sgd':
    return 'optim.sgd_learning_rate'
  return 'bert.learning_rate' if values['fed.learner'] == 'bert' else 'optim.learning_rate'


def local_optimizer(values: Values) -> LocalOptimizer:
  """The sites' optimiser, at the rate of `rate_key`."""
  rate = values[rate_key(values)]
  if values['fed.local_optimizer'] == 'sgd':
    return sgd(rate)
  return adamw(
    rate, b1=values['optim.b1'], b2=values['optim.b2'], eps=values['optim.eps'],
    weight_decay=values['optim.weight_decay'],
    # A private gradient is clipped unit by unit, and is mostly noise where it is long.
    clip_norm=0.0 if values['privacy.unit'] in UNITS else values['optim.clip_norm'],
    warmup_share=values['optim.warmup_share'])


def harmless_keys(values: Values, own: Own | None = None) -> tuple[str, ...]:
  """Keys and groups of keys in which a run may differ from its continuation.

  Aggregators that add to the base lay out the room for it once, for all rounds: their number of
  rounds is fixed.
  """
  # So is that of noise which is correlated over all of them.
  planned = protects_sites(values) and values['privacy.mechanism'] == 'banded'
  fixed = ('fed.rounds',) if planned or adds_to_base(values, own) else ()
  return tuple(key for key in HARMLESS if key not in fixed)


def adds_to_base(values: Values, own: Own | None = None) -> bool:
  """Whether the aggregator moves columns into the base, so that the adapter widens."""
  return 'fixed_rounds' in method(values, own_parts(values, own)).needs


def num_sites(values: Values) -> int:
  """S: how many sites own training notes."""
  dealt_out = values['data.partition.kind']
  return values['data.partition.sites'] if dealt_out else len(values['data.sites'])


def cohort_size(values: Values) -> int:
  """C: how many sites' updates a round has."""
  if values['fed.pooled']:
    return 1
  return values['fed.buffer'] or values['fed.cohort_size'] or num_sites(values)


def anchors(values: Values) -> Anchors:
  """From which adapters sites start: older ones with config.fed.buffer, their cluster's with
  config.fed.clusters, else the newest."""
  if values['fed.clusters'] > 1:
    return clustered(values['fed.clusters'])
  if values['fed.buffer']:
    sites = num_sites(values)
    return in_flight(
      places(sites, values['fed.cohort_size'] or sites, values['fed.buffer']))
  return newest()


def adds_aggregate(values: Values) -> bool:
  """Whether the server's step is the aggregate itself, which every round then checks."""
  return values['fed.server_optimizer'] == 'fedavg' and values['fed.server_learning_rate'] == 1.0


def contribution(values: Values) -> ContributionMaker:
  """config.fed.contribution, of coalitions by the power of size that the run weighs sites by."""
  kind = CONTRIBUTIONS.get(values['fed.contribution'])
  return no_contribution if kind is None else partial(
    contribution_program, contribution=build(
      kind.build, {'samples': values['fed.contribution_samples']}),
    size_power=values['fed.size_power'])


def judges(values: Values, parts: Method, validation: Validation | None) -> set[int]:
  """Numbers of the sites that judge others, or coalitions of them, on their own notes of V."""
  asked = 'peers' in parts.needs or values['fed.contribution'] != 'none'
  if validation is None or validation.group_site is None or not asked:
    return set()
  return set(np.asarray(validation.group_site).tolist())


def needs_validation(values: Values) -> bool:
  """Whether weights are made from the server's validation set."""
  return values['fed.loss_power'] > 0 and values['fed.signal'] != 'product_norm'
