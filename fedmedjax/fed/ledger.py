"""What a round's exchange costs: exact bytes by site, tensor and codec, and the whole model's.

A message is the tensors that travel, each in its codec's arrays, and a header; its length follows
from shapes alone. The protocol that is counted: what a site has not got, it is sent.
- Down, as the site is at the start of its round, in float32: when it first takes part, every
  shared leaf; later those of them that were trained in a round since its last one, whoever's
  update came in. So RoLoRA's site gets the factor of the round before, one that missed rounds both
  factors, and FFA-LoRA's A travels once.
- Down, too: what was folded into the base in every round since the site's last one, or since the
  beginning. The server keeps the columns for that, in one layout a cohort: of sites that sent
  nothing they are zeros, and travel.
- A site that breaks down or is late has received its message all the same. Its update is lost.
- Up: the update of the leaves that are trained and shared in this round.
- A site of rank r_k receives and sends r_k columns of A and rows of B, in the server's scale.
Names, shapes, ranks and codecs are agreed once, before the first round, and are not charged. Nor is
what comes after the last round: the delivery of the final adapter, and the one mean of leaves that
sites kept to themselves.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed.compression import Codec, float32
from fedmedjax.fed.participation import NEVER
from fedmedjax.fed.types import Sharing, Tree
from fedmedjax.tree import path_string

# What goes with the tensors: name -> (shape, dtype).
HEADER_UP = {
  'round': ((), 'int32'), 'site': ((), 'int32'), 'weight': ((), 'float32'),
  # What metrics.jsonl tells of a site.
  'steps': ((), 'int32'), 'train_loss': ((), 'float32'), 'last_loss': ((), 'float32'),
  'local_norm': ((), 'float32'),
}
HEADER_DOWN = {'round': ((), 'int32'), 'key': ((2,), 'uint32')}
# With secure aggregation also, in the clear (`secure.py`): an update's largest magnitude, and the
# server's answer. Public keys and secret shares are not simulated and not counted.
MASKED_UP = {'largest': ((), 'float32')}
MASKED_DOWN = {'site_weight': ((), 'float32'), 'fixed_point_step': ((), 'float32')}


class Entry(NamedTuple):
  """One array of a message."""

  kind: str      # 'adapter', 'control', 'residual', 'header'
  tensor: str    # path of the leaf, or the header's field
  codec: str
  part: str      # which of the codec's arrays: 'values', 'scales', 'codes', 'indices', 'mask'
  bytes: int


class Exchange(NamedTuple):
  """What one site receives and sends in a round; both empty when nothing is shared."""

  down: tuple[Entry, ...]
  up: tuple[Entry, ...]


class Row(NamedTuple):
  """One tensor of one site's exchange in one round, in bytes."""

  round: int
  site: str
  kind: str
  tensor: str
  codec: str     # on the way up
  down: int
  up: int


def entries(
  kind: str, tensors: Tree, codec: Codec, keep: Callable[[str], bool] = lambda path: True
) -> tuple[Entry, ...]:
  """The arrays in which the leaves travel whose path `keep` accepts.

  Args:
    kind: of `Entry`.
    tensors: leaves with a shape.
  """
  return tuple(
    Entry(kind, name, codec.name, part, size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tensors)
    if keep(name := path_string(path))
    for part, size in _arrays(codec, math.prod(leaf.shape)))


@lru_cache(4096)
def _arrays(codec: Codec, size: int) -> tuple[tuple[str, int], ...]:
  """(part, bytes) of a tensor of `size` values."""
  flat = jax.ShapeDtypeStruct((size,), jnp.float32)
  parts = jax.eval_shape(codec.encode, flat, jax.random.key(0))
  return tuple(
    (path_string(part), array.size * array.dtype.itemsize)
    for part, array in jax.tree_util.tree_leaves_with_path(parts))


def exchange(
  adapter: Tree, sharing: Sharing, codec: Codec, number: int = 0, last: int = NEVER, *,
  control: Tree = (), residual: Tree = (), masked: bool = False,
) -> Exchange:
  """One site's messages in a round: down the server's values in float32, up the update in `codec`.

  Args:
    adapter: the site's, at its own rank (`ranks.cut`).
    sharing: which leaves are trained and shared.
    codec: of the update.
    number: of the round, from 0.
    last: round in which the site took part before; NEVER = this is its first.
    control: control variates of the leaves that travel, sent both ways in float32.
    residual: columns that the server has added to the base since, sent down in float32.
    masked: updates are securely aggregated: 32 bits a value, and what is agreed for that.
  """
  travels = lambda path: sharing.trained(path, number) and sharing.shared(path)  # noqa: E731
  if not entries('adapter', adapter, float32(), travels):
    return Exchange((), ())

  def lacks(path):
    return sharing.shared(path) and (
      last == NEVER or any(sharing.trained(path, past) for past in range(last, number)))

  def message(codec, keep, header):
    return (
      *entries('adapter', adapter, codec, keep),
      *entries('control', control, float32(), travels),
      *(Entry('header', name, dtype, 'values', math.prod(shape) * jnp.dtype(dtype).itemsize)
        for name, (shape, dtype) in header.items()))

  down = message(float32(), lacks, HEADER_DOWN | (MASKED_DOWN if masked else {}))
  up = message(
    float32()._replace(name='masked') if masked else codec, travels,
    HEADER_UP | (MASKED_UP if masked else {}))
  return Exchange(down + entries('residual', residual, float32()), up)


def num_bytes(message: Iterable[Entry]) -> int:
  return sum(entry.bytes for entry in message)


def by_tensor(message: Iterable[Entry]) -> dict[tuple[str, str], int]:
  """{(kind, tensor): bytes}, a tensor's arrays together."""
  totals: dict[tuple[str, str], int] = {}
  for entry in message:
    key = entry.kind, entry.tensor
    totals[key] = totals.get(key, 0) + entry.bytes
  return totals


def table(
  rounds: Iterable[tuple[int, Sequence[str], Sequence[Exchange], Sequence[bool]]]
) -> Iterable[Row]:
  """The ledger of a run, a row a (round, site, tensor).

  Args:
    rounds: (round, the cohort's sites, the messages of each, whether it sent something back).
  """
  for number, sites, exchanges, sent in rounds:
    for site, exchanged, back in zip(sites, exchanges, sent, strict=True):
      down, up = by_tensor(exchanged.down), by_tensor(exchanged.up)
      codecs = {
        (entry.kind, entry.tensor): entry.codec for entry in (*exchanged.down, *exchanged.up)}
      for key, codec in codecs.items():
        yield Row(number, site, *key, codec, down.get(key, 0), up.get(key, 0) if back else 0)
