"""Codecs and error feedback: by hand, in the mean, and in a whole round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedmedjax.fed import rules, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.compression import (
  CODECS,
  bfloat16,
  compress,
  float32,
  outbound,
  quantised,
  sign,
  top_k,
  with_error_feedback,
)
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import LocalData, LocalOptimizer

# 20 values: no multiple of a block of 8, of the values in a byte, or of each other.
X = np.random.default_rng(0).normal(size=20).astype(np.float32)
LOSSY = [
  bfloat16(), quantised(8), quantised(4, 8), quantised(2), sign(8), top_k(0.2, float32()),
  top_k(0.5, quantised(4))]
UNBIASED = [bfloat16(), quantised(8), quantised(4, 8), quantised(2)]


def read(codec, x, key=0):
  """What the other end reads."""
  x = jnp.asarray(x, jnp.float32)
  return np.asarray(codec.decode(codec.encode(x, jax.random.key(key)), x.size))


def test_integers_by_hand():
  """Four bits, blocks of 2: max 7 and 3.5 give scales 1 and 0.5, so all values are on the grid;
  codes 7 + (7, -3 | 0, -7) = 14, 4, 7, 0 in nibbles, the first low: 0x4e, 0x07. The last block
  holds one value: 2 is its own maximum, scale 2 / 7, code 7 + 7: 0x0e."""
  codec = quantised(4, 2)
  parts = codec.encode(jnp.array([7.0, -3.0, 0.0, -3.5, 2.0]), jax.random.key(0))
  np.testing.assert_allclose(parts['scales'], (1.0, 0.5, 2 / 7))
  assert parts['codes'].tolist() == [0x4E, 0x07, 0x0E] and parts['codes'].dtype == jnp.uint8
  np.testing.assert_allclose(codec.decode(parts, 5), (7.0, -3.0, 0.0, -3.5, 2.0), rtol=1e-6)


@pytest.mark.parametrize('draw', [0.0, 1 - 2**-24])
def test_values_on_the_grid_stay_whatever_is_drawn(draw, monkeypatch):
  """The least and the largest number that can be drawn; with 4 bits -7 to 7 times the scale."""
  monkeypatch.setattr(jax.random, 'uniform', lambda key, shape: jnp.full(shape, draw))
  codec = quantised(4, 4)
  grid = jnp.array([7.0, -3.0, 0.0, -7.0])
  np.testing.assert_array_equal(codec.decode(codec.encode(grid, None), 4), grid)


def test_codecs_by_name():
  """Eight values in blocks of four: 32 and 16 bytes of floats; 8, 4 and 1 of codes, and two scales.
  """
  assert set(CODECS) == {'float32', 'bfloat16', 'int8', 'int4', 'sign'}
  for name, sizes in (('float32', {'values': 32}), ('bfloat16', {'values': 16}),
                      ('int8', {'scales': 8, 'codes': 8}), ('int4', {'scales': 8, 'codes': 4}),
                      ('sign', {'scales': 8, 'codes': 1})):
    codec = CODECS[name](4)
    parts = codec.encode(jnp.asarray(X[:8]), jax.random.key(0))
    assert codec.name == name and {part: x.nbytes for part, x in parts.items()} == sizes


def test_sign_by_hand():
  """|x| = 1, 2, 3 | 6: means 2 and 6; bits 1 0 1 | 0 -> 0b0101."""
  codec = sign(3)
  parts = codec.encode(jnp.array([1.0, -2.0, 3.0, -6.0]), jax.random.key(0))
  assert parts['codes'].tolist() == [0b0101] and parts['scales'].tolist() == [2.0, 6.0]
  assert codec.decode(parts, 4).tolist() == [2.0, -2.0, 2.0, -6.0]
  # Nothing counts as positive: |x| = 0, 4, mean 2.
  parts = codec.encode(jnp.array([0.0, -4.0]), jax.random.key(0))
  assert codec.decode(parts, 2).tolist() == [2.0, -2.0]


def test_top_k_by_hand():
  """3 of 4 values: a mask of 1 byte is shorter than 3 indices of 2. 1 of 100: one index of 2
  bytes is shorter than a mask of 13. Of equal sizes the first is kept."""
  x = jnp.array([1.0, -4.0, 2.0, 3.0])
  codec = top_k(0.75, float32())
  parts = codec.encode(x, jax.random.key(0))
  assert parts['mask'].tolist() == [0b1110] and parts['kept']['values'].tolist() == [-4, 2, 3]
  assert codec.decode(parts, 4).tolist() == [0, -4, 2, 3]
  long = jnp.zeros(100).at[37].set(-5.0)
  parts = top_k(0.01, float32()).encode(long, jax.random.key(0))
  assert parts['indices'].tolist() == [37] and parts['indices'].dtype == jnp.uint16
  np.testing.assert_array_equal(read(top_k(0.01, float32()), long), long)
  assert top_k(0.01, float32()).encode(jnp.zeros(2**17), jax.random.key(0))[
    'indices'].dtype == jnp.uint32
  assert read(top_k(0.5, float32()), [2.0, -2.0, 1.0, 2.0]).tolist() == [2, -2, 0, 0]
  # One at least, and no more than all.
  assert read(top_k(0.001, float32()), x).tolist() == [0, -4, 0, 0]
  assert top_k(1.5, quantised(4)).name == 'int4'


def test_places_are_said_the_shorter_way():
  """Of 2^16 values an index has 2 bytes, of one more 4. Of 16 values one index and the mask have 2
  bytes each: the mask is taken; of 17 the mask has 3."""
  def places(n):
    parts = jax.eval_shape(
      top_k(1 / n, float32()).encode, jax.ShapeDtypeStruct((n,), jnp.float32), jax.random.key(0))
    return {name: str(array.dtype) for name, array in parts.items() if name != 'kept'}

  assert [places(n) for n in (16, 17, 2**16, 2**16 + 1)] == [
    {'mask': 'uint8'}, {'indices': 'uint16'}, {'indices': 'uint16'}, {'indices': 'uint32'}]


def test_bfloat16_by_hand():
  """1 + 2^-9 is a quarter of the way from 1 to the next bfloat16, 1 + 2^-7: 1/4 go up."""
  codec = bfloat16()
  found = np.asarray(read(codec, np.full(40_000, 1 + 2**-9)))
  assert set(found.tolist()) == {1.0, 1 + 2**-7}
  assert abs((found > 1).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 40_000)
  # A NaN whose bits are all ones becomes -0 by adding noise to them.
  worst = np.array([0x7FFFFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
  np.testing.assert_array_equal(read(codec, worst), worst)


@pytest.mark.parametrize('codec', UNBIASED, ids=lambda codec: codec.name)
def test_stochastic_rounding_is_right_in_the_mean(codec):
  """Over 4,000 keys within 4.5 standard errors (of 20 values, two-sided: once in 7,000 runs were
  the keys not fixed), while a single rounding is off by up to a step."""
  keys = jax.random.split(jax.random.key(1), 4000)
  flat = jnp.asarray(X)
  drawn = np.asarray(jax.vmap(lambda key: codec.decode(codec.encode(flat, key), 20))(keys))
  error = drawn.std(axis=0) / np.sqrt(len(keys))
  # A value on the grid, such as the largest, has no spread but rounding.
  assert (np.abs(drawn.mean(axis=0, dtype=np.float64) - X) <= 4.5 * error + 1e-6).all()
  assert (drawn != drawn[0]).any()


@pytest.mark.parametrize('codec', LOSSY, ids=lambda codec: codec.name)
def test_nothing_gives_nothing_and_not_a_number_stays(codec):
  assert not read(codec, np.zeros(20)).any()
  broken = X.copy()
  broken[3] = np.nan
  assert np.isnan(read(codec, broken)).any()


def test_neutral_elements():
  """Every value of 32 bits, the top all, no clip: the update itself."""
  update = {'a': jnp.asarray(X).reshape(2, 5, 2), 'b': jnp.ones((3,))}
  for codec in (float32(), top_k(1.0, float32())):
    for neutral in (
        outbound(codec), outbound(codec, clip_norm=1e9), outbound(codec, clip_norm=np.inf),
        outbound(codec, error_feedback=True)):
      sent, _ = neutral.update(update, neutral.init(update), key=jax.random.key(0))
      jax.tree.map(np.testing.assert_array_equal, sent, update)
  # Nor does the whole need places.
  assert top_k(1.0, quantised(4)).name == 'int4'


def test_clip_by_hand():
  """|(3, 4)| = 5 over both leaves, clipped to 1: (0.6, 0.8)."""
  update = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  clip = outbound(float32(), clip_norm=1.0)
  sent, _ = clip.update(update, clip.init(update), key=jax.random.key(0))
  np.testing.assert_allclose([sent['a'][0], sent['b'][0]], [0.6, 0.8], rtol=1e-6)


def test_leaves_of_a_tree_are_rounded_apart():
  """Equal leaves, one key: rounded with the same noise they would come out equal."""
  update = {'a': jnp.asarray(X), 'b': jnp.asarray(X)}
  sent, _ = compress(quantised(2)).update(update, optax.EmptyState(), key=jax.random.key(0))
  assert (sent['a'] != sent['b']).any()


@pytest.mark.parametrize('codec', LOSSY, ids=lambda codec: codec.name)
def test_error_feedback_loses_nothing(codec):
  """Sum of what was sent + residual = sum of the updates, over ten rounds."""
  sender = with_error_feedback(compress(codec))
  update = jax.jit(sender.update)
  state, total, sent_total = sender.init(jnp.asarray(X)), np.zeros(20), np.zeros(20)
  for number in range(10):
    one = jnp.sin(jnp.asarray(X) * (number + 1))
    sent, state = update(one, state, key=jax.random.key(number))
    total, sent_total = total + np.asarray(one), sent_total + np.asarray(sent)
  np.testing.assert_allclose(sent_total + state.residual, total, rtol=1e-6, atol=2e-6)
  assert np.abs(state.residual).max() > 1e-4


def test_a_diverged_round_is_not_owed():
  sender = with_error_feedback(compress(sign()))
  _, state = sender.update(
    jnp.array([1.0, jnp.nan]), sender.init(jnp.zeros(2)), key=jax.random.key(0))
  assert np.isfinite(state.residual).all() and state.residual[1] == 0
  # What is left to itself compresses and no more.
  assert outbound(sign()).init(jnp.zeros(2)) == optax.EmptyState()


@pytest.mark.parametrize('codec', [sign(), top_k(0.25, float32())], ids=lambda codec: codec.name)
def test_error_feedback_reaches_the_optimum_where_a_biased_codec_stalls(codec):
  """Two sites pull at four values: gradients (x - 1) + g and (x - 1) - g with g = (8, -8, 8, 0).
  The optimum of their sum is 1 in every place. Alone, the signs of the first three (or the top one,
  always among them) cancel, and the last place hardly moves; with feedback what was left out
  comes in time."""
  pull = jnp.array([8.0, -8.0, 8.0, 0.0])
  pulls = jnp.stack([pull, -pull])

  def distance(sender):
    sender = optax.with_extra_args_support(sender)

    def step(carry, number):
      x, state = carry
      key = jax.random.fold_in(jax.random.key(0), number)
      update = -0.02 * (x[None] - 1.0 + pulls)
      sent, state = jax.vmap(
        lambda u, s, site: sender.update(u, s, key=jax.random.fold_in(key, site)))(
          update, state, jnp.arange(2))
      return (x + sent.mean(axis=0), state), None

    state = jax.vmap(sender.init)(pulls)
    (x, _), _ = jax.lax.scan(step, (jnp.zeros(4), state), jnp.arange(2000))
    return float(jnp.abs(x - 1.0).max())

  alone, fed_back = distance(compress(codec)), distance(with_error_feedback(compress(codec)))
  assert fed_back < 0.25 < 0.9 < alone


ADAPTER = {'q': {'a': jnp.zeros((4, 1)), 'b': jnp.zeros((1, 4))}}
RAMP = jnp.linspace(0.1, 1.0, 4)


def quadratic(adapter, base, batch):
  """Sum of (leaf - target)^2 / 2, the target a vector for either leaf."""
  error = sum(jnp.sum((x.reshape(-1) - batch['target']) ** 2) for x in jax.tree.leaves(adapter))
  return base * error / 2, jnp.float32(1.0)


def federation(sender, chunk=0):
  return federated_algorithm(
    loss_fn=quadratic, gradient=mean_gradient, ranks=same_ranks(),
    optimizer=LocalOptimizer(optax.identity(), lambda step, num_steps: 0.3), rule=rules.plain(),
    sharing=sharing.everything(), compression=sender, aggregator=adaptive_mean(),
    server_optimizer=optax.sgd(1.0), map_sites=map_sites(chunk), num_sites=3)


def play(algorithm, rounds=(0,), weights=(1.0, 1.0, 1.0), targets=(1.0, 1.0, 1.0), state=None):
  """Rounds of these numbers, one step each: from 0, updates of 0.3 * target * RAMP."""
  data = LocalData(
    {'target': jnp.asarray(targets)[:, None, None] * RAMP[None, None]}, jnp.ones((3, 1), bool),
    jnp.asarray(weights))
  state = algorithm.init(ADAPTER) if state is None else jax.tree.map(jnp.array, state)
  for number in rounds:
    state, metrics = algorithm.round(
      state, jnp.float32(1.0), data, jnp.arange(3), None,
      jax.random.fold_in(jax.random.key(0), number))
  return state, metrics


@pytest.fixture(scope='module')
def coarse():
  """Two bits with error feedback: residuals show how each update was rounded."""
  return federation(outbound(quantised(2), error_feedback=True))


def residuals(state):
  return np.asarray(state.sites.outbound.residual['q']['b'])[:, 0]


def test_sites_and_rounds_have_noise_of_their_own(coarse):
  """Equal updates at three sites; one key for all sites would round them equally. So would one
  key for all rounds."""
  first, second = (residuals(play(coarse, (number,))[0]) for number in (0, 1))
  assert len({tuple(one) for one in first}) > 1
  assert (first != second).any()
  np.testing.assert_array_equal(first, residuals(play(coarse, (0,))[0]))


def test_a_site_that_sends_nothing_keeps_what_it_owes_and_spoils_nothing(coarse):
  """The second round without site 1, whose numbers are not finite: the server's step is the mean
  of the others, site 1 keeps its residual; with it present instead, the run is spoilt."""
  before, _ = play(coarse)
  after, metrics = play(coarse, (1,), (1.0, 0.0, 3.0), (1.0, np.nan, 1.0), before)
  np.testing.assert_array_equal(residuals(after)[1], residuals(before)[1])
  assert (residuals(after)[[0, 2]] != residuals(before)[[0, 2]]).any()
  np.testing.assert_allclose(metrics.weights, (0.25, 0, 0.75))
  assert float(metrics.update_norm[1]) == 0 and np.isfinite(metrics.step_norm)
  finite, _ = play(coarse, (1,), (1.0, 0.0, 3.0), (1.0, 1.0, 1.0), before)
  jax.tree.map(np.testing.assert_array_equal, after, finite)
  assert coarse.round._cache_size() == 1


def test_a_codec_of_all_bits_is_no_codec():
  with_codec, without = (
    play(federation(sender), (0, 1), targets=(1.0, 2.0, -4.0))
    for sender in (outbound(float32()), optax.identity()))
  jax.tree.map(np.testing.assert_array_equal, with_codec, without)


def test_noise_does_not_depend_on_how_sites_are_laid_out(coarse):
  targets = (1.0, 2.0, -4.0)
  together = play(coarse, (0, 1), targets=targets)
  apart = play(
    federation(outbound(quantised(2), error_feedback=True), 1), (0, 1), targets=targets)
  for one, two in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
