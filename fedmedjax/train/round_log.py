"""A trained round on the host: what it tells, and what must hold of it."""

import numpy as np

from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.sharing import shared_part
from fedmedjax.fed.types import RoundMetrics

# The server's step may differ from the aggregate by rounding only (METHOD section 8).
_STEP_TOLERANCE = 1e-4
# Sites that the sentence about a round names.
_NAMED = 8


def participant_names(study: Study) -> tuple[str, ...]:
  """The sites that train, or the one place where their notes are pooled."""
  return ('pooled',) if study.options.pooled else tuple(s.name for s in study.data.sites)


def metrics_line(
  study: Study, execution: Execution, turn: Participation, metrics: RoundMetrics
) -> dict:
  """What training adds to a round's line; lists in the order of its `sites`.

  `useful_step_share` is steps taken over steps computed: sites that are computed together step
  together (see `fed/sites.py`).
  `quarantined` names the sites that were left out (see `fed/quarantine.py`), `skipped` is there
  when these, or those without a usable validation loss, were all, and the round changed nothing.
  """
  here = turn.cohort.present
  losses = [
    loss[:count] for loss, count in zip(metrics.train_loss[here], turn.steps[here], strict=True)]
  of_sites = {
    key: getattr(metrics, key)[here]
    for key in ('validation_loss', 'weights', 'update_norm', 'cosine')}
  out = turn.cohort.sites[(turn.steps > 0) & ~metrics.sound]
  names = participant_names(study)
  return of_sites | {
    'train_loss': [np.mean(loss) if loss.size else None for loss in losses],
    'last_loss': [loss[-1] if loss.size else None for loss in losses],
    'useful_step_share': turn.steps.sum() / study.site_map(
      execution.chunk).laid_out(turn.steps),
    'step_norm': metrics.step_norm, 'step_cosine': metrics.step_cosine,
    'product_gap': metrics.product_gap,
    'quarantined': [names[site] for site in out],
  } | ({} if (metrics.weights > 0).any() else {'skipped': True})


def check_round(study: Study, line: dict, turn: Participation, metrics: RoundMetrics) -> list[str]:
  """METHOD section 8: what was learnt is sent, and the server moved by just that.

  Returns warnings: sites that were left out, or that weigh nothing for want of a finite validation
  loss.

  Raises:
    RuntimeError: nothing moved, or not by the aggregate.
  """
  number, shared = line['round'], bool(
    shared_part(study.sharing, study.trainable.adapter, line['round'] - 1))
  came = np.flatnonzero(turn.steps)
  names = [participant_names(study)[site] for site in turn.cohort.sites[came]]
  weights, local_norm, signal, sound = (values[came] for values in (
    metrics.weights, metrics.local_norm, metrics.validation_loss, metrics.sound))
  warnings = []
  for place, name, fine in zip(came, names, sound, strict=True):
    if not fine:
      finite = np.isfinite(metrics.local_norm[place]) and np.isfinite(
        metrics.train_loss[place, :turn.steps[place]]).all()
      warnings.append(f'round {number}: site {name} is left out, ' + (
        'its update is far longer than the others\', see config.fed.explosion' if finite else
        'its loss or update is not finite'))
  if line.get('skipped'):
    return [*warnings, f'round {number}: no site is left, the adapter stays as it is']
  if not (local_norm[sound] > 0).all() or (shared and not metrics.step_norm > 0):
    raise RuntimeError(f'round {number}: an update is zero, nothing was learnt')
  gap = metrics.expected_gap / max(metrics.step_norm, 1e-30)
  if study.options.adds_aggregate and not gap <= _STEP_TOLERANCE:
    raise RuntimeError(f'round {number}: the server moved by something else than the aggregate')
  # From rest every server optimiser goes the aggregate's way; later its memory may oppose it.
  if shared and number == 1 and not metrics.step_cosine > 0:
    raise RuntimeError('round 1: the server moved away from the aggregate')
  # A robust aggregator has no signal, and may leave out sites whose numbers are in order.
  lost = sound & (weights == 0) & ~np.isfinite(signal) & np.isfinite(signal).any()
  return warnings + [
    f'round {number}: site {name} weighs 0, its validation loss is not finite'
    for name, silent in zip(names, lost, strict=True) if silent]


def round_sentence(line: dict, rounds: int) -> str:
  """What is said of a finished round."""
  head = f'round {line["round"]}/{rounds}'
  if line.get('skipped'):
    why = 'has a finite loss and update' if line.get('quarantined') else 'sent anything'
    return f'{head}: skipped, none of its {len(line["sites"])} sites {why}'
  parts = [
    f'{name} sent nothing' if loss is None else f'{name} {loss:.3f} (weight {weight:.2f})'
    for name, loss, weight in zip(line['sites'], line['train_loss'], line['weights'], strict=True)]
  more = f' and {len(parts) - _NAMED} more' if len(parts) > _NAMED else ''
  return f'{head}: mean training loss ' + ', '.join(parts[:_NAMED]) + more
