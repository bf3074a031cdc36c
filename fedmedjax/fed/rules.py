"""Local rules: what is added to a site's gradient (config.fed.rule)."""

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import LocalRule
from fedmedjax.types import InputError

# Of rules with control variates: their fixed point is the optimum of the plain mean of the sites'
# losses, and they are averaged leaf by leaf from round to round.
_CONTROLLED = frozenset({'shared_anchor', 'plain_mean', 'steady_factors', 'one_rank'})


def plain(**_) -> LocalRule:
  """FedAvg: nothing. McMahan et al., arXiv:1602.05629."""
  return LocalRule(
    init=lambda adapter: ((), ()),
    correct=lambda grad, adapter, anchor, server_ctrl, site_ctrl: grad,
    finish=lambda anchor, adapter, num_steps, server_ctrl, site_ctrl: (site_ctrl, ()),
  )


def proximal(*, strength: float, **_) -> LocalRule:
  """FedProx: the gradient of (mu / 2) |x - anchor|^2 is added.

  Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127.

  Args:
    strength: mu.
  """
  def correct(grad, adapter, anchor, server_ctrl, site_ctrl):
    return jax.tree.map(lambda g, x, x0: g + strength * (x - x0), grad, adapter, anchor)

  return plain()._replace(correct=correct, needs=frozenset({'shared_anchor'}))


def control_variates(*, rate: float, **_) -> LocalRule:
  """SCAFFOLD, option II: g - c_i + c; c_i+ = c_i - c + (x - y_i) / (K eta_l).

  Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
  2020, arXiv:1910.06378, algorithm 1. The server adds (1 / N) sum_i (c_i+ - c_i) to c. Option II
  reads the mean gradient off the path x - y_i, which plain steps of a constant rate leave and
  others do not. Its fixed point is the optimum of the plain mean of the sites' losses.

  Args:
    rate: eta_l, the constant rate of the local steps.
  """
  def init(adapter):
    zeros = jax.tree.map(jnp.zeros_like, adapter)
    return zeros, zeros

  def correct(grad, adapter, anchor, server_ctrl, site_ctrl):
    return jax.tree.map(lambda g, c, c_i: g - c_i + c, grad, server_ctrl, site_ctrl)

  def finish(anchor, adapter, num_steps, server_ctrl, site_ctrl):
    path = jnp.maximum(num_steps, 1) * rate
    # A site without steps has learnt no gradient.
    delta = jax.tree.map(
      lambda x, y, c: jnp.where(num_steps > 0, (x - y) / path - c, 0), anchor, adapter,
      server_ctrl)
    return jax.tree.map(jnp.add, site_ctrl, delta), delta

  return LocalRule(init, correct, finish, needs=_CONTROLLED | {'plain_sgd', 'clear_control'})


def dynamic(*, strength: float, **_) -> LocalRule:
  """FedDyn: g - g_i + alpha (x - anchor); g_i <- g_i - alpha (x_i - anchor).

  Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263,
  algorithm 1. The server keeps h <- h - (alpha / m) sum_i (x_i - anchor) over the cohort, m being
  all sites, and goes to mean x_i - h / alpha. g_i is a site's gradient where it stopped, if it
  reached the minimum of its corrected loss; we take the given number of steps towards it.

  Args:
    strength: alpha > 0.
  """
  if not strength:
    raise InputError('config.fed.rule_strength=0: FedDyn divides by it; a number > 0 is allowed')

  def correct(grad, adapter, anchor, server_ctrl, site_ctrl):
    return jax.tree.map(
      lambda g, x, x0, g_i: g - g_i + strength * (x - x0), grad, adapter, anchor, site_ctrl)

  def finish(anchor, adapter, num_steps, server_ctrl, site_ctrl):
    delta = jax.tree.map(lambda x0, x: strength * (x0 - x), anchor, adapter)
    return jax.tree.map(jnp.add, site_ctrl, delta), delta

  def server(aggregate, server_ctrl):
    return jax.tree.map(lambda mean, h: mean - h / strength, aggregate, server_ctrl)

  return LocalRule(
    control_variates(rate=1.0).init, correct, finish, server,
    needs=_CONTROLLED | {'whole_updates'}, control_travels=False)


# Value of config.fed.rule -> builder, from strength and rate.
RULES = {
  'plain': plain, 'fedprox': proximal, 'scaffold': control_variates, 'feddyn': dynamic}
