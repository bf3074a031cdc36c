"""Every site's own adapter on every site's test set, and counts by source behind scores."""

import json

import numpy as np
import pytest
from shared_runs import shared_folder

from fedmedjax import main
from fedmedjax.eval import metrics
from fedmedjax.store import files

SITES = ['synthetic_icu', 'synthetic_dictation']
EXTERNAL = 'synthetic_external'


@pytest.fixture(scope='module')
def alone(tiny_folder, tmp_path_factory):
  """A finished single-site run of two sites and an external cohort, on a tiny random model."""
  def fill(workdir):
    assert main.main([
      'fedmedjax', '--config=configs/quickstart.py:single_site',
      f'--config.model.path={tiny_folder}', f'--workdir={workdir}', '--config.fed.rounds=1',
      '--config.fed.local_steps=2', '--config.fed.batch_size=4', '--config.eval.max_examples=3',
      '--config.eval.bootstrap_samples=20', '--config.lora.rank=4',
      '--config.log.steps=False',
      '--config.eval.max_new_ratio=0.1', '--config.eval.zero_shot=False',
      '--config.eval.cross_site=True', f'--config.data.sites={tuple(SITES)!r}']) == 0

  return shared_folder(tmp_path_factory, 'cross_site', fill)


def test_the_matrix_holds_every_adapter_on_every_site(alone):
  """Its diagonal are the sites' scores; an external cohort's scores add up over its column."""
  summary = json.loads((alone / 'summary.json').read_text())
  matrix = summary['cross_site']
  assert list(matrix) == SITES
  assert all(list(row) == [*SITES, EXTERNAL] for row in matrix.values())
  for site in SITES:
    assert matrix[site][site] == summary['scores'][site]
    own = files.read_lines(alone / 'predictions' / f'{site}.jsonl')
    assert own == files.read_lines(alone / f'predictions/cross_site/{site}/{site}.jsonl')
    foreign = next(other for other in SITES if other != site)
    crossed = files.read_lines(alone / f'predictions/cross_site/{foreign}/{site}.jsonl')
    assert [record['gold'] for record in crossed] == [record['gold'] for record in own]
    assert [record['generated'] for record in crossed] != [record['generated'] for record in own]
  counts = json.loads((alone / 'predictions/counts.json').read_text())
  # The best single site is chosen by these, on the validation notes of all sites.
  assert list(counts['validation']) == SITES
  assert all(0 < loss < 20 for loss in counts['validation'].values())
  assert len(set(counts['validation'].values())) == 2
  assert summary['test_sources'] == {
    site: len(held['sources']) for site, held in counts['scores'].items()}
  np.testing.assert_array_equal(
    np.array(counts['scores'][EXTERNAL]['ner']),
    sum(np.array(row[EXTERNAL]['ner']) for row in counts['cross_site'].values()))


def test_counts_are_enough_to_score_again(alone):
  counts = json.loads((alone / 'predictions/counts.json').read_text())['scores']
  scores = json.loads((alone / 'summary.json').read_text())['scores']
  for site, held in counts.items():
    records = files.read_lines(alone / 'predictions' / f'{site}.jsonl')
    assert {record['document'] for record in records} <= set(held['sources'])
    by_note = np.array(held['ner'])
    assert by_note.shape[:2] == (len(held['sources']), 2)
    types = list(scores[site]['ner']['per_type'])
    again = metrics.scores(by_note.sum(0), types)
    assert again['per_type'] == scores[site]['ner']['per_type']
    assert sum(again['per_type'][kind]['gold'] for kind in types) == len(
      [span for record in records for span in record['gold']]) > 0
