"""The tidy table: every number of the files once, with its interval, and what tells runs apart."""

import json
import sys

import numpy as np
import pandas
import pytest
from documented import documented
from invented_run import entry, invent, line, write
from invented_sweep import invent_sweep
from tagger_run import tagger_run

from fedmedjax.store import results
from fedmedjax.store.results import Folder, rows_of
from fedmedjax.types import InputError


def picked(frame, **wanted):
  """The rows of a frame with these values."""
  for column, value in wanted.items():
    frame = frame[frame[column] == value]
  return frame


def test_every_number_of_a_run_is_a_row(tmp_path_factory):
  """By another way through the files: all numbers of the lists and objects are counted."""
  run = tagger_run(tmp_path_factory)
  summary = json.loads((run / 'summary.json').read_text())
  lines = [json.loads(text) for text in (run / 'metrics.jsonl').read_text().splitlines()]
  frame = results.load(run)
  assert list(frame.columns) == list(results.Row._fields)
  assert not frame.duplicated(['run', 'stage', 'round', 'site', 'task', 'metric']).any()
  assert {*frame.run} == {run.name} and {*frame.preset} == {'fed_medlora'} and {*frame.seed} == {4}
  for number, one in enumerate(lines, 1):
    found = picked(frame, stage='round', round=number)
    assert list(picked(found, metric='weight').value) == one['weights']
    assert list(picked(found, metric='train_loss').site) == one['sites']
    assert picked(found, metric='bytes_up', site='').value.sum() == one['bytes_up']
    assert picked(found, metric='bytes_up').value.sum() == 2 * one['bytes_up']
    of_sites = {key for key, values in one.items() if key != 'sites'
                and isinstance(values, list) and len(values) == len(one['sites'])}
    assert of_sites <= {*results._BY_SITE, *results._NAMED} and len(of_sites) >= 10
  for site, tasks in summary['scores'].items():
    f1, = picked(frame, stage='final', site=site, metric='strict.typed.f1').itertuples()
    held = tasks['ner']['strict']['typed']
    assert (f1.round, f1.task, f1.value, f1.external) == (
      2, 'ner', held['f1'], site in summary['external'])
    np.testing.assert_array_equal([f1.low, f1.high], held['ci95'] or [np.nan] * 2)
    gold, = picked(frame, stage='final', site=site, metric='gold').value
    assert gold == sum(kind['gold'] for kind in tasks['ner']['per_type'].values())

  def leaves(value):
    return sum(map(leaves, value.values())) if isinstance(value, dict) else type(value) in (
      int, float)

  # With the sums over types of what was annotated and of what was found.
  of_scores = leaves(summary['scores']) + 2 * len(summary['scores'])
  assert len(picked(frame, stage='final', task='ner')) == of_scores
  total = picked(frame, stage='total').set_index('metric').value
  assert total['bytes_up'] == summary['bytes_up'] and 'seed' not in total


def test_other_scores_have_stages_of_their_own(tmp_path):
  """Relations one level deeper, a metric of texts, zero-shot; what is missing or left out."""
  both = {'ner': entry(0.5), 're': {'modifier': entry(0.25)}}
  text = {'text': {'exact_match': {'value': 0.5, 'ci95': [0.25, 0.75]}, 'mine': {
    'value': -2.0, 'ci95': None}}}
  run = invent(tmp_path / 'run', lines=[
    line(1, ('icu', 'ward'), train_loss=[None, 0.5], quarantined=['icu'])], summary={
    'scores': {'icu': both, 'ward': text}, 'zero_shot': {'scores': {'icu': {'ner': entry(0.0)}}},
    'cross_site': {'icu': {'ward': {'ner': entry(0.1)}}}, 'global': None, 'test_sources': [7, 9, 5],
    'answers': {'icu': {'asked': 12}}, 'privacy': {'epsilon': 1.5}})
  rows = list(rows_of(Folder('a', run)))
  held = {(row.stage, row.round, row.site, row.task, row.metric): row for row in rows}
  assert len(held) == len(rows)
  assert held['final', 1, 'icu', 're', 'modifier.strict.typed.f1'][-3:] == (0.25, 0.2, 0.25)
  assert held['final', 1, 'icu', 're', 'modifier.gold'].value == 16
  assert held['final', 1, 'ward', 'text', 'exact_match'][-3:] == (0.5, 0.25, 0.75)
  assert held['final', 1, 'ward', 'text', 'mine'][-3:] == (-2.0, None, None)
  assert held['zero_shot', 0, 'icu', 'ner', 'strict.typed.f1'].value == 0
  assert held['cross_site:icu', 1, 'ward', 'ner', 'strict.typed.f1'].value == 0.1
  assert held['final', 1, 'elsewhere', '', 'sources'][-6:] == (True, '', 'sources', 5.0, None, None)
  assert held['final', 1, 'icu', '', 'answers.asked'].value == 12
  assert held['total', 1, '', '', 'epsilon'].value == 1.5
  # A site that sent nothing has no loss, and that it was left out is a number.
  assert ('round', 1, 'icu', '', 'train_loss') not in held
  assert [held['round', 1, site, '', 'quarantined'].value for site in ('icu', 'ward')] == [1, 0]


# Keys of a line that are one number, a text, or objects.
OF_ALL = {
  'round', 'local_steps', 'examples', 'tokens', 'bytes_up', 'bytes_down', 'simulated_seconds',
  'step_norm', 'step_cosine', 'product_gap', 'contribution_whole', 'useful_step_share', 'skipped',
  'privacy', 'validation_f1', 'validation_f1_sites', 'chunk', 'remat', 'seconds', 'sites'}


def test_whatever_a_round_says_of_each_site_is_a_row(tmp_path):
  """A key that docs/files.md has of a line is in `OF_ALL`, or there are rows of each site."""
  always, some = documented('metrics.jsonl')
  keys = (always | some) - OF_ALL - {*results._NAMED}
  assert keys == {*results._BY_SITE} and OF_ALL <= always | some
  place = {key: 10.0 * number for number, key in enumerate(sorted(keys))}
  run = invent(tmp_path / 'run', lines=[line(1, ('icu', 'ward'), **{
    key: [value, value + 1] for key, value in place.items()})])
  held = {(row.metric, row.site): row.value for row in rows_of(Folder('a', run))
          if row.stage == 'round'}
  for key, value in place.items():
    metric = results._BY_SITE[key]
    assert (held[metric, 'icu'], held[metric, 'ward']) == (value, value + 1)
  assert {'cluster', 'staleness', 'contribution', 'contribution_error'} < {
    metric for metric, _ in held}


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  """Two presets, two strengths of unlike kinds, two seeds; one run failed, one has not begun."""
  folder = tmp_path_factory.mktemp('swept')
  invent_sweep(
    folder, tagger_run(tmp_path_factory), {
      'fed.preset': ['fed_medlora', 'uniform'], 'data.partition.strength': [1, 0.5],
      'seed': [0, 1]}, lambda overrides: 0.5 + 0.1 * overrides['seed'], {'run_007': 'it broke'})
  stored = json.loads((folder / 'sweep.json').read_text())
  for number, run in enumerate(stored['runs']):
    run['overrides']['setting'] = ('iid', 'types')[number % 2]
  stored['runs'].append({'name': 'run_008', 'status': 'waiting'})
  write(folder / 'sweep.json', stored)
  # What a preset itself sets is no column; what differs within one is.
  for number in range(8):
    path = folder / 'runs' / f'run_{number:03}' / 'config.json'
    config = json.loads(path.read_text())
    write(path, config | {'fed.size_power': float(number < 4), 'fed.ranks': [1, 1 + number % 2]})
  return folder


def test_columns_of_a_sweep_are_what_tells_its_runs_apart(swept):
  frame = results.load(swept)
  assert list(frame.columns[len(results.Row._fields):]) == [
    'config.data.partition.strength', 'config.setting', 'config.fed.ranks']
  runs = frame.drop_duplicates('run').set_index('run')
  assert list(runs.index) == [f'run_{number:03}' for number in range(8)]
  assert list(runs['config.data.partition.strength']) == [1, 1, 0.5, 0.5] * 2
  assert list(runs['config.fed.ranks'])[:2] == ['[1, 1]', '[1, 2]']
  # Not a key of the configuration: an axis of several.
  assert list(runs['config.setting']) == ['iid', 'types'] * 4
  # A failed run keeps its rounds and has no scores.
  assert list(runs.status) == ['done'] * 7 + ['failed']
  assert {*picked(frame, run='run_007').stage} == {'round'}
  means = picked(frame, stage='final', metric='strict.typed.f1').groupby('seed').value.mean()
  assert list(means) == pytest.approx([0.5, 0.6])


def test_both_files_are_the_table(swept, monkeypatch):
  frame = results.load(swept)
  monkeypatch.setattr(results, '_AT_ONCE', 10)
  assert results.write(swept).startswith(f'{len(frame):,} rows')
  pandas.testing.assert_frame_equal(pandas.read_parquet(swept / results.PARQUET), frame)
  read = pandas.read_csv(swept / results.CSV, keep_default_na=False, na_values={
    'low': '', 'high': ''})
  pandas.testing.assert_frame_equal(read, frame, check_dtype=False)


def test_a_comparison_has_its_folders_as_names(tmp_path):
  for name in ('fed_medlora', 'seed_2/fed_medlora'):
    invent(tmp_path / name, config={'seed': len(name)})
  # The configuration of a model has this name, too.
  write(tmp_path / 'fed_medlora' / 'model' / 'config.json', {'hidden_size': 4})
  frame = results.load(tmp_path)
  assert list(frame.run.unique()) == ['fed_medlora', 'seed_2/fed_medlora']
  assert list(frame.columns) == list(results.Row._fields)


def test_what_is_missing_is_said_in_one_line(swept, tmp_path, monkeypatch):
  with pytest.raises(InputError, match=r'holds no run .* or sweep') as error:
    results.load(tmp_path)
  assert '\n' not in str(error.value)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  monkeypatch.setitem(sys.modules, 'pandas', None)
  with pytest.raises(InputError, match=r"pip install 'fedmedjax\[results\]'"):
    results.load(swept)
  assert "pandas; pip install 'fedmedjax[results]'" in results.write(swept)
