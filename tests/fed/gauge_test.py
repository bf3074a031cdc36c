"""The gauge-invariant clip: PRISM's tangents of products, and the bound that noise is drawn by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax import tree
from fedmedjax.fed import gauge
from fedmedjax.fed.aggregators.private_mean import PRODUCTS, private_mean
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_sums import clipped

SITES, KEY = 3, jax.random.key(2)
GAUGE = np.array([[3.0, 0.5], [-2.0, 0.1]], np.float32)


def adapter(seed, scale=1.0, sites=()):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(scale * rng.normal(size=(*sites, *shape)), jnp.float32)

  return {
    'q': {'a': draw(1, 5, 2), 'b': draw(1, 2, 4)}, 'v': {'a': draw(1, 3, 2), 'b': draw(1, 2, 6)}}


def regauged(pairs):
  """(A, B) -> (A G, G^-1 B)."""
  return {name: {
    'a': jnp.einsum('...ij,jk->...ik', pair['a'], GAUGE),
    'b': jnp.einsum('ij,...jk->...ik', np.linalg.inv(GAUGE), pair['b'])}
    for name, pair in pairs.items()}


def product(pairs):
  return {name: jnp.einsum('...ij,...jk->...ik', pair['a'], pair['b'], precision='highest')
          for name, pair in pairs.items()}


def tangent(frame, coordinates):
  return {name: jnp.einsum('...dr,...ro->...do', own.a.q, coordinates[name]['x'])
          + jnp.einsum('...dr,...or->...do', coordinates[name]['y'], own.b.q)
          for name, own in frame.items()}


def dense_projection(pairs, matrices):
  """P_U G + G P_V - P_U G P_V, PRISM's tangent by dense projections, in float64."""
  out = {}
  for name, pair in pairs.items():
    a, b, g = (np.asarray(x[0], np.float64) for x in (pair['a'], pair['b'], matrices[name]))
    left, right = a @ np.linalg.pinv(a), np.linalg.pinv(b) @ b
    out[name] = (left @ g + g @ right - left @ g @ right)[None]
  return out


def close(found, expected, tolerance=2e-5):
  for name in expected:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=tolerance, atol=tolerance * np.abs(expected[name]).max())


def gradients(pairs, matrices):
  """Of the factors where the product has the gradient G: g_A = G B^T, g_B = A^T G."""
  return {name: {
    'a': jnp.einsum('...do,...ro->...dr', matrices[name], pair['b']),
    'b': jnp.einsum('...dr,...do->...ro', pair['a'], matrices[name])}
    for name, pair in pairs.items()}


def test_tangents_are_prisms_and_do_not_see_the_gauge():
  """Of a gradient and of a site's change of the product; norms of factors do change."""
  anchor, update = adapter(0), adapter(1, 0.3)
  after = jax.tree.map(jnp.add, anchor, update)
  changed = jax.tree.map(jnp.subtract, product(after), product(anchor))
  frame, other = gauge.frames(anchor), gauge.frames(regauged(anchor))
  for found, own in (
      (gauge.change_coordinates(frame, anchor, update), frame),
      (gauge.change_coordinates(other, regauged(anchor), regauged(update)), other),
      (gauge.gradient_coordinates(frame, gradients(anchor, changed)), frame),
      (gauge.gradient_coordinates(other, gradients(regauged(anchor), changed)), other)):
    expected = dense_projection(anchor, changed)
    close(tangent(own, found), expected)
    assert float(tree.norm(found)) == pytest.approx(float(tree.norm(expected)), rel=1e-4)
  assert float(tree.norm(regauged(update))) > 1.3 * float(tree.norm(update))


def test_a_site_may_write_its_factors_as_it_likes():
  """(A_k G, G^-1 B_k) of an anchor in its own gauge is the same contribution."""
  anchor, update = adapter(0), adapter(1, 0.3)
  own = regauged(jax.tree.map(jnp.add, anchor, update))
  other = jax.tree.map(jnp.subtract, own, anchor)
  frame = gauge.frames(anchor)
  found = gauge.change_coordinates(frame, anchor, other)
  expected = gauge.change_coordinates(frame, anchor, update)
  close(tangent(frame, found), tangent(frame, expected), 1e-4)


def test_no_clip_and_no_noise_give_the_gradient_again():
  """At any point, and where B is 0, as before the first step."""
  for anchor in (adapter(0), jax.tree.map_with_path(
      lambda path, x: x * (path[-1].key == 'a'), adapter(0))):
    own = gradients(anchor, product(adapter(3)))
    frame = gauge.frames(anchor)
    again = gauge.factor_gradient(frame, anchor, gauge.gradient_coordinates(frame, own))
    for name in own:
      close(again[name], own[name])
    assert np.isfinite(tree.norm(again))


def test_the_bound_that_noise_is_drawn_by_holds():
  """Whatever a site sends, with it or without it the sum of coordinates moves by the clip at most,
  and the mean product by as much: coordinates are orthonormal."""
  anchor = adapter(0)
  frame = gauge.frames(anchor)
  for seed in range(4):
    updates = adapter(10 + seed, 20.0, (SITES,))
    cut = clipped(PRODUCTS.contributions(updates, anchor), 0.5)
    norms = jax.vmap(tree.norm)(cut)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-5)
    one = jax.tree.map(lambda x: x[0], cut)
    assert float(tree.norm(tangent(frame, one))) == pytest.approx(0.5, rel=1e-4)


def test_the_step_is_the_retraction_of_the_mean():
  """One site, no clip: the best matrix of rank 2 for A B + T, in factors that share singular
  values; in another gauge the same product."""
  anchor, updates = adapter(0), adapter(1, 0.1, (1,))
  aggregator = private_mean(Private(float('inf'), 0.0, 1.0, 'gauge'))

  def stepped(anchor, updates):
    found = aggregator.update(
      updates, jnp.int32(0), weights=jnp.ones(1), cohort=jnp.arange(1), anchor=anchor,
      local=updates, key=KEY)
    return product(jax.tree.map(jnp.add, anchor, found.update))

  after = jax.tree.map(lambda x, u: x + u[0], anchor, updates)
  moved = dense_projection(anchor, jax.tree.map(jnp.subtract, product(after), product(anchor)))
  expected = {}
  for name, start in product(anchor).items():
    u, s, v = np.linalg.svd(np.asarray(start, np.float64)[0] + moved[name][0])
    expected[name] = (u[:, :2] * s[:2] @ v[:2])[None]
  close(stepped(anchor, updates), expected, 1e-4)
  close(stepped(regauged(anchor), regauged(updates)), expected, 1e-3)


def test_noise_is_isotropic_in_the_tangent_space():
  """E |P(Xi)|^2 = sigma^2 r (D_in + D_out - r), the paper's energy, in whatever gauge: 2 * (5 + 4 -
  2) + 2 * (3 + 6 - 2) = 28. Noise on the factors has an energy that the gauge decides."""
  anchor = adapter(0)
  for own in (anchor, regauged(anchor)):
    frame = gauge.frames(own)
    like = gauge.change_coordinates(frame, own, own)
    energy = jax.vmap(lambda key: tree.norm(  # noqa: B023 - called here
      tangent(frame, gauge.tangent_noise(frame, key, like, 0.5)))**2)(jax.random.split(KEY, 4000))  # noqa: B023
    assert float(energy.mean()) == pytest.approx(28 * 0.25, rel=0.02)
