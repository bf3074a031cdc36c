"""Checkpoints are whole or passed over; one live run a folder; signals; inputs that changed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.fed.types import FedState, SiteState
from fedmedjax.runtime import signals
from fedmedjax.store import checkpoint
from fedmedjax.store.lock import FILE, check_free, free, locked
from fedmedjax.train.fingerprint import check_inputs
from fedmedjax.types import InputError


def state(number: int) -> FedState:
  """Every part of a state filled, with a number that tells the round."""
  leaf = jnp.full((2, 3), number, jnp.float32)
  return FedState(
    jnp.int32(number), {'q': {'a': leaf, 'b': leaf + 0.1}}, (), {'q': leaf}, ((leaf, ()), ()),
    jnp.arange(3.0) * number, SiteState(leaf, (), {'residual': leaf}))


def line(number: int, loss: float | None = 1.0) -> dict:
  return {'round': number, 'validation_loss': [loss, None], 'seconds': 0.5}


def save(folder, rounds: int, **keep):
  lines = []
  for number in range(1, rounds + 1):
    lines.append(line(number, loss=abs(number - 2) + 1.0))
    checkpoint.save(folder, state(number), lines, **{'keep': 2, **keep})


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('relative', [False, True])
def test_all_of_a_state_and_its_lines_come_back(tmp_path, monkeypatch, relative):
  monkeypatch.chdir(tmp_path)
  tmp_path = Path('checkpoints') if relative else tmp_path
  save(tmp_path, 3)
  found, lines = checkpoint.newest(tmp_path, state(0), pytest.fail)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(state(3)), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  assert lines == [line(1, 2.0), line(2, 1.0), line(3, 2.0)]
  assert names(tmp_path) == ['2', '3'] and checkpoint.latest_round(tmp_path) == 3
  assert checkpoint.newest(tmp_path / 'none', state(0), pytest.fail) is None


def test_a_copy_on_the_host_is_not_the_devices_memory():
  """On CPU an array and what numpy sees of it may be one; the next round donates the former."""
  one = state(1)
  copy = checkpoint.host_copy(one)
  assert not any(np.shares_memory(a, np.asarray(b)) for a, b in zip(
    jax.tree.leaves(copy), jax.tree.leaves(one), strict=True))


@pytest.mark.parametrize('break_it, message', [
  (lambda p: (p / 'manifest.json').unlink(), 'manifest.json cannot be read'),
  (lambda p: (p / 'manifest.json').write_text('{"a'), 'manifest.json cannot be read'),
  (lambda p: (p / 'manifest.json').write_text('[]'), 'manifest.json cannot be read'),
  (lambda p: (p / 'metrics.jsonl').unlink(), 'metrics.jsonl is missing'),
  (lambda p: largest(p).write_bytes(largest(p).read_bytes()[:-7]), 'is not what was written'),
  (lambda p: flip(largest(p)), 'is not what was written'),
  (lambda p: (p / 'state' / 'more').write_text(''), 'more is not what was written'),
])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, break_it, message):
  save(tmp_path, 3)
  break_it(tmp_path / '3')
  warnings = []
  found, lines = checkpoint.newest(tmp_path, state(0), warnings.append)
  assert int(found.round) == len(lines) == 2
  assert len(warnings) == 1 and str(tmp_path / '3') in warnings[0] and message in warnings[0]
  # Made again, it takes the place of the damaged one.
  checkpoint.save(tmp_path, state(3), [*lines, line(3)], keep=2)
  assert checkpoint.damage(tmp_path / '3') is None and names(tmp_path) == ['2', '3']


def largest(folder):
  return max((f for f in (folder / 'state').rglob('*') if f.is_file()),
             key=lambda f: f.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def test_what_a_crash_leaves_is_removed(tmp_path):
  save(tmp_path, 1)
  (tmp_path / '2.part' / 'state').mkdir(parents=True)
  found, _ = checkpoint.newest(tmp_path, state(0), pytest.fail)
  assert int(found.round) == 1 and names(tmp_path) == ['1']


def test_the_best_are_kept_besides(tmp_path):
  """Losses by round: 2, 1, 2, 3, 4: round 2 is best, and of rounds 1 and 3 the newer is kept."""
  save(tmp_path, 5, keep_best=1)
  assert names(tmp_path) == ['2', '4', '5']
  save(tmp_path / 'two', 5, keep=1, keep_best=2)
  assert names(tmp_path / 'two') == ['2', '3', '5']
  assert checkpoint.mean_validation_loss({'validation_loss': [1.0, None, 2.0]}) == 1.5
  assert checkpoint.mean_validation_loss({'validation_loss': [None]}) == float('inf')


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
  """No file may grow past 2,000 bytes, in a process of its own; the state's are longer, and many:
  those that are written when the first has failed are not heard of, nor is a task that surely
  fails with nobody waiting, as some of them do."""
  save(tmp_path, 1)
  code = (
    'import asyncio, resource, sys, logging; from pathlib import Path; import numpy as np\n'
    'from fedmedjax.runtime import signals\nfrom fedmedjax.store import checkpoint\n'
    'logging.getLogger("absl").setLevel(logging.CRITICAL)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n'
    'state = {str(i): np.random.default_rng(i).random(500) for i in range(60)}\n'
    'with signals.stoppable():\n'
    '  try:\n'
    '    checkpoint.save(Path(sys.argv[1]), state, [{"round": 2}], 2)\n'
    '  except RuntimeError as error:\n    print(error)\n'
    'async def alone():\n  asyncio.create_task(asyncio.wait_for(5, 5)); await asyncio.sleep(0.01)\n'
    'asyncio.run(alone())\n')
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, timeout=60)
  assert 'round 2: its checkpoint cannot be written' in done.stdout and not done.stderr
  assert done.stdout.count('\n') == 1 and 'File too large' in done.stdout
  assert names(tmp_path) == ['1'] and checkpoint.damage(tmp_path / '1') is None


def test_one_live_run_a_folder(tmp_path):
  with locked(tmp_path, pytest.fail):
    held = json.loads((tmp_path / FILE).read_text())
    assert held == {'pid': os.getpid(), 'host': socket.gethostname()}
    with pytest.raises(InputError, match=f'in use by process {os.getpid()} on host') as error:
      with locked(tmp_path, pytest.fail):
        pass
    assert '\n' not in str(error.value)
  with locked(tmp_path, pytest.fail):
    pass
  assert (tmp_path / FILE).read_text() == ''
  with locked(tmp_path, pytest.fail):
    free(tmp_path)  # as before an end at once: no name is left, and the lock is still held
    assert (tmp_path / FILE).read_text() == ''
    with pytest.raises(InputError, match='in use by'):
      check_free(tmp_path)


def test_a_folder_that_is_deleted_while_a_run_writes_there(tmp_path):
  for broken in (True, False):
    folder = tmp_path / 'run'
    folder.mkdir()
    with pytest.raises(RuntimeError, match='run: the folder, .* was deleted or moved') as error:
      with locked(folder, pytest.fail):
        shutil.rmtree(folder)
        if broken:
          (folder / 'metrics.jsonl.part').replace(folder / 'metrics.jsonl')
        folder.mkdir()  # as the next write does
    assert '\n' not in str(error.value)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_dead_runs_lock_is_taken_over_but_not_another_hosts(tmp_path):
  """The number of the dead process is that of a live one, this test's parent."""
  entry = {'pid': os.getppid(), 'host': socket.gethostname()}
  (tmp_path / FILE).write_text(json.dumps(entry))
  warnings = []
  with locked(tmp_path, warnings.append):
    assert json.loads((tmp_path / FILE).read_text())['pid'] == os.getpid()
  assert len(warnings) == 1 and 'is dead, its lock is taken over' in warnings[0]
  (tmp_path / FILE).write_text(json.dumps(entry | {'host': 'elsewhere'}))
  with pytest.raises(InputError, match='on host elsewhere; if that run is dead, delete'):
    with locked(tmp_path, pytest.fail):
      pass
  (tmp_path / FILE).write_text('torn')
  with locked(tmp_path, warnings.append):
    pass


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_a_signal_waits_for_what_is_deferred(number):
  done, before = [], signal.getsignal(number)  # in the background a shell has SIGINT ignored
  with pytest.raises(signals.Stopped) as stop, signals.stoppable():
    with signals.deferred():
      os.kill(os.getpid(), number)
      done.append('the round')
    done.append('not reached')
  assert stop.value.number == number and done == ['the round']
  with pytest.raises(signals.Stopped), signals.stoppable():
    os.kill(os.getpid(), number)
    time.sleep(1)
  assert signal.getsignal(number) is before


def test_a_signal_in_a_destructor_is_not_lost(capsys):
  """Python drops what a destructor raises; the next round is not begun all the same."""
  class Last:
    def __del__(self):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.1)

  with pytest.raises(signals.Stopped), signals.stoppable():
    last = Last()
    del last
    with signals.deferred():
      pytest.fail('a round was begun')
  assert 'Traceback' not in capsys.readouterr().err


def test_a_second_signal_leaves_at_once():
  """Even where the main thread hears nothing, deep in foreign code: here in one long product."""
  code = (
    'import os, signal, threading, numpy as np\n'
    'from fedmedjax.runtime.signals import deferred, stoppable\n'
    'def twice():\n'
    '  for _ in range(2):\n'
    '    os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(0.2)\n'
    'with stoppable(), deferred():\n'
    '  threading.Thread(target=twice).start()\n'
    '  big = np.ones((12000, 12000), np.float32)\n'
    '  while True: big @ big\n')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
  assert done.returncode == 143
  assert done.stderr.count('\n') == 1 and 'SIGTERM: leaving as soon as' in done.stderr


def test_inputs_that_changed_are_named(tmp_path):
  first = {'model': {'a.gguf': '1', 'b': '2'}, 'notes of site icu': {'note 7': '3'}}
  check_inputs(tmp_path, first)
  check_inputs(tmp_path, first)
  for changed, name in (
      (first | {'model': {'a.gguf': '1', 'b': '9'}}, 'model: b changed'),
      (first | {'notes of site icu': {}}, 'site icu: note 7 changed'),
      (first | {'model': {}}, 'model: a.gguf and 1 more changed')):
    with pytest.raises(InputError, match=name):
      check_inputs(tmp_path, changed)
  assert json.loads((tmp_path / 'inputs.json').read_text()) == first
