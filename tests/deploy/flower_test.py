"""Flower as the carrier of messages, against a grid that is made here: no process, no network."""

import socket as sockets
import threading
from types import SimpleNamespace

import pytest

flwr = pytest.importorskip('flwr.app', reason='Flower is not installed: the extra deploy')

from fedmedjax.deploy import (  # noqa: E402
  flower,
  flower_client,
  flower_server,
  messages,
  socket,
)
from fedmedjax.deploy.messages import Message  # noqa: E402
from fedmedjax.deploy.transport import Absent  # noqa: E402
from fedmedjax.types import InputError  # noqa: E402


def message(site: str, kind: str = 'local_round') -> bytes:
  return messages.encode(Message(kind, 'study', site, 0, 'nonce'))


class Grid:
  """SuperNodes that answer at once; `nodes` are {number: (registered name, answer)}.

  An answer is content, an error of Flower's, an exception that reading it raises, or None: never.
  """

  def __init__(self, nodes):
    self.nodes, self.waiting, self.types = nodes, {}, []

  def get_nodes(self):
    return [SimpleNamespace(node_id=node, name=name) for node, (name, _) in self.nodes.items()]

  def push_messages(self, sent):
    ids = []
    for one in sent:
      self.types.append(one.metadata.message_type)
      ids.append(f'm{len(self.types)}')
      self.waiting[ids[-1]] = self.nodes[one.metadata.dst_node_id][1](one)
    return ids

  def pull_messages(self, ids):
    answer = self.waiting.get(ids[0])
    if isinstance(answer, Exception):
      raise answer
    if answer is None:
      return []
    del self.waiting[ids[0]]
    failed = isinstance(answer, flwr.Error)
    return [SimpleNamespace(has_error=lambda: failed, content=answer, error=answer)]


def echo(one):
  return flower.packed(flower.unpacked(one.content))


def calls_itself(name, then=echo):
  """A node that was not registered under a name, and says one."""
  return '', lambda one: (
    flower.named(name) if one.metadata.message_type == f'query.{flower.WHO}' else then(one))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  monkeypatch.setattr(flower, '_POLL', 0.0)
  monkeypatch.setattr(flower, '_PATIENCE', 0.0)


@pytest.fixture(autouse=True)
def within_a_run(monkeypatch):
  """Flower's messages belong to the run of their process, which a ServerApp is told."""
  identity = pytest.importorskip(
    'flwr.supercore.task_identity', reason='Flower before 1.42 asks for none').TaskIdentity
  for name in ('_task_id', '_run_id', '_node_id'):
    monkeypatch.setattr(identity, name, 1)


def test_what_is_packed_is_unpacked():
  """Also bytes that are no message at all, and a frame that claims to be longer than they are."""
  for data in (message('a'), b'', b'\xff' * 20):
    assert flower.unpacked(flower.packed(data)) == data


def test_sites_are_found_by_registered_name_or_by_asking():
  grid = Grid({1: ('a', echo), 2: calls_itself('b')})
  transport, sent = flower.Flower(grid, 10**6), {'a': message('a'), 'b': message('b', 'validate')}
  assert transport.exchange(sent, 5.0) == sent
  assert sorted(grid.types) == ['query.site', 'query.validate', 'train.local_round']
  assert transport.exchange(sent, 5.0) == sent
  assert grid.types.count('query.site') == 1  # it is asked once


def test_each_failure_costs_its_site_alone():
  nodes = {
    1: ('good', echo), 2: ('late', lambda one: None),
    3: ('dead', lambda one: flower.failure('/x.sock: no site\nserves there')),
    4: ('broken', lambda one: ValueError('no such chunk')),
    5: ('long', lambda one: flower.packed(b'x' * 2000)),
    6: ('odd', lambda one: flwr.RecordDict()), 7: ('twin', echo), 8: ('twin', echo)}
  names = ['good', 'late', 'dead', 'broken', 'long', 'odd', 'twin']
  found = flower.Flower(Grid(nodes), 1000).exchange({name: message(name) for name in names}, 0.2)
  assert found.pop('good') == message('good')
  assert found == {
    'late': Absent('late'), 'dead': Absent('gave no answer: /x.sock: no site serves there'),
    'broken': Absent('gave no answer: Flower cannot read its answer: no such chunk'),
    'long': Absent('sent an answer of 2000 bytes, 1000 are allowed'),
    'odd': Absent('sent what is no message'),
    'twin': Absent('is what two SuperNodes say that they are')}


def test_a_registered_name_is_not_taken_by_one_that_only_says_it():
  grid = Grid({1: ('a', echo), 2: calls_itself('a', then=lambda one: flower.failure('thief'))})
  transport = flower.Flower(grid, 10**6)
  for _ in range(3):
    assert transport.exchange({'a': message('a')}, 5.0) == {'a': message('a')}


def test_the_first_exchange_waits_for_a_site_and_later_ones_hardly():
  grid = Grid({1: ('a', echo), 2: ('b', echo)})
  transport, sent = flower.Flower(grid, 10**6), {'a': message('a'), 'b': message('b')}
  looks = iter(range(100))
  grid.get_nodes = lambda: Grid.get_nodes(grid)[:2 if next(looks) > 3 else 1]
  assert transport.exchange(sent, 60.0) == sent  # b comes at the fifth look
  del grid.nodes[2]
  assert transport.exchange(sent, 600.0)['b'] == Absent('has no SuperNode at the SuperLink')


def test_a_message_that_the_superlink_threw_away_is_sent_again(monkeypatch):
  """As after its restart, when a SuperNode's sign of life is late. Other errors are final."""
  monkeypatch.setattr(flower, '_PATIENCE', 60.0)
  unheard, crashed = flwr.Error(5, 'no\nheartbeat'), flwr.Error(8, 'crashed')
  first = iter([unheard, flwr.Error(3, 'deleted')])
  grid = Grid({
    1: ('a', lambda one: next(first, None) or echo(one)), 2: ('b', lambda one: crashed)})
  sent = {name: message(name) for name in 'ab'}
  found = flower.Flower(grid, 10**6).exchange(sent, 600.0)
  assert found == {
    'a': message('a'), 'b': Absent('gave no answer: Flower says (code 8): crashed')}
  assert grid.types.count('train.local_round') == 4
  # One that stays away is waited for no longer than any other.
  monkeypatch.setattr(flower, '_PATIENCE', 0.0)
  grid = Grid({1: ('a', lambda one: next(answers))})
  answers = iter([flower.packed(sent['a']), unheard])
  transport = flower.Flower(grid, 10**6)
  assert transport.exchange({'a': sent['a']}, 600.0) == {'a': sent['a']}
  grid.get_nodes = lambda: Grid.get_nodes(grid) if len(grid.types) < 2 else []
  assert transport.exchange({'a': sent['a']}, 600.0) == {
    'a': Absent('gave no answer: Flower says (code 5): no heartbeat')}


@pytest.mark.parametrize('deadline', [float('inf'), float('nan'), 0, '9', True, None])
def test_a_runs_deadline_is_checked_before_anything_else(tmp_path, deadline):
  with pytest.raises(InputError, match='the run configuration: deadline=.*: seconds from 1 to'):
    flower_server._serve(tmp_path / 'none.py', None, {'workdir': 'x', 'deadline': deadline})


def test_the_relay_says_what_is_wrong_with_the_socket(tmp_path):
  def asked(patience=0.0, **config):
    one = SimpleNamespace(
      content=flower.packed(message('a')), metadata=SimpleNamespace(ttl=1.0))
    return flower_client._answer(one.content, SimpleNamespace(node_config=config), 5.0, patience)

  assert 'without socket=' in asked()['failure']['reason']
  path = tmp_path / 'a.sock'
  assert asked(socket=str(path))['failure']['reason'] == f'{path}: no site serves there'
  # A process that comes a little later is waited for, also where another has left its socket.
  with sockets.socket(sockets.AF_UNIX) as dead:
    dead.bind(str(path))
  over = threading.Event()
  server = threading.Timer(0.2, socket.serve, (path, bytes.upper, 10**4, over.is_set))
  server.start()
  answer = flower.unpacked(asked(patience=10.0, socket=str(path)))
  over.set()
  server.join()
  assert answer == message('a').upper()
