"""The site's side of a Flower run: passes each message to the site's process, and its answer back.

Flower starts a new Python process for every message. This module loads neither model nor notes, so
that takes as long as importing Flower. The SuperNode's configuration names the site and the socket:

    flower-supernode ... --node-config 'site="a" socket="/run/fedmedjax/a.sock"'
"""

import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmedjax.deploy import socket
from fedmedjax.deploy.flower import QUERIES, TRAIN, WHO, failure, named, packed, unpacked

# Seconds that a message waits for the site's process, about what its restart takes. The first kind
# waits as long as the server does: a site loads its model for minutes.
_PATIENCE, _POLL, _FIRST = 30.0, 0.5, 'query.describe'
# Most bytes of the site's own answer. The server has the limit that counts.
_LIMIT = 2**31

app = ClientApp()


@app.query(WHO)
def tell_site(message: Message, context: Context) -> Message:
  """The name of the site that this SuperNode stands for."""
  return Message(named(str(context.node_config.get('site', ''))), reply_to=message)


def relay(message: Message, context: Context) -> Message:
  """The answer of the site's process."""
  seconds = message.metadata.ttl
  patience = seconds if message.metadata.message_type == _FIRST else _PATIENCE
  return Message(
    _answer(message.content, context, seconds, min(patience, seconds)), reply_to=message)


for _kind in QUERIES:
  app.query(_kind)(relay)
app.train(TRAIN)(relay)


def _answer(
  content: RecordDict, context: Context, seconds: float, patience: float
) -> RecordDict:
  """What the site answers within `seconds`, where its process is there after `patience` seconds."""
  until = time.monotonic() + patience
  path = context.node_config.get('socket')
  if not path:
    return failure('its SuperNode was started without socket="..." in --node-config')
  while True:
    try:
      return packed(socket.ask(str(path), unpacked(content), _LIMIT, seconds))
    except OSError as error:
      if not isinstance(error, socket.Nobody) or time.monotonic() >= until:
        return failure(str(error) or type(error).__name__)
    time.sleep(_POLL)
