"""Which sites of a round can be used: those whose numbers are finite and in proportion."""

import jax.numpy as jnp


def sound_sites(local_norm, sent_norm, losses, step_mask, heard, *, explosion: float):
  """bool[C]: the sites that count; the others are in quarantine for the round.

  A site is left out when its loss or update is not finite, or when it has exploded: when its
  update is longer than `explosion` times the median over the finite ones. Updates are compared per
  local step, since sites take unlike numbers of them. Of two sites none can have exploded when
  explosion is 2 or more: the longer one is at most twice their mean. Norms and losses are numbers
  that sites report, as they do n_k, so masked updates can be judged as well. Ours.

  Args:
    local_norm, sent_norm: f32[C], of what each site learnt and of what it sent.
    losses: f32[C, K], NaN at padded steps.
    step_mask: bool[C, K].
    heard: bool[C], those that sent anything.
    explosion: 0 = a finite update is never too long.
  """
  finite = heard & jnp.isfinite(local_norm) & jnp.isfinite(sent_norm)
  finite &= (jnp.isfinite(losses) | ~step_mask).all(axis=1)
  if not explosion:
    return finite
  pace = local_norm / jnp.maximum(step_mask.sum(axis=1), 1)
  # With nobody finite the median is NaN, and nobody is let in by it.
  return finite & (pace <= explosion * jnp.nanmedian(jnp.where(finite, pace, jnp.nan)))
