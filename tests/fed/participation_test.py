"""Cohorts against their laws, and simulated rounds by hand."""

import math
import subprocess
import sys
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedmedjax.fed import participation, rules, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.compression import float32, outbound, top_k
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.participation import (
  NEVER,
  Cohort,
  Fleet,
  Sampler,
  by_size,
  cyclic,
  last_taken,
  lognormal_fleet,
  poisson,
  round_participation,
  uniform,
)
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import LocalData, LocalOptimizer

SIZES = np.array([10.0, 20.0, 30.0, 40.0, 300.0])
DRAWS = 4000


def frequencies(sampler) -> np.ndarray:
  """How often each site is present."""
  counts = np.zeros(len(sampler.inclusion))
  for number in range(DRAWS):
    cohort = sampler.draw(number)
    assert len(set(cohort.sites.tolist())) == sampler.size == len(cohort.present)
    np.add.at(counts, cohort.sites[cohort.present], 1)
  return counts / DRAWS


def test_inclusion_by_size_by_hand():
  """C = 3: 3 * 300 / 400 > 1, so site 4 comes always; the other two places are shared by
  (10, 20, 30, 40) / 100: 0.2, 0.4, 0.6, 0.8."""
  np.testing.assert_allclose(by_size(SIZES, 3, 0).inclusion, (0.2, 0.4, 0.6, 0.8, 1.0))
  np.testing.assert_allclose(by_size(SIZES, 5, 0).inclusion, np.ones(5))
  np.testing.assert_allclose(by_size(np.ones(3), 3, 0).inclusion, np.ones(3))


@pytest.mark.parametrize('sampler', [
  uniform(5, 3, 0), by_size(SIZES, 3, 0), poisson(5, 3, 0), by_size(SIZES, 5, 0)])
def test_sites_come_as_often_as_they_should(sampler):
  """Within 4 standard errors. Drawing by size one after the other would give site 0 0.29 here."""
  expected = sampler.inclusion
  error = np.sqrt(expected * (1 - expected) / DRAWS)
  assert (np.abs(frequencies(sampler) - expected) <= 4 * error + 1e-12).all()


def test_fixed_cohorts_are_full_and_pairs_all_occur():
  for sampler in (uniform(5, 3, 0), by_size(np.arange(1, 6), 2, 0)):
    drawn = [sampler.draw(number) for number in range(1000)]
    assert all(cohort.present.all() for cohort in drawn)
    assert len({tuple(cohort.sites) for cohort in drawn}) == 10


def test_inclusion_does_not_depend_on_the_unit_of_sizes():
  """Also where all sites come: 0.1 * 3 / (0.1 + 0.1 + 0.1) is less than 1 by rounding."""
  np.testing.assert_allclose(by_size(SIZES / 1000, 3, 0).inclusion, (0.2, 0.4, 0.6, 0.8, 1.0))
  assert by_size(np.full(3, 0.1), 3, 0).inclusion.tolist() == [1, 1, 1]
  # 2 * 3 / 5 > 1; the others share one place.
  np.testing.assert_allclose(by_size(np.array([1.0, 1.0, 3.0]), 2, 0).inclusion, (0.5, 0.5, 1))


def stream(use: str, number: int, seed: int = 0):
  return np.random.default_rng((seed, zlib.crc32(use.encode()), number + 1))


def test_the_draws_of_a_seed_stay_what_they_are():
  """A run that is resumed has to find the cohorts and speeds of the run that was interrupted. By
  size the fifth site comes always; of the others, laid end to end in a random order, come those in
  which u and u + 1 fall."""
  for number in range(20):
    rng = stream('cohort', number)
    assert uniform(5, 3, 0).draw(number).sites.tolist() == sorted(rng.permutation(5)[:3])
    rng = stream('cohort', number)
    order, u = rng.permutation(4), rng.random()
    ends = np.cumsum(np.array([0.2, 0.4, 0.6, 0.8])[order])
    drawn = [order[np.argmax(ends > place)] for place in (u, u + 1)]
    assert by_size(SIZES, 3, 0).draw(number).sites.tolist() == sorted([4, *drawn])
    cohort = poisson(5, 3, 0).draw(number)
    came = np.flatnonzero(stream('cohort', number).random(5) < 0.6)
    assert cohort.sites[cohort.present].tolist() == came.tolist()
  fleet = lognormal_fleet(3, 7, step_seconds=2.0, speed_spread=0.5)
  np.testing.assert_allclose(
    fleet.step_seconds, 2 * np.exp(0.5 * stream('speed', 0, 7).standard_normal(3)))
  turn = go(lognormal_fleet(5, 0, failure=0.5), number=3)
  assert (turn.steps == 0).tolist() == (stream('failure', 3).random(5) < 0.5).tolist()


def test_places_of_poisson_cohorts():
  """Of three sites of which one comes, all may; where nobody is expected there is one place."""
  assert poisson(3, 1, 0).size == 3 and poisson(3, 0, 0).size == 1
  # P(more than k of 1,000) at 0.001: the first below 1e-12 by its sum, k = 14.
  chances = [math.comb(1000, k) * 0.001**k * 0.999**(1000 - k) for k in range(40)]
  first = next(k for k in range(40) if sum(chances[k + 1:]) < 1e-12)
  assert poisson(1000, 1, 0).size == first


def test_a_probability_is_that_of_falling_below_it(monkeypatch):
  """Of draws of exactly 1/2 none is below 1/2."""
  half = SimpleNamespace(
    random=lambda count: np.full(count, 0.5), permutation=lambda values: values)
  monkeypatch.setattr(participation, '_rng', lambda *_: half)
  assert not poisson(4, 2, 0).draw(0).present.any()
  turn = go(Fleet(0, np.zeros(5), np.zeros(5), 0.5, np.inf), Sampler(
    5, np.ones(5), lambda number: Cohort(np.arange(5, dtype=np.int32), np.ones(5, bool))))
  assert turn.steps.all()


def test_padding_neither_steps_nor_takes_time():
  """Whether or not it would have broken down."""
  fleet = Fleet(0, np.ones(5), np.ones(5), 0.9, np.inf)
  for number in range(5):
    turn = go(fleet, poisson(5, 1, 0), number)
    away = ~turn.cohort.present
    assert away.any() and not turn.steps[away].any() and not turn.seconds[away].any()


def test_a_fleet_of_its_own_accord_is_perfect():
  fleet = lognormal_fleet(3, 7)
  assert (fleet.seed, fleet.failure, fleet.deadline) == (7, 0.0, np.inf)
  assert not fleet.step_seconds.any() and not fleet.byte_seconds.any()
  assert lognormal_fleet(3, 7, deadline=5.0).deadline == 5.0


def test_the_last_round_of_a_site_is_looked_for_in_all_rounds_before():
  """Cohorts (0, 1), (2, 1), (2, 3), (2, 1), (2, 3) of which site 3 is padding in round 2. Before
  round 0 nobody has come. Before round 1 sites 0 and 1 have, one round ago; before round 5 site 0
  five rounds ago, site 1 two, sites 2 and 3 one."""
  rounds = [([0, 1], 2), ([1, 2], 2), ([2, 3], 1), ([1, 2], 2), ([2, 3], 2)]
  sampler = Sampler(2, np.full(4, 0.5), lambda number: Cohort(
    np.array(rounds[number][0], np.int32), np.arange(2) < rounds[number][1]))
  expected = [
    [-1, -1, -1, -1], [0, 0, NEVER, NEVER], [0, 1, 1, NEVER], [0, 1, 2, NEVER],
    [0, 3, 3, NEVER], [0, 3, 4, 4]]
  assert [last_taken(sampler, number).tolist() for number in range(6)] == expected


def test_poisson_cohorts_vary_about_their_mean_and_fit():
  """S = 1,000, mean 50: variance S q (1 - q) = 47.5; padding is other sites, never one twice."""
  sampler = poisson(1000, 50, 0)
  drawn = [sampler.draw(number) for number in range(2000)]
  counts = np.array([cohort.present.sum() for cohort in drawn])
  assert abs(counts.mean() - 50) < 4 * np.sqrt(47.5 / 2000)
  # Standard error of a variance: s^2 sqrt(2 / n).
  assert abs(counts.var() - 47.5) < 4 * 47.5 * np.sqrt(2 / 2000)
  assert counts.max() < sampler.size < 150
  assert poisson(1, 1, 0).size == 1
  assert all(len(set(cohort.sites.tolist())) == sampler.size for cohort in drawn[:50])


def test_sites_in_turn_are_as_far_apart_as_they_can_be():
  """7 sites, 3 a round: each comes in 3 of 7 rounds, 2 rounds or more after its last one."""
  sampler = cyclic(7, 3, 1)
  turns = {site: [number for number in range(21) if site in sampler.draw(number).sites]
           for site in range(7)}
  assert all(len(own) == 9 and min(np.diff(own)) == 2 for own in turns.values())


def test_a_draw_is_a_function_of_seed_and_round():
  for make in (
      lambda seed: uniform(50, 5, seed), lambda seed: by_size(np.arange(1, 51), 5, seed),
      lambda seed: poisson(50, 5, seed)):
    one, two, other = make(1), make(1), make(2)
    for number in (3, 0):
      assert one.draw(number).sites.tolist() == two.draw(number).sites.tolist()
    assert one.draw(0).sites.tolist() != one.draw(1).sites.tolist()
    assert one.draw(0).sites.tolist() != other.draw(0).sites.tolist()


def test_the_cohort_of_all_is_in_order():
  for sampler in (uniform(5, 5, 3), by_size(SIZES, 5, 3), poisson(5, 5, 3)):
    cohort = sampler.draw(7)
    assert cohort.sites.tolist() == [0, 1, 2, 3, 4] and cohort.present.all()
    # So a round of it is given what a round without sampling is given.
    turn = go(lognormal_fleet(5, 0), sampler, 7)
    assert turn.weights.tolist() == SIZES.tolist() and turn.steps.tolist() == [4] * 5


def test_smoothed_weights_pass_over_absent_sites():
  """mu = 0.5. Round 1: (0.1, 0.3, 0.6). Round 2 without site 2: fresh (1/4, 3/4), past (0.1, 0.3)
  / 0.4 = (1/4, 3/4). Round 3 without site 0: fresh (1/3, 2/3), past (0.75, 0.6) / 1.35 =
  (5/9, 4/9): (4/9, 5/9); had site 2 been noted with 0, its share would be 1/3."""
  aggregator = adaptive_mean(ema=0.5)
  state, found = aggregator.init({}, 3), []
  for sizes in ((100.0, 300.0, 600.0), (100.0, 300.0, 0.0), (0.0, 300.0, 600.0)):
    out = aggregator.update(
      {'a': jnp.zeros((3, 1))}, state, weights=jnp.array(sizes), cohort=jnp.arange(3),
      anchor=None, local=None, key=None)
    state = out.state
    found.append(out.weights)
  np.testing.assert_allclose(
    found, [(0.1, 0.3, 0.6), (0.25, 0.75, 0), (0, 4 / 9, 5 / 9)], atol=1e-6)


def go(fleet, sampler=None, number=0, planned=4):
  """A round of 5 sites with 100 bytes down and 200 up."""
  return round_participation(
    sampler or uniform(5, 5, 0), fleet, number, sizes=SIZES, planned=np.full(5, planned),
    bytes_down=100, bytes_up=200)


def test_a_simulated_round_by_hand():
  """300 bytes at 0.01 s take 3 s; 4 steps of 1, 2, 3, 8, 0.5 s. Deadline 11 s: 7 and 11 are in
  time, 15 has (11 - 3) / 3 = 2 steps and ends after 9 s, 35 has one step (11 s), 5 is in time.
  Weights n_k steps / 4. With 4 s: only the last has any, (4 - 3) / 0.5 = 2."""
  fleet = Fleet(0, np.array([1.0, 2.0, 3.0, 8.0, 0.5]), np.full(5, 0.01), 0.0, 11.0)
  turn = go(fleet)
  assert turn.steps.tolist() == [4, 4, 2, 1, 4]
  np.testing.assert_allclose(turn.seconds, (7, 11, 9, 11, 5))
  np.testing.assert_allclose(turn.weights, (10, 20, 15, 10, 300))
  assert turn.round_seconds == 11
  # One step of 8 s ends 1 s before the deadline, and nobody waits for the rest of it.
  almost = go(fleet._replace(deadline=12.0))
  assert almost.steps.tolist() == [4, 4, 3, 1, 4]
  np.testing.assert_allclose(almost.seconds, (7, 11, 12, 11, 5))
  # Steps that take no time need only the message to arrive.
  instant = go(fleet._replace(step_seconds=np.zeros(5), deadline=2.9))
  assert not instant.steps.any() and instant.round_seconds == 2.9
  # One step planned and taken is all of it, none planned is nothing.
  for planned, share in ((1, 1.0), (0, 0.0)):
    np.testing.assert_allclose(go(lognormal_fleet(5, 0), planned=planned).weights, SIZES * share)
  # Who has no step to take is done with the message.
  np.testing.assert_allclose(go(fleet, planned=0).seconds, np.full(5, 3.0))
  late = go(fleet._replace(deadline=4.0))
  assert late.steps.tolist() == [1, 0, 0, 0, 2]
  np.testing.assert_allclose(late.weights, (2.5, 0, 0, 0, 150))
  # Who misses the round is waited for until the deadline.
  np.testing.assert_allclose(late.seconds, (4, 4, 4, 4, 4))
  nobody = go(fleet._replace(deadline=2.9))
  assert not nobody.steps.any() and not nobody.weights.any() and nobody.round_seconds == 2.9
  patient = go(fleet._replace(deadline=np.inf))
  assert patient.steps.tolist() == [4] * 5 and patient.round_seconds == 35


def test_weights_undo_uneven_draws():
  """C = 3, pi = (0.2, 0.4, 0.6, 0.8, 1): n_k * 0.6 / pi_k = 30 for the first four, 180 for the
  fifth. So pi_k * weight is n_k * C / S for all: the mean over rounds weighs by size."""
  sampler = by_size(SIZES, 3, 0)
  perfect = lognormal_fleet(5, 0)
  for number in range(5):
    turn = go(perfect, sampler, number)
    expected = np.array([30, 30, 30, 30, 180])[turn.cohort.sites]
    np.testing.assert_allclose(turn.weights, expected)
  assert turn.round_seconds == 0


def test_failures_come_as_often_as_they_should():
  """One in four; the broken send nothing and break anywhere on their way, half of it on average.
  Whether a site fails does not depend on who else is in the cohort."""
  fleet = lognormal_fleet(5, 0, step_seconds=2.0, failure=0.25)
  turns = [go(fleet, number=number) for number in range(DRAWS)]
  broken = np.array([turn.steps == 0 for turn in turns])
  error = np.sqrt(0.25 * 0.75 / DRAWS)
  assert (np.abs(broken.mean(axis=0) - 0.25) < 4 * error).all()
  assert all((turn.weights[turn.steps == 0] == 0).all() for turn in turns)
  lasted = np.concatenate([turn.seconds[turn.steps == 0] for turn in turns]) / 8
  assert 0 <= lasted.min() and lasted.max() <= 1
  assert abs(lasted.mean() - 0.5) < 4 / np.sqrt(12 * len(lasted))
  some = go(fleet, uniform(5, 2, 0), 3)
  assert (some.steps == 0).tolist() == broken[3][some.cohort.sites].tolist()


def test_speeds_are_lognormal_and_a_sites_own():
  """Median 2 s and log-deviation 0.5 over 4,000 sites; 1 / bandwidth seconds a byte."""
  fleet = lognormal_fleet(
    DRAWS, 0, step_seconds=2.0, speed_spread=0.5, bandwidth=1e6, bandwidth_spread=0.25)
  for values, median, deviation in (
      (fleet.step_seconds, 2.0, 0.5), (fleet.byte_seconds, 1e-6, 0.25)):
    logs = np.log(values / median)
    assert abs(logs.mean()) < 4 * deviation / np.sqrt(DRAWS)
    assert abs(logs.std() / deviation - 1) < 4 / np.sqrt(2 * DRAWS)
  same = lognormal_fleet(DRAWS, 0, step_seconds=1.0)
  assert (same.step_seconds == 1).all() and not same.byte_seconds.any()
  assert np.isinf(same.deadline)
  assert (lognormal_fleet(DRAWS, 0, bandwidth=2.0).byte_seconds == 0.5).all()


ADAPTER = {'q': {'a': jnp.zeros((4, 1)), 'b': jnp.zeros((1, 4))}}
TARGETS = np.array([1.0, 2.0, 4.0, -1.0, -3.0, 0.5], np.float32)
NUM = len(TARGETS)


def quadratic(adapter, base, batch):
  error = sum(jnp.sum((x - batch['target']) ** 2) for x in jax.tree.leaves(adapter))
  return base * error / 2, jnp.float32(1.0)


@pytest.fixture(scope='module')
def algorithm():
  return federated_algorithm(
    loss_fn=quadratic, gradient=mean_gradient, ranks=same_ranks(),
    optimizer=LocalOptimizer(optax.identity(), lambda step, num_steps: 0.3), rule=rules.plain(),
    sharing=sharing.everything(), compression=outbound(top_k(0.25, float32()), error_feedback=True),
    aggregator=adaptive_mean(), server_optimizer=optax.sgd(1.0), map_sites=map_sites(0),
    num_sites=NUM)


def play(algorithm, sampler, rounds, fleet=None):
  """Rounds of two steps; what a site does not do is filled with garbage."""
  state = algorithm.init(ADAPTER)
  for number in range(rounds):
    turn = round_participation(
      sampler, fleet or lognormal_fleet(NUM, 0), number, sizes=np.arange(1.0, NUM + 1),
      planned=np.full(NUM, 2), bytes_down=1, bytes_up=1)
    mask = np.arange(2)[None] < turn.steps[:, None]
    targets = np.where(mask, TARGETS[turn.cohort.sites][:, None], np.nan)
    state, metrics = algorithm.round(
      state, jnp.float32(1.0), LocalData({'target': targets}, mask, turn.weights),
      turn.cohort.sites, None, jax.random.fold_in(jax.random.key(0), number))
  return state, metrics


def test_padding_never_changes_results(algorithm):
  """A Poisson cohort of about 2 in C places against the same sites in places of their own: the
  adapter and every site's state agree to 1e-6."""
  sampler = poisson(NUM, 2, 5)
  assert sampler.size == NUM  # so few sites leave room for all: both rounds have one shape

  def shuffled(number):
    cohort = sampler.draw(number)
    order = np.random.default_rng(number).permutation(NUM)
    return type(cohort)(cohort.sites[order], cohort.present[order])

  counts = [int(sampler.draw(number).present.sum()) for number in range(5)]
  assert min(counts) >= 1 and len(set(counts)) > 1
  padded, _ = play(algorithm, sampler, 5)
  spread, _ = play(algorithm, sampler._replace(draw=shuffled), 5)
  for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_five_rounds_of_changing_cohorts_compile_once(algorithm):
  play(algorithm, poisson(NUM, 4, 1), 5, lognormal_fleet(NUM, 0, failure=0.2))
  play(algorithm, uniform(NUM, NUM, 0), 2)
  assert algorithm.round._cache_size() == 1


def test_absent_sites_keep_their_state_and_the_mean_is_of_those_who_came(algorithm):
  """First round, two steps of rate 0.3 from 0: update 0.51 * target in all 8 places, of which
  top-k sends one in each leaf of 4; the residual holds it in the 3 others, at present sites."""
  sampler = poisson(NUM, 2, 5)
  turn = sampler.draw(0)
  state, metrics = play(algorithm, sampler, 1)
  owed = np.asarray(state.sites.outbound.residual['q']['a'])[..., 0]
  came = np.isin(np.arange(NUM), turn.sites[turn.present])
  assert not owed[~came].any()
  np.testing.assert_allclose(
    owed[came], 0.51 * TARGETS[came][:, None] * np.array([[0, 1, 1, 1]]), rtol=1e-5)
  sizes = np.arange(1.0, NUM + 1) * came
  mean = 0.51 * (sizes * TARGETS).sum() / sizes.sum()
  np.testing.assert_allclose(state.adapter['q']['b'], [[mean, 0, 0, 0]], rtol=1e-5)
  assert not np.asarray(metrics.weights)[~turn.present].any()


THOUSAND = """
import resource, sys
import jax, numpy as np, optax
from fedmedjax.fed import rules, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.compression import outbound, quantised
from fedmedjax.fed.participation import lognormal_fleet, round_participation, uniform
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import LocalData, LocalOptimizer

S, C, K, P = 1000, 50, 4, 1024
def loss(adapter, base, batch):
  return ((adapter['q']['b'][0] - batch['target']) ** 2).sum() / 2, jax.numpy.float32(1)
algorithm = federated_algorithm(
  loss_fn=loss, gradient=mean_gradient, ranks=same_ranks(),
  optimizer=LocalOptimizer(optax.identity(), lambda step, num_steps: 0.3), rule=rules.plain(),
  sharing=sharing.everything(), compression=outbound(quantised(4, 64), error_feedback=True),
  aggregator=adaptive_mean(), server_optimizer=optax.sgd(1.0), map_sites=map_sites(0),
  num_sites=S)
state = algorithm.init({'q': {'a': np.zeros((1, 1), 'f4'), 'b': np.zeros((1, P), 'f4')}})
sampler, fleet = uniform(S, C, 0), lognormal_fleet(S, 0, step_seconds=1.0, failure=0.1)
for number in range(int(sys.argv[1])):
  turn = round_participation(
    sampler, fleet, number, sizes=np.arange(1, S + 1), planned=np.full(S, K), bytes_down=4 * P,
    bytes_up=P)
  rng = np.random.default_rng(number)
  targets = 1 + 0.1 * rng.standard_normal((C, K, P), np.float32)
  mask = np.arange(K)[None] < turn.steps[:, None]
  state, metrics = algorithm.round(
    state, np.float32(1), LocalData({'target': targets}, mask, turn.weights), turn.cohort.sites,
    None, jax.random.fold_in(jax.random.key(0), number))
  if number + 1 in map(int, sys.argv[2:]):
    jax.block_until_ready(state)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert algorithm.round._cache_size() == 1
assert abs(float(state.adapter['q']['b'].mean()) - 1) < 0.05
"""


def test_a_thousand_sites_with_a_cohort_of_fifty_keep_memory_flat():
  """In a process of its own, the peak in KiB after 120 rounds against that after 20: within three
  copies of the sites' state (1,000 * 1,024 floats). Keeping anything of 120 kB a round would show;
  a round's batches are 0.8 MB."""
  done = subprocess.run(
    [sys.executable, '-c', THOUSAND, '120', '20', '120'], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  early, late = map(int, done.stdout.split())
  assert late - early < 3 * 4096, (early, late)
