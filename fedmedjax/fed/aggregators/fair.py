"""Aggregators by which sites with a higher training loss count more: q-FedAvg and AFL.

Li, Sanjabi, Beirami & Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
arXiv:1905.10497: q-FFL minimises sum_k p_k F_k^(q+1) / (q + 1), F_k being the loss of site k, and
q-FedAvg is its algorithm 2.

Mohri, Sivek & Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146: the minimum over
adapters of the maximum over lambda on the simplex of sum_k lambda_k F_k, so that the site of the
highest loss counts, whatever its size.

Both ask a site for F_k at the adapter that it was sent: the mean training loss at the anchor over
its examples of the round, in nats per supervised token. A site whose notes are annotated wrongly
has a high loss for good and gains weight by either: they are fair to sites, not robust.
"""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.weighted_mean import factor_mean, size_weights
from fedmedjax.fed.types import Aggregate, Aggregator, Array, Combine

# Losses below it count as this much: F^(q - 1) has no bound at 0.
_LEAST_LOSS = 1e-10


def q_fedavg(*, fairness: float, lipschitz: float, size_power: float) -> Aggregator:
  """sum p F^q u / sum (p q F^(q - 1) L |u|^2 + p F^q), [C, *p] -> [*p]; keeps no state.

  arXiv:1905.10497, algorithm 2: L u_k is the paper's -Delta w_k, L times the terms below its h_k.
  Where the paper draws sites by p_k and adds them up evenly, all sites are here, times p_k. The
  paper takes L = 1 / eta, eta being the rate of plain local steps. AdamW's rate is no estimate of a
  curvature, so that L is a number of its own here; 0 stands for the limit, the mean of updates by
  p_k F_k^q (ours). The weights that are reported are those of the direction, p_k F_k^q made to add
  to 1.

  Args:
    fairness: the paper's q >= 0; 0 = FedAvg.
    lipschitz: the paper's L >= 0, in nats per squared unit of the adapter.
    size_power: p_k is proportional to n_k to this power.
  """
  def update(updates, state, *, weights, start_loss, **_):
    usable = (weights > 0) & jnp.isfinite(start_loss)
    loss = jnp.maximum(jnp.where(usable, start_loss, 1.0), _LEAST_LOSS)
    pulled = size_weights(weights, usable, size_power) * loss**fairness
    squares = jax.vmap(tree.norm)(updates) ** 2
    below = jnp.sum(
      pulled * (1 + fairness * lipschitz * squares / loss), where=pulled > 0)
    step = tree.weighted_sum(updates, pulled / jnp.maximum(below, 1e-30))
    return Aggregate(step, state, pulled / jnp.maximum(pulled.sum(), 1e-30))

  return Aggregator(
    lambda adapter, num_sites: (), update,
    needs=frozenset({'single_updates', 'own_weights', 'no_error_feedback'}))


def on_simplex(values: Array) -> Array:
  """The nearest vector that is nowhere below 0 and adds to 1, f32[S] -> f32[S].

  Held, Wolfe & Crowder, "Validation of Subgradient Optimization", Mathematical Programming 6, 1974:
  max(v - theta, 0), theta being the least (v_(1) + .. + v_(j) - 1) / j below v_(j) of the falling
  order, j as large as it can be.
  """
  falling = jnp.sort(values)[::-1]
  count = jnp.arange(1, len(values) + 1, dtype=values.dtype)
  threshold = (jnp.cumsum(falling) - 1) / count
  last = jnp.sum(falling > threshold) - 1
  return jnp.maximum(values - threshold[last], 0)


def agnostic(*, mixture_rate: float, combine: Combine | None = None) -> Aggregator:
  """sum_k lambda_k update_k, and lambda <- projection of lambda + gamma F: [C, *p] -> [*p].

  arXiv:1902.00146, Stochastic-AFL, with a round of local steps in place of one gradient. Both
  players move from where the round began. The state is lambda f32[S], 1 / S at the start; sizes do
  not count. Ours is what happens to sites that are not there: the others share the weight by their
  lambda, or evenly where all of these are 0, and move by gamma (F_k - mean F of those that came).
  With all sites there that is the paper's step, since a constant is lost in the projection.

  Args:
    mixture_rate: the paper's gamma_lambda >= 0, weight per nat; 0 = the plain mean for good.
    combine: of the weighted sum, `factor_mean` or, since the server knows lambda before any update
      arrives, `secure.masked_mean`.
  """
  total = (combine or factor_mean()).apply

  def update(updates, state, *, weights, cohort, start_loss, anchor, local, key, **_):
    usable = (weights > 0) & jnp.isfinite(start_loss)
    mixture = jnp.where(usable, state[cohort], 0)
    even = usable / jnp.maximum(usable.sum(), 1)
    shares = jnp.where(
      mixture.sum() > 0, mixture / jnp.maximum(mixture.sum(), 1e-30), even.astype(mixture.dtype))
    loss = jnp.where(usable, start_loss, 0)
    above = jnp.where(usable, loss - loss.sum() / jnp.maximum(usable.sum(), 1), 0)
    after = on_simplex(state.at[cohort].add((mixture_rate * above).astype(state.dtype)))
    mean, fold = total(updates, shares, anchor=anchor, local=local, key=key)
    return Aggregate(mean, after, shares, fold=fold)

  return Aggregator(
    lambda adapter, num_sites: jnp.full(num_sites, 1 / num_sites, jnp.float32), update,
    needs=frozenset({'own_weights', 'unweighted'}))
