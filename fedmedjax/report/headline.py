"""The sentence that a report of a single run begins with: what was reached, on what, how surely."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.eval import evaluate, paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.report.means import SAMPLES
from fedmedjax.report.measures import Measure, unit_of
from fedmedjax.report.runs import PREDICTIONS, Run, is_external
from fedmedjax.report.scores import measured, score_at
from fedmedjax.report.warnings import zero_shot_left_out


def headline(run: Run) -> str:
  """One sentence about a run, '' where nothing was scored.

  A trained run is set against the untrained model where that was scored and followed the format of
  answers, else it has its own score with an interval.
  """
  measures = measured([run])
  if not measures:
    return ''
  measure, summary = measures[0], run.summary
  inside = [site for site in run.scores if not is_external(run, site)]
  sites = [site for site in inside or run.scores if np.isfinite(score_at(run, site, measure))]
  if not sites:
    return ''
  trained = summary.get('local_steps') or summary['preset'].startswith('api:')
  who = run.name if trained else f'Without training, {run.name}'
  begin = f'{who} answers with a mean {measure.name} of ' if measure.of_text else (
    f'{who} finds {measure.name} with a mean strict F1 of ')
  mean = float(np.mean([score_at(run, site, measure) for site in sites]))
  on = _tested_on(run, sites)
  own, gained = _estimates(run, measure, sites)
  if gained is None:
    interval = '' if own is None or own.low is None else f' [95 %: {own.low:.3f} to {own.high:.3f}]'
    return f'{begin}{mean:.3f}{interval} on {on}, seed {summary["seed"]}.'
  told = f'{abs(gained.value):.3f}' + (
    '' if gained.low is None else f' [95 %: {gained.low:+.3f} to {gained.high:+.3f}]')
  if gained.low is not None and gained.low <= 0 <= gained.high:
    return (f'{begin}{mean:.3f} on {on}, which is not told apart from the untrained '
            f'model{_asked_of(summary)} ({gained}), seed {summary["seed"]}.')
  if not gained.value:
    return f'{begin}{mean:.3f} on {on}, as the untrained model{_asked_of(summary)}, seed ' + (
      f'{summary["seed"]}.')
  return (f'{begin}{mean:.3f} on {on}, {told} {"above" if gained.value > 0 else "below"} the '
          f'untrained model{_asked_of(summary)}, seed {summary["seed"]}.')


def _asked_of(summary: dict) -> str:
  """On what a run is set against the untrained model, where that answered fewer sentences."""
  few = summary['zero_shot'].get('sentences')
  return f' (on {max(few.values())} {unit_of([summary])}s of each)' if few else ''


def _estimates(
  run: Run, measure: Measure, sites: Sequence[str]
) -> tuple[Estimate | None, Estimate | None]:
  """(mean F1 with its interval, what it is above zero-shot); None where counts do not say."""
  folder, score = run.answers.parent / PREDICTIONS, measure.counted
  if not (folder / evaluate.COUNTS).exists():
    return None, None
  answers = paired.read_answers(folder)
  draws = {
    'seed': run.summary['seed'], 'samples': run.config.get('eval.bootstrap_samples', SAMPLES)}
  if paired.having([answers['scores']], sites, score) != list(sites):
    return None, None
  own = paired.mean_f1([answers['scores']], sites, score, **draws)
  before = answers['zero_shot']
  shown = before and not zero_shot_left_out(run.summary) and (
    paired.having([before], sites, score) == list(sites))
  return own, paired.difference(
    [answers['beside_zero_shot'] or answers['scores']], [before], sites, score, **draws) if (
      shown) else None


def _tested_on(run: Run, sites: Sequence[str]) -> str:
  """What the score is a score of: '3 sites (18 test notes)'."""
  held = run.sites.get('sites', {})
  notes = sum(held[site]['test_notes'] for site in sites) if all(
    site in held for site in sites) else 0
  number = f'{len(sites)} site{"s" * (len(sites) > 1)}'
  what = 'row' if unit_of([run.summary]) == 'row' else 'note'
  return number + (f' ({notes:,} test {what}{"s" * (notes > 1)})' if notes else '')
