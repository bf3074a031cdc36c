"""The runs of a sweep and what they say of each other: means, paired differences, ranks.

An **arm** is a value of the axis that is compared, of a grid with methods the method. A **setting**
is a value of all other axes, and a **repeat** a seed. Runs of two arms are paired where setting and
seed are equal. A folder may hold the runs of several grids, so a run need not set every axis: where
it does not, its value is that of its configuration. Everything is from sweep.json and the folders
of the runs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate
from fedmedjax.report.measures import Measure
from fedmedjax.report.runs import PREDICTIONS, Run
from fedmedjax.report.scores import mean_score, measured
from fedmedjax.store import files
from fedmedjax.store.results import RUNS, SWEEP
from fedmedjax.types import InputError

PRESET = 'fed.preset'
# Axes whose values repeat an experiment.
_REPEATS = ('seed', 'data.seed')
# The value along an axis that a run does not set and its configuration does not tell.
_UNSET = '(unset)'


class SweepRun(NamedTuple):
  """A run of a sweep."""

  name: str
  overrides: Mapping[str, Any]   # {key: value}
  status: str                    # 'done', 'failed', 'refused', 'stopped' or 'waiting'
  error: str                     # of a failed one, in words
  score: float                   # mean over the in-domain sites; NaN unless it is done
  bytes: float                   # of all messages; NaN unless it is done
  values: Mapping[str, str] = {}  # {key that any run sets: its value in words}, see `_valued`


class Block(NamedTuple):
  """Where runs of unlike arms can be compared."""

  setting: tuple[str, ...]
  repeat: tuple[str, ...]


class Sweep(NamedTuple):
  """All runs, and the done ones by what they are compared in."""

  runs: Sequence[SweepRun]
  measure: Measure | None                 # what is scored; None = no run is done
  axes: Mapping[str, Sequence[str]]       # {key: its values in words}, of those with several
  axis: str                               # the one that is compared; '' = there is none
  table: Mapping[str, Mapping[Block, SweepRun]]  # {arm: its done runs}

  @property
  def arms(self) -> list[str]:
    """Those with a run that is done, in the order of the grid."""
    return [arm for arm in self.axes.get(self.axis, ('',)) if self.table.get(arm)]

  @property
  def blocks(self) -> list[Block]:
    """Those in which any arm is done."""
    return list(dict.fromkeys(block for runs in self.table.values() for block in runs))

  @property
  def seeds(self) -> int:
    """How many seeds there are."""
    return len({block.repeat for block in self.blocks})

  def value(self, run: SweepRun, key: str) -> str:
    """The value of a run along an axis, in words."""
    return run.values[key]

  @property
  def settings(self) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(block.setting for block in self.blocks))


def said(value: Any) -> str:
  """A value of the grid in words."""
  if isinstance(value, str):
    return value
  if not isinstance(value, float):
    return json.dumps(value)
  short = f'{value:g}'
  return short if float(short) == value else repr(value)


def read_sweep(workdir: Path) -> Sweep:
  """Reads a sweep's folder.

  Raises:
    InputError: there is no sweep.json, or a file cannot be read, or two runs differ in nothing that
      any run sets.
  """
  stored = files.read_json(workdir / SWEEP)
  try:
    entries, grid = stored['runs'], dict(stored.get('grid') or ())
    done = {entry['name']: _run(entry['name'], workdir / RUNS / entry['name'])
            for entry in entries if entry['status'] == 'done'}
    first = measured(list(done.values()))
    measure = first[0] if first else None
    runs = _valued([_scored(entry, done.get(entry['name']), measure) for entry in entries], done)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(f'{workdir / SWEEP}: is no list of runs ({error!r})') from None
  axes = _axes(runs, grid)
  axis = PRESET if PRESET in axes else next((key for key in axes if key not in _REPEATS), '')
  table: dict[str, dict[Block, SweepRun]] = {}
  for run in runs:
    if np.isfinite(run.score):
      values = {key: run.values[key] for key in axes}
      block = Block(
        tuple(value for key, value in values.items() if key not in (axis, *_REPEATS)),
        tuple(value for key, value in values.items() if key in _REPEATS))
      other = table.setdefault(values.get(axis, ''), {}).setdefault(block, run)
      if other is not run:
        raise InputError(
          f'{workdir / SWEEP}: the runs {other.name} and {run.name} differ in nothing that a grid '
          'has set, so they cannot be told apart; runs of unlike overrides are allowed')
  return Sweep(
    runs, measure, {key: values for key, values in axes.items() if key not in _REPEATS}, axis,
    table)


def _run(name: str, folder: Path) -> Run:
  config, summary = (files.read_json(folder / f'{file}.json') for file in ('config', 'summary'))
  return Run(name, config, summary, [], folder / PREDICTIONS, {})


def _scored(entry: Mapping[str, Any], run: Run | None, measure: Measure | None) -> SweepRun:
  score = mean_score(run, measure) if run and measure else np.nan
  sent = run.summary['bytes_up'] + run.summary['bytes_down'] if run else np.nan
  return SweepRun(entry['name'], entry.get('overrides') or {}, entry['status'],
                  entry.get('error') or '', score, float(sent))


def _valued(runs: Sequence[SweepRun], done: Mapping[str, Run]) -> list[SweepRun]:
  """The runs with their values; those that are not done have no others than they set.

  Where a run does not set a key, the key has the value that all runs begin with, unless its preset
  or an axis of several keys changes it. So where such runs have unlike values in their
  configurations, they differ along another axis already. The value of all of them is then `_UNSET`,
  and methods whose own values of the key are unlike stay paired.
  """
  values = {run.name: {key: said(value) for key, value in run.overrides.items()} for run in runs}
  for key in dict.fromkeys(key for run in runs for key in run.overrides):
    unset = {name: said(run.config[key]) if key in run.config else _UNSET
             for name, run in done.items() if key not in values[name]}
    alike = len({*unset.values()}) == 1
    for name, value in unset.items():
      values[name][key] = value if alike else _UNSET
  return [run._replace(values=values[run.name]) for run in runs]


def _axes(runs: Sequence[SweepRun], grid: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
  """{key: values in words} of the keys with several values; those of a grid in its order."""
  keys = dict.fromkeys([*grid, *(key for run in runs for key in run.overrides)])
  values = {key: dict.fromkeys(run.values[key] for run in runs if key in run.values)
            for key in keys}
  return {
    key: [*(one for one in map(said, grid.get(key, ())) if one in found),
          *(one for one in found if one not in set(map(said, grid.get(key, ()))))]
    for key, found in values.items() if len(found) > 1}


def over_seeds(values: Mapping[Block, float], limits: tuple[float, float], *, test: bool = False
               ) -> Estimate:
  """A mean with a t interval over seeds; of each seed first the mean over its settings.

  Args:
    values: of each block.
    limits: the least and the largest value that there can be.
    test: whether it may be 0 by chance, as a difference.
  """
  each = np.array([
    np.mean([value for block, value in values.items() if block.repeat == repeat])
    for repeat in dict.fromkeys(block.repeat for block in values)])
  return intervals.estimate(float(each.mean()), [intervals.of_seeds(each)], limits, test=test)


class Difference(NamedTuple):
  """An arm minus another one, over the blocks that both have."""

  arm: str
  estimate: Estimate
  blocks: int
  holm: float | None   # p by Holm's correction over all arms that are compared


def differences(sweep: Sweep, baseline: str) -> list[Difference]:
  """Every other arm minus `baseline`, those without a block in common left out."""
  found = []
  for arm in sweep.arms:
    pairs = paired(sweep, arm, baseline)
    if arm != baseline and pairs:
      found.append((arm, over_seeds(pairs, limits_of(sweep), test=True), len(pairs)))
  corrected = intervals.holm([estimate.p for _, estimate, _ in found])
  return [Difference(*one, p) for one, p in zip(found, corrected, strict=True)]


def paired(sweep: Sweep, arm: str, baseline: str, setting: tuple[str, ...] | None = None
           ) -> dict[Block, float]:
  """{block: score of the arm minus that of the baseline}, of all settings or one."""
  ours, theirs = sweep.table[arm], sweep.table[baseline]
  return {block: run.score - theirs[block].score for block, run in ours.items()
          if block in theirs and setting in (None, block.setting)}


def limits_of(sweep: Sweep) -> tuple[float, float]:
  """Ends of what a difference can be."""
  return (-1.0, 1.0) if sweep.measure is None or sweep.measure.shipped else (-np.inf, np.inf)


def ranks(sweep: Sweep) -> tuple[dict[str, dict[Block, float]], list[str]]:
  """({arm: {block: its rank, 1 = the highest score}}, arms that are left out).

  Ranked are arms that are done in half of the blocks, in the blocks that all of them have. Equal
  scores share the mean of their ranks.
  """
  blocks = sweep.blocks
  ranked = [arm for arm in sweep.arms if 2 * len(sweep.table[arm]) >= len(blocks)]
  whole = [block for block in blocks if all(block in sweep.table[arm] for arm in ranked)]
  found: dict[str, dict[Block, float]] = {arm: {} for arm in ranked}
  for block in whole:
    for arm, rank in zip(
        ranked, rankdata([-sweep.table[arm][block].score for arm in ranked]), strict=True):
      found[arm][block] = float(rank)
  return (found if whole else {}), [arm for arm in sweep.arms if arm not in ranked]


def mean_of(runs: Iterable[SweepRun]) -> float:
  """Mean score; NaN of none."""
  scores = [run.score for run in runs]
  return float(np.mean(scores)) if scores else np.nan


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
  """The names of those (bytes, score) that none other beats, by their bytes.

  One is beaten by another that sends no more and scores no less, and differs in one of the two.
  """
  best = [
    name for name, (sent, score) in points.items() if not any(
      other[0] <= sent and other[1] >= score and other != (sent, score)
      for other in points.values())]
  return sorted(best, key=lambda name: points[name])
