"""Transports: a socket of one's own, files that are carried, and sites in this process."""

import os
import socket as sockets
import stat
import struct
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.deploy import folder as folders
from fedmedjax.deploy import messages, socket
from fedmedjax.deploy.conversation import Conversation, Question
from fedmedjax.deploy.in_process import InProcess
from fedmedjax.deploy.transport import Absent
from fedmedjax.fed import wire
from fedmedjax.fed.compression import float32
from fedmedjax.fed.sharing import everything
from fedmedjax.types import InputError


def wait_until_served(path):
  """Returns once somebody listens; the socket's file is there a moment before that."""
  for _ in range(3000):
    with sockets.socket(sockets.AF_UNIX) as peer:
      if not peer.connect_ex(str(path)):
        return
    time.sleep(0.01)
  pytest.fail(f'{path}: nobody listens')


@pytest.fixture
def served(tmp_path):
  """(path, messages that were handled) of a socket that answers in capital letters."""
  path, heard, over = tmp_path / 'site.sock', [], threading.Event()

  def handle(message):
    heard.append(message)
    return message.upper()

  thread = threading.Thread(target=socket.serve, args=(path, handle, 10, over.is_set))
  thread.start()
  wait_until_served(path)
  yield path, heard
  over.set()
  thread.join()
  assert not path.exists()


def test_a_socket_is_its_users_alone_and_answers_again_and_again(served):
  path, heard = served
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert [socket.ask(path, word, 10, 5.0) for word in (b'one', b'', b'three')] == [
    b'ONE', b'', b'THREE']
  assert heard == [b'one', b'', b'three']


def test_too_long_a_message_is_refused_before_it_is_read(served):
  """The sender says 2^40 bytes and sends none of them: the refusal does not wait for any."""
  path, heard = served
  with sockets.socket(sockets.AF_UNIX) as peer:
    peer.settimeout(5)
    peer.connect(str(path))
    peer.sendall(struct.pack('>Q', 2**40))
    assert peer.recv(8) == b'\xff' * 8
    assert peer.recv(1) == b''
  with pytest.raises(ConnectionError, match='refuses a message of 5000000 bytes'):
    socket.ask(path, bytes(5_000_000), 10, 5.0)
  with pytest.raises(ConnectionError, match='an answer of 5 bytes, 4 are allowed'):
    socket.ask(path, b'abcde', 4, 5.0)
  assert heard == [b'abcde']


def test_who_goes_away_in_the_middle_disturbs_nobody(served):
  path, heard = served
  for sent in (b'', b'\0\0\0', struct.pack('>Q', 5) + b'ab'):
    with sockets.socket(sockets.AF_UNIX) as peer:
      peer.connect(str(path))
      peer.sendall(sent)
  assert socket.ask(path, b'still', 10, 5.0) == b'STILL' and heard == [b'still']


def test_a_site_that_is_not_there_or_works_too_long(tmp_path):
  with pytest.raises(ConnectionError, match='no site serves there'):
    socket.ask(tmp_path / 'none.sock', b'', 10, 1.0)
  over = threading.Event()

  def slow(message):
    over.wait(5)
    return message

  thread = threading.Thread(
    target=socket.serve, args=(tmp_path / 'slow.sock', slow, 10, over.is_set))
  thread.start()
  wait_until_served(tmp_path / 'slow.sock')
  with pytest.raises(TimeoutError):
    socket.ask(tmp_path / 'slow.sock', b'', 10, 0.1)
  over.set()
  thread.join()


def test_a_socket_takes_no_place_that_is_taken(served, tmp_path):
  path, _ = served
  with pytest.raises(InputError, match='another process serves it'):
    socket.serve(path, bytes, 10)
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='a file of that name'):
    socket.serve(tmp_path / 'file', bytes, 10)
  with pytest.raises(InputError, match='too long'):
    socket.serve(tmp_path / ('x' * 120), bytes, 10)
  with pytest.raises(InputError, match='--socket=.*gone/s'):
    socket.serve(tmp_path / 'gone' / 's', bytes, 10)
  with sockets.socket(sockets.AF_UNIX) as dead:
    dead.bind(str(tmp_path / 'dead'))
  socket.serve(tmp_path / 'dead', bytes, 10, lambda: True)
  assert not (tmp_path / 'dead').exists()


def test_files_are_answered_once_and_found_again(tmp_path):
  """The server is late once; when it asks the same again, the answer has come meanwhile."""
  server, asked, heard = folders.Folder(tmp_path, 10), {'icu': b'one', 'ward': b'two'}, []

  def handle(message):
    heard.append(message)
    return message.upper()

  assert server.exchange(asked, 0) == {'icu': Absent('late'), 'ward': Absent('late')}
  for _ in range(2):
    folders.answer_folder(tmp_path, 'icu', handle, 10, lambda: True)
  assert heard == [b'one']
  assert server.exchange(asked, 0) == {'icu': b'ONE', 'ward': Absent('late')}
  assert server.exchange({'icu': b'another'}, 0) == {'icu': Absent('late')}
  assert not list(tmp_path.rglob('*.part'))


def test_files_that_are_too_long_are_not_read(tmp_path):
  server = folders.Folder(tmp_path, 4)
  server.exchange({'icu': b'one'}, 0)
  folders.answer_folder(tmp_path, 'icu', lambda message: b'12345', 10, lambda: True)
  assert server.exchange({'icu': b'one'}, 0) == {
    'icu': Absent('an answer of 5 bytes, 4 are allowed')}
  server.exchange({'icu': b'long'}, 0)
  folders.answer_folder(tmp_path, 'icu', lambda message: b'1', 3, lambda: True)
  assert server.exchange({'icu': b'long'}, 0) == {'icu': Absent('late')}


def test_a_site_says_anew_what_it_is_when_it_begins_again(tmp_path):
  """Its policy may have changed; of what it has answered in a round it knows."""
  asked = [messages.encode(messages.Message(kind, 'study', 'icu', -1, 'n'))
           for kind in ('describe', 'local_round')]
  server, answers = folders.Folder(tmp_path, 10**4), []
  for number in range(2):
    for message in asked:
      server.exchange({'icu': message}, 0)
    folders.answer_folder(
      tmp_path, 'icu', lambda message, number=number: b'%d' % number, 10**4, lambda: True)
    answers.append([server.exchange({'icu': message}, 0)['icu'] for message in asked])
  assert answers == [[b'0', b'0'], [b'1', b'0']]


def test_what_is_no_file_is_no_answer_and_no_link_is_followed(tmp_path):
  server = folders.Folder(tmp_path, 10)
  server.exchange({'icu': b'one'}, 0)
  name, = (path.name for path in (tmp_path / 'outbox' / 'icu').iterdir())
  inbox, other = tmp_path / 'inbox' / 'icu', tmp_path / 'other'
  os.mkfifo(inbox / name)
  assert server.exchange({'icu': b'one'}, 0) == {'icu': Absent('late')}
  (inbox / name).unlink()
  other.write_bytes(b'mine')
  (inbox / f'{name}.part').symlink_to(other)
  folders.answer_folder(tmp_path, 'icu', bytes.upper, 10, lambda: True)
  assert server.exchange({'icu': b'one'}, 0) == {'icu': b'ONE'} and other.read_bytes() == b'mine'


@pytest.mark.parametrize('name', ['', '..', 'a/b'])
def test_names_that_are_no_folders(tmp_path, name):
  with pytest.raises(InputError, match='rename the site'):
    folders.Folder(tmp_path, 4).exchange({name: b'one'}, 0)


def test_a_folder_keeps_the_newest_only(tmp_path):
  server = folders.Folder(tmp_path, 10)
  for number in range(20):
    server.exchange({'icu': b'%d' % number}, 0)
    os.utime(next(iter(sorted((tmp_path / 'outbox' / 'icu').iterdir(),
                              key=lambda path: -path.stat().st_mtime_ns))), (number, number))
  assert len(list((tmp_path / 'outbox' / 'icu').iterdir())) == 16


def test_messages_are_made_one_at_a_time(tmp_path, monkeypatch):
  """Five sites are asked; of their messages one or two are in memory, not five."""
  alive, most = [0], [0]

  class Bytes(bytes):
    def __new__(cls, *words):
      alive[0] += 1
      most[0] = max(most[0], alive[0])
      return super().__new__(cls, *words)

    def __del__(self):
      alive[0] -= 1

  encode = messages.encode
  monkeypatch.setattr(messages, 'encode', lambda message: Bytes(encode(message)))
  agreed = SimpleNamespace(
    names=tuple('abcde'), identity='study', judged=0, wire=wire.Wire(
      {'w': np.zeros(4, np.float32)}, everything(), float32(), (), False, 0),
    parts=SimpleNamespace(aggregator=SimpleNamespace(fold=lambda adapter: ())))
  questions = {site: Question({}, {'query/w:0': np.full(4, site, np.float32)}) for site in range(5)}
  transports = {'handles': InProcess(dict.fromkeys('abcde', lambda data: b'')),
                'files': folders.Folder(tmp_path, 10)}
  for transport in transports.values():
    most[0] = 0
    talk = Conversation(agreed, transport, 0.0, lambda name: None)
    assert len(talk.ask('validate', 0, questions)) == 5
    assert most[0] <= 2
    # A row for the query and one for the frame, of each site.
    assert [(entry.row.kind, entry.row.down) for entry in talk.traffic] == [
      ('query', 16), ('message', 0)] * 5


def test_sites_in_this_process():
  def fails(message):
    raise RuntimeError('no memory\nand more')

  def slow(message):
    time.sleep(0.02)
    return message

  asked = InProcess({'a': bytes.upper, 'b': fails, 'c': slow}).exchange(
    dict.fromkeys('abcd', b'x'), 0.01)
  assert asked == {
    'a': b'X', 'b': Absent('failed: no memory'), 'c': Absent('late'), 'd': Absent('is not here')}
