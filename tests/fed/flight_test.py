"""FedBuff by hand: who fills the buffer when, from which adapters, and what it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import ADAPTER, data, entries, federation, play

from fedmedjax.fed import participation
from fedmedjax.fed.anchors import newest
from fedmedjax.fed.buffered import buffered, places
from fedmedjax.fed.flight import in_flight
from fedmedjax.types import InputError

# Sites of 1, 2 and 5 seconds, all of which compute, and a step for every two updates:
#   t = 2: sites 0 and 1, both fresh; they start again.     t = 4: the same two.
#   t = 5: site 0, and site 2, two steps late.              t = 6: site 0, and site 1, one late.
SECONDS, PLACES = np.array([1.0, 2.0, 5.0]), 4


def arrivals(number):
  return buffered(SECONDS, 3, 2, seed=0).arrivals(number)


def test_the_clock_by_hand():
  """Adapters 0 to 3 lie at places 0, 1, 1 and 0: of each place another one is still in use."""
  found = [arrivals(number) for number in range(4)]  # each from the beginning, as on resuming
  assert [one.sites.tolist() for one in found] == [[0, 1], [0, 1], [0, 2], [0, 1]]
  assert [one.delay.stale.tolist() for one in found] == [[0, 0], [0, 0], [0, 2], [0, 1]]
  assert [one.since for one in found] == [2, 2, 1, 1]
  assert found[2].seconds.tolist() == [1, 5]
  assert [int(one.delay.write) for one in found] == [0, 1, 1, 0]
  assert [one.delay.read.tolist() for one in found] == [[0, 0], [1, 1], [1, 0], [0, 1]]
  assert places(3, 3, 2) == PLACES and places(100, 4, 2) == 6


def steps(anchors, count=4):
  """The adapter after each of so many steps, of sites of one size with targets 1, 2 and 4."""
  algorithm, found = federation(anchors=anchors), []
  state, everyone = algorithm.init(ADAPTER), data(sizes=np.ones(3, np.float32))
  for number in range(count):
    now = arrivals(number)
    chosen = jax.tree.map(lambda x: x[now.sites], everyone)._replace(delay=now.delay)  # noqa: B023
    state, _ = algorithm.round(
      state, jnp.float32(1.0), chosen, now.sites, None, jax.random.key(number))
    value, other = entries(state.adapter)
    assert value == other
    found.append(value)
  assert algorithm.round._cache_size() == 1
  return found


def test_steps_of_the_server_by_hand():
  """A site moves by (target - x) / 2 from the x it was sent. x: 0; + (0.5 + 1) / 2 = 0.75;
  + (0.125 + 0.625) / 2 = 1.125; + (-0.0625 + 2 / sqrt(3)) / 2 = 1.6711, as site 2 started at 0;
  + (-0.33555 + 0.4375 / sqrt(2)) / 2 = 1.6580, as site 1 started at 1.125.

  Planted: updates that count whole however late, and sites that start from the newest adapter.
  """
  flight = in_flight(PLACES)
  assert steps(flight) == pytest.approx([0.75, 1.125, 1.6711003, 1.6580045], rel=1e-6)
  assert steps(flight._replace(arrived=newest().arrived), 3)[2] == pytest.approx(2.09375)
  assert steps(flight._replace(start=newest().start), 3)[2] == pytest.approx(
    1.125 + (-0.0625 + 1.4375 / np.sqrt(3)) / 2)


def test_without_delays_it_is_fedavg():
  """The cohorts of uniform draws, and after three rounds of AdamW's sites the very same bits."""
  sampler, uniform = buffered(np.zeros(5), 3, 3, seed=7), participation.uniform(5, 3, 7)
  for number in range(4):
    for one, other in zip(sampler.draw(number), uniform.draw(number), strict=True):
      np.testing.assert_array_equal(one, other)
    assert not sampler.arrivals(number).delay.stale.any()
  sizes, plan = np.arange(1.0, 6.0, dtype=np.float32), np.full(5, 4)
  turns = [participation.round_participation(
    one, participation.lognormal_fleet(5, 7), 1, sizes=sizes, planned=plan, bytes_down=0,
    bytes_up=0) for one in (sampler, uniform)]
  for key in ('steps', 'weights', 'seconds', 'round_seconds'):
    np.testing.assert_array_equal(*(getattr(turn, key) for turn in turns))
  whole = data((2, 3, 1))
  waits, state = (play(federation(anchors=one), given, 3)[0] for one, given in (
    (newest(), whole),
    (in_flight(4), whole._replace(delay=sampler.arrivals(0).delay))))
  for one, other in zip(
      jax.tree.leaves((waits.adapter, waits.sites)), jax.tree.leaves((state.adapter, state.sites)),
      strict=True):
    np.testing.assert_array_equal(one, other)


def test_many_sites_of_unlike_speed():
  """No site is twice in a buffer, places of adapters in use are not written, and all sites come."""
  seconds = participation.lognormal_fleet(30, 3, step_seconds=1.0, speed_spread=1.0).step_seconds
  seconds[4] = np.inf
  sampler, kept, came = buffered(seconds, 8, 3, seed=3), {}, set()
  for number in range(200):
    sites, delay, _, since = sampler.arrivals(number)
    kept[int(delay.write)] = number
    assert len(set(sites.tolist())) == 3 and since >= 0 and delay.write < places(30, 8, 3)
    assert [kept[place] for place in delay.read.tolist()] == (number - delay.stale).tolist()
    came |= set(sites.tolist())
  assert came == set(range(30)) - {4} and sampler.arrivals(199).delay.stale.max() < 200
  with pytest.raises(InputError, match='config.fed.buffer=3: only 2 sites have notes'):
    buffered(np.array([1.0, np.inf, 2.0]), 3, 3, 0)
