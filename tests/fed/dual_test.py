"""Dual adapters by hand: what is trained and sent in which round, and with what sites answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import entries, federation

from fedmedjax import tree
from fedmedjax.fed import compression, dual, ledger, sharing
from fedmedjax.fed.round import global_adapter, site_adapter
from fedmedjax.fed.types import LocalData

ONE = jnp.ones((1, 1, 1))
START = {'global': {'q': {'a': ONE, 'b': 0 * ONE}}, 'local': {'q': {'a': ONE, 'b': 0 * ONE}}}
SHARE = dual.in_turns(sharing.only_b(['q/a', 'q/b']))
TARGETS = LocalData(
  {'target': jnp.array([[2.0], [4.0]])}, jnp.ones((2, 1), bool), jnp.ones(2))


def loss(adapter, base, batch):
  """(A B - target)^2 / 2 of the product of both adapters side by side, a number."""
  pair = dual.side_by_side(adapter)['q']
  return base * ((pair['a'] @ pair['b']).sum() - batch['target']) ** 2 / 2, jnp.float32(1.0)


def product(adapter):
  return float((adapter['q']['a'] @ adapter['q']['b']).sum())


def after_each(count, share=SHARE, start=START):
  """What is found after each round: (products of the global and of the sites' adapters, metrics),
  and the last state."""
  algorithm, found = federation(loss=loss, sites=2, sharing=share), []
  state = algorithm.init(start)
  for number in range(count):
    state, metrics = algorithm.round(
      state, jnp.float32(1.0), TARGETS, jnp.arange(2), None, jax.random.key(number))
    sites = [site_adapter(state, share, site) for site in range(2)]
    found.append((
      [product(global_adapter(state, share, np.full(2, 0.5))), *map(product, sites)], metrics))
  assert algorithm.round._cache_size() == 1
  return found, state


def test_four_rounds_by_hand():
  """Rate 0.5, A_g frozen at 1, targets 2 and 4. Global, alone: b_g = (1 + 2) / 2 = 1.5. Local: the
  errors are -0.5 and -2.5, so b_l = 0.25 and 1.25. Global, alone again: the same errors,
  b_g = 1.5 + 0.75 = 2.25. Local: errors 0.5 and -0.5, b_l = 0 and 1.5, and
  a_l = 1 - 0.25 * 0.25 = 0.9375 and 1 + 0.25 * 1.25 = 1.3125, which make 2.25 and
  2.25 + 1.3125 * 1.5 = 4.21875.

  Of these rounds two are FedAvg's, whose adapter is the global one, to the bit. Planted: the local
  adapter is in the model while the global one is trained.
  """
  found, state = after_each(4)
  np.testing.assert_allclose([products for products, _ in found], [
    [1.5, 1.5, 1.5], [1.5, 1.75, 2.75], [2.25, 2.5, 3.5], [2.25, 2.25, 4.21875]], rtol=1e-6)
  # In local rounds the server stays where it is, and sites have learnt something all the same.
  assert [float(metrics.step_norm) > 0 for _, metrics in found] == [True, False, True, False]
  assert all((np.asarray(metrics.local_norm) > 0).all() for _, metrics in found)
  assert int(state.round) == 4 and site_adapter(state, SHARE, 0)['q']['a'].shape == (1, 1, 2)
  assert global_adapter(state, SHARE, np.full(2, 0.5))['q']['a'].shape == (1, 1, 1)
  _, plain = after_each(2, sharing.only_b(['q/a', 'q/b']), START['global'])
  assert entries(state.adapter['global']) == entries(plain.adapter)
  shown, _ = after_each(3, SHARE._replace(shown=None))
  assert shown[2][0][0] == pytest.approx(1.875)


def test_what_travels():
  """Down both factors first, then B after each round that trained it: in the local round, where
  nothing but the header goes up; and B up in global rounds. The local factors never travel."""
  pair = {'a': jnp.ones((1, 3, 2)), 'b': jnp.ones((1, 2, 5))}
  two = dual.two_adapters({'q': pair}, 4, jax.random.key(3))
  messages = [ledger.exchange(
    two, SHARE, compression.float32(), number, number - 1) for number in range(4)]
  tensors = [[sorted({entry.tensor for entry in one if entry.kind == 'adapter'})
              for one in (message.down, message.up)] for message in messages]
  a, b = 'global/q/a', 'global/q/b'
  assert tensors == [[[a, b], [b]], [[b], []], [[], [b]], [[b], []]]
  assert {entry.kind for message in messages[1:2] for entry in message.up} == {'header'}
  header = sum(entry.bytes for entry in messages[1].up)
  assert ledger.num_bytes(messages[2].up) == header + 4 * 2 * 5


def test_a_local_adapter_adds_nothing_at_first():
  """It has the spread of the global A, another draw for each matrix, and a B of zeros."""
  pair = {'a': 0.25 * jnp.ones((1, 400, 2)), 'b': jnp.ones((1, 2, 3))}
  two = dual.two_adapters({'k': pair, 'q': pair}, 5, jax.random.key(3))
  own = two['local']
  assert own['q']['a'].shape == (1, 400, 5) and not own['q']['b'].any()
  assert float(own['q']['a'].std()) == pytest.approx(0.25, rel=0.05)
  assert (own['q']['a'] != own['k']['a']).all()
  whole = dual.side_by_side(two)['q']
  np.testing.assert_allclose(whole['a'] @ whole['b'], pair['a'] @ pair['b'])
  assert dual.side_by_side(two['global']) is two['global']
  assert tree.paths(two)[0] == 'global/k/a'
