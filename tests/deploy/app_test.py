"""The folder of a study's Flower app: it says the study again, and nothing of its user is lost."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmedjax.deploy import app
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.deployed import identity

OWN = '''import optax
def fednova(server_momentum):
  return optax.sgd(server_momentum)
def metric(predicted, target):
  return 1.0
'''


def flat(*words: str) -> dict:
  config, *_ = parse(['app', *words], lambda values: None, check=False)
  return leaves(config.to_dict())


def written(folder: Path, *words: str) -> int:
  return app.main(['app', *words, f'--output={folder}'])


def test_an_app_says_the_study_again(tmp_path, monkeypatch, capsys):
  """Every key, also those with quotes, tuples and an own preset; the user's file goes along."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'own.py').write_text(OWN)
  words = [
    '--config=fedmedjax:quickstart:fedsa_lora', '--config.fed.rounds=7',
    '--config.data.sites=("synthetic_icu","synthetic_dictation")',
    '''--config.model.path=it's "here".gguf''', '--config.optim.learning_rate=1e-4']
  assert written(tmp_path / '9 Ward_b', *words, '--workdir=C:\\ward "b"', '--deadline=5') == 0
  folder = tmp_path / '9 Ward_b'
  project = tomllib.loads((folder / 'pyproject.toml').read_text())
  assert project['project']['name'] == 'ward-b'
  assert project['tool']['flwr']['app']['config'] == {
    'workdir': 'C:\\ward "b"', 'deadline': 5.0, 'overrides': ''}
  again = f'--config={folder / "study" / "config.py"}'
  assert flat(again) == flat(*words)
  assert 'study is what every site needs' in capsys.readouterr().out
  # Once more over it, with a part of the user's own.
  own = '--config.fed.server_optimizer=mine/own.py:fednova'
  settings = leaves(parse(['app', *words, own], lambda values: None, check=False)[0].to_dict())
  nested = parse(['app', *words, own], lambda values: None, check=False)[0].to_dict()
  files = app.app_files(nested, 'b', 'b', 1.0)
  assert files['study/own.py'] == OWN
  app.write(folder, files)
  assert flat(again) == settings | {'fed.server_optimizer': 'own.py:fednova'}


@pytest.mark.parametrize('words, told', [
  ((), '--output is missing'),
  (('--output={0}/other',), "--output={0}/other: something else is there"),
  (('--output={0}/file',), "--output={0}/file: something else is there"),
  (('--output={0}/file/x',), '--output={0}/file/x: cannot be written: Not a directory'),
  (('--output={0}/x', '--deadline=nan'), '--deadline=nan: seconds from 1 to 31622400 (a year)'),
  (('--output={0}/x', '--config.fed.round=1'), "'round' is unknown; did you mean 'rounds'?"),
])
def test_wrong_input_is_one_line_and_changes_nothing(tmp_path, capsys, words, told):
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'pyproject.toml').write_text('[project]\n')
  (tmp_path / 'file').write_text('')
  words = [word.format(tmp_path) for word in words]
  assert app.main(['app', '--config=fedmedjax:quickstart', *words]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1 and told.format(tmp_path) in error
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'other']
  assert (tmp_path / 'other' / 'pyproject.toml').read_text() == '[project]\n'


def test_a_sites_own_configuration_is_as_documented(tmp_path, monkeypatch, capsys):
  """That of docs/deployment.md, around a study whose sites have names of their own."""
  monkeypatch.chdir(tmp_path)
  assert written(Path('app'), '--config=fedmedjax:quickstart', '--config.data.external=()',
                 '--config.data.sites=("icu","ward")') == 0
  (tmp_path / 'app' / 'study').rename(tmp_path / 'study')
  text = (Path(app.__file__).parents[2] / 'docs' / 'deployment.md').read_text()
  snippet, = re.findall(r'```python\n(.*?)```', text, re.S)
  (tmp_path / 'icu.py').write_text(snippet)
  study, own = flat('--config=study/config.py'), flat('--config=icu.py')
  assert {key for key in own if own[key] != study.get(key)} == {'data.folders', 'model.path'}
  parse(['site', '--config=icu.py'], lambda values: None)
  schema = SimpleNamespace(text='', words={})
  assert identity(own, schema) == identity(study, schema)


def test_two_files_of_one_name_are_refused(tmp_path):
  settings = parse(['app', '--config=fedmedjax:quickstart'], lambda values: None)[0]
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'own.py').write_text(OWN)
  settings.fed.server_optimizer = f'{tmp_path}/a/own.py:fednova'
  settings.eval.metric = f'{tmp_path}/b/own.py:metric'
  with pytest.raises(app.InputError, match='another file own.py; rename it'):
    app.app_files(settings.to_dict(), 'x', 'x', 1.0)


def test_what_can_only_be_simulated_is_no_app(tmp_path, capsys):
  assert written(
    tmp_path / 'x', '--config=fedmedjax:quickstart', '--config.fed.secure_aggregation=True') == 2
  assert 'config.fed.secure_aggregation=True: ' in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()
