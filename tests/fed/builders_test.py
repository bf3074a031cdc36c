"""Parts of a method from hyper-parameters, and what an aggregator of a user's own may leave out."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.fed.aggregators.conventions import completed, names_argument
from fedmedjax.fed.builders import build
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.types import Aggregate, Aggregator
from fedmedjax.types import InputError

VALUES = {'rank': 16, 'size_power': 1.0, 'trim': 0.2}


def test_a_builder_is_given_what_it_names():
  """Of positional, keyword-only and default parameters; all of them only where it takes any."""
  assert build(lambda rank, *rest, trim, beta=3: (rank, rest, trim, beta), VALUES) == (
    16, (), 0.2, 3)
  assert build(lambda: 7, VALUES) == 7
  assert build(lambda *, rank=1: rank, VALUES) == 16
  assert build(lambda rank, **values: (rank, values), VALUES) == (
    16, {'size_power': 1.0, 'trim': 0.2})
  with pytest.raises(InputError, match="own: its parameter 'beta' .* rank, size_power, trim$"):
    build(lambda rank, beta: None, VALUES, 'own')

  def median(beta):
    return beta

  with pytest.raises(InputError, match='^median: '):
    build(median, VALUES)


def test_an_aggregator_of_two_results_is_completed():
  """init of the adapter alone; (update, state): sizes 0.1 and 0.3 are shares 1/4 and 3/4, and of
  nobody none. A utility that is given stays."""
  own = completed(Aggregator(
    lambda adapter: ('begun', adapter), lambda updates, state, *, weights, **_: (updates, state)))
  assert own.init('adapter', 3) == ('begun', 'adapter')
  for weights, shares in (((0.1, 0.3), (0.25, 0.75)), ((0.0, 0.0), (0.0, 0.0))):
    answer = own.update('updates', 'state', weights=jnp.array(weights))
    assert (answer.update, answer.state, answer.fold) == ('updates', 'state', ())
    np.testing.assert_allclose(answer.weights, shares, rtol=1e-6)
    assert answer.utility.shape == (2,) and np.isnan(answer.utility).all()
  whole = completed(Aggregator(
    lambda adapter, num_sites: num_sites, lambda updates, state, *, weights, **_: Aggregate(
      updates, state, weights, jnp.array([1.0, 2.0]))))
  answer = whole.update('updates', 'state', weights=jnp.ones(2))
  assert whole.init('adapter', 3) == 3 and answer.utility.tolist() == [1, 2]
  assert answer.weights.tolist() == [1, 1]


def test_an_argument_is_named_or_not():
  assert names_argument(lambda updates, *, start_loss: None, 'start_loss')
  assert not names_argument(lambda updates, **rest: None, 'start_loss')


def test_the_mean_gradient_of_a_step_by_hand():
  """3 tokens: 3 (x - 2)^2 / 3 has the slope 2 (x - 2) = -4 at 0; half a token is no whole one, and
  a step without tokens has neither loss nor gradient."""
  gradient = mean_gradient(lambda x, base, tokens: (tokens * (x - 2) ** 2, tokens))
  for tokens, loss, slope in (
      (3.0, 4.0, -4.0), (1.0, 4.0, -4.0), (0.5, 2.0, -2.0), (0.0, 0.0, 0.0)):
    found = gradient(jnp.float32(0.0), None, jnp.float32(tokens), None)
    assert tuple(map(float, found)) == (loss, slope)
