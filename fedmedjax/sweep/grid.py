"""The grid of a sweep: from --grid='KEY=a,b;KEY=0..9;KEY=1e-5~1e-3' to the points of its axes.

Nothing that takes seconds to import is imported with this module.
"""

import ast
import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.experiment.presets import trained_presets
from fedmedjax.types import InputError

# {key: value} of one point, in the order of the axes; a named axis has the name of its value.
Point = dict[str, Any]
# {axis: {value: {key of the configuration: value}}}
NamedAxes = Mapping[str, Mapping[str, Mapping[str, Any]]]

_MOST = 100_000


class Axis(NamedTuple):
  """A key and its values, or the ends of its range."""

  key: str
  values: tuple[Any, ...]
  low: float = 0.0
  high: float = 0.0
  scale: str = ''   # 'log' or 'linear' of a range; '' = the values are listed

  @property
  def whole(self) -> bool:
    """Whether its values are integers."""
    return all(type(value) is int for value in self.values)


def read_grid(text: str, known: Mapping[str, Any], named: NamedAxes) -> tuple[Axis, ...]:
  """The axes of --grid.

  Args:
    text: of the flag.
    known: the flat configuration; a value has the type of the key's own.
    named: axes that change several keys at once.

  Raises:
    InputError: an unknown key (with a suggestion), one that comes twice, no value, one that comes
      twice, or one of the wrong type.
  """
  axes: list[Axis] = []
  for part in filter(str.strip, _split(text, ';')):
    key, equals, values = (word.strip() for word in part.partition('='))
    _check_key(key, equals, known, named)
    if key in [axis.key for axis in axes]:
      raise InputError(f'--grid: {key} comes twice; each key once is allowed')
    axes.append(_axis(key, values, known, named))
  changed = {name: axis.key for axis in axes if axis.key in named
             for changes in named[axis.key].values() for name in changes}
  for axis in axes:
    if axis.key in changed:
      raise InputError(
        f'--grid: {axis.key} is also set by the axis {changed[axis.key]!r}; one of the two is '
        'allowed')
  return tuple(axes)


def _check_key(key: str, equals: str, known: Mapping[str, Any], named: NamedAxes) -> None:
  if not equals:
    raise InputError(f"--grid: {key!r}: KEY=VALUE,VALUE is expected, such as 'seed=0..9'")
  if key in known or key in named:
    return
  names = [*known, *named]
  # A key without its group is what people write.
  near = [name for name in names if name.rpartition('.')[2] == key.removeprefix('config.')
          or name == key.removeprefix('config.')] or difflib.get_close_matches(key, names, 1)
  raise InputError(
    f'--grid: {key!r} is no key of the configuration'
    + (f'; did you mean {near[0]!r}?' if near else '')
    + (f'; named axes are {", ".join(named)}' if named else ''))


def _axis(key: str, text: str, known: Mapping[str, Any], named: NamedAxes) -> Axis:
  words = [word.strip() for word in _split(text, ',') if word.strip()]
  if not words:
    raise InputError(f'--grid: {key} has no value; KEY=VALUE,VALUE is expected')
  if key == 'fed.preset' and words == ['all']:
    words = list(trained_presets())
  if key in named:
    for word in words:
      if word not in named[key]:
        raise InputError(f'--grid: {key}={word}: one of {", ".join(named[key])} is allowed')
    return Axis(key, _different(key, words))
  sample = known[key]
  if '~' in text and isinstance(sample, int | float) and not isinstance(sample, bool):
    return _range(key, text, sample)
  values: list[Any] = []
  for word in words:
    values += _counted(key, word) if type(sample) is int and '..' in word else [
      typed(f'--grid: {key}', word, sample)]
  return Axis(key, _different(key, values))


def _range(key: str, text: str, sample: float) -> Axis:
  """An axis of LOW~HIGH, or LOW~HIGH:linear."""
  ends, _, scale = text.partition(':')
  try:
    low, high = map(float, ends.split('~'))
  except ValueError:
    low = high = math.nan
  scale = scale.strip() or 'log'
  if not (math.isfinite(low) and math.isfinite(high) and low < high and scale in (
      'log', 'linear') and (low > 0 or scale == 'linear')):
    raise InputError(
      f'--grid: {key}={text}: LOW~HIGH of numbers 0 < LOW < HIGH is allowed, drawn evenly by their '
      'logarithm, or LOW~HIGH:linear')
  return Axis(key, (type(sample)(1),), low, high, scale)


def _counted(key: str, word: str) -> range:
  """FIRST..LAST, with both ends."""
  found = re.fullmatch(r'(\d{1,9})\.\.(\d{1,9})', word)
  if not found or int(found[1]) > int(found[2]):
    raise InputError(
      f'--grid: {key}={word}: FIRST..LAST with integers FIRST <= LAST is allowed, both included')
  return range(int(found[1]), int(found[2]) + 1)


def typed(where: str, word: str, sample: Any) -> Any:
  """A value of the type of `sample`, the key's value in the configuration.

  Raises:
    InputError: it is of another type; the error begins with `where`.
  """
  try:
    if isinstance(sample, bool):
      return {'true': True, 'false': False}[word.lower()]
    if isinstance(sample, str):
      return word[1:-1] if word[:1] in '"\'' and word[-1:] == word[:1] else word
    if isinstance(sample, tuple):
      value = ast.literal_eval(word)
      return tuple(value) if isinstance(value, tuple | list) else _no_value()
    value = type(sample)(word)
    return value if math.isfinite(value) or isinstance(sample, int) else _no_value()
  except (ValueError, SyntaxError, KeyError, TypeError):
    kind = {bool: 'True or False', int: 'an integer', float: 'a number',
            tuple: 'a tuple such as (1,2)'}[type(sample)]
    raise InputError(
      f'{where}={word}: {kind} is allowed, as its value {sample!r} in the configuration is'
    ) from None


def _no_value() -> Any:
  raise ValueError


def _different(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
  for value, count in Counter(values).items():
    if count > 1:
      raise InputError(f'--grid: {key}={value} comes twice; each value once is allowed')
  return tuple(values)


def _split(text: str, mark: str) -> list[str]:
  """Parts between marks that stand outside of brackets and quotes."""
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if quote or letter in '"\'':
      quote = '' if quote == letter else quote or letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == mark and not depth and not quote:
      parts.append('')
    else:
      parts[-1] += letter
  return parts


def points(
  axes: Sequence[Axis], random: int = 0, latin: int = 0, draws: int = 0
) -> list[Point]:
  """All points: the lists crossed with each other and, where there are ranges, with their draws.

  Args:
    axes: of `read_grid`.
    random: points drawn from the ranges independently; 0 = none.
    latin: points of a Latin hypercube over the ranges (McKay, Beckman & Conover, "A Comparison of
      Three Methods for Selecting Values of Input Variables ...", Technometrics 21, 1979): each of
      as many equal parts of every range has one; 0 = none.
    draws: seed of the draws.

  Raises:
    InputError: no axis, ranges without a number of draws, a number without ranges, both numbers, or
      too many runs.
  """
  ranges = [axis for axis in axes if axis.scale]
  if not axes:
    raise InputError("--grid is missing: such as --grid='optim.learning_rate=1e-4,2e-4;seed=0..9'")
  if random and latin:
    raise InputError(f'--random={random} --latin={latin}: one of the two is allowed')
  if ranges and not (random or latin):
    raise InputError(
      f'--grid: {ranges[0].key} is a range; how many of its values is said by --random=N or '
      '--latin=N')
  if not ranges and (random or latin):
    raise InputError(
      f'--{"random" if random else "latin"}={random or latin}: no key of --grid is a range, such '
      'as optim.learning_rate=1e-5~1e-3')
  count = math.prod(len(axis.values) for axis in axes if not axis.scale) * (random or latin or 1)
  if count > _MOST:
    raise InputError(f'--grid: {count:,} runs; {_MOST:,} are allowed')
  drawn = _drawn(ranges, random, latin, draws) if ranges else [{}]
  lists = [[(axis.key, value) for value in axis.values] for axis in axes if not axis.scale]
  order = [axis.key for axis in axes]
  found = [{**point, **dict(chosen)} for point in drawn for chosen in itertools.product(*lists)]
  return [{key: point[key] for key in order} for point in found]


def _drawn(ranges: Sequence[Axis], random: int, latin: int, draws: int) -> list[Point]:
  """Values of the ranges, rounded to four digits; points that come twice are left out."""
  generator = np.random.default_rng(draws)
  if latin:
    from scipy.stats import qmc
    shares = qmc.LatinHypercube(len(ranges), seed=generator).random(latin)
  else:
    shares = generator.random((random, len(ranges)))
  found = [
    {axis.key: _between(axis, share) for axis, share in zip(ranges, row, strict=True)}
    for row in shares]
  return list({repr(point): point for point in found}.values())


def _between(axis: Axis, share: float) -> float | int:
  low, high = axis.low, axis.high
  value = low + share * (high - low) if axis.scale == 'linear' else low * (high / low) ** share
  return round(value) if axis.whole else float(f'{value:.4g}')


def run_name(point: Point, taken: Iterable[str] = ()) -> str:
  """The name of a run, which is that of its folder: 'fed_medlora,learning_rate=0.0001,seed=3'.

  `taken` are names that mean other runs.
  """
  from hashlib import sha256
  parts = [str(value) if key == 'fed.preset' else f'{key.rpartition(".")[2]}={value}'
           for key, value in point.items()]
  name = re.sub(r'[^\w.,=+-]+', '_', ','.join(parts)).strip('.') or 'run'
  if len(name) > 120 or name in taken:
    name = f'{name[:100]},{sha256(repr(sorted(point.items())).encode()).hexdigest()[:8]}'
  return name
