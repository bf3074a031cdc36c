"""Server optimisers: the aggregate is the gradient of an optax optimiser, its pseudo-gradient.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, algorithm 2, and for
momentum Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335. In the formulas Delta is the aggregate of the round and x the
server's adapter, both [*p]. An optimiser is given g = -Delta, since optax descends; its step is
then added to x. As in the paper and unlike optax's own versions: no bias correction, tau is added
to the root, and v_{-1} = tau^2, the least value that the paper allows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedmedjax.fed.types import Array, Tree

# (v [*p], g^2 [*p]) -> v [*p], for one leaf, entry by entry.
SecondMoment = Callable[[Array, Array], Array]
# Keyword arguments learning_rate, momentum, b2, tau, of which an optimiser names those it needs.
ServerOptimizerBuilder = Callable[..., optax.GradientTransformation]


class AdaptiveState(NamedTuple):
  """The moments of the pseudo-gradient, each [*p]."""

  momentum: Tree   # m_t, [*p]
  second: Tree     # v_t, [*p]


def adaptive(
  second_moment: SecondMoment, learning_rate: float, b1: float, tau: float
) -> optax.GradientTransformation:
  """m <- b1 m + (1 - b1) g; v <- second_moment(v, g^2); step = -eta m / (sqrt(v) + tau): [*p].

  Args:
    second_moment: (v [*p], g^2 [*p]) -> v [*p], entry by entry.
    learning_rate: the paper's eta.
    b1: the paper's beta_1, in [0, 1).
    tau: the paper's degree of adaptivity, > 0, in the unit of the aggregate.
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


def fedavg(*, learning_rate: float) -> optax.GradientTransformation:
  """FedAvg: x <- x + eta Delta, [*p]; with eta = 1 the server adds the aggregate as it is.

  arXiv:2003.00295 with SGD as the server's optimiser; eta = 1 is that of arXiv:1602.05629.
  """
  return optax.sgd(learning_rate)


def fedavgm(*, learning_rate: float, momentum: float) -> optax.GradientTransformation:
  """FedAvgM: v <- beta v + Delta; x <- x + eta v, [*p] each. Hsu et al., arXiv:1909.06335.

  Args:
    learning_rate: eta; the paper has 1.
    momentum: the paper's beta, in [0, 1).
  """
  return optax.sgd(learning_rate, momentum=momentum)


def fedadagrad(
  *, learning_rate: float, momentum: float, tau: float,
) -> optax.GradientTransformation:
  """FedAdagrad: v <- v + Delta^2, [*p]; Reddi et al., arXiv:2003.00295, algorithm 2.

  `momentum` is the paper's beta_1 (0 in its experiments); the other arguments are `adaptive`'s.
  """
  return adaptive(lambda v, square: v + square, learning_rate, momentum, tau)


def fedadam(
  *, learning_rate: float, momentum: float, b2: float, tau: float
) -> optax.GradientTransformation:
  """FedAdam: v <- beta_2 v + (1 - beta_2) Delta^2, [*p]; arXiv:2003.00295, algorithm 2.

  `momentum` is the paper's beta_1, `b2` its beta_2; the other arguments are `adaptive`'s.
  """
  return adaptive(
    lambda v, square: b2 * v + (1 - b2) * square, learning_rate, momentum, tau)


def fedyogi(
  *, learning_rate: float, momentum: float, b2: float, tau: float
) -> optax.GradientTransformation:
  """FedYogi: v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2), [*p]; arXiv:2003.00295, algorithm 2.

  `momentum` is the paper's beta_1, `b2` its beta_2; the other arguments are `adaptive`'s.
  """
  return adaptive(
    lambda v, square: v - (1 - b2) * square * jnp.sign(v - square), learning_rate, momentum, tau)


# Value of config.fed.server_optimizer -> builder.
SERVER_OPTIMIZERS: dict[str, ServerOptimizerBuilder] = {
  'fedavg': fedavg, 'fedavgm': fedavgm, 'fedadagrad': fedadagrad, 'fedadam': fedadam,
  'fedyogi': fedyogi,
}
