"""Sites spread over groups of devices: those that do not fill them, and what sites keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ADAPTER, data, federation

from fedmedjax.experiment import meshes
from fedmedjax.fed import rules
from fedmedjax.fed.sites import map_sites, spread_state, spread_vmap
from fedmedjax.store import checkpoint


def test_sites_that_do_not_fill_the_groups_and_their_state(tmp_path):
  """Three sites on four groups of devices; SCAFFOLD, whose sites keep something between rounds.
  The state comes back from a checkpoint to where it was."""
  parts = dict(rule=rules.control_variates(rate=0.5))
  spread = meshes.spread_of(meshes.make_mesh(2, 2, 1), 0)
  spread_out = {
    'map_sites': map_sites(0, vmap=spread_vmap(spread)), 'place': spread_state(spread)}
  states = []
  for laid_out in ({}, spread_out):
    algorithm = federation(**parts, **laid_out)
    state = algorithm.init(ADAPTER)
    for number in range(2):
      state, metrics = algorithm.round(
        state, jnp.float32(1.0), data(steps=(1, 3, 2)), jnp.arange(3), None, jax.random.key(number))
    assert algorithm.round._cache_size() == 1
    states.append(state)
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
  held = spread_state(spread)(federation(sites=8, **parts).init(ADAPTER))
  ctrl = jax.tree.leaves(held.sites.ctrl)[0]
  assert {shard.data.shape[0] for shard in ctrl.addressable_shards} == {2}
  checkpoint.save(tmp_path, checkpoint.host_copy(held), [{'round': 1}], 1)
  again, _ = checkpoint.newest(tmp_path, held, pytest.fail)
  for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(held), strict=True):
    assert one.sharding == other.sharding
    np.testing.assert_array_equal(one, other)
  # And to one device, where there are no others.
  alone, _ = checkpoint.newest(tmp_path, federation(sites=8, **parts).init(ADAPTER), pytest.fail)
  assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(alone))
