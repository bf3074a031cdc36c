"""Means of scores over sites with their intervals, from the counts by source of a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedmedjax.eval import evaluate, paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.report.measures import Measure
from fedmedjax.store import files

# Of an older run, whose configuration does not say how often its sources are drawn again.
SAMPLES = 1000

# (part of counts.json: 'scores', 'global' or 'zero_shot', sites, measure, kind) -> mean, None where
# the counts do not say.
Means = Callable[[str, Sequence[str], Measure, str], Estimate | None]


def means_of(workdir: Path, predictions: Path, seed: int) -> Means:
  """The means over sites of a run; files are read when the first is asked for, and once.

  Args:
    workdir: of the run.
    predictions: its folder of answers.
    seed: of the run.
  """
  held: dict[str, Any] = {}

  def mean(part: str, sites: Sequence[str], measure: Measure, kind: str) -> Estimate | None:
    if not (sites and (predictions / evaluate.COUNTS).exists()):
      return None
    if not held:
      held.update(paired.read_answers(predictions))
      config = workdir / 'config.json'
      held['samples'] = (files.read_json(config) if config.exists() else {}).get(
        'eval.bootstrap_samples', SAMPLES)
    answers = held[part]
    if paired.having([answers], sites, measure.counted) != list(sites):
      return None
    return paired.mean_f1(
      [answers], sites, measure.counted, seed=seed, samples=held['samples'],
      kind=kind or measure.kinds[0] or 'strict')

  return mean
