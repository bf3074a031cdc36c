"""The runs of a report, read from their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.report.measures import unit_of
from fedmedjax.report.warnings import zero_shot_left_out
from fedmedjax.store import files

SITES = 'sites.json'
PREDICTIONS = 'predictions'


class Run(NamedTuple):
  """One row of the tables: a run, or other answers of the run that have scores of their own.

  Other answers are those of the adapter averaged for all sites ('global') and of the untrained
  model ('zero_shot'), which is left out where it did not follow the format of answers.
  """

  name: str
  config: dict           # flat, {'fed.rounds': 3, ...}
  summary: dict          # summary.json; its `scores` are this row's
  lines: list[dict]      # of metrics.jsonl; [] for other answers of a run
  answers: Path          # folder with SITE.jsonl
  sites: dict            # sites.json; {} for a run of an older version

  @property
  def scores(self) -> dict:
    """{site: {task: scores}}."""
    return self.summary['scores']

  @property
  def own(self) -> bool:
    """Whether the row is the run itself rather than other answers of it."""
    return self.answers.name == PREDICTIONS


def method_name(summary: Mapping[str, Any]) -> str:
  """A run's preset with the parts of its user's own: 'fed_medlora with your aggregator fednova'.

  A preset of the user's own has a name of its own already, so its parts are left out.
  """
  # Of 'fed.aggregator=methods.py:fednova'.
  told = [part.partition('=') for part in summary.get('own_parts', [])]
  parts = [] if summary['preset'].startswith('own:') else [
    f'your {key.removesuffix(".kind").rpartition(".")[2].replace("_", " ")} '
    f'{value.rpartition(":")[2]}' for key, _, value in told]
  return f'{summary["preset"]} with {", ".join(parts)}' if parts else summary['preset']


def zero_shot_name(summary: Mapping[str, Any]) -> str:
  """'zero-shot', with the number of sentences where it answered fewer than the run."""
  sentences = (summary.get('zero_shot') or {}).get('sentences')
  return f'zero-shot ({max(sentences.values())} {unit_of([summary])}s)' if sentences else (
    'zero-shot')


def read_runs(folders: Mapping[str, Path]) -> list[Run]:
  """A row for each run, followed by rows for its other answers, see `Run`.

  Args:
    folders: {name: folder of a finished run}.

  Raises:
    InputError: a file cannot be read.
  """
  rows = []
  for name, folder in folders.items():
    run = Run(
      name, files.read_json(folder / 'config.json'), files.read_json(folder / 'summary.json'),
      files.read_lines(folder / 'metrics.jsonl'), folder / PREDICTIONS,
      files.read_json(folder / SITES) if (folder / SITES).exists() else {})
    rows.append(run)
    for key, beside in (
        ('global', f'{name} (global)'), ('zero_shot', zero_shot_name(run.summary))):
      if run.summary.get(key) and not (key == 'zero_shot' and zero_shot_left_out(run.summary)):
        rows.append(run._replace(
          name=beside, summary=run.summary | run.summary[key] | {'cross_site': None}, lines=[],
          answers=run.answers / key))
  return rows


def read_answers(run: Run, site: str) -> list[dict]:
  """Prediction records of a site; [] when the run was not tested there."""
  return files.read_lines(run.answers / f'{site}.jsonl')


def is_external(run: Run, site: str) -> bool:
  """Whether a site is one of the run's external cohorts, which it never trains on."""
  return site in run.summary.get('external', ())


def tested(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
  """(in-domain sites, external ones) of all runs, in their order."""
  inside, outside = {}, {}
  for run in runs:
    for site in run.scores:
      (outside if is_external(run, site) else inside)[site] = None
  return list(inside), [site for site in outside if site not in inside]
