"""DP-FedAvg: the clipped, noised sum of the sites' updates over a number that the config fixes.

McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models", ICLR
2018, arXiv:1710.06963; see `fed/private_sums.py`. The unit that is protected is a site, in one
round: what a round releases is a Gaussian mechanism of noise multiplier `noise`, whatever the sites
sent. Which sites took part, their n_k and their number are not hidden.

Which factors to share. With FFA-LoRA (Sun et al., ICLR 2024, arXiv:2403.12313; sharing 'only_b')
the product A B is linear in what is sent: the noise on it is Gaussian, of first order and of a size
that A fixes, and half as many numbers share one clip. With A and B both sent and clipped by their
norm the promise is as sound, since it is about the numbers that are sent; but the noise on the
product, A nB + nA B + nA nB, has a second-order term and a size that depends on how the product is
split between the factors. The gauge-invariant clip (`fed/gauge.py`) has neither.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed import gauge
from fedmedjax.fed.aggregators.signals import Signal
from fedmedjax.fed.aggregators.weighted_mean import adaptive_weights, standardised
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_sums import NoiseFn, bounded_weights, clipped, fresh_noise
from fedmedjax.fed.types import Aggregate, Aggregator, Array, Tree

# (contributions [C, *q] of at most the norm `clip`, weights f32[C] in [0, 1], bound f32[],
# the round's key, releases so far i32[]) -> (their noised sum [*q], usable bool[])
SumFn = Callable[[Tree, Array, Array, Array, Array], tuple[Tree, Array]]


class Space(NamedTuple):
  """Where contributions are clipped and noise is added, as coordinates of equal length."""

  contributions: Callable[[Tree, Tree], Tree]  # (updates [C, *p], anchor [*p]) -> [C, *q]
  step: Callable[[Tree, Tree], Tree]           # (mean [*q], anchor [*p]) -> update [*p]
  needs: frozenset[str] = frozenset()


# The numbers of the update themselves.
FACTORS = Space(lambda updates, anchor: updates, lambda mean, anchor: mean)


def _tangents(updates, anchor):
  frame = gauge.frames(anchor)
  return jax.lax.map(lambda update: gauge.change_coordinates(frame, anchor, update), updates)


def _tangent_step(mean, anchor):
  frame = gauge.frames(anchor)
  after = gauge.retracted(frame, anchor, gauge.projected(frame, mean))
  return jax.tree.map(jnp.subtract, after, anchor)


# The tangent space of the product of each pair, PRISM's; see `fed/gauge.py`.
PRODUCTS = Space(_tangents, _tangent_step, frozenset({'both_factors', 'plain_server', 'one_rank'}))
SPACES = {'norm': FACTORS, 'gauge': PRODUCTS}


def gaussian_sum(private: Private, noise: NoiseFn | None = None) -> SumFn:
  """sum_k w_k v_k + N(0, (noise * bound)^2), [C, *q] -> [*q]; whoever adds up adds the noise.

  Args:
    private: clip and noise multiplier.
    noise: independent in every round, or of `correlated_noise.py`.
  """
  drawn = noise or fresh_noise()

  def noised(contributions, weights, bound, key, number):
    total = tree.weighted_sum(contributions, weights)
    if not private.noise:  # 0 times a bound that is infinite would be no number
      return total, jnp.bool_(True)
    added = drawn(key, number, total, private.noise * bound)
    return jax.tree.map(jnp.add, total, added), jnp.bool_(True)

  return noised


def private_mean(
  private: Private, *, size_power: float = 0.0, size_cap: float = 0.0, loss_power: float = 0.0,
  temperature: float = 1.0, floor: float = 0.0, signal: Signal | None = None,
  total: SumFn | None = None, needs: frozenset[str] = frozenset(),
) -> Aggregator:
  """(sum_k p_k s_k clip(v_k) + noise) / denominator, [C, *p] -> [*p].

  s_k in [0, 1] is made of the site's own size (`private_sums.bounded_weights`). p_k is 1, or, where
  `loss_power` is above 0, C' times the softmax of the noised validation losses over the C' sites
  that sent something: a function of what was released before, so that it costs nothing again. One
  site then moves the sum by clip * max p, and the noise is `noise` times that. The state is i32[],
  the number of releases before.

  Args:
    private: clip, noise multiplier, denominator and clipping ('norm' or 'gauge').
    size_power, size_cap: see `bounded_weights`.
    loss_power, temperature, floor: see `weighted_mean.adaptive_weights`.
    signal: of losses per answer, which have to be noised, see `fed/private_losses.py`.
    total: how the sum is formed; None = `gaussian_sum(private)`.
    needs: of `Aggregator.needs`, beside those of the clipping.
  """
  space, total = SPACES[private.clipping], total or gaussian_sum(private)

  def update(updates, state, *, weights, cohort, anchor, local, key, answer_loss=None,
             group_site=None, **_):
    sends = weights > 0
    own = bounded_weights(weights, size_cap, size_power)
    losses, public = jnp.full_like(weights, jnp.nan), jnp.ones_like(weights)
    if loss_power and signal is not None:
      losses = signal.utility(
        local=local, shares=sends / jnp.maximum(sends.sum(), 1), cohort=cohort,
        answer_loss=answer_loss, group_site=group_site)
      compared = standardised(
        losses, jnp.isfinite(losses) & sends) if signal.standardised else losses
      public = sends.sum() * adaptive_weights(
        sends.astype(weights.dtype), compared, size_power=0.0, loss_power=loss_power,
        temperature=temperature, floor=floor)
    largest = jnp.maximum(public.max(), 1e-30)
    contributions = clipped(space.contributions(updates, anchor), private.clip)
    # Divided by the largest, every weight is in [0, 1] again.
    noised, usable = total(
      contributions, own * (public / largest), jnp.float32(private.clip), key, state)
    mean = jax.tree.map(lambda x: x * (largest / private.denominator).astype(x.dtype), noised)
    chosen = jnp.where(usable, own * public / private.denominator, 0.0)
    return Aggregate(space.step(mean, anchor), state + 1, chosen, losses)

  asked = signal.needs if loss_power and signal is not None else frozenset()
  return Aggregator(
    lambda adapter, num_sites: jnp.int32(0), update, needs=space.needs | asked | needs,
    gives=frozenset({'noise'}))
