"""Trees as named arrays and back, by hand."""

import jax
import numpy as np
import pytest

from fedmedjax.fed import wire
from fedmedjax.fed.compression import bfloat16, compress, float32, top_k
from fedmedjax.fed.sharing import alternating, everything, only_b, served_a

ADAPTER = {'q': {'a': np.arange(6, dtype=np.float32).reshape(3, 2),
                 'b': np.arange(10, 18, dtype=np.float32).reshape(2, 4)}}


def wired(codec=None, ranks=(), sharing=None, columns=0) -> wire.Wire:
  return wire.Wire(ADAPTER, sharing or everything(), codec or float32(), ranks, False, columns)


def test_plain_arrays_and_back():
  arrays = wire.plain_arrays(wired(), 'adapter', ADAPTER, ['q/b'], 0)
  assert list(arrays) == ['adapter/q/b:values']
  np.testing.assert_array_equal(arrays['adapter/q/b:values'], np.arange(10, 18))
  read = wire.read_plain(wired(), 'adapter', arrays, ['q/b'], 0, into=ADAPTER)
  jax.tree.map(np.testing.assert_array_equal, read, ADAPTER)
  zero = wire.read_plain(wired(), 'adapter', arrays, ['q/b'], 0)
  assert not zero['q']['a'].any() and zero['q']['b'].any()
  assert wire.key_of('adapter/q/b:values') == ('adapter', 'q/b')


def test_a_site_of_rank_1_has_the_first_column_of_a_and_row_of_b():
  """A = [[0 1] [2 3] [4 5]] has the first column 0 2 4; B's first row is 10 to 13."""
  w = wired(ranks=(1, 2))
  arrays = wire.plain_arrays(w, 'adapter', ADAPTER, ['q/a', 'q/b'], 0)
  np.testing.assert_array_equal(arrays['adapter/q/a:values'], [0, 2, 4])
  np.testing.assert_array_equal(arrays['adapter/q/b:values'], [10, 11, 12, 13])
  read = wire.read_plain(w, 'adapter', arrays, ['q/a', 'q/b'], 0)['q']
  np.testing.assert_array_equal(read['a'], [[0, 0], [2, 0], [4, 0]])
  np.testing.assert_array_equal(read['b'], [[10, 11, 12, 13], [0, 0, 0, 0]])
  both = wire.plain_arrays(w, 'adapter', ADAPTER, ['q/a'], 1)
  np.testing.assert_array_equal(both['adapter/q/a:values'], [0, 2, 4, 1, 3, 5])


def test_the_server_reads_what_the_simulation_does():
  """Of 6 values 3 and of 8 values 4 are sent, in two bytes each, their places as a mask of one."""
  codec, num_bytes = top_k(0.5, bfloat16()), 1 + 6 + 1 + 8
  w, key = wired(codec), jax.random.key(3)
  update = jax.tree.map(lambda x: x - np.float32(7.3), ADAPTER)
  encode = wire.encoder(w, lambda update, outbound: update)
  expected, parts = jax.jit(lambda update: (
    compress(codec).update(update, None, key=key)[0], encode(update, None, key)))(update)
  arrays = wire.coded_arrays(w, jax.device_get(parts), w.paths, 0)
  assert sum(array.nbytes for array in arrays.values()) == num_bytes
  jax.tree.map(
    np.testing.assert_array_equal, wire.read_coded(w, arrays, w.paths, 0), expected)


@pytest.mark.parametrize('change, words', [
  (lambda arrays: arrays.pop('adapter/q/b:values'), 'q/b:values is missing'),
  (lambda arrays: arrays.update({'adapter/q/a:values': np.zeros(5, np.float32)}), r'float32\[5\]'),
  (lambda arrays: arrays.update({'adapter/q/a:values': np.zeros((6, 1), np.float32)}), 'expected'),
  (lambda arrays: arrays.update({'adapter/q/a:values': np.zeros(6)}), 'float64')])
def test_arrays_that_were_not_agreed(change, words):
  arrays = wire.plain_arrays(wired(), 'adapter', ADAPTER, ['q/a', 'q/b'], 0)
  change(arrays)
  with pytest.raises(ValueError, match=words):
    wire.read_coded(wired(), arrays, ['q/a', 'q/b'], 0)


def test_an_index_beyond_the_tensor_is_refused():
  codec = top_k(0.01, float32())
  w = wire.Wire({'q': np.zeros(100, np.float32)}, everything(), codec, (), False, 0)
  good = {'adapter/q:indices': np.asarray([99], np.uint16),
          'adapter/q:kept/values': np.ones(1, np.float32)}
  assert wire.read_coded(w, good, ['q'], 0)['q'][99] == 1
  with pytest.raises(ValueError, match='an index is beyond'):
    wire.read_coded(w, good | {'adapter/q:indices': np.asarray([100], np.uint16)}, ['q'], 0)


def test_a_site_is_sent_what_it_lacks():
  """RoLoRA trains B in even rounds, A in odd ones; FFA-LoRA's A travels once."""
  turns = wired(sharing=alternating(['q/a', 'q/b']))
  assert turns.lacking(0, None) == ['q/a', 'q/b'] == turns.lacking(5, None)
  assert turns.lacking(1, 0) == ['q/b'] and turns.lacking(2, 1) == ['q/a']
  assert turns.lacking(3, 1) == ['q/a', 'q/b'] and turns.lacking(2, 2) == []
  assert turns.travelling(2) == ['q/b']
  assert wired(sharing=only_b(['q/a', 'q/b'])).lacking(3, 0) == ['q/b']
  served = wired(sharing=served_a(['q/a', 'q/b']))
  assert served.lacking(3, 2) == ['q/a', 'q/b'] and served.travelling(3) == ['q/b']
