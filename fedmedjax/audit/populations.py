"""Which examples of a run were trained on, and which it never saw."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.audit.losses import Group, Reader
from fedmedjax.data.canaries import is_canary
from fedmedjax.data.site import SiteData
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.types import Example

# (number of the site, number of its task, number of the example among those of training)
Place = tuple[int, int, int]


class Kin(NamedTuple):
  """Examples of one task at one site that were all trained on, or all not."""

  site: str
  member: bool
  sources: tuple[str, ...]  # n
  group: Group              # n token sequences


def trained_on(study: Study, lines: Iterable[dict]) -> set[Place]:
  """The examples that steps of the run held.

  Args:
    study: the run, prepared again.
    lines: of its metrics.jsonl.
  """
  names, seen = participant_names(study), set()
  for line in lines:
    steps = study.schedule.plan[line['round'] - 1]
    for name, count in zip(line['sites'], line['steps'], strict=True):
      for step in steps[names.index(name)][:count]:
        seen |= {(step.site, step.task, int(one)) for one in step.members}
  return seen


def members(
  study: Study, reader: Reader, seen: set[Place] | None, number: int, most: int, seed: int
) -> list[Kin]:
  """The examples that the site of this number was trained on, without canaries.

  Args:
    study, reader: of the run.
    seen: of `trained_on`; None = all, where steps were drawn at random.
    number: of the site.
    most: examples of each task, at random; 0 = all.
    seed: of that draw.

  Raises:
    ValueError: the examples are not those that were trained on.
  """
  site, found = study.data.sites[number], []
  for task, part in enumerate(site.tasks):
    windows = [(example, window) for example, own in zip(
      part.solved, reader.encode(part, part.solved), strict=True) for window in own]
    if len(windows) != len(part.train):
      raise ValueError(f'{site.name}: {len(windows)} examples, {len(part.train)} trained on')
    found.append(_kin(site, part, True, [
      pair for place, pair in enumerate(windows) if not is_canary(pair[0])
      and (seen is None or (number, task, place) in seen)], most, seed))
  return found


def others(reader: Reader, site: SiteData, most: int, seed: int) -> list[Kin]:
  """The test examples of a site, read as if they were trained on; see `members`."""
  return [
    _kin(site, part, False, [
      (example, window) for example, own in zip(
        part.test, reader.encode(part, part.test), strict=True) for window in own], most, seed)
    for part in site.tasks]


def _kin(
  site: SiteData, part, member: bool, windows: Sequence[tuple[Example, tuple]], most: int, seed: int
) -> Kin:
  order = np.random.default_rng((seed, int(member))).permutation(len(windows))
  kept = [windows[i] for i in np.sort(order[:most or None])]
  return Kin(
    site.name, member,
    tuple(f'{site.name}/{example.source or example.document}' for example, _ in kept),
    Group(part, tuple(window for _, window in kept)))


def found_by(name: str, sites: Sequence[SiteData]) -> list[SiteData]:
  """The tested site of this name, else all: what a site's own adapter never saw."""
  return [site for site in sites if site.name == name] or list(sites)
