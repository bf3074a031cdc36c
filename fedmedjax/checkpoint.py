"""The state of a run on disk, with Orbax: one checkpoint a round, the newest kept."""

from contextlib import contextmanager
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from fedmedjax.fed.types import FedState


@contextmanager
def checkpoints(folder: Path, keep: int):
  """An Orbax checkpointer for `folder`.

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
  """Saves under the number of rounds done; on return it is on disk.

  Not in the background: a round that was announced must survive a kill, and the state is donated
  to the next round while a background save would still be reading it.
  """
  checkpointer.save(int(state.round), state)


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


def latest_round(folder: Path) -> int:
  """Rounds in the newest checkpoint of `folder`; 0 when there is none. Writes nothing."""
  if not folder.is_dir():
    return 0
  # Orbax names a finished checkpoint by its step and an unfinished one otherwise.
  return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
