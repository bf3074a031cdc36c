"""The BERT baseline through the real entry points: a tiny random encoder, two rounds."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from shared_runs import shared_folder

from fedmedjax import main
from fedmedjax.compare import __main__ as compare
from fedmedjax.data.synthetic.cohorts import generate_cohort

SITES = ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')
SHRINK = [
  '--config.fed.preset=fed_bert', '--config.fed.rounds=2', '--config.fed.local_steps=40',
  '--config.fed.batch_size=16', '--config.bert.learning_rate=1e-2', '--config.bert.max_length=64',
  '--config.eval.max_examples=40', '--config.eval.bootstrap_samples=20',
  '--config.data.validation_examples=3', '--config.log.steps=False', '--config.eval.every=2']


@pytest.fixture(scope='module')
def bert_folder(tmp_path_factory) -> Path:
  """A random encoder; its vocabulary is the words of the cohorts' training notes, and letters."""
  return shared_folder(tmp_path_factory, 'bert_model', save_encoder)


def save_encoder(folder: Path) -> None:
  folder.mkdir()
  normal = tokenizers.normalizers.BertNormalizer(lowercase=True)
  split = tokenizers.pre_tokenizers.BertPreTokenizer()
  text = ' '.join(
    note.text for name in SITES for note in generate_cohort(name, seed=42).train)
  words = {word for word, _ in split.pre_tokenize_str(normal.normalize_str(text))}
  letters = sorted({letter for word in words for letter in word})
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '@', '*']
  pieces += sorted((words | set(letters)) - set(pieces)) + [f'##{letter}' for letter in letters]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  torch.manual_seed(2)
  model = transformers.BertForPreTraining(transformers.BertConfig(
    vocab_size=len(pieces), hidden_size=64, intermediate_size=96, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=64, initializer_range=0.1))
  with torch.no_grad():
    # Random and frozen, places and types would be noise upon the words.
    model.bert.embeddings.position_embeddings.weight.mul_(0.1)
    model.bert.embeddings.token_type_embeddings.weight.mul_(0.1)
  model.save_pretrained(folder)


@pytest.fixture(scope='module')
def command(bert_folder):
  """command(workdir, *more) -> argv of the shrunk quick start with the preset fed_bert."""
  return lambda workdir, *more: [
    'fedmedjax', '--config=configs/quickstart.py', f'--config.bert.path={bert_folder}',
    f'--workdir={workdir}', *SHRINK, *more]


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory) -> Path:
  """Tests of both processes only read it."""
  def fill(workdir: Path) -> None:
    assert main.main(command(workdir)) == 0

  return shared_folder(tmp_path_factory, 'bert_whole', fill)


def summary_of(workdir: Path) -> dict:
  return json.loads((workdir / 'summary.json').read_text())


def records_of(workdir: Path, site: str) -> list[dict]:
  lines = (workdir / 'predictions' / f'{site}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_it_learns_and_says_what_was_sent(finished, bert_folder):
  summary = summary_of(finished)
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert [line['round'] for line in lines] == [1, 2]
  # Held-out sentences are answered after every second round.
  assert 'validation_f1' not in lines[0] and lines[1]['validation_f1'] > 0.1
  assert np.mean(lines[1]['train_loss']) < 0.8 * np.mean(lines[0]['train_loss'])
  sizes = np.array(summary['train_examples'])
  np.testing.assert_allclose(lines[0]['weights'], sizes / sizes.sum(), rtol=1e-5)
  for site in SITES:
    assert summary['scores'][site]['ner']['strict']['typed']['f1'] > 0.1
  assert summary['zero_shot'] is None
  tensors = safetensors.numpy.load_file(finished / 'model' / 'model.safetensors')
  sent = sum(x.size for name, x in tensors.items() if '.embeddings.' not in name)
  whole = sum(x.size for x in tensors.values())
  assert (summary['adapter_parameters'], summary['base_parameters']) == (sent, whole)
  # Float32 and a header, three sites, two rounds; the full model goes both ways.
  assert summary['bytes_up'] == (sent * 4 + 28) * 3 * 2
  assert summary['bytes_down'] == (sent * 4 + 12) * 3 * 2
  assert summary['bytes_full_model'] == whole * 4 * 3 * 2 * 2
  # The clinic does not annotate treatments: it neither predicts nor scores them.
  clinic = summary['scores']['synthetic_clinic']['ner']
  assert set(clinic['per_type']) == {'problem', 'test', 'drug'}
  assert not any('treatment' in r['generated'] for r in records_of(finished, 'synthetic_clinic'))
  assert not (finished / 'adapter').exists()


def test_embeddings_stay_and_all_else_moves(finished, bert_folder):
  before = safetensors.numpy.load_file(bert_folder / 'model.safetensors')
  after = safetensors.numpy.load_file(finished / 'model' / 'model.safetensors')
  frozen = [name for name in after if '.embeddings.' in name]
  assert len(frozen) == 5
  for name in frozen:
    np.testing.assert_array_equal(before[name], after[name])
  moved = set(after) - set(frozen) - {'classifier.weight', 'classifier.bias'}
  assert len(moved) == 16 and after['classifier.bias'].all()
  for name in moved:
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
    assert (before[name] != after[name]).any() or name.endswith('key.bias'), name


def test_transformers_answers_as_we_did(finished):
  """The saved folder, its own tokenizer, one sentence at a time."""
  folder = finished / 'model'
  model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  for record in records_of(finished, 'synthetic_icu'):
    read = tokenizer(record['model_input'], return_tensors='pt')
    with torch.no_grad():
      best = model(**read).logits[0].argmax(-1).tolist()
    words = read.word_ids(0)
    first = [
      i for i, word in enumerate(words) if word is not None and word != words[i - 1]]
    assert record['generated'].split() == [model.config.id2label[best[i]] for i in first]


def test_stopped_after_round_one_it_ends_alike(
    finished, command, tmp_path, stop_after_a_round):
  workdir = tmp_path / 'stopped'
  stop_after_a_round(command(workdir))
  assert main.main(command(workdir)) == 0
  ours, theirs = (
    safetensors.numpy.load_file(folder / 'model' / 'model.safetensors')
    for folder in (workdir, finished))
  for key in theirs:
    np.testing.assert_array_equal(ours[key], theirs[key])


def test_cohorts_by_size_failures_and_compressed_updates(command, tmp_path):
  """As for an adapter: n_k, here windows, is what sites are drawn by and what is undone."""
  workdir = tmp_path / 'cohorts'
  assert main.main(command(
    workdir, '--config.fed.cohort_size=2', '--config.fed.sampler=size',
    '--config.fed.rounds=5', '--config.fed.local_steps=2',
    '--config.fed.outbound=int8', '--config.fed.error_feedback=True',
    '--config.simulation.failure=0.3', '--config.simulation.step_seconds=3.0',
    '--config.eval.max_examples=1')) == 0
  summary = summary_of(workdir)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  rows = [line.split(',') for line in (workdir / 'ledger.csv').read_text().splitlines()[1:]]
  assert len({tuple(line['sites']) for line in lines}) > 1
  # No site is so large that it always comes.
  assert 2 * max(summary['train_examples']) < sum(summary['train_examples'])
  for line in lines:
    came = [steps > 0 for steps in line['steps']]
    assert [weight > 0 for weight in line['weights']] == came
    assert [count > 0 for count in line['site_bytes_up']] == came
    # Drawn by n and weighed by n / n, all weigh alike.
    np.testing.assert_allclose(line['weights'], np.array(came) / max(sum(came), 1), rtol=1e-5)
    own = [row for row in rows if row[0] == str(line['round'])]
    assert sum(int(row[-1]) for row in own) == line['bytes_up']
    assert sum(int(row[-2]) for row in own) == line['bytes_down']
  leaves = {row[3] for row in rows if row[2] == 'adapter'}
  # A byte a value, a scale a tensor and the header.
  sent = sum(steps > 0 for line in lines for steps in line['steps'])
  assert 0 < sent < 10
  assert summary['bytes_up'] == (summary['adapter_parameters'] + 4 * len(leaves) + 28) * sent
  assert summary['bytes_full_model'] == summary['base_parameters'] * 4 * (10 + sent)


@pytest.mark.slow
def test_modifiers_of_a_marked_main_entity(command, tmp_path):
  workdir = tmp_path / 'relations'
  assert main.main(command(
    workdir, '--config.bert.task=re', '--config.fed.local_steps=120',
    '--config.eval.max_examples=60')) == 0
  summary = summary_of(workdir)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert np.mean(lines[1]['train_loss']) < 0.8 * np.mean(lines[0]['train_loss'])
  # 0.16 when written: which words modify which entity is harder to learn than what they are.
  found = [summary['scores'][site]['re']['modifier']['strict']['typed']['f1'] for site in SITES]
  assert np.mean(found) > 0.08
  per_type = summary['scores']['synthetic_icu']['re']['modifier']['per_type']
  assert len(per_type) == 16 and sum(entry['gold'] for entry in per_type.values()) > 40
  notes = {note.name: note.text for note in generate_cohort('synthetic_icu', seed=42).test}
  for record in records_of(workdir, 'synthetic_icu'):
    start, end, kind = record['main']
    surface = notes[record['document']][start:end]
    assert f'@ * {kind} * {surface} @' in record['model_input'] and record['task'] == 're'


@pytest.mark.slow
def test_a_row_of_the_comparison(command, tiny_folder, tmp_path, capsys):
  """Beside a LoRA regime: the same test sentences, steps and metrics, one table."""
  workdir = tmp_path / 'compare'
  argv = command(
    workdir, f'--config.model.path={tiny_folder}', '--regimes=fed_medlora,fed_bert',
    '--config.fed.rounds=1', '--config.fed.local_steps=2', '--config.fed.batch_size=4',
    '--config.eval.max_examples=3', '--config.eval.max_new_ratio=0.1', '--config.lora.rank=4',
    '--config.lora.targets=("q_proj","v_proj")', '--config.data.external=()')
  assert compare.main(argv) == 0
  rows = json.loads((workdir / 'compare.json').read_text())
  assert list(rows) == ['fed_medlora', 'fed_bert']
  assert rows['fed_medlora']['local_steps'] == rows['fed_bert']['local_steps'] == 6
  for site in SITES:
    lora, bert = (records_of(workdir / regime, site) for regime in rows)
    assert [(r['document'], r['gold']) for r in lora] == [(r['document'], r['gold']) for r in bert]
  out = capsys.readouterr().out
  assert 'fed_bert' in out[out.index('Typed strict F1 by regime'):]


def test_regimes_of_two_models_need_a_number_of_steps(command, tmp_path, capsys):
  """Epochs of windows and of sentences are unlike many steps."""
  argv = command(
    tmp_path / 'compare', '--config.fed.local_steps=0', '--regimes=fed_medlora,fed_bert')
  assert compare.main(argv) == 2
  assert 'config.fed.local_steps=0' in capsys.readouterr().err
  assert not (tmp_path / 'compare').exists()
