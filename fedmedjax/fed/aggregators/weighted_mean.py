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
  floor: float = 0.0, ema: float = 0.0, utility=site_losses, combine: Combine | None = None,
) -> Aggregator:
  """Weighted mean of the updates: Fed-MedLoRA, Fed-MedLoRA+, uniform and their relatives.

  "A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
  arXiv:2601.22124; which parts are the paper's, the public code's and ours: METHOD section 3.
  The utility is computed only when loss_power is not 0.

  Args:
    size_power: gamma, the power of n_k.
    loss_power: beta, the strength of the utility.
    temperature: tau > 0.
    floor: eps in [0, 1), the share spread evenly.
    ema: mu in [0, 1): w <- mu w_prev + (1 - mu) w, renormalised over the cohort; a site's
      previous weight is the one of the last round in which it sent something.
    utility: what stands for l_k: `site_losses`, `leave_one_out`, `alignment` or
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
      losses = utility(updates=updates, shares=shares, anchor=anchor, local=local, **lazy)
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
    mean, fold = combine.apply(updates, chosen, anchor=anchor, local=local, key=key)
    return Aggregate(mean, state, chosen, reported, fold)

  # Weights made of a utility need every site's own update.
  needs = frozenset({'single_updates'} if loss_power else ())
  return Aggregator(init, update, combine.fold, combine.columns, combine.needs | needs)
