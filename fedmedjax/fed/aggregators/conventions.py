"""What an aggregator of a user's own may leave out, filled in for the round."""

import inspect

import jax.numpy as jnp

from fedmedjax.fed.types import Aggregate, Aggregator


def completed(aggregator: Aggregator) -> Aggregator:
  """`aggregator` as the round calls it: init(adapter, S) and an update that gives an `Aggregate`.

  An own part may write init(adapter), and its update may return (update [*p], state): the weights
  f32[C] that the metrics then show are the shares of n_k. A utility that is left out is NaN.
  """

  def init(adapter, num_sites):
    try:
      inspect.signature(aggregator.init).bind(adapter, num_sites)
    except TypeError:  # it takes one argument only
      return aggregator.init(adapter)
    return aggregator.init(adapter, num_sites)

  def update(updates, state, *, weights, **arguments):
    answer = aggregator.update(updates, state, weights=weights, **arguments)
    if not isinstance(answer, Aggregate):
      answer = Aggregate(*answer, weights=weights / jnp.maximum(weights.sum(), 1e-30))
    if answer.utility is None:
      answer = answer._replace(utility=jnp.full(weights.shape, jnp.nan))
    return answer

  return aggregator._replace(init=init, update=update)


def names_argument(function, name: str) -> bool:
  """Whether the signature of `function` names the parameter `name` itself."""
  return name in inspect.signature(function).parameters
