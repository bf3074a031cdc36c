"""FedNova: a site that takes more local steps moves further, and must not weigh more for it.

Wang, Liu, Liang, Joshi & Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, arXiv:2007.07481. The mean of updates of unlike numbers of
steps leads to the optimum of another objective, in which sites count by their steps, too. FedNova
divides each update by |a_k|_1, the length of its path in steps, and multiplies the mean by
tau_eff = sum_k p_k |a_k|_1: x + tau_eff sum_k p_k update_k / |a_k|_1. In the paper a_k has the
coefficients of the site's gradients in its update; for plain steps |a_k|_1 is their number tau_k.

What |a_k|_1 is here: the sum of the rates of the site's steps, over the peak rate. Of plain steps
of a constant rate that is tau_k, as in the paper. Of AdamW, a step is its rate times a mean of the
gradients so far, whose coefficients add to 1 since Adam corrects the bias of its first moment, over
the root of the second moment; so whatever beta_1 is, the coefficients of all gradients add to the
sum of the rates. That the second moment is taken for a change of the unit, the same at all sites,
is ours. Left out are weight decay and the pull of FedProx, which shorten all paths alike as long as
their strength times the sum of the rates is far below 1.
"""

import jax
import jax.numpy as jnp

from fedmedjax.fed.aggregators.weighted_mean import factor_mean, size_weights
from fedmedjax.fed.types import Aggregate, Aggregator, Array, Combine, RateFn


def path_lengths(num_steps: Array, local_rate: RateFn) -> Array:
  """sum_{t < tau_k} rate(t, tau_k) -> f32[C]: the paper's |a_k|_1 times the peak rate.

  Args:
    num_steps: i32[C] or f32[C], tau_k.
    local_rate: of the sites' optimiser.
  """
  steps = num_steps.astype(jnp.int32)

  def add(step, total):
    rates = jax.vmap(lambda own: jnp.asarray(local_rate(step, own), total.dtype))(steps)
    return total + jnp.where(step < steps, rates, 0)

  return jax.lax.fori_loop(0, steps.max(), add, jnp.zeros(steps.shape))


def normalised_mean(
  *, size_power: float, local_rate: RateFn, combine: Combine | None = None,
) -> Aggregator:
  """tau_eff sum_k p_k update_k / |a_k|_1, [C, *p] -> [*p]; equal numbers of steps give FedAvg.

  The weights that are reported are those of the direction, p_k / |a_k|_1 made to add to 1.

  Args:
    size_power: p_k is proportional to n_k to this power.
    local_rate: of the sites' optimiser.
    combine: of the weighted sum, `factor_mean` or, since the server knows the weights before any
      update arrives, `secure.masked_mean`.
  """
  total = (combine or factor_mean()).apply

  def update(updates, state, *, weights, num_steps, anchor, local, key, **_):
    lengths = path_lengths(num_steps, local_rate)
    shares = size_weights(weights, lengths > 0, size_power)
    each = jnp.where(shares > 0, shares / jnp.where(lengths > 0, lengths, 1.0), 0)
    moved, fold = total(
      updates, each * jnp.sum(shares * lengths), anchor=anchor, local=local, key=key)
    return Aggregate(moved, state, each / jnp.maximum(each.sum(), 1e-30), fold=fold)

  return Aggregator(
    lambda adapter, num_sites: (), update,
    needs=frozenset({'own_weights', 'no_error_feedback', 'whole_steps'}))
