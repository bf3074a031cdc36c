"""Rounds with a site as the unit of privacy: config.privacy to the parts of an algorithm."""

from typing import Any

import jax
import numpy as np

from fedmedjax import tree
from fedmedjax.data.canaries import site_coins
from fedmedjax.data.schedule import Schedule
from fedmedjax.experiment import methods
from fedmedjax.experiment.methods import Method, Values
from fedmedjax.experiment.privacy import Effective, noise_tag, planned_privacy
from fedmedjax.experiment.round_spending import band_coefficients
from fedmedjax.fed.aggregators import private_secure
from fedmedjax.fed.aggregators.private_mean import SumFn, gaussian_sum
from fedmedjax.fed.correlated_noise import correlated_noise
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_losses import LossQuery
from fedmedjax.fed.site_canaries import planted
from fedmedjax.fed.types import Array, Tree

# Of the run's key, whose rounds count up from 0: the noise that is correlated over all of them, and
# the directions of canaries.
_NOISE, _CANARIES = 0xD1FF, 0xCA


def with_noise(
  values: Values, parts: Method, sizes: np.ndarray, plan: Schedule, adapter: Tree,
  secret: int | None = None,
) -> tuple[Method, Private | None, Effective]:
  """The method whose aggregator adds the noise that is planned; as it is without a unit of sites.

  Args:
    values: the flat configuration.
    parts: of `methods.method`.
    sizes: f32[S] n_k.
    plan: of all rounds.
    adapter: [*p], of which a site sends an update.
    secret: that noise is made of; None = of the seed.

  Returns:
    (the method, `planned_privacy`, and by what it accounts its noise, see there).
  """
  effective = effective_noise(values, adapter)
  private = planned_privacy(values, sizes, plan, effective)
  if private is not None and methods.protects_sites(values):
    parts = parts._replace(aggregator=methods.site_mean(
      values, private, _total(values, private, secret)))
  return parts, private, effective


def round_parts(values: Values) -> dict[str, Any]:
  """Arguments of `federated_algorithm` that a unit of privacy decides about."""
  protected = methods.protects_sites(values)
  return {
    # One site must not decide by its update whether another counts.
    'explosion': 0.0 if protected else values['fed.explosion'], 'quarantine': not protected,
    'loss_query': loss_query(values)}


def asked_one_by_one(values: Values, plan: Schedule) -> Schedule:
  """The plan by which V is packed: one answer a step where each answer's loss is cut."""
  return plan._replace(batch_size=1) if loss_query(values) else plan


def canary_key(values: Values) -> Array:
  """The key of the directions of canaries."""
  return _apart(jax.random.key(values['seed']), _CANARIES)


def noise_key(seed: int, secret: int | None) -> Array:
  """The key of all that is drawn in a run's rounds: of its secret, or of its seed."""
  if secret is None:
    return jax.random.key(seed)
  key = jax.random.key(secret & 0xFFFFFFFF)
  for place in (32, 64, 96):
    key = jax.random.fold_in(key, np.uint32(secret >> place & 0xFFFFFFFF))
  return key


def _apart(key: Array, use: int) -> Array:
  return jax.random.fold_in(jax.random.fold_in(key, 2**31), use)


def _total(values: Values, private: Private, secret: int | None) -> SumFn:
  """How the sum over sites gets its noise, and canaries where any are planted."""
  total, count = _noised(values, private, secret), values['privacy.canaries']
  return planted(total, canary_key(values), site_coins(count, values['seed'])) if count else total


def _noised(values: Values, private: Private, secret: int | None) -> SumFn:
  if values['fed.secure_aggregation']:
    return private_secure.discrete_sum(
      private, methods.cohort_size(values), values['privacy.missing'])
  if values['privacy.mechanism'] != 'banded':
    return gaussian_sum(private)
  rounds = values['fed.rounds']
  coefficients = band_coefficients(rounds, min(values['privacy.bands'], rounds))
  key = jax.random.fold_in(
    _apart(noise_key(values['seed'], secret), _NOISE), np.uint32(noise_tag(values, private)))
  # By the number of rounds, too, which the coefficients follow from.
  return gaussian_sum(private, correlated_noise(
    coefficients, rounds, jax.random.fold_in(key, rounds)))


def effective_noise(
  values: Values, adapter: Tree
) -> Effective:
  """(noise multiplier) -> that of the Gaussian mechanism it amounts to; None = the same.

  Args:
    values: the flat configuration.
    adapter: [*p], whose values a site sends.
  """
  if not (methods.protects_sites(values) and values['fed.secure_aggregation']):
    return None
  sites, missing = methods.cohort_size(values), values['privacy.missing']

  def effective(noise: float) -> float:
    return private_secure.noise_multiplier(private_secure.ring(
      Private(values['privacy.clip'], noise, 1.0), tree.size(adapter), sites, missing))

  return effective


def loss_query(values: Values) -> LossQuery | None:
  """How validation losses are asked for; None = as they are."""
  if not (values['privacy.unit'] and values['fed.train'] and values['privacy.loss_clip']
          and methods.needs_validation(values)):
    return None
  if methods.protects_sites(values):
    return LossQuery(values['privacy.loss_clip'], values['privacy.loss_noise'], 0)
  # A site has one group for each of its tasks, and a unit may have answers in all of them.
  tasks = 1 if values['fed.learner'] != 'lora' else max(
    len(values['data.tasks']), *(one.count('+') + 1 for one in ('', *values['data.site_tasks'])))
  return LossQuery(values['privacy.loss_clip'], values['privacy.loss_noise'],
                   values['privacy.loss_answers'], tasks)
