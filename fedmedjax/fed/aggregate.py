"""Aggregators: C updates to one (METHOD sections 2 and 3)."""

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import Aggregator


def weighted_sum(updates, weights):
  """sum_k w_k update_k: [C, *p], f32[C] -> [*p]; a site of weight 0 cannot spoil it with NaN."""

  def leaf(x):
    w = weights.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return jnp.sum(jnp.where(w > 0, w * x, 0), axis=0)

  return jax.tree.map(leaf, updates)


def adaptive_weights(sizes, losses, *, size_power, loss_power, temperature, floor=0.0):
  """log a = gamma log n - beta l / tau; w = softmax(log a); w <- (1 - eps) w + eps / C.

  METHOD section 3. With (gamma, beta) = (1, 0) it is size weighting, with (0, 1) the public
  code's softmax(-l), with (1, 1) Fed-MedLoRA+. A constant added to every loss changes nothing.

  Args:
    sizes: f32[C], n_k > 0.
    losses: f32[C], nats per token; a site whose loss is not finite gets weight 0.

  Returns:
    f32[C], sum 1; all 0 when no loss is finite.
  """
  usable = jnp.isfinite(losses) & (sizes > 0)
  log_a = size_power * jnp.log(jnp.where(sizes > 0, sizes, 1.0))
  log_a = log_a - loss_power * jnp.where(usable, losses, 0.0) / temperature
  log_a = jnp.where(usable, log_a, -jnp.inf)
  weights = jnp.exp(log_a - jnp.max(jnp.where(usable, log_a, jnp.finfo(log_a.dtype).min)))
  weights = weights / jnp.maximum(weights.sum(), 1e-30)
  share = usable / jnp.maximum(usable.sum(), 1)
  return (1.0 - floor) * weights + floor * share


def adaptive_mean(
  *, size_power: float = 1.0, loss_power: float = 0.0, temperature: float = 1.0,
  floor: float = 0.0, ema: float = 0.0,
) -> Aggregator:
  """Weighted mean of the updates, factor by factor: Fed-MedLoRA, Fed-MedLoRA+ and uniform.

  "A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
  arXiv:2601.22124; which parts are the paper's, the public code's and ours: METHOD section 3.
  The validation losses are computed only when loss_power is not 0.

  Args:
    size_power: gamma, the power of n_k.
    loss_power: beta, the strength of the validation loss.
    temperature: tau > 0.
    floor: eps in [0, 1), the share spread evenly.
    ema: mu in [0, 1): w <- mu w_prev + (1 - mu) w, renormalised over the cohort; a site's
      previous weight is the one of the last round in which it sent something.
  """

  def init(adapter, num_sites):
    del adapter
    return jnp.zeros(num_sites, jnp.float32)

  def update(updates, state, *, weights, cohort, site_loss, **_):
    losses = site_loss() if loss_power else jnp.zeros_like(weights)
    chosen = adaptive_weights(
      weights, losses, size_power=size_power, loss_power=loss_power, temperature=temperature,
      floor=floor)
    present, held = weights > 0, state[cohort]
    previous = jnp.where(present, held, 0.0)
    known = previous.sum()
    smooth = ema * previous / jnp.maximum(known, 1e-30) + (1.0 - ema) * chosen
    # A site whose loss is not finite stays at 0 whatever it weighed before.
    smooth = jnp.where(chosen > 0, smooth, 0.0)
    smooth = smooth / jnp.maximum(smooth.sum(), 1e-30)
    chosen = jnp.where((ema > 0) & (known > 0), smooth, chosen)
    reported = losses if loss_power else jnp.full_like(losses, jnp.nan)
    state = state.at[cohort].set(jnp.where(present, chosen, held))
    return weighted_sum(updates, chosen), state, chosen, reported

  return Aggregator(init, update)
