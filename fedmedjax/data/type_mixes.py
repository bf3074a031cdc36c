"""Notes dealt out by the entity types in them: sites of unlike mixes of types."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.types import Document


def type_counts(notes: Sequence[Document], types: Sequence[str]) -> np.ndarray:
  """The number of entities of each type in each note, i[D, T]."""
  counts = [[sum(span.type == name for span in note.spans) for name in types] for note in notes]
  return np.asarray(counts).reshape(len(notes), len(types))


def by_types(notes, types, sites, strength, rng) -> np.ndarray:
  """Sites of unlike mixes of entity types and equally many notes, as unlike as `strength` says.

  Where an example has one label and sites draw their mixes from a Dirichlet distribution of
  concentration `strength` (Hsu, Qi and Brown, arXiv:1909.06335), the labels of two examples of a
  site correlate with 1 / (1 + strength). A note has many labels, which come as they are: drawn
  mixes cannot be met, and the nearest notes to them are not the more unlike the smaller the
  strength is. So the notes are put in as unlike groups as they allow (`_unlike`), and each stays in
  the group of its site with probability 1 / sqrt(1 + strength); those that do not change places at
  random. Two notes of a site then both belong to its group with probability 1 / (1 + strength).
  """
  dealt = rng.permutation(sites)[_unlike(type_counts(notes, types), sites, rng)]
  astray = np.flatnonzero(rng.random(len(notes)) >= (1 + strength) ** -0.5)
  dealt[astray] = dealt[rng.permutation(astray)]
  return dealt


def _unlike(counts: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
  """Groups of notes whose mixes are alike within a group, i[D]; their sizes differ by one at most.

  The notes are cut in two where they differ most: along the share of the type that varies most
  over entities. Each side is cut again until there are as many groups as wanted.

  Args:
    counts: i[D, T], entities of each type in each note.
    groups: how many.
    rng: orders notes of equal shares.
  """
  sizes = counts.sum(1)
  pool = counts.sum(0) / max(counts.sum(), 1)
  # A note without entities is like the pool.
  shares = np.where(sizes[:, None] > 0, counts / np.maximum(sizes, 1)[:, None], pool)
  found, tie = np.zeros(len(counts), int), rng.random(len(counts))
  parts = [(np.arange(len(counts)), 0, groups)]
  while parts:
    inside, first, number = parts.pop()
    if number == 1:
      found[inside] = first
      continue
    weights = sizes[inside] / max(sizes[inside].sum(), 1)
    mean = weights @ shares[inside]
    axis = (weights @ (shares[inside] - mean) ** 2).argmax()
    ordered = inside[np.lexsort((tie[inside], shares[inside, axis]))]
    left = number // 2
    cut = round(len(ordered) * left / number)
    parts += [(ordered[:cut], first, left), (ordered[cut:], first + left, number - left)]
  return found
