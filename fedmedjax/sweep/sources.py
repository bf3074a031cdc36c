"""What runs of a sweep share: notes and models, read once, and programs, compiled once."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.traced import numbers_of
from fedmedjax.experiment.types import Data, Study
from fedmedjax.runtime.progress import Reporter
from fedmedjax.sweep.batches import programs
from fedmedjax.sweep.runs import Run
from fedmedjax.train import run_axis
from fedmedjax.train.fingerprint import STARTING, fingerprint, own_checksums, starting_adapter
from fedmedjax.train.run_axis import Program, Shapes


class _Notes(NamedTuple):
  data: Data
  inputs: dict   # their fingerprint, without parts of a run's own


class Sources:
  """Notes by what they depend on, kept until the last run that needs them has ended."""

  def __init__(self, runs: Iterable[Run], reporter: Reporter):
    self._reporter, self._lock = reporter, threading.Lock()
    self._waiting = Counter(run.data for run in runs)
    self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
    self._held: dict[str, _Notes] = {}
    self._bases: dict[str, Any] = {}

  def notes(self, run: Run) -> Data:
    """Its notes and model; raises InputError as `load_data` does."""
    return self._of(run).data

  def inputs(self, run: Run) -> dict:
    """The fingerprint of its inputs: what it has of its own is not another run's."""
    shared = {group: files for group, files in self._of(run).inputs.items() if group != STARTING}
    return shared | starting_adapter(run.config) | own_checksums(own_parts(run.values))

  def _of(self, run: Run) -> _Notes:
    key = run.data
    with self._lock:
      lock = self._locks[key]
    with lock:
      if key not in self._held:
        model = repr([
          (name, value) for name, value in sorted(run.values.items())
          if name.startswith(('model.', 'mesh.'))])
        lora = run.config.fed.learner == 'lora'
        data = load_data(
          run.config, self._reporter, self._bases.get(model) if lora else None,
          own_parts(run.values))
        if lora:
          self._bases.setdefault(model, data.base)
        self._held[key] = _Notes(data, fingerprint(run.config, data, {}))
      return self._held[key]

  def ended(self, run: Run) -> None:
    """Lets go of its notes where no other run needs them."""
    with self._lock:
      self._waiting[run.data] -= 1
      if self._waiting[run.data] <= 0:
        self._held.pop(run.data, None)


class Prepared(NamedTuple):
  """A run that is ready to start."""

  run: Run
  study: Study
  shapes: Shapes


def prepared(run: Run, sources: Sources) -> Prepared:
  """Raises InputError as `prepare` does."""
  study = prepare(run.config, sources.notes(run))
  return Prepared(run, study, run_axis.shapes_of(study))


def alike(members: Sequence[Prepared]) -> list[list[Prepared]]:
  """The members in groups whose arrays are padded to one shape."""
  groups: list[list[Prepared]] = []
  for one in sorted(members, key=lambda one: -one.shapes.numbers):
    for group in groups:
      first = group[0]
      if (run_axis.kin(one.study) == run_axis.kin(first.study)
          and run_axis.same_base(one.study, first.study)
          and not any(run_axis.wasteful(each.shapes, run_axis.common(
            [first.shapes, one.shapes])) for each in (*group, one))):
        group.append(one)
        break
    else:
      groups.append([one])
  order = {one.run.name: place for place, one in enumerate(members)}
  return [sorted(group, key=lambda one: order[one.run.name]) for group in groups]


class Programs:
  """The compiled programs of a sweep, each made once."""

  def __init__(self, runs: Iterable[Run], at_once: int):
    """`at_once`: see `run_axis.program`."""
    self._numbers = {
      key: () if own_parts(same[0].values) else numbers_of(map(flat, same))
      for key, same in programs(runs).items()}
    self._at_once, self._lock = at_once, threading.Lock()
    self._made: dict[tuple, Program] = {}
    self._shapes: dict[tuple, list[Shapes]] = defaultdict(list)

  def numbers(self, run: Run) -> tuple[str, ...]:
    return self._numbers[run.program]

  def of(self, group: Sequence[Prepared], choose: Callable[[Study], Execution]) -> tuple[
      Program, Shapes]:
    """The program of a group of `alike`, and the shapes that its arrays are padded to.

    Those of an earlier group are taken where they hold, so that nothing is compiled anew.
    """
    first = group[0]
    key = first.run.program, run_axis.kin(first.study)
    whole = run_axis.common([one.shapes for one in group])
    with self._lock:
      fitting = [
        shapes for shapes in self._shapes[key] if run_axis.holds(shapes, whole)
        and not any(run_axis.wasteful(one.shapes, shapes) for one in group)]
      if fitting:
        whole = min(fitting, key=lambda shapes: shapes.numbers)
      else:
        self._shapes[key].append(whole)
      if key not in self._made:
        self._made[key] = run_axis.program(
          first.study, choose(first.study), self.numbers(first.run), self._at_once)
      return self._made[key], whole


def flat(run: Run) -> Mapping[str, Any]:
  """Its flat configuration, in which an infinite number is one; JSON has none."""
  return leaves(run.config.to_dict())
