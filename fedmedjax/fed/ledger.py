"""The ledger: the exact bytes that each site receives and sends, by tensor and codec.

A message consists of the tensors that travel, each as its codec's arrays, and a header. Its length
follows from shapes alone. The protocol that is counted sends a site what it does not have yet:
- Down, in float32, the server's adapter at the start of the site's round. In its first round, every
  shared leaf. Later, the shared leaves that the server has moved in any round since the site's last
  one, whichever sites trained them. Examples: with RoLoRA a site gets the factor of the round
  before; a site that missed rounds gets both factors; FFA-LoRA's A travels once, FedSVD's in every
  round, although no site trains it.
- Down, also, the columns that were folded into the base in every round since the site's last one,
  or since the beginning. The server stores them with one block for each site of a cohort. The
  blocks of sites that sent nothing are zeros, and they travel too.
- A site that breaks down or is late has received its message and is charged for it. Its update is
  lost.
- Up, the update of the leaves that are trained and shared in this round. Where a round trains
  private leaves only, a site receives what it lacks and sends a header.
- Where sites judge each other, down also, in float32, the adapters of the other sites of the cohort
  from which an update has arrived, to every one of these that holds validation notes; of each, the
  leaves that were trained and are shared. Up, a number for each. What the server judges on notes
  that it holds itself does not travel.
- A site of rank r_k receives and sends r_k columns of A and rows of B, in the server's scale.
Names, shapes, ranks and codecs are agreed once, before the first round, and are not charged.
Messages after the last round are not charged either: the delivery of the final adapter, and the
average of leaves that sites kept private (`round.global_adapter`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed.compression import Codec, float32
from fedmedjax.fed.participation import NEVER
from fedmedjax.fed.sharing import moves
from fedmedjax.fed.types import Sharing, Tree
from fedmedjax.tree import path_string

# The fields of a header: name -> (shape, dtype).
Header = dict[str, tuple[tuple[int, ...], str]]

# Sent with the tensors.
HEADER_UP: Header = {
  'round': ((), 'int32'), 'site': ((), 'int32'), 'weight': ((), 'float32'),
  # The fields of metrics.jsonl that a site reports.
  'steps': ((), 'int32'), 'train_loss': ((), 'float32'), 'last_loss': ((), 'float32'),
  'local_norm': ((), 'float32'),
}
HEADER_DOWN: Header = {'round': ((), 'int32'), 'key': ((2,), 'uint32')}
# A site computes this for an aggregator that names it.
START_UP: Header = {'start_loss': ((), 'float32')}
# A judge sends nats per answer of each adapter that it was sent, f32[judged].
PEER_LOSS = 'peer_loss'
# And the validation loss of each coalition, f32[coalitions], which it forms by itself of the
# adapters that it was sent and of the weights of their sites, f32[judged + 1].
COALITION_LOSS, COALITION_WEIGHT = 'coalition_loss', 'coalition_weight'
# Secure aggregation also sends in the clear (`aggregators/secure.py`): an update's largest
# magnitude, and the server's answer. Public keys and secret shares are not simulated and not
# counted.
MASKED_UP: Header = {'largest': ((), 'float32')}
MASKED_DOWN: Header = {'site_weight': ((), 'float32'), 'fixed_point_step': ((), 'float32')}


class Entry(NamedTuple):
  """One array of a message, such as the values f32[n] of a tensor, or its scales or codes."""

  kind: str      # 'adapter', 'control', 'residual', 'judged', 'header'
  tensor: str    # path of the leaf, or the header's field
  codec: str
  part: str      # which of the codec's arrays: 'values', 'scales', 'codes', 'indices', 'mask'
  bytes: int


class Exchange(NamedTuple):
  """The entries of the two messages of one site in a round, for shared leaves [*p].

  Both are empty when nothing is shared.
  """

  down: tuple[Entry, ...]
  up: tuple[Entry, ...]


class Row(NamedTuple):
  """One line of ledger.csv: a tensor [*p] of one site's exchange in one round."""

  round: int     # as `table` is given it; ledger.csv counts from 1
  site: str
  kind: str      # of `Entry`
  tensor: str    # of `Entry`
  codec: str     # name of the codec on the way up
  down: int      # bytes
  up: int        # bytes; 0 when the site sent nothing back


def entries(
  kind: str, tensors: Tree, codec: Codec, keep: Callable[[str], bool] = lambda path: True
) -> tuple[Entry, ...]:
  """The arrays in which leaves [*p] travel, one `Entry` an array.

  Args:
    kind: of `Entry`.
    tensors: arrays or their shapes.
    codec: how each leaf travels.
    keep: which leaves travel, by path.
  """
  return tuple(
    Entry(kind, name, codec.name, part, size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tensors)
    if keep(name := path_string(path))
    for part, size in _arrays(codec, math.prod(leaf.shape)))


@cache
def _arrays(codec: Codec, size: int) -> tuple[tuple[str, int], ...]:
  """(part, bytes) of each array of a tensor of `size` values."""
  flat = jax.ShapeDtypeStruct((size,), jnp.float32)
  seed = jax.ShapeDtypeStruct((), jnp.uint32)
  parts = jax.eval_shape(lambda x, seed: codec.encode(x, jax.random.key(seed)), flat, seed)
  return tuple(
    (path_string(part), array.size * array.dtype.itemsize)
    for part, array in jax.tree_util.tree_leaves_with_path(parts))


def exchange(
  adapter: Tree, sharing: Sharing, codec: Codec, number: int = 0, last: int = NEVER, *,
  control: Tree = (), residual: Tree = (), masked: bool = False, start_loss: bool = False,
  judged: Sequence[tuple[Tree, int]] = (), peers: bool = True, coalitions: int = 0,
) -> Exchange:
  """One site's messages in a round: down the server's values in float32, up the update in `codec`.

  Args:
    adapter: [*p], shapes or arrays of the site's adapter, at its own rank (`ranks.cut`).
    sharing: which leaves are trained and shared.
    codec: how the update travels.
    number: of the round, from 0.
    last: the site's previous round; NEVER = this is its first.
    control: [*p], control variates; those of the leaves that travel are sent both ways in float32.
    residual: a [..., D_in, m], b [..., m, D_out], the m columns that the server has folded into
      the base since the site's previous round, sent down in float32.
    masked: with secure aggregation: an update takes 32 bits a value, and the fields MASKED_UP and
      MASKED_DOWN join the headers.
    start_loss: the aggregator names it, so that the fields START_UP join the header on the way up.
    judged: (adapter [*p], number of such) of the other sites that this one judges, by their rank.
    peers: it sends a number for each of these.
    coalitions: of its sites that it judges, each by a number; 0 = none.
  """
  travels = lambda path: sharing.trained(path, number) and sharing.shared(path)  # noqa: E731

  def lacks(path):
    return sharing.shared(path) and (
      last == NEVER or any(moves(sharing, path, past) for past in range(last, number)))

  if not entries('adapter', adapter, float32(), lambda path: travels(path) or lacks(path)):
    return Exchange((), ())

  def message(codec, keep, header):
    return (
      *entries('adapter', adapter, codec, keep),
      *entries('control', control, float32(), travels),
      *(Entry('header', name, dtype, 'values', math.prod(shape) * jnp.dtype(dtype).itemsize)
        for name, (shape, dtype) in header.items()))

  down = message(float32(), lacks, HEADER_DOWN | (MASKED_DOWN if masked else {}))
  shown = tuple(entry._replace(bytes=count * entry.bytes)
                for other, count in judged for entry in entries(
    'judged', other, float32(),
    # What was not trained in this round a judge has, but for columns that its own rank lacks.
    travels if _same_shapes(other, adapter) else sharing.shared))
  others = sum(count for _, count in judged)
  answers = {PEER_LOSS: ((others,), 'float32')} if judged and peers else {}
  if coalitions:
    answers |= {COALITION_LOSS: ((coalitions,), 'float32')}
    down += (Entry('header', COALITION_WEIGHT, 'float32', 'values', 4 * (others + 1)),)
  up = message(
    float32()._replace(name='masked') if masked else codec, travels,
    HEADER_UP | (MASKED_UP if masked else {}) | (START_UP if start_loss else {}) | answers)
  return Exchange(down + entries('residual', residual, float32()) + shown, up)


def _same_shapes(one: Tree, other: Tree) -> bool:
  return all(x.shape == y.shape for x, y in zip(
    jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def num_bytes(message: Iterable[Entry]) -> int:
  """i[]: the length of a message in bytes."""
  return sum(entry.bytes for entry in message)


def by_tensor(message: Iterable[Entry]) -> dict[tuple[str, str], int]:
  """{(kind, tensor): bytes i[]}, the sum over a tensor's arrays."""
  totals: dict[tuple[str, str], int] = {}
  for entry in message:
    key = entry.kind, entry.tensor
    totals[key] = totals.get(key, 0) + entry.bytes
  return totals


def table(
  rounds: Iterable[tuple[int, Sequence[str], Sequence[Exchange], Sequence[bool]]]
) -> Iterable[Row]:
  """The ledger of a run, one row for each (round, site, tensor).

  Args:
    rounds: (round, names of the cohort's sites [C], their exchanges [C], bool[C] whether the site
      sent its update).
  """
  for number, sites, exchanges, sent in rounds:
    for site, exchanged, back in zip(sites, exchanges, sent, strict=True):
      down, up = by_tensor(exchanged.down), by_tensor(exchanged.up)
      codecs = {
        (entry.kind, entry.tensor): entry.codec for entry in (*exchanged.down, *exchanged.up)}
      for key, codec in codecs.items():
        yield Row(number, site, *key, codec, down.get(key, 0), up.get(key, 0) if back else 0)
