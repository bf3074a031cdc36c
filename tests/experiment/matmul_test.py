"""Who decides config.model.matmul: the user, else the run that is there, else a trial."""

import json

import pytest
from rich.console import Console

from fedmedjax import api
from fedmedjax.compare import regimes, scenarios
from fedmedjax.compare.rows import Study
from fedmedjax.compare.study import identity
from fedmedjax.compare.study_units import STUDIES
from fedmedjax.experiment import defaults, matmul
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.shipped import quickstart
from fedmedjax.experiment.types import Data
from fedmedjax.predict import folder, trained
from fedmedjax.runtime import product_trial
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import plain
from fedmedjax.train import dry_run, run
from fedmedjax.types import InputError


@pytest.fixture
def told(capsys) -> Reporter:
  return Reporter(Console(width=200))


@pytest.fixture
def gain(monkeypatch):
  """gain(number) plants what the trial finds, and counts the trials."""
  trials = []

  def plant(number: float) -> list:
    monkeypatch.setattr(product_trial, 'lacks_units', lambda: False)
    monkeypatch.setattr(product_trial, 'bfloat16_gain', lambda: trials.append(number) or number)
    return trials

  return plant


def config(**changes):
  chosen = defaults.get_config('fed_medlora')
  chosen.update_from_flattened_dict({key.replace('__', '.'): value
                                     for key, value in changes.items()})
  return chosen


def began(workdir, **changes):
  """A run's folder that holds its config.json only."""
  workdir.mkdir()
  (workdir / 'config.json').write_text(
    json.dumps(plain(leaves(config(**changes).to_dict()))))
  return workdir


@pytest.mark.parametrize('found, expected', [(1.3, 'bfloat16'), (1.29, 'float32'), (8, 'bfloat16')])
def test_a_trial_decides_and_says_so(found, expected, gain, told, capsys):
  trials, asked = gain(found), config()
  settled = matmul.settled(asked, told)
  assert settled.model.matmul == expected and asked.model.matmul == 'auto' and len(trials) == 1
  said = capsys.readouterr().out
  assert said.count('\n') == 1 and f'model.matmul: {expected} products (this CPU ' in said
  # Nothing is left to decide.
  assert matmul.settled(settled, told).model.matmul == expected and len(trials) == 1


@pytest.mark.parametrize('changes', [
  {'model__matmul': 'float32'}, {'model__dtype': 'bfloat16'}, {'fed__learner': 'tagger'}])
def test_float32_without_a_trial(changes, gain, told, capsys):
  """Asked for; where a CPU has no choice; and where no LLaMA is multiplied."""
  trials = gain(4.0)
  assert matmul.settled(config(**changes), told).model.matmul == 'float32'
  assert not trials and not capsys.readouterr().out


def test_a_cpu_without_units_has_no_trial(gain, told, monkeypatch, capsys):
  trials = gain(4.0)
  monkeypatch.setattr(product_trial, 'lacks_units', lambda: True)
  assert matmul.settled(config(), told).model.matmul == 'float32'
  assert not trials and not capsys.readouterr().out


def test_accelerators_have_no_trial(gain, told, monkeypatch):
  trials = gain(4.0)
  monkeypatch.setattr(matmul.jax, 'default_backend', lambda: 'gpu')
  assert matmul.settled(config(), told).model.matmul == 'float32' and not trials


def test_a_run_goes_on_as_it_began(tmp_path, gain, told, monkeypatch):
  """`run` and a dry run take what stands in config.json, without a trial; another value that is
  asked for is refused as any other change, with the key's name."""
  trials, workdir = gain(1.0), began(tmp_path / 'run', model__matmul='bfloat16')
  assert matmul.recorded([tmp_path / 'none', workdir]) == 'bfloat16'
  seen = []

  def stop(config, *rest, **more):
    seen.append(config.model.matmul)
    raise KeyboardInterrupt

  for program in (run, dry_run):
    monkeypatch.setattr(program, 'load_data', stop)
  with pytest.raises(KeyboardInterrupt):
    run.run(config(), workdir, told)
  with pytest.raises(KeyboardInterrupt):
    dry_run.dry_run(config(), workdir, told)
  assert seen == ['bfloat16'] * 2 and not trials
  with pytest.raises(InputError, match=(
      "holds a run with config.model.matmul='bfloat16', this one has 'float32'")):
    run.run(config(model__matmul='float32'), workdir, told)


def test_data_in_python_are_for_the_run(tmp_path, told, gain):
  """What they were loaded for is taken; a run that began otherwise refuses them."""
  trials = gain(1.0)
  assert matmul.settled(config(), told, (), 'bfloat16').model.matmul == 'bfloat16' and not trials
  with pytest.raises(InputError, match=(
      "loaded with config.model.matmul='float32', and this run has 'bfloat16'")):
    matmul.settled(
      config(), told, [began(tmp_path / 'run', model__matmul='bfloat16')], 'float32')
  data = Data(None, (), (), (), settings={'model.matmul': 'bfloat16'})
  api._check_loaded(config(), data)
  with pytest.raises(InputError, match='model.matmul'):
    api._check_loaded(config(model__matmul='float32'), data)


def test_rounded_weights_are_not_rounded_again():
  with pytest.raises(InputError, match=(
      "config.model.matmul='bfloat16': with config.model.dtype='bfloat16' operands are rounded")):
    validate(config(model__matmul='bfloat16', model__dtype='bfloat16'))
  with pytest.raises(InputError, match="matmul='bf16': one of auto, float32, bfloat16 is"):
    validate(config(model__matmul='bf16'))
  validate(config(model__matmul='float32', model__dtype='bfloat16'))


def test_a_comparison_decides_once(tmp_path, gain, told):
  """For all regimes and seeds; with a run that is there, as that one, whatever is asked of it."""
  trials = gain(4.0)
  study = Study(
    quickstart.get_config(), tmp_path, ('zero_shot', 'fed_medlora'), {'model.matmul': 'auto'})

  def values():
    settled = regimes._settled(study, ['in_domain'], [42, 43], told)
    parts = scenarios.parts(settled, ['in_domain'], [42, 43])
    return {row.settings['model.matmul'] for part in parts for row in part.rows.values()}

  assert values() == {'bfloat16'} and len(trials) == 1 and study.config.model.matmul == 'auto'
  began(tmp_path / 'fed_medlora', model__matmul='float32')
  assert values() == {'float32'} and len(trials) == 1


def test_rows_of_the_study_stay_what_they_are(tmp_path):
  """Rows that are compared with others are of float32 products and do not name the key; NCBI's one
  is known by 'auto' whatever a machine takes."""
  for study in ('r1', 'r2', 'r4'):
    for unit in STUDIES[study](tmp_path):
      assert unit.run.settings['model.matmul'] == 'float32'
      assert 'model.matmul' not in identity(unit)['config']
  (unit,) = STUDIES['ncbi'](tmp_path)
  assert identity(unit)['config']['model.matmul'] == 'auto'


@pytest.mark.parametrize('flags, held, expected', [
  ({}, None, 'bfloat16'), ({}, {}, 'bfloat16'),                         # the run's
  ({'matmul': 'auto'}, None, 'float32'),                                # the trial's
  ({'matmul': 'auto'}, {'model.matmul': 'bfloat16'}, 'bfloat16'),       # the earlier call's
  ({'matmul': 'auto'}, {}, 'float32'),                                  # of an older version
  ({'dtype': 'bfloat16'}, None, 'float32'), ({'matmul': 'float32'}, None, 'float32')])
def test_annotations_take_the_runs(flags, held, expected, tmp_path, gain, told):
  gain(1.0)
  workdir, given = began(tmp_path / 'run', model__matmul='bfloat16'), dict.fromkeys(trained.FLAGS)
  settings = trained._settings(workdir, given | flags, workdir)
  if held is not None:
    (tmp_path / 'predict.json').write_text(json.dumps(held))
  one = trained.Trained(workdir, settings, (), ())
  assert folder._settled(one, tmp_path, told).settings['model.matmul'] == expected


def test_runs_from_before_the_key_were_float32(tmp_path):
  workdir, given = began(tmp_path / 'run'), dict.fromkeys(trained.FLAGS)
  held = json.loads((workdir / 'config.json').read_text())
  del held['model.matmul']
  (workdir / 'config.json').write_text(json.dumps(held))
  assert trained._settings(workdir, given, workdir)['model.matmul'] == 'float32'
  with pytest.raises(InputError, match="config.model.matmul='bfloat16': with config.model.dtype"):
    trained._settings(
      workdir, given | {'matmul': 'bfloat16', 'dtype': 'bfloat16'}, workdir)
