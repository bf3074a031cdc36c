"""Quarantine: sites whose losses or update are not finite, or far too large, miss the round."""

import jax.numpy as jnp

from fedmedjax.fed.types import Array


def sound_sites(
  local_norm: Array, sent_norm: Array, losses: Array, step_mask: Array, heard: Array, *,
  explosion: float,
) -> Array:
  """bool[C]: True = the site's update is used; the other sites are in quarantine for the round.

  A site is left out when a loss or its update is not finite, or when its update has exploded: when
  its norm per local step exceeds `explosion` times the median over the finite sites. Norms are
  compared per step because sites take unlike numbers of steps. Of two sites none can have exploded
  when explosion is 2 or more: the longer norm is at most twice their mean. Norms and losses are
  numbers that sites report, as n_k is, so that masked updates can be judged as well; between
  hospitals, where nothing is masked, both norms are of the update that came (`apart.py`). Ours.

  Args:
    local_norm: f32[C], Euclidean norm of the update that each site learnt.
    sent_norm: f32[C], Euclidean norm of the update that it sent.
    losses: f32[C, K], nats per token; NaN at padded steps.
    step_mask: bool[C, K], False = padding.
    heard: bool[C], True = the site sent its update.
    explosion: largest norm in medians; 0 = a finite update is never too long.
  """
  finite = heard & jnp.isfinite(local_norm) & jnp.isfinite(sent_norm)
  finite &= (jnp.isfinite(losses) | ~step_mask).all(axis=1)
  if not explosion:
    return finite
  step_norm = local_norm / jnp.maximum(step_mask.sum(axis=1), 1)
  # Without a finite site the median is NaN, and no comparison with it is true.
  return finite & (step_norm <= explosion * jnp.nanmedian(jnp.where(finite, step_norm, jnp.nan)))
