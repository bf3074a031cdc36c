"""A small ablation for a run's page: what it says, where it stands, and that main asks for it."""

import html
import json

import pytest
from invented_run import invent
from rich.console import Console

from fedmedjax import main, report
from fedmedjax.compare import ablation, first_claims
from fedmedjax.experiment.config import CHECKS
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import run

PRESETS, SETTINGS, SEEDS = ablation.SMALL
# By hand: differences 4, 5, 6, 5, 5 points have mean 5 and standard deviation 1 / sqrt(2), so a
# standard error of 1 / sqrt(10); 2.7764 times that, the t quantile of 4 degrees, is 0.88.
APART = {'single_site': (-4, -5, -6, -5, -5), 'centralised': (1, -1, 0, 1, -1),
         'fed_medlora_peer': (4, 5, 6, 5, 5), 'fed_medlora': (0,) * 5}


@pytest.fixture
def rows():
  return [
    {'preset': preset, 'setting': setting, 'seed': seed, 'f1': 0.4 + 0.1 * seed + apart / 100}
    for setting in SETTINGS for preset in PRESETS
    for seed, apart in zip(SEEDS, APART[preset], strict=True)]


def test_differences_in_words_by_hand(rows):
  said = first_claims.sentences(rows, PRESETS, SETTINGS)
  wrong = ablation.SETTINGS['wrong_1'].title.capitalize()
  assert said[:3] == [
    'IID: single_site is 5.0 points below fed_medlora [-5.9, -4.1].',
    'IID: centralised is not told apart from fed_medlora: +0.0 points [-1.2, +1.2].',
    'IID: fed_medlora_peer is 5.0 points above fed_medlora [+4.1, +5.9].']
  assert len(said) == 6 and all(one.startswith(wrong) for one in said[3:])
  table = first_claims.table(rows, PRESETS, SETTINGS)
  by_name = {name: cells for name, *cells in table.rows}
  assert by_name['fed_medlora'] == [('0.600', '')] * 2
  assert by_name['fed_medlora_peer'] == [('0.650', '+4.1 to +5.9*')] * 2
  assert by_name['centralised'] == [('0.600', '-1.2 to +1.2')] * 2


def test_a_regime_without_runs_is_left_out(rows):
  held = [row for row in rows if row['preset'] != 'centralised'] + [
    {'preset': 'centralised', 'setting': setting, 'seed': 0, 'refused': 'why'}
    for setting in SETTINGS]
  assert len(first_claims.sentences(held, PRESETS, SETTINGS)) == 4
  assert ['centralised', ('-', ''), ('-', '')] in first_claims.table(held, PRESETS, SETTINGS).rows


def test_the_page_of_a_run_gets_the_claims(rows, tmp_path, monkeypatch, capsys):
  """It was made before; it is made again with them, once, and says what they are of."""
  asked, written = [], []

  def instead(config, folder, *wanted):
    asked.append((config.fed.learner, folder, *wanted[:-1]))
    folder.mkdir(exist_ok=True)
    return rows

  monkeypatch.setattr(ablation, 'ablation', instead)
  folder = invent(tmp_path / 'mine')
  report.freshen(folder, 2)
  assert 'Methods beside each other' not in (folder / report.FILE).read_text()
  for _ in range(2):
    first_claims.first_claims(folder, 2, Reporter(Console(quiet=True)))
    written.append((folder / report.FILE).stat().st_mtime_ns)
  assert asked[0] == ('tagger', folder / 'ablation', PRESETS, SETTINGS, tuple(SEEDS))
  assert written[0] == written[1]
  page = html.unescape((folder / report.FILE).read_text())
  for words in (
      'Methods beside each other', 'which is not the model of this run', '5 seeds',
      'IID: fed_medlora_peer is 5.0 points above fed_medlora [+4.1, +5.9].', '0.650'):
    assert words in page, words
  assert {path.name for path in (folder / 'ablation').iterdir()} == {'claims.json', 'table.md'}
  report.freshen(folder, 2)
  assert (folder / report.FILE).stat().st_mtime_ns == written[1]


@pytest.mark.parametrize('wanted', [True, False])
def test_main_asks_for_it_where_the_configuration_does(wanted, tmp_path, monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(
    run, 'run', lambda *rest, **more: {'rounds': 0, 'scores': {}, 'external': (), 'sites': ()})
  monkeypatch.setattr(
    first_claims, 'first_claims', lambda workdir, examples, reporter: calls.append(
      (workdir, examples)))
  monkeypatch.setattr(main, 'set_up', lambda: None)
  assert main.main([
    'fedmedjax', '--config=fedmedjax:quickstart', f'--workdir={tmp_path}',
    '--config.report.examples=4', f'--config.report.ablation={wanted}']) == 0
  assert calls == [(tmp_path, 4)] * wanted
  # With the number of sentences, which another test changes, these are all keys of the page.
  assert {key for key in CHECKS if key.startswith('report.')} == {
    'report.examples', 'report.ablation'}


def test_a_damaged_file_of_claims_is_named(rows, tmp_path):
  folder = invent(tmp_path / 'mine')
  report.write_claims(folder, 'x', ['y'], first_claims.table(rows, PRESETS, SETTINGS))
  path = folder / 'ablation' / 'claims.json'
  assert json.loads(path.read_text())['lead'] == 'x'
  path.write_text('{"lead')
  with pytest.raises(ValueError, match=r'claims.json: cannot be read'):
    report.freshen(folder, 2)
