"""Notes dealt out by the entity types in them: sites of unlike mixes of types."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.data.statistics import divergence
from fedmedjax.types import Document

_STAGES = 200  # of shuffling, among which the wanted one is found


def type_counts(notes: Sequence[Document], types: Sequence[str]) -> np.ndarray:
  """The number of entities of each type in each note, i[D, T]."""
  counts = [[sum(span.type == name for span in note.spans) for name in types] for note in notes]
  return np.asarray(counts).reshape(len(notes), len(types))


def by_types(notes, types, sites, strength, rng, room=None) -> np.ndarray:
  """Sites of unlike mixes of entity types and equally many notes, as unlike as `strength` says.

  `room` is how many notes each site gets, i[S], where they are not equally many.

  Where an example has one label and sites draw their mixes from a Dirichlet distribution of
  concentration `strength` (Hsu, Qi and Brown, arXiv:1909.06335), the labels of two examples of a
  site correlate with 1 / (1 + strength): that share of the greatest divergence is left. A note has
  many labels, which come as they are: drawn mixes cannot be met, and the notes nearest to them are
  not the more unlike the smaller the strength is. So the notes are put in as unlike groups as they
  allow (`_unlike`) and shuffled, one after the other, until 1 / (1 + strength) is left of the
  groups' divergence beyond that of notes dealt at random. A smaller strength never gives sites that
  are more alike.
  """
  counts = type_counts(notes, types)
  # The sites of the groups; where sizes are given, a group has that of its site.
  owners = None if room is None else rng.permutation(sites)
  groups = _unlike(counts, sites, rng, None if room is None else room[owners])
  order = rng.permutation(len(notes))
  # Fisher and Yates: a prefix of the swaps shuffles a part, all of them everything.
  others = rng.integers(np.arange(len(notes)), len(notes))
  stages, dealt = [], (rng.permutation(sites) if owners is None else owners)[groups]
  pause = max(1, len(notes) // _STAGES)
  for done, (note, other) in enumerate(zip(order, order[others], strict=True)):
    if done % pause == 0:
      stages.append(dealt.copy())
    dealt[[note, other]] = dealt[[other, note]]
  stages.append(dealt)
  left = np.array([divergence(_totals(counts, stage, sites)) for stage in stages])
  wanted = left[-1] + (left.max() - left[-1]) / (1 + strength)
  return stages[np.abs(left - wanted).argmin()]


def _totals(counts: np.ndarray, dealt: np.ndarray, sites: int) -> np.ndarray:
  """Entities of each type at each site, i[S, T]."""
  totals = np.zeros((sites, counts.shape[1]), int)
  np.add.at(totals, dealt, counts)
  return totals


def _unlike(
  counts: np.ndarray, groups: int, rng: np.random.Generator, room: np.ndarray | None = None
) -> np.ndarray:
  """Groups of notes whose mixes are alike within a group, i[D]; their sizes differ by one at most.

  The notes with entities are cut in two where they differ most: along the share of the type that
  varies most over entities. Each side is cut again until there are as many groups as wanted. Notes
  without entities say nothing of a mix: every group has its share of them, at random.

  Args:
    counts: i[D, T], entities of each type in each note.
    groups: how many.
    rng: orders notes of equal shares.
    room: i[groups], other sizes of the groups, D together.
  """
  sizes = counts.sum(1)
  shares, some = counts / np.maximum(sizes, 1)[:, None], np.flatnonzero(sizes)
  found, tie = np.zeros(len(counts), int), rng.random(len(counts))
  weight = np.ones(groups, int) if room is None else room
  parts = [(some, 0, groups)]
  while parts:
    inside, first, number = parts.pop()
    if number == 1:
      found[inside] = first
      continue
    weights = sizes[inside] / max(sizes[inside].sum(), 1)
    mean = weights @ shares[inside]
    spread = weights @ (shares[inside] - mean) ** 2
    # The first of equals, as two types always are: roundings, which differ by processor, must not
    # choose.
    axis = np.flatnonzero(spread >= (1 - 1e-9) * spread.max())[0]
    ordered = inside[np.lexsort((tie[inside], shares[inside, axis]))]
    left = number // 2
    ours, whole = weight[first:first + left].sum(), weight[first:first + number].sum()
    cut = round(len(ordered) * ours / whole)
    if room is not None:  # rounding must not give a side more notes than it has room for
      cut = min(max(cut, len(ordered) - (whole - ours)), ours)
    parts += [(ordered[:cut], first, left), (ordered[cut:], first + left, number - left)]
  held = np.bincount(found[some], minlength=groups)
  if room is None:
    room = np.full(groups, len(counts) // groups)
    room[np.argsort(-held, kind='stable')[:len(counts) % groups]] += 1
  found[rng.permutation(np.flatnonzero(sizes == 0))] = np.repeat(np.arange(groups), room - held)
  return found
