"""What a site lets leave: its policy.toml, and the list that is shown before it takes part."""

import difflib
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.experiment.undeployed import EXAMPLES, NORM, SCORES, TRAINING, VALIDATION
from fedmedjax.types import InputError


class Policy(NamedTuple):
  """The keys of policy.toml, with what is taken where one is left out."""

  number_of_examples: bool = True   # n_k, and the examples and tokens of a round
  training_losses: bool = True      # means of a round
  validation_losses: bool = True    # means over validation notes, of adapters that come
  update_norm: bool = True          # the length of what was learnt, sent or not
  scores: bool = True               # of the final adapter on the site's own test notes
  # A number of examples below it is not told, nor a mean loss or a score on fewer examples.
  smallest_count: int = 5
  largest_update_norm: float = 0.0  # a longer update is not sent; 0 = any is
  privacy_required: bool = False    # take part under differential privacy only

  @property
  def withheld(self) -> tuple[str, ...]:
    """Keys of what never leaves."""
    return tuple(key for key in _SWITCHES if not getattr(self, key))


# Keys that are true or false, of what may leave.
_SWITCHES = (EXAMPLES, TRAINING, VALIDATION, NORM, SCORES)
_FLAG: tuple[Callable[[Any], bool], str] = (lambda v: isinstance(v, bool), 'true or false')
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = dict.fromkeys(
  (*_SWITCHES, 'privacy_required'), _FLAG) | {
    'smallest_count': (lambda v: type(v) is int and v >= 0, 'a whole number >= 0'),
    'largest_update_norm': (
      lambda v: type(v) in (int, float) and math.isfinite(v) and v >= 0, 'a number >= 0')}


def read_policy(path: Path | None) -> Policy:
  """The policy in a file; None = everything of `Policy` as it is by default.

  Raises:
    InputError: the file cannot be read, or has a key or a value that is not allowed.
  """
  if path is None:
    return Policy()
  try:
    given = tomllib.loads(path.read_text(encoding='utf-8-sig'))
  except (OSError, ValueError, RecursionError) as error:
    reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
    raise InputError(f'--policy={path}: cannot be read: {reason}') from None
  for key, value in given.items():
    if key not in _CHECKS:
      close = difflib.get_close_matches(key, _CHECKS, 1)
      raise InputError(
        f'--policy={path}: unknown key {key!r}' + (f'; did you mean {close[0]!r}?' if close else '')
        + f'; allowed are {", ".join(_CHECKS)}')
    allows, wording = _CHECKS[key]
    if not allows(value):
      raise InputError(f'--policy={path}: {key}={value!r}: {wording} is allowed')
  return Policy(**given)


class Leaving(NamedTuple):
  """One thing that can leave a site, for the list that is shown before it takes part."""

  what: str
  when: str
  size: str     # shape and bytes, or ''
  allowed: bool


def leaving(
  policy: Policy, tensors: dict[str, tuple[tuple[int, ...], int]], controls: bool, tasks: tuple
) -> list[Leaving]:
  """All that can leave the site.

  Args:
    policy: of the site.
    tensors: {name: (shape, bytes)} of what is sent of an update, all rounds together.
    controls: control variates travel as well, of the same shapes.
    tasks: of its validation notes.
  """
  bound = f'of norm {policy.largest_update_norm:g} at most, ' if policy.largest_update_norm else ''
  few = f'told from {policy.smallest_count} examples on' if policy.smallest_count else ''
  rows = [
    Leaving(f'update of {name}', 'every round in which it is trained',
            f'{bound}{"x".join(map(str, shape)) or "1"}, {size} bytes', True)
    for name, (shape, size) in tensors.items()]
  if controls:
    rows.append(Leaving('control variate of each tensor', 'every round', 'float32', True))
  return rows + [
    Leaving('number of training examples; examples and tokens of a round', 'before, every round',
            few, policy.number_of_examples),
    Leaving('mean and last training loss, and that before training where the method asks for it',
            'every round', few, policy.training_losses),
    Leaving('norm of the update', 'every round', '', policy.update_norm),
    Leaving('number of local steps', 'every round', '', True),
    Leaving('why a message is not answered', 'then', '', True),
    Leaving(f'mean losses on validation notes ({", ".join(tasks) or "none"})',
            'when asked', few, policy.validation_losses),
    Leaving('scores of the final adapter on test notes: right, wrong and missed answers over all '
            'types, and their 95 % intervals; numbers of tested sources, and of answers that copy '
            'or cannot be read', 'after the last round', few, policy.scores),
    Leaving('names of tasks, version of fedmedjax, digest of the model, this policy, a number '
            'drawn for these notes', 'before', '', True)]


def listed(rows: list[Leaving]) -> str:
  """The list as lines of text."""
  return '\n'.join(
    f'{"leaves" if row.allowed else "STAYS "}  {row.what}; {row.when}'
    + (f'; {row.size}' if row.size else '') for row in rows)
