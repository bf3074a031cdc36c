"""Weighted means of updates: how the weights are chosen, apart from how the mean is formed.

"A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
arXiv:2601.22124; docs/methods.md, section 3, says what is the paper's, its code's and ours.
"""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.signals import Signal, site_losses
from fedmedjax.fed.builders import is_off
from fedmedjax.fed.factors import join, precise_einsum
from fedmedjax.fed.types import Aggregate, Aggregator, Array, Combine


def adaptive_weights(
  sizes: Array, losses: Array, *, size_power: float, loss_power: float = 0.0,
  temperature: float = 1.0, floor: float = 0.0,
) -> Array:
  """log a = gamma log n - beta l / tau; w = softmax(log a); w <- (1 - eps) w + eps / C.

  Fed-MedLoRA+, arXiv:2601.22124. (gamma, beta) = (1, 0) are size weights, (0, 1) the public
  code's softmax(-l), (1, 1) Fed-MedLoRA+. A constant added to every loss changes nothing. The
  share eps is spread over the sites with a size and a finite loss only, and C is their number.

  Args:
    sizes: f32[C], n_k; a site of size 0 takes no part.
    losses: f32[C], l_k, nats per token; a site whose loss is not finite gets weight 0.
    size_power: gamma.
    loss_power: beta.
    temperature: tau > 0, in the unit of the losses.
    floor: eps in [0, 1).

  Returns:
    f32[C], sum 1; all 0 when no loss is finite.
  """
  usable = jnp.isfinite(losses) & (sizes > 0)
  log_a = size_power * jnp.log(sizes) - loss_power * losses / temperature
  log_a = jnp.where(usable, log_a, -jnp.inf)
  weights = jnp.exp(log_a - jnp.max(jnp.where(usable, log_a, jnp.finfo(log_a.dtype).min)))
  # The largest of them is 1, or all are 0.
  weights = weights / jnp.maximum(weights.sum(), 1.0)
  share = usable / jnp.maximum(usable.sum(), 1)
  return (1.0 - floor) * weights + floor * share


def size_weights(sizes: Array, present: Array, size_power: float) -> Array:
  """f32[C], bool[C] -> f32[C]: weights proportional to sizes ** size_power, sum 1.

  Sites that are not present weigh 0.
  """
  # Any finite number stands for a loss that does not count.
  return adaptive_weights(sizes, jnp.where(present, sizes, jnp.nan), size_power=size_power)


def _smoothed(weights: Array, last_weights: Array, ema: float) -> Array:
  """mu w_prev + (1 - mu) w -> f32[C], sum 1 like `weights` f32[C].

  Args:
    last_weights: f32[C], each site's weight in its last round; 0 = no past, so w_prev = w. The
      others' are of rounds with other cohorts, and share what w gives these sites together. A site
      that weighs 0 now, as its loss is not finite, stays at 0 whatever it weighed before.
  """
  known = jnp.logical_and(last_weights, weights)
  scale = jnp.sum(weights, where=known) / jnp.sum(last_weights, where=known)
  return ema * jnp.where(known, scale * last_weights, weights) + (1.0 - ema) * weights


def standardised(utility: Array, usable: Array) -> Array:
  """utility / max(1, its standard deviation) -> f32[C]; nats per answer, so never enlarged.

  The standard deviation is that of a population (over n, not n - 1) of the usable sites. However
  far the sites lie apart, none is then more than sqrt(C - 1) from their mean.

  Args:
    utility: f32[C].
    usable: bool[C], those with a finite utility that take part.
  """
  values, count = jnp.where(usable, utility, 0), jnp.maximum(usable.sum(), 1)
  apart = jnp.where(usable, values - values.sum() / count, 0)
  return utility / jnp.maximum(1, jnp.sqrt((apart**2).sum() / count))


def factor_mean() -> Combine:
  """Every tensor averaged on its own, sum_k w_k update_k: [C, *p], f32[C] -> [*p].

  FedAvg of A and of B separately, as in Fed-MedLoRA, arXiv:2601.22124.
  """
  return Combine(
    lambda updates, weights, **_: (tree.weighted_sum(updates, weights), ()), linear=True)


def _formed_loss(combine: Combine, updates, shares, judge, *, anchor, local, key):
  """The `formed_loss` of a `Utility`, in the memory of a few times C adapters, never of C^2.

  `judge`: adapters [Q, *p] -> f32[Q, G].
  """

  def formed(weights):
    mean, fold = combine.apply(updates, weights, anchor=anchor, local=local, key=key)
    return join(jax.tree.map(jnp.add, anchor, mean), fold)

  def judged(choices):
    if combine.linear:  # all of them in one matrix product
      sent = tree.where(shares > 0, updates, jax.tree.map(jnp.zeros_like, updates))
      return judge(jax.tree.map(
        lambda x, u: x[None] + precise_einsum('qc,c...->q...', choices.astype(u.dtype), u),
        anchor, sent))
    if combine.fold(anchor) == ():
      return judge(jax.lax.map(formed, choices))
    # What is folded holds the columns of all sites: one candidate is as large as C adapters.
    def judged_alone(weights):
      (loss,) = judge(jax.tree.map(lambda x: x[None], formed(weights)))
      return loss

    return jax.lax.map(judged_alone, choices)

  return judged


_LOSSES = Signal(site_losses)


def adaptive_mean(
  *, size_power: float = 1.0, loss_power: float = 0.0, temperature: float = 1.0,
  floor: float = 0.0, ema: float = 0.0, signal: Signal = _LOSSES, combine: Combine | None = None,
) -> Aggregator:
  """Weighted mean of the updates, [C, *p] -> [*p]: Fed-MedLoRA, Fed-MedLoRA+, uniform weights.

  "A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
  arXiv:2601.22124; docs/methods.md says what is the paper's text, its public code and ours.
  The utility is computed only when loss_power is not 0. The state is f32[S], the weight of each
  site in the last round in which it sent something, 0 before.

  Args:
    size_power: gamma, the power of n_k.
    loss_power: beta, the strength of the utility.
    temperature: tau > 0, in the unit of the utility (nats per token or per answer, or, where it is
      standardised, standard deviations).
    floor: eps in [0, 1), the share of the weight that is spread evenly.
    ema: mu in [0, 1): w <- mu w_prev + (1 - mu) w; w_prev is a site's weight in the last round in
      which it sent something, or w where it has sent nothing yet or its loss was not finite then.
    signal: what stands for l_k, one of `signals.py` or `products.product_norms`; lower weighs more.
    combine: how the mean is formed, `factor_mean` or one of `products.py`.
  """
  combine, judged = combine or factor_mean(), not is_off(loss_power)

  def init(adapter, num_sites):
    del adapter
    return jnp.zeros(num_sites)

  def update(updates, state, *, weights, cohort, anchor, local, key, **lazy):
    losses = jnp.zeros_like(weights)
    if judged:
      finite = jnp.isfinite(jax.vmap(tree.norm)(updates))
      shares = size_weights(weights, finite, size_power)
      losses = signal.utility(
        updates=updates, shares=shares, anchor=anchor, local=local, cohort=cohort,
        formed_loss=_formed_loss(
          combine, updates, shares, lazy.get('answer_loss'), anchor=anchor, local=local, key=key),
        **lazy)
    compared = standardised(
      losses, jnp.isfinite(losses) & (weights > 0)) if signal.standardised else losses
    chosen = adaptive_weights(
      weights, compared, size_power=size_power, loss_power=loss_power, temperature=temperature,
      floor=floor)
    last_weights = state[cohort]
    chosen = _smoothed(chosen, last_weights, ema)
    reported = losses if judged else jnp.full_like(losses, jnp.nan)
    state = state.at[cohort].set(jnp.where(weights > 0, chosen, last_weights))
    mean, fold = combine.apply(updates, chosen, anchor=anchor, local=local, key=key)
    return Aggregate(mean, state, chosen, reported, fold)

  # Weights made of a utility need every site's own update.
  needs = signal.needs.union({'single_updates'}) if judged else frozenset()
  return Aggregator(
    init, update, combine.fold, combine.columns, combine.needs.union(needs),
    gives=frozenset({'weighted_mean'}))
