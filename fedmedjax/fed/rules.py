"""Local rules: what is added to a site's gradient, and the control variates that this needs.

In the formulas x is the anchor, y a site's adapter in training, g its gradient, all [*p].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedmedjax.fed.builders import is_off
from fedmedjax.fed.types import LocalRule
from fedmedjax.types import InputError

# Of rules with control variates: their fixed point is the optimum of the plain mean of the sites'
# losses, and they are averaged leaf by leaf from round to round.
_CONTROLLED = frozenset({'shared_anchor', 'plain_mean', 'steady_factors', 'one_rank'})
# Keyword arguments strength and rate, of which a rule names those it needs -> LocalRule.
RuleBuilder = Callable[..., LocalRule]


def plain() -> LocalRule:
  """FedAvg: the gradient [*p] as it is; no control variates.

  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
  AISTATS 2017, arXiv:1602.05629.
  """
  return LocalRule(
    init=lambda adapter: ((), ()),
    correct=lambda grad, adapter, anchor, server_ctrl, site_ctrl: grad,
    finish=lambda anchor, adapter, num_steps, server_ctrl, site_ctrl: (site_ctrl, ()),
  )


def proximal(*, strength: float) -> LocalRule:
  """FedProx: g + mu (y - x), the gradient of (mu / 2) |y - x|^2 added; [*p] -> [*p].

  Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127.
  The paper writes w for y and w^t for x.

  Args:
    strength: the paper's mu; 0 = FedAvg.
  """
  def correct(grad, adapter, anchor, server_ctrl, site_ctrl):
    return jax.tree.map(lambda g, x, x0: g + strength * (x - x0), grad, adapter, anchor)

  return plain()._replace(correct=correct, needs=frozenset({'shared_anchor'}))


def _zero_controls(adapter):
  """(server_ctrl [*p], site_ctrl [*p]) before the first round."""
  zeros = jax.tree.map(jnp.zeros_like, adapter)
  return zeros, zeros


def control_variates(*, rate: float) -> LocalRule:
  """SCAFFOLD, option II: g - c_i + c; c_i+ = c_i - c + (x - y_i) / (K eta_l), all [*p].

  Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
  2020, arXiv:1910.06378, algorithm 1: c is the server's control variate, c_i the site's, K the
  number of steps it took, N = S. The server adds (1 / N) sum_i (c_i+ - c_i) to c. Option II takes
  (x - y_i) / (K eta_l) for the mean gradient, which holds only for plain steps at a constant rate.
  The fixed point is the optimum of the unweighted mean of the sites' losses.

  Args:
    rate: the paper's eta_l, the constant rate of the local steps, > 0.
  """
  def correct(grad, adapter, anchor, server_ctrl, site_ctrl):
    return jax.tree.map(lambda g, c, c_i: g - c_i + c, grad, server_ctrl, site_ctrl)

  def finish(anchor, adapter, num_steps, server_ctrl, site_ctrl):
    path = num_steps * rate
    # A site without steps has no estimate of its gradient.
    delta = jax.tree.map(
      lambda x, y, c: jnp.where(num_steps > 0, (x - y) / path - c, 0), anchor, adapter,
      server_ctrl)
    return jax.tree.map(jnp.add, site_ctrl, delta), delta

  return LocalRule(
    _zero_controls, correct, finish, needs=_CONTROLLED.union({'plain_sgd', 'clear_control'}))


def dynamic(*, strength: float) -> LocalRule:
  """FedDyn: g - g_i + alpha (y - x); g_i <- g_i - alpha (y_i - x), all [*p].

  Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263,
  algorithm 1: y_i is the paper's theta_k^t, x its theta^{t-1}, g_i its gradient of L_k at theta_k.
  The server keeps h <- h - (alpha / m) sum_i (y_i - x) over the cohort, m = S, and moves to
  mean y_i - h / alpha. We deviate in that a site takes the given number of steps towards the
  minimum of its corrected loss, while the paper supposes that it gets there.

  Args:
    strength: the paper's alpha > 0.

  Raises:
    InputError: when strength is 0.
  """
  if is_off(strength):
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
    _zero_controls, correct, finish, server,
    needs=_CONTROLLED.union({'whole_updates', 'plain_server'}), control_travels=False)


# Value of config.fed.rule -> builder.
RULES: dict[str, RuleBuilder] = {
  'plain': plain, 'fedprox': proximal, 'scaffold': control_variates, 'feddyn': dynamic}
