"""The keys of config.data.partition: what each may hold, and what goes together."""

import math
from collections.abc import Callable
from typing import Any

from fedmedjax.data import partition
from fedmedjax.data.damage import CORRUPTIONS
from fedmedjax.experiment.checks import BELOW_ONE, POSITIVE, Check, integer, number, one_of
from fedmedjax.types import InputError


def _tuple_of(allows: Callable[[Any], bool], wording: str) -> Check:
  return Check(lambda v: isinstance(v, tuple) and all(map(allows, v)), f'{wording}, or (),')


_NUMBERS = Check(
  lambda v: isinstance(v, tuple) and all(type(n) is int and n >= 0 for n in v)
  and len(set(v)) == len(v), 'a tuple of different integers >= 0, such as (0,), or (),')

# Checks of all keys but `kind`, which may be a part of the user's own.
PARTITION = {
  'data.partition.sites': integer(1, 100_000),
  'data.partition.unit': one_of(tuple(partition.UNITS)), 'data.partition.strength': POSITIVE,
  'data.partition.sizes': _tuple_of(
    POSITIVE.allows, 'a tuple of shares > 0, such as (0.4, 0.2, 0.2, 0.2)'),
  'data.partition.corrupted': number(lambda v: 0 <= v <= 1, 'a number in [0, 1]'),
  'data.partition.corrupted_sites': _NUMBERS,
  'data.partition.corruption': one_of(tuple(CORRUPTIONS)),
  'data.partition.missing': BELOW_ONE, 'data.partition.missing_sites': _NUMBERS}


def check_partition(values: dict[str, Any]) -> None:
  """Raises InputError for keys of config.data.partition that do not go together."""
  keys = {key.removeprefix('data.partition.'): value for key, value in values.items()
          if key.startswith('data.partition.')}
  kind, sites = keys['kind'], keys['sites']
  if kind in partition.SHARES and keys['strength'] > 1:
    raise InputError(
      f'config.data.partition.strength={keys["strength"]}: a share in (0, 1] for kind {kind!r}')
  for key, does in (
      ('sizes', 'says the sizes of sites'), ('corrupted', 'corrupts sites'),
      ('corrupted_sites', 'corrupts sites'), ('missing', 'takes entities from sites'),
      ('missing_sites', 'takes entities from sites')):
    if keys[key] and not kind:
      raise InputError(
        f'config.data.partition.{key}={keys[key]}: {does} of a partition; set '
        "config.data.partition.kind, such as 'iid'")
  if keys['sizes']:
    _check_sizes(kind, sites, keys['sizes'])
  for key in ('corrupted_sites', 'missing_sites'):
    if any(site >= sites for site in keys[key]):
      raise InputError(
        f'config.data.partition.{key}={keys[key]}: there are {sites} sites, so numbers from 0 to '
        f'{sites - 1} are allowed')
  if keys['corrupted'] and keys['corrupted_sites']:
    raise InputError(
      f'config.data.partition.corrupted_sites={keys["corrupted_sites"]}: names sites, and '
      f'config.data.partition.corrupted={keys["corrupted"]} draws some; one of the two is allowed')
  if bool(keys['missing']) != bool(keys['missing_sites']):
    raise InputError(
      f'config.data.partition.missing={keys["missing"]}: goes with '
      f'config.data.partition.missing_sites={keys["missing_sites"]}; both are allowed, or neither '
      '(0.0 and ())')


def _check_sizes(kind: str, sites: int, sizes: tuple[float, ...]) -> None:
  named = f'config.data.partition.sizes={sizes}'
  if kind not in partition.SIZED:
    raise InputError(
      f'{named}: kind {kind!r} makes sizes of its own; {", ".join(map(repr, partition.SIZED))} are '
      'allowed, or ()')
  if len(sizes) != sites:
    raise InputError(
      f'{named}: {len(sizes)} shares for config.data.partition.sites={sites}; one for each site is '
      'allowed')
  if not math.isclose(sum(sizes), 1, abs_tol=1e-6):
    raise InputError(f'{named}: they add up to {sum(sizes):.6g}; shares that add up to 1 are '
                     'allowed')
