"""What a value may be, with the words that say so."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Check(NamedTuple):
  """What a key may hold: a test and its wording."""

  allows: Callable[[Any], bool]
  wording: str


def integer(least: int, most: int | None = None) -> Check:
  """`most` is for what costs memory or hours before anything could say so."""
  return Check(
    lambda v: type(v) is int and v >= least and (most is None or v <= most),
    f'an integer >= {least}' + ('' if most is None else f' and <= {most}'))


def number(test: Callable[[float], bool], wording: str) -> Check:
  return Check(
    lambda v: type(v) in (int, float) and math.isfinite(v) and test(v), wording)


def one_of(names) -> Check:
  return Check(lambda v: v in names, 'one of ' + ', '.join(names))


def names(least: int) -> Check:
  return Check(
    lambda v: isinstance(v, tuple) and len(v) >= least and all(isinstance(n, str) for n in v)
    and len(set(v)) == len(v),
    f'a tuple of {"" if least else "zero or more "}different names')


# No file has a name with NUL in it, and no other key wants one.
TEXT = Check(lambda v: isinstance(v, str) and '\0' not in v, 'a text without NUL')
BOOLEAN = Check(lambda v: isinstance(v, bool), 'True or False')
POSITIVE = number(lambda v: v > 0, 'a finite number > 0')
NOT_NEGATIVE = number(lambda v: v >= 0, 'a finite number >= 0')
# Of two updates neither is more than twice as long as their mean.
EXPLOSION = number(lambda v: v == 0 or v >= 2, 'a finite number >= 2, or 0')
BELOW_ONE = number(lambda v: 0 <= v < 1, 'a number in [0, 1)')
