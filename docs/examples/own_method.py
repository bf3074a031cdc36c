"""Two aggregators of one's own, outside the package: FedNova and q-FedAvg.

    python -m fedmedjax.main --config=fedmedjax:quickstart:fed_medlora --workdir=runs/fednova \
      --config.fed.aggregator=docs/examples/own_method.py:fednova

An aggregator is a pair of pure functions. What `update` is given: docs/methods.md, section 10.
"""

import jax
import jax.numpy as jnp

import fedmedjax as fm


def weighted_sum(updates, weights):
  """sum_k w_k update_k: [C, *p], f32[C] -> [*p]."""
  return jax.tree.map(lambda x: jnp.einsum('c...,c->...', x, weights), updates)


def fednova():
  """Normalised averaging: sites that take more steps do not pull more.

  Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
  Optimization", NeurIPS 2020, arXiv:2007.07481: (sum p tau) * sum p_k update_k / tau_k.
  """
  def update(updates, state, *, weights, num_steps, **_):
    p = weights / jnp.maximum(weights.sum(), 1e-30)
    tau = jnp.maximum(num_steps, 1.0)
    return weighted_sum(updates, p / tau * jnp.sum(p * tau)), state

  return fm.Aggregator(init=lambda adapter: (), update=update)


def q_fedavg(q=1.0, smoothness=1.0):
  """q-FedAvg: sites with a higher loss count more, the more so the larger q; q = 0 is FedAvg.

  Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497:
  sum p F^q L u / sum p (q F^(q-1) L^2 |u|^2 + L F^q), with F a site's loss at the anchor.
  """
  def update(updates, state, *, weights, start_loss, **_):
    p = weights / jnp.maximum(weights.sum(), 1e-30)
    loss = jnp.where(p > 0, jnp.maximum(start_loss, 1e-10), 1.0)
    square = sum(jnp.sum(x**2, axis=range(1, x.ndim)) for x in jax.tree.leaves(updates))
    scale = p * loss**q * smoothness
    below = jnp.sum(scale + p * q * loss**(q - 1) * smoothness**2 * square)
    shares = scale / jnp.maximum(scale.sum(), 1e-30)
    step = weighted_sum(updates, scale / jnp.maximum(below, 1e-30))
    return fm.Aggregate(step, state, shares)

  return fm.Aggregator(init=lambda adapter: (), update=update)
