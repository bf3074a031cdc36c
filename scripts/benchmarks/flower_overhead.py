"""Rounds of messages through Flower: ours, and an app that returns the same bytes untouched.

    write_app(folder)     # a Flower app with both
    serve(path)           # what stands for a site's process: reads a message, answers its tensors

Nothing is trained. Needs the extra `deploy`.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from fedmedjax.deploy import messages, socket

SITES = ('a', 'b')   # sites
_TENSORS = 100          # in a message, as of some adapter

_PYPROJECT = '''[project]
name = "overhead"
version = "1.0.0"
description = "Messages there and back"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedmedjax"

[tool.flwr.app.components]
serverapp = "overhead.server_app:app"
clientapp = "overhead.client_app:app"

[tool.flwr.app.config]
out = ""
sizes = ""
repeats = 1
'''
_CLIENT = '''from flwr.app import Message
from fedmedjax.deploy import flower_client

app = flower_client.app

@app.train('untouched')
def untouched(message, context):
  return Message(message.content, reply_to=message)
'''
_SERVER = '''from flwr.serverapp import ServerApp
from benchmarks.flower_overhead import measure

app = ServerApp()

@app.main()
def main(grid, context):
  measure(grid, **context.run_config)
'''


def write_app(folder: Path) -> None:
  package = folder / 'overhead'
  package.mkdir(parents=True)
  (folder / 'pyproject.toml').write_text(_PYPROJECT)
  for name, text in {'__init__': '', 'client_app': _CLIENT, 'server_app': _SERVER}.items():
    (package / f'{name}.py').write_text(text)


def message(site: str, size: int, number: int) -> bytes:
  """One of `size` bytes of tensors, other ones for every number."""
  values = np.random.default_rng(number + 1).bytes(size // _TENSORS)
  tensors = {
    f'layer_{index}': np.frombuffer(values, np.uint8) ^ np.uint8(index)
    for index in range(_TENSORS)}
  return messages.encode(
    messages.Message('local_round', 'overhead', site, number, str(number), {}, tensors))


def measure(grid, out: str, sizes: str, repeats: int) -> None:
  """Both in turns, at each size in MB; writes seconds of a round as JSON to the file `out`."""
  from flwr.app import Array, ArrayRecord, Message, RecordDict

  from fedmedjax.deploy.flower import Flower
  transport, found = Flower(grid, 2**31), []
  # So that nobody is asked for a name in what is measured.
  ask(transport, {site: message(site, _TENSORS, -1) for site in SITES})
  nodes = list(grid.get_node_ids())

  def untouched(data: bytes) -> list[bytes]:
    replies = grid.send_and_receive([
      Message(RecordDict({'x': ArrayRecord({
        'x': Array('uint8', (len(data),), 'bytes', data)})}), node, 'train.untouched')
      for node in nodes], timeout=600)
    return [reply.content['x']['x'].data for reply in replies]

  for size in [int(float(word) * 1e6) for word in sizes.split(',')]:
    ours, theirs = [], []
    for repeat in range(repeats):
      sent = {site: message(site, size, repeat) for site in SITES}
      begun = time.monotonic()
      answers = ask(transport, sent)
      ours.append(time.monotonic() - begun)
      if answers != sent:
        raise RuntimeError('the answers are not what was sent')
      data = message('x', size, 1000 + repeat)
      begun = time.monotonic()
      back = untouched(data)
      theirs.append(time.monotonic() - begun)
      if back != [data] * len(nodes):
        raise RuntimeError('Flower does not return what was sent')
    found.append({
      'megabytes': size / 1e6, 'ours_seconds': ours, 'flower_seconds': theirs,
      'beyond_seconds': statistics.median(ours) - statistics.median(theirs)})
  part = Path(out + '.part')
  part.write_text(json.dumps(found))
  part.rename(out)


def ask(transport, sent: dict[str, bytes]) -> dict[str, bytes]:
  answers = transport.exchange(sent, 600.0)
  for site, answer in answers.items():
    if not isinstance(answer, bytes):
      raise RuntimeError(f'{site}: {answer.reason}')
  return answers


def serve(path: str) -> None:
  """Answers on a unix socket with the tensors that came; ends with the process that started it."""
  parent = os.getppid()

  def handle(data: bytes) -> bytes:
    return messages.encode(messages.decode(data, 2**31))

  socket.serve(path, handle, 2**31, stop=lambda: os.getppid() != parent)


if __name__ == '__main__':
  serve(sys.argv[1])
