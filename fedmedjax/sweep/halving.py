"""Successive halving: after some rounds, the runs of lower validation loss go on alone.

Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, arXiv:1502.07943. We deviate in that the rounds and the share that goes on are given,
and that what is compared are choices, not runs: seeds of one choice are judged by their mean and go
on together, and only choices with the same notes are compared, since V is made of them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedmedjax.sweep.runs import Run, data_key
from fedmedjax.types import InputError


def check_halving(rounds: Sequence[int], keep: float, runs: Sequence[Run]) -> None:
  """Raises InputError where runs cannot be compared after these rounds."""
  given = f'--halving={",".join(map(str, rounds))}'
  if not rounds:
    return
  if list(rounds) != sorted(set(rounds)) or rounds[0] < 1:
    raise InputError(f'{given}: rising numbers of rounds >= 1 are allowed')
  if not 0 < keep < 1:
    raise InputError(f'--keep={keep}: the share of choices that goes on, between 0 and 1')
  for run in runs:
    if rounds[-1] >= run.values['fed.rounds']:
      raise InputError(
        f'{given}: the run {run.name} has config.fed.rounds={run.values["fed.rounds"]}; fewer '
        'rounds are allowed')
    if not run.values['data.validation_examples']:
      raise InputError(
        f'{given}: the run {run.name} has config.data.validation_examples=0, so there is no '
        'validation loss to compare by; allow at least 1')
    if not run.program:
      raise InputError(
        f'{given}: the run {run.name} is private, on several devices or without training, and '
        'cannot pause; leave it out')


def go_on(runs: Sequence[Run], losses: Mapping[str, float], keep: float) -> dict[str, bool]:
  """{name: whether the run goes on}.

  Args:
    runs: that are compared.
    losses: validation loss of each by name; one that is missing or not finite is the largest.
    keep: the share of choices that goes on, rounded up.
  """
  contests: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
  for run in runs:
    choice = repr(sorted((key, value) for key, value in run.values.items()
                         if key not in ('seed', 'data.seed')))
    contests[data_key(run.values, seeds=False)][choice].append(run)
  out = {}
  for choices in contests.values():
    means = {choice: _mean([losses.get(run.name, math.inf) for run in same])
             for choice, same in choices.items()}
    best = sorted(means, key=lambda choice: means[choice])[:math.ceil(keep * len(means))]
    out |= {run.name: choice in best for choice, same in choices.items() for run in same}
  return out


def _mean(losses: Sequence[float]) -> float:
  return sum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf
