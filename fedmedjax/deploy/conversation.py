"""What the server asks its sites and reads of their answers, with the bytes of each tensor."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.deploy import messages
from fedmedjax.deploy.memory import LACKS
from fedmedjax.deploy.messages import Fault, Message
from fedmedjax.deploy.service import message_limit
from fedmedjax.deploy.transport import Absent, Transport
from fedmedjax.experiment.deployed import Agreed
from fedmedjax.fed import wire
from fedmedjax.fed.ledger import Row


class Question(NamedTuple):
  """What one site is asked."""

  fields: Mapping[str, Any] = {}
  arrays: Mapping[str, np.ndarray] = {}


class Missing(NamedTuple):
  """A site has no part in this; `lacks` = it has lost what it was sent, and wants it once more."""

  reason: str
  lacks: bool = False


class Traffic(NamedTuple):
  """Bytes of one site's message and its answer in a round, one entry a tensor or a frame."""

  row: Row
  frame_down: int = 0
  frame_up: int = 0


class Encoded(Mapping[str, bytes]):
  """{site: the bytes of its message}, made when they are asked for and not kept.

  A message to a judge holds the adapters of a whole cohort: one is in memory at a time.
  """

  def __init__(self, asked: Mapping[str, Message]):
    self._asked = asked
    self.lengths: dict[str, int] = {}  # of those that were made

  def __getitem__(self, site: str) -> bytes:
    data = messages.encode(self._asked[site])
    self.lengths[site] = len(data)
    return data

  def __iter__(self) -> Iterator[str]:
    return iter(self._asked)

  def __len__(self) -> int:
    return len(self._asked)


class Conversation:
  """Asks sites over a transport; whatever they answer, nothing is raised."""

  def __init__(
    self, agreed: Agreed, transport: Transport, deadline: float,
    known: Callable[[str], str | None],
  ):
    """
    Args:
      agreed: of the study.
      transport: carries the bytes.
      deadline: seconds that the server waits for the answers to a message.
      known: site -> the number of its notes, as it first said; None = not heard of yet.
    """
    self._agreed, self._transport, self._deadline = agreed, transport, deadline
    self._known, self._limit = known, message_limit(agreed)
    self.traffic: list[Traffic] = []

  def ask(
    self, kind: str, number: int, questions: Mapping[int, Question], travelling: tuple = (),
    longest: float | None = None,
  ) -> dict[int, Message | Missing]:
    """{number of the site: question} -> what each answers; see `service.py` for the kinds.

    Args:
      kind: of `Message`.
      number: of the round, from 0; -1 = before the first.
      questions: what each site is asked.
      travelling: paths of the leaves whose update comes back.
      longest: seconds to wait, where the deadline is later.
    """
    names = self._agreed.names
    asked = {
      names[site]: self._message(kind, number, names[site], question)
      for site, question in questions.items()}
    encoded = Encoded(asked)
    seconds = self._deadline if longest is None else min(self._deadline, longest)
    answers = self._transport.exchange(encoded, seconds) if asked else {}
    found: dict[int, Message | Missing] = {}
    for site in questions:
      name = names[site]
      answer = answers.get(name, Absent('was not asked by the transport'))
      found[site] = read = self._read(asked[name], answer)
      self._count(asked[name], encoded.lengths.get(name), read, answer, travelling)
    return found

  def _message(self, kind: str, number: int, site: str, question: Question) -> Message:
    """The nonce is of the content: asked again after a restart, it is the same message."""
    content = hashlib.sha256(json.dumps(
      [self._agreed.identity, kind, number, site, question.fields], sort_keys=True).encode())
    for name, array in sorted(question.arrays.items()):
      content.update(name.encode())
      content.update(np.ascontiguousarray(array).data)
    return Message(kind, self._agreed.identity, site, number, content.hexdigest()[:32],
                   question.fields, question.arrays)

  def _read(self, asked: Message, answer: bytes | Absent) -> Message | Missing:
    if isinstance(answer, Absent):
      return Missing(messages.shown(answer.reason))
    message = messages.decode(answer, self._limit)
    if isinstance(message, Fault):
      return Missing(f'sent {message.reason}')
    if message.study != asked.study:
      return Missing('answers for another study')
    if message.kind == 'error':
      return Missing(
        f'says: {messages.shown(message.fields.get("reason")) or "nothing"}',
        message.fields.get('code') == LACKS)
    if (message.kind, message.site, message.round, message.nonce) != (
        asked.kind, asked.site, asked.round, asked.nonce):
      return Missing(
        f'answers another message ({message.kind[:40]!r} of round {message.round + 1})')
    known = self._known(asked.site)
    if known is not None and message.fields.get('data') != known:
      return Missing('returned with other notes than it began with')
    return message

  def _count(
    self, asked: Message, sent: int | None, read: Message | Missing, answer: bytes | Absent,
    travelling: tuple,
  ) -> None:
    """Adds the bytes of each tensor, and of the two frames, to `traffic`.

    `sent` are the bytes of the whole message; None = it was never sent.
    """
    if sent is None:
      return
    if asked.kind not in ('local_round', 'validate'):
      return  # What is said before the first round and after the last is not charged.
    down = _by_tensor(asked.tensors)
    up = _by_tensor(read.tensors) if isinstance(read, Message) else {}
    for kind, tensor in down | up:
      coded = kind == 'adapter' and tensor in travelling
      codec = str((up.get((kind, tensor)) or down[kind, tensor])[1]) if kind == 'header' else (
        wire.codec_name(self._agreed.wire, kind if coded else ''))
      bytes_down, bytes_up = (
        one.get((kind, tensor), (0, ''))[0] for one in (down, up))
      self.traffic.append(Traffic(
        Row(asked.round + 1, asked.site, kind, tensor, codec, bytes_down, bytes_up)))
    framed = len(answer) - read.payload if isinstance(read, Message) else 0
    self.traffic.append(Traffic(
      Row(asked.round + 1, asked.site, 'message', asked.kind, '', 0, 0),
      sent - asked.payload, framed))


def _by_tensor(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, str], tuple[int, Any]]:
  """{(kind, tensor): (bytes of its arrays, dtype)}."""
  found: dict[tuple[str, str], tuple[int, Any]] = {}
  for name, array in arrays.items():
    key = wire.key_of(name)
    found[key] = found.get(key, (0, ''))[0] + array.nbytes, array.dtype
  return found


def ledger_lines(traffic: list[Traffic]) -> list[str]:
  """Lines of ledger.csv, without its head: one a tensor, the bytes of equal ones added."""
  totals: dict[tuple, np.ndarray] = {}
  for entry in traffic:
    key = entry.row[:5]
    bytes_ = np.asarray([entry.row.down, entry.row.up, entry.frame_down, entry.frame_up])
    totals[key] = totals.get(key, 0) + bytes_
  return [','.join(map(str, (*key, *total.tolist()))) for key, total in totals.items()]


HEAD = ','.join((*Row._fields, 'frame_down', 'frame_up'))
