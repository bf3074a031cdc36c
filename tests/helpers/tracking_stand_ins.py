"""Stand-ins for W&B, MLflow and trackio: what is called of them, with their signatures.

They keep what they are given, as the libraries would. `tests/store/real_trackers_test.py` does the
same with the libraries themselves.
"""

import importlib.machinery
import sys
import types
from types import SimpleNamespace

NAMES = ('wandb', 'mlflow', 'trackio')


class Kept:
  """What the stand-ins were given."""

  def __init__(self):
    self.begun = []       # (library, key, what else it was given)
    self.rounds = []      # (library, key, round, {tag: value})
    self.scores = {}      # W&B's alone: the others have them as numbers of the last round
    self.closed = []      # (library, key, how)
    self.broken = set()   # libraries that fail from now on

  def add(self, library, key, number, numbers):
    if library in self.broken:
      raise ConnectionError(f'{library} is away')
    self.rounds.append((library, key, number, dict(numbers)))


def _wandb(kept: Kept):
  def init(*, project, name, dir, id, resume, config, mode, reinit, settings):
    key = id or f'w{len(kept.begun)}'
    kept.begun.append(('wandb', key, {
      'project': project, 'config': config, 'mode': mode, 'resume': resume, 'settings': settings}))
    return SimpleNamespace(
      id=key, log=lambda data, *, step, commit: kept.add('wandb', key, step, data),
      summary=kept.scores, finish=lambda exit_code: kept.closed.append(('wandb', key, exit_code)))

  return {'wandb': {'init': init, 'Settings': dict}}


def _mlflow(kept: Kept):
  class Client:
    def __init__(self, uri):
      self.uri = uri

    def get_experiment_by_name(self, name):
      return None

    def create_experiment(self, name, artifact_location):
      return name

    def create_run(self, experiment, *, run_name):
      kept.begun.append(('mlflow', f'm{len(kept.begun)}', {'uri': self.uri}))
      return self.get_run(kept.begun[-1][1])

    def get_run(self, key):
      return SimpleNamespace(info=SimpleNamespace(run_id=key, start_time=1_000_000))

    def update_run(self, key, *, status):
      kept.begun.append(('mlflow', key, {'uri': self.uri}))

    def log_batch(self, key, metrics=(), params=()):
      assert len(metrics) <= 1000 and len(params) <= 100
      kept.begun[-1][2].setdefault('config', {}).update(params)
      if metrics:
        number, = {step for _, _, _, step in metrics}
        assert all(time >= 1_000_000 for _, _, time, _ in metrics)
        kept.add('mlflow', key, number, {tag: value for tag, value, _, _ in metrics})

    def set_terminated(self, key, status):
      kept.closed.append(('mlflow', key, status))

  return {'mlflow': {'MlflowClient': Client}, 'mlflow.entities': {
    'Metric': lambda key, value, timestamp, step: (key, value, timestamp, step),
    'Param': lambda key, value: (key, value)}}


def _trackio(kept: Kept):
  def init(project, *, name, config, resume, embed, auto_log_gpu, auto_log_cpu):
    kept.begun.append(('trackio', name, {'project': project, 'config': config, 'resume': resume}))
    return SimpleNamespace(
      log=lambda metrics, *, step: kept.add('trackio', name, step, metrics),
      finish=lambda: kept.closed.append(('trackio', name, '')))

  return {'trackio': {'init': init}}


def stand_ins(monkeypatch) -> Kept:
  """Puts them in the libraries' place, which need not be installed."""
  kept = Kept()
  made = _wandb(kept) | _mlflow(kept) | _trackio(kept) | {'sqlalchemy': {}, 'alembic': {}}
  for name, content in made.items():
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin='stand-in')
    for key, value in content.items():
      setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
  return kept
