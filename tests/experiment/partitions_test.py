"""Keys of partitions and of the data's seed: what is refused, and what a site then trains on."""

import pytest

from fedmedjax.experiment.config import validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.notes import data_seed, encode_sites, load_corpora
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

_POOL = {
  'data.sites': ('synthetic_icu', 'synthetic_dictation'), 'data.synthetic_notes': 12,
  'data.partition.kind': 'iid', 'data.partition.unit': 'sentence', 'data.partition.sites': 4}


def config(**changes):
  chosen = get_config('fed_medlora')
  chosen.update_from_flattened_dict(_POOL | {
    key.replace('__', '.'): value for key, value in changes.items()})
  return chosen


@pytest.mark.parametrize(('keys', 'message'), [
  ({'sizes': (0.5, 0.5)}, r'sizes=\(0.5, 0.5\): 2 shares for config.data.partition.sites=4; one'),
  ({'sizes': (0.4, 0.3, 0.2, 0.2)}, 'sizes=.*: they add up to 1.1; shares that add up to 1'),
  ({'sizes': (0.5, 0.5, 0.0, 0.0)}, r'sizes=.*: a tuple of shares > 0, such as .* or \(\), is'),
  ({'sizes': (float('nan'), 0.5, 0.3, 0.2)}, 'sizes=.*: a tuple of shares > 0'),
  ({'sizes': (0.25,) * 4, 'kind': 'quantity'}, "kind 'quantity' makes sizes of its own; 'iid', 't"),
  ({'sizes': (0.25,) * 4, 'kind': 'style'}, "kind 'style' makes sizes of its own"),
  ({'sizes': (0.25,) * 4, 'kind': ''}, r"sizes=\(0.25.*: says the sizes .* partition; set config"),
  ({'corrupted_sites': (4,)}, r'corrupted_sites=\(4,\): there are 4 sites, so numbers from 0 to 3'),
  ({'corrupted_sites': (-1,)}, 'corrupted_sites=.*: a tuple of different integers >= 0'),
  ({'corrupted_sites': (1, 1)}, 'corrupted_sites=.*: a tuple of different integers >= 0'),
  ({'corrupted_sites': (True,)}, 'corrupted_sites=.*: a tuple of different integers >= 0'),
  ({'corrupted_sites': (0,), 'kind': ''}, r'corrupted_sites=\(0,\): corrupts sites of a partition'),
  ({'corrupted_sites': (0,), 'corrupted': 0.5},
   r'corrupted_sites=\(0,\): names sites, and config.data.partition.corrupted=0.5 draws some; one'),
  ({'corruption': 'noise'}, "corruption='noise': one of mislabel, shift is allowed"),
  ({'missing': 0.9}, r'missing=0.9: goes with config.data.partition.missing_sites=\(\); both'),
  ({'missing_sites': (1,)}, r'missing=0.0: goes with config.data.partition.missing_sites=\(1,\)'),
  ({'missing': 1.0, 'missing_sites': (1,)}, r'missing=1.0: a number in \[0, 1\)'),
  ({'missing': 0.5, 'missing_sites': (9,)}, r'missing_sites=\(9,\): there are 4 sites'),
  ({'missing': 0.5, 'missing_sites': (0,), 'kind': ''}, 'missing=0.5: takes entities from sites'),
])
def test_what_does_not_go_together_is_refused_in_one_line(keys, message):
  with pytest.raises(InputError, match=message) as error:
    validate(config(**{f'data__partition__{key}': value for key, value in keys.items()}))
  assert str(error.value).startswith('config.data.partition.') and '\n' not in str(error.value)


@pytest.mark.parametrize('seed', [-2, 2**32, 1.0, True])
def test_seeds_of_data_that_are_none(seed):
  chosen = config()
  with chosen.ignore_type():
    chosen.data.seed = seed
  with pytest.raises(InputError, match=r'config.data.seed=.*: an integer >= -1 and <= 4294967295'):
    validate(chosen)


def test_the_data_have_a_seed_of_their_own():
  """Invented notes, their deal and its damage are those of data.seed, whatever the run's seed; -1
  stands for that one."""
  damage = {'data__partition__corrupted': 0.5, 'data__partition__missing': 0.5,
            'data__partition__missing_sites': (0, 1)}
  one, other, plain, third = (load_corpora(config(**keys, **damage)) for keys in (
    {'seed': 1, 'data__seed': 5}, {'seed': 2, 'data__seed': 5}, {'seed': 5}, {'seed': 6}))
  assert one == other == plain != third
  assert one.sites != third.sites and one.parts != third.parts
  assert data_seed(config(seed=7)) == 7 and data_seed(config(seed=7, data__seed=0)) == 0


def limits(chosen):
  """The keyword arguments with which each site is encoded, by its name."""
  found = {}

  def encode(corpus, **how):
    found[corpus.name] = how

  encode_sites(None, encode, chosen, load_corpora(chosen), Reporter())
  return found


def test_sentences_that_sites_of_unlike_size_train_on():
  """Of the mean site 50, of four 200: shares 0.4, 0.2, 0.2, 0.2 are 80, 40, 40, 40, drawn by
  data.seed. A site of 0.002 has 0.4, so 1: 0 would be all."""
  found = limits(config(
    data__seed=9, data__partition__sizes=(0.4, 0.2, 0.2, 0.2), data__max_train_sentences=50))
  assert [found[f'part_00{i}']['max_train_sentences'] for i in (1, 2, 3, 4)] == [80, 40, 40, 40]
  assert {how['max_train_notes'] for how in found.values() if 'max_train_notes' in how} == {0}
  assert {how['seed'] for how in found.values() if 'seed' in how} == {9}
  found = limits(config(
    data__partition__sizes=(0.598, 0.2, 0.2, 0.002), data__max_train_sentences=50,
    data__max_train_notes=10, data__synthetic_notes=80))
  assert [found[f'part_00{i}']['max_train_sentences'] for i in (1, 2, 3, 4)] == [120, 40, 40, 1]
  assert [found[f'part_00{i}']['max_train_notes'] for i in (1, 2, 3, 4)] == [24, 8, 8, 1]
  # Without sizes, and without a partition, each site has them all.
  for keys in ({}, {'data__partition__kind': ''}):
    found = limits(config(data__max_train_sentences=50, **keys))
    assert {how['max_train_sentences'] for how in found.values() if 'seed' in how} == {50}
