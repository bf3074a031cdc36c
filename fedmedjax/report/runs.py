"""What a report reads: the files of runs, and the answers in them that are scored apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedmedjax.store import files

SITES = 'sites.json'
PREDICTIONS = 'predictions'


class Run(NamedTuple):
  """One row of the tables: a run, or answers of it that are scored beside its own."""

  name: str
  config: dict           # flat
  summary: dict          # its `scores` are this row's
  lines: list[dict]      # of the rounds; () for answers beside a run's own
  answers: Path          # folder of its SITE.jsonl
  sites: dict            # of sites.json, {} where an older run has none

  @property
  def scores(self) -> dict:
    return self.summary['scores']

  @property
  def own(self) -> bool:
    """Whether these are the run's own answers."""
    return self.answers.name == PREDICTIONS


def read_runs(folders: Mapping[str, Path]) -> list[Run]:
  """The runs, each with the answers of its one adapter for all and of the untrained model behind
  it, where it has them.

  Raises InputError when a file cannot be read.
  """
  rows = []
  for name, folder in folders.items():
    run = Run(
      name, files.read_json(folder / 'config.json'), files.read_json(folder / 'summary.json'),
      files.read_lines(folder / 'metrics.jsonl'), folder / PREDICTIONS,
      files.read_json(folder / SITES) if (folder / SITES).exists() else {})
    rows.append(run)
    for key, beside in (('global', f'{name} (global)'), ('zero_shot', 'zero-shot')):
      if run.summary.get(key):
        rows.append(run._replace(
          name=beside, summary=run.summary | run.summary[key] | {'cross_site': None}, lines=[],
          answers=run.answers / key))
  return rows


def read_answers(run: Run, site: str) -> list[dict]:
  """Prediction records of a site; none where the run did not answer it."""
  return files.read_lines(run.answers / f'{site}.jsonl')


def is_external(run: Run, site: str) -> bool:
  return site in run.summary.get('external', ())


def tested(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
  """(in-domain sites, external ones) of all runs, in their order."""
  inside, outside = {}, {}
  for run in runs:
    for site in run.scores:
      (outside if is_external(run, site) else inside)[site] = None
  return list(inside), [site for site in outside if site not in inside]
