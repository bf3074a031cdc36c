"""Which examples each step of a site holds, as a function of (seed, site, task, step) alone."""

import math
from collections.abc import Sequence

import numpy as np

from fedmedjax.data.tokenize import TokenExample


def site_steps(
  lengths: np.ndarray, batch_size: int, seed: int, site: int, first: int, count: int, task: int = 0
) -> list[np.ndarray]:
  """The indices of the examples in each of a site's steps `first` ... `first + count - 1`.

  Steps are numbered over all rounds. Every epoch visits each example once, in ceil(n / batch_size)
  steps whose sizes differ by at most one. Steps are stratified by length: sorted examples are cut
  into batch_size strata and each step draws one of each, without replacement, in an order seeded by
  (seed, site, epoch, task). So steps hold nearly equal numbers of tokens and fixed-shape rows waste
  little.

  Args:
    lengths: i[n], tokens of each example.
    batch_size: most examples of a step.
    seed: of the run.
    site, task: their numbers, from 0.
    first, count: which steps.
  """
  steps_per_epoch = math.ceil(len(lengths) / batch_size)
  epochs: dict[int, list[np.ndarray]] = {}
  steps = []
  for step in range(first, first + count):
    epoch, place = divmod(step, steps_per_epoch)
    if epoch not in epochs:
      rng = np.random.default_rng((seed, site, epoch, task))
      epochs[epoch] = _epoch(lengths, steps_per_epoch, rng)
    steps.append(epochs[epoch][place])
  return steps


def one_pass(
  examples: Sequence[TokenExample], batch_size: int, seed: int
) -> list[list[int]]:
  """The indices of the examples in each step of a pass over all of them, as `site_steps` has them.

  So they fit the shape of training steps.
  """
  lengths = np.asarray([len(example.tokens) for example in examples])
  return [members.tolist() for members in site_steps(
    lengths, batch_size, seed, 0, 0, math.ceil(len(examples) / batch_size))]


def _epoch(lengths: np.ndarray, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
  """The indices of the examples in each step of one epoch; see `site_steps`."""
  # Longest first: when the last stratum is not full, it has the shortest examples.
  order = np.lexsort((rng.random(len(lengths)), np.negative(lengths)))
  members: list[list[int]] = [[] for _ in range(steps)]
  for start in range(0, len(order), steps):
    stratum = order[start:start + steps]
    for step, index in zip(rng.permutation(steps), stratum, strict=False):
      members[step].append(int(index))
  return [np.asarray(step) for step in members]
