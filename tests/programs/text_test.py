"""A rare word of somebody's own notes: in which files of a run it is found, and in which not."""

import json
import re
import shutil

import pytest

from fedmedjax import describe, main

MARK = 'zyxwarts'
SHRINK = [
  '--config=fedmedjax:ablation:single_site', '--config.data.partition.kind=',
  '--config.tagger.width=8', '--config.tagger.buckets=64', '--config.lora.rank=2',
  '--config.fed.rounds=1', '--config.fed.local_steps=2', '--config.fed.batch_size=2',
  '--config.data.validation_examples=2', '--config.eval.bootstrap_samples=20',
  '--config.eval.cross_site=True', "--config.data.sites=('ward', 'icu')",
  "--config.data.external=('elsewhere',)"]


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
  """The flags of a tiny study of three folders, whose every sentence has the word."""
  folder = tmp_path_factory.mktemp('notes')
  for number, name in enumerate(('ward', 'icu', 'elsewhere')):
    (folder / f'{name}.bio').write_text(''.join(
      f'# newdoc id = {name} {i}\nSevere O\ncough B-problem\n{MARK}{i} O\nand O\n'
      f'case{number}{i} O\n' for i in range(8)))
  own = tuple({'name': name, 'path': str(folder / f'{name}.bio'), 'format': 'conll',
               'mapping': 'schema'} for name in ('ward', 'icu', 'elsewhere'))
  return [*SHRINK, f'--config.data.folders={own}']


@pytest.fixture(scope='module')
def run(arguments):
  """run(workdir, *more) -> exit status of main."""
  return lambda workdir, *more: main.main(
    ['fedmedjax', *arguments, f'--workdir={workdir}', *more])


@pytest.fixture(scope='module')
def with_text(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'with_text'
  assert run(folder) == 0
  return folder


def with_the_word(folder) -> set[str]:
  return {path.relative_to(folder).as_posix() for path in folder.rglob('*')
          if path.is_file() and re.search(MARK.encode(), path.read_bytes(), re.I)}


def listed(folder, capsys) -> set[str]:
  capsys.readouterr()
  assert describe.main(['describe', '--text', f'--workdir={folder}']) == 0
  return {line.removeprefix(f'{folder}/').partition(': ')[0]
          for line in capsys.readouterr().out.splitlines()[:-1]}


PREDICTED = {
  f'predictions/{folder}{site}.jsonl' for site in ('ward', 'icu', 'elsewhere')
  for folder in ('', 'cross_site/ward/', 'cross_site/icu/', 'global/')}


def test_by_default_the_word_is_in_predictions_alone(with_text, run, tmp_path, capsys):
  """A report of one's own notes quotes them only where a number says so."""
  found = with_the_word(with_text)
  assert listed(with_text, capsys) == found <= PREDICTED
  assert {'predictions/icu.jsonl', 'predictions/cross_site/icu/ward.jsonl'} <= found
  quoting = shutil.copytree(with_text, tmp_path / 'quoting')
  assert run(quoting, '--config.report.examples=6') == 0
  assert with_the_word(quoting) == listed(quoting, capsys) == found | {'report.html'}


def test_without_text_the_word_is_nowhere_and_the_scores_are_the_same(
    with_text, run, tmp_path, capsys):
  without, later = tmp_path / 'with_text', tmp_path / 'later' / 'with_text'
  assert run(without, '--config.store.text=False') == 0
  assert with_the_word(without) == listed(without, capsys) == set()
  first, second = (json.loads((folder / 'summary.json').read_text())
                   for folder in (with_text, without))
  for key in ('scores', 'cross_site', 'answers', 'zero_shot', 'site_weights', 'instructions'):
    assert first.get(key) == second.get(key), key
  counts = 'predictions/counts.json'
  assert (with_text / counts).read_bytes() == (without / counts).read_bytes()
  # Of the run that had kept it, the same command takes it away.
  shutil.copytree(with_text, later)
  assert run(later, '--config.store.text=False') == 0
  assert with_the_word(later) == listed(later, capsys) == set()
  assert (later / 'config.json').read_bytes() == (without / 'config.json').read_bytes()
  for path in (without / 'predictions').rglob('*.jsonl'):
    assert path.read_bytes() == (later / path.relative_to(without)).read_bytes()
  # More rounds go on from it as from one with text.
  longer = ('--config.fed.rounds=2', '--config.report.examples=0')
  assert run(without, '--config.store.text=False', *longer) == 0
  assert json.loads((without / 'summary.json').read_text())['rounds'] == 2
  assert with_the_word(without) == set()
  assert run(without, '--config.store.text=False', '--config.report.examples=1') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'no text is kept that could be quoted' in error
