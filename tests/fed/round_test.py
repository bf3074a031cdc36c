"""The federated core on problems small enough to work by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import ADAPTER, SIZES, data, entries, federation, play, quadratic

from fedmedjax import tree
from fedmedjax.data.layout import ShapeBucket
from fedmedjax.fed import local, rules, sharing
from fedmedjax.fed.aggregators.product_gap import product_gap
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.round import federated_algorithm, site_adapter
from fedmedjax.fed.types import (
  Aggregate,
  Aggregator,
  Combine,
  LocalData,
  LocalOptimizer,
  Validation,
)
from fedmedjax.tree import weighted_sum


def test_schedule_by_hand():
  """10 steps, 20 % warm-up: 0.5, 1 of the peak, then the half cosine over 8 steps to 0."""
  rate = local.warmup_cosine(2.0, 0.2)
  found = [float(rate(jnp.int32(k), jnp.int32(10))) for k in (0, 1, 2, 6, 9)]
  expected = [1.0, 2.0, 2.0, 1.0, 1.0 + np.cos(np.pi * 7 / 8)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # A warm-up as long as the round is over with its only step.
  assert float(local.warmup_cosine(2.0, 0.6)(jnp.int32(0), jnp.int32(1))) == 2.0


@pytest.mark.parametrize('share, steps, warmup', [
  (0.72, 1400, 1008),  # 1009 when float32 numbers are rounded up
  (0.05, 20, 1), (0.07, 100, 7), (0.55, 100, 55), (0.1, 30, 3), (1 / 3, 9, 3), (2 / 3, 1200, 800),
  (0.29, 100, 29), (0.05, 21, 2), (0.001, 1000, 1), (0.0, 50, 0), (0.9, 1000, 900)])
def test_warm_up_takes_whole_steps_exactly(share, steps, warmup):
  """The first `warmup` steps rise to the peak, ceil(share * steps) of them, and the next falls."""
  rate = local.warmup_cosine(1.0, share)
  at = lambda step: float(rate(jnp.int32(step), jnp.int32(steps)))  # noqa: E731
  if warmup:
    assert at(warmup - 1) == 1.0
    assert at(0) == pytest.approx(1 / warmup, rel=1e-6)
  assert at(warmup) == 1.0 and at(warmup + 1) < 1.0


def test_shares_are_fractions_of_at_most_ten_thousand():
  """1 / 10,000 of 10,000 steps is one, and 1 / 10,001 is taken for it: 10,001 steps have two."""
  for share, steps, warmup in ((1e-4, 10_000, 1), (1 / 10_001, 10_001, 2)):
    first = local.warmup_cosine(1.0, share)(jnp.int32(0), jnp.int32(steps))
    assert float(first) == pytest.approx(1 / warmup)


def test_adamw_is_optaxs():
  """Five steps of the direction times the rate against optax.adamw with the same schedule."""
  ours = local.adamw(0.1, weight_decay=0.01, clip_norm=1.0, warmup_share=0.4)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(lambda k: ours.rate(k, jnp.int32(5)), weight_decay=0.01))
  p = q = jnp.array([1.0, -2.0, 3.0])
  s, t = ours.transform.init(p), theirs.init(q)
  for k in range(5):
    grad = jnp.sin(jnp.arange(3.0) + k) * 3
    u, s = ours.transform.update(grad, s, p)
    p = p - ours.rate(jnp.int32(k), jnp.int32(5)) * u
    v, t = theirs.update(grad, t, q)
    q = optax.apply_updates(q, v)
  np.testing.assert_allclose(p, q, rtol=1e-6)


def test_adamws_defaults():
  """docs/methods.md, section 6: Adam's own, no decay, clipped to 1 (seen in the step after a long
  gradient), warm-up over 5 % of 40 steps."""
  ours, theirs = local.adamw(0.1), optax.chain(
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.999, 1e-8))
  p = jnp.array([5.0, -5.0])
  s, t = ours.transform.init(p), theirs.init(p)
  for length in (6.0, 0.5):
    u, s = ours.transform.update(length * jnp.array([0.6, 0.8]), s, p)
    v, t = theirs.update(length * jnp.array([0.6, 0.8]), t, p)
    np.testing.assert_array_equal(u, v)
  found = [float(ours.rate(jnp.int32(k), jnp.int32(40))) for k in range(3)]
  np.testing.assert_allclose(found, (0.05, 0.1, 0.1), rtol=1e-5)


def test_a_round_of_fedavg_by_hand():
  """One step of rate 0.5 from 0: local = target / 2 = (0.5, 1, 2); sizes (0.1, 0.3, 0.6):
  mean 0.05 + 0.3 + 1.2 = 1.55 in every entry. Update norms over 4 entries: 2 local."""
  state, metrics = play(federation(), data())
  np.testing.assert_allclose(state.adapter['layers']['q']['a'], np.full((1, 2, 1), 1.55), rtol=1e-6)
  np.testing.assert_allclose(metrics.update_norm, (1.0, 2.0, 4.0), rtol=1e-6)
  np.testing.assert_allclose(metrics.step_norm, 3.1, rtol=1e-6)
  np.testing.assert_allclose(metrics.weights, (0.1, 0.3, 0.6), rtol=1e-6)
  np.testing.assert_allclose(metrics.cosine, np.ones(3), rtol=1e-6)
  assert float(metrics.expected_gap) < 1e-6 and int(state.round) == 1


def test_the_rate_follows_the_steps_that_a_site_takes():
  """Rates 0.5 (k + 1) / K: of one step 0.5, t / 2; of two 0.25 and 0.5, t / 4 + 3 t / 8 = 5 t / 8:
  0.5, 1.25, 2 -> 0.05 + 0.375 + 1.2 = 1.625."""
  rising = LocalOptimizer(optax.identity(), lambda step, num_steps: 0.5 * (step + 1) / num_steps)
  state, metrics = play(federation(optimizer=rising), data((1, 2, 1)))
  assert entries(state.adapter) == pytest.approx((1.625, 1.625))
  np.testing.assert_allclose(metrics.local_norm, (1.0, 2.5, 4.0), rtol=1e-6)


def test_what_is_left_out_makes_fedavg():
  """Steps of rate 0.1 of all sites at once, in three of which two pad: from 0 local = target (1 -
  0.9^n): 0.1, 0.542, 0.76; by size 0.01 + 0.1626 + 0.456. However far sites go, all count."""
  told = []
  algorithm = federated_algorithm(quadratic, 3, on_step=lambda *args: told.append(args))
  state, metrics = play(algorithm, data((1, 3, 2)))
  jax.effects_barrier()
  assert entries(state.adapter) == pytest.approx((0.6286, 0.6286)) and len(told) == 9
  _, metrics = play(algorithm, data((1, 3, 2), targets=(1.0, 2.0, 1e6)))
  assert np.asarray(metrics.sound).all()


def test_a_step_is_computed_in_the_first_bucket_that_holds_it():
  """Shapes of one and two numbers of four. Steps 1, 0 0 and more, 2 3 and 0 0 4 5 lie in the first,
  the second and the whole; each step's loss is the sum of what is kept, and its gradient too."""
  bucket = lambda size: ShapeBucket(  # noqa: E731
    lambda batch: batch[:size], lambda batch: (batch[size:] == 0).all())
  widths = []

  def gradient(adapter, base, batch, key):
    widths.append(len(batch))
    return 10.0 * len(batch) + batch.sum(), -batch.sum()

  training = local.local_training(
    gradient, local.sgd(1.0), rules.plain(), lambda path: True, lambda values: values,
    shape_buckets=(bucket(1), bucket(2)))
  batches = jnp.array([[1.0, 0, 0, 0], [2, 3, 0, 0], [0, 0, 4, 5]])
  mask, anchor = jnp.ones(3, bool), jnp.float32(0.0)
  done = training.advance(
    jnp.int32(0), jnp.int32(3), training.start(anchor, mask), anchor, None, batches, mask, (), (),
    jnp.int32(0), jax.random.key(0))
  assert done.losses.tolist() == [11, 25, 49] and float(done.adapter) == 15
  assert set(widths) == {1, 2, 4} and int(done.taken) == 3


def test_the_loss_at_the_anchor_by_hand():
  """From 0 a step's loss is 2 target^2 a token: of site 0 2 * 1; of site 1, with 0.25 and 0.5
  tokens, (0.25 * 8 + 0.5 * 18) / 0.75 = 44 / 3; site 2 takes no step. Padding does not count."""
  seen = []

  def update(updates, state, *, start_loss, weights, **_):
    jax.debug.callback(lambda loss: seen.append(np.asarray(loss)), start_loss)
    return weighted_sum(updates, weights), state

  given = LocalData(
    {'target': jnp.array([[1.0, 9.0], [2.0, 3.0], [5.0, 5.0]]), 'curvature': jnp.ones((3, 2)),
     'weight': jnp.array([[2.0, 7.0], [0.25, 0.5], [1.0, 1.0]])},
    jnp.array([[True, False], [True, True], [False, False]]), jnp.ones(3))
  play(federation(aggregator=Aggregator(lambda adapter: (), update)), given)
  jax.effects_barrier()
  np.testing.assert_allclose(seen, [[2, 44 / 3, 0]], rtol=1e-6)


def test_padded_steps_are_not_taken():
  """(1, 3, 2) steps: local = target (1 - 0.5^n): 0.5, 1.75, 3 -> 0.05 + 0.525 + 1.8 = 2.375."""
  state, metrics = play(federation(), data((1, 3, 2)))
  np.testing.assert_allclose(
    state.adapter['layers']['q']['b'], np.full((1, 1, 2), 2.375), rtol=1e-6)
  assert np.isnan(metrics.train_loss).tolist() == [
    [False, True, True], [False, False, False], [False, False, True]]
  # Mean loss of the first step: 4 entries of target^2 / 2.
  np.testing.assert_allclose(metrics.train_loss[:, 0], (2.0, 8.0, 32.0), rtol=1e-6)


def test_every_step_is_told_padded_ones_as_such():
  """(site, step, loss, active): a site's first step has the loss 2 target^2, a later one a quarter
  of that; a padded step has no loss, and the number of the step that it would have been."""
  told = []
  algorithm = federation(on_step=lambda *args: told.append(tuple(x.item() for x in args)))
  play(algorithm, data((1, 2, 1)))
  jax.effects_barrier()
  assert sorted(line for line in told if line[3]) == [
    (0, 0, 2.0, True), (1, 0, 8.0, True), (1, 1, 2.0, True), (2, 0, 32.0, True)]
  padded = sorted(line for line in told if not line[3])
  assert [line[:2] for line in padded] == [(0, 1), (2, 1)]
  assert all(np.isnan(line[2]) for line in padded)


@pytest.mark.parametrize('chunk', [1, 2, 3])
def test_results_do_not_depend_on_how_sites_are_laid_out(chunk):
  """With AdamW, unlike step counts and validation weights, two rounds."""
  val = Validation(
    {'target': jnp.array([1.0, 3.0]), 'weight': jnp.ones(2), 'curvature': jnp.ones(2)},
    jnp.eye(2))
  kwargs = dict(
    aggregator=adaptive_mean(loss_power=1.0), optimizer=local.adamw(0.3, weight_decay=0.1))
  one, first = play(federation(0, **kwargs), data((2, 3, 1)), 2, val)
  two, second = play(federation(chunk, **kwargs), data((2, 3, 1)), 2, val)
  for a, b in zip(jax.tree.leaves((one, first)), jax.tree.leaves((two, second)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_validation_losses_by_hand():
  """Groups (1) and (3, 5 | weights 1, 3): local adapters v = (0.5, 1, 2) in 4 entries give per
  token 2 (v - t)^2; group 2 means (1 * 2(v-3)^2 + 3 * 2(v-5)^2) / 4; the loss is the plain mean
  of both groups."""
  val = Validation(
    {'target': jnp.array([1.0, 3.0, 5.0]), 'weight': jnp.array([1.0, 1.0, 3.0]),
     'curvature': jnp.ones(3)},
    jnp.array([[1.0, 0], [0, 1], [0, 1]]))
  _, metrics = play(federation(aggregator=adaptive_mean(loss_power=1.0)), data(), 1, val)
  v = np.array([0.5, 1.0, 2.0])
  expected = ((v - 1)**2 * 2 + ((v - 3)**2 * 2 + 3 * (v - 5)**2 * 2) / 4) / 2
  np.testing.assert_allclose(metrics.validation_loss, expected, rtol=1e-5)
  weights = SIZES * np.exp(-expected)
  np.testing.assert_allclose(metrics.weights, weights / weights.sum(), rtol=1e-4)


def test_the_gradient_of_v_keeps_one_step_at_a_time():
  """A step's 1,000 intermediate numbers are computed anew: of 64 steps the gradient needs hardly
  more memory than of one."""
  def wide(adapter, base, batch):
    x = batch['x']
    for _ in range(4):
      x = jnp.tanh(x * adapter)
    return x.sum(), jnp.float32(1)

  def memory(steps):
    val = Validation({'x': jnp.ones((steps, 1_000))}, jnp.ones((steps, 1)))
    gradient = jax.jit(jax.grad(lambda adapter, val: local.mean_loss(wide, adapter, None, val)))
    return gradient.lower(jnp.ones(1_000), val).compile().memory_analysis().temp_size_in_bytes

  assert memory(64) < 2 * memory(2)


def test_an_aggregator_is_told_the_steps_that_sites_took():
  def update(updates, state, num_steps, weights, **_):
    return Aggregate(jax.tree.map(lambda x: x[0], updates), state, num_steps / 10, utility=weights)

  told = Aggregator(lambda adapter: (), update)
  _, metrics = play(federation(aggregator=told), data((1, 3, 2)))
  assert metrics.weights.tolist() == pytest.approx([0.1, 0.3, 0.2])


def test_validation_is_not_computed_when_nobody_asks():
  """Size weights: V may be absent altogether."""
  _, metrics = play(federation(), data(), val=None)
  assert np.isnan(metrics.validation_loss).all()


def test_sharing_nothing_trains_every_site_alone():
  """Two rounds of 1 step: local = target (1 - 0.25); the server's adapter stays at 0."""
  share = sharing.nothing()
  state, metrics = play(federation(sharing=share), data(), 2)
  assert not any(leaf.any() for leaf in jax.tree.leaves(state.adapter))
  for site, target in enumerate((1.0, 2.0, 4.0)):
    np.testing.assert_allclose(
      site_adapter(state, share, site)['layers']['q']['a'], np.full((1, 2, 1), 0.75 * target))
  assert not metrics.update_norm.any()
  assert sharing.shared_part(share, ADAPTER, 0) == []


def test_one_site_is_plain_training():
  """The neutral element: one site of weight 1 equals its local training."""
  single = LocalData(*(jax.tree.map(lambda x: x[2:], part) for part in data((3, 3, 3))))
  algorithm = federation(sites=1)
  state, _ = algorithm.round(
    algorithm.init(ADAPTER), jnp.float32(1.0), single, jnp.arange(1), None, jax.random.key(0))
  np.testing.assert_allclose(state.adapter['layers']['q']['a'], np.full((1, 2, 1), 3.5), rtol=1e-6)


def test_identical_sites_change_nothing():
  """Sites with the same data return what one returns, whatever the weights."""
  state, metrics = play(federation(), data((2, 2, 2), (3.0, 3.0, 3.0)))
  np.testing.assert_allclose(state.adapter['layers']['q']['a'], np.full((1, 2, 1), 2.25), rtol=1e-6)
  assert float(metrics.product_gap) < 1e-3


def test_every_site_gets_its_own_key():
  """Same data and a noisy gradient: a key shared by all sites would give equal updates."""
  def noisy(loss_fn):
    def gradient(adapter, base, batch, key):
      loss, grad = mean_gradient(loss_fn)(adapter, base, batch, key)
      return loss, jax.tree.map(lambda g: g + jax.random.normal(key, g.shape), grad)
    return gradient

  _, metrics = play(federation(gradient=noisy), data(targets=(1.0, 1.0, 1.0)))
  assert len(set(np.round(metrics.update_norm, 4).tolist())) == 3


def test_the_aggregators_key_is_of_the_round_and_no_sites():
  """An aggregate of noise: new in a round of another key, the same in one of the same key, and from
  no key that a site is given, whose noise the server could otherwise take away."""
  def noise(key):
    keys = jax.random.split(key, 2)
    return jax.tree.map(
      lambda x, k: jax.random.normal(k, x.shape), ADAPTER, jax.tree.unflatten(
        jax.tree.structure(ADAPTER), list(keys)))

  noisy = Combine(lambda updates, weights, *, key, **_: (noise(key), ()))
  algorithm = federation(aggregator=adaptive_mean(combine=noisy))
  found = [np.asarray(algorithm.round(
    algorithm.init(ADAPTER), jnp.float32(1.0), data(), jnp.arange(3), None, jax.random.key(seed)
  )[0].adapter['layers']['q']['a']) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0] != found[2]).all()
  key = jax.random.key(0)
  sites = [jax.random.fold_in(key, site) for site in range(3)]
  for other in [key, *sites, *(k for site in sites for k in jax.random.split(site))]:
    assert (found[0] != np.asarray(noise(other)['layers']['q']['a'])).all()


def test_frozen_leaves_do_not_move():
  """Not by decay either: A starts away from 0 and AdamW's decay would shrink it."""
  only_b = sharing.everything()._replace(
    trained=lambda path, number: path.endswith('/b'))
  algorithm = federation(sharing=only_b, optimizer=local.adamw(0.1, weight_decay=0.5))
  start = jax.tree.map(lambda x: x + 2.0, ADAPTER)
  state, _ = algorithm.round(
    algorithm.init(start), jnp.float32(1.0), data(), jnp.arange(3), None, jax.random.key(0))
  np.testing.assert_array_equal(state.adapter['layers']['q']['a'], start['layers']['q']['a'])
  assert (state.adapter['layers']['q']['b'] != start['layers']['q']['b']).all()
  assert len(sharing.shared_part(only_b, ADAPTER, 0)) == 1


def test_the_state_is_written_where_it_was():
  """Donated: of all that a round returns of the state nothing takes room of its own."""
  algorithm = federation(sharing=sharing.nothing(), rule=rules.control_variates(rate=0.5))
  state = algorithm.init(ADAPTER)
  counted = algorithm.round.lower(
    state, jnp.float32(1.0), data(), jnp.arange(3), None, jax.random.key(0)
  ).compile().memory_analysis()
  assert counted.alias_size_in_bytes == tree.num_bytes(state)


def test_five_rounds_compile_once():
  algorithm = federation()
  play(algorithm, data(), 5)
  assert algorithm.round._cache_size() == 1


def test_eight_devices_give_the_same_round():
  """Sites spread over a mesh by the placement of their data alone."""
  mesh = jax.make_mesh(
    (8,), ('site',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('site'))
  rng = np.random.default_rng(0)
  many = LocalData(
    {'target': jnp.asarray(rng.normal(size=(8, 2)), jnp.float32), 'weight': jnp.ones((8, 2)),
     'curvature': jnp.ones((8, 2))},
    jnp.ones((8, 2), bool), jnp.arange(1.0, 9.0))
  algorithm = federation(sites=8)
  results = [
    algorithm.round(
      algorithm.init(ADAPTER), jnp.float32(1.0), placed, jnp.arange(8), None, jax.random.key(0))
    for placed in (many, jax.device_put(many, spread))]
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize('rows_in, rows_out, apart', [(5, 4, 1.0), (50, 40, 0.01)])
def test_product_gap_is_the_dense_formula(rows_in, rows_out, apart):
  """Both ways to it: 8 columns are many for the narrow layers and few for the wide ones. There the
  sites are near each other, and of a gap of 4e-5 all digits are kept."""
  rng = np.random.default_rng(0)
  common = rng.normal(size=(2, rows_in, 2)), rng.normal(size=(2, 2, rows_out))
  # Small, since the gap is a share. As float32 has them.
  a, b = ((scale * (x * (apart < 1) + apart * rng.normal(size=(3, *x.shape)))).astype(
    np.float32).astype(float) for x, scale in zip(common, (0.01, 1.0), strict=True))
  weights = np.array([0.2, 0.3, 0.5])
  mean_a, mean_b = np.tensordot(weights, a, 1), np.tensordot(weights, b, 1)
  dense = np.einsum('k,kldr,klro->ldo', weights, a, b)
  expected = np.linalg.norm(dense - mean_a @ mean_b) / np.linalg.norm(dense)
  to = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
  found = product_gap(
    {'l': {'a': to(a), 'b': to(b)}}, {'l': {'a': to(mean_a), 'b': to(mean_b)}}, to(weights))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  # Of products that are zero there is no share to lose, and of a classifier no product at all.
  nothing = {'a': jnp.ones((3, 5, 2)), 'b': jnp.zeros((3, 2, 4))}
  assert np.isnan(product_gap(nothing, jax.tree.map(lambda x: x[0], nothing), to(weights)))
  assert np.isnan(product_gap({'kernel': to(a)}, {'kernel': to(mean_a)}, to(weights)))


def test_product_gap_of_many_sites_takes_no_square_of_them():
  """Nothing of the 802 columns of 400 sites and the mean meets itself."""
  local = {'a': jnp.ones((400, 2, 32, 2)), 'b': jnp.ones((400, 2, 2, 16))}
  mean = jax.tree.map(lambda x: x[0], local)
  traced = str(jax.make_jaxpr(product_gap)(local, mean, jnp.full(400, 1 / 400)))
  assert 'f32[32,16]' in traced and not re.search(r'80[02],80[02]', traced)


def test_leaf_paths():
  assert tree.paths(ADAPTER) == ['layers/q/a', 'layers/q/b']
  assert tree.size(ADAPTER) == 4 and tree.num_bytes(ADAPTER) == 16
