"""Secure aggregation: masks hide every update and are gone from the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import data, entries, federation, play
from scipy.stats import chisquare

from fedmedjax import tree
from fedmedjax.fed import ledger, sharing
from fedmedjax.fed.aggregators import secure
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.compression import float32
from fedmedjax.tree import weighted_sum

SITES = 5
WEIGHTS = jnp.array([0.1, 0.0, 0.3, 0.4, 0.2])
KEY = jax.random.key(3)


def draw(seed, sites=SITES, scale=1e-3):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(scale * rng.normal(size=(sites, *shape)), jnp.float32)
    for name, shape in (('a', (3, 64, 2)), ('b', (3, 2, 40)))}


sent = jax.jit(secure.messages)
mean = jax.jit(secure.masked_mean().apply)


def fixed(updates, weights, step):
  """Each site's numbers without masks, modulo 2^32, in numpy."""
  return {
    name: np.round(
      np.asarray(weights, np.float32).reshape(-1, 1, 1, 1) * np.asarray(x) / np.float32(step)
    ).astype(np.int64).astype(np.uint32) for name, x in updates.items()}


def test_a_sum_by_hand():
  """Updates 8 and -4, weights 1/4 and 3/4: magnitudes 2 and 3, so a step is 5 / 2^30; the numbers
  are 2^31 / 5 = 429496729.6 and -644245094.4, of which float32 keeps 24 bits; the sum is -1."""
  updates, weights = {'a': jnp.array([[8.0], [-4.0]])}, jnp.array([0.25, 0.75])
  step = secure.fixed_point_step(updates, weights)
  assert float(step) == pytest.approx(5 / 2**30)
  (total, fold) = secure.masked_mean().apply(updates, weights, key=KEY)
  assert fold == ()
  np.testing.assert_allclose(total['a'], [-1.0], rtol=1e-6)
  numbers = secure.messages(updates, weights, step, KEY)['a'].sum(axis=0, dtype=jnp.uint32)
  assert int(secure.signed(numbers)[0]) == pytest.approx(-214748364.8, abs=64)


def test_messages_by_the_protocol():
  """x_u and all masks that u shares: + PRG(u, v) with the sites after it, - PRG(v, u) with those
  before it, each pair with a key of its own at every distance. A weight below 0 is none."""
  updates, weights = {'a': jnp.arange(12.0).reshape(4, 3)}, jnp.array([0.25, -1.0, 0.25, 0.5])
  sends = np.asarray(weights) > 0
  # Magnitudes 2, 8 and 11: 0.5 + 2 + 5.5.
  assert float(secure.fixed_point_step(updates, weights)) == 8 / 2**30
  step = jnp.float32(2.0**-20)
  found = np.asarray(secure.messages(updates, weights, step, KEY)['a'])
  after, before = map(np.asarray, secure.neighbours(jnp.asarray(sends), KEY))

  def mask(adds, subtracts, distance):
    key = KEY
    for number in (distance, adds, subtracts):
      key = jax.random.fold_in(key, int(number))
    return np.asarray(jax.random.bits(jax.random.split(key, 1)[0], (3,), jnp.uint32))

  for site in range(4):
    expected = np.round(np.asarray(weights[site] * updates['a'][site] / step)).astype(np.int64)
    expected = expected.astype(np.uint32)
    for distance in range(4):
      expected = expected + mask(site, after[site, distance], distance)
      expected = expected - mask(before[site, distance], site, distance)
    np.testing.assert_array_equal(found[site], expected if sends[site] else np.zeros(3))


def test_where_nothing_was_learnt_the_sum_is_0():
  total, _ = secure.masked_mean().apply({'a': jnp.zeros((2, 3))}, jnp.ones(2) / 2, key=KEY)
  assert total['a'].tolist() == [0.0] * 3


@pytest.mark.parametrize('scale', [1e-12, 1e-3, 1e12])
def test_the_sum_is_the_weighted_mean(scale):
  """Within C / 2 steps and float32's rounding; an absent site's garbage does not count."""
  updates = draw(0, scale=scale)
  updates['a'] = updates['a'].at[1].set(jnp.nan)
  found, _ = mean(updates, WEIGHTS, key=KEY)
  expected = weighted_sum(updates, WEIGHTS)
  step = float(secure.fixed_point_step(updates, WEIGHTS))
  for name in expected:
    bound = SITES / 2 * step + 1e-6 * float(jnp.abs(expected[name]).max())
    assert float(jnp.abs(found[name] - expected[name]).max()) <= bound
  assert SITES / 2 * step < 1e-8 * scale


def test_an_update_that_is_not_finite_leaves_no_sum():
  """As with the plain mean: nothing that could be taken for a result."""
  updates = draw(0)
  found, _ = mean(updates | {'b': updates['b'].at[2].set(jnp.inf)}, WEIGHTS, key=KEY)
  assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_every_message_is_masked_and_only_the_sum_is_not():
  """The masks, messages less numbers, are not zero at any sender, and cancel to the last bit over
  all of them and over no smaller group; who does not send sends nothing."""
  updates = draw(1)
  step = secure.fixed_point_step(updates, WEIGHTS)
  messages, plain = sent(updates, WEIGHTS, step, KEY), fixed(updates, WEIGHTS, step)
  assert not np.asarray(messages['a'][1]).any()
  for name in plain:
    masks = np.asarray(messages[name]) - plain[name]
    assert not masks.sum(axis=0, dtype=np.uint32).any()
    senders = [0, 2, 3, 4]
    for group in range(1, 15):
      some = [site for place, site in enumerate(senders) if group >> place & 1]
      assert (masks[some].sum(axis=0, dtype=np.uint32) != 0).mean() > 0.99


def test_a_message_looks_uniform_and_tells_nothing_of_its_update():
  """The upper four bits of 8,192 numbers, all of one update's being alike: sixteen classes as even
  as chance makes them (p > 0.001), for every site; and new masks in another round."""
  updates = {'a': jnp.ones((3, 8192))}
  weights = jnp.array([0.2, 0.3, 0.5])
  step = secure.fixed_point_step(updates, weights)
  first, second = (np.asarray(sent(updates, weights, step, jax.random.key(k))['a']) for k in (0, 1))
  for site in range(3):
    counts = np.bincount(first[site] >> 28, minlength=16)
    assert chisquare(counts).pvalue > 1e-3
  assert (first != second).mean() > 0.999
  np.testing.assert_array_equal(
    first.sum(axis=0, dtype=np.uint32), second.sum(axis=0, dtype=np.uint32))


def test_the_masks_of_a_pair_that_meets_twice_are_two():
  """Of two senders each is the other's neighbour at distances 1 and 3. The same mask at both would
  be added twice, which leaves the lowest bit of every number as it is; half of 16,384 flip, within
  4 standard errors of 0.0039, at either site, and so do the others."""
  updates = {'a': jnp.ones((2, 16384))}
  weights = jnp.array([0.3, 0.7])
  step = secure.fixed_point_step(updates, weights)
  masks = np.asarray(sent(updates, weights, step, KEY)['a']) - fixed(
    {'a': updates['a'].reshape(2, 1, 1, -1)}, weights, step)['a'].reshape(2, -1)
  assert not masks.sum(axis=0, dtype=np.uint32).any()
  for bit in range(32):
    assert np.abs((masks >> bit & 1).mean(axis=1) - 0.5).max() < 4 * 0.0039


@pytest.mark.parametrize('senders', [1, 2, 5, 50])
def test_masks_are_shared_on_a_random_circle(senders):
  """Of 50 places: everyone who sends has k / 2 after and as many before it, each in both lists, and
  from neighbour to neighbour all are reached; up to 9 sites share masks with all others."""
  sends = np.random.default_rng(0).permutation(50) < senders
  after, before = map(np.asarray, secure.neighbours(jnp.asarray(sends), KEY))
  ids = np.flatnonzero(sends)
  pairs = {(site, other) for site in ids for other in after[site]}
  assert pairs == {(other, site) for site in ids for other in before[site]}
  assert {site for pair in pairs for site in pair} == set(ids)
  others = [set(after[site]) | set(before[site]) - {site} for site in ids]
  assert {len(group - {site}) for site, group in zip(ids, others, strict=True)} == {
    min(senders - 1, secure.NEIGHBOURS)}
  seen, site = set(), ids[0]
  while site not in seen:
    seen.add(site)
    site = after[site, 0]
  assert seen == set(ids)
  if senders == 50:
    assert after[:, 0].tolist() != np.roll(ids, -1).tolist()


def test_a_masked_round_is_fedavgs():
  """1.55 in every entry, as worked by hand for FedAvg."""
  algorithm = federation(aggregator=adaptive_mean(combine=secure.masked_mean()))
  state, metrics = play(algorithm, data())
  np.testing.assert_allclose(entries(state.adapter), (1.55, 1.55), rtol=1e-6)
  assert float(metrics.expected_gap) < 1e-6


def test_the_bytes_of_a_masked_message():
  """Four a value, as the messages have; a magnitude more up, a weight and a step down."""
  adapter = jax.tree.map(lambda x: x[0], draw(0))
  share = sharing.everything()
  plain = ledger.exchange(adapter, share, float32())
  exchanged = ledger.exchange(adapter, share, float32(), masked=True)
  updates = draw(0)
  one = jax.tree.map(
    lambda x: x[0], sent(updates, WEIGHTS, secure.fixed_point_step(updates, WEIGHTS), KEY))
  values = sum(e.bytes for e in exchanged.up if e.kind == 'adapter')
  assert values == tree.num_bytes(one) == 4 * (3 * 64 * 2 + 3 * 2 * 40)
  assert ledger.num_bytes(exchanged.up) - ledger.num_bytes(plain.up) == 4
  assert ledger.num_bytes(exchanged.down) - ledger.num_bytes(plain.down) == 8
  assert {e.codec for e in exchanged.up if e.kind == 'adapter'} == {'masked'}
