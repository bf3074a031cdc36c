"""Adapters with heads: bases, what the model is shown, its gradient, and RAVAN's exact mean."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.fed import sharing
from fedmedjax.fed.aggregators.cores import scaled_cores
from fedmedjax.model.heads import orthonormal, shown, with_heads
from fedmedjax.tree import paths
from fedmedjax.types import InputError

LAYERS, IN, OUT, RANK, HEADS = 2, 9, 7, 2, 3
PLAIN = {'layers': {'q': {'a': jnp.zeros((LAYERS, IN, RANK)), 'b': jnp.zeros((LAYERS, RANK, OUT))}}}


@cache
def fresh():
  """A fresh adapter, as numpy arrays."""
  return jax.device_get(jax.jit(lambda key: with_heads(key, PLAIN, HEADS))(jax.random.key(0)))


def drawn(seed=0):
  """The same bases with cores and scalings that are anything."""
  rng, node = np.random.default_rng(seed), fresh()['layers']['q']
  return {'layers': {'q': node | {
    name: rng.normal(size=node[name].shape).astype(np.float32) for name in 'hs'}}}


model_of = jax.jit(shown)


def product(pair):
  return np.asarray(pair['a'], np.float64) @ np.asarray(pair['b'], np.float64)


def test_bases_are_orthonormal_as_far_as_there_is_room():
  """Three heads of rank 2 in 9 dimensions: all six columns; in 5, two heads together and the third
  by itself; of rank 2 in one dimension a column of length 1 and one of zeros."""
  bases = jax.jit(orthonormal, static_argnums=(1, 2, 3, 4))
  for width, together in ((9, 3), (5, 2)):
    found = bases(jax.random.key(0), (LAYERS,), width, RANK, HEADS)
    assert found.shape == (LAYERS, HEADS, width, RANK)
    for layer in np.asarray(found):
      for first in range(0, HEADS, together):
        group = np.concatenate(list(layer[first:first + together]), axis=1)
        np.testing.assert_allclose(group.T @ group, np.eye(group.shape[1]), atol=1e-5)
  narrow = np.asarray(bases(jax.random.key(0), (), 1, RANK, 1))
  np.testing.assert_allclose(np.abs(narrow), [[[1, 0]]], atol=1e-6)


def test_what_the_model_is_shown_is_the_sum_over_heads():
  """A_1 s_1 H_1 B_1 + ..; a fresh one changes nothing; before training there are no layers."""
  adapter = drawn()
  a, b, h, s = (np.asarray(adapter['layers']['q'][name], np.float64) for name in 'abhs')
  own = [slice(i * RANK, (i + 1) * RANK) for i in range(HEADS)]
  expected = sum(
    a[..., own[i]] @ (s[:, i, None, None] * h[:, i]) @ b[:, own[i]] for i in range(HEADS))
  pair = model_of(adapter)['layers']['q']
  assert set(pair) == {'a', 'b'} and pair['a'].shape == (LAYERS, IN, HEADS * RANK)
  np.testing.assert_allclose(product(pair), expected, atol=1e-5)
  assert not product(model_of(fresh())['layers']['q']).any()
  assert shown({}) == {}


def test_only_cores_and_scalings_have_a_gradient():
  """And a step from the start moves cores: their gradient there is not 0, that of scalings is."""
  target = np.random.default_rng(0).normal(size=(LAYERS, IN, OUT)).astype(np.float32)

  def loss(adapter):
    pair = shown(adapter)['layers']['q']
    return jnp.sum((pair['a'] @ pair['b'] - target)**2)

  slope = jax.jit(jax.grad(loss))
  for adapter, moving in ((fresh(), {'h'}), (drawn(), {'h', 's'})):
    gradient = jax.device_get(slope(adapter)['layers']['q'])
    assert {name for name in 'abhs' if gradient[name].any()} == moving
  share = sharing.only_cores(paths(fresh()))
  assert {path[-1] for path in paths(fresh()) if share.trained(path, 0)} == {'h', 's'}
  with pytest.raises(InputError, match="no leaf of the adapter ends in '/h'"):
    sharing.only_cores(paths(PLAIN))


def test_the_mean_of_cores_is_the_mean_of_products():
  """Three sites with cores and scalings of their own, of weights .2, .3, .5; a site of weight 0 may
  hold anything. Planted: cores and scalings averaged apart are far from it."""
  anchor, weights = drawn(), np.array([.2, .3, .5, 0], np.float32)
  locals_ = [drawn(seed) for seed in (1, 2, 3)]
  local = jax.tree.map(lambda *x: np.stack([*x, x[0] * np.nan]), *locals_)
  updates = jax.tree.map(lambda x, x0: x - x0[None], local, anchor)
  update, fold = jax.jit(scaled_cores().apply)(
    updates, weights, anchor=anchor, local=local, key=None)
  after = jax.tree.map(np.add, anchor, update)
  each = [product(model_of(one)['layers']['q']) for one in locals_]
  expected = sum(w * one for w, one in zip(weights, each, strict=False))
  np.testing.assert_allclose(product(model_of(after)['layers']['q']), expected, atol=1e-5)
  np.testing.assert_allclose(after['layers']['q']['s'], 1, atol=1e-6)
  for name in 'ab':
    np.testing.assert_array_equal(after['layers']['q'][name], anchor['layers']['q'][name])
  apart = jax.tree.map(
    lambda *x: sum(w * y for w, y in zip(weights, x, strict=False)), *locals_)
  assert fold == () and np.abs(
    product(model_of(apart)['layers']['q']) - expected).max() > 0.1
