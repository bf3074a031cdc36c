"""What a mechanism of differential privacy is told: bounds and noise, all fixed by the config."""

from typing import NamedTuple


class Private(NamedTuple):
  """A sum of clipped contributions with Gaussian noise, over a number that no data moves.

  One unit's contribution has at most the L2 norm `clip`; the noise on the sum has the standard
  deviation `noise * clip` in every number.
  """

  clip: float          # L2 norm, in the unit of what is summed
  noise: float         # the noise multiplier; 0 = no noise
  denominator: float   # of the mean: expected units of a step, or sites of a round
  clipping: str = 'norm'   # or 'gauge', see `gauge.py`
