"""Gradients of steps in groups: sums over all of them, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.fed.gradient import mean_gradient, over_groups


def loss(adapter, base, batch):
  """weight (x - target)^2 / 2 nats of `weight` tokens, in a group's arrays [R]."""
  nats = batch['weight'] * (base * adapter['x'] - batch['target']) ** 2 / 2
  return nats.sum(), batch['weight'].sum()


# One token at 1; three at 2; and an empty group, whose target means nothing.
GROUPS = {'target': jnp.array([[1.0, 9.0], [2.0, 9.0], [9.0, 9.0]]),
          'weight': jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])}


def test_groups_count_by_their_tokens():
  """From x = 0: nats 1/2 + 3 * 4/2 = 6.5 of 4 tokens, slope (1 * -1 + 3 * -2) / 4 = -1.75.

  Were groups to count alike, as where each is divided by its own tokens, it would be (-1 - 2) / 3 =
  -1 over all of them and -1.5 over those that are not empty."""
  adapter = {'x': jnp.float32(0)}
  for wrap in (lambda fn: fn, jax.jit):
    found, gradient = wrap(mean_gradient(over_groups(loss, 3)))(
      adapter, jnp.float32(1), GROUPS, jax.random.key(0))
    assert float(found) == 6.5 / 4 and float(gradient['x']) == -1.75
  total, weight = over_groups(loss, 3)(adapter, jnp.float32(1), GROUPS)
  assert (float(total), float(weight)) == (6.5, 4)
  # Through what the adapter is made of, as where ranks scale it: x = 2 y, at y = 1/2 the slope of
  # the total is 2 (1 (1 - 1) + 3 (1 - 2)) = -6.
  slope = jax.grad(lambda y: over_groups(loss, 3)({'x': 2 * y}, jnp.float32(1), GROUPS)[0])
  assert float(slope(0.5)) == -6


def test_sites_at_once_and_one_group():
  """Two sites at 0 and 2: slopes -1.75 and (1 + 0) / 4; the base is one for both."""
  gradient = jax.vmap(mean_gradient(over_groups(loss, 3)), (0, None, 0, None))
  _, slopes = gradient(
    {'x': jnp.array([0.0, 2.0])}, jnp.float32(1),
    jax.tree.map(lambda x: jnp.stack([x, x]), GROUPS), jax.random.key(0))
  np.testing.assert_array_equal(slopes['x'], [-1.75, 0.25])
  assert over_groups(loss, 1) is loss


def test_half_precision_adds_up_in_full():
  """256 + 1 is 256 in bfloat16: of 256 groups of slope -1 the sum would stop short of -512."""
  batch = {'target': jnp.ones((512, 1)), 'weight': jnp.ones((512, 1))}
  gradient = jax.grad(lambda adapter: over_groups(loss, 512)(adapter, jnp.float32(1), batch)[0])
  found = gradient({'x': jnp.bfloat16(0)})['x']
  assert found.dtype == jnp.bfloat16 and float(found) == -512


def test_the_base_has_no_gradient():
  with pytest.raises(TypeError, match='the base is frozen'):
    jax.grad(lambda base: over_groups(loss, 3)({'x': jnp.float32(0)}, base, GROUPS)[0])(1.0)
