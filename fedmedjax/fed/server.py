"""Server optimisers: the aggregate as a pseudo-gradient, through optax.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, algorithm 2, and for
momentum Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335. They are fed -Delta_t, the negative aggregate, so that
optax's descent adds it. As in the paper, and unlike optax's own versions: no bias correction, tau
is added to the root, and v_{-1} = tau^2, its least allowed value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdaptiveState(NamedTuple):
  """The moments of the pseudo-gradient."""

  momentum: Any   # m_t, [*p]
  second: Any     # v_t, [*p]


def adaptive(second_moment, learning_rate: float, b1: float, tau: float):
  """m <- b1 m + (1 - b1) g; v <- second_moment(v, g^2); step = -eta m / (sqrt(v) + tau).

  Args:
    second_moment: (v, g^2) -> v, elementwise.
    learning_rate: eta.
    b1: beta_1.
    tau: the degree of adaptivity, > 0.
  """

  def init(params):
    filled = lambda value: jax.tree.map(lambda p: jnp.full_like(p, value), params)  # noqa: E731
    return AdaptiveState(filled(0.0), filled(tau**2))

  def update(updates, state, params=None):
    del params
    momentum = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.momentum, updates)
    second = jax.tree.map(lambda v, g: second_moment(v, g * g), state.second, updates)
    step = jax.tree.map(
      lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), momentum, second)
    return step, AdaptiveState(momentum, second)

  return optax.GradientTransformation(init, update)


def fedavg(*, learning_rate: float, **_):
  """x <- x + eta Delta; with eta = 1 the server adds the aggregate as it is."""
  return optax.sgd(learning_rate)


def fedavgm(*, learning_rate: float, momentum: float, **_):
  """FedAvgM: v <- beta v + Delta; x <- x + eta v (Hsu et al.)."""
  return optax.sgd(learning_rate, momentum=momentum)


def fedadagrad(*, learning_rate: float, momentum: float, tau: float, **_):
  """v <- v + Delta^2; the paper's experiments have beta_1 = 0."""
  return adaptive(lambda v, square: v + square, learning_rate, momentum, tau)


def fedadam(*, learning_rate: float, momentum: float, b2: float, tau: float):
  """v <- beta_2 v + (1 - beta_2) Delta^2."""
  return adaptive(
    lambda v, square: b2 * v + (1 - b2) * square, learning_rate, momentum, tau)


def fedyogi(*, learning_rate: float, momentum: float, b2: float, tau: float):
  """v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)."""
  return adaptive(
    lambda v, square: v - (1 - b2) * square * jnp.sign(v - square), learning_rate, momentum, tau)


SERVER_OPTIMIZERS = {
  'fedavg': fedavg, 'fedavgm': fedavgm, 'fedadagrad': fedadagrad, 'fedadam': fedadam,
  'fedyogi': fedyogi,
}
