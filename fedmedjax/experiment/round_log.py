"""A finished round on the host: its line in metrics.jsonl, checks of it, and its sentence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmedjax.experiment import communication, leaving
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.placing import steps_computed
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.sharing import shared_part
from fedmedjax.fed.types import RoundMetrics
from fedmedjax.runtime.phrases import duration, many
from fedmedjax.store.files import plain

# The server's step may differ from the aggregate by rounding only (docs/methods.md, section 8).
_STEP_TOLERANCE = 1e-4
# Number of sites that a sentence about a round names.
_NAMED = 8
# A site's loss has left its start upwards when it is larger by this share of it and by so many nats
# per token, since a loss near 0 differs by nothing.
_RISE, _RISE_NATS = 0.25, 0.1
# Steps of a few sentences, of unlike tasks, have losses whose standard deviation is about this
# share of their mean; a rise of less than two standard errors of a mean of few steps is none.
_SPREAD = 0.5
# What a round's sentence says of a site's validation loss, by config.fed.signal.
_SIGNALS = {
  'answer': '{:.2f} nats an answer', 'peer': 'judged {:+.2f} nats an answer',
  'loo': '{:+.2f} nats an answer', 'grad': '{:+.2f} nats an answer'}


def participant_names(study: Study) -> tuple[str, ...]:
  """The names of the sites that train; 'pooled' when all notes are trained on in one place."""
  return ('pooled',) if study.options.pooled else tuple(s.name for s in study.data.sites)


def line_before(
  study: Study, number: int, participation: Participation, lines: Sequence[dict]
) -> dict:
  """The part of the line of round `number` (from 0) that is known before it, after `lines`."""
  return communication.participation_line(
    study.communication, study.schedule, number, participation, participant_names(study),
    communication.skipped_rounds(lines))


def idle_line(line: Mapping[str, Any]) -> dict:
  """The line of a round in which no site sends anything, as JSON values: nothing changes."""
  return plain(dict(line) | {
    'skipped': True, 'weights': [0.0] * len(line['sites']), 'seconds': 0.0})


def line_after(
  study: Study, execution: Execution, participation: Participation, metrics: RoundMetrics,
  line: Mapping[str, Any], lines: Sequence[dict],
) -> tuple[dict, list[str]]:
  """(the whole line of a round as JSON values, without what stays at the sites; warnings).

  Args:
    study, execution, participation: of the round.
    metrics: of it, as numpy arrays, after `leaving.of_metrics`.
    line: of `line_before`, with the seconds and whatever else was found since.
    lines: of the rounds before.

  Raises:
    RuntimeError: see `check_round`.
  """
  whole = dict(line) | metrics_line(study, execution, participation, metrics) | execution._asdict()
  if risen := rising(whole, lines, metrics.train_loss[participation.cohort.present]):
    whole['rising'] = [name for name, *_ in risen]
  warnings = check_round(study, whole, participation, metrics, lines)
  return plain(leaving.leaving(whole, study.ledger and study.ledger.leaves)), warnings


def metrics_line(
  study: Study, execution: Execution, participation: Participation, metrics: RoundMetrics
) -> dict:
  """The keys of a round's line that training adds; lists are in the order of its `sites`.

  `useful_step_share` is steps taken over steps computed: sites that are computed together take
  padded steps until the last of them is done (see `fed/sites.py`).
  `quarantined` names the sites that were left out (see `fed/quarantine.py`). `skipped` is there
  only when no site was left, or none with a usable validation loss: the round changed nothing.
  """
  here = participation.cohort.present
  losses = [
    loss[:count] for loss, count in zip(
      metrics.train_loss[here], participation.steps[here], strict=True)]
  of_sites = {
    key: getattr(metrics, key)[here]
    for key in ('validation_loss', 'weights', 'update_norm', 'cosine')}
  quarantined = participation.cohort.sites[(participation.steps > 0) & ~metrics.sound]
  names = participant_names(study)
  return of_sites | {
    'train_loss': [np.mean(loss) if loss.size else None for loss in losses],
    'last_loss': [loss[-1] if loss.size else None for loss in losses],
    'useful_step_share': participation.steps.sum() / steps_computed(
      study, execution.chunk, participation),
    'step_norm': metrics.step_norm, 'step_cosine': metrics.step_cosine,
    'product_gap': metrics.product_gap,
    'quarantined': [names[site] for site in quarantined],
  } | _contribution(metrics, here) | (
    {} if metrics.cluster is None else {'clusters': metrics.cluster[here]}) | (
    {} if (metrics.weights > 0).any() else {'skipped': True})


def _contribution(metrics: RoundMetrics, here: np.ndarray) -> dict:
  """The keys of what each site was worth, where the run asks for it."""
  found = metrics.contribution
  return {} if found == () else {
    'contribution': found.values[here], 'contribution_error': found.error[here],
    'contribution_whole': found.whole}


def check_round(
  study: Study, line: dict, participation: Participation, metrics: RoundMetrics,
  lines: Sequence[dict],
) -> list[str]:
  """Checks that sites learnt something and that the server moved by their aggregate.

  These are faults of other systems, docs/methods.md, section 8. `lines` are those of the rounds
  before.

  Returns:
    Warnings about sites that were left out, whose training loss rises, or whose weight is 0 because
    their validation loss is not finite.

  Raises:
    RuntimeError: an update is zero, or the server did not move by the aggregate.
  """
  number, shared = line['round'], bool(shared_part(
    study.sharing, study.trainable.adapter,
    len(lines) - len(communication.skipped_rounds(lines))))
  senders = np.flatnonzero(participation.steps)
  names = [participant_names(study)[site] for site in participation.cohort.sites[senders]]
  weights, local_norm, signal, sound = (values[senders] for values in (
    metrics.weights, metrics.local_norm, metrics.validation_loss, metrics.sound))
  risen = [
    f'{name} (from {first:.3f} to {now:.3f} nats per token)' for name, first, now in rising(
      line, lines, metrics.train_loss[participation.cohort.present])]
  warnings = [
    f'round {number}: the training loss rises above its start at {_first_few(risen)}; lower '
    + study.options.rate_key] if risen else []
  for place, name, is_sound in zip(senders, names, sound, strict=True):
    if not is_sound:
      finite = np.isfinite(metrics.local_norm[place]) and np.isfinite(
        metrics.train_loss[place, :participation.steps[place]]).all()
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
  # In its first step every server optimiser moves along the aggregate; later its momentum may
  # point elsewhere.
  if shared and number == 1 and not metrics.step_cosine > 0:
    raise RuntimeError('round 1: the server moved away from the aggregate')
  # Without any finite signal the aggregator uses none, as robust ones; its weights may be 0 then.
  unusable = sound & (weights == 0) & ~np.isfinite(signal) & np.isfinite(signal).any()
  return warnings + [
    f'round {number}: site {name} weighs 0, its validation loss is not finite'
    for name, warned in zip(names, unusable, strict=True) if warned]


def rising(
  line: dict, lines: Sequence[dict], losses: np.ndarray
) -> list[tuple[str, float, float]]:
  """Sites whose training loss has left its start upwards, as (site, loss at the start, loss now).

  In a site's first round the mean of its first quarter of steps is compared with that of its last
  quarter; in later rounds the mean of its first round with that of this one. Of these a site is
  named once, not in every round that follows.

  Args:
    line: of the round.
    lines: of the rounds before.
    losses: f32[C, K] of the cohort's sites, in the order of the line; NaN at padded steps.
  """
  started: dict[str, tuple[float, int]] = {}  # site: mean loss of its first round, its steps there
  named = set()
  for earlier in lines:
    for name, count, mean in zip(
        earlier['sites'], earlier['steps'], earlier.get('train_loss', ()), strict=False):
      if mean is None or not math.isfinite(mean):
        continue
      if name in started and _has_risen(*started[name], mean, count):
        named.add(name)
      started.setdefault(name, (mean, count))
  out = []
  for name, count, own in zip(line['sites'], line['steps'], losses, strict=True):
    own = own[:count]
    if name in named or not count or not np.isfinite(own).all():
      continue
    quarter = max(1, count // 4)
    first, before, now, after = (*started[name], own.mean(), count) if name in started else (
      own[:quarter].mean(), quarter, own[-quarter:].mean(), quarter)
    if _has_risen(first, before, now, after):
      out.append((name, float(first), float(now)))
  return out


def _has_risen(first: float, before: int, now: float, after: int) -> bool:
  """Whether a mean of `after` losses lies above an earlier one of `before` losses, beyond noise."""
  noise = 2 * _SPREAD * math.sqrt(1 / before + 1 / after)
  return now > max((1 + max(_RISE, noise)) * first, first + _RISE_NATS)


def round_sentence(line: dict, rounds: int, signal: str = '', own_aggregator: bool = False) -> str:
  """The sentence that is printed after a round.

  Args:
    line: of the round.
    rounds: of the run.
    signal: that of `Options`.
    own_aggregator: whether a user's aggregator weighs the sites, in a way that is not known.
  """
  head = f'round {line["round"]}/{rounds}'
  if line.get('skipped'):
    why = 'has a finite loss and update' if line.get('quarantined') else 'sent anything'
    return f'{head}: skipped, none of its {len(line["sites"])} sites {why}'
  took = f'{duration(line["seconds"])}, ' if line.get('seconds') else ''
  if 'privacy' in line:
    return (f'{head}: {took}{many(len(line["sites"]), "site")}, '
            f'{many(line["local_steps"], "step")}, losses stay there')
  form, parts = _SIGNALS.get(signal), []
  for name, loss, weight, value in zip(
      line['sites'], line['train_loss'], line['weights'], line['validation_loss'], strict=True):
    beside = ([] if own_aggregator else [f'weight {weight:.2f}']) + (
      [] if form is None or value is None else [form.format(value)])
    parts.append(f'{name} sent nothing' if loss is None else f'{name} {loss:.3f}' + (
      f' ({", ".join(beside)})' if beside else ''))
  return f'{head}: {took}mean training loss ' + _first_few(parts)


def _first_few(parts: Sequence[str]) -> str:
  more = f' and {len(parts) - _NAMED} more' if len(parts) > _NAMED else ''
  return ', '.join(parts[:_NAMED]) + more
