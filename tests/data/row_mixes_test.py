"""Rows dealt out to sites of our own making by their targets."""

import numpy as np
import pytest

import fedmedjax as fm
from fedmedjax.data.damage import Damage
from fedmedjax.data.partition import partition
from fedmedjax.types import InputError


@pytest.fixture(scope='module')
def pool():
  """120 rows of three labels, each a source."""
  return [fm.Site(name, [
    {'input': f'{name} {i}', 'target': ('yes', 'no', 'unknown')[i % 3]} for i in range(60)],
    test_share=0) for name in ('a', 'b')]


def dealt(pool, kind, strength=1.0, **more):
  return partition(pool, kind, unit='note', sites=4, strength=strength, seed=0, **more)


def test_targets_take_the_place_of_types(pool):
  """All rows are dealt out once; the smaller the strength, the more unlike are the labels."""
  found = {}
  for strength in (1000.0, 0.01):
    parts, skew = dealt(pool, 'types', strength)
    rows = sorted(row.text for part in parts for row in part.train)
    assert rows == sorted(row.text for site in pool for row in site.train)
    assert all(part.types == () and row.target and not row.spans
               for part in parts for row in part.train)
    found[strength] = skew.type_divergence
  assert found[0.01] > 0.5 > 0.1 > found[1000.0]


def test_alike_sites_have_alike_targets(pool):
  parts, skew = dealt(pool, 'iid')
  counts = np.array([[[row.target for row in part.train].count(label) for label in (
    'yes', 'no', 'unknown')] for part in parts])
  assert counts.tolist() == [[10] * 3] * 4 and skew.type_divergence == skew.crossing == 0
  assert [len(part.train) for part in dealt(pool, 'iid', sizes=(.7, .1, .1, .1))[0]] == [
    84, 12, 12, 12]


def test_sentences_of_rows_are_rows(pool):
  parts, _ = partition(pool, 'quantity', unit='sentence', sites=4, strength=1.0, seed=0)
  assert sorted(row.target for part in parts for row in part.train) == sorted(
    row.target for site in pool for row in site.train)


@pytest.mark.parametrize('kind, damage, said', [
  ('labels', Damage(), "kind='labels': leaves types unannotated"),
  ('iid', Damage(corrupted=0.5), 'corrupted=0.5: damages annotated entities, and rows have none'),
  ('iid', Damage(corrupted_sites=(0,)), 'corrupted_sites=(0,): damages'),
  ('iid', Damage(missing=0.9, missing_sites=(1,)), 'missing_sites=(1,): damages')])
def test_what_needs_annotated_types_is_refused(pool, kind, damage, said):
  with pytest.raises(InputError) as error:
    dealt(pool, kind, damage=damage)
  assert said in str(error.value)


def test_free_text_has_no_mix():
  pool = [fm.Site('a', [{'input': f'{i}?', 'target': f'about {i}'} for i in range(150)],
                  test_share=0)]
  with pytest.raises(InputError, match='150 different ones are too many'):
    dealt(pool, 'types')
  assert [len(part.train) for part in dealt(pool, 'iid')[0]] == [38, 38, 37, 37]
