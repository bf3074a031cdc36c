"""A sweep through its program: its runs are those of `main`, and it goes on after a stop."""

import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from fedmedjax import main
from fedmedjax.store.files import read_json, read_lines, write_json
from fedmedjax.sweep import __main__ as program
from fedmedjax.sweep import training
from fedmedjax.sweep.runs import Record, Run
from fedmedjax.types import InputError

SHRINK = [
  '--config.tagger.width=8', '--config.tagger.buckets=64', '--config.lora.rank=2',
  '--config.data.synthetic_notes=6', '--config.data.max_train_sentences=12',
  '--config.data.validation_examples=2', '--config.fed.rounds=3', '--config.fed.local_steps=2',
  '--config.fed.batch_size=2', '--config.eval.max_examples=20', '--config.eval.batch_size=32',
  '--config.eval.bootstrap_samples=20']
GRID = '--grid=fed.preset=uniform,fed_medlora_plus;optim.learning_rate=0.01,0.03;seed=3..4'


def swept(workdir, *more, grid=GRID, config='fedmedjax:ablation'):
  return program.main(
    ['sweep', f'--config={config}', f'--workdir={workdir}', *SHRINK, grid, *more])


def statuses(workdir):
  return {run['name']: run['status'] for run in read_json(workdir / 'sweep.json')['runs']}


def texts(workdir):
  return {path: path.read_bytes() for path in sorted(workdir.glob('runs/*/summary.json'))}


def close(one, other):
  """JSON values that differ by rounding only."""
  if isinstance(one, dict):
    return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
  if isinstance(one, list):
    return len(one) == len(other) and all(map(close, one, other))
  if isinstance(one, float) and isinstance(other, float):
    return bool(np.isclose(one, other, rtol=1e-4, atol=1e-6))
  return one == other


def apart(one, other):
  """The length of the difference of two runs' adapters, in lengths of the second."""
  mine, theirs = (safetensors.numpy.load_file(
    folder / 'adapter' / 'adapter_model.safetensors') for folder in (one, other))
  assert mine.keys() == theirs.keys()
  flat = [np.concatenate([tensors[key].ravel() for key in sorted(tensors)])
          for tensors in (mine, theirs)]
  return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


def stop_in(count, patch):
  """Has a sweep stop in the round that is played as the `count`-th; -> rounds that are played."""
  rounds, real = [], training._round

  def stopping(course, states, number, context):
    rounds.append(number)
    if len(rounds) == count:
      context.stop.set()
    return real(course, states, number, context)

  patch.setattr(training, '_round', stopping)
  return rounds


def fail_first_round(name, patch):
  """Has the first round of one run fail."""
  real = training._add_line

  def failing(lane, course, metrics, number, *more):
    real(lane, course, metrics, number, *more)
    if lane.run.name == name:
      raise RuntimeError('a planted error')

  patch.setattr(training, '_add_line', failing)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Eight runs of two methods, stopped in the second round and gone on with."""
  folder = tmp_path_factory.mktemp('sweep') / 'sweep'
  with pytest.MonkeyPatch.context() as patch:
    stop_in(2, patch)
    assert swept(folder, '--parallel=1') == 0
  assert set(statuses(folder).values()) == {'waiting'}
  assert len(list(folder.glob('groups/*/checkpoints/2/state'))) == 1
  assert swept(folder, '--parallel=2') == 0
  return folder


@pytest.mark.parametrize('preset, rate, seed', [
  ('fed_medlora_plus', 0.01, 3), pytest.param('uniform', 0.01, 3, marks=pytest.mark.slow),
  pytest.param('uniform', 0.03, 4, marks=pytest.mark.slow)])
def test_a_run_of_the_sweep_is_that_of_main(workdir, tmp_path, preset, rate, seed):
  """Up to rounding, since they are two programs. At a rate of 0.03 and seed 3 Adam makes 1e-4 of
  4e-8 in two rounds, where gradients are next to 0."""
  assert main.main([
    'fedmedjax', '--config=fedmedjax:ablation', f'--workdir={tmp_path / "run"}', *SHRINK,
    f'--config.fed.preset={preset}', f'--config.optim.learning_rate={rate}',
    f'--config.seed={seed}']) == 0
  one, other = workdir / 'runs' / f'{preset},learning_rate={rate},seed={seed}', tmp_path / 'run'
  for name in ('config.json', 'inputs.json', 'sites.json', 'ledger.csv'):
    assert (one / name).read_text() == (other / name).read_text()
  lines = [[{key: value for key, value in line.items() if key != 'seconds'}
            for line in read_lines(folder / 'metrics.jsonl')] for folder in (one, other)]
  assert len(lines[0]) == 3 and close(*lines)
  assert apart(one, other) < 1e-6
  mine, theirs = (read_json(folder / 'summary.json') for folder in (one, other))
  assert mine.keys() == theirs.keys() and mine['scores'] == theirs['scores']
  # What `main` would go on with is finished.
  assert main.main([
    'fedmedjax', '--config=fedmedjax:ablation', f'--workdir={one}', *SHRINK,
    f'--config.fed.preset={preset}', f'--config.optim.learning_rate={rate}',
    f'--config.seed={seed}']) == 0


def test_it_is_not_run_again_and_takes_another_grid(workdir, capsys):
  before = texts(workdir)
  assert len(before) == 8 and set(statuses(workdir).values()) == {'done'}
  assert not (workdir / 'groups').exists()
  assert swept(workdir) == 0
  said = capsys.readouterr().out
  assert '8 runs, 0 left\n' in said and texts(workdir) == before
  # The end: what each method reached, over the seeds and rates.
  assert 'Mean strict F1 of entities, over 2 seeds and 2 settings' in said
  assert re.search(r'uniform +│ +4 │ +0\.\d{3} ', said) and '8 runs: 8 done' in said
  # One of these runs is there, by its configuration; the new one diverges, and the other is made.
  grid = '--grid=optim.learning_rate=0.03,1e30,0.02;fed.preset=uniform;seed=4'
  assert swept(workdir, grid=grid) == 1
  said, error = capsys.readouterr()
  assert '3 runs, 2 left' in said and '2 done, 1 failed' in said
  assert error.startswith('failed: 1 of 3 runs; ') and 'sweep.json' in error
  after = statuses(workdir)
  assert len(after) == 10 and [name for name, one in after.items() if one == 'failed'] == [
    'learning_rate=1e+30,uniform,seed=4']
  (failed,) = (run for run in read_json(workdir / 'sweep.json')['runs']
               if run['status'] == 'failed')
  assert 'finite' in failed['error'] and '\n' not in failed['error']
  assert before.items() <= texts(workdir).items()


def test_a_run_of_two_grids_keeps_what_the_first_one_set(tmp_path):
  """And is given the named axes of the second; a run that has not begun is of the last grid."""
  first = {'optim.learning_rate': 0.01, 'seed': 0}
  values = first | {'data.partition.kind': 'iid'}

  def overrides(point):
    record = Record(tmp_path, {}, [], [])
    record.begin([Run('one', point, None, values, tmp_path / 'runs' / 'one', '')], {})
    record.write()
    return read_json(tmp_path / 'sweep.json')['runs'][0]['overrides']

  second = {'seed': 0, 'data.partition.kind': 'iid', 'setting': 'iid'}
  assert [overrides(second), overrides(first)] == [second, first]
  write_json(tmp_path / 'runs' / 'one' / 'config.json', values)
  assert overrides(second) == overrides({'seed': 0}) == first | {'setting': 'iid'}
  # A named axis that has come to mean something else.
  changed = Run('two', first | {'setting': 'iid'}, None, values, tmp_path / 'runs' / 'two', '')
  with pytest.raises(InputError, match='two sets what the run one in the folder did'):
    Record(tmp_path, {}, [], []).begin([changed], {})


def test_a_run_that_was_refused_and_is_allowed_now_waits_without_an_error(tmp_path):
  record, point = Record(tmp_path, {}, [], []), {'seed': 0}

  def stored():
    record.write()
    kept = read_json(tmp_path / 'sweep.json')['runs'][0]
    return kept['status'], kept['error']

  record.begin([], {'one': (point, 'one rank is needed')})
  assert stored() == ('refused', 'one rank is needed')
  record.begin([Run('one', point, None, point, tmp_path / 'runs' / 'one', '')], {})
  assert stored() == ('waiting', '')


def test_what_failed_or_changed_before_a_stop_is_seen_when_it_goes_on(
    workdir, tmp_path, monkeypatch):
  """Of four runs one fails, one then reads other notes, one ends elsewhere, one goes on."""
  grid = '--grid=fed.preset=uniform;optim.learning_rate=0.01,0.03;seed=3..4'
  failing, changed, ended, usual = (
    f'uniform,learning_rate={rate},seed={seed}' for rate in (0.01, 0.03) for seed in (3, 4))
  folder = tmp_path / 's'
  with monkeypatch.context() as patch:
    stop_in(2, patch)
    fail_first_round(failing, patch)
    assert swept(folder, '--parallel=1', grid=grid) == 1
  assert statuses(folder) == {
    failing: 'failed', changed: 'waiting', ended: 'waiting', usual: 'waiting'}
  assert len(read_lines(folder / 'runs' / failing / 'metrics.jsonl')) == 1
  inputs = folder / 'runs' / changed / 'inputs.json'
  before = read_json(inputs)
  site = next(iter(before))
  write_json(inputs, before | {site: dict.fromkeys(before[site], '0')})
  shutil.copytree(workdir / 'runs' / ended, folder / 'runs' / ended, dirs_exist_ok=True)
  made, real = [], training.prepared
  monkeypatch.setattr(
    training, 'prepared', lambda run, sources: made.append(run.name) or real(run, sources))
  rounds = stop_in(0, monkeypatch)
  assert swept(folder, '--parallel=1', grid=grid) == 1
  assert statuses(folder) == {
    failing: 'done', changed: 'failed', ended: 'done', usual: 'done'}
  (failed,) = (run for run in read_json(folder / 'sweep.json')['runs'] if run['error'])
  assert 'changed since the run began' in failed['error']
  # What was kept of the batch is gone on with; the run that had failed begins again, in another.
  assert rounds == [2, 0, 1, 2] and made == [usual, failing]
  assert apart(folder / 'runs' / usual, workdir / 'runs' / usual) < 1e-6
  assert apart(folder / 'runs' / failing, workdir / 'runs' / failing) < 1e-6


def test_a_choice_is_not_judged_by_those_of_its_seeds_that_live(tmp_path, monkeypatch):
  """The better rate fails with one seed: its other seed does not go on."""
  poor, good = ([f'learning_rate={rate},seed={seed}' for seed in (3, 4)] for rate in (
    '1e-09', '0.03'))
  folder = tmp_path / 's'
  fail_first_round(good[0], monkeypatch)
  stop_in(2, monkeypatch)
  assert swept(folder, '--config.fed.preset=uniform', '--halving=1', '--parallel=1',
               grid='--grid=optim.learning_rate=1e-9,0.03;seed=3..4') == 1
  assert statuses(folder) == {
    poor[0]: 'waiting', poor[1]: 'waiting', good[0]: 'failed', good[1]: 'stopped'}


@pytest.mark.slow
def test_a_signal_keeps_the_round(tmp_path):
  folder = tmp_path / 's'
  command = subprocess.Popen(
    [sys.executable, '-m', 'fedmedjax.sweep', '--config=fedmedjax:ablation', '--parallel=1',
     f'--workdir={folder}', *SHRINK, '--grid=fed.preset=uniform;seed=3..4'],
    stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
  while command.poll() is None and len(list(folder.glob('runs/*/config.json'))) < 2:
    time.sleep(0.02)
  command.send_signal(signal.SIGINT)
  said = command.communicate(timeout=300)[1]
  assert command.returncode == 130 and 'stopped by SIGINT' in said
  assert set(statuses(folder).values()) == {'waiting'}
  assert len(list(folder.glob('groups/*/checkpoints/*/state'))) == 1
  assert swept(folder, grid='--grid=fed.preset=uniform;seed=3..4') == 0
  assert set(statuses(folder).values()) == {'done'}


@pytest.mark.parametrize('more, grid, said', [
  (['--config.fed.local_steps=3'], GRID, 'holds a sweep with config.fed.local_steps=2'),
  ([], '--grid=fed.presets=uniform', "did you mean 'fed.preset'"),
  ([], '--grid=fed.preset=unifrom', "'unifrom'"),
  ([], '--grid=fed.preset=scaffold;setting=ranks', 'the run scaffold,setting=ranks is refused'),
  ([], '--grid=lora.rank=1,0', 'config.lora.rank=0'),
  ([], '--grid=data.sites=("synthetic_moon",)', 'synthetic_moon'),
  (['--halving=3'], GRID, 'config.fed.rounds=3; fewer rounds'),
  (['--halving=2,1'], GRID, 'rising numbers'), (['--axes=none.toml'], GRID, 'cannot be read')])
def test_what_cannot_be_run_is_named_before_anything_is_trained(workdir, capsys, more, grid, said):
  before = (workdir / 'sweep.json').read_bytes()
  assert swept(workdir, *more, grid=grid) == 2
  error = capsys.readouterr().err.strip()
  assert said in error and '\n' not in error
  assert (workdir / 'sweep.json').read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize('narrow', [False, True])
def test_halving_stops_the_choices_of_larger_loss(workdir, tmp_path, monkeypatch, narrow):
  """Of four rates two go on, with both seeds; a rate that learns nothing does not.

  `narrow`: as on an accelerator, where those that go on are a smaller batch of their own.
  """
  sizes, real = [], training._round
  monkeypatch.setattr(training, '_round', lambda course, *more: sizes.append(
    len(course.studies)) or real(course, *more))
  if narrow:
    context = training.Context
    monkeypatch.setattr(training, 'Context', lambda *shared: context(*shared[:-1], True))
  grid = '--grid=optim.learning_rate=1e-9,0.03,1e-8,0.02;seed=3..4'
  asked = '--config.fed.preset=uniform', '--halving=1', '--parallel=1'
  assert swept(tmp_path / 's', *asked, grid=grid) == 0
  found = statuses(tmp_path / 's')
  assert {name: status for name, status in found.items() if 'e-0' in name} == {
    f'learning_rate={rate},seed={seed}': 'stopped' for rate in ('1e-09', '1e-08')
    for seed in (3, 4)}
  assert sorted(found.values()) == ['done'] * 4 + ['stopped'] * 4
  assert sizes == ([8, 4, 4] if narrow else [8, 8, 8])
  for seed in (3, 4):
    assert apart(tmp_path / f's/runs/learning_rate=0.03,seed={seed}',
                 workdir / f'runs/uniform,learning_rate=0.03,seed={seed}') < 1e-6
  assert len(read_lines(tmp_path / 's/runs/learning_rate=1e-09,seed=3/metrics.jsonl')) == 1
  before = texts(tmp_path / 's')
  assert swept(tmp_path / 's', *asked, grid=grid) == 0
  assert statuses(tmp_path / 's') == found and texts(tmp_path / 's') == before


@pytest.mark.slow
def test_runs_of_a_llama_are_those_of_main(tiny_folder, tmp_path):
  """Two rates and two seeds of one data set, whose steps are packed into unlike rows."""
  given = [
    f'--config.model.path={tiny_folder}', '--config.fed.rounds=2', '--config.fed.local_steps=2',
    '--config.fed.batch_size=4', '--config.eval.max_examples=1', '--config.lora.rank=4',
    '--config.eval.bootstrap_samples=20', '--config.data.validation_examples=3',
    '--config.eval.max_new_ratio=0.1', '--config.log.steps=False', '--config.data.external=()',
    '--config.lora.targets=("q_proj","v_proj")', '--config.eval.zero_shot=False']
  config = '--config=fedmedjax:quickstart:fed_medlora_plus'
  folder = tmp_path / 'sweep'
  assert program.main([
    'sweep', config, f'--workdir={folder}', *given,
    '--grid=optim.learning_rate=1e-3,3e-3;seed=1,2']) == 0
  assert set(statuses(folder).values()) == {'done'}
  assert main.main([
    'fedmedjax', config, f'--workdir={tmp_path / "run"}', *given,
    '--config.optim.learning_rate=3e-3', '--config.seed=2']) == 0
  assert apart(folder / 'runs' / 'learning_rate=0.003,seed=2', tmp_path / 'run') < 1e-6


def test_the_plan_alone_writes_nothing(tmp_path, capsys):
  axes = tmp_path / 'axes.toml'
  axes.write_text('[size.small]\n"data.max_train_sentences" = 8\n[size.skewed]\n'
                  '"data.partition.sizes" = [0.6, 0.1, 0.1, 0.1, 0.1]\n')
  grid = '--grid=fed.preset=scaffold,fed_medlora;size=small,skewed;setting=iid,ranks'
  assert swept(tmp_path / 'w', f'--axes={axes}', '--skip_refused', '--validate_only',
               '--config.lora.rank=8', grid=grid) == 0
  said = capsys.readouterr().out
  assert '6 runs, 6 left, in 3 programs' in said and (
    'scaffold,size=small,setting=ranks and 1 more are left out' in said)
  assert not (tmp_path / 'w').exists()
