"""Sites in slots of the devices of their process: the same round, and nobody's examples move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ADAPTER, data, federation

from fedmedjax.experiment import meshes
from fedmedjax.fed import rules
from fedmedjax.fed.sites import spread_state, spread_vmap
from fedmedjax.fed.slots import make_slots, owner_group, slot_map, slots_computed, slots_needed


def test_who_computes_whom():
  """Five sites of four groups: 0 and 1 by group 0, then one each. Of a cohort of three the widest
  group has two. In its slots the site with more steps comes first; empty ones are not filled."""
  assert [owner_group(site, 5, 4) for site in range(5)] == [0, 0, 1, 2, 3]
  assert slots_needed([np.array([0, 1, 4]), np.array([2, 3, 4])], 5, 4) == 2
  slots = make_slots(np.array([0, 1, 4]), np.array([1, 3, 2]), 5, 4, 2)
  assert slots.place[:2].tolist() == [1, 0] and slots.place[6] == 2
  assert slots.filled.tolist() == [True, True, False, False, False, False, True, False]
  assert slots.slot.tolist() == [1, 0, 6]
  # Slot by slot: the first of each group until step 3, then the second until step 1.
  assert slots_computed(slots, np.array([1, 3, 2]), 4, 4) == 4 * 3 + 4 * 1
  assert slots_computed(slots, np.array([1, 3, 2]), 4, 0) == 8 * 3


@pytest.mark.parametrize('chunk', [0, 4])
def test_a_round_in_slots_is_the_round(chunk):
  """SCAFFOLD over five sites of unlike steps on 2 x 2 groups, all at once and slot by slot, in
  float64, where only the order of sums may differ: 1e-10."""
  steps, targets = (1, 3, 2, 1, 2), (1.0, 2.0, 4.0, 8.0, -3.0)
  spread = meshes.spread_of(meshes.make_mesh(2, 2, 1), chunk)
  with jax.enable_x64(True):
    adapter = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), ADAPTER)
    given = jax.tree.map(
      lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else np.asarray(x),
      data(steps, targets, (1.0, 0.5, 1.5, 1.0, 0.25), np.arange(1.0, 6.0)))
    slots = make_slots(np.arange(5), np.array(steps), 5, 4, 2)
    laid = given._replace(slots=slots, batches=jax.tree.map(
      # What an empty slot holds must not matter.
      lambda x: np.where(slots.filled[:, None], x[slots.place], np.nan), given.batches))
    ends = []
    for own, parts in ((given, {}), (laid, {
        'map_sites': slot_map(chunk, spread, spread_vmap(spread)), 'place': spread_state(spread)})):
      algorithm = federation(sites=5, rule=rules.control_variates(rate=0.5), **parts)
      state = algorithm.init(adapter)
      for number in range(2):
        state, metrics = algorithm.round(
          state, jnp.float64(1.0), own, np.arange(5), None, jax.random.key(number))
      ends.append((state, metrics))
  for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
