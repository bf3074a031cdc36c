"""The entries of config.data.folders, and what sites may be called."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedmedjax.data.formats.corpora import CORPORA, SiteFolder
from fedmedjax.data.formats.readers import FORMATS
from fedmedjax.data.formats.text_rows import ROWS
from fedmedjax.data.synthetic.cohorts import COHORTS
from fedmedjax.experiment.checks import TEXT, Check, number, one_of
from fedmedjax.types import InputError

# Names of sites are names of folders and files, too.
SITE_NAME = re.compile(r'[\w-][\w.-]*')
_PLACE = Check(lambda v: TEXT.allows(v) or isinstance(v, os.PathLike), TEXT.wording)
# Folders beside those of the sites' own adapters and predictions.
_RESERVED = ('global', 'zero_shot', 'pooled')


def _expression(value: Any) -> bool:
  """Whether a value is a regular expression that finds one thing."""
  try:
    return isinstance(value, str) and re.compile(value).groups <= 1
  except re.error:
    return False


def check_folders(folders: Sequence[Mapping], types: Sequence[str]) -> None:
  """Raises InputError where an entry of config.data.folders cannot be one.

  Args:
    folders: the entries.
    types: entity types of config.data.schema.
  """
  keys = {
    'name': Check(lambda v: isinstance(v, str) and SITE_NAME.fullmatch(v)
                  and v not in (*COHORTS, *CORPORA, *_RESERVED),
                  'letters, digits, _ . -, no dot in front, and no known site'),
    'path': _PLACE, 'format': one_of(tuple(FORMATS)), 'mapping': _PLACE,
    'test_share': number(lambda v: 0 <= v <= 1, 'a number in [0, 1]'),
    'annotated': Check(
      lambda v: isinstance(v, tuple | list) and all(name in types for name in v),
      f'a tuple of some of {", ".join(types)}, or ()'),
    'source': Check(_expression, 'a regular expression with at most one group')}
  for i, site in enumerate(folders):
    place = f'config.data.folders[{i}]'
    rows = site.get('format') == ROWS
    needed = set(SiteFolder._fields) - set(SiteFolder._field_defaults) | (set() if rows else {
      'mapping'})
    for key in ('mapping', 'annotated'):
      if rows and site.get(key):
        raise InputError(
          f'{place}.{key}={site[key]!r}: rows have no entity types; leave it out')
    for key in [*sorted(site.keys() - keys.keys(), key=str), *sorted(needed - site.keys())]:
      raise InputError(f'{place}: {key!r} is {"unknown" if key in site else "missing"}; its keys '
                       f'are {", ".join(keys)}')
    for key, value in site.items():
      if key == 'mapping' and rows:
        continue
      if not keys[key].allows(value):
        raise InputError(f'{place}.{key}={value!r}: {keys[key].wording} is allowed')
  used = [site['name'] for site in folders]
  for i, name in enumerate(used):
    if name in used[:i]:
      raise InputError(f'config.data.folders[{i}].name={name!r}: another folder has this name')
