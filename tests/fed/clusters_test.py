"""Clustered adapters by hand: who is with whom, and what each group learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import ADAPTER, data, entries, federation, play

from fedmedjax.fed import clusters, local, sharing
from fedmedjax.fed.round import global_adapter, site_adapter

TWO = federation(anchors=clusters.clustered(2))
APART = data(targets=(1.0, 2.0, -4.0))


def test_average_linkage_by_hand():
  """Points 0, 1, 2.1 and 3.4 on a line. 0 and 1 are joined, then 2.1 and 3.4, which are 1.3 apart,
  while 2.1 is (1.1 + 2.1) / 2 = 1.6 from the pair; by its nearest member, 1.1, it would join that.

  A site that is not heard joins the largest group; numbers are in the order of first members."""
  points = jnp.array([3.4, 0.0, 1.0, 2.1])
  distance = jnp.abs(points[:, None] - points[None])
  everyone = jnp.ones(4, bool)
  found = {groups: clusters.similar(distance, everyone, groups).tolist() for groups in (1, 2, 3, 4)}
  assert found == {1: [0] * 4, 2: [0, 1, 1, 0], 3: [0, 1, 1, 2], 4: [0, 1, 2, 3]}
  heard = jnp.array([True, True, True, False])
  assert clusters.similar(distance, heard, 2).tolist() == [0, 1, 1, 1]
  assert clusters.similar(distance, heard & False, 2).tolist() == [0] * 4


def test_distances_by_hand():
  """Of two layers the cosines of B are 0.6 and -1: (0.4 + 2) / 2 = 1.2. A does not count, nor does
  the length of a B; of zeros nothing is near."""
  b = jnp.array([[[3.0, 4.0], [1.0, 0.0]], [[10.0, 0.0], [-5.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
  sent = {'a': jnp.arange(6.0).reshape(3, 2, 1, 1), 'b': b[:, :, None]}
  np.testing.assert_allclose(
    clusters.distances({'q': sent}), [[0, 1.2, 1], [1.2, 0, 1], [1, 1, 1]], atol=1e-6)


def test_two_rounds_by_hand():
  """Updates 0.5, 1 and -2 from 0: the third points away. Sizes 100, 300, 600: groups' adapters are
  0.25 * 0.5 + 0.75 * 1 = 0.875 and -2; then + 0.25 * 0.0625 + 0.75 * 0.5625 = 1.3125, and -3.
  One adapter for all: 0.4 * 1.3125 - 0.6 * 3 = -1.275.

  Planted: one group, which is plain FedAvg; and groups that start from the adapter of the first."""
  everything = sharing.everything()
  state, metrics = play(TWO, APART, 2)
  assert metrics.cluster.tolist() == [0, 0, 1] == state.anchors.of.tolist()
  for site, expected in enumerate((1.3125, 1.3125, -3)):
    assert entries(site_adapter(state, everything, site)) == pytest.approx((expected, expected))
  assert entries(global_adapter(state, everything, np.array([0.1, 0.3, 0.6]))) == pytest.approx(
    (-1.275, -1.275))
  np.testing.assert_allclose(metrics.weights, (0.1, 0.3, 0.6), rtol=1e-6)
  np.testing.assert_allclose(metrics.cosine, 1, rtol=1e-6)
  # Four numbers a group: 2 sqrt(0.4375^2 + 1).
  np.testing.assert_allclose(metrics.step_norm, 2 * np.hypot(0.4375, 1), rtol=1e-6)
  assert int(state.round) == 2 and float(metrics.expected_gap) < 1e-6
  assert TWO.round._cache_size() == 1
  (planted, _) = play(federation(anchors=clusters.clustered(2)._replace(
    start=lambda state, site: jax.tree.map(lambda x: x[0], state.adapter))), APART, 2)
  assert entries(site_adapter(planted, everything, 2))[0] == pytest.approx(-2 - 4.875 / 2)


def test_one_group_is_fedavg():
  """Three rounds of AdamW and a server with a memory; the second site is not there at first."""
  parts = dict(optimizer=local.adamw(0.3, weight_decay=0.1), server_optimizer=optax.sgd(0.7, 0.9))
  given = data((2, 3, 1), targets=(1.0, 2.0, -4.0))
  (one, first), (state, metrics) = (
    play(federation(**parts, **more), given, 3) for more in (
      {}, {'anchors': clusters.clustered(1)}))
  group = jax.tree.map(lambda x: x[0], (state.adapter, state.server_opt))
  for a, b in zip(
      jax.tree.leaves((one.adapter, one.server_opt, first)),
      jax.tree.leaves((*group, metrics._replace(cluster=None))), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_group_that_nobody_is_heard_of_stays():
  """The third site, alone in its group, is absent in round 2: of that group nothing moves."""
  state, _ = play(TWO, APART)
  absent = APART._replace(weight=APART.weight.at[2].set(0))
  state, metrics = TWO.round(
    state, jnp.float32(1.0), absent, jnp.arange(3), None, jax.random.key(1))
  assert entries(site_adapter(state, sharing.everything(), 2)) == (-2, -2)
  assert entries(site_adapter(state, sharing.everything(), 0))[0] == pytest.approx(1.3125)
  np.testing.assert_allclose(metrics.weights, (0.25, 0.75, 0), rtol=1e-6)
  # Nobody at all: nothing is grouped, and the round does not count.
  state, metrics = TWO.round(
    TWO.init(ADAPTER), jnp.float32(1.0), APART._replace(weight=jnp.zeros(3)), jnp.arange(3),
    None, jax.random.key(0))
  assert not state.anchors.found and int(state.round) == 0 and not metrics.weights.any()
