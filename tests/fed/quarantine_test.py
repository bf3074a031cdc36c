"""Sites in quarantine: by hand, and as if they had not been there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import SIZES, data, entries, federation, play

from fedmedjax.fed import rules, server, sharing
from fedmedjax.fed.aggregators import robust
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.compression import float32, outbound, top_k
from fedmedjax.fed.quarantine import sound_sites
from fedmedjax.fed.types import Validation

ADAM = server.fedadam(learning_rate=0.1, momentum=0.9, b2=0.99, tau=1e-3)


def sound(norms, steps=None, losses=None, heard=None, explosion=10.0):
  steps = [1] * len(norms) if steps is None else steps
  mask = np.arange(max(steps))[None] < np.array(steps)[:, None]
  losses = np.where(mask, 1.0, np.nan) if losses is None else np.array(losses)
  heard = np.ones(len(norms), bool) if heard is None else np.array(heard)
  norms = jnp.array(norms, jnp.float32)
  return sound_sites(norms, norms, losses, mask, heard, explosion=explosion).tolist()


def test_explosions_by_hand():
  """Medians of (1, 1, 3, 50): 2, so 50 > 10 * 2 is out, and 20 is in. A step of norm 1 is a step
  of norm 1, however many there are: (30, 3, 1) after (30, 3, 1) steps. Infinities and absent sites
  are out of the median too: of (1, 9, inf, absent 400) it is 5."""
  assert sound([1, 1, 3, 50]) == [True, True, True, False]
  assert sound([1, 1, 3, 20]) == [True] * 4
  assert sound([1, 1, 3, 50], explosion=0.0) == [True] * 4
  assert sound([30, 3, 1], steps=[30, 3, 1], explosion=2.0) == [True] * 3
  assert sound([1, 9, np.inf, 400], heard=[1, 1, 1, 0]) == [True, True, False, False]
  assert sound([1, 1], losses=[[np.nan], [1.0]]) == [False, True]
  assert sound([np.nan, np.inf]) == [False, False]
  # Per step: 2.1, 1, 1 in one, two and two steps; and nothing of a site that took none.
  assert sound([2.1, 2, 2], steps=[1, 2, 2], explosion=2.0) == [False, True, True]
  assert sound([1, 1, 0], steps=[1, 1, 0]) == [True] * 3
  # Numbers in the place of padding do not matter.
  assert sound([1, 1], steps=[1, 2], losses=[[1.0, 1.0], [1.0, 1.0]]) == [True, True]
  assert sound([1, 1], steps=[1, 2], losses=[[1.0, 1.0], [1.0, np.inf]]) == [True, False]
  # One site alone, and two with 2 medians, cannot explode.
  assert sound([1e30]) == [True] and sound([1e-9, 1e9], explosion=2.0) == [True, True]


@pytest.mark.parametrize('fault', [np.nan, 1e6])
@pytest.mark.parametrize('parts', [
  {}, dict(aggregator=robust.median()), dict(rule=rules.control_variates(rate=0.5)),
  dict(server_optimizer=ADAM)], ids=['mean', 'median', 'scaffold', 'fedadam'])
def test_a_site_in_quarantine_was_not_there(fault, parts):
  """A third site that diverges against one of size 0: the same state, bit by bit."""
  algorithm = federation(sites=4, explosion=50.0, **parts)
  sizes = np.array([100, 300, 600, 200], np.float32)
  targets, four = (1.0, 2.0, 4.0, 3.0), (1, 1, 1, 1)
  broken, metrics = play(algorithm, data(
    four, (1.0, 2.0, fault, 3.0), (1.0,) * 4, sizes), 2)
  absent, _ = play(algorithm, data(
    four, targets, (1.0,) * 4, np.where(sizes == 600, 0, sizes)), 2)
  assert np.asarray(metrics.sound).tolist() == [True, True, False, True]
  assert metrics.weights[2] == 0
  for a, b in zip(jax.tree.leaves(broken), jax.tree.leaves(absent), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('share', [sharing.everything, sharing.nothing])
def test_with_all_sites_in_quarantine_nothing_moves(share):
  algorithm = federation(
    sharing=share(), rule=rules.control_variates(rate=0.5),
    server_optimizer=ADAM)
  before, _ = play(algorithm, data(), 2)
  kept = jax.tree.map(np.array, before)
  after, metrics = algorithm.round(
    before, jnp.float32(1.0), data(targets=(np.nan,) * 3), jnp.arange(3), None, jax.random.key(9))
  assert not np.asarray(metrics.sound).any() and not np.asarray(metrics.weights).any()
  assert int(after.round) == 2
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(kept), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('share', [sharing.everything, sharing.nothing])
def test_sound_sites_of_a_round_without_weights_keep_their_state(share):
  """A validation loss that is not a number leaves all sites sound and none with weight: the sites'
  adapters, control variates and error feedback stay as they were, too."""
  algorithm = federation(
    sharing=share(), rule=rules.control_variates(rate=0.5), server_optimizer=ADAM,
    compression=outbound(top_k(0.5, float32()), error_feedback=True),
    aggregator=adaptive_mean(loss_power=1.0))
  val = lambda target: Validation(  # noqa: E731
    {'target': jnp.array([target]), 'weight': jnp.ones(1), 'curvature': jnp.ones(1)}, jnp.eye(1))
  before, first = play(algorithm, data(), 2, val(2.0))
  assert (np.asarray(first.weights) > 0).all()
  kept = jax.tree.map(np.array, before)
  # Each of them has something to lose: error feedback of what is sent, or a site's own adapter.
  assert all(np.any(leaf) for leaf in jax.tree.leaves(kept.sites.ctrl))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(kept.sites._replace(ctrl=())))
  after, metrics = algorithm.round(
    before, jnp.float32(1.0), data(), jnp.arange(3), val(np.nan), jax.random.key(9))
  assert np.asarray(metrics.sound).all() and not np.asarray(metrics.weights).any()
  assert int(after.round) == 2
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(kept), strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_is_sent_has_to_be_finite_too():
  """Sites 1 and 2 learnt something finite, but their codec made it infinite, or no number."""
  learnt, one = jnp.ones(3), np.ones((3, 1))
  assert sound_sites(
    learnt, jnp.array([1.0, np.inf, np.nan]), one, one > 0, one[:, 0] > 0, explosion=0.0
  ).tolist() == [True, False, False]


def test_a_site_whose_codec_overflows_was_not_there():
  """Updates of half the target: that of the third, 2 in every entry, is sent as infinities. The
  mean of the others is (0.1 * 0.5 + 0.3 * 1) / 0.4 = 0.875."""
  overflowing = optax.stateless(
    lambda updates, _: jax.tree.map(lambda x: jnp.where(x > 1.5, jnp.inf, x), updates))
  state, metrics = play(federation(compression=overflowing), data())
  assert np.isfinite(metrics.local_norm).all()
  assert np.asarray(metrics.sound).tolist() == [True, True, False]
  assert entries(state.adapter) == pytest.approx((0.875, 0.875))


def test_a_bound_that_nobody_reaches_changes_nothing():
  """And one site alone, however long its update, trains: FedAvg from 0 at half the way."""
  for a, b in zip(*(jax.tree.leaves(play(federation(explosion=bound), data(), 2)[0])
                    for bound in (0.0, 100.0)), strict=True):
    np.testing.assert_array_equal(a, b)
  state, _ = play(
    federation(sites=1, explosion=2.0), data((1,), (1e6,), (1.0,), SIZES[:1]))
  assert entries(state.adapter) == pytest.approx((5e5, 5e5))


def test_sites_that_share_nothing_are_no_measure_of_each_other():
  """Targets 1, 2 and 1e6: the third's update is 3e5 medians long. Shared, it is left out; alone,
  every site trains: half the way. A loss that is not a number is left out all the same."""
  for share, expected in (
      (sharing.everything(), [True, True, False]), (sharing.nothing(), [True] * 3)):
    state, metrics = play(
      federation(sharing=share, explosion=100.0), data(targets=(1.0, 2.0, 1e6)))
    assert np.asarray(metrics.sound).tolist() == expected
  np.testing.assert_allclose(state.sites.adapter['layers']['q']['b'][2], np.full((1, 1, 2), 5e5))
  _, metrics = play(
    federation(sharing=sharing.nothing(), explosion=100.0), data(targets=(1.0, np.nan, 1e6)))
  assert np.asarray(metrics.sound).tolist() == [True, False, True]
