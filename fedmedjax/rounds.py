"""A trained round on the host: what it tells, and what must hold of it."""

import numpy as np

from fedmedjax.experiment import Study
from fedmedjax.fed.participation import Turnout
from fedmedjax.fed.sharing import shared_part
from fedmedjax.fed.types import RoundMetrics

# The server's step may differ from the aggregate by rounding only (METHOD section 8).
_STEP_TOLERANCE = 1e-4


def participant_names(study: Study) -> tuple[str, ...]:
  """The sites that train, or the one place where their notes are pooled."""
  return ('pooled',) if study.options.pooled else tuple(s.name for s in study.data.sites)


def metrics_line(turn: Turnout, metrics: RoundMetrics) -> dict:
  """What training adds to a round's line; lists in the order of its `sites`."""
  here = turn.cohort.present
  losses = [
    loss[:count] for loss, count in zip(metrics.train_loss[here], turn.steps[here], strict=True)]
  of_sites = {
    key: getattr(metrics, key)[here]
    for key in ('validation_loss', 'weights', 'update_norm', 'cosine')}
  return of_sites | {
    'train_loss': [np.mean(loss) if loss.size else None for loss in losses],
    'last_loss': [loss[-1] if loss.size else None for loss in losses],
    'step_norm': metrics.step_norm, 'step_cosine': metrics.step_cosine,
    'product_gap': metrics.product_gap,
  }


def check_round(study: Study, line: dict, turn: Turnout, metrics: RoundMetrics) -> list[str]:
  """METHOD section 8: what was learnt is finite and sent, and the server moved by just that.

  Returns warnings: sites whose numbers are not finite and that therefore weighed nothing.

  Raises:
    RuntimeError: no site can be used, a broken one had weight, or nothing moved.
  """
  number, shared = line['round'], bool(
    shared_part(study.sharing, study.learner.adapter, line['round'] - 1))
  came = np.flatnonzero(turn.steps)
  names = [participant_names(study)[site] for site in turn.cohort.sites[came]]
  weights, local_norm, signal = (
    values[came] for values in (metrics.weights, metrics.local_norm, metrics.validation_loss))
  broken = ~np.isfinite(local_norm) | [
    not np.isfinite(metrics.train_loss[place, :turn.steps[place]]).all() for place in came]
  unheard = shared & (weights == 0)
  for name, bad in zip(names, broken & ~unheard, strict=True):
    if bad:
      raise RuntimeError(
        f'round {number}: the loss or update of site {name} is not finite; rounds before it are '
        f'kept. Lower {study.learner.rate_key}')
  if shared and unheard.all():
    raise RuntimeError(
      f'round {number}: no site has a finite loss and update; rounds before it are kept. Lower '
      f'{study.learner.rate_key}')
  if not (local_norm[~broken] > 0).all() or (shared and not metrics.step_norm > 0):
    raise RuntimeError(f'round {number}: an update is zero, nothing was learnt')
  gap = metrics.expected_gap / max(metrics.step_norm, 1e-30)
  if study.options.adds_aggregate and not gap <= _STEP_TOLERANCE:
    raise RuntimeError(f'round {number}: the server moved by something else than the aggregate')
  # From rest every server optimiser goes the aggregate's way; later its memory may oppose it.
  if shared and number == 1 and not metrics.step_cosine > 0:
    raise RuntimeError('round 1: the server moved away from the aggregate')
  # A robust aggregator has no signal, and may leave out sites whose numbers are in order.
  lost = broken | (~np.isfinite(signal) & np.isfinite(signal).any())
  return [
    f'round {number}: site {name} weighs 0, its loss or update is not finite'
    for name, silent in zip(names, unheard & lost, strict=True) if silent]
