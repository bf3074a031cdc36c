"""How well a model knows the identifiers of canaries: their exposure.

Carlini et al., "The Secret Sharer", USENIX Security 2019, arXiv:1802.08232, section 4: among all
identifiers that could stand in the same sentence, the one that was trained on is ranked by its
loss, and exposure = log2(size of the space) - log2(rank). Here the space is that of invented names
and numbers, and the rank is estimated among some of them that were drawn at random: exposure is at
most log2 of their number, and 1.44 bits on average for what was never seen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmedjax.data.canaries import Canary, invented
from fedmedjax.types import Document

# The canary itself and those that it is ranked with.
SPACE = 256
_STREAM = 0x5EC


def alternatives(kind: str, seed: int) -> list[Document]:
  """SPACE - 1 sentences like a canary's of this kind, with other names and numbers."""
  rng = np.random.default_rng((seed, _STREAM))
  return [invented(rng, kind, f'other-{number}') for number in range(SPACE - 1)]


def exposures(own: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Bits f64[n] by which each canary is known; a tie counts as half a place.

  Args:
    own: f64[n], losses of canaries of one kind at one site.
    others: f64[SPACE - 1], losses of the alternatives.
  """
  ranked = np.sort(np.nan_to_num(others, nan=np.inf))
  below = np.searchsorted(ranked, own, 'left') + np.searchsorted(ranked, own, 'right')
  return np.log2(len(others) + 1) - np.log2(1 + below / 2)


def scores(own: np.ndarray, others: np.ndarray) -> np.ndarray:
  """f64[n], by how many standard deviations each canary's loss is below that of the alternatives.

  So canaries of kinds that are easy and of kinds that are not can be guessed together. Arguments
  are as of `exposures`.
  """
  return (others.mean() - own) / max(float(others.std()), 1e-12)


def extraction(canaries: Sequence[Canary], bits: Sequence[float]) -> dict[str, Any]:
  """What audit.json says of the identifiers: of planted ones, and of those that were held out."""
  def summary(planted: bool) -> dict[str, Any]:
    some = [found for one, found in zip(canaries, bits, strict=True) if one.planted == planted]
    return {
      'number': len(some), 'mean': float(np.mean(some)) if some else None,
      'most': float(np.max(some)) if some else None,
      'first': sum(found >= np.log2(SPACE) - 1e-9 for found in some)}

  return {
    'space': SPACE, 'planted': summary(True), 'held_out': summary(False),
    'canaries': [
      {'site': one.site, 'kind': one.kind, 'text': one.document.text, 'planted': one.planted,
       'exposure': float(found)} for one, found in zip(canaries, bits, strict=True)]}
