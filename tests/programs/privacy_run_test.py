"""A word tagger under a privacy budget: the run that stops, its files, and its second call."""

import json

import pytest

from fedmedjax import main
from fedmedjax.experiment.accounting import Spending, epsilon
from fedmedjax.experiment.leaving import STAYS
from fedmedjax.runtime.progress import Reporter

# Rounds of four steps, of which the budget pays two.
ARGUMENTS = [
  '--config=fedmedjax:ablation:fed_medlora', '--config.fed.rounds=4', '--config.fed.local_steps=4',
  '--config.fed.batch_size=4', '--config.tagger.width=8', '--config.tagger.buckets=64',
  '--config.data.partition.sites=2', '--config.data.partition.unit=note',
  '--config.data.max_train_sentences=60', '--config.eval.bootstrap_samples=1',
  '--config.privacy.unit=example', '--config.privacy.noise=0.8', '--config.privacy.epsilon=2.5',
  '--config.privacy.delta=1e-4']


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """(folder, what was said) of a run that its budget has ended."""
  workdir = tmp_path_factory.mktemp('private') / 'run'
  said, say = [], Reporter.say
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Reporter, 'say', lambda self, text: (said.append(str(text)), say(self, text))[1])
    assert main.main(['fedmedjax', *ARGUMENTS, f'--workdir={workdir}']) == 0
  return workdir, said


def test_the_run_stops_before_the_round_that_would_overspend(stopped):
  """Its adapter is kept and scored, and its ledger adds up to what it says."""
  workdir, said = stopped
  summary = json.loads((workdir / 'summary.json').read_text())
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  spent = summary['privacy']
  assert 0 < spent['rounds'] == summary['rounds'] == len(lines) < spent['planned_rounds'] == 4
  assert summary['scores'] and (workdir / 'adapter').exists()
  for site, found in spent['sites'].items():
    rows = [Spending(*row) for line in lines for row in line['privacy'].get(site, ())]
    assert sum(row.steps for row in rows) == 4 * len(lines)
    assert found == epsilon(rows, 1e-4) <= 2.5
  worst = max(spent['sites'], key=spent['sites'].get)
  again = [Spending(*row) for row in lines[0]['privacy'][worst]]
  assert epsilon([*again] * (len(lines) + 1), 1e-4) > 2.5
  assert any(text.startswith(f'stopped after {len(lines)} of 4 rounds') for text in said)
  assert any(text.startswith('differential privacy of an example') for text in said)
  assert 'stopped after' in (workdir / 'report.html').read_text()


def test_every_number_of_a_round_is_in_the_manifest(stopped):
  workdir, said = stopped
  leaves = json.loads((workdir / 'summary.json').read_text())['privacy']['leaves']
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(line)
    assert set(line) <= set(leaves)
    assert all(
      value is None or not value or value == [None] * len(line['sites'])
      for key, value in line.items() if leaves[key] == STAYS)
    assert line['update_norm'] and all(line['update_norm'])
  assert not any('training loss' in text for text in said)


def test_a_run_that_was_stopped_is_finished(stopped, capsys):
  """Asked again it is shown again."""
  workdir, _ = stopped
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert main.main(['fedmedjax', *ARGUMENTS, f'--workdir={workdir}']) == 0
  assert 'finished, nothing to do' in capsys.readouterr().out
  assert (workdir / 'metrics.jsonl').read_bytes() == before
