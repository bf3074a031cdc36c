"""Which runs are trained together: batches of runs of one program, and what is kept of them."""

import hashlib
import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedmedjax.fed.types import FedState
from fedmedjax.store import checkpoint, files
from fedmedjax.sweep.runs import Run
from fedmedjax.train.loop import CHECKPOINTS

FOLDER, FILE = 'groups', 'batch.json'


class Batch(NamedTuple):
  """Runs that are trained together, in the order of their axis [E]."""

  runs: tuple[Run, ...]
  size: int      # E; places beyond the runs take no steps, so that batches share a program
  folder: Path   # of its checkpoints while it is trained
  # Runs whose places are idle: they ended before its checkpoint, and are not gone on with here.
  closed: frozenset[str] = frozenset()

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(run.name for run in self.runs)

  @property
  def begun(self) -> bool:
    """Whether a checkpoint of it is kept."""
    return (self.folder / FILE).exists()


def make_batches(
  pending: Sequence[Run], known: Mapping[str, Run], workdir: Path, size: int, parallel: int
) -> list[Batch]:
  """The batches of all runs that are left, those that were begun first.

  Runs of one program are split evenly into as few batches as `size` allows. Batches with the same
  notes follow each other. A run that failed in a batch is tried again in another, from its start.

  Args:
    pending: runs that are left to train, of programs.
    known: all runs of this call by name, finished ones among them.
    workdir: of the sweep.
    size: the most runs of a batch.
    parallel: batches that are trained at the same time; there are as many at least, if possible.
  """
  begun = _begun({run.name for run in pending}, known, workdir)
  within = {name for batch in begun for name in set(batch.names) - batch.closed}
  by_program: dict[str, list[Run]] = defaultdict(list)
  for run in pending:
    if run.name not in within:
      by_program[run.program].append(run)
  left = sum(map(len, by_program.values()))
  most = max(1, min(size, math.ceil(left / parallel)))
  order = {key: place for place, key in enumerate(
    dict.fromkeys(run.data for run in pending))}
  new: list[tuple[tuple[Run, ...], int]] = []
  for runs in by_program.values():
    runs.sort(key=lambda run: order[run.data])
    each = math.ceil(len(runs) / math.ceil(len(runs) / most))
    new += [(tuple(runs[start:start + each]), each) for start in range(0, len(runs), each)]
  new.sort(key=lambda one: order[one[0][0].data])
  return begun + [of_runs(chosen, width, workdir) for chosen, width in new]


def halves(runs: Sequence[Run], workdir: Path) -> list[Batch]:
  """Two batches of half the runs each, where a batch of them finds no memory."""
  half = math.ceil(len(runs) / 2)
  return [of_runs(tuple(part), half, workdir) for part in (runs[:half], runs[half:]) if part]


def of_runs(runs: tuple[Run, ...], size: int, workdir: Path) -> Batch:
  """A batch of these runs, with room for `size`."""
  text = '\n'.join([str(size), *(run.name for run in runs)])
  return Batch(
    runs, size, workdir / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16])


def _begun(pending: set[str], known: Mapping[str, Run], workdir: Path) -> list[Batch]:
  """Batches of an earlier call whose runs are all of this one, some of them unfinished."""
  found: list[Batch] = []
  within: set[str] = set()
  for path in sorted((workdir / FOLDER).glob(f'*/{FILE}')):
    kept = files.read_json(path)
    names, closed = kept['runs'], frozenset(kept.get('closed', ()))
    live = set(names) - closed
    if not set(names) <= known.keys():
      continue
    if not live & pending:
      remove(Batch((), 0, path.parent))
    elif not live & within:
      within |= live
      found.append(Batch(tuple(known[name] for name in names), kept['size'], path.parent, closed))
  return found


def keep(batch: Batch, closed: Iterable[str]) -> None:
  """Notes which runs its checkpoints are of, and which of them are not gone on with in it.

  It is called before each checkpoint, so that a run is never gone on with in two batches.
  """
  files.write_json(batch.folder / FILE, {
    'runs': list(batch.names), 'size': batch.size, 'closed': sorted(batch.closed | set(closed))})


def narrowed(
  batch: Batch, runs: Sequence[Run], states: FedState, kept: Sequence[dict]
) -> tuple[Batch, FedState]:
  """A batch of some of another's runs alone, whose checkpoint takes the place of the other's.

  Args:
    batch: of E places.
    runs: the R <= E of its runs that go on.
    states: of its places, [E, ...].
    kept: its rounds.

  Returns:
    the smaller batch and its states [R, ...].
  """
  small = of_runs(tuple(runs), len(runs), batch.folder.parent.parent)
  places = np.array([batch.names.index(name) for name in small.names])
  states = jax.tree.map(lambda leaf: leaf[places], states)
  checkpoint.save(small.folder / CHECKPOINTS, checkpoint.host_copy(states), kept, 1)
  keep(small, ())
  remove(batch)
  return small, states


def remove(batch: Batch) -> None:
  """Removes what was kept of a batch whose runs have ended."""
  shutil.rmtree(batch.folder, ignore_errors=True)
  folder = batch.folder.parent
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()


def programs(runs: Iterable[Run]) -> dict[str, list[Run]]:
  """Runs by their program; '' are those that are trained alone."""
  found: dict[str, list[Run]] = defaultdict(list)
  for run in runs:
    found[run.program].append(run)
  return dict(found)
