"""The benchmark scripts on a tiny model: what they write, and that they race equals only."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedmedjax.model.llama import LlamaConfig
from fedmedjax.model.load import load_model
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.peft_format import save_peft
from fedmedjax.types import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
import bench_decode  # noqa: E402
import bench_train  # noqa: E402
import interleaved  # noqa: E402
import torch_peer  # noqa: E402

LORA = LoraConfig(4, 8.0, ('q_proj', 'down_proj'))


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """The tests' own threads, and a ceiling that takes no time."""
  monkeypatch.setattr(interleaved, 'pin_threads', lambda count: 2)
  monkeypatch.setattr(interleaved, '_SIDE', {'cpu': 64})
  monkeypatch.setattr(interleaved, '_SETTLE_SECONDS', 0.0)


@pytest.fixture
def command(tiny_folder):
  """command(main, out, *flags) -> exit status."""
  return lambda script, out, *flags: script.main([
    'script', f'--model={tiny_folder}', '--site=synthetic_icu', '--repeats=1', f'--out={out}',
    *flags])


def test_training_is_raced_on_equal_terms(command, tmp_path):
  """Six examples a step: micro-batches of four and two. All losses agree with ours, every repeat
  is in the file, and sharing and packing are what keeps tokens few."""
  out = tmp_path / 'train.json'
  assert command(
    bench_train, out, '--batch=6', '--peers=peft_batch4,peft_batch4_checkpointing',
    '--sites=2') == 0
  found = json.loads(out.read_text())
  entrants = (
    'ours', 'ours_no_sharing', 'ours_padded', 'peer_peft_batch4', 'peer_peft_batch4_checkpointing')
  for name in entrants:
    seconds, = found[f'{name}_seconds']
    assert found[f'{name}_examples_per_second'] == pytest.approx(12 / seconds)
    assert found[f'{name}_unique_tokens_per_second'] == pytest.approx(
      found['unique_tokens'] / seconds)
    assert found[f'{name}_model_flop_utilisation'] == pytest.approx(
      found['flop'] / seconds / found['ceiling_flop_per_second'])
    np.testing.assert_allclose(found[f'{name}_losses_nats'], found['ours_losses_nats'], atol=1e-3)
  assert found['ratio_to_peft_batch4'] == pytest.approx(
    found['peer_peft_batch4_seconds'][0] / found['ours_seconds'][0])
  assert {'ratio_to_padded', 'ratio_no_sharing_to_peft_batch4', 'ours_compile_seconds'} <= set(
    found)
  fed = [found[f'{name}_fed_tokens'] for name in ('ours', 'ours_no_sharing', 'ours_padded')]
  assert found['unique_tokens'] <= fed[0] < fed[1] <= fed[2]
  assert found['examples'] == 12 and found['machine']['cores_used'] == 2
  assert {'jax', 'torch', 'peft'} <= set(found['versions']) and found['commit']
  # Two sites of two steps of six examples.
  assert found['ours_examples_per_second_2_sites'] == pytest.approx(
    24 / found['ours_seconds_2_sites'][0])
  assert 'ratio_to_loop_2_sites' in found


def test_unlike_training_is_no_race(command, tmp_path, monkeypatch, capsys):
  """Planted: the peer learns the last prompt token, too."""
  padded = torch_peer.padded

  def one_more(instruction, examples):
    return padded(instruction, [
      example._replace(prompt_length=example.prompt_length - 1) for example in examples])

  monkeypatch.setattr(torch_peer, 'padded', one_more)
  out = tmp_path / 'train.json'
  assert command(
    bench_train, out, '--batch=6', '--peers=peft_batch4', '--variants=', '--steps=1') == 1
  assert 'peer_peft_batch4 and ours do not train alike' in capsys.readouterr().err
  assert not out.exists()


def test_losses_that_are_not_finite_do_not_agree():
  bench_train.check_losses({'ours': np.asarray([2.0, 5.0]), 'peer': np.asarray([2.0019, 5.0])})
  for wrong in ([2.0021, 5.0], [2.0, np.nan]):
    with pytest.raises(RuntimeError, match='peer and ours do not train alike'):
      bench_train.check_losses({'ours': np.asarray([2.0, 5.0]), 'peer': np.asarray(wrong)})


def test_decoding_is_raced_for_the_same_text(command, tiny_folder, tmp_path, monkeypatch, capsys):
  """With an adapter that changes the text; then the planted error: a peer that stops early."""
  config = load_model(tiny_folder).config
  adapter = jax.tree.map(lambda x: x + 0.3, init_adapter(jax.random.key(1), config, LORA))
  save_peft(adapter, LORA, tmp_path / 'adapter', 'tiny')
  out, flags = tmp_path / 'decode.json', (
    '--batch=3', '--batches=2', '--max_new_ratio=0.01', f'--adapter={tmp_path}')
  assert command(bench_decode, out, '--guesses=0,2', *flags) == 0
  found = json.loads(out.read_text())
  for name in ('ours', 'ours_guesses2', 'peer_transformers', 'peer_transformers_merged'):
    assert found[f'{name}_examples_per_second'] == pytest.approx(6 / found[f'{name}_seconds'][0])
  assert found['ours_tokens_per_pass'] == 1.0 <= found['ours_guesses2_tokens_per_pass']
  assert {'ratio_to_transformers', 'ratio_guesses2_to_transformers_merged'} <= set(found)

  generate = torch_peer.generate
  monkeypatch.setattr(
    torch_peer, 'generate', lambda *args: [tokens[:-1] for tokens in generate(*args)])
  capsys.readouterr()
  assert command(
    bench_decode, tmp_path / 'none.json', '--guesses=0', '--peers=transformers', *flags) == 1
  said = capsys.readouterr()
  assert '6 texts differ from ours, first peer_transformers, example 0' in said.err
  assert 'peer_transformers, example 4' in said.out and not (tmp_path / 'none.json').exists()


def test_a_model_of_true_shape_is_lowered_without_weights(tiny_folder, tmp_path):
  """Llama-3.1-8B in NF4: 6.03 GB that nothing allocates."""
  out = tmp_path / 'dry.json'
  assert bench_train.main([
    'script', '--model=llama31_8b', f'--tokenizer={tiny_folder}', '--site=synthetic_icu',
    '--batch=4', '--dtype=bfloat16', '--quantization=nf4', '--remat=full', '--peers=', '--dry_run',
    f'--out={out}']) == 0
  found = json.loads(out.read_text())
  assert found['dry_run'] and 6.0e9 < found['base_bytes'] < 6.3e9
  assert found['adapter_bytes'] == 4 * 41_943_040


def test_flop_by_hand():
  """Width 2, one layer, 1 head of 2, MLP 3: N = 4 * 4 + 3 * 6 = 34; rank 1 on q: L = 4; head 5 * 2.

  7 tokens, 3 of them supervised: (4 * 34 + 6 * 4) 7 + 4 * 10 * 3 = 1240.
  """
  config = LlamaConfig(
    vocab_size=5, hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1, num_kv_heads=1,
    head_dim=2, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=8,
    tie_word_embeddings=True)
  assert interleaved.training_flop(config, LoraConfig(1, 1.0, ('q_proj',)), 7, 3) == 1240


def test_entrants_take_turns():
  """Rotated order, and ratios of neighbours in time: 2 / 1 and 6 / 2."""
  calls = []
  timings = interleaved.measure(
    {name: lambda name=name: calls.append(name) for name in ('ours', 'peer_a', 'ours_b')}, 2)
  assert calls == ['ours', 'peer_a', 'ours_b'] * 2 + ['peer_a', 'ours_b', 'ours']
  timings['ours'] = interleaved.Timing(0.0, (1.0, 2.0), None)
  timings['peer_a'] = interleaved.Timing(0.0, (2.0, 6.0), None)
  timings['ours_b'] = interleaved.Timing(0.0, (4.0, 4.0), None)
  assert interleaved.ratios(timings) == {
    'ratio_to_a': [2.0, 3.0], 'ratio_to_b': [4.0, 2.0], 'ratio_b_to_a': [0.5, 1.5]}
  found = interleaved.found(timings, {'seconds_per_round': lambda s: s / 2}, '_9_sites')
  assert found['peer_a_seconds_per_round_9_sites_range'] == [1.0, 3.0]
  assert found['ratio_to_a_9_sites'] == 2.5


@pytest.mark.parametrize('script, flag, message', [
  (bench_train, '--peers=peft', '--peers=peft: some of peft_batch4'),
  (bench_train, '--sites=0', '--sites=0: integers >= 1'),
  (bench_train, '--quantization=nf4', 'add --peers='),
  (bench_train, '--steps=0', '--steps'),
  (bench_decode, '--guesses=0,0', 'each once'),
  (bench_decode, '--out=nowhere/x.json', 'its folder is not there'),
])
def test_flags_are_checked_first(script, flag, message, capsys):
  assert script.main(['script', flag]) == 2
  assert message in capsys.readouterr().err


def test_more_cores_than_there_are(monkeypatch):
  monkeypatch.undo()
  with pytest.raises(InputError, match='--threads=9999: this process may use'):
    interleaved.pin_threads(9999)
