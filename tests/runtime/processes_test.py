"""What processes exchange, by a service that is a dict; who is missing; how they are started."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from absl import flags
from jax.errors import JaxRuntimeError

from fedmedjax.experiment.reading import Reading, check_read_alike
from fedmedjax.runtime import launch, watch
from fedmedjax.runtime import processes as processes_module
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.types import Document, InputError, SiteCorpus


class Service:
  """The part of JAX's coordination service that is used."""

  def __init__(self):
    self.entries, self.changed = {}, threading.Condition()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.changed:
      assert allow_overwrite or key not in self.entries
      self.entries[key] = value
      self.changed.notify_all()

  def blocking_key_value_get(self, key, milliseconds):
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.entries, milliseconds / 1000):
        raise JaxRuntimeError('DEADLINE_EXCEEDED: nobody')
      return self.entries[key]

  def key_value_dir_get(self, prefix):
    with self.changed:
      return [(k, v) for k, v in self.entries.items() if k.startswith(prefix)]

  def key_value_delete(self, prefix):
    with self.changed:
      self.entries = {k: v for k, v in self.entries.items() if not k.startswith(prefix)}


class Faulty(Service):
  """Of which every third question fails, after it was heard."""

  asked = 0

  def __getattribute__(self, name):
    found = super().__getattribute__(name)
    if 'key_value' not in name:
      return found

    def call(*arguments, **named):
      self.asked += 1
      answer = found(*arguments, **named)
      if self.asked % 3 == 0:
        raise JaxRuntimeError('UNAVAILABLE: connection reset')
      return answer

    return call


def together(calls, deadline=20.0, service=None):
  """What each call gives, one a process: call(Processes)."""
  service = service or Service()
  with ThreadPoolExecutor(len(calls)) as pool:
    waiting = [pool.submit(call, Processes(rank, len(calls), service, deadline))
               for rank, call in enumerate(calls)]
    return [one.exception() or one.result() for one in waiting], service.entries


def test_values_go_around_and_leave_nothing_behind():
  """Of twelve exchanges the entries of the last ones alone are kept; long values are cut."""
  long = 'x' * (2**20 + 5)

  def talk(processes):
    found = processes.gather('long', long + str(processes.index))
    for number in range(10):
      processes.meet(f'step {number}')
    first = processes.of_first('who', lambda: processes.index)
    last = processes.collected('last', processes.index)
    return found, first, last, processes.once(lambda: 'here'), processes.merged(
      'names', {f'site {processes.index}': processes.index})

  results, entries = together([talk] * 3)
  for rank, (found, first, last, once, merged) in enumerate(results):
    assert found == [long + '0', long + '1', long + '2'] and first == 0
    assert last == ([0, 1, 2] if rank == 0 else None) and once == ('here' if rank == 0 else None)
    assert merged == {'site 0': 0, 'site 1': 1, 'site 2': 2}
  assert not any('values/0/' in key or 'values/5/' in key for key in entries)
  assert ALONE.gather('x', 3) == [3] and ALONE.most('x', 2) == 2
  ALONE.same('x', {'a': 1})


def test_who_is_missing_and_who_is_elsewhere():
  """The third never comes: both others name it within the deadline. Then two do unlike things."""
  begun = time.monotonic()
  results, _ = together([lambda p: p.meet('round 1')] * 2 + [lambda p: None], 0.5)
  assert time.monotonic() - begun < 5 and results[2] is None
  for error in results[:2]:
    assert isinstance(error, RuntimeError) and re.search(
      r'round 1: waited [\d.]+ s for process 2;', str(error))
  results, _ = together([lambda p: p.meet('round 1'), lambda p: p.meet('round 2')])
  assert "process 1 is at 'round 2', this one at 'round 1'" in str(results[0])


@pytest.fixture
def watched(monkeypatch):
  """watched(calls, ...) -> results, and what ended processes; of twenty signs a second."""
  left = {}

  def leave(watch, why):
    left.setdefault(watch.index, why)
    watch.over.set()
    raise SystemExit

  monkeypatch.setattr(watch, 'BEAT', 0.05)
  monkeypatch.setattr(watch, '_stacks', lambda: (0, 'here.py:7'))  # those of all threads of a test
  monkeypatch.setattr(watch.Watch, '_leave', leave)
  monkeypatch.setattr(threading, 'excepthook', lambda args: None)

  def run(*calls, deadline, call_deadline):
    service = Service()
    left.clear()

    def one(rank, call):
      processes = Processes(rank, len(calls), service, deadline, call_deadline).begin()
      try:
        return call(processes)
      finally:
        time.sleep(0.2)
        processes.watch.over.set()

    with ThreadPoolExecutor(len(calls)) as pool:
      waiting = [pool.submit(one, rank, call) for rank, call in enumerate(calls)]
    return [one.exception() or one.result() for one in waiting], left

  return run


def test_who_gets_on_is_waited_for(watched):
  """Process 1 answers for 1.2 s: a step takes more than a deadline, all of them more than a call
  may, and none as much as that."""
  def answering(processes):
    with processes.doing('decoding ward'):
      for _ in range(4):
        time.sleep(0.3)
        processes.stir()
    processes.meet('scores')

  results, left = watched(
    lambda p: p.meet('scores'), answering, deadline=0.1, call_deadline=1.0)
  assert results == [None, None] and not left


def test_who_lives_and_does_not_get_on_is_named(watched):
  """Process 1 gives signs of life all the time, in a call that does not return; process 2, which
  waits for both, is not to blame. Then two are in one round, and either may be what hangs."""
  def hanging(processes):
    with processes.doing('decoding ward'):
      time.sleep(1.0)

  results, left = watched(
    lambda p: p.meet('scores'), hanging, lambda p: p.meet('scores'), deadline=0.2,
    call_deadline=0.4)
  for number in (0, 2):
    assert isinstance(results[number], RuntimeError)
    assert 'pid' in str(results[number]) and 'decoding ward, at here.py:7;' in str(results[number])
    assert str(results[number]).count('process ') == 1 and '--call_dead' in str(results[number])
  # Or process 0 says so first.
  assert 'process 1 (' in left[1] and 'nothing has got on there for 0.4 s;' in left[1]

  def computing(processes):
    with processes.doing('round 1/3'):
      time.sleep(0.8)

  _, left = watched(computing, computing, deadline=0.2, call_deadline=0.4)
  for why in left.values():
    assert why.count('round 1/3, at here.py:7') == 2 and 'at least one of them hangs' in why
    assert '--call_deadline=... waits longer' in why


def test_a_thread_that_moves_gets_on():
  """A place in a thread that works counts, and none in a daemon that only looks."""
  def work(entered, first, last):
    entered.set()
    first.wait()
    last.wait()

  for daemon in (False, True):
    events = entered, first, last = [threading.Event() for _ in range(3)]
    worker = threading.Thread(target=work, args=events, daemon=daemon)
    worker.start()
    entered.wait()
    until, places = time.monotonic() + (0.3 if daemon else 10), set()
    while len(places) < 2 and time.monotonic() < until:
      places.add(watch._stacks()[0])
      first.set()
      time.sleep(0.02)
    last.set()
    worker.join()
    assert len(places) == 1 if daemon else len(places) == 2


def test_one_question_that_fails_ends_nothing(monkeypatch):
  monkeypatch.setattr(processes_module, 'BEAT', 0.01)
  results, _ = together(
    [lambda p: [p.gather(str(n), p.index) for n in range(5)]] * 2, service=Faulty())
  assert results == [[[0, 1]] * 5] * 2


def test_what_differs_is_named_with_its_process():
  results, _ = together([
    lambda p: p.same('config', {'seed': 1, 'fed.rounds': 3}, 'config.{}'.format),
    lambda p: p.same('config', {'seed': 2, 'fed.rounds': 3}, 'config.{}'.format)])
  for error in results:
    assert isinstance(error, InputError) and str(error) == (
      'config.seed is not the same in all processes: process 0 has 1, process 1 2')


def test_notes_that_all_read_are_the_same():
  """As where they are dealt out: of unlike copies each process would deal out its own."""
  def read(text):
    corpus = SiteCorpus('ward', (), (Document('a', text, (), ()),), (), {'documents': len(text)})
    return lambda processes: check_read_alike(Reading(processes), [corpus])

  assert together([read('cough'), read('cough')])[0] == [None, None]
  for error in together([read('cough'), read('fever')])[0]:
    assert isinstance(error, InputError)
    assert str(error).startswith('the corpus of site ward is not the same in all processes: ')


def started(*words):
  values = flags.FlagValues()
  launch.define(values)
  values(['main', *words])
  return launch.launch_of(values)


@pytest.mark.parametrize('words, message', [
  (['--coordinator=here'], '--coordinator=here: --num_processes is missing'),
  (['--process_id=1'], '--process_id=1: --coordinator is missing'),
  (['--coordinator=here', '--num_processes=2', '--process_id=0'], 'HOST:PORT is expected'),
  (['--coordinator=:1', '--num_processes=2', '--process_id=0'], 'HOST:PORT is expected'),
  (['--coordinator=a:1', '--num_processes=2', '--process_id=2'], '0 to 1 are allowed'),
  (['--coordinator=a:1', '--num_processes=0', '--process_id=0'], '1 or more are allowed'),
  (['--num_processes=2'], '--num_processes=2: --coordinator is missing'),
  (['--call_deadline=60'], '--call_deadline=60: --deadline=1800 seconds or more are allowed'),
  (['--local_device_ids=0,x'], 'different numbers from 0'),
  (['--local_device_ids=0,0'], 'different numbers from 0'), (['--deadline=1'], '5 seconds or more'),
  (['--coordinator=127.0.0.1:9', '--num_processes=2', '--process_id=0'], 'is on 3 nodes'),
  (['--coordinator=[::1]:9', '--num_processes=2', '--process_id=0'], 'is on 3 nodes')])
def test_flags_that_cannot_be_meant(words, message, monkeypatch):
  monkeypatch.setenv('SLURM_JOB_NUM_NODES', '3')
  with pytest.raises(InputError, match=message.replace('[', r'\[')):
    started(*words)


def test_who_is_one_of_several():
  """A launcher of one process, a shell inside a Slurm job, and a pod alone are single processes."""
  single = started()
  assert (single.deadline, single.call_deadline) == (1800, 6 * 3600)
  slurm = {'SLURM_NTASKS': '4', 'SLURM_STEP_NODELIST': 'node[1-4]'}
  cluster = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}
  for environ, expected in (
      ({}, False), (slurm, True), ({'SLURM_NTASKS': '4'}, False), (slurm | {
        'SLURM_NTASKS': '1'}, False), (slurm | {'SLURM_STEP_NUM_TASKS': '4'}, True),
      (slurm | {'SLURM_STEP_NUM_TASKS': '1'}, False), ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
      (cluster, False), (cluster | {'JOB_COMPLETION_INDEX': '0'}, True)):
    assert launch.several(single, environ | {'JAX_PLATFORMS': 'cpu'}) == expected
  assert launch.alone_there(slurm | {'SLURM_STEP_NUM_NODES': '4'})
  assert not launch.alone_there(slurm | {'SLURM_STEP_NUM_NODES': '2'})
  assert not launch.alone_there({'OMPI_COMM_WORLD_LOCAL_SIZE': '2'})
  flagged = ('--coordinator=localhost:9', '--process_id=0')
  assert launch.several(started(*flagged, '--num_processes=2'), {})
  assert not launch.several(started(*flagged, '--num_processes=1'), slurm)
  assert not launch.several(started('--num_processes=1'), slurm)


def test_what_open_mpi_5_says(monkeypatch):
  """Rank 5 of 8 on two machines, the second process of four there: process 0 is looked for on the
  machine of mpirun, and this one takes its second GPU. Alone on its machine it takes all; where all
  are on one, nobody else is asked for its address. Rank 0 elsewhere is told which flag to add."""
  said = {
    'OMPI_COMM_WORLD_SIZE': '8', 'OMPI_COMM_WORLD_RANK': '5', 'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '4', 'PMIX_NAMESPACE': 'prterun-gpu-node.3-4100@1'}
  for name, value in said.items():
    monkeypatch.setenv(name, value)
  assert started()[:4] == ('gpu-node.3:61445', 8, 5, (1,)) and launch.several(started())
  assert started('--coordinator=b:7', '--local_device_ids=2,3')[:4] == ('b:7', 8, 5, (2, 3))
  assert started('--coordinator=b:7', '--num_processes=2', '--process_id=0')[:4] == (
    'b:7', 2, 0, None)
  assert started('--num_processes=1')[:3] == (None, 1, None)
  monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '1')
  assert started()[3] is None
  monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '8')
  assert started()[0] == 'localhost:61445'
  monkeypatch.setenv('OMPI_COMM_WORLD_LOCAL_SIZE', '4')
  monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '0')
  with pytest.raises(InputError, match=r'mpirun runs on gpu-node\.3,.* add --coordinator=.*:61445'):
    started()
  monkeypatch.setenv('PMIX_NAMESPACE', '7')
  with pytest.raises(InputError, match='PMIX_NAMESPACE=7: .*--coordinator=HOST:PORT'):
    started()
  # Of version 4, which JAX recognises.
  monkeypatch.setenv('OMPI_MCA_orte_hnp_uri', '4.0;tcp://10.0.0.1:1')
  assert started()[:4] == (None, None, None, None)


def test_a_single_process_is_not_given_devices():
  with pytest.raises(InputError, match='--local_device_ids=0,2: is for one of several processes'):
    with launch.together(started('--num_processes=1', '--local_device_ids=0,2')):
      pass
