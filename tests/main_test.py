"""The real entry points on the real quick-start configuration, shrunk, with a tiny model."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from fedmedjax import compare, main, run

SHRINK = [
  '--config.fed.rounds=2', '--config.fed.local_steps=2', '--config.fed.batch_size=4',
  '--config.eval.max_examples=3', '--config.eval.bootstrap_samples=20',
  '--config.data.validation_examples=3', '--config.lora.rank=4',
  # A random model never stops by itself; few new tokens keep the test short.
  '--config.eval.max_new_ratio=0.1']


@pytest.fixture(scope='module')
def tiny_folder(smollm, tmp_path_factory) -> Path:
  """A random two-layer model with SmolLM2's tokenizer."""
  folder = tmp_path_factory.mktemp('model')
  torch.manual_seed(1)
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=len(smollm.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
    tie_word_embeddings=True)).save_pretrained(folder)
  smollm.tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope='module')
def command(tiny_folder):
  """command(workdir, *more) -> argv of the shrunk quick start."""
  return lambda workdir, *more, config='configs/quickstart.py': [
    'fedmedjax', f'--config={config}', f'--config.model.path={tiny_folder}',
    f'--workdir={workdir}', *SHRINK, *more]


def fingerprint(folder: Path) -> dict:
  """Content and time of every file."""
  return {
    str(path.relative_to(folder)): (
      hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  assert main.main(command(workdir)) == 0
  return workdir


def test_the_files_of_a_run(finished):
  summary = json.loads((finished / 'summary.json').read_text())
  sites = ['synthetic_icu', 'synthetic_dictation', 'synthetic_clinic']
  assert summary['preset'] == 'fed_medlora_plus' and summary['rounds'] == 2
  assert summary['sites'] == sites and summary['external'] == ['synthetic_external']
  assert set(summary['scores']) == {*sites, 'synthetic_external'}
  for scores in (summary['scores'], summary['zero_shot']['scores']):
    entry = scores['synthetic_icu']['ner']['strict']['typed']
    assert set(entry) == {'precision', 'recall', 'f1', 'ci95'}
  # Rank 4 on seven projections of 2 layers: 4 (D_in + D_out) each; float32, 3 sites, 2 rounds.
  parameters = 2 * 4 * (32 + 24 + 24 + 32 + 3 * 40)
  assert summary['adapter_parameters'] == parameters
  assert summary['bytes_up'] == summary['bytes_down'] == parameters * 4 * 3 * 2
  assert summary['bytes_full_model'] == summary['base_parameters'] * 4 * 3 * 2 * 2
  assert summary['local_steps'] == 12
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert [line['round'] for line in lines] == [1, 2]
  for line in lines:
    assert abs(sum(line['weights']) - 1) < 1e-5
    assert all(np.isfinite(line['validation_loss']))
    assert line['examples'] == 24 and line['step_norm'] > 0
  record = json.loads(
    (finished / 'predictions' / 'synthetic_icu.jsonl').read_text().splitlines()[0])
  assert {'document', 'sentence_start', 'task', 'model_input', 'generated', 'predicted', 'gold',
          'parse_failed'} <= set(record)
  assert (finished / 'adapter' / 'adapter_model.safetensors').exists()
  assert sorted(path.name for path in (finished / 'checkpoints').iterdir()) == ['1', '2']


def test_predictions_rescore_to_the_summary(finished):
  """Recounted from the record's offsets alone."""
  summary = json.loads((finished / 'summary.json').read_text())
  for site in summary['sites']:
    true = predicted = gold = 0
    for line in (finished / 'predictions' / f'{site}.jsonl').read_text().splitlines():
      record = json.loads(line)
      a, b = ({tuple(span) for span in record[key]} for key in ('gold', 'predicted'))
      true, gold, predicted = true + len(a & b), gold + len(a), predicted + len(b)
    expected = 2 * true / max(gold + predicted, 1)
    assert abs(summary['scores'][site]['ner']['strict']['typed']['f1'] - expected) < 1e-9


def test_a_finished_run_is_left_alone(finished, command, capsys):
  before = fingerprint(finished)
  assert main.main(command(finished)) == 0
  assert fingerprint(finished) == before
  assert 'finished, nothing to do' in capsys.readouterr().out


def test_another_configs_workdir_is_refused(finished, command, capsys):
  before = fingerprint(finished)
  assert main.main(command(finished, '--config.optim.learning_rate=0.5')) == 2
  assert fingerprint(finished) == before
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'optim.learning_rate=0.001' in error
  assert main.main(command(finished, '--config.fed.rounds=1')) == 2
  assert 'holds 2 finished rounds' in capsys.readouterr().err


def test_stopped_after_round_one_it_resumes_at_round_two(
    finished, command, tmp_path, monkeypatch, capsys):
  """And ends with the adapter of the undisturbed run, bit by bit."""
  workdir = tmp_path / 'stopped'

  def stop(line, rounds):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(run, '_round_sentence', stop)
    assert main.main(command(workdir)) == 130
  assert not (workdir / 'summary.json').exists()
  capsys.readouterr()
  assert main.main(command(workdir)) == 0
  out = capsys.readouterr().out
  assert 'resuming after round 1' in out and 'round 2/2' in out and 'round 1/2' not in out
  ours, theirs = (
    safetensors.numpy.load_file(folder / 'adapter' / 'adapter_model.safetensors')
    for folder in (workdir, finished))
  assert set(ours) == set(theirs)
  for key in ours:
    np.testing.assert_array_equal(ours[key], theirs[key])
  rounds = [json.loads(x)['round'] for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert rounds == [1, 2]


def test_compare_tabulates_every_regime_with_equal_steps(command, tmp_path, capsys):
  workdir = tmp_path / 'compare'
  argv = command(workdir, '--config.fed.rounds=1', '--config.data.external=()')
  assert compare.main(argv) == 0
  rows = json.loads((workdir / 'compare.json').read_text())
  assert list(rows) == list(compare.REGIMES)
  steps = {regime: row['local_steps'] for regime, row in rows.items()}
  assert steps == {
    'zero_shot': 0, 'single_site': 6, 'centralised': 6, 'fed_medlora': 6, 'fed_medlora_plus': 6}
  sent = {regime: row['bytes_up'] > 0 for regime, row in rows.items()}
  assert [regime for regime, any_ in sent.items() if any_] == ['fed_medlora', 'fed_medlora_plus']
  assert (workdir / 'single_site' / 'adapter' / 'synthetic_clinic' / 'adapter_config.json').exists()
  out = capsys.readouterr().out
  assert all(regime in out for regime in compare.REGIMES)
  # Size weights against size times exp(-loss): unlike.
  assert rows['fed_medlora']['site_weights'] != rows['fed_medlora_plus']['site_weights']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, '_train', None)  # a second call must not train anything
    assert compare.main(argv) == 0


def test_an_adapter_that_does_not_move_is_noticed(command, tmp_path, capsys):
  """METHOD section 8: an update lost on its way. The planted fault: a rate that rounds to 0."""
  status = main.main(command(
    tmp_path / 'still', '--config.optim.learning_rate=1e-38', '--config.eval.zero_shot=False'))
  assert status == 1
  assert 'nothing was learnt' in capsys.readouterr().err


def test_a_diverging_site_is_named(command, tmp_path, capsys):
  status = main.main(command(
    tmp_path / 'wild', '--config.optim.learning_rate=1e30', '--config.eval.zero_shot=False'))
  assert status == 1
  assert 'the loss of site synthetic_' in capsys.readouterr().err
