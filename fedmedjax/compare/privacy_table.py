"""The table of F1 and membership by privacy budget, of docs/results.md."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.compare.study_figures import (
  Row,
  chosen,
  commits,
  figure,
  markdown,
  mean,
  usual_commit,
)
from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate

HEAD = ['model', 'unit', 'ε', 'noise', 'strict F1', 'attack by loss', 'calibrated',
        'untrained model', 'caught at 1 %', 'commit']


def audited(rows: Sequence[Row]) -> str:
  """A line a kind of audited runs: the largest lower bound beside the claim."""
  return markdown(
    ['runs', 'kind', 'claimed ε', 'largest bound', 'above the claim', 'noise, of what it has to be',
     'commit'], [[
       str(line['runs']), line['kind'], f'{line["claim"]:.3f}', f'{line["bound"]:.3f}',
       str(line['above']), f'{line["noise"]:.3f}', row['commit']]
      for row in rows for line in row['audited']])


def table(rows: Sequence[Row], cohorts: Sequence[str]) -> str:
  """A line a level and budget; means over seeds with 95 % t intervals over seeds.

  Args:
    rows: of the study; those of a language model are runs of one seed, without an attack.
    cohorts: that the language model's runs are scored on.
  """
  usual, lines = usual_commit(rows), []
  for row in rows:
    name = row['unit']
    if 'runs' in row:
      runs = row['runs']
      noise = [run['noise'] for run in runs if 'noise' in run]
      lines.append([
        f'word tagger, {len(runs)} seeds', name['level'], _budget(name['epsilon']),
        f'{noise[0]:.2f}' if noise else '0',
        *(figure(over_seeds([run[key] for run in runs]), 3) for key in (
          'f1', 'auc_loss', 'auc_calibrated', 'auc_untrained')),
        f'{100 * np.mean([run["caught"] for run in runs]):.1f} %', commits([row], usual)])
    else:
      held = chosen([row], epsilon=name['epsilon'])
      lines.append([
        f'{name["model"]}, 1 seed', name['level'], _budget(name['epsilon']), '-',
        figure(mean(held, cohorts)), '-', '-', '-', '-', commits([row], usual)])
  return markdown(HEAD, lines)


def over_seeds(values: Sequence[float]) -> Estimate:
  """The mean over seeds with its 95 % t interval."""
  found = np.asarray(values)
  return intervals.estimate(float(found.mean()), [intervals.of_seeds(found)], (0.0, 1.0))


def _budget(epsilon: str) -> str:
  return '∞' if epsilon == 'inf' else f'{float(epsilon):g}'
