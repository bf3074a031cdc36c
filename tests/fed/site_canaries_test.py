"""Canaries among sites: what they add to a sum, and what is found of them."""

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.fed import site_canaries
from fedmedjax.fed.aggregators.private_mean import gaussian_sum
from fedmedjax.fed.privacy import Private

LIKE = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros(500)}


def test_the_sum_moves_by_the_planted_directions_alone():
  """Two of three canaries are in, each of norm `bound`: the sum differs by just these two."""
  key, coins = jax.random.key(1), [True, False, True]
  plain = gaussian_sum(Private(clip=2.0, noise=0.0, denominator=1.0))
  sites = jax.tree.map(lambda x: jnp.stack([x + 1, x + 2]), LIKE)
  given = sites, jnp.array([1.0, 0.5]), jnp.float32(2.0), jax.random.key(0), jnp.int32(0)
  before, _ = plain(*given)
  after, _ = site_canaries.planted(plain, key, coins)(*given)
  moved = jax.tree.map(jnp.subtract, after, before)
  own = [site_canaries.direction(key, number, LIKE) for number in range(3)]
  assert all(abs(float(tree.norm(one)) - 1) < 1e-5 for one in own)
  wanted = jax.tree.map(lambda x, y: 2 * (x + y), own[0], own[2])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), moved, wanted)
  found = np.asarray(site_canaries.alignments(key, 3, moved))
  assert found[0] > 1.5 and found[2] > 1.5 and abs(found[1]) < 0.5
  none, _ = site_canaries.planted(plain, key, [False] * 3)(*given)
  jax.tree.map(np.testing.assert_array_equal, none, before)
