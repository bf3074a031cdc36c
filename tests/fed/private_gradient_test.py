"""Clipped sums with noise, on gradients that are worked out by hand; and faults that are seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import PATHS, federation, play

from fedmedjax import tree
from fedmedjax.fed import local, sharing
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_gradient import private_gradient
from fedmedjax.fed.types import LocalData

ADAPTER = {'layers': {'q': {'a': jnp.zeros((1, 1, 1)), 'b': jnp.zeros((1, 1, 1))}}}
KEY = jax.random.key(0)


def linear(adapter, base, batch):
  """The gradient of an example is its slope (a, b), whatever the adapter; weight 0 = padding.

  Args:
    adapter: one number each.
    base: a factor.
    batch: slope [U, R, 2], weight [U, R].
  """
  x = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(adapter)])
  return base * jnp.einsum('urp,ur,p->', batch['slope'], batch['weight'], x), batch['weight'].sum()


def units(*slopes, room=0) -> dict:
  """A step whose units have one example each, or several; with `room` places behind them."""
  rows = [np.atleast_2d(slope) for slope in slopes] + [np.zeros((0, 2))] * room
  most = max(map(len, rows))
  return {
    'slope': jnp.stack([jnp.pad(jnp.asarray(r, jnp.float32), ((0, most - len(r)), (0, 0)))
                        for r in rows]),
    'weight': jnp.array([[float(i < len(r)) for i in range(most)] for r in rows])}


def pair(gradient) -> list[float]:
  return [float(leaf.reshape(())) for leaf in jax.tree.leaves(gradient)]


def drawn(batch):
  return (batch['weight'] > 0).any(-1)


PRIVATE = Private(1.0, 0.0, 4.0)


def of(batch, private=PRIVATE, key=KEY, **how):
  """(loss, [gradient of a, of b])."""
  made = private_gradient(linear, private, drawn=drawn, **how)
  loss, gradient = jax.jit(made)(ADAPTER, jnp.float32(1), batch, key)
  return float(loss), pair(gradient)


def clipped_late(loss_fn, private):
  """Planted: the mean is clipped, and no unit."""
  def gradient(adapter, base, batch, key):
    whole = jax.grad(lambda x: loss_fn(x, base, batch)[0] / private.denominator)(adapter)
    return 0.0, jax.tree.map(
      lambda x: x * jnp.minimum(1.0, private.clip / tree.norm(whole)), whole)
  return gradient


def moved(maker, private) -> float:
  """How far the gradient goes when one unit of many is turned into another."""
  few = [(0.1, 0.0)] * 3
  ends = [jnp.array(pair(maker(linear, private)(ADAPTER, jnp.float32(1), batch, KEY)[1]))
          for batch in (units(*few, (900.0, 0.0)), units(*few, (0.0, 0.0)))]
  return float(jnp.linalg.norm(ends[0] - ends[1]))


def test_every_unit_is_clipped_and_the_sum_divided_by_a_fixed_number():
  """(3, 4) of norm 5 becomes (0.6, 0.8), (0.3, 0.4) stays: (0.9, 1.2) / 4, whatever is computed at
  once and however much room there is; two units divide by no less than six."""
  for together, room in ((1, 0), (2, 4), (8, 1), (3, 1)):
    _, found = of(units((3, 4), (0.3, 0.4), room=room), together=together)
    np.testing.assert_allclose(found, [0.225, 0.3], rtol=1e-6)
  np.testing.assert_allclose(
    of(units((3, 4), (0.3, 0.4)), Private(np.inf, 0.0, 1.0))[1], [3.3, 4.4], rtol=1e-6)


def test_one_unit_moves_the_sum_by_the_clip_at_most_and_a_late_clip_is_noticed():
  private = Private(1.0, 0.0, 4.0)
  bound = private.clip / private.denominator
  assert moved(private_gradient, private) <= bound * (1 + 1e-6)
  assert moved(clipped_late, private) > 2 * bound


def test_the_examples_of_a_note_are_clipped_as_one():
  """(3, 0) and (0, 4) of one note: (3, 4), so (0.6, 0.8). Each for itself they would be (1, 1)."""
  np.testing.assert_allclose(
    of(units([(3, 0), (0, 4)]), Private(1.0, 0.0, 1.0))[1], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_allclose(
    of(units((3, 0), (0, 4)), Private(1.0, 0.0, 1.0))[1], [1, 1], rtol=1e-6)


def test_a_gauge_changes_nothing_without_clip_and_noise_and_bounds_a_unit_with_them():
  """A step of products A B: the plain gradient again; and cut, every unit counts alike."""
  keys = jax.random.split(KEY, 4)
  adapter = {'layers': {'q': {'a': jax.random.normal(keys[0], (1, 5, 2)),
                              'b': jax.random.normal(keys[1], (1, 2, 4))}}}
  batch = {'x': jax.random.normal(keys[2], (3, 5)), 'y': jax.random.normal(keys[3], (3, 4))}

  def product_loss(adapter, base, batch):
    pair = adapter['layers']['q']
    return jnp.einsum('ui,lir,lro,uo->', batch['x'], pair['a'], pair['b'], batch['y']), (
      jnp.float32(len(batch['x'])))

  def made(batch, clip):
    return private_gradient(product_loss, Private(clip, 0.0, 1.0, 'gauge'))(
      adapter, None, batch, KEY)[1]

  plain = jax.grad(lambda x: product_loss(x, None, batch)[0])(adapter)
  for one, other in zip(jax.tree.leaves(made(batch, 1e9)), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  times = made(batch | {'x': 100 * batch['x']}, 0.5)
  for one, other in zip(jax.tree.leaves(times), jax.tree.leaves(made(batch, 0.5)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 3e38])
def test_a_unit_that_is_not_finite_counts_as_none(bad):
  loss, found = of(units((3, 4), (bad, 1)), Private(1.0, 0.0, 1.0))
  np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-6)
  assert np.isfinite(loss)


def test_what_is_frozen_does_not_count_in_a_units_norm():
  """Of (30, 0.4) B alone is trained: its 0.4 is below the clip, and stays."""
  def keep(values):
    return tree.select(values, lambda path: path.endswith('b'))

  np.testing.assert_allclose(
    of(units((30, 0.4)), Private(1.0, 0.0, 1.0), keep=keep)[1], [0, 0.4], rtol=1e-6)
  # The same through a round, which has to hand `keep` on.
  algorithm = federation(
    loss=linear, sites=1, sharing=sharing.only_b(PATHS), optimizer=local.sgd(1.0),
    gradient=partial(private_gradient, private=Private(1.0, 0.0, 1.0)))
  state, _ = play(algorithm, one_round(units((30, 0.4))), start=ADAPTER)
  np.testing.assert_allclose(pair(state.adapter), [0, -0.4], rtol=1e-6)


def test_the_noise_on_the_sum_has_the_deviation_that_is_claimed():
  """10,000 draws, with units and without: sigma * clip on the sum, over the denominator; leaves
  independent of each other. Standard error of a deviation: 0.7 %."""
  private = Private(0.5, 3.0, 4.0)
  made = private_gradient(linear, private, drawn=drawn)
  for batch, mean in ((units((3, 4), (0.03, 0.04)), (0.33, 0.44)),
                      (units((0, 0), room=1), (0, 0))):
    losses, found = jax.jit(jax.vmap(
      lambda key, batch=batch: made(ADAPTER, jnp.float32(1), batch, key)))(
        jax.random.split(KEY, 10_000))
    a, b = (np.asarray(leaf).reshape(-1) * 4 for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose([a.std(), b.std()], 1.5, rtol=0.03)
    np.testing.assert_allclose([a.mean(), b.mean()], mean, atol=0.06)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.04
    assert np.isfinite(losses).all()


def one_round(step: dict, sites: int = 1, steps: int = 1) -> LocalData:
  batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (sites, steps, *x.shape)), step)
  return LocalData(batches, jnp.ones((sites, steps), bool), jnp.ones(sites))


WIDE = {'layers': {'q': {'a': jnp.zeros((1, 600, 1)), 'b': jnp.zeros((1, 1, 600))}}}


def nothing(adapter, base, batch):
  """No unit says anything: what is left is noise."""
  return 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(adapter)), batch['weight'].sum()


def noisy(loss_fn, keep):
  """Private gradients with a key as it should be; or (planted) one key for all rounds; or one for
  each step, whatever the round and site."""
  made = private_gradient(loss_fn, Private(1.0, 1.0, 1.0), keep=keep)

  def gradient(adapter, base, batch, key):
    same = jax.random.key(1)
    return made(adapter, base, batch, jax.lax.switch(batch['fault'][0], [
      lambda: key, lambda: same,
      lambda: jax.random.key(batch['place'][0])]))

  return gradient


@pytest.fixture(scope='module')
def noise_of():
  """(fault) -> what the adapter moves by in each of two rounds: two sites, three steps each."""
  algorithm = federation(loss=nothing, sites=2, gradient=noisy, optimizer=local.sgd(1.0))

  def moves(fault: int):
    data = one_round(units((0, 0)) | {'fault': jnp.array([fault])}, 2, 3)
    place = jnp.broadcast_to(jnp.arange(3)[None, :, None], (2, 3, 1))
    data = data._replace(batches=data.batches | {'place': place})
    first, both = (np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(
      play(algorithm, data, rounds, start=WIDE)[0].adapter)]) for rounds in (1, 2))
    return first, both - first

  return moves


def check_noise_is_fresh(first, second) -> None:
  """The mean of two sites moves by noise of variance 3 / 2 * sigma^2, and what a round adds knows
  nothing of the round before."""
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
  for step in (first, second):
    np.testing.assert_allclose(step.var(), 1.5, rtol=0.25)


def test_noise_is_fresh_in_every_step_round_and_site(noise_of):
  check_noise_is_fresh(*noise_of(0))


@pytest.mark.parametrize('fault', [1, 2])
def test_noise_that_comes_again_is_noticed(noise_of, fault):
  with pytest.raises(AssertionError):
    check_noise_is_fresh(*noise_of(fault))


def test_sites_at_once_are_sites_one_after_the_other():
  """Unlike units, numbers of them and noise; together and one by one."""
  steps = [units((3, 4), (1, 1), room=2), units((0.3, 0.4), (5, 0), (0, 6), room=1),
           units((0, 0), room=3)]
  data = LocalData(
    jax.tree.map(lambda *x: jnp.stack(x)[:, None], *steps), jnp.ones((3, 1), bool), jnp.ones(3))
  ends = [pair(play(federation(
    chunk, loss=linear, optimizer=local.sgd(1.0),
    gradient=partial(private_gradient, private=Private(1.0, 1.0, 4.0), drawn=drawn, together=2)),
    data, start=ADAPTER)[0].adapter) for chunk in (0, 1)]
  np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
