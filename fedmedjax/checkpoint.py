"""The state of a run on disk, with Orbax: one checkpoint a round, the newest kept."""

from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from fedmedjax.fed.types import FedState


@contextmanager
def checkpoints(folder: Path, keep: int):
  """An Orbax checkpointer for `folder`; pending saves are finished on leaving.

  Args:
    folder: made when absent.
    keep: checkpoints kept, the newest.
  """
  policy = ocp.training.preservation_policies.LatestN(keep)
  always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
  with ocp.training.Checkpointer(
      folder.absolute(), preservation_policy=policy, save_decision_policy=always,
      cleanup_tmp_directories=True) as checkpointer:
    yield checkpointer


def save(checkpointer, state: FedState) -> None:
  """Saves in the background, under the number of rounds done."""
  # A copy, because the next round donates the state while the save may still be reading it.
  checkpointer.save_async(int(state.round), jax.tree.map(jnp.copy, state))


def restore(checkpointer, like: FedState) -> FedState | None:
  """The newest state, or None when nothing was saved.

  Args:
    like: a state of the same run, for structure, shapes, dtypes and placement.
  """
  latest = checkpointer.latest
  if latest is None:
    return None
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
  return checkpointer.load(latest, abstract)
