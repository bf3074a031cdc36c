"""What a site remembers of a study: what it was sent, and its own part of the method."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.deploy import keeping
from fedmedjax.deploy.keeping import NEVER, Anchor, Keeping, Kept
from fedmedjax.deploy.messages import Message
from fedmedjax.experiment.deployed import SiteStudy
from fedmedjax.fed import apart, wire
from fedmedjax.fed.types import FedState, SiteState, Tree

# Codes of an error: the site lacks what the server supposes it has, and wants all of it; or the
# state that it kept is not of the round that the server means; or else the question is refused.
LACKS, STATE, REFUSED = 'lacks', 'state', 'refused'
# So many of its rounds a site keeps its state of: as many the server may go back.
STATES = 4


class Unanswerable(Exception):
  """The question cannot be answered: (code, reason)."""


class Memory:
  """The values that a site's next round begins with, on disk in a `Keeping`."""

  def __init__(self, study: SiteStudy, kept: Keeping):
    agreed, adapter = study.agreed, study.trainable.adapter
    self._kept, self._agreed, self._index = kept, agreed, study.index
    self._fresh = apart.fresh_site(agreed.parts, adapter)
    ctrl, _ = agreed.parts.rule.init(adapter)
    # Before the server has sent anything.
    self.blank = Anchor(
      jax.tree.map(jnp.zeros_like, adapter), agreed.parts.aggregator.fold(adapter), ctrl)
    self._anchor: Anchor | None = None

  def state_of(self, used: int) -> SiteState:
    """What the site kept of round `used`, the last of its rounds that counted."""
    found = self._fresh if used == NEVER else self._kept.load(_name(used), self._fresh)
    if found is None:
      if self._stateful:
        raise Unanswerable(
          STATE, f'what it kept of round {used + 1} is not there any more, it keeps its last '
          f'{STATES} rounds: give the server a newer copy of its --workdir, or begin a new study '
          'with other folders')
      found = self._fresh
    return jax.tree.map(jnp.asarray, found)

  def received(self, message: Message, changed: int) -> Anchor:
    """The server's values at the start of the round: what came, beside what came before."""
    w, held = self._agreed.wire, whole(message.fields, 'held')
    anchor, since = self.blank, None
    if held != NEVER:
      since, found = self._kept.kept.changed, self._held()
      if held != self._kept.kept.anchor_round or (
          found is None and not self._replaced(changed, since)):
        raise Unanswerable(LACKS, f'it has not what it was sent in round {held + 1}')
      anchor = found or anchor
    ctrl, index = anchor.ctrl, self._index
    adapter = wire.read_plain(
      w, 'adapter', message.tensors, w.lacking(changed, since), index, into=anchor.adapter)
    if w.controlled:
      ctrl = wire.read_plain(
        w, 'control', message.tensors, w.travelling(changed), index, into=ctrl)
    folded = self._columns(message, anchor.folded, since or 0, changed)
    return jax.tree.map(jnp.asarray, Anchor(adapter, folded, ctrl))

  def anchor_of(self, message: Message, changed: int) -> Anchor:
    """The anchor of the round in which the site judges others."""
    kept, anchor = self._kept.kept, self._held()
    if anchor is None or kept.anchor_round != message.round or kept.changed != changed:
      raise Unanswerable(LACKS, f'it has not what it was sent in round {message.round + 1}')
    return jax.tree.map(jnp.asarray, anchor)

  def _held(self) -> Anchor | None:
    if self._anchor is None:
      self._anchor = self._kept.load('anchor', self.blank)
    return self._anchor

  def _columns(self, message: Message, folded, since: int, changed: int):
    """`folded` with the columns that came, those of the rounds `since` to `changed`."""
    width = self._agreed.wire.columns * (changed - since)
    if not width:
      return folded
    first, leaves = self._agreed.wire.columns * since, []
    for path, leaf in zip(tree.paths(folded), jax.tree.leaves(folded), strict=True):
      axis = leaf.ndim - (1 if path.endswith('/a') else 2)
      shape = tuple(width if place == axis else n for place, n in enumerate(leaf.shape))
      came = array_of(message, 'residual', path, (int(np.prod(shape)),), np.float32)
      leaves.append(jax.lax.dynamic_update_slice_in_dim(
        jnp.asarray(leaf), jnp.asarray(came.reshape(shape)), first, axis))
    return jax.tree.unflatten(jax.tree.structure(folded), leaves)

  def columns(self, message: Message, changed: int) -> Tree:
    """All columns that were added to the base in the `changed` rounds so far, as they came."""
    return self._columns(message, self.blank.folded, 0, changed)

  def keep(
    self, question: bytes, number: int, changed: int, used: int, anchor: Anchor,
    after: SiteState, answer: bytes,
  ) -> None:
    """Puts a round on disk: what it was sent, what it led to, and its answer.

    A message may come late or again, or from a server that has gone back. So the state of a later
    round stays, as does the one that the newest round began from.
    """
    kept = self._kept.kept
    begun_from = used if number >= max(kept.rounds, default=NEVER) else kept.begun_from
    others = sorted({*kept.rounds} - {number, used, begun_from}, reverse=True)
    needed = {number, used, begun_from} - {NEVER}
    rounds = tuple(sorted((needed & {*kept.rounds, number}) | {
      *others[:max(0, STATES - len(needed))]}))
    # Large, and of no use on disk where the next message has all of it again.
    lasting = None if self._replaced(changed + 1, changed) else anchor
    self._kept.keep(
      Kept(number, changed, rounds, begun_from, keeping.digest(question)),
      {'anchor': lasting, _name(number): after}, answer,
      [_name(one) for one in rounds if one != number])
    self._anchor = anchor

  def _replaced(self, changed: int, since: int) -> bool:
    """Whether a message brings everything anew that the server has."""
    w = self._agreed.wire
    return w.lacking(changed, since) == w.shared and not w.columns

  @property
  def _stateful(self) -> bool:
    """Whether the method keeps anything at the site; scalars stand for what it does not keep."""
    return any(leaf.ndim > 1 for leaf in jax.tree.leaves(self._fresh))


def _name(number: int) -> str:
  """What the state that round `number` left is kept as."""
  return f'state{number}'


def view(anchor: Anchor, changed: int) -> FedState:
  """What a site sees of the server's state."""
  return FedState(jnp.int32(changed), anchor.adapter, anchor.folded, anchor.ctrl, (), (), ())


def whole(fields: Mapping[str, Any], name: str) -> int:
  """A whole number among the fields of a stranger, at least -1."""
  value = fields.get(name)
  if type(value) is not int or not NEVER <= value < 2**31:
    raise Unanswerable(REFUSED, f'its message says no {name!r}')
  return value


def array_of(message: Message, kind: str, tensor: str, shape: Sequence[int], dtype) -> np.ndarray:
  array = message.tensors.get(wire.name_of(kind, tensor))
  if array is None or array.shape != tuple(shape) or array.dtype != dtype:
    raise Unanswerable(REFUSED, f'its message lacks {kind}/{tensor}, or has it in another shape')
  return array

