"""The real entry points on the real quick-start configuration, shrunk, with a tiny model."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from chromium import looked_at
from documented import undocumented
from rich.console import Console
from shared_runs import shared_folder
from xla_flags import compiled_fast

from fedmedjax import describe, main
from fedmedjax.compare import __main__ as compare
from fedmedjax.data.formats.writers import write_brat
from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.eval import evaluate, generation
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.load import load_model
from fedmedjax.model.llama import Llama
from fedmedjax.report import terminal
from fedmedjax.store import checkpoint, files, tensorboard, words
from fedmedjax.store.lock import locked
from fedmedjax.store.words import sentence
from fedmedjax.train import loop, memory, run
from fedmedjax.types import Span

SHRINK = [
  '--config.fed.rounds=2', '--config.fed.local_steps=2', '--config.fed.batch_size=4',
  '--config.eval.max_examples=3', '--config.eval.bootstrap_samples=20',
  '--config.data.validation_examples=3', '--config.lora.rank=4',
  # A random model never stops by itself; few new tokens keep the test short.
  '--config.eval.max_new_ratio=0.1',
  # A round that calls the host is compiled anew in every run: nothing keeps it on disk.
  '--config.log.steps=False']
# Compiling the round is what costs. For runs that no other is compared with: few leaves, no
# external cohort, one sentence a site.
LEAN = (
  '--config.lora.targets=("q_proj","v_proj")', '--config.eval.zero_shot=False',
  '--config.data.external=()', '--config.eval.max_examples=1')


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
def whole(command):
  """whole(workdir, *more) -> argv of the run of `finished`, which is watched while it trains."""
  return lambda workdir, *more: command(workdir, '--config.eval.every=1', *more)


@pytest.fixture(scope='module')
def finished(whole, tmp_path_factory) -> Path:
  """Tests of both processes only read it."""
  def fill(workdir: Path) -> None:
    inputs = loop._inputs

    def after_the_save(study, state, number, *rest):
      # Else a kill would cost two rounds.
      assert number == 0 or (workdir / 'checkpoints' / str(number)).is_dir()
      return inputs(study, state, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop, '_inputs', after_the_save)
      # A folder as people name it, from where they are.
      assert main.main(whole(os.path.relpath(workdir))) == 0

  return shared_folder(tmp_path_factory, 'whole', fill)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
  """A finished run of this test's own, since the program locks a folder that it looks into."""
  return shutil.copytree(finished, tmp_path / 'whole')


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
  # And a header: round, site, n_k and four numbers for the log up, round and key down.
  assert summary['bytes_up'] == (parameters * 4 + 28) * 3 * 2
  assert summary['bytes_down'] == (parameters * 4 + 12) * 3 * 2
  assert summary['bytes_full_model'] == summary['base_parameters'] * 4 * 3 * 2 * 2
  assert summary['local_steps'] == 12
  assert 0 < summary['checkpoint_seconds'] < summary['wall_seconds']
  # Of this process, whose peak is that of other tests, too.
  assert summary['predicted_peak_bytes'] > 100e6
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert [line['round'] for line in lines] == [1, 2]
  for line in lines:
    assert (line['chunk'], line['remat']) == (1, 'products')
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
  described = json.loads((finished / 'sites.json').read_text())
  assert list(described['sites']) == [*sites, 'synthetic_external']
  assert [described['examples'][site]['ner']['train'] for site in sites] == (
    summary['train_examples'])
  report_page = (finished / 'report.html').read_text()
  assert '<h1>whole</h1>' in report_page and summary['versions']['jax'] in report_page
  assert (finished / tensorboard.FILE).stat().st_size > 1000


def test_the_keys_of_a_run_are_those_of_the_page(finished):
  """docs/files.md names what metrics.jsonl, summary.json, ledger.csv and predictions hold."""
  assert not undocumented(finished)


def test_an_older_finished_run_gets_a_report_and_no_excerpts_when_asked(
    finished, copied, whole):
  workdir = copied
  (workdir / 'report.html').unlink()
  assert main.main(whole(workdir)) == 0
  assert fingerprint(workdir)['report.html'][0] == fingerprint(finished)['report.html'][0]
  assert main.main(whole(workdir, '--config.report.examples=0')) == 0
  before, after = fingerprint(finished), fingerprint(workdir)
  assert {key for key in after if before[key][0] != after[key][0]} == {'report.html'}


def test_a_finished_run_gives_up_its_text(finished, copied, whole, capsys):
  """Its predictions keep the offsets, its page the errors; nothing is computed again."""
  assert main.main(whole(copied, '--config.store.text=False')) == 0
  changed = {path for path, (content, _) in fingerprint(copied).items()
             if content != fingerprint(finished)[path][0]}
  records = {path for path in changed if path.endswith('.jsonl')}
  held = records | {'report.html'}
  assert changed == held | {'config.json'} and len(records) == 8
  said = {sentence(json.loads(line)).encode() for path in records
          for line in (finished / path).read_text().splitlines()}
  assert len(said) > 10 and not any(
    words in path.read_bytes() for path in copied.rglob('*') if path.is_file() for words in said)
  capsys.readouterr()
  assert describe.main(['describe', '--text', f'--workdir={copied}']) == 0
  assert capsys.readouterr().out.startswith(f'{copied}: none of ')
  assert describe.main(['describe', '--text', f'--workdir={finished}']) == 0
  assert capsys.readouterr().out.count('\n') == 1 + len(held)


@pytest.mark.slow
@pytest.mark.parametrize('family, quantization', [
  ('qwen3', 'nf4'), ('llama32', 'int8'), ('gemma3', 'nf4'), ('gemma2', 'int8')])
def test_other_families_and_quantised_bases(family, quantization, smollm, command, tmp_path):
  """One round on a tiny saved model of another architecture, its base in few bits."""
  shape = dict(
    vocab_size=len(smollm.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, head_dim=8,
    tie_word_embeddings=True)
  torch.manual_seed(1)
  transformers.AutoModelForCausalLM.from_config({
    'qwen3': lambda: transformers.Qwen3Config(**shape),
    'gemma2': lambda: transformers.Gemma2Config(**shape, sliding_window=64),
    'gemma3': lambda: transformers.Gemma3TextConfig(
      **shape, sliding_window=64, sliding_window_pattern=2),
    'llama32': lambda: transformers.LlamaConfig(**shape, rope_parameters={
      'rope_type': 'llama3', 'rope_theta': 5e5, 'factor': 32.0, 'low_freq_factor': 1.0,
      'high_freq_factor': 4.0, 'original_max_position_embeddings': 256}),
  }[family]()).save_pretrained(tmp_path / 'model')
  smollm.tokenizer.save_pretrained(tmp_path / 'model')
  assert main.main(command(
    tmp_path / 'run', f'--config.model.path={tmp_path / "model"}', '--config.fed.rounds=1',
    f'--config.model.quantization={quantization}', *LEAN)) == 0
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  # The base counts as what it is, not as the bytes it is packed in.
  whole = load_model(tmp_path / 'model').params
  assert summary['base_parameters'] == sum(x.size for x in jax.tree.leaves(whole))
  assert summary['bytes_full_model'] == summary['base_parameters'] * 4 * 3 * 2
  line = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text())
  assert line['step_norm'] > 0 and all(np.isfinite(line['train_loss']))


def test_scores_are_those_of_the_answers(command, tmp_path, monkeypatch):
  """Planted answers: the gold markup, but every sentence's last entity unmarked.

  So precision is 1 and recall (entities - sentences with any) / entities, recounted here from the
  records' offsets; the notes' own text at those offsets is what was marked.
  """
  def answer(generator, adapter, base, part, advance):
    out = []
    for example in part.test:
      out.append(part.ask.render(example._replace(entities=example.entities[:-1]))[1])
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


@pytest.mark.parametrize('style, chat', [('markup', False), ('json', True)])
def test_both_tasks_in_one_run(command, smollm, tmp_path, monkeypatch, style, chat):
  """One site has both tasks, one entities only, one relations only. Planted answers: all that is
  right, so every score is 1; each site is scored on its own tasks, and end to end where it has
  both. Main entities that are found are asked about once, not twice. At the external cohort the
  model takes the word before each first entity for a drug: it is asked about that, too, and finds
  no modifier of it, so only the entities' precision suffers. The dialogues have the two examples of
  docs/data.md as earlier turns, also those about main entities that the model found."""
  asked = []
  shots = re.search(r'runs/shots (--config.data.shots=2)', Path('docs/data.md').read_text())[1]

  def answer(generator, adapter, base, part, advance=None):
    asked.extend(part.test)
    assert len(part.test_tokens) == len(part.test)
    text = smollm.tokenizer.decode([*part.instruction[:-1], *part.test_tokens[0].tokens])
    assert chat == text.startswith('<|im_start|>system')
    assert text.count('<|im_start|>assistant') == 3 * chat
    assert all(target in text for _, target in part.ask.shots)
    return [part.ask.render(planted(example))[1] for example in part.test]

  def planted(example):
    if example.main or 'external' not in example.document or not example.entities:
      return example
    before = example.text[:example.entities[0].start].split()[-1:]
    place = example.text.find(*before) if before else 0
    wrong = [Span(place, place + len(word), 'drug') for word in before]
    return example._replace(entities=(*wrong, *example.entities))

  monkeypatch.setattr(evaluate, 'generate', answer)
  workdir = tmp_path / 'joint'
  assert main.main(command(
    workdir, f'--config.data.style={style}', f'--config.data.chat={chat}',
    "--config.data.tasks=('ner', 're')",
    "--config.data.site_tasks=('ner+re', 'ner', 're')", '--config.data.re_share=0.5',
    '--config.eval.zero_shot=False', '--config.fed.rounds=1', '--config.eval.max_examples=8',
    '--config.data.max_length=300', '--config.lora.targets=("q_proj","v_proj")',
    *([shots] if chat else []))) == 0
  summary = json.loads((workdir / 'summary.json').read_text())
  tasks = {site: {task: list(entry) for task, entry in scores.items()}
           for site, scores in summary['scores'].items()}
  plain, related = ['strict', 'lenient', 'per_type'], ['modifier', 'triple']
  assert tasks == {
    'synthetic_icu': {'ner': plain, 're': [*related, 'end_to_end']},
    'synthetic_dictation': {'ner': plain}, 'synthetic_clinic': {'re': related},
    'synthetic_external': {'ner': plain, 're': [*related, 'end_to_end']}}
  for site, scores in summary['scores'].items():
    for entry in (*scores.get('re', {}).values(), *filter(None, [scores.get('ner')])):
      known = site != 'synthetic_external' or entry is not scores.get('ner')
      assert (entry['strict']['typed']['precision'] == 1.0) == known
      assert entry['strict']['typed']['recall'] == entry['lenient']['typed']['recall'] == 1.0
  assert any(example.main and not example.entities and 'external' in example.document
             for example in asked)
  assert len(set(map(str, asked))) == len(asked)
  assert summary['instructions'].keys() == summary['scores'].keys()
  assert set(summary['instructions']['synthetic_icu']) == {'ner', 're'}
  assert (summary['copy_rate'], summary['parse_failure_rate'], summary['dropped']) == (1, 0, 0)
  assert {site: [*map(len, kept.values())] for site, kept in summary.get('shots', {}).items()} == (
    {site: [2] * len(kept) for site, kept in tasks.items()} if chat else {})
  assert ((workdir / 'summary.json', 'examples out of notes that prompts show') in
          words.files_with_words(workdir)[0]) == chat
  line = json.loads((workdir / 'metrics.jsonl').read_text())
  assert line['local_steps'] == 6 and all(np.isfinite(line['validation_loss']))


def test_decoding_keeps_the_order_of_the_sentences(smollm, tiny_folder):
  """Longest first; each answer must come back to its own sentence.

  Five sentences in three rows, two of which are taken again, against one row.
  """
  model = load_model(tiny_folder)
  site = encode_site(
    generate_cohort('synthetic_icu'), model.tokenizer, max_length=200, max_train_notes=2,
    max_test=5)
  llama = Llama(model.config, cached_attention)
  together, alone = (
    generation.generate(
      generation.Generator(llama, model.tokenizer, size, 0.1, 2), {}, model.params, site.tasks[0])
    for size in (3, 1))
  assert together == alone and len(set(together)) > 1


def test_a_finished_run_is_left_alone(copied, whole, capsys):
  before = fingerprint(copied)
  assert main.main(whole(copied)) == 0
  assert fingerprint(copied) == before
  # Long names of folders are wrapped.
  assert 'finished, nothing to do' in ' '.join(capsys.readouterr().out.split())


def test_another_configs_workdir_is_refused(copied, whole, capsys):
  before = fingerprint(copied)
  assert main.main(whole(copied, '--config.optim.learning_rate=0.5')) == 2
  assert fingerprint(copied) == before
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'optim.learning_rate=0.001' in error
  assert main.main(whole(copied, '--config.fed.rounds=1')) == 2
  assert 'holds 2 rounds, config.fed.rounds=1' in capsys.readouterr().err


def test_stopped_after_round_one_it_resumes_at_round_two(
    finished, whole, tmp_path, stop_after_a_round, capsys):
  """And ends with the adapter of the undisturbed run, bit by bit."""
  workdir = tmp_path / 'stopped'
  stop_after_a_round(whole(workdir))
  assert not (workdir / 'summary.json').exists()
  capsys.readouterr()
  assert main.main(whole(workdir)) == 0
  out = capsys.readouterr().out
  assert 'resuming after round 1' in out and 'round 2/2' in out and 'round 1/2' not in out
  ours, theirs = (
    safetensors.numpy.load_file(folder / 'adapter' / 'adapter_model.safetensors')
    for folder in (workdir, finished))
  assert set(ours) == set(theirs)
  for key in ours:
    np.testing.assert_array_equal(ours[key], theirs[key])
  ours, theirs = (
    [json.loads(x) | {'seconds': 0} for x in (f / 'metrics.jsonl').read_text().splitlines()]
    for f in (workdir, finished))
  assert ours == theirs and [one['round'] for one in ours] == [1, 2]
  for one in ours:  # held-out sentences of every site were answered after each round
    assert one['validation_f1_sites'].keys() == set(one['sites'])
    assert one['validation_f1'] == np.mean(list(one['validation_f1_sites'].values()))
  # As many points for TensorBoard, whose file grew in two runs; only the seconds differ.
  assert len({(f / tensorboard.FILE).stat().st_size for f in (workdir, finished)}) == 1


def test_the_report_of_a_run_fits_on_a_phone(finished, browser, tmp_path):
  page = shutil.copy(finished / 'report.html', tmp_path / 'report.html')
  found, console = looked_at(browser, tmp_path / 'home', 'light', page)
  assert console == [] and found['390']['narrow'] == [] and found['390']['pale'] == []
  assert found['390']['folded'][0] <= 390 and found['390']['folded'][1] <= 4000


@pytest.mark.slow
def test_devices_and_chunks_change_roundings_only(finished, command, tmp_path):
  """Two copies of a base split in two, on the four devices that a process of its own sees, and all
  three sites at once on the four, instead of one device and one site after the other: a round
  within 1e-6 of the adapter's norm, and 3e-6 of that of every leaf, in float32
  (tests/experiment/meshes_test.py is the one in float64)."""
  done = subprocess.run(
    [sys.executable, '-m', 'fedmedjax.main', *command(
      tmp_path / 'run', '--config.fed.chunk=0', '--config.mesh.site=-1', '--config.mesh.fsdp=2',
      '--config.eval.max_examples=1', '--config.eval.zero_shot=False')[1:]],
    env=os.environ | {
      'XLA_FLAGS': f'--xla_force_host_platform_device_count=4 {compiled_fast()}'},
    capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  ours, theirs = (
    safetensors.numpy.load_file(folder / 'adapter' / 'adapter_model.safetensors')
    for folder in (tmp_path / 'run', finished))
  rounds = 2
  for key in theirs:
    gap = np.linalg.norm(ours[key] - theirs[key]) / np.linalg.norm(theirs[key])
    assert gap < 3e-6 * rounds, key
  gaps, norms = (
    np.linalg.norm([np.linalg.norm(x) for x in tensors.values()])
    for tensors in ({key: ours[key] - theirs[key] for key in theirs}, theirs))
  assert gaps < 1e-6 * rounds * norms


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_a_round(finished, copied, whole, capsys):
  """The newest of a stopped run loses a byte; a live run has the folder to itself meanwhile."""
  workdir = copied
  (workdir / 'summary.json').unlink()
  (workdir / 'metrics.jsonl').write_text('{"round": 1, "seco')
  file = next((workdir / 'checkpoints' / '2' / 'state').rglob('manifest.ocdbt'))
  file.write_bytes(file.read_bytes()[:-1])
  with locked(workdir, pytest.fail):
    assert main.main(whole(workdir)) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'in use by process' in error
  assert main.main(whole(workdir)) == 0
  out = ' '.join(capsys.readouterr().out.split())
  assert 'damaged (state/' in out and 'resuming after round 1' in out
  for name in ('adapter/adapter_model.safetensors', 'ledger.csv'):
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()
  ours, theirs = ([
    {key: value for key, value in json.loads(line).items() if key != 'seconds'}
    for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    for folder in (workdir, finished))
  assert ours == theirs


def test_a_preview_says_what_the_run_does_and_writes_nothing(
    copied, whole, tiny_folder, tmp_path, capsys):
  """Steps, examples, tokens and bytes are those of the run's own lines."""
  workdir = tmp_path / 'none'
  assert main.main(whole(workdir, '--validate_only')) == 0
  assert not workdir.exists()
  out = capsys.readouterr().out
  lines = [json.loads(line) for line in (copied / 'metrics.jsonl').read_text().splitlines()]
  for key in ('local_steps', 'examples', 'tokens'):
    assert f'{sum(line[key] for line in lines):,}' in out
  for key in ('bytes_up', 'bytes_down'):
    assert f'{sum(line[key] for line in lines) / 1e6:.2f}' in out
  assert 'Memory, with 1 site at once, remat products' in out
  assert '0 of 2 rounds are done. Nothing was written' in out
  # A budget of 64 MiB, which the process itself exceeds; its key may change from run to run.
  before = fingerprint(copied)
  argv = whole(
    tmp_path / 'small', '--config.fed.memory_gib=0.0625', '--config.fed.chunk=-1',
    f'--config.model.path={tiny_folder}')
  assert main.main([*argv, '--validate_only']) == 2
  told = capsys.readouterr().err
  assert told.count('\n') == 1 and 'config.fed.batch_size=4: a round needs' in told
  assert 'of 0.06 GiB 90% may be used' in told
  assert main.main(whole(copied, '--validate_only', '--config.fed.memory_gib=64')) == 0
  assert '2 of 2 rounds are done' in capsys.readouterr().out
  assert main.main(argv) == 2 and not (tmp_path / 'small').exists()
  assert fingerprint(copied) == before


@pytest.mark.slow
def test_a_round_without_memory_is_begun_again_with_less(
    finished, command, tmp_path, monkeypatch, capsys):
  """Planted: the compiled round finds no memory, its state already given away: with two sites at
  once at the first try, with one after the second round began. Both
  rounds are the undisturbed run's but for rounding, the second with its activations recomputed."""
  compile_round, calls = memory.compile_round, []

  class Exhausted:
    """A program that runs out of memory at its call number `last`."""

    def __init__(self, program, last):
      self.program, self.left = program, last

    def __call__(self, state, *rest):
      self.left -= 1
      if self.left:
        return self.program(state, *rest)
      jax.tree.map(lambda x: x.delete(), state)
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nAnd more.')

    def memory_analysis(self):
      return self.program.memory_analysis()

  def planted(study, execution, inputs, reporter):
    calls.append(execution)
    # One program serves both tries with 'products'.
    program = compile_round(study, execution._replace(chunk=1), inputs, reporter)
    return Exhausted(program, {'products': execution.chunk % 2 + 1}.get(execution.remat, 9))

  monkeypatch.setattr(memory, 'compile_round', planted)
  workdir = tmp_path / 'run'
  assert main.main(command(
    workdir, '--config.fed.chunk=2', '--config.eval.zero_shot=False',
    '--config.eval.max_examples=1', '--config.data.external=()')) == 0
  assert calls == [(2, 'products'), (1, 'products'), (1, 'narrow_products')]
  out = ' '.join(capsys.readouterr().out.split())
  # Each when it happens and once more at the end, last of all.
  assert out.count('warning: memory ran out with') == 4
  end = out[out.index('Next:'):]
  assert end.count('warning: memory ran out with') == 2
  assert f'report {workdir / "report.html"}' in end and '--regimes' not in end
  ours, theirs = ([json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
                  for folder in (workdir, finished))
  assert [(line['chunk'], line['remat']) for line in ours] == [
    (1, 'products'), (1, 'narrow_products')]
  for mine, other in zip(ours, theirs, strict=True):
    for key in ('train_loss', 'validation_loss', 'weights', 'update_norm', 'step_norm'):
      np.testing.assert_allclose(mine[key], other[key], rtol=1e-4)
  # Points of rounds that were begun again are not there twice.
  assert (workdir / tensorboard.FILE).stat().st_size <= (finished / tensorboard.FILE).stat().st_size


def test_a_model_that_changed_is_named(copied, whole, tiny_folder, tmp_path, capsys):
  model, workdir = tmp_path / 'model', copied
  shutil.copytree(tiny_folder, model)
  (workdir / 'summary.json').unlink()
  config = json.loads((workdir / 'config.json').read_text())
  (workdir / 'config.json').write_text(json.dumps(config | {'model.path': str(model)}))
  (model / 'generation_config.json').write_text('{"eos_token_id": 1}')
  assert main.main(whole(workdir, f'--config.model.path={model}')) == 2
  assert 'model: generation_config.json changed since the run began' in capsys.readouterr().err


def test_a_note_that_changed_is_named(command, tmp_path, monkeypatch, capsys):
  """One letter of one note; its text is not told. As it was before, the run goes on."""
  monkeypatch.setattr(run, 'planned', lambda *rest: None)
  monkeypatch.setattr(run, '_carried_out', lambda *rest: {'rounds': 0})
  monkeypatch.setattr(run.report, 'freshen', lambda *rest: None)
  write_brat(tmp_path / 'ward', generate_cohort('synthetic_icu', train_notes=12).train)
  site = dict(name='ward', path=str(tmp_path / 'ward'), format='brat', mapping='schema')
  argv = command(
    tmp_path / 'run', f'--config.data.folders=({site},)', "--config.data.sites=('ward',)",
    '--config.data.external=()')
  assert main.main(argv) == 0
  path = min((tmp_path / 'ward').glob('*.txt'))
  text = path.read_text()
  # In a sentence that is trained or tested on: any of them.
  path.write_text(text.replace('e', 'o'))
  for more in ((), ('--validate_only',)):
    assert main.main([*argv, *more]) == 2
    error = capsys.readouterr().err
    assert f'notes of site ward: {path.stem} changed since the run began' in error
    assert error.count('\n') == 1 and text[:20] not in error
  path.write_text(text)
  assert main.main(argv) == 0


def test_compare_tabulates_every_regime_with_equal_steps(command, tmp_path, capsys):
  workdir = tmp_path / 'compare'
  argv = command(
    workdir, '--config.fed.rounds=1', '--config.data.external=()',
    '--config.lora.targets=("q_proj","v_proj")')
  assert compare.main(argv) == 0
  rows = json.loads((workdir / 'compare.json').read_text())
  assert list(rows) == list(compare.REGIMES)
  steps = {regime: row['local_steps'] for regime, row in rows.items()}
  assert steps == {
    'zero_shot': 0, 'single_site': 6, 'centralised': 6, 'fed_medlora': 6, 'fed_medlora_plus': 6}
  sent = {regime: row['bytes_up'] > 0 for regime, row in rows.items()}
  assert [regime for regime, any_ in sent.items() if any_] == ['fed_medlora', 'fed_medlora_plus']
  assert (workdir / 'single_site' / 'adapter' / 'synthetic_clinic' / 'adapter_config.json').exists()
  # Sites that share nothing have no adapter for all.
  assert rows['single_site']['global'] is None
  assert not (workdir / 'single_site' / 'adapter' / 'global').exists()
  out = capsys.readouterr().out
  table = out[out.index('Typed strict F1 by regime'):]
  assert all(regime in table for regime in compare.REGIMES)
  found = json.loads((workdir / 'findings.json').read_text())
  assert [(one['ours'], one['theirs']) for one in found] == [
    ('fed_medlora', 'zero_shot'), ('fed_medlora', 'single_site (each its own)'),
    ('fed_medlora', 'centralised'), ('fed_medlora_plus', 'zero_shot'),
    ('fed_medlora_plus', 'single_site (each its own)'), ('fed_medlora_plus', 'centralised'),
    ('fed_medlora_plus', 'fed_medlora')]
  assert all(one['sentence'] in ' '.join(out.split()) for one in found)
  # Where a name may break in a narrow window is left out.
  shown = (workdir / 'report.html').read_text().replace('<wbr>', '')
  assert all(f'<th scope="row">{regime}</th>' in shown for regime in compare.REGIMES)
  # Size weights against size times exp(-loss): unlike.
  assert rows['fed_medlora']['site_weights'] != rows['fed_medlora_plus']['site_weights']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'train', None)  # a second call must not train anything
    assert compare.main(argv) == 0


@pytest.mark.slow
def test_a_run_that_folds_and_one_with_private_factors(command, tmp_path, capsys):
  """FedEx-LoRA: the exported adapter holds the residual's columns, 4 + 2 rounds * 3 sites * 4, at
  the scale of rank 4; more rounds would need more room. FedSA-LoRA: an adapter a site, whose B is
  not the server's zero, and one whose B is their mean by size."""
  folded = command(tmp_path / 'fold', '--config.fed.preset=fedex_lora', *LEAN)
  assert main.main(folded) == 0
  exported = json.loads((tmp_path / 'fold' / 'adapter' / 'adapter_config.json').read_text())
  assert (exported['r'], exported['lora_alpha'] / exported['r']) == (28, 64 / 4)
  summary = json.loads((tmp_path / 'fold' / 'summary.json').read_text())
  # Up, the adapter of rank 4; down, in the second round also the 12 columns of the first; headers.
  adapter = summary['adapter_parameters'] * 4
  assert summary['bytes_up'] == 3 * 2 * (adapter + 28)
  assert summary['bytes_down'] == 3 * (2 * (adapter + 12) + 3 * adapter)
  capsys.readouterr()
  assert main.main([*folded, '--config.fed.rounds=3']) == 2
  assert 'config.fed.rounds=2, this one has 3' in capsys.readouterr().err
  assert main.main(
    command(tmp_path / 'own', '--config.fed.preset=fedsa_lora', *LEAN)) == 0
  own = tmp_path / 'own'
  summary = json.loads((own / 'summary.json').read_text())
  ours, everyone = [
    [safetensors.numpy.load_file(own / 'adapter' / name / 'adapter_model.safetensors')
     for name in names] for names in (summary['sites'], ['global'])]
  key = next(key for key in ours[0] if 'lora_B' in key)
  assert len({one[key].tobytes() for one in ours}) == 3
  assert all(one[key].any() for one in ours)
  shared = key.replace('lora_B', 'lora_A')
  assert len({one[shared].tobytes() for one in [*ours, *everyone]}) == 1
  # The one for all: B averaged by n_k, here the number of examples.
  mean = np.average([one[key] for one in ours], axis=0, weights=summary['train_examples'])
  np.testing.assert_allclose(everyone[0][key], mean, rtol=1e-5, atol=1e-9)
  assert set(summary['global']['scores']) == set(summary['scores'])
  for site in summary['sites']:
    personal, one = (
      files.read_lines(own / 'predictions' / folder / f'{site}.jsonl')
      for folder in ('', 'global'))
    assert [r['model_input'] for r in personal] == [r['model_input'] for r in one]
  table = Console(width=200)
  with table.capture() as shown:
    table.print(terminal.score_table(summary))
    table.print(terminal.compare_table(
      terminal.with_global({'fedsa_lora': summary}), summary['sites'], ()))
  assert all(text in shown.get() for text in ('global strict', '(global)'))


def test_the_two_rows_of_private_factors_tell_their_own_scores():
  """Planted: own adapters F1 0.75, the one for all 0.25, each in its place."""
  entry = lambda f1: {'ner': {  # noqa: E731
    kind: {'typed': {'f1': f1, 'ci95': [f1, f1]}} for kind in ('strict', 'lenient')}}
  summary = {
    'preset': 'fedsa_lora', 'seed': 0, 'external': [], 'scores': {'x': entry(0.75)},
    'zero_shot': None, 'global': {'scores': {'x': entry(0.25)}}, 'local_steps': 1, 'bytes_up': 0,
    'bytes_down': 0}
  rows = terminal.with_global({'fedsa_lora': summary, 'uniform': summary | {'global': None}})
  assert list(rows) == ['fedsa_lora', 'fedsa_lora (global)', 'uniform']
  assert [terminal.mean_f1(row['scores'], ['x'], 'strict') for row in rows.values()] == [
    '0.750', '0.250', '0.750']


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_rounds(command, tmp_path, monkeypatch):
  """A stop between a round's line and its checkpoint loses the line, not the count."""
  workdir = tmp_path / 'longer'
  one, two = command(workdir, '--config.fed.rounds=1', *LEAN), command(workdir, *LEAN)
  assert main.main(one) == 0

  def stop(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'save', stop)
    assert main.main(two) == 130
  # Half done: neither finished for one round nor refused for two.
  assert not (workdir / 'summary.json').exists()
  assert main.main(two) == 0
  summary = json.loads((workdir / 'summary.json').read_text())
  lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['round'] for line in lines] == [1, 2]
  assert summary['rounds'] == 2 and summary['local_steps'] == 12
  assert main.main(one) == 2


def test_cohorts_failures_and_compressed_updates(command, tmp_path, monkeypatch, capsys):
  """Two of three sites a round, broken down in three of ten cases, four-bit updates: the lines, the
  ledger and the summary tell the same, and a stop changes nothing."""
  more = (
    '--config.fed.cohort_size=2', '--config.fed.outbound=int4', '--config.fed.block=64',
    '--config.fed.top_k=0.5', '--config.fed.error_feedback=True', '--config.fed.rounds=6',
    '--config.simulation.failure=0.3', '--config.simulation.step_seconds=3.0',
    '--config.simulation.speed_spread=0.3', '--config.simulation.bandwidth=1e5',
    *LEAN)
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  assert main.main(command(whole, *more)) == 0
  out = capsys.readouterr().out
  summary = json.loads((whole / 'summary.json').read_text())
  lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  assert len({tuple(line['sites']) for line in lines}) > 1
  # This seed has rounds in which none, one and both come.
  assert {sum(steps > 0 for steps in line['steps']) for line in lines} == {0, 1, 2}
  rows = [line.split(',') for line in (whole / 'ledger.csv').read_text().splitlines()[1:]]
  assert summary['cohorts'] == [line['sites'] for line in lines]
  for line in lines:
    assert len(line['sites']) == 2
    came = [steps > 0 for steps in line['steps']]
    assert [weight > 0 for weight in line['weights']] == came
    assert [count > 0 for count in line['site_bytes_up']] == came
    assert all(line['site_bytes_down'])
    assert line.get('skipped', False) == (not any(came))
    assert (f'round {line["round"]}/6: skipped, none of its 2 sites' in out) != any(came)
    assert line['simulated_seconds'] == max(line['site_seconds']) > 0
    for site, down, up in zip(
        line['sites'], line['site_bytes_down'], line['site_bytes_up'], strict=True):
      own = [row for row in rows if row[:2] == [str(line['round']), site]]
      assert sum(int(row[-1]) for row in own) == up
      assert sum(int(row[-2]) for row in own) == down
  assert summary['bytes_up'] == sum(sum(line['site_bytes_up']) for line in lines)
  messages = sum(
    count > 0 for line in lines for count in line['site_bytes_up'] + line['site_bytes_down'])
  assert summary['bytes_full_model'] == summary['base_parameters'] * 4 * messages
  # Half of the values in 4 bits, a bit a value for the mask, scales: about 1/10 of 32 bits.
  assert 0.09 < summary['bytes_up'] / sum(
    summary['adapter_parameters'] * 4 * (s > 0) for line in lines for s in line['steps']) < 0.12

  # Stopped after a round that was skipped, while sites owe what they left out before.
  assert lines[3]['skipped'] and lines[3]['bytes_down'] and lines[5]['local_steps']

  def stop(line, *_):
    if line['round'] == 4:
      raise KeyboardInterrupt
    return ''

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'round_sentence', stop)
    assert main.main(command(stopped, *more)) == 130
  assert main.main(command(stopped, *more)) == 0
  ours, theirs = (
    safetensors.numpy.load_file(folder / 'adapter' / 'adapter_model.safetensors')
    for folder in (stopped, whole))
  for key in ours:
    np.testing.assert_array_equal(ours[key], theirs[key])
  assert (stopped / 'ledger.csv').read_text() == (whole / 'ledger.csv').read_text()


def test_a_deadline_that_nobody_can_keep(command, tmp_path, capsys):
  assert main.main(command(
    tmp_path / 'late', '--config.simulation.step_seconds=9.0', '--config.simulation.deadline=5.0',
    *LEAN)) == 1
  assert 'in none of 2 rounds did a site send anything' in capsys.readouterr().err


@pytest.mark.slow
def test_the_gpu_configuration_on_a_tiny_model(command, tmp_path):
  """llama32_1b.py as a GPU may take it: bfloat16, remat, all at once, epochs of unlike length."""
  workdir = tmp_path / 'gpu'
  assert main.main(command(
    workdir, '--config.fed.local_steps=0', '--config.fed.rounds=1', '--config.fed.local_epochs=1',
    '--config.data.max_train_notes=3', *LEAN, '--config.fed.chunk=0', '--config.log.steps=True',
    '--config.model.remat=full', config='configs/llama32_1b.py')) == 0
  line = json.loads((workdir / 'metrics.jsonl').read_text())
  # Steps of 8, 13 and 7, which would be 28 of 39 with everyone waiting.
  assert line['steps'] == [8, 13, 7] and line['useful_step_share'] >= 0.9
  # Unlike numbers of steps, one program: the log saw each taken step and no padded one.
  assert line['local_steps'] == sum(-(-n // 4) for n in _train_sentences(workdir))


def _train_sentences(workdir) -> list[int]:
  return json.loads((workdir / 'summary.json').read_text())['train_examples']


@pytest.mark.slow
def test_an_adapter_that_does_not_move_is_noticed(command, tmp_path, capsys):
  """An update lost on its way (docs/methods.md, section 8). Planted: a rate that rounds to 0."""
  status = main.main(command(
    tmp_path / 'still', '--config.optim.learning_rate=1e-38', *LEAN))
  assert status == 1
  assert 'nothing was learnt' in capsys.readouterr().err


def test_divergence_is_told_in_one_line(command, tmp_path, capsys):
  status = main.main(command(
    tmp_path / 'wild', '--config.optim.learning_rate=1e30', *LEAN))
  assert status == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'has a site a finite loss and update' in error
  lines = [json.loads(x) for x in (tmp_path / 'wild' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['skipped'] for line in lines] == [True, True]
  assert all(line['quarantined'] == line['sites'] for line in lines)


def test_sites_of_our_own_making(command, tmp_path, capsys):
  """Two cohorts dealt out to six sites that leave types unannotated, three of them a round."""
  sites = ('synthetic_icu', 'synthetic_dictation')
  assert main.main(command(
    tmp_path / 'run', f'--config.data.sites={sites}', *LEAN,
    '--config.data.partition.kind=labels', '--config.data.partition.strength=0.5',
    '--config.data.partition.sites=6', '--config.fed.cohort_size=3',
    '--config.data.synthetic_notes=12', '--config.fed.preset=fed_medlora')) == 0
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert summary['sites'] == list(sites) == list(summary['scores'])
  assert summary['partition']['sizes'] == [4] * 6 and 0.25 <= summary['partition']['annotated'] < 1
  assert [len(cohort) for cohort in summary['cohorts']] == [3, 3]
  assert all(name.startswith('part_00') for cohort in summary['cohorts'] for name in cohort)
  # Asked of the tested cohorts are all four types, whatever single sites annotate.
  assert all(name in summary['instructions']['synthetic_icu']['ner'] for name in (
    'problem', 'treatment', 'test', 'drug'))
  assert 'sites dealt out: 6 sites of 4 to 4' in capsys.readouterr().out
