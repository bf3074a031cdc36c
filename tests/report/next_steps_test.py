"""The last lines of a run name files that are there and commands that their programs accept."""

import shlex
from pathlib import Path

import pytest

from fedmedjax.compare import __main__ as compare
from fedmedjax.experiment.command_line import config_arguments, parse
from fedmedjax.main import define
from fedmedjax.predict import __main__ as predict
from fedmedjax.predict.trained import _find_adapter
from fedmedjax.report.next_steps import next_steps
from fedmedjax.runtime.cli import read_flags

NER = {'scores': {'a': {'ner': {}}}, 'rounds': 2}
ARGV = ['x', '--config', 'fedmedjax:quickstart:uniform', "--config.data.sites=('synthetic_icu',)",
        '--config.fed.preset=fedprox', '--config.eval.zero_shot=False', '--workdir=runs/my run',
        '--config.optim.learning_rate=1e-3']


def steps(workdir, summary, learner='lora', argv=ARGV):
  """{name: text} of the lines."""
  _, _, overrides = parse(argv, define)
  first, *lines = next_steps(workdir, summary, learner, config_arguments(argv, overrides))
  assert first == 'Next:'
  return dict(line.split(maxsplit=1) for line in lines)


def adapters(workdir, *names):
  for name in names:
    folder = workdir / 'adapter' / name
    folder.mkdir(parents=True)
    (folder / 'adapter_config.json').write_text('{}')


def words(command, module):
  python, flag, named, *rest = shlex.split(command)
  assert [python, flag, named] == ['python', '-m', f'fedmedjax.{module}']
  return [named, *rest]


def test_one_adapter_for_all(tmp_path):
  workdir = tmp_path / 'my run'
  adapters(workdir, '')
  shown = steps(workdir, NER)
  assert list(shown) == ['report', 'adapter', 'predict', 'longer', 'compare']
  assert shown['report'] == str(workdir / 'report.html')
  assert shown['adapter'] == str(workdir / 'adapter')
  values = read_flags(
    words(shown['predict'], 'predict'), predict.define, ('adapter', 'input', 'output'))
  assert _find_adapter(workdir / 'adapter') == workdir / 'adapter'
  assert values.adapter == str(workdir / 'adapter') and values.output != str(workdir)
  config, values, overrides = parse(words(shown['compare'], 'compare'), compare.define, check=False)
  # The comparison is of the run's configuration, in a folder of its own, and chooses the methods.
  assert overrides == {
    'data.sites': ('synthetic_icu',), 'eval.zero_shot': False, 'optim.learning_rate': 1e-3}
  assert config.fed.rounds == 2 and values.workdir == f'{workdir}_compare'
  # Two rounds are a first look, which is said with the command for more; of ten nothing is.
  told, _, command = shown['longer'].partition(': much that it finds is wrong. More rounds: ')
  config, values, _ = parse(words(command, 'main'), define)
  assert told == '2 rounds of training only show how it works'
  assert config.fed.rounds == 10 and values.workdir == f'{workdir}_longer'
  assert 'longer' not in steps(workdir, NER | {'rounds': 10})


@pytest.mark.parametrize('names, chosen', [
  (('ward_b', 'ward_a'), 'ward_a'), (('ward_a', 'ward_b', 'global'), 'global')])
def test_adapters_of_the_sites_own(names, chosen, tmp_path):
  adapters(tmp_path, *names)
  shown = steps(tmp_path, NER)
  assert shown['adapter'] == f'{tmp_path / "adapter"}, one a site: ward_a, ward_b'
  assert f'--adapter={tmp_path / "adapter" / chosen} ' in shown['predict']


def test_only_relations_cannot_predict_alone(tmp_path):
  adapters(tmp_path, '')
  shown = steps(tmp_path, {'scores': {'a': {'re': {}}}, 'rounds': 1})
  assert 'python' not in shown['predict'] and "('ner', 're')" in shown['predict']


def test_a_classifier_has_no_adapter(tmp_path):
  shown = steps(tmp_path, NER, 'bert')
  assert list(shown) == ['report', 'model', 'compare']
  assert str(tmp_path / 'model') in shown['model']
  _, values, _ = parse(words(shown['compare'], 'compare'), compare.define, check=False)
  assert values.regimes == ['fed_bert', 'zero_shot']


def test_a_run_that_trained_nothing_says_how_to_train(tmp_path):
  argv = [*ARGV, '--config.fed.preset=zero_shot']
  shown = steps(tmp_path, NER | {'rounds': 0}, argv=argv)
  assert list(shown) == ['report', 'adapter', 'train', 'compare']
  assert shown['adapter'].startswith('none')
  config, values, _ = parse(words(shown['train'], 'main'), define)
  assert config.fed.train and values.workdir != str(tmp_path)


def test_a_folder_without_a_name_of_its_own(tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  monkeypatch.chdir(tmp_path / 'runs')
  adapters(Path('.'), '')
  assert f'--output={tmp_path / "runs_annotated"}' in steps(Path('.'), NER)['predict']
