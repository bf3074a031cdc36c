"""The benchmark scripts on a tiny model: what they write, and that they race equals only."""

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fedmedjax.experiment.build import load_data
from fedmedjax.model.files.load import load_model
from fedmedjax.model.files.peft import save_peft
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
import bench_decode  # noqa: E402
import bench_lora  # noqa: E402
import bench_peers  # noqa: E402
import bench_sites  # noqa: E402
import bench_train  # noqa: E402

from benchmarks import inputs, interleaved, site_work, torch_peer  # noqa: E402
from benchmarks.row_layouts import VARIANTS  # noqa: E402

LORA = LoraConfig(4, 8.0, ('q_proj', 'down_proj'))
PIN = interleaved.pin_threads


@pytest.fixture(autouse=True, scope='module')
def small():
  """The tests' own threads, a ceiling that takes no time, and each model loaded once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inputs, 'load', cache(inputs.load))
    patch.setattr(interleaved, 'pin_threads', lambda count: 2)
    patch.setattr(interleaved, '_SIDE', {'cpu': 64})
    patch.setattr(interleaved, '_SETTLE_SECONDS', 0.0)
    yield


@pytest.fixture(scope='module')
def command(tiny_folder, small):
  """command(main, out, *flags) -> exit status."""
  return lambda script, out, *flags: script.main([
    'script', f'--model={tiny_folder}', '--site=synthetic_icu', '--repeats=1', f'--out={out}',
    *flags])


@pytest.fixture(scope='module')
def trained(command, tmp_path_factory) -> dict:
  """What the training script writes. Six examples a step: micro-batches of four and two."""
  out = tmp_path_factory.mktemp('bench') / 'train.json'
  assert command(
    bench_train, out, '--batch=6', '--peers=peft_batch4,peft_batch4_checkpointing',
    '--variants=padded', '--sites=2', '--matmul=bfloat16') == 0
  return json.loads(out.read_text())


@pytest.mark.slow
def test_training_is_raced_on_equal_terms(trained):
  """All losses agree with ours in float32, to 1e-3 but where products are of bfloat16; every figure
  follows from the seconds, which are there, too."""
  peers = [f'peer_peft_batch4{again}_{form}' for again in ('', '_checkpointing')
           for form in ('float32', 'bfloat16')]
  for name in ('ours', 'ours_float32', 'ours_padded', *peers):
    seconds, = trained[f'{name}_seconds']
    assert trained[f'{name}_examples_per_second'] == pytest.approx(12 / seconds)
    assert trained[f'{name}_unique_tokens_per_second'] == pytest.approx(
      trained['unique_tokens'] / seconds)
    assert trained[f'{name}_model_flop_utilisation'] == pytest.approx(
      trained['flop'] / seconds / trained['ceiling_flop_per_second'])
    losses, exact = trained[f'{name}_losses_nats'], trained['ours_float32_losses_nats']
    rough = name in ('ours', 'ours_padded') or name.endswith('bfloat16')
    np.testing.assert_allclose(losses, exact, atol=1e-2 if rough else 1e-3)
    assert rough == (losses != exact) or name.startswith('peer')
  for name in ('float32', 'peft_batch4_float32', 'peft_batch4_bfloat16'):
    other = 'ours_float32' if name == 'float32' else f'peer_{name}'
    assert trained[f'ratio_to_{name}'] == pytest.approx(
      trained[f'{other}_seconds'][0] / trained['ours_seconds'][0])
  assert trained['ratio_to_bfloat16'] == 1.0 and trained['matmul'] == 'bfloat16'
  # The two formats of a peer are two ways to train.
  assert trained[f'{peers[0]}_losses_nats'] != trained[f'{peers[1]}_losses_nats']
  assert {'ratio_to_padded', 'ratio_padded_to_peft_batch4_float32', 'ours_compile_seconds'} <= set(
    trained)
  fed = [trained[f'{name}_fed_tokens'] for name in ('ours', peers[0], 'ours_padded')]
  assert trained['unique_tokens'] <= fed[0] < fed[1] <= fed[2]
  assert trained['examples'] == 12 and trained['machine']['cores_used'] == 2
  assert {'jax', 'torch', 'peft'} <= set(trained['versions']) and trained['commit']


@pytest.mark.slow
def test_rounds_are_raced_by_number_of_sites(trained):
  """Two sites of two steps of six examples."""
  for name in ('ours', 'ours_loop'):
    seconds, = trained[f'{name}_seconds_2_sites']
    assert trained[f'{name}_examples_per_second_2_sites'] == pytest.approx(24 / seconds)
    assert trained[f'{name}_seconds_per_site_step_2_sites'] == pytest.approx(seconds / 4)
  assert 'ratio_to_loop_2_sites' in trained and 'unfinished' not in trained
  # Two sites do about twice what one does, of other sentences.
  flop = trained['ours_model_flop_per_second_2_sites'] * trained['ours_seconds_2_sites'][0]
  assert trained['flop'] < flop < 4 * trained['flop']
  base, planned, counted, temporary, seen = (trained[f'{key}_2_sites'] for key in (
    'base_bytes', 'ours_estimated_bytes', 'ours_peak_bytes', 'ours_temporary_bytes',
    'ours_device_peak_bytes'))
  assert base < planned and base + temporary < counted < seen


@pytest.mark.slow
def test_unlike_training_is_no_race(trained, command, tmp_path, monkeypatch, capsys):
  """Planted: the peer learns the last prompt token, too. Ours is what it was before."""
  padded = torch_peer.padded

  def one_more(instruction, examples):
    return padded(instruction, [
      example._replace(prompt_length=example.prompt_length - 1) for example in examples])

  monkeypatch.setattr(bench_train, 'ours', lambda one, layouts: dict.fromkeys(
    layouts, lambda: np.asarray(trained['ours_float32_losses_nats'])))
  flags = bench_train, tmp_path / 'train.json', '--batch=6', '--peers=peft_batch4', '--variants='
  assert command(*flags) == 0
  monkeypatch.setattr(torch_peer, 'padded', one_more)
  (tmp_path / 'train.json').unlink()
  assert command(*flags) == 1
  assert 'peer_peft_batch4_float32 and ours do not train alike' in capsys.readouterr().err
  assert not (tmp_path / 'train.json').exists()


@pytest.fixture(scope='module')
def work(tiny_folder, small) -> site_work.Work:
  config = inputs.configure('synthetic_icu', 'ner', batch_size=6, steps=2)
  model = inputs.load(str(tiny_folder), 'float32', 'none', '', False)
  return site_work.work(config, load_data(config, Reporter(), model.base))


def test_one_shape_for_all_steps(work):
  layout = VARIANTS['one_shape'](work.schedule)
  examples = work.schedule.sites[0].tasks[0].train[:5]
  batch = layout.pack(work.schedule.sites[0].tasks[0], examples)
  assert not layout.shape_buckets and batch.prefix.size
  assert batch.target_weight.sum() == sum(
    len(example.tokens) - example.prompt_length for example in examples)


@pytest.mark.parametrize('name', ['no_sharing', 'padded'])
def test_rows_without_sharing_teach_the_same(work, name):
  """Each of five examples (of six, so that a row may be left over) stands behind the whole
  instruction, and what is supervised is what our rows supervise."""
  part = work.schedule.sites[0].tasks[0]
  examples = part.train[:5]
  layout = VARIANTS[name](work.schedule)
  ours, batch = work.schedule.layout.pack(part, examples), layout.pack(part, examples)
  assert not batch.prefix.size and not layout.blank.target_weight.any()
  rows = [
    tokens[segments == segment].tolist()
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True)
    for segment in range(1, segments.max() + 1)]
  assert sorted(rows) == sorted([*part.instruction, *example.tokens[1:]] for example in examples)
  for one in (ours, batch):
    assert sorted(one.targets[one.target_weight > 0]) == sorted(
      token for example in examples for token in example.tokens[example.prompt_length:])


def test_losses_that_are_not_finite_do_not_agree():
  bench_train.check_losses({'ours': np.asarray([2.0, 5.0]), 'peer': np.asarray([2.0019, 5.0])})
  for wrong in ([2.0021, 5.0], [2.0, np.nan]):
    with pytest.raises(RuntimeError, match='peer and ours do not train alike'):
      bench_train.check_losses({'ours': np.asarray([2.0, 5.0]), 'peer': np.asarray(wrong)})
  # Of those that multiply in bfloat16; then the float32 form is the measure of all.
  far = {'ours': np.asarray([2.019]), 'ours_float32': np.asarray([2.0]), 'p': np.asarray([1.981])}
  bench_train.check_losses(far, rounded=('ours', 'p'))
  for rounded in (('ours',), ('p',)):
    with pytest.raises(RuntimeError, match='do not train alike'):
      bench_train.check_losses(far, rounded=rounded)
  rough = interleaved.TOLERANCES['bfloat16']
  bench_train.check_losses({'ours': np.asarray([2.0]), 'peer': np.asarray([2.019])}, rough)
  with pytest.raises(RuntimeError, match='peer and ours do not train alike'):
    bench_train.check_losses({'ours': np.asarray([2.0]), 'peer': np.asarray([2.021])}, rough)


def test_texts_must_be_identical_but_in_bfloat16(capsys):
  tokenizer = SimpleNamespace(decode=str)
  texts = {'ours': [np.array([1, 2]), np.array([3])], 'peer': [np.array([1, 2]), np.array([4])]}
  bench_decode.check_texts(tokenizer, 'bfloat16', texts)
  assert 'bfloat16: 1 texts differ from ours, first peer, example 1' in capsys.readouterr().out
  assert bench_decode.identical(texts) == {'peer': 0.5}
  with pytest.raises(RuntimeError, match='1 texts differ'):
    bench_decode.check_texts(tokenizer, 'float32', texts)
  # A peer in bfloat16 may differ, and does not hide one that may not.
  bench_decode.check_texts(tokenizer, 'float32', {
    'ours': texts['ours'], 'peer_transformers_bfloat16': texts['peer']})
  assert 'bfloat16: 1 texts differ' in capsys.readouterr().out
  with pytest.raises(RuntimeError, match='1 texts differ from ours, first peer, example 1'):
    bench_decode.check_texts(
      tokenizer, 'float32', {'peer_merged_bfloat16': texts['peer'], **texts})


@pytest.mark.slow
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


@pytest.fixture
def dry(tiny_folder, tmp_path):
  """dry(script, *flags) -> what it writes of Llama-3.1-8B's shapes, which nothing allocates."""
  def run(script, *flags):
    out = tmp_path / 'dry.json'
    assert script.main([
      'script', '--model=llama31_8b', f'--tokenizer={tiny_folder}', '--site=synthetic_icu',
      '--batch=4', '--dtype=bfloat16', '--dry_run', f'--out={out}', *flags]) == 0
    return json.loads(out.read_text())

  return run


@pytest.mark.slow
def test_training_of_a_true_shape_is_lowered_without_weights(dry):
  """In NF4 6.03 GB. Of five sites at once each has copies and moments of 41,943,040 numbers, and
  its own activations; what a round needs beside the base grows some four times, since the adapter
  as it began and a kernel that is unpacked are there once."""
  found = dry(
    bench_train, '--quantization=nf4', '--remat=full', '--peers=', '--sites=1,5', '--chunk=0')
  assert found['dry_run'] and 6.0e9 < found['base_bytes'] < 6.3e9
  assert found['adapter_bytes'] == 4 * 41_943_040
  one, five = (found[f'ours_estimated_bytes_{n}_sites'] - found['base_bytes'] for n in (1, 5))
  assert one > 4 * found['adapter_bytes'] and 3.9 * one < five < 4.1 * one


@pytest.mark.slow
@pytest.mark.parametrize('script, flags, entry', [
  (bench_sites, ('--sites=2',), 'ours_estimated_bytes_2_sites'),
  (bench_peers, ('--sites=2',), 'ours_estimated_bytes'),
  (bench_decode, ('--batch=2',), 'ours_brought_bytes'),
])
def test_other_scripts_of_a_true_shape(script, flags, entry, dry):
  """In bfloat16 16.06 GB, and the keys and values or copies of the adapter besides."""
  found = dry(script, *flags)
  assert found['dry_run'] and found[entry] > 0
  base = found.get('base_bytes') or found['base_bytes_2_sites']
  assert 16.0e9 < base < 16.1e9
  assert not entry.startswith('ours_estimated') or found[entry] > base + 4 * 4 * 41_943_040


@pytest.mark.slow
def test_layouts_of_lora_agree_and_a_wrong_one_is_named(tmp_path, monkeypatch, capsys):
  """Planted: every site gets the A of another."""
  out, asked = tmp_path / 'lora.json', ['script', '--model=width_256', '--tokens=6', '--sites=2',
                                        '--rank=2', '--repeats=1']
  assert bench_lora.main([*asked, f'--out={out}']) == 0
  found = json.loads(out.read_text())
  assert {'ratio_to_joined_1_sites', 'ratio_to_fused_1_sites', 'ratio_to_merged_1_sites',
          'ratio_to_vmapped_2_sites', 'ratio_to_ragged_2_sites'} <= set(found)
  monkeypatch.setitem(bench_lora.SITES, 'ours_ragged', lambda x, w, a, b: bench_lora.ragged(
    x, w, {name: part[::-1] for name, part in a.items()}, b))
  assert bench_lora.main(asked) == 1
  assert 'ours_ragged and ours give different results' in capsys.readouterr().err


@pytest.mark.parametrize('script, flag, message', [
  (bench_train, '--peers=peft', '--peers=peft: some of peft_batch4'),
  (bench_train, '--sites=0', '--sites=0: integers >= 1'),
  (bench_train, '--quantization=nf4', 'add --peers='),
  (bench_train, '--steps=0', '--steps'),
  (bench_train, '--dtype=bfloat16 --matmul=bfloat16', 'operands are rounded as they are'),
  (bench_decode, '--guesses=0,0', 'each once'),
  (bench_decode, '--out=nowhere/x.json', 'its folder is not there'),
])
def test_flags_are_checked_first(script, flag, message, capsys):
  assert script.main(['script', *flag.split()]) == 2
  assert message in capsys.readouterr().err


def test_more_cores_than_there_are():
  with pytest.raises(InputError, match='--threads=9999: this process may use'):
    PIN(9999)
