"""Flower as the carrier of messages: SuperLink at the server, a SuperNode at every site.

A message travels as two arrays of bytes, its frame and its tensors (`messages.frame_bytes`). So
tensors that go to all sites are the same bytes, which Flower stores once; and it sends an array in
pieces, several at a time, but any other value in one.
"""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedmedjax.deploy.messages import frame_bytes, kind
from fedmedjax.deploy.transport import Absent

# Kinds of messages (`messages.Message.kind`) that Flower calls a query; the other is training.
QUERIES = ('describe', 'validate', 'finish', 'score')
TRAIN = 'local_round'
# Asks a SuperNode for which site it stands.
WHO = 'site'
_RECORD, _FRAME, _TENSORS = 'message', 'frame', 'tensors'
_NAME, _FAILURE = 'name', 'failure'
# Seconds between two looks for answers, and that an exchange waits for a site without a SuperNode:
# one that runs tries again after 20 s at the latest when its SuperLink was gone. The first exchange
# waits for it to the deadline.
_POLL, _PATIENCE = 0.2, 30.0
# Flower's errors for a message that the SuperLink has thrown away, since the SuperNode had not been
# heard of for a minute or is gone (`ErrorCode` in flwr.common.constant).
_THROWN_AWAY = (3, 5)
# What Flower raises of an answer that is broken. A SuperLink that is gone is something else.
_BROKEN = (
  ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, DecodeError)


def packed(data: bytes) -> RecordDict:
  """Bytes of a message as Flower carries them."""
  frame = min(frame_bytes(data), len(data))
  parts = {_FRAME: data[:frame], _TENSORS: data[frame:]}
  return RecordDict({_RECORD: ArrayRecord({
    name: Array('uint8', (len(part),), 'safetensors', part) for name, part in parts.items()})})


def unpacked(content: RecordDict) -> bytes:
  """The bytes that `packed` was given; KeyError where it did not make `content`."""
  record = content.array_records[_RECORD]
  return record[_FRAME].data + record[_TENSORS].data


def failure(reason: str) -> RecordDict:
  """What a relay answers when the site's process does not; `reason` as in `Absent`."""
  return RecordDict({_FAILURE: ConfigRecord({'reason': reason})})


def named(site: str) -> RecordDict:
  """What a relay answers to `WHO`."""
  return RecordDict({_NAME: ConfigRecord({'site': site})})


class _ThrownAway(NamedTuple):
  """The SuperLink has thrown a message away; the site can be sent it again."""

  reason: str


class Flower:
  """The transport over a Flower run's `grid`.

  Whose SuperNode is whose: by the name that it was registered under at the SuperLink, which its key
  proves; else it is asked, and believed. Two that say the same name are both left alone, since one
  of them is wrong.
  """

  def __init__(self, grid: Grid, limit: int):
    """grid: of the ServerApp; limit: most bytes of an answer."""
    self._grid, self._limit = grid, limit
    self._names: dict[int, str] = {}   # of SuperNodes, as far as they are known
    self._asked: dict[str, int] = {}   # {message: SuperNode} that has not said its name yet
    self._begins = True

  def exchange(
    self, messages: Mapping[str, bytes], deadline_seconds: float
  ) -> dict[str, bytes | Absent]:
    """Sends to every site whose SuperNode is there or comes, and waits; see `Transport`."""
    until = time.monotonic() + deadline_seconds
    patient = until if self._begins else time.monotonic() + _PATIENCE
    self._begins = False
    waiting, sent, answers = set(messages), {}, {}
    reasons = dict.fromkeys(messages, 'has no SuperNode at the SuperLink')
    while True:
      if waiting:
        nodes, twice = self._sites(until)
        reasons |= {site: 'is what two SuperNodes say that they are' for site in twice & waiting}
        found = sorted(waiting & nodes.keys())
        for site in found:
          # One by one: a message is large, and is only in memory while it is sent.
          identity = self._push(nodes[site], messages[site], until)
          waiting.remove(site)
          if identity is None:
            answers[site] = Absent('cannot be reached: the SuperLink does not take the message')
          else:
            sent[identity] = site
      for identity, answer in self._pulled(sent):
        site = sent.pop(identity)
        if isinstance(answer, _ThrownAway):
          # A site knows a message that it has met, and gives the same answer.
          waiting.add(site)
          reasons[site] = answer.reason
          patient = max(patient, time.monotonic() + _PATIENCE)
        else:
          answers[site] = answer
      now = time.monotonic()
      if now >= until or not sent and not (waiting and now < patient):
        break
      time.sleep(_POLL)
    late = {site: Absent('late') for site in sent.values()}
    missing = {site: Absent(reasons[site]) for site in waiting}
    return late | missing | answers

  def _push(self, node: int, data: bytes, until: float) -> str | None:
    """Sends a message to a SuperNode -> its id; None = not taken."""
    seconds = max(1.0, until - time.monotonic())
    ids = list(self._grid.push_messages([Message(packed(data), node, _type(data), ttl=seconds)]))
    return (ids or [None])[0]

  def _pulled(self, ids: Iterable[str]) -> list[tuple[str, bytes | Absent | _ThrownAway]]:
    """The answers that are there: one by one, since a broken one must not cost the others."""
    return [(identity, _answer(content, self._limit))
            for identity in list(ids) if (content := self._content(identity)) is not None]

  def _content(self, identity: str) -> RecordDict | Error | None:
    """What was answered to a message; None = nothing yet."""
    try:
      for reply in self._grid.pull_messages([identity]):
        return reply.error if reply.has_error() else reply.content
    except _BROKEN as error:
      return failure(f'Flower cannot read its answer: {error}')
    return None

  def _sites(self, until: float) -> tuple[dict[str, int], set[str]]:
    """({site: its SuperNode} of those online, sites that several say they are)."""
    online = {node.node_id: node.name for node in self._grid.get_nodes()}
    registered = {identity: name for identity, name in online.items() if name}
    for identity, node in list(self._asked.items()):
      content = self._content(identity)
      if content is not None:
        del self._asked[identity]
        # One that failed is asked again at the next look.
        if name := _site_name(content):
          self._names[node] = name
      elif node not in online:
        del self._asked[identity]
    unknown = online.keys() - registered.keys() - self._names.keys() - set(self._asked.values())
    ids = self._grid.push_messages([
      Message(RecordDict(), node, f'query.{WHO}', ttl=max(1.0, until - time.monotonic()))
      for node in sorted(unknown)]) if unknown else []
    self._asked |= {
      identity: node for identity, node in zip(ids, sorted(unknown), strict=False) if identity}
    said = {node: self._names[node] for node in online if node in self._names}
    # A name that was registered goes before one that is only said.
    proved = set(registered.values())
    names = registered | {node: name for node, name in said.items() if name not in proved}
    every = list(names.values())
    twice = {name for name in every if every.count(name) > 1}
    return {name: node for node, name in names.items() if name not in twice}, twice


def _type(data: bytes) -> str:
  """The type of a message in Flower, by its kind."""
  name = kind(data)
  return f'train.{name}' if name == TRAIN else f'query.{name}'


def _site_name(content: RecordDict | Error) -> str:
  """What `named` was given; '' where it did not make `content`."""
  return '' if isinstance(content, Error) else str(
    content.config_records.get(_NAME, {}).get('site', ''))


def _answer(content: RecordDict | Error, limit: int) -> bytes | Absent | _ThrownAway:
  """What a relay answered, which may be anything, or Flower in its place."""
  if isinstance(content, Error):
    told = f'gave no answer: Flower says (code {content.code}): {_line(content.reason)}'
    return _ThrownAway(told) if content.code in _THROWN_AWAY else Absent(told)
  if _FAILURE in content.config_records:
    reason = _line(content.config_records[_FAILURE].get('reason', ''))
    return Absent(f'gave no answer: {reason}')
  try:
    data = unpacked(content)
  except KeyError:
    return Absent('sent what is no message')
  if len(data) > limit:
    return Absent(f'sent an answer of {len(data)} bytes, {limit} are allowed')
  return data


def _line(reason: object) -> str:
  return ' '.join(str(reason).split())[:300]
