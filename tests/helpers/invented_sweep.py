"""Folders of sweeps that never ran, made out of the files of one run that did."""

import copy
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invented_run import write


def invent_sweep(
  folder: Path, run: Path, grid: Mapping[str, Sequence[Any]],
  score: Callable[[Mapping[str, Any]], float], failed: Mapping[str, str] | None = None,
) -> Path:
  """A sweep over all points of a grid; every site of a run has the same F1.

  Args:
    folder: of the sweep.
    run: folder of a finished run, whose files the runs have but for what the grid changes.
    grid: {key: its values}.
    score: (overrides) -> F1; bytes are half a megabyte times the length of the preset's name.
    failed: {name of a run: what went wrong}.
  """
  config, summary = (json.loads((run / name).read_text()) for name in (
    'config.json', 'summary.json'))
  runs = []
  for number, values in enumerate(itertools.product(*grid.values())):
    overrides, name = dict(zip(grid, values, strict=True)), f'run_{number:03}'
    error = (failed or {}).get(name, '')
    runs.append({'name': name, 'overrides': overrides, 'status': 'failed' if error else 'done',
                 'error': error})
    inside = folder / 'runs' / name
    write(inside / 'config.json', config | overrides)
    shutil.copy(run / 'metrics.jsonl', inside)
    if error:
      continue
    preset = overrides.get('fed.preset', config['fed.preset'])
    mine = copy.deepcopy(summary) | {
      'preset': preset, 'seed': overrides.get('seed', config['seed']),
      'bytes_up': 250_000 * len(preset), 'bytes_down': 250_000 * len(preset)}
    for tasks in mine['scores'].values():
      tasks['ner']['strict']['typed']['f1'] = score(overrides)
    write(inside / 'summary.json', mine)
  write(folder / 'sweep.json', {
    'runs': runs, 'grid': [[key, list(values)] for key, values in grid.items()],
    # As older versions kept it: with the path of the program.
    'command': [
      '/a/b/sweep/__main__.py', f'--workdir={folder}', '--grid=seed=0..1;fed.preset=a,b,c']})
  return folder
