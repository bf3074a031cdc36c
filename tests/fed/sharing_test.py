"""What is trained and what travels: FFA-LoRA, FedSA-LoRA, RoLoRA, single-site."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import ADAPTER, PATHS, data, entries, federation, play

from fedmedjax import tree
from fedmedjax.fed import local, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.round import global_adapter, site_adapter
from fedmedjax.fed.types import LocalOptimizer, Validation
from fedmedjax.types import InputError

ONES = jax.tree.map(lambda x: x + 1.0, ADAPTER)


def test_ffa_freezes_a_for_good_and_sends_b():
  """A stays 1 in spite of AdamW's decay and a server with momentum; B moves."""
  share = sharing.only_b(PATHS)
  algorithm = federation(
    sharing=share, optimizer=local.adamw(0.1, weight_decay=0.5),
    server_optimizer=optax.sgd(1.0, momentum=0.9))
  state, _ = play(algorithm, data(), 3, start=ONES)
  assert entries(state.adapter)[0] == 1.0 and entries(state.adapter)[1] != 1.0
  assert [leaf.shape for leaf in sharing.shared_part(share, ADAPTER, 0)] == [(1, 1, 2)]


def test_what_is_frozen_does_not_count_in_the_clipping_norm():
  """The gradient of B is -t in 2 entries, of length sqrt(2) t, clipped to 1: 1 / sqrt(2) each, and
  a step of rate 0.5 is 0.35355 at every site. With A's 2 entries the length would be 2 t, the
  step 0.25."""
  clipped = LocalOptimizer(optax.clip_by_global_norm(1.0), lambda step, num_steps: 0.5)
  state, metrics = play(federation(sharing=sharing.only_b(PATHS), optimizer=clipped), data())
  assert entries(state.adapter) == pytest.approx((0.0, 0.5 / 2**0.5))
  np.testing.assert_allclose(metrics.local_norm, np.full(3, 0.5), rtol=1e-6)


def test_fedsa_by_hand():
  """One step of rate 0.5 a round. A: 1.55 as in FedAvg, B: each site's own, target (1 - 1/4) after
  two rounds; averaged once for all by size: 0.75 (0.1 + 0.6 + 2.4) = 2.325."""
  share = sharing.only_a(PATHS)
  state, metrics = play(federation(sharing=share), data(), 2)
  for site, target in enumerate((1.0, 2.0, 4.0)):
    # A: from 1.55 half the way to the mean target 3.1.
    assert entries(site_adapter(state, share, site)) == pytest.approx((2.325, 0.75 * target))
  everyone = global_adapter(state, share, jnp.array([0.1, 0.3, 0.6]))
  assert entries(everyone) == pytest.approx((2.325, 2.325))
  assert entries(state.adapter)[1] == 0.0
  # What is sent is A alone: 2 entries of (target - 1.55) / 2.
  np.testing.assert_allclose(
    metrics.update_norm, np.abs(np.array([1, 2, 4]) - 1.55) / 2 * 2**0.5, rtol=1e-5)
  assert not sharing.shares_all(share, ADAPTER)


def test_rolora_takes_turns_in_one_program():
  """B in rounds 0 and 2, A in round 1: after each, the mean of halves of the targets."""
  share = sharing.alternating(PATHS)
  algorithm = federation(sharing=share)
  found = [entries(play(algorithm, data(), rounds)[0].adapter) for rounds in (1, 2, 3)]
  np.testing.assert_allclose(found, [(0, 1.55), (1.55, 1.55), (1.55, 2.325)], rtol=1e-6)
  assert algorithm.round._cache_size() == 1
  sent = [[p for p in PATHS if share.trained(p, number)] for number in (0, 1, 2)]
  assert sent == [['layers/q/b'], ['layers/q/a'], ['layers/q/b']]
  assert [len(sharing.shared_part(share, ADAPTER, number)) for number in (0, 1)] == [1, 1]


def test_turns_are_of_factors_only():
  """In no round is a leaf trained that is neither."""
  share = sharing.alternating([*PATHS, 'layers/q/bias'])
  assert not any(share.trained('layers/q/bias', number) for number in range(3))
  traced = jax.vmap(lambda number: share.trained('layers/q/a', number))(jnp.arange(4))
  assert traced.tolist() == [False, True, False, True]


@pytest.mark.parametrize('missing', ['absent', 'in quarantine', 'without a validation loss'])
def test_rolora_waits_for_a_round_that_changes_something(missing):
  """B in round 1; in round 2 nobody can be used, so round 3 is A's turn, and round 4 B's."""
  algorithm = federation(
    sharing=sharing.alternating(PATHS), aggregator=adaptive_mean(loss_power=1.0))
  nobody = {
    'absent': data(sizes=np.zeros(3, np.float32)), 'in quarantine': data(targets=(np.nan,) * 3),
    'without a validation loss': data()}[missing]
  state, moved = algorithm.init(ADAPTER), []
  for number, one in enumerate([data(), nobody, data(), data()]):
    target = np.nan if number == 1 and missing == 'without a validation loss' else 2.0
    before = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(state.adapter)]
    state, _ = algorithm.round(
      state, jnp.float32(1.0), one, jnp.arange(3), Validation(
        {'target': jnp.array([target]), 'weight': jnp.ones(1), 'curvature': jnp.ones(1)},
        jnp.eye(1)), jax.random.key(number))
    after = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(state.adapter)]
    moved.append([a != b for a, b in zip(after, before, strict=True)])
  assert moved == [[False, True], [False, False], [True, False], [False, True]]
  assert int(state.round) == 3


def test_rolora_under_server_momentum_leaves_the_frozen_factor():
  """The server's memory of B's last step must not move B while A has its turn."""
  algorithm = federation(
    sharing=sharing.alternating(PATHS), server_optimizer=optax.sgd(1.0, momentum=0.9))
  one, two = (entries(play(algorithm, data(), rounds)[0].adapter) for rounds in (1, 2))
  assert two[1] == one[1] and two[0] == pytest.approx(1.55)


@pytest.mark.parametrize('build', [sharing.only_a, sharing.only_b, sharing.alternating])
def test_a_pattern_that_matches_nothing_is_an_error(build):
  with pytest.raises(InputError, match='no leaf of the adapter ends in'):
    build(['layers/kernel'])


def test_select_zeroes_what_is_no_number():
  assert not tree.select({'x': jnp.array(jnp.nan)}, lambda path: False)['x'].any()
