"""Weighted means of updates: the weights (METHOD section 3) apart from how the mean is formed."""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.types import Aggregate, Aggregator, Combine


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
    sizes: f32[C], n_k; a site of size 0 takes no part.
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


def _smoothed(weights, held, ema: float):
  """mu w_prev + (1 - mu) w -> f32[C], sum 1 like `weights` f32[C].

  Args:
    held: f32[C], each site's weight in its last round; 0 = it has no past, so w_prev = w. The
      others' are of rounds with other cohorts, and share what w gives these sites together. A site
      that weighs 0 now, as its loss is not finite, stays at 0 whatever it weighed before.
  """
  known = (held > 0) & (weights > 0)
  scale = jnp.where(known, weights, 0.0).sum() / jnp.maximum(
    jnp.where(known, held, 0.0).sum(), 1e-30)
  return ema * jnp.where(known, scale * held, weights) + (1.0 - ema) * weights


def site_losses(*, local, validation_loss, **_):
  """l_k: the validation loss of each site's adapter -> f32[C]."""
  return validation_loss(local)


def leave_one_out(*, updates, shares, anchor, validation_loss, **_):
  """-I_k, I_k = l(average without k) - l(average of all) -> f32[C]. Ours (METHOD section 3).

  The averages are by size; a site alone is compared with the anchor.

  Args:
    shares: f32[C], the size weights.
  """
  mean = weighted_sum(updates, shares)

  def without(update, share):
    rest = jnp.maximum(1.0 - share, 1e-6)
    return jax.tree.map(
      lambda m, u, x: x + (m - jnp.where(share > 0, share * u, 0)) / rest, mean, update, anchor)

  candidates = jax.vmap(without)(updates, shares)
  whole = jax.tree.map(lambda m, x: (x + m)[None], mean, anchor)
  losses = validation_loss(jax.tree.map(lambda c, w: jnp.concatenate([c, w]), candidates, whole))
  return jnp.where(shares > 0, losses[-1] - losses[:-1], jnp.nan)


def alignment(*, updates, validation_gradient, **_):
  """-I_k = <grad l_V(anchor), update_k> -> f32[C]: one gradient a round. Ours (METHOD 3)."""
  return jax.vmap(tree.inner, (0, None))(updates, validation_gradient())


def factor_mean() -> Combine:
  """Every tensor on its own: sum_k w_k update_k, as in METHOD section 2."""
  return Combine(lambda updates, weights, **_: (weighted_sum(updates, weights), ()))


def adaptive_mean(
  *, size_power: float = 1.0, loss_power: float = 0.0, temperature: float = 1.0,
  floor: float = 0.0, ema: float = 0.0, signal=site_losses, combine: Combine | None = None,
) -> Aggregator:
  """Weighted mean of the updates: Fed-MedLoRA, Fed-MedLoRA+, uniform and their relatives.

  "A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
  arXiv:2601.22124; which parts are the paper's, the public code's and ours: METHOD section 3.
  The signal is computed only when loss_power is not 0.

  Args:
    size_power: gamma, the power of n_k.
    loss_power: beta, the strength of the signal.
    temperature: tau > 0.
    floor: eps in [0, 1), the share spread evenly.
    ema: mu in [0, 1): w <- mu w_prev + (1 - mu) w; a site's previous weight is the one of the
      last round in which it sent something, or w where it has sent nothing yet or its loss was
      not finite then.
    signal: what stands for l_k: `site_losses`, `leave_one_out`, `alignment` or
      `products.product_norms`; lower weighs more.
    combine: how the mean is formed, `factor_mean` or one of `products.py`.
  """
  combine = combine or factor_mean()

  def init(adapter, num_sites):
    del adapter
    return jnp.zeros(num_sites)

  def update(updates, state, *, weights, cohort, anchor, local, key, **lazy):
    losses = jnp.zeros_like(weights)
    if loss_power:
      finite = jnp.isfinite(jax.vmap(tree.norm)(updates))
      shares = adaptive_weights(
        weights, jnp.where(finite, 0.0, jnp.nan), size_power=size_power, loss_power=0.0,
        temperature=1.0)
      losses = signal(updates=updates, shares=shares, anchor=anchor, local=local, **lazy)
    chosen = adaptive_weights(
      weights, losses, size_power=size_power, loss_power=loss_power, temperature=temperature,
      floor=floor)
    held = state[cohort]
    chosen = _smoothed(chosen, held, ema)
    reported = losses if loss_power else jnp.full_like(losses, jnp.nan)
    state = state.at[cohort].set(jnp.where(weights > 0, chosen, held))
    mean, fold = combine.apply(updates, chosen, anchor=anchor, local=local, key=key)
    return Aggregate(mean, state, chosen, reported, fold)

  return Aggregator(init, update, combine.fold)
