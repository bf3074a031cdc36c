"""Trackers: each round once whatever happened, nothing secret, and a failing one stops no run."""

import json
import sys

import pytest
from invented_run import entry, line
from tagger_run import command
from tracking_stand_ins import NAMES, stand_ins

from fedmedjax import main
from fedmedjax.store import trackers
from fedmedjax.types import InputError

SITES = ('icu', 'ward')
LINES = [line(1, SITES), line(2, SITES, train_loss=[None, 0.25]), line(3, SITES)]
SUMMARY = {'scores': {'icu': {'ner': entry(0.5)}}}
SETTINGS = {'fed.rounds': 3, 'data.sites': ['icu', 'ward']} | {f'key.{n}': n for n in range(150)}


@pytest.fixture
def kept(monkeypatch):
  for name in ('WANDB_MODE', 'WANDB_PROJECT', 'MLFLOW_TRACKING_URI', 'TRACKIO_PROJECT'):
    monkeypatch.delenv(name, raising=False)
  return stand_ins(monkeypatch)


def used(names, workdir, said=None):
  said = [] if said is None else said
  return trackers.started(names, workdir, SETTINGS, SITES, said.append)


@pytest.mark.parametrize('name', NAMES)
def test_a_run_that_goes_on_is_one_run_with_every_round_once(kept, tmp_path, name, monkeypatch):
  """It was stopped after round 2, of which only the first was saved; its scores come last."""
  monkeypatch.setenv(f'{name.upper()}_API_KEY', 'a-secret')
  with pytest.raises(KeyboardInterrupt), used([name], tmp_path) as tracker:
    tracker.restart([])
    tracker.add(LINES[:1])
    tracker.add(LINES[:2])
    raise KeyboardInterrupt
  with used([name], tmp_path) as tracker:
    tracker.restart(LINES[:1])
    tracker.add(LINES[:2])
    tracker.add(LINES)
    tracker.finish(LINES, SUMMARY)
    tracker.finish(LINES, SUMMARY)  # scored again
  (_, key, given), (_, again, _) = kept.begun
  assert key == again == json.loads((tmp_path / trackers.FILE).read_text())[name]['key']
  scores = {'f1/icu/ner/strict': 0.5, 'f1/icu/ner/lenient': 0.75}
  rounds = [number for _, _, number, numbers in kept.rounds if numbers != scores]
  assert rounds == [1, 2, 3]
  assert kept.scores == scores or kept.rounds[-1][2:] == (3, scores)
  _, _, _, second = kept.rounds[1]
  assert second['train_loss/ward'] == 0.25 and 'train_loss/icu' not in second
  assert [how for _, _, how in kept.closed] == {
    'wandb': [1, 0], 'mlflow': ['KILLED', 'FINISHED'], 'trackio': ['', '']}[name]
  assert len(given['config']) == len(SETTINGS)
  written = ''.join(path.read_text() for path in tmp_path.rglob('*') if path.is_file())
  assert 'a-secret' not in written + repr(vars(kept))


def test_nothing_leaves_the_machine_unless_it_is_told_to(kept, tmp_path, monkeypatch):
  with used(NAMES, tmp_path):
    pass
  (_, _, wandb), (_, _, mlflow), _ = kept.begun
  assert wandb['mode'] == 'offline' and wandb['settings']['console'] == 'off'
  assert mlflow['uri'] == f'sqlite:///{tmp_path.resolve()}/mlflow/runs.db'
  monkeypatch.setenv('WANDB_MODE', 'online')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', 'https://there')
  (tmp_path / 'b').mkdir()
  with used(NAMES, tmp_path / 'b'):
    pass
  assert (kept.begun[3][2]['mode'], kept.begun[4][2]['uri']) == ('online', 'https://there')
  assert not (tmp_path / 'b' / 'mlflow').exists()


def test_a_library_that_fails_is_told_no_more_and_the_run_goes_on(kept, tmp_path):
  said = []
  with used(('tensorboard', *NAMES), tmp_path, said) as tracker:
    tracker.restart([])
    kept.broken.add('mlflow')
    for count in (1, 2, 3):
      tracker.add(LINES[:count])
  assert said == ['mlflow is told no more, the run goes on: ConnectionError: mlflow is away']
  assert [name for name, *_ in kept.rounds] == ['wandb', 'trackio'] * 3
  assert (tmp_path / trackers.tensorboard.FILE).stat().st_size > 1000


def test_one_that_cannot_begin_or_is_missing_is_named(kept, tmp_path, monkeypatch):
  def nobody(**_):
    raise PermissionError('log in\nfirst')

  monkeypatch.setattr(sys.modules['wandb'], 'init', nobody)
  with pytest.raises(InputError, match='wandb does not begin: PermissionError: log in first'), (
      used(['wandb'], tmp_path)):
    pass
  for module, package in (('trackio', 'trackio'), ('mlflow', 'mlflow-skinny')):
    # A folder of this name is no library.
    (tmp_path / module).mkdir()
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f'{module} needs the package {package}; pip install'):
      trackers.check_installed(('tensorboard', module))


def test_a_run_of_main_is_told_once_and_says_what_is_missing_before_it_trains(
    kept, tmp_path, stop_after_a_round, capsys, monkeypatch):
  """Stopped after a round and gone on with, with three trackers."""
  argv = command(tmp_path / 'run', "--config.log.trackers=('wandb', 'mlflow', 'trackio')")
  stop_after_a_round(argv)
  assert main.main(argv) == 0
  for name in NAMES:
    rounds = [number for library, _, number, numbers in kept.rounds
              if library == name and 'round/seconds' in numbers]
    assert rounds == [1, 2], name
    assert len({key for library, key, *_ in kept.begun if library == name}) == 1
  assert kept.scores['f1/synthetic_icu/ner/strict'] >= 0
  assert not (tmp_path / 'run' / 'tensorboard').exists()
  monkeypatch.setitem(sys.modules, 'trackio', None)
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  assert main.main(command(tmp_path / 'other', "--config.log.trackers=('trackio',)")) == 2
  assert "log.trackers=('trackio',): trackio needs" in capsys.readouterr().err
  assert not (tmp_path / 'other').exists()
