"""Whether entrants of a race train alike; what does not is no faster, it is something else."""

from collections.abc import Collection

import numpy as np

from benchmarks import interleaved

# Steps whose losses are compared.
_COMPARED = 3


def check_losses(
  results: dict[str, np.ndarray],
  tolerance: interleaved.Tolerance = interleaved.TOLERANCES['float32'],
  rounded: Collection[str] = (),
) -> None:
  """Raises RuntimeError, before anything is measured, when one does not train as ours does.

  `rounded` are entrants that multiply in bfloat16, for which its tolerance holds. Then it is ours
  in float32 that all are compared with.
  """
  first = 'ours_float32' if 'ours' in rounded and 'ours_float32' in results else 'ours'
  own = results[first][:_COMPARED]
  for name, losses in results.items():
    found = losses[:_COMPARED]
    allowed = (interleaved.TOLERANCES['bfloat16'] if name in rounded else tolerance).loss
    # Said so that a NaN is no agreement.
    if not (np.abs(found - own) <= allowed * np.maximum(1.0, np.abs(own))).all():
      raise RuntimeError(
        f'{name} and {first} do not train alike: losses of the first steps '
        f'{np.round(found, 5).tolist()} and {np.round(own, 5).tolist()}')
