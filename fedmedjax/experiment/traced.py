"""Which keys a compiled round may take as numbers, so that runs that differ in them share it.

Everything else that a round depends on is a constant of its program: the parts of the method, the
shapes of its arrays, how it is laid out. `program_key` tells which runs have equal constants.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedmedjax.experiment.methods import Own, Values

# Keys that parts only compute with -> whether 0 switches a part off, which is another program.
# Left out are b1 and b2 of AdamW and the server's momentum: 1 - b2 of a float32 number has lost
# three digits.
NUMBERS = {
  'optim.learning_rate': False, 'optim.sgd_learning_rate': False, 'bert.learning_rate': False,
  'optim.weight_decay': True, 'optim.clip_norm': True,
  'fed.size_power': False, 'fed.loss_power': True, 'fed.temperature': False, 'fed.floor': False,
  'fed.ema': False, 'fed.rule_strength': True, 'fed.server_learning_rate': False,
  'fed.server_tau': False, 'fed.norm_limit': False,
  'fed.fair_penalty': False, 'fed.trim': False, 'fed.faulty': False, 'fed.kept': False,
  'fed.ranks': True}
# Always numbers, so that a program that was compiled for a rate serves the next one, too.
RATES = ('optim.learning_rate', 'optim.sgd_learning_rate', 'bert.learning_rate')
# What a compiled round does not know: whose notes, which of them, in what order, and all that is
# done on the host. Shapes that follow from them are looked at where arrays are put together.
_ON_HOST = (
  'seed', 'data', 'eval', 'api', 'log', 'report', 'store', 'checkpoint', 'simulation', 'mesh',
  'fed.preset', 'fed.loss_on', 'fed.weight_by', 'fed.pooled', 'fed.local_steps',
  'fed.local_epochs', 'fed.round_steps', 'fed.batch_size', 'fed.cohort_size', 'fed.sampler',
  'fed.max_bad_rounds', 'fed.memory_gib', 'fed.train', 'fed.shapes', 'fed.chunk', 'model.remat')


def program_key(values: Values, own: Own) -> str:
  """A text that is equal for runs whose rounds are one program, but for the shapes of arrays.

  Args:
    values: the flat configuration.
    own: the user's own parts, by key; what they do with a number is not known, so they have theirs
      as constants.
  """
  constants = {
    key: value for key, value in values.items()
    if key not in _ON_HOST and key.partition('.')[0] not in _ON_HOST}
  if not own:
    # Where the rounds differ in number alone, one round is as the other, unless it lays out room.
    constants |= {key: bool(values[key]) if off else None for key, off in NUMBERS.items()}
  return repr(sorted(constants.items()))


def numbers_of(runs: Iterable[Values]) -> tuple[str, ...]:
  """The keys that runs of one program take as numbers: their rates, and what they differ in."""
  runs = list(runs)
  return tuple(
    key for key in NUMBERS
    if key in RATES or len({repr(values[key]) for values in runs}) > 1)


def as_arrays(values: Values, keys: Sequence[str]) -> Mapping[str, Any]:
  """Their values in one run, as numpy has them on a device: f32[], i32[], or i32[S] of ranks."""
  return {key: _array(values[key]) for key in keys}


def _array(value: Any) -> np.ndarray:
  given = np.asarray(value)
  return given.astype(np.int32 if given.dtype.kind == 'i' else np.float32)
