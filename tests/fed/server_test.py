"""Server optimisers against hand-worked steps of arXiv:2003.00295, algorithm 2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedmedjax.fed.builders import build
from fedmedjax.fed.server import SERVER_OPTIMIZERS

# b2 unlike 1 - b2, and below 1/2: 1 % b2 would be 1 - b2 above.
SETTINGS = dict(learning_rate=0.5, momentum=0.5, b2=0.25, tau=1.0)


def play(name, deltas, **settings):
  """x after every aggregate of `deltas`, from x = 0."""
  optimizer = build(SERVER_OPTIMIZERS[name], SETTINGS | settings)
  x = jnp.zeros(1)
  state, path = optimizer.init(x), []
  for delta in deltas:
    step, state = optimizer.update(jnp.array([-delta]), state, x)
    x = optax.apply_updates(x, step)
    path.append(float(x[0]))
  return path


@pytest.mark.parametrize('name, expected', [
  # x = eta (2, 2 - 1).
  ('fedavg', (1.0, 0.5)),
  # v = 2, then 1 - 1 = 0: x = 0.5 * 2, then + 0.
  ('fedavgm', (1.0, 1.0)),
  # m = 1, then 0.5 - 0.5 = 0. v = 1 + 4 = 5: x = 0.5 / (sqrt 5 + 1); the second step is 0.
  ('fedadagrad', (0.5 / (5**0.5 + 1), 0.5 / (5**0.5 + 1))),
  # v = 0.25 + 3 = 3.25.
  ('fedadam', (0.5 / (3.25**0.5 + 1), 0.5 / (3.25**0.5 + 1))),
  # v = 1 - 0.75 * 4 * sign(1 - 4) = 4.
  ('fedyogi', (0.5 / (4**0.5 + 1), 0.5 / (4**0.5 + 1))),
])
def test_two_steps_by_hand(name, expected):
  """Aggregates 2, then -1, with eta = beta_1 = 0.5, beta_2 = 0.25, tau = 1 = v_{-1}."""
  np.testing.assert_allclose(play(name, (2.0, -1.0)), expected, rtol=1e-6)


@pytest.mark.parametrize('name, third', [
  # m: 2, 3, 3.5 of aggregates 4, 4, 4; v: 1 + 16 n.
  ('fedadagrad', 3.5 / (49**0.5 + 1)),
  # v: 12.25, 15.0625, 15.765625.
  ('fedadam', 3.5 / (15.765625**0.5 + 1)),
  # v: 1 + 12, 13 + 12, 25 - 12 = 13.
  ('fedyogi', 3.5 / (13**0.5 + 1)),
])
def test_the_second_moments_third_step(name, third):
  path = play(name, (4.0, 4.0, 4.0))
  assert path[2] - path[1] == pytest.approx(0.5 * third, rel=1e-5)


def test_yogi_shrinks_slower_than_adam():
  """A large aggregate, then small ones: Adam forgets v geometrically, Yogi by (1 - b2) Delta^2."""
  deltas = (10.0, 0.1, 0.1, 0.1)
  yogi, adam = play('fedyogi', deltas), play('fedadam', deltas)
  assert yogi[3] - yogi[2] < adam[3] - adam[2]


@pytest.mark.parametrize('name', ['fedavgm', 'fedadagrad', 'fedadam', 'fedyogi'])
def test_neutral_elements(name):
  """FedAvgM at beta = 0 is FedAvg. With tau large v stays tau^2, m / (2 tau): FedAvg with
  rate eta / (2 tau)."""
  deltas = (2.0, -1.0, 0.5)
  if name == 'fedavgm':
    found = play(name, deltas, momentum=0.0)
    expected = play('fedavg', deltas)
  else:
    found = play(name, deltas, momentum=0.0, tau=1e4, b2=1.0, learning_rate=1e4)
    expected = play('fedavg', deltas, learning_rate=0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('name', SERVER_OPTIMIZERS)
def test_a_zero_aggregate_from_rest_moves_nothing_and_a_first_one_moves_its_way(name):
  optimizer = build(SERVER_OPTIMIZERS[name], SETTINGS)
  x = {'a': jnp.zeros(3)}
  for delta in (jnp.zeros(3), jnp.array([1.0, -2.0, 3.0])):
    step, _ = optimizer.update({'a': -delta}, optimizer.init(x), x)
    assert (jnp.sign(step['a']) == jnp.sign(delta)).all()
    assert jax.tree.structure(step) == jax.tree.structure(x)
