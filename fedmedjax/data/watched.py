"""The few held-out sentences of a site that are answered while it trains (config.eval.every)."""

from collections.abc import Callable, Sequence

import numpy as np

from fedmedjax.types import Example

# Most of a site: to answer eight takes as long as a step or two of training.
MOST = 8
# They are the same for every seed of a run.
_SEED = 42, 3


def few(
  encode: Callable[[Sequence[Example]], tuple], held_out: Sequence[Example], number: int
) -> list[Example]:
  """At most `number` of the held-out examples, and at most MOST, none of them too long.

  Args:
    encode: (examples) -> (token sequences of those that are not too long, counts).
    held_out: of the notes of V.
    number: how many V itself may have.
  """
  chosen: list[int] = []
  for place in np.random.default_rng(_SEED).permutation(len(held_out)):
    if len(chosen) == min(number, MOST):
      break
    chosen += [place] if encode([held_out[place]])[0] else []
  return [held_out[place] for place in sorted(chosen)]
