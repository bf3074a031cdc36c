"""Sites spread over groups of devices: those that do not fill them, and what sites keep."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quadratics import ADAPTER, data, federation

from fedmedjax.experiment import meshes
from fedmedjax.fed import rules
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites, spread_rows, spread_state, spread_vmap
from fedmedjax.fed.slots import make_slots, slot_map
from fedmedjax.fed.types import LocalData
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


@pytest.mark.parametrize('slots', [False, True])
def test_no_device_gets_what_all_sites_send(slots):
  """Six sites on four groups, in slots or not: no collective puts the factors of a cohort together
  or adds them up, only Gram matrices of 6 x 2 + 4 columns; without `by_rows` they do. The gap is
  that of one device."""
  adapter, given, spread = _factors(6)
  alone = federated_algorithm(_distance, 6)
  (_, metrics), _ = _played(alone, adapter, given)
  assert float(metrics.product_gap) > 0.01
  parts = {'place': spread_state(spread), 'map_sites': (slot_map if slots else _at_once)(
    0, spread, spread_vmap(spread))}
  if slots:
    laid = make_slots(np.arange(6), np.ones(6, int), 6, 4, 2)
    given = given._replace(slots=laid, batches=jax.device_put(
      given.batches[laid.place], NamedSharding(spread.mesh, PartitionSpec(spread.axes))))
  (_, spread_metrics), text = _played(
    federated_algorithm(_distance, 6, by_rows=spread_rows(spread), **parts), adapter, given)
  np.testing.assert_allclose(spread_metrics.product_gap, metrics.product_gap, rtol=1e-4)
  assert not _of_cohort(text) and 'all-to-all' in text
  assert 'f32[16,16]' in text
  _, planted = _played(federated_algorithm(_distance, 6, **parts), adapter, given)
  assert _of_cohort(planted)


def _at_once(chunk, spread, vmap):
  return map_sites(chunk, vmap=vmap)


def _factors(sites):
  """(adapter of three layers, what sites train on, four groups of devices)."""
  rng = np.random.default_rng(0)
  adapter = {'q': {'a': jnp.asarray(rng.normal(size=(3, 160, 2)), jnp.float32),
                   'b': jnp.asarray(rng.normal(size=(3, 2, 96)), jnp.float32)}}
  targets = rng.normal(size=(sites, 1, 3, 160, 96)).astype(np.float32)
  return adapter, LocalData(
    targets, np.ones((sites, 1), bool), np.ones(sites, np.float32)), meshes.spread_of(
      meshes.make_mesh(4, 1, 1), 0)


def _distance(adapter, base, batch):
  product = jnp.einsum('ldr,lro->ldo', adapter['q']['a'], adapter['q']['b'])
  return jnp.sum((product - 30 * batch) ** 2), 30.0 * len(batch)


def _played(algorithm, adapter, given):
  """(state and metrics after a round, the text of its program)."""
  state = algorithm.init(adapter)
  args = state, None, given, np.arange(len(given.weight)), None, jax.random.key(0)
  compiled = algorithm.round.lower(*args).compile()
  return compiled(*args), compiled.as_text()


def _of_cohort(text):
  """Shapes that are put together or added up from several devices and hold most sites' factors."""
  found = re.findall(r'= (.*?) (?:all-gather|all-reduce)(?:-start)?\(', text)
  shapes = [tuple(map(int, filter(None, one.split(',')))) for line in found
            for one in re.findall(r'f32\[([\d,]*)\]', line)]
  return [shape for shape in shapes if np.prod(shape) >= 4 * 3 * 96 * 2]
