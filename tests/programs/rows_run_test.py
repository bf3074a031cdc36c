"""A task of one's own, from the page that describes it: on the command line and in Python."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fedmedjax as fm
from fedmedjax import api, main
from fedmedjax.compare import __main__ as compare
from fedmedjax.predict import __main__ as predict
from fedmedjax.store.files import read_lines
from fedmedjax.train import run as training

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / 'docs/examples/yes_no.py'
FEW = {
  'fed.rounds': 1, 'fed.local_steps': 2, 'fed.batch_size': 2,
  'lora.rank': 4, 'eval.max_new_ratio': 0.1, 'eval.max_examples': 8, 'eval.max_zero_shot': 4,
  'eval.bootstrap_samples': 20, 'data.validation_examples': 2, 'log.steps': False}


@pytest.fixture(scope='module')
def commands(tmp_path_factory, tiny_folder) -> tuple[list[str], Path]:
  """(the words of the page's command that trains, the folder where its rows are)."""
  page = (ROOT / 'docs/studies.md').read_text()
  block = re.search(r'```\n(python docs/examples/yes_no\.py\n.*?)```', page, re.S)[1]
  first, *rest = block.replace('\\\n', ' ').strip().split('\n')
  place = tmp_path_factory.mktemp('rows')
  subprocess.run([sys.executable, ROOT / shlex.split(first)[1]], cwd=place, check=True,
                 capture_output=True)
  _, _, _, *words = shlex.split(' '.join(rest))
  words = [word.replace('docs/', f'{ROOT}/docs/').replace('configs/', f'{ROOT}/configs/')
           for word in words]
  return [*words, f'--config.model.path={tiny_folder}'], place


def flags(values: dict) -> list[str]:
  return [f'--config.{key}={value}' for key, value in values.items()]


def run(commands, *more: str) -> int:
  words, _ = commands
  # The preset belongs to the name of the configuration.
  words = [f'{word}:fed_medlora' if word.startswith('--config=') else word for word in words]
  return main.main(['fedmedjax', *words, *flags(FEW), *more])


@pytest.fixture(scope='module')
def finished(commands) -> Path:
  _, place = commands
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    assert run(commands) == 0
  return place / 'runs/yes_no'


def read(folder: Path, name: str = 'summary.json') -> dict:
  return json.loads((folder / name).read_text())


def test_it_is_trained_scored_and_written(finished):
  """One step on each site of a random model: nothing is learnt, all of it is there."""
  summary = read(finished)
  for scores in (summary['scores'], summary['zero_shot']['scores']):
    assert {site: [*tasks['text']] for site, tasks in scores.items()} == dict.fromkeys(
      ('north', 'south', 'east'), ['accuracy', 'macro_f1', 'sensitivity', 'readable'])
  records = read_lines(finished / 'predictions/east.jsonl')
  assert len(records) == 8 and {record['target'] for record in records} <= {'yes', 'no'}
  assert all(record['model_input'].endswith('?\nAnswer:\n') for record in records)
  assert summary['instructions']['north']['text'] == (
    'Answer the question about the sentence with yes or no.\n')
  assert [*read(finished, 'inputs.json')['own metric']] == [f'config.eval.metric={EXAMPLE}:score']
  assert EXAMPLE.read_text() == (finished / 'own_parts/eval.metric.py').read_text()


def test_rows_and_metric_in_python_give_the_same_run(finished, tiny_folder, tmp_path):
  spec = importlib.util.spec_from_file_location('yes_no', EXAMPLE)
  example = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(example)
  result = example.in_python(str(tmp_path / 'run'), FEW | {'model.path': str(tiny_folder)})
  summary = read(finished)
  for key in ('scores', 'train_examples', 'local_steps', 'bytes_up', 'site_weights'):
    assert result.summary[key] == summary[key], key
  assert [row['value'] for row in result.metrics if row['metric'] == 'train_loss'] == [
    loss for line in read_lines(finished / 'metrics.jsonl') for loss in line['train_loss']]


def test_a_metric_alone_judges_steps_of_other_groups_too(tiny_folder):
  """Nothing is compiled: the study that the memory planner would try has the same metrics."""
  config = fm.load_config('fedmedjax:quickstart:fed_medlora', {
    'model.path': str(tiny_folder), 'data.tasks': ('text',), 'data.external': (),
    'eval.metrics': ()})
  rows = [{'input': f'{i}?', 'target': 'yes'} for i in range(20)]
  data = fm.load_data(config, sites=[fm.Site('north', rows)])
  calls = []

  def length(predictions, targets):
    calls.append(len(predictions))
    return {'length': [len(one) for one in predictions]}

  study = fm.prepare(config, data, metric=length)
  assert study.text_metrics.own.gives == {'length': True} and calls == [4, 4]
  other = study.with_micro_batch(1)
  assert other.text_metrics == study.text_metrics and other.schedule.layout.groups == 4
  assert calls == [4, 4]


def test_sites_in_python_are_dealt_out_by_a_partitioner_in_python(
    tiny_folder, tmp_path, monkeypatch):
  """What is run: the given sites are tested, and rows are dealt out by the last figure of each."""
  config = fm.load_config('fedmedjax:quickstart:fed_medlora', {
    'model.path': str(tiny_folder), 'data.tasks': ('text',), 'data.external': ('east',),
    'data.partition.sites': 2})
  sites = (fm.Site(name, [{'input': f'{name} {i}', 'target': 'ab'[i % 2]} for i in range(20)])
           for name in ('north', 'east'))
  ran = []
  monkeypatch.setattr(training, 'run', lambda *given: ran.append(given))
  monkeypatch.setattr(api, 'load_run', lambda workdir: None)

  def deal(notes, sites):
    return [int(note.text[-1]) % sites for note in notes]

  fm.run(config, tmp_path, data=sites, partition=deal, metric=lambda predictions, targets: {'a': 1})
  ((used, _, _, data, own),) = ran
  assert {*own} == {'data.partition.kind', 'eval.metric'} and used.data.sites == ('north',)
  assert [{int(example.text[-1]) % 2 for example in site.tasks[0].solved}
          for site in data.sites] == [{0}, {1}]
  assert [site.name for site in (*data.tested, *data.external)] == ['north', 'east']


def test_an_adapter_of_rows_annotates_nothing(finished, tmp_path, capsys):
  (tmp_path / 'note.txt').write_text('Aspirin.\n')
  assert predict.main(['predict', f'--adapter={finished}/adapter', f'--input={tmp_path}',
                       f'--output={tmp_path}/out']) == 2
  assert 'annotates notes' in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_all_settings_of_a_comparison(commands, tmp_path):
  """Zero-shot, single-site, centralised and federated; a new site with none and ten rows. Without
  words of its own the model is shown the start token alone."""
  words, place = commands
  words = [word for word in words if not word.startswith((
    '--workdir', '--config.data.external', '--config.data.prompt'))]
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    assert compare.main([
      'compare', *words, *flags(FEW), f'--workdir={tmp_path}/c',
      '--settings=in_domain,leave_one_out,new_site',
      '--regimes=zero_shot,single_site,centralised,fed_medlora,fed_medlora_peer',
      '--new_site=east', '--sentences=0,10', '--config.eval.cross_site=True',
      '--config.data.external=()']) == 0
  findings = read(tmp_path / 'c', 'findings.json')
  assert findings and (tmp_path / 'c/report.html').is_file()
