"""A federation small enough to work by hand.

Site k holds batches of a target and a curvature; its loss is curvature / 2 |leaf - target|^2 over
every entry of A and B, each on its own, so that every entry is one number to work out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedmedjax.fed import local, rules, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import LocalData

SIZES = np.array([100, 300, 600], np.float32)
ADAPTER = {'layers': {'q': {'a': jnp.zeros((1, 2, 1)), 'b': jnp.zeros((1, 1, 2))}}}
PATHS = ['layers/q/a', 'layers/q/b']


def quadratic(adapter, base, batch):
  """Sum over the step's weight: weight * curvature * sum (leaf - target)^2 / 2, times `base`."""
  error = sum(jnp.sum((leaf - batch['target']) ** 2) for leaf in jax.tree.leaves(adapter))
  return base * batch['curvature'] * batch['weight'] * error / 2, batch['weight']


def federation(chunk=0, sites=3, loss=quadratic, **parts):
  """FedAvg with local steps of rate 0.5, but for the parts named."""
  return federated_algorithm(**dict(
    loss_fn=loss, gradient=mean_gradient, ranks=same_ranks(), optimizer=local.sgd(0.5),
    rule=rules.plain(), sharing=sharing.everything(), compression=optax.identity(),
    aggregator=adaptive_mean(), server_optimizer=optax.sgd(1.0), map_sites=map_sites(chunk),
    num_sites=sites) | parts)


def data(steps=(1, 1, 1), targets=(1.0, 2.0, 4.0), curvatures=(1.0, 1.0, 1.0), sizes=SIZES):
  shape = (len(steps), max(steps))
  spread = lambda values: jnp.broadcast_to(jnp.array(values)[:, None], shape)  # noqa: E731
  return LocalData(
    {'target': spread(targets), 'curvature': spread(curvatures), 'weight': jnp.full(shape, 2.0)},
    jnp.array([[k < n for k in range(shape[1])] for n in steps]), jnp.asarray(sizes[:shape[0]]))


def play(algorithm, data_, rounds=1, val=None, key=0, start=ADAPTER, cohorts=None):
  """The state after some rounds and the last one's metrics; every site each round, or `cohorts`."""
  state = algorithm.init(start)
  for number in range(rounds):
    cohort = jnp.arange(len(data_.weight)) if cohorts is None else jnp.array(cohorts[number])
    chosen = data_ if cohorts is None else jax.tree.map(lambda x: x[cohort], data_)  # noqa: B023
    state, metrics = algorithm.round(
      state, jnp.float32(1.0), chosen, cohort, val, jax.random.fold_in(jax.random.key(key), number))
  return state, metrics


def entries(adapter):
  """The values of A and B, each of which must be one number, as (a, b)."""
  found = []
  for leaf in map(np.asarray, jax.tree.leaves(adapter)):
    np.testing.assert_allclose(leaf, np.broadcast_to(leaf.flat[0], leaf.shape), rtol=1e-6)
    found.append(float(leaf.flat[0]))
  return tuple(found)
