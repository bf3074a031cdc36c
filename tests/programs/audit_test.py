"""python -m fedmedjax.audit on finished runs of the word tagger, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from documented import documented
from shared_runs import shared_folder

from fedmedjax import describe, main
from fedmedjax.audit import __main__ as audit

SMALL = [
  '--config.fed.rounds=6', '--config.fed.local_steps=40', '--config.data.synthetic_notes=12',
  '--config.data.partition.sites=2', '--config.eval.max_examples=40', '--config.tagger.buckets=512',
  '--config.eval.bootstrap_samples=50', '--config.fed.faulty=0']


def run(folder, *more):
  assert main.main([
    'main', '--config=fedmedjax:ablation:fed_medlora', f'--workdir={folder}', *SMALL, *more]) == 0


@pytest.fixture(scope='module')
def audited(tmp_path_factory):
  """A run with canaries, without differential privacy, and its audit."""
  def fill(folder):
    run(folder, '--config.privacy.canaries=60')
    assert audit.main(['audit', f'--workdir={folder}']) == 0

  return shared_folder(tmp_path_factory, 'audited', fill)


def test_what_a_run_without_privacy_leaks(audited, capsys):
  """Canaries are learnt by heart, and the page says so; no file holds words of notes for it."""
  held = json.loads((audited / 'audit.json').read_text())
  every, *sites = held['membership']
  assert every['site'] == 'all sites' and every['members'] > every['others'] > 30
  assert every['sources'][0] > 5 and not sites  # notes were dealt out, so no site is tested
  attack = every['attacks']['calibrated']
  assert attack['low'] < attack['auc'] < attack['high'] and len(attack['tpr']) == 2
  planted, out = held['extraction']['planted'], held['extraction']['held_out']
  assert planted['number'] + out['number'] == 120
  assert planted['mean'] > out['mean'] + 1 and abs(out['mean'] - 1.44) < 0.6
  assert 0.3 < held['bound']['epsilon'] < held['bound']['at_best'] and held['privacy'] is None
  page = (audited / 'report.html').read_text()
  assert 'Privacy audit' in page and 'epsilon is at least' in page
  assert describe.main(['describe', '--text', f'--workdir={audited}']) == 0
  assert 'audit.json' not in capsys.readouterr().out
  keys = {key if not isinstance(value, dict) or key in ('extraction', 'bound') else f'{key}.{name}'
          for key, value in held.items() for name in (value if isinstance(value, dict) else [''])}
  keys = {key.split('.')[0] if key.startswith('versions') else key for key in keys}
  always, _ = documented('audit.json')
  assert keys <= always


def test_an_adapter_that_has_not_learnt_gives_nothing_away(audited, tmp_path):
  """The adapter as it was before training: every calibrated score is equal."""
  folder = shutil.copytree(audited, tmp_path / 'run')
  path = folder / 'adapter' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({
    name: np.zeros_like(value) if name.endswith('/b') else value
    for name, value in tensors.items()}, path)
  assert audit.main(['audit', f'--workdir={folder}', '--examples=20']) == 0
  held = json.loads((folder / 'audit.json').read_text())
  (every,) = held['membership']
  assert every['attacks']['calibrated']['auc'] == 0.5 and every['members'] == 40
  assert held['bound']['epsilon'] == 0
  assert 'is not bounded from below' in (folder / 'report.html').read_text()


@pytest.mark.parametrize('spoil, message', [
  (lambda folder: (folder / 'summary.json').unlink(), 'is not finished'),
  (lambda folder: (folder / 'config.json').unlink(), 'holds no run'),
  (lambda folder: (folder / 'inputs.json').unlink(), 'nobody knows whether'),
  (lambda folder: shutil.rmtree(folder / 'adapter'), 'lacks the adapter'),
  (lambda folder: changed(folder / 'inputs.json', 'synthetic_icu'), 'changed since the run began'),
  (lambda folder: changed(folder / 'config.json', 'synthetic_icu'), 'were given in Python'),
  (lambda folder: changed(folder / 'config.json', 'lora.alpha'), 'knows no such key')])
def test_one_line_and_status_two(audited, tmp_path, capsys, spoil, message):
  folder = shutil.copytree(audited, tmp_path / 'run')
  spoil(folder)
  before = (folder / 'audit.json').read_bytes()
  capsys.readouterr()
  assert audit.main(['audit', f'--workdir={folder}']) == 2
  told = capsys.readouterr().err
  assert message in told and told.count('\n') == 1
  assert (folder / 'audit.json').read_bytes() == before


def changed(path, word):
  path.write_text(path.read_text().replace(word, f'{word}_2'))
