"""A metric of a user's own, of texts: what it may give, and what is said of anything else.

Letters: n rows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.types import InputError

# Beyond this a sum of rows would lose digits that its counts need, see `text_metrics.py`.
_LARGEST = 1e9
_NAME_LENGTH = 60


class OwnMetric(NamedTuple):
  """A metric of the user's own."""

  name: str       # as messages call it, "config.eval.metric='my.py:score'"
  # (answers, targets), lists of n texts -> {name: a number, or a list of n}; where it fails it
  # raises an InputError, which says where
  call: Callable
  # {name: whether there is a number for each row}, the same at every site; None = not known yet
  gives: Mapping[str, bool] | None = None


def own_values(
  metric: OwnMetric, place: str, answers: Sequence[str], targets: Sequence[str],
  taken: Collection[str],
) -> dict[str, np.ndarray]:
  """{name: f64[] or f64[n]} of a metric of the user's own for n answers.

  Args:
    metric: whose names are in the order of `gives`, once that is known.
    place: the site, for messages.
    answers, targets: n texts each.
    taken: names that it may not give.

  Raises:
    InputError: it fails, or gives what cannot be used.
  """
  try:
    found = metric.call(list(answers), list(targets))
    values = _checked(found, len(targets), taken)
    gives = {name: value.ndim == 1 for name, value in values.items()}
    if metric.gives is not None and gives != metric.gives:
      raise ValueError(
        f'it gives {_described(gives)}, and gave {_described(metric.gives)} before; the same at '
        'every site is allowed')
  except ValueError as error:
    raise InputError(f'{metric.name}: {place}: {error}') from None
  return {name: values[name] for name in metric.gives or values}


def _described(gives: Mapping[str, bool]) -> str:
  return ', '.join(
    f'{name!r} ({"a number a row" if by_row else "one number"})' for name, by_row in gives.items())


def _checked(found: Any, rows: int, taken: Collection[str]) -> dict[str, np.ndarray]:
  """What a metric gave, as arrays; raises ValueError, which says what is wrong."""
  if not isinstance(found, Mapping) or not found:
    what = 'an empty dict' if isinstance(found, Mapping) else type(found).__name__
    raise ValueError(f'it gives {what}; {{name: a number, or a list of one a row}} is allowed')
  for name in found:
    if not isinstance(name, str) or not name.strip() or len(name) > _NAME_LENGTH or not (
        name.isprintable() and name == name.strip()):
      raise ValueError(
        f'it gives the name {name!r}; a text of one to {_NAME_LENGTH} characters in one line is '
        'allowed')
    if name in taken:
      raise ValueError(
        f'it gives the name {name!r}, which is one of config.eval.metrics; choose another one')
  return {name: _numbers(name, value, rows) for name, value in found.items()}


def _numbers(name: str, value: Any, rows: int) -> np.ndarray:
  """A number f64[], or one a row f64[n]; raises ValueError for anything else."""
  wrong = ValueError(
    f'{name!r} is {_shown(value)}; a number, or a list of {rows}, one a row, is allowed')
  try:
    array = np.asarray(value)
    if array.dtype == object and all(isinstance(one, Real) for one in array.flat):
      array = array.astype(float)
  except Exception:  # noqa: BLE001 - a user's value: lists of unlike lengths, what not
    raise wrong from None
  if array.dtype.kind not in 'biuf' or array.ndim > 1:
    raise wrong
  if array.ndim == 1 and len(array) != rows:
    raise ValueError(f'{name!r} has {len(array)} numbers for {rows} rows')
  array = array.astype(float)
  good = abs(array) <= _LARGEST  # which no NaN is
  if not good.all():
    at = f' in row {int(np.argmin(good)) + 1}' if array.ndim else ''
    raise ValueError(
      f'{name!r} is {array[~good].flat[0]:g}{at}; a number between {-_LARGEST:g} and '
      f'{_LARGEST:g} is allowed')
  return array


def _shown(value: Any) -> str:
  """A value in a message: one line, not too long."""
  shown = ' '.join(repr(value).split())
  return shown if len(shown) <= _NAME_LENGTH else f'{shown[:_NAME_LENGTH]}...'
