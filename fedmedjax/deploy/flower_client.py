"""The site's side of a Flower run: passes each message to the site's process, and its answer back.

Flower starts a new Python process for every message. This module loads neither model nor notes, so
that takes as long as importing Flower. The SuperNode's configuration names the site and the socket:

    flower-supernode ... --node-config 'site="a" socket="/run/fedmedjax/a.sock"'
"""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmedjax.deploy import socket
from fedmedjax.deploy.flower import QUERIES, TRAIN, WHO, failure, named, packed, unpacked

# Most bytes of the site's own answer. The server has the limit that counts.
_LIMIT = 2**31

app = ClientApp()


@app.query(WHO)
def tell_site(message: Message, context: Context) -> Message:
  """The name of the site that this SuperNode stands for."""
  return Message(named(str(context.node_config.get('site', ''))), reply_to=message)


def relay(message: Message, context: Context) -> Message:
  """The answer of the site's process."""
  return Message(
    _answer(message.content, context, message.metadata.ttl), reply_to=message)


for _kind in QUERIES:
  app.query(_kind)(relay)
app.train(TRAIN)(relay)


def _answer(content: RecordDict, context: Context, seconds: float) -> RecordDict:
  path = context.node_config.get('socket')
  if not path:
    return failure('its SuperNode was started without socket="..." in --node-config')
  try:
    return packed(socket.ask(str(path), unpacked(content), _LIMIT, seconds))
  except OSError as error:
    return failure(str(error) or type(error).__name__)
