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
from fedmedjax.data import tasks
from fedmedjax.data.cohorts import generate_cohort
from fedmedjax.data.schedule import encode_site
from fedmedjax.eval import evaluate
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.llama import Llama
from fedmedjax.model.load import load_model

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
    # Six steps of four; an epoch's steps differ by at most one example.
    assert 22 <= line['examples'] <= 24 and line['step_norm'] > 0
  record = json.loads(
    (finished / 'predictions' / 'synthetic_icu.jsonl').read_text().splitlines()[0])
  assert {'document', 'sentence_start', 'task', 'model_input', 'generated', 'predicted', 'gold',
          'parse_failed'} <= set(record)
  assert (finished / 'adapter' / 'adapter_model.safetensors').exists()
  assert sorted(path.name for path in (finished / 'checkpoints').iterdir()) == ['1', '2']


def test_scores_are_those_of_the_answers(command, tmp_path, monkeypatch):
  """Planted answers: the gold markup, but every sentence's last entity unmarked.

  So precision is 1 and recall (entities - sentences with any) / entities, recounted here from the
  records' offsets; the notes' own text at those offsets is what was marked.
  """
  def answer(generator, adapter, base, site, advance):
    out = []
    for example in site.test:
      out.append(tasks.render(example._replace(entities=example.entities[:-1]))[1])
      advance(1)
    return out

  monkeypatch.setattr(evaluate, 'generate', answer)
  workdir = tmp_path / 'planted'
  assert main.main(command(workdir, '--config.fed.preset=zero_shot')) == 0
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['copy_rate'] == 1.0 and summary['parse_failure_rate'] == 0.0
  for site in summary['sites']:
    lines = (workdir / 'predictions' / f'{site}.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    gold = sum(len(record['gold']) for record in records)
    lost = sum(bool(record['gold']) for record in records)
    assert gold > lost > 0
    for record in records:
      assert record['predicted'] == record['gold'][:-1]
      text = record['model_input'].removesuffix('\n### Output Text:\n')
      for start, end, kind in record['predicted']:
        place = slice(start - record['sentence_start'], end - record['sentence_start'])
        assert f'<span class="{kind}">{text[place]}</span>' in record['generated']
    entry = summary['scores'][site]['ner']['strict']['typed']
    assert entry['precision'] == 1.0
    assert entry['recall'] == pytest.approx((gold - lost) / gold)


def test_decoding_keeps_the_order_of_the_sentences(smollm, tiny_folder):
  """Batches are sorted by length; each answer must come back to its own sentence.

  Five sentences in two batches of 3 (one row only fills) against one batch each.
  """
  model = load_model(tiny_folder)
  site = encode_site(
    generate_cohort('synthetic_icu'), model.tokenizer, max_length=200, max_train_notes=2,
    max_test=5)
  llama = Llama(model.config, cached_attention)
  together, alone = (
    evaluate.generate(
      evaluate.Generator(llama, model.tokenizer, size, 0.1), {}, model.params, site)
    for size in (3, 1))
  assert together == alone and len(set(together)) > 1


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
  assert 'holds 2 rounds, config.fed.rounds=1' in capsys.readouterr().err


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
  table = out[out.index('Typed strict F1 by regime'):]
  assert all(regime in table for regime in compare.REGIMES)
  # Size weights against size times exp(-loss): unlike.
  assert rows['fed_medlora']['site_weights'] != rows['fed_medlora_plus']['site_weights']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, '_train', None)  # a second call must not train anything
    assert compare.main(argv) == 0


def test_a_run_that_folds_and_one_with_private_factors(command, tmp_path, capsys):
  """FedEx-LoRA: the exported adapter holds the residual's columns, 4 + 2 rounds * 3 sites * 4, at
  the scale of rank 4; more rounds would need more room. FedSA-LoRA: an adapter a site, whose B is
  not the server's zero."""
  settings = ('--config.eval.zero_shot=False', '--config.data.external=()')
  folded = command(tmp_path / 'fold', '--config.fed.preset=fedex_lora', *settings)
  assert main.main(folded) == 0
  exported = json.loads((tmp_path / 'fold' / 'adapter' / 'adapter_config.json').read_text())
  assert (exported['r'], exported['lora_alpha'] / exported['r']) == (28, 64 / 4)
  summary = json.loads((tmp_path / 'fold' / 'summary.json').read_text())
  # Up, the adapter; down, also 12 columns a round, three times its 4.
  assert summary['bytes_down'] == 4 * summary['bytes_up']
  capsys.readouterr()
  assert main.main([*folded, '--config.fed.rounds=3']) == 2
  assert 'config.fed.rounds=2, this one has 3' in capsys.readouterr().err
  assert main.main(
    command(tmp_path / 'own', '--config.fed.preset=fedsa_lora', *settings)) == 0
  ours = [safetensors.numpy.load_file(path) for path in sorted(
    (tmp_path / 'own' / 'adapter').rglob('adapter_model.safetensors'))]
  key = next(key for key in ours[0] if 'lora_B' in key)
  assert len(ours) == 3 and len({one[key].tobytes() for one in ours}) == 3
  assert all(one[key].any() for one in ours)
  shared = key.replace('lora_B', 'lora_A')
  assert len({one[shared].tobytes() for one in ours}) == 1


def test_a_finished_run_goes_on_with_more_rounds(command, tmp_path, monkeypatch):
  """A stop between a round's line and its checkpoint loses the line, not the count."""
  workdir = tmp_path / 'longer'
  one = command(workdir, '--config.fed.rounds=1', '--config.eval.zero_shot=False')
  two = command(workdir, '--config.eval.zero_shot=False')
  assert main.main(one) == 0

  def stop(checkpointer, state):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(run, 'save', stop)
    assert main.main(two) == 130
  # Half done: neither finished for one round nor refused for two.
  assert not (workdir / 'summary.json').exists()
  assert main.main(two) == 0
  summary = json.loads((workdir / 'summary.json').read_text())
  lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['round'] for line in lines] == [1, 2]
  assert summary['rounds'] == 2 and summary['local_steps'] == 12
  assert main.main(one) == 2


def test_the_gpu_configuration_on_a_tiny_model(command, tmp_path):
  """llama32_1b.py as it is: bfloat16, remat, all sites at once, epochs of unlike length."""
  workdir = tmp_path / 'gpu'
  assert main.main(command(
    workdir, '--config.fed.local_steps=0', '--config.fed.rounds=1', '--config.fed.local_epochs=1',
    '--config.data.max_train_notes=3', '--config.eval.zero_shot=False',
    config='configs/llama32_1b.py')) == 0
  line = json.loads((workdir / 'metrics.jsonl').read_text())
  assert 0.3 < line['useful_step_share'] < 1
  # Unlike numbers of steps, one program: the log saw each taken step and no padded one.
  assert line['local_steps'] == sum(-(-n // 4) for n in _train_sentences(workdir))


def _train_sentences(workdir) -> list[int]:
  return json.loads((workdir / 'summary.json').read_text())['train_examples']


def test_an_adapter_that_does_not_move_is_noticed(command, tmp_path, capsys):
  """METHOD section 8: an update lost on its way. The planted fault: a rate that rounds to 0."""
  status = main.main(command(
    tmp_path / 'still', '--config.optim.learning_rate=1e-38', '--config.eval.zero_shot=False'))
  assert status == 1
  assert 'nothing was learnt' in capsys.readouterr().err


def test_divergence_is_told_in_one_line(command, tmp_path, capsys):
  status = main.main(command(
    tmp_path / 'wild', '--config.optim.learning_rate=1e30', '--config.eval.zero_shot=False'))
  assert status == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'not finite' in error or 'no site has a finite' in error
