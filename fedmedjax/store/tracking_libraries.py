"""W&B, MLflow and trackio: a run of ours as a run of theirs, in a few lines on each library.

A library is imported when it is chosen. It decides by its own environment variables where numbers
go and with which key; we read no key and write none. Without such a variable nothing leaves the
machine: W&B is offline, MLflow has a database in the run's folder, trackio one of its own. What
the libraries would report of themselves, of the machine, the code and the terminal is turned off,
unless their variables say otherwise.
"""

import contextlib
import io
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = 'fedmedjax'
# Most metrics, and most parameters, that MLflow takes at once.
_METRICS, _PARAMETERS = 1000, 100
# Signs that MLflow allows in names.
_NOT_IN_NAMES = re.compile(r'[^\w\-. :/]')
# Longest value of a parameter there.
_LONGEST = 6000

# Numbers by tag, their round, and seconds of all rounds so far.
Write = Callable[[Mapping[str, float], int, float], None]


class Log(NamedTuple):
  """A run in a library's store."""

  key: str                        # by which the library finds it again
  add: Write                      # the numbers of a round, each round once, in their order
  finish: Write                   # the final scores
  close: Callable[[bool], None]   # at the end, with whether the run is finished


class Library(NamedTuple):
  """A library that shows runs."""

  # (folder of the run, its flat settings, key of the run or '' for a new one) -> Log
  open: Callable[[Path, Mapping[str, Any], str], Log]
  needs: Mapping[str, str]        # {module: the package that has it}


def _wandb(workdir: Path, settings: Mapping[str, Any], key: str) -> Log:
  """WANDB_MODE=online sends it, WANDB_PROJECT names the project; see the library's own pages."""
  os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
  import wandb
  run = wandb.init(
    project=os.environ.get('WANDB_PROJECT', PROJECT), name=workdir.name, dir=workdir,
    id=key or None, resume='allow' if key else None, config=dict(settings),
    mode=os.environ.get('WANDB_MODE', 'offline'), reinit='create_new',
    settings=wandb.Settings(
      silent=True, console='off', disable_git=True, disable_code=True, disable_job_creation=True,
      x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True))
  return Log(
    run.id, lambda numbers, number, seconds: run.log(dict(numbers), step=number, commit=True),
    lambda numbers, *_: run.summary.update(dict(numbers)),
    lambda done: run.finish(exit_code=0 if done else 1))


def _mlflow(workdir: Path, settings: Mapping[str, Any], key: str) -> Log:
  """MLFLOW_TRACKING_URI is the server, MLFLOW_EXPERIMENT_NAME the experiment."""
  os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
  from mlflow import MlflowClient
  from mlflow.entities import Metric, Param
  logging.getLogger('mlflow').setLevel(logging.WARNING)
  folder = workdir / 'mlflow'
  there = os.environ.get('MLFLOW_TRACKING_URI')
  if not there:
    folder.mkdir(exist_ok=True)
  records = MlflowClient(there or f'sqlite:///{folder / "runs.db"}')
  if key:
    records.update_run(key, status='RUNNING')
  else:
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    known = records.get_experiment_by_name(name)
    key = records.create_run(
      known.experiment_id if known else records.create_experiment(
        name, None if there else (folder / 'artifacts').as_uri()),
      run_name=workdir.name).info.run_id
    params = [Param(name, str(value)[:_LONGEST]) for name, value in settings.items()]
    for at in range(0, len(params), _PARAMETERS):
      records.log_batch(key, params=params[at:at + _PARAMETERS])
  begun = records.get_run(key).info.start_time

  def add(numbers: Mapping[str, float], number: int, seconds: float) -> None:
    rows = [Metric(_NOT_IN_NAMES.sub('_', tag), value, begun + int(1000 * seconds), number)
            for tag, value in numbers.items()]
    for at in range(0, len(rows), _METRICS):
      records.log_batch(key, metrics=rows[at:at + _METRICS])

  return Log(key, add, add, lambda done: records.set_terminated(
    key, 'FINISHED' if done else 'KILLED'))


def _trackio(workdir: Path, settings: Mapping[str, Any], key: str) -> Log:
  """TRACKIO_DIR is the folder, TRACKIO_SPACE_ID a Space that it is sent to."""
  import trackio
  # It knows runs by their names, of which there may be several in other folders.
  key = key or f'{workdir.name}-{uuid.uuid4().hex[:8]}'
  # It prints.
  with contextlib.redirect_stdout(io.StringIO()):
    run = trackio.init(
      os.environ.get('TRACKIO_PROJECT', PROJECT), name=key, config=dict(settings), resume='allow',
      embed=False, auto_log_gpu=False, auto_log_cpu=False)

  def add(numbers: Mapping[str, float], number: int, seconds: float) -> None:
    run.log(dict(numbers), step=number)

  def close(done: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
      run.finish()

  return Log(key, add, add, close)


LIBRARIES = {
  'wandb': Library(_wandb, {'wandb': 'wandb'}),
  # Its database on disk is an extra of its own.
  'mlflow': Library(_mlflow, {
    'mlflow': 'mlflow-skinny', 'sqlalchemy': 'sqlalchemy', 'alembic': 'alembic'}),
  'trackio': Library(_trackio, {'trackio': 'trackio'})}
