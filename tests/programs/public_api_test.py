"""`import fedmedjax as fm`: what a notebook does, on a tiny model; and the pages' examples."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import fedmedjax as fm
from fedmedjax import api, main
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.experiment.types import Data
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train.fingerprint import FILE as INPUTS

ROOT = Path(__file__).parents[2]
QUIET = Reporter(Console(quiet=True))
OWN = 'docs/examples/own_method.py'
SMALL = {
  'fed.rounds': 1, 'fed.local_steps': 2, 'fed.batch_size': 4, 'eval.max_examples': 2,
  'eval.bootstrap_samples': 20, 'data.validation_examples': 3, 'lora.rank': 4,
  'eval.max_new_ratio': 0.1, 'eval.zero_shot': False, 'log.steps': False, 'data.external': (),
  'lora.targets': ('q_proj', 'v_proj')}


@pytest.fixture(scope='module')
def config(tiny_folder):
  return fm.load_config(
    'fedmedjax:quickstart:fed_medlora', {'model.path': str(tiny_folder)} | SMALL)


@pytest.fixture(scope='module')
def data(config):
  return fm.load_data(config, reporter=QUIET)


@pytest.fixture(scope='module')
def halved(config, data, tmp_path_factory):
  """(an aggregator given in Python: half of the mean, its results, those of the plain mean)."""
  def half(updates, state, *, weights, **_):
    shares = weights / weights.sum()
    return jax.tree.map(lambda x: 0.5 * np.float32(1) * sum(
      share * one for share, one in zip(shares, x, strict=True)), updates), state

  mine = fm.Aggregator(lambda adapter: (), half)
  folder = tmp_path_factory.mktemp('api')
  return mine, fm.run(config, folder / 'half', data=data, reporter=QUIET, aggregator=mine), fm.run(
    config, folder / 'mean', data=data, reporter=QUIET)


def test_public_names_are_there_and_imported_lazily():
  assert set(fm.__all__) <= set(dir(fm)) and all(getattr(fm, name) for name in fm.__all__)
  assert fm.fed.rules.plain().finish and 'rules' in dir(fm.fed)
  for module in (fm, fm.fed):
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
      _ = module.nonsense
  code = ('import sys, fedmedjax as fm; assert fm.__version__; '
          'assert not {"jax", "flax", "transformers", "absl"} & set(sys.modules), sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True)


def test_two_runs_in_one_process(halved):
  """The server moves half as far by an aggregator of one's own; the rows are tidy."""
  _, half, mean = halved
  assert half.summary['rounds'] == 1 and half.summary['preset'] == 'fed_medlora'
  sites = half.summary['sites']
  ours, theirs = (
    {(row['site'], row['metric']): row['value'] for row in result.metrics
     if row['stage'] == 'round' and row['round'] == 1} for result in (half, mean))
  assert ours.keys() == theirs.keys()
  assert ours['', 'step_norm'] == pytest.approx(theirs['', 'step_norm'] / 2, rel=1e-4)
  for site in sites:
    assert ours[site, 'train_loss'] == theirs[site, 'train_loss'] and ours[site, 'bytes_up'] > 0
    assert ours[site, 'weight'] == pytest.approx(theirs[site, 'weight'])
  frame = fm.load_results(half.workdir)
  assert list(frame.metric) == [row['metric'] for row in half.metrics]
  leaves = [result.adapter['layers']['q_proj']['b'] for result in (half, mean)]
  assert leaves[0].shape == (2, 4, 16) and np.abs(leaves[1]).max() > 0
  # B starts at zero.
  np.testing.assert_allclose(2 * leaves[0], leaves[1], rtol=1e-4, atol=1e-9)


def test_an_own_part_is_recorded_and_held_to(halved, config, data):
  mine, half, _ = halved
  held = json.loads((half.workdir / 'config.json').read_text())
  assert held['fed.aggregator'].startswith('python:')
  assert 'own parts' in json.loads((half.workdir / INPUTS).read_text())
  text = (half.workdir / 'own_parts' / 'fed.aggregator.py').read_text()
  assert 'def half(updates, state' in text
  again = fm.run(config, half.workdir, data=data, reporter=QUIET, aggregator=mine)
  assert again.metrics == half.metrics
  other = mine._replace(update=lambda updates, state, **_: (
    jax.tree.map(lambda x: x[0], updates), state))
  with pytest.raises(fm.InputError, match='changed since the run began|choose another workdir'):
    fm.run(config, half.workdir, data=data, reporter=QUIET, aggregator=other)
  with pytest.raises(fm.InputError, match='holds a run with config.fed.aggregator'):
    fm.run(config, half.workdir, data=data, reporter=QUIET)


def test_an_own_file_on_the_command_line(tiny_folder, tmp_path, capsys):
  """FedNova of the examples; of equal steps it is the size mean. Its file may not change."""
  mine = tmp_path / 'methods.py'
  mine.write_text((ROOT / OWN).read_text())
  command = [
    'fedmedjax', '--config=fedmedjax:quickstart:fed_medlora', f'--workdir={tmp_path / "run"}',
    f'--config.model.path={tiny_folder}', f'--config.fed.aggregator={mine}:fednova',
    *(f'--config.{key}={value}' for key, value in SMALL.items())]
  assert main.main(command) == 0
  result = fm.load_run(tmp_path / 'run')
  assert all(row['value'] > 0 for row in result.metrics if row['metric'] == 'step_norm')
  assert result.summary['own_parts'] == [f'fed.aggregator={mine}:fednova']
  page = (result.workdir / 'report.html').read_text()
  assert 'fed_medlora with your aggregator fednova' in page
  assert (result.workdir / 'own_parts' / 'fed.aggregator.py').read_text() == mine.read_text()
  assert main.main(command) == 0  # finished, and the same
  assert main.main([*command, '--validate_only']) == 0
  mine.write_text(mine.read_text() + '# another thought\n')
  capsys.readouterr()
  assert main.main(command) == 2
  assert 'own parts: config.fed.aggregator=' in capsys.readouterr().err


def test_sites_given_in_python(config):
  corpus = generate_cohort('synthetic_icu', seed=1, train_notes=6, test_notes=2)
  sites = [corpus._replace(name=name) for name in ('north', 'south')]
  data = fm.load_data(config, sites=sites, reporter=QUIET)
  assert [site.name for site in data.sites] == ['north', 'south']
  study = fm.prepare(config, data)
  assert len(study.schedule.weights) == 2 and study.communication.sampler.size == 2
  with pytest.raises(fm.InputError, match=r"sites\[1\]: name 'north'"):
    fm.load_data(config, sites=[sites[0], sites[0]], reporter=QUIET)


def test_mistakes_are_one_line(config, data, tmp_path):
  other = fm.load_config(
    'fedmedjax:quickstart:fed_medlora',
    {'model.path': config.model.path, 'data.max_train_notes': 7} | SMALL)
  for call, message in (
      (lambda: fm.load_config('fedmedjax:none'), 'quickstart'),
      (lambda: fm.load_config('fedmedjax:quickstart', {'fed.round': 1}), 'fed.round|round'),
      (lambda: fm.load_config('fedmedjax:quickstart', {'fed.rounds': 0}), 'config.fed.rounds=0'),
      (lambda: fm.run(config, tmp_path, data=data, agregator=None), 'agregator=...: unknown'),
      (lambda: fm.run(config, tmp_path, data=data, aggregator=5), 'aggregator=5: a builder'),
      (lambda: fm.run(other, tmp_path, data=data),
       'data=...: loaded with config.data.max_train_notes=0, and this run has 7; give'),
      (lambda: fm.run(config, tmp_path, data=data._replace(
        settings=data.settings | {'bert.max_length': 7})), 'loaded with config.bert.max_length=7'),
      (lambda: fm.run(config, tmp_path, data=data, partition=len), 'are dealt out already'),
      (lambda: fm.load_run(tmp_path), 'summary.json'),
      (lambda: fm.load_results(tmp_path), 'holds no run')):
    with pytest.raises(fm.InputError, match=message) as error:
      call()
    assert '\n' not in str(error.value)


def test_data_are_those_of_their_own_seed():
  """A run of another seed may share them where data.seed is set, and not where it follows; the head
  of a BERT is drawn by the run's seed."""
  def settings(**keys):
    return fm.load_config(
      'fedmedjax:quickstart:fed_medlora', {key.replace('__', '.'): v for key, v in keys.items()})

  def held(config):
    return Data(None, (), (), (), settings=api._loaded_with(config))

  api._check_loaded(settings(seed=2, data__seed=5), held(settings(seed=1, data__seed=5)))
  api._check_loaded(settings(seed=2, data__seed=5), held(settings(seed=5)))
  bert = {'fed__learner': 'bert', 'bert__path': '/nowhere'}
  for own, other, message in (
      (settings(seed=2), settings(seed=1), 'config.data.seed=1, and this run has 2; give'),
      (settings(data__seed=2), settings(data__seed=1), 'config.data.seed=1, and this run has 2'),
      (settings(seed=2, data__seed=5, **bert), settings(seed=1, data__seed=5, **bert),
       'config.seed=1, and this run has 2'),
      (settings(seed=2), settings(seed=1, **bert), "config.bert.path='/nowhere', and this")):
    with pytest.raises(fm.InputError, match=message):
      api._check_loaded(own, held(other))


def test_the_example_of_an_own_model_learns():
  done = subprocess.run(
    [sys.executable, 'docs/examples/own_model.py'], cwd=ROOT, check=True, capture_output=True,
    text=True)
  losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
  assert len(losses) == 5 and losses[-1] < 0.85 * losses[0]


def test_the_notebook_runs_as_a_notebook(tiny_folder, tmp_path):
  """In a kernel of its own, with a tiny model and fewer steps in its cell of parameters."""
  import nbclient
  import nbformat
  notebook = nbformat.read(ROOT / 'docs/examples/quickstart.ipynb', as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells)
  first = next(cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
  more = {key: SMALL[key] for key in (
    'fed.local_steps', 'fed.batch_size', 'eval.max_new_ratio', 'eval.bootstrap_samples',
    'data.validation_examples', 'lora.targets', 'log.steps')}
  first.source = (f'from pathlib import Path\nWORKDIR = Path({str(tmp_path / "runs")!r})\n'
                  f'MODEL = {str(tiny_folder)!r}\nMORE = {more!r}\n')
  nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}).execute()
  shown = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  kinds = {kind for output in shown for kind in output.get('data', ())}
  assert {'image/png', 'text/html'} <= kinds
  assert not [output for output in shown if output.output_type == 'error']
  assert (tmp_path / 'runs' / 'median' / 'own_parts' / 'fed.aggregator.py').is_file()


def test_every_public_name_has_an_example_that_runs(tiny_folder, tmp_path):
  """Steps of rate 1 from 0 reach the targets 1, 2 and 6 of the sites; the mean is 3."""
  place = ROOT / 'docs/examples/public_names.py'
  for name in set(fm.__all__):
    assert f'fm.{name}' in place.read_text(), name
  spec = importlib.util.spec_from_file_location('public_names', place)
  example = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(example)
  assert example.without_model() == pytest.approx(
    {'mean': 3, 'first': 1, 'halved': 1.5, 'shared': 3, 'momentum': 3, 'proximal': 3})
  result = example.with_model(str(tiny_folder), str(tmp_path / 'run'))
  assert {row['site'] for row in result.metrics} == {'', 'north', 'south'}
