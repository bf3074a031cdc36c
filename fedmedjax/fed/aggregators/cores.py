"""RAVAN's mean: cores are averaged times their scalings, which start anew.

Raje, Askin, Jhunjhunwala & Joshi, "Ravan: Multi-Head Low-Rank Adaptation for Federated
Fine-Tuning", NeurIPS 2025, arXiv:2506.05568; see `model/heads.py`. With frozen bases the mean of
s_i H_i is the mean of the products, exactly. The paper's sites send s_i H_i alone; here both
leaves are sent, one number a head more.
"""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.types import Combine


def scaled_cores() -> Combine:
  """h <- sum_k w_k s_k h_k and s <- 1, [C, *p] -> [*p]; what is no core is averaged as it is.

  Cores are leaves 'h' [.., heads, r, r] beside their scalings 's' [.., heads].
  """
  def apply(updates, weights, *, anchor, local, **_):
    def moved(update, start, own):
      if not isinstance(update, dict):
        return tree.weighted_sum(update, weights)
      if 'h' not in update:
        return {name: moved(update[name], start[name], own[name]) for name in update}
      rest = {name: x for name, x in update.items() if name not in 'hs'}
      mean = tree.weighted_sum(own['s'][..., None, None] * own['h'], weights)
      return tree.weighted_sum(rest, weights) | {
        'h': mean - start['h'], 's': 1.0 - start['s']}

    step = moved(updates, anchor, local)
    return jax.tree.map(lambda x: jnp.where(weights.sum() > 0, x, 0), step), ()

  return Combine(apply, needs=frozenset({
    'single_updates', 'plain_server', 'no_control_variates', 'no_error_feedback', 'cores'}))
