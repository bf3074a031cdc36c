"""The grid of a sweep: what it expands to, what is drawn, and the mistakes that it names."""

import numpy as np
import pytest

from fedmedjax.sweep.grid import points, read_grid, run_name
from fedmedjax.sweep.runs import data_key
from fedmedjax.types import InputError

KNOWN = {
  'seed': 42, 'fed.preset': 'fed_medlora', 'optim.learning_rate': 1e-3, 'fed.floor': 0.0,
  'fed.pooled': False, 'fed.ranks': (), 'lora.rank': 8, 'data.partition.strength': 0.3}
NAMED = {'setting': {'iid': {}, 'ranks': {'fed.ranks': (2, 8)}}}


def expanded(text, **draws):
  return points(read_grid(text, KNOWN, NAMED), **draws)


def test_lists_are_crossed_and_the_last_axis_moves_fastest():
  found = expanded('fed.preset=uniform,krum; optim.learning_rate=1e-4,2 ;seed=8..10')
  assert len(found) == 12 and found[1] == {
    'fed.preset': 'uniform', 'optim.learning_rate': 1e-4, 'seed': 9}
  assert [point['seed'] for point in found[:4]] == [8, 9, 10, 8]
  assert [type(value) for value in found[3].values()] == [str, float, int]
  assert expanded('fed.ranks=(2,4),(8,8);fed.pooled=true,False')[1] == {
    'fed.ranks': (2, 4), 'fed.pooled': False}
  assert {'fed_medlora', 'krum'} < {point['fed.preset'] for point in expanded('fed.preset=all')}
  assert expanded('setting=ranks,iid') == [{'setting': 'ranks'}, {'setting': 'iid'}]


def test_each_part_of_a_latin_range_has_one_point():
  """Of eight points over three decades, by the logarithm; each is crossed with both seeds."""
  text = 'optim.learning_rate=1e-5~1e-2;fed.floor=0~0.8:linear;seed=1,2;lora.rank=2~32'
  found = expanded(text, latin=8, draws=3)
  assert len(found) == 16 and found == expanded(text, latin=8, draws=3)
  assert list(found[0]) == ['optim.learning_rate', 'fed.floor', 'seed', 'lora.rank']
  own = found[::2]
  rate = np.log10([point['optim.learning_rate'] for point in own])
  assert sorted(np.floor((rate + 5) / 3 * 8)) == list(range(8))
  assert sorted(np.floor([point['fed.floor'] * 10 for point in own])) == list(range(8))
  assert all(type(point['lora.rank']) is int and 2 <= point['lora.rank'] <= 32 for point in own)
  drawn = expanded(text, random=8, draws=3)
  assert drawn != found and drawn != expanded(text, random=8, draws=4)


@pytest.mark.parametrize('text, draws, said', [
  ('', {}, '--grid is missing'), ('seed', {}, "'seed': KEY=VALUE"), ('seed=', {}, 'has no value'),
  ('optim.learning_rat=1', {}, "did you mean 'optim.learning_rate'"),
  ('learning_rate=1', {}, "did you mean 'optim.learning_rate'"),
  ('seed=1.5', {}, 'seed=1.5: an integer is allowed'),
  ('optim.learning_rate=fast', {}, 'optim.learning_rate=fast: a number'),
  ('optim.learning_rate=nan', {}, 'a number is allowed'),
  ('fed.pooled=1', {}, 'True or False'), ('fed.ranks=2', {}, 'a tuple such as'),
  ('seed=3..1', {}, 'FIRST <= LAST'), ('seed=1,1', {}, 'seed=1 comes twice'),
  ('seed=0..3,2', {}, 'seed=2 comes twice'), ('seed=1;seed=2', {}, 'seed comes twice'),
  ('setting=moon', {}, 'one of iid, ranks'), ('setting=iid,ranks;fed.ranks=()', {}, 'also set by'),
  ('optim.learning_rate=1e-3~1e-4', {'latin': 2}, '0 < LOW < HIGH'),
  ('fed.floor=0~1', {'latin': 2}, ':linear'), ('fed.floor=0~1:square', {'latin': 2}, 'LOW~HIGH'),
  ('optim.learning_rate=1e-4~1e-3', {}, '--random=N'),
  ('seed=1,2', {'random': 3}, 'no key of --grid is a range'),
  ('optim.learning_rate=1e-4~1e-3', {'random': 3, 'latin': 3}, 'one of the two'),
  ('seed=0..99999;lora.rank=1,2', {}, '200,000 runs')])
def test_a_mistake_is_named_in_one_line(text, draws, said):
  with pytest.raises(InputError) as error:
    expanded(text, **draws)
  assert said in str(error.value) and '\n' not in str(error.value)


def test_names_are_folders_and_differ():
  point = {'fed.preset': 'krum', 'optim.learning_rate': 1e-4, 'seed': 3}
  assert run_name(point) == 'krum,learning_rate=0.0001,seed=3'
  other = run_name(point, ['krum,learning_rate=0.0001,seed=3'])
  assert other != run_name(point) and other.startswith('krum,learning_rate=0.0001,seed=3,')
  long = run_name({'data.sites': tuple('abcdefghijklmnopqrstuvwxyz')})
  assert len(long) <= 120 and '/' not in run_name({'data.root': '../x'})


def test_runs_share_notes_only_where_no_key_changes_them():
  """Canaries are planted in the notes; a rate is none of their affair."""
  values = {'fed.train': True, 'privacy.canaries': 0, 'optim.learning_rate': 0.1, 'data.seed': 0}
  for key in ('fed.train', 'privacy.canaries', 'data.seed'):
    assert data_key(values | {key: 1 - values[key]}) != data_key(values), key
  assert data_key(values | {'optim.learning_rate': 0.2}) == data_key(values)
