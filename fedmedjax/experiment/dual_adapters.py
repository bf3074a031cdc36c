"""A trainable with a second adapter of each site's own, see `fed/dual.py`."""

from collections.abc import Callable
from functools import partial

import jax

from fedmedjax import tree
from fedmedjax.experiment.types import DeviceShare, Trainable
from fedmedjax.fed.dual import side_by_side, two_adapters
from fedmedjax.fed.types import LossFn

# Folded into the seed, so that no other use of it has the same draws.
_USE = 0xD0A1


def with_local_adapter(trainable: Trainable, rank: int, seed: int) -> Trainable:
  """The same with two adapters, of which the model sees the sum.

  Args:
    trainable: what a site's adapter is answered with and saved by stays: it is one, but wider.
    rank: of the local adapter; 0 = there is none, and nothing changes.
    seed: of its A.
  """
  if not rank:
    return trainable
  key = jax.random.fold_in(jax.random.key(seed), _USE)
  return trainable._replace(
    loss_fn=partial(_of_two, trainable.loss_fn),
    adapter=two_adapters(trainable.adapter, rank, key),
    share=trainable.share and _share_of_two(trainable.share, rank, key))


def _of_two(loss_fn: Callable[[str], LossFn], remat: str) -> LossFn:
  """The loss of the sum."""
  loss = loss_fn(remat)
  return lambda adapter, base, batch: loss(side_by_side(adapter), base, batch)


def _share_of_two(share: DeviceShare, rank: int, key: jax.Array) -> DeviceShare:
  def two(adapter):
    return jax.eval_shape(lambda adapter: two_adapters(adapter, rank, key), adapter)

  both, work = two(share.adapter), share.work
  return share._replace(
    loss_fn=partial(_of_two, share.loss_fn), adapter=both, sent=tree.num_bytes(both),
    work=work and (partial(_of_two, work[0]), two(work[1]), work[2]))
