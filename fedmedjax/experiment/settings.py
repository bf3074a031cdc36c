"""Kinds of heterogeneity, damage and size of a study: each a few keys of the configuration.

They are the columns of an ablation, and the values of the axis `setting` of a sweep.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
  """A kind of heterogeneity, damage or size of a study."""

  title: str
  changes: Mapping[str, Any]  # flat keys of the configuration


_SKEWED, _LARGE = (0.5, 0.2, 0.15, 0.1, 0.05), (0.4, 0.15, 0.15, 0.15, 0.15)
# Of five sites.
SETTINGS = {
  'iid': Setting('IID', {}),
  'types': Setting('types 0.3', {'data.partition.kind': 'types', 'data.partition.strength': 0.3}),
  'sizes': Setting('size skew', {'data.partition.sizes': _SKEWED}),
  'ranks': Setting('mixed ranks', {'fed.ranks': (2, 2, 4, 8, 8)}),
  'wrong_1': Setting('1 of 5 sites wrong', {'data.partition.corrupted': 0.2}),
  'wrong_2': Setting('2 of 5 sites wrong', {'data.partition.corrupted': 0.4}),
  'wrong_largest': Setting(
    'largest site wrong',
    {'data.partition.sizes': _LARGE, 'data.partition.corrupted_sites': (0,)}),
  'missing': Setting(
    'two sites miss 90 % of entities',
    {'data.partition.missing': 0.9, 'data.partition.missing_sites': (0, 1)}),
}
# Sentences of a site and numbers of sites, of which the columns above have 100 and 5.
SCALES = {
  f'n_{n}': Setting(f'{n} sentences a site', {'data.max_train_sentences': n})
  for n in (25, 50, 100, 300)} | {
  f'sites_{s}': Setting(f'{s} sites', {'data.partition.sites': s}) for s in (2, 3, 5, 10)}
