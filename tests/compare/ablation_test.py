"""A small ablation through its program: it resumes, and a row is the run that main would make."""

import json

import ablation as script
import numpy as np
import pytest
from tagger_run import SHRINK, tagger_run

from fedmedjax.compare import ablation
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.store.files import read_json, read_lines
from fedmedjax.types import InputError

ASKED = ['--presets=fed_medlora,uniform', '--settings=iid,wrong_largest', '--seeds=3,4']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two presets, two settings, two seeds; it was stopped before the last setting."""
  folder = tmp_path_factory.mktemp('ablation')
  begin = [f'--output={folder}', *SHRINK, *ASKED]
  assert script.main(['ablation', *begin, '--settings=iid']) == 0
  assert len(read_lines(folder / 'results.jsonl')) == 4
  # A crash while a line was written.
  with (folder / 'results.jsonl').open('a') as file:
    file.write('{"preset": "unif')
  assert script.main(['ablation', *begin]) == 0
  return folder


def run_rows(folder):
  """The rows in order; methods are under way at once."""
  return sorted(
    read_lines(folder / 'results.jsonl'),
    key=lambda row: (row['setting'], row['preset'], row['seed']))


def test_it_resumes_and_names_every_run_once(folder, capsys):
  rows = run_rows(folder)
  assert [(row['setting'], row['preset'], row['seed']) for row in rows] == [
    (setting, preset, seed) for setting in ('iid', 'wrong_largest')
    for preset in ('fed_medlora', 'uniform') for seed in (3, 4)]
  assert all(0 <= row['f1'] <= 1 and np.isclose(sum(row['weights']), 1) for row in rows)
  np.testing.assert_allclose(
    rows[4]['weights'], [0.4, 0.15, 0.15, 0.15, 0.15], atol=0.05)  # by size
  np.testing.assert_allclose(rows[6]['weights'], 0.2, atol=1e-6)
  before = (folder / 'results.jsonl').read_bytes()
  assert script.main(['ablation', f'--output={folder}', *SHRINK, *ASKED]) == 0
  assert (folder / 'results.jsonl').read_bytes() == before
  # Nothing is missing, so nothing is shown to be run.
  assert 'ablation ...' not in capsys.readouterr().out
  table = (folder / 'table.md').read_text()
  assert f'| fed_medlora | {np.mean([rows[0]["f1"], rows[1]["f1"]]):.3f} ± ' in table
  assert '| method | IID | largest site wrong |' in table


def test_a_row_is_the_run_of_main(folder, tmp_path_factory):
  """Seed 4 of fed_medlora where the largest site is wrong, alone: equal F1, loss and weights."""
  workdir = tagger_run(tmp_path_factory)
  row = run_rows(folder)[5]
  summary = read_json(workdir / 'summary.json')
  assert row['cohorts'] == {
    site: scores['ner']['strict']['typed']['f1'] for site, scores in summary['scores'].items()}
  line = read_lines(workdir / 'metrics.jsonl')[-1]
  np.testing.assert_allclose(row['weights'], line['weights'], rtol=1e-5)
  np.testing.assert_allclose(row['loss'], np.mean(line['train_loss']), rtol=1e-4)
  # What it leaves: the adapter by paths, in its folder and in Python; records as other runs.
  import fedmedjax
  layers = fedmedjax.load_run(workdir).adapter['layers']
  assert {name: pair['a'].shape for name, pair in layers.items()} == {
    'hidden': (1, 192, 2), 'output': (1, 8, 2)}
  assert read_json(workdir / 'adapter' / 'tagger.json')['labels'][:2] == ['O', 'B-problem']
  record = json.loads((workdir / 'predictions' / 'synthetic_icu.jsonl').read_text().split('\n')[0])
  assert set(record['generated'].split()) <= set(summary['labels'])
  assert summary['adapter_parameters'] == 192 * 2 + 2 * 8 + 8 * 2 + 2 * 9
  assert (workdir / 'report.html').exists()


def row(preset, seed, f1, setting='iid'):
  return {'preset': preset, 'setting': setting, 'seed': seed, 'f1': f1}


def test_the_tables_by_hand():
  """Differences .02 and .04: mean .03, standard deviation .01 * sqrt 2, standard error .01; the t
  quantile of one degree of freedom is 12.706, so .03 ± .127. Seed 9 has no partner."""
  rows = [
    row('fed_medlora', 0, 0.5), row('fed_medlora', 1, 0.6), row('uniform', 1, 0.64),
    row('uniform', 0, 0.52), row('uniform', 9, 0.9),
    {'preset': 'krum', 'setting': 'iid', 'seed': 0, 'refused': 'one rank'},
    row('fed_medlora', 0, 0.1, 'ranks'), row('uniform', 0, 0.3, 'ranks')]
  found = ablation.difference(rows, 'uniform', 'iid')
  np.testing.assert_allclose(found[:3], (0.03, 0.03 - 0.12706, 0.03 + 0.12706), atol=1e-5)
  text = ablation.tables(rows, ('fed_medlora', 'uniform', 'krum'), ('iid', 'ranks'))
  assert '| fed_medlora | 0.550 ± 0.071 | 0.100 |' in text
  assert '| uniform | +3.0 [-9.7, +15.7] | +20.0 |' in text
  assert text.count('| krum | refused | - |') == 2
  assert '| fed_medlora | +' not in text  # it is what differences are to


def test_equal_depth_sees_the_same_examples_in_as_many_updates_as_a_site():
  config = get_config()
  chosen = ablation.run_config(config, ablation.DEPTH, 'sites_2', 5)
  fed = chosen.fed
  assert (fed.preset, fed.pooled, fed.round_steps) == ('centralised', True, config.fed.local_steps)
  assert fed.batch_size == 2 * config.fed.batch_size and chosen.seed == 5
  assert chosen.fed.learner == 'tagger'


@pytest.mark.parametrize('change, arguments, said', [
  ({}, {'presets': ('zero_shot',)}, "'zero_shot' is not one of fed_medlora"),
  ({}, {'presets': ('fed_bert',)}, "'fed_bert' is not one of"),
  ({}, {'settings': ('moon',)}, "'moon' is not one of iid"),
  ({}, {'seeds': (1, 1)}, '--seeds=1,1'), ({}, {'seeds': ()}, '--seeds='),
  ({'fed.learner': 'lora'}, {}, "config.fed.learner='lora'"),
  ({'data.partition.sites': 4}, {}, '5 sites'), ({'data.partition.kind': ''}, {}, 'kind='),
  ({'fed.cohort_size': 2}, {}, 'config.fed.cohort_size=2'),
  ({'simulation.failure': 0.5}, {}, 'config.simulation.failure=0.5')])
def test_what_is_no_ablation_is_refused(change, arguments, said, tmp_path):
  config = get_config()
  config.update_from_flattened_dict(change)
  asked = {'presets': ('fed_medlora',), 'settings': ('iid',), 'seeds': (0,)} | arguments
  with pytest.raises(InputError) as error:
    ablation.ablation(config, tmp_path / 'none', reporter=None, **asked)
  assert said in str(error.value) and not (tmp_path / 'none').exists()
