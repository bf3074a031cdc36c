"""scripts/bench_gpu.sh where no GPU is: its commands, its clock, and what its summary says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.runtime.cli import read_flags

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))
import bench_decode  # noqa: E402
import bench_train  # noqa: E402

from benchmarks import gpu_parts, gpu_run, gpu_summary  # noqa: E402

SCRIPT = ROOT / 'scripts' / 'bench_gpu.sh'
GIB = 2**30
CARD = gpu_parts.Machine('a card', 80 * GIB, True, 'maccrobat2020', '')


@pytest.mark.parametrize('argument, message', [
  ('--minutes=0', '--minutes=0: a number > 0'), ('--minutes=ten', '--minutes=ten: a number > 0'),
  ('--parts=8b,moon', '--parts=moon: some of tests, 8b, peft, attention_'),
  ('--tokenizer=/nowhere', '--tokenizer=/nowhere: no folder'), ('--minute=3', '--minute=3')])
def test_one_line_and_status_two(argument, message):
  done = subprocess.run(
    ['bash', SCRIPT, argument], capture_output=True, text=True,
    env=os.environ | {'PYTHON': sys.executable})
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.count('\n') == 1 and message in done.stderr


def test_an_interpreter_that_is_none():
  done = subprocess.run(
    ['bash', SCRIPT], capture_output=True, text=True, env=os.environ | {'PYTHON': '/no/python'})
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert 'PYTHON=/no/python' in done.stderr


def flags_of(part: gpu_parts.Part):
  """As its script reads them; raises InputError for one that the script does not have."""
  script = {'bench_train.py': bench_train, 'bench_decode.py': bench_decode}[
    Path(part.command[1]).name]
  values = read_flags(part.command[1:], script.define)
  script.check_flags(values)
  return values


@pytest.mark.parametrize('card', [
  CARD, CARD._replace(memory=24 * GIB, peers=False, site='synthetic_icu', tokenizer='/words')])
def test_the_scripts_take_the_commands(card, tmp_path):
  """In their order, and likewise when they are shrunk; NF4 never gets over 16 GiB."""
  parts = {part.name: part for part in gpu_parts.parts(card, tmp_path)}
  assert [*parts] == [
    'tests', '8b', 'peft', *(f'attention_{name}' for name in gpu_parts.KERNELS), 'nf4', 'estimate',
    '1b', 'sites16', 'decode']
  assert {'plain', *gpu_parts.KERNELS} == set(ATTENTIONS)
  assert 'tests/model/kernels_test.py' in parts['tests'].command
  benches = [part for part in parts.values() if 'scripts/bench_' in part.command[1]]
  assert len(benches) == 6 + len(gpu_parts.KERNELS)
  for part in benches:
    values = flags_of(part)
    assert values.out == str(tmp_path / f'{part.name}.json') and values.site == card.site
    assert values.dtype == 'bfloat16' and values.tokenizer == card.tokenizer
    assert card.peers or not values.peers
    tiny = flags_of(gpu_parts.shrunk(part))
    assert tiny.model == 'width_256' and tiny.repeats == 1 and tiny.out == values.out
  large = flags_of(parts['8b'])
  assert large.sites == ['1', '3', '8'] and not large.loop and large.remat == (
    'products' if card.memory == 80 * GIB else 'full')
  assert flags_of(parts['peft']).peers == (
    ['peft_batch4_checkpointing', 'peft_batch8_checkpointing'] if card.peers else [])
  assert bool(parts['peft'].absent) != card.peers
  share = float(parts['nf4'].environment['XLA_CLIENT_MEM_FRACTION'])
  assert 15.9 * GIB < share * card.memory <= 16 * GIB
  assert sum(part.least for part in parts.values()) < 10 * 60


def planted(name: str, line: str, least: float = 0.0, most: float = 20.0) -> gpu_parts.Part:
  return gpu_parts.Part(name, f'planted {name}', least, most, ('sh', '-c', line))


def test_parts_end_in_every_way(tmp_path, monkeypatch, capsys):
  """By main: a file for each, one line each, and the command for what was not done."""
  monkeypatch.setattr(gpu_run, 'WORK', tmp_path / 'work')
  out = tmp_path / 'out'

  def parts(machine, folder):
    writes = lambda name, text: f"echo '{text}' > {folder}/{name}.json"  # noqa: E731
    return (
      planted('good', writes('good', '{"flop": 3}')),
      planted('half', f'{writes("half", json.dumps({"flop": 4}))}; echo no memory >&2; exit 1'),
      planted('absent', 'echo error: no kernel here >&2; exit 2'),
      planted('package', 'echo ModuleNotFoundError: No module named x; exit 1'),
      planted('wrong', 'echo failed: they differ; exit 1'),
      planted('slow', f'sleep 60 & echo $! > {folder}/pid; wait', most=0.5),
      planted('late', 'true', least=1e6),
      planted('bare', 'true')._replace(absent='no torch'),
      planted('last', 'true'))

  monkeypatch.setattr(gpu_run, 'parts', parts)
  monkeypatch.setattr(gpu_run, 'shrunk', lambda part: part)
  monkeypatch.setattr(gpu_run, '_STOP_SECONDS', 0.2)
  out.mkdir()
  (out / 'late.json').write_text('{"flop": 5}')  # of an earlier call
  assert gpu_run.main(['script', '--dry', f'--out={out}', '--minutes=1']) == 1
  found = {path.stem: json.loads(path.read_text()) for path in out.glob('*.json')}
  assert {name: one['part_status'] for name, one in found.items()} == {
    'good': 'done', 'half': 'partial', 'absent': 'skipped', 'package': 'skipped',
    'wrong': 'failed', 'slow': 'stopped', 'late': 'no time',
    'bare': 'skipped', 'last': 'done'}
  assert found['good']['flop'] == 3 and found['half']['flop'] == 4 and 'flop' not in found['late']
  assert found['half']['part_why'] == 'no memory' and found['half']['part_said'] == ['no memory']
  said = capsys.readouterr().out
  assert 'absent: skipped: error: no kernel here\n' in said
  assert 'late: no time: ' in said and 'of the 1000000 it needs' in said
  assert (f'--parts=half,absent,package,wrong,slow,late,bare --out={out} --dry\n') in said
  # What a part started ends with it.
  with pytest.raises(ProcessLookupError):
    for _ in range(100):
      os.kill(int((out / 'pid').read_text()), 0)
      time.sleep(0.02)


def test_a_signal_ends_the_part_and_names_the_rest(tmp_path):
  # Not while it is being started: then nothing knows its number yet.
  chosen = [
    planted('first', 'sleep 0.3; kill -TERM $PPID; sleep 60'), planted('second', 'true')]
  begun = time.monotonic()
  with pytest.raises(KeyboardInterrupt), gpu_run.interruptible():
    gpu_run.run_all(chosen, tmp_path, tmp_path, begun + 100)
  assert time.monotonic() - begun < 30
  found = [gpu_summary.read(tmp_path / f'{name}.json') for name in ('first', 'second')]
  assert [one['part_status'] for one in found] == ['stopped', 'no time']


def test_modules_of_this_tree_and_one_share_of_the_memory(monkeypatch):
  """jax refuses both names of the share; a relative path is not that of another folder."""
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  monkeypatch.setenv('PYTHONPATH', 'more')
  part = planted('x', '')._replace(environment={'XLA_CLIENT_MEM_FRACTION': '0.2'})
  found = gpu_run.environment(part)
  assert found['XLA_CLIENT_MEM_FRACTION'] == '0.2'
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in found
  assert found['PYTHONPATH'].split(os.pathsep) == [str(ROOT), str(Path('more').absolute())]
  assert found['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'


def rounds(sites: int, seconds: float, flop: float, planned: float, compiled: float, seen: float):
  """Entries of a round; bytes in GiB."""
  return {f'{key}_{sites}_sites': value for key, value in {
    'ours_seconds_per_site_step': seconds, 'ours_model_flop_per_second': flop,
    'base_bytes': 10 * GIB, 'ours_estimated_bytes': planned * GIB,
    'ours_peak_bytes': compiled * GIB, 'ours_device_peak_bytes': seen * GIB}.items()}


@pytest.fixture
def folder(tmp_path) -> Path:
  """Files of parts, one of them cut off and one that found no time."""
  files = {
    'tests': {'part_status': 'done'},
    '8b': {
      'part_status': 'partial', 'part_why': 'no more than 330 s', 'ceiling_flop_per_second': 700.0,
      'ours_examples_per_second': 20.0,
      'ours_site_step_cost_8_over_1_sites': 1.06, 'machine': {'device': 'a card'}, 'commit': 'abc',
      'versions': {'jax': '0.11.2', 'numpy': '2'},
      **rounds(1, 0.10, 400.0, 12.0, 12.5, 13.0), **rounds(8, 0.106, 480.0, 30.5, 30.0, 31.0)},
    'peft': {
      'ceiling_flop_per_second': 800.0, 'ratio_to_peft_batch4_checkpointing_bfloat16': 6.5,
      'ours_examples_per_second': 20.0, 'peer_peft_batch4_checkpointing_examples_per_second': 3.0},
    'nf4': {'part_status': 'done', **rounds(3, 0.2, 300.0, 14.0, 14.0, 16.01)},
    '1b': {'part_status': 'no time', 'part_why': '3 s were left of the 50 it needs'},
  }
  for name, found in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(found))
  (tmp_path / 'decode.json').write_text('{"half')
  return tmp_path


def test_targets_by_hand(folder):
  """400 of 800 is 0.5, 480 of 800 is 0.6. A FLOP at 8 sites costs 400 / 480 of one at 1. The
  estimate of the first round is 0.5 too low of 2.5 beside the base."""
  parts = {path.stem: gpu_summary.read(path) for path in folder.glob('*.json')}
  assert parts['decode'] is None
  assert [(found, met) for _, _, found, met in gpu_summary.targets(parts)] == [
    ('done', 'yes'), ('0.500', 'no'), ('not measured', 'not measured'), ('0.600', 'yes'),
    ('6.50', 'yes'), ('1.060', 'no'), ('0.833', 'yes'), ('16.01', 'no'), ('0.200', 'no')]
  assert {met for *_, met in gpu_summary.targets({})} == {'not measured'}
  unlike = {'peft': {'ratio_to_peft_batch4_checkpointing': float('nan')}, '8b': {
    'ceiling_flop_per_second': 0,
    'ours_site_step_cost_8_over_1_sites': '1.0', **rounds(8, 1, 1, 1, 1, 1)}}
  assert {met for *_, met in list(gpu_summary.targets(unlike))[:7]} == {'not measured'}


def test_the_summary_is_rows_of_markdown(folder, capsys):
  assert gpu_summary.main(['script', str(folder)]) == 0
  said = capsys.readouterr().out
  assert said.startswith('a card, commit abc, jax 0.11.2\n')
  assert '| 8b | 8 | 0.106 | 0.6 |  | 30.50 | 30.00 | 31.00 | +2.5% |\n' in said
  assert '| nf4 | 3 | 0.2 | 0.375 |  | 14.00 | 14.00 | 16.01 | +0.0% |\n' in said
  assert '| peft | peer peft batch4 checkpointing | 3 | not measured | not measured | 6.5 |' in said
  assert '- 1b: no time, 3 s were left of the 50 it needs\n' in said
  assert gpu_summary.main(['script', str(folder / 'nowhere')]) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_the_estimate_against_the_truth_is_a_file(folder, capsys):
  assert gpu_summary.main(['script', str(folder), '--estimate']) == 0
  rows = json.loads((folder / 'estimate.json').read_text())['rounds']
  assert [(row['part'], row['sites'], round(row['estimate_error'], 6)) for row in rows] == [
    ('8b', 1, -0.2), ('8b', 8, 0.025), ('nf4', 3, 0.0)]
  for path in folder.glob('*.json'):
    path.unlink()
  assert gpu_summary.main(['script', str(folder), '--estimate']) == 2
  assert capsys.readouterr().err == 'error: no part has told the bytes of a round\n'


@pytest.mark.slow
def test_dry_runs_what_a_gpu_would(tmp_path):
  """The commands themselves for a tiny model; cuDNN's kernel says that it is not here."""
  done = subprocess.run(
    ['bash', SCRIPT, '--dry', f'--out={tmp_path}', '--parts=tests,attention_cudnn,nf4,estimate',
     '--minutes=5'],
    capture_output=True, text=True, env=os.environ | {'PYTHON': sys.executable})
  found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob('*.json')}
  assert {name: one['part_status'] for name, one in found.items()} == {
    'tests': 'skipped', 'attention_cudnn': 'skipped', 'nf4': 'done',
    'estimate': 'done'}, done.stdout
  assert 'this machine computes on cpu' in found['attention_cudnn']['part_why']
  assert [row['sites'] for row in found['estimate']['rounds']] == [1, 3]
  assert '| nf4 | 3 | ' in done.stdout and done.returncode == 1
