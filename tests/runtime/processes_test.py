"""What processes exchange, by a service that is a dict; who is missing; how they are started."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from absl import flags
from jax.errors import JaxRuntimeError

from fedmedjax.experiment.reading import Reading, check_read_alike
from fedmedjax.runtime import launch
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

  def key_value_delete(self, prefix):
    with self.changed:
      self.entries = {k: v for k, v in self.entries.items() if not k.startswith(prefix)}


def together(calls, deadline=20.0):
  """What each call gives, one a process: call(Processes)."""
  service = Service()
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
    assert isinstance(error, RuntimeError) and 'waited 0.5 s for process 2;' in str(error)
  results, _ = together([lambda p: p.meet('round 1'), lambda p: p.meet('round 2')])
  assert "process 1 is at 'round 2', this one at 'round 1'" in str(results[0])


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
  assert single.deadline == 1800
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


def test_a_single_process_is_not_given_devices():
  with pytest.raises(InputError, match='--local_device_ids=0,2: is for one of several processes'):
    with launch.together(started('--num_processes=1', '--local_device_ids=0,2')):
      pass
