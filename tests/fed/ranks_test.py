"""Sites of unlike rank, and what is folded into the base, on a bilinear model.

The model predicts x (W + s A B) with s = alpha / r, so that scales, factors and products matter.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import federation, play

from fedmedjax.experiment import meshes
from fedmedjax.fed import factors, local
from fedmedjax.fed.aggregators import products
from fedmedjax.fed.aggregators.signals import Signal, leave_one_out
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean, factor_mean
from fedmedjax.fed.compression import outbound, sign
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.ranks import mixed_ranks
from fedmedjax.fed.sites import map_sites, spread_state, spread_vmap
from fedmedjax.fed.types import LocalData, Validation

ALPHA, RANK, IN, OUT, SITES, STEPS = 8.0, 4, 6, 5, 3, 3
RANKS = (2, 3, 4)


def regression(rank):
  """The loss of a model whose adapter has the given rank at the server."""
  def loss(adapter, base, batch):
    pair = adapter['q']
    predicted = batch['x'] @ (base * jnp.eye(IN, OUT) + ALPHA / rank * pair['a'] @ pair['b'])
    return jnp.sum((predicted - batch['y']) ** 2), jnp.float32(batch['x'].shape[0])
  return loss


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


START = {'q': {'a': draw(1, IN, RANK), 'b': 0.1 * draw(2, RANK, OUT)}}
DATA = LocalData(
  {'x': draw(3, SITES, STEPS, 4, IN), 'y': draw(4, SITES, STEPS, 4, OUT)},
  jnp.ones((SITES, STEPS), bool), jnp.ones(SITES))
VALIDATION = Validation(
  {'x': draw(5, 2, 4, IN), 'y': draw(6, 2, 4, OUT)}, jnp.eye(2), jnp.full(2, 4.0),
  jnp.full(2, -1, jnp.int32))


def mixed(ranks=RANKS, **parts):
  return federation(
    loss=regression(RANK), optimizer=local.adamw(0.05, clip_norm=0.5),
    **dict(ranks=mixed_ranks(ranks, RANK)) | parts)


MIXED = mixed()


def cut(adapter, rank):
  """The first columns, in a model scaled by alpha / rank: B times rank / RANK."""
  pair = adapter['q']
  return {'q': {'a': pair['a'][:, :rank], 'b': pair['b'][:rank] * rank / RANK}}


def test_ranks_by_hand():
  """Rank 1 of 4 is a quarter of the server's scale: B is 4 times as large there. The columns that a
  site lacks are zero, also in a tree with layers."""
  ranks = mixed_ranks((1, 4), 4)
  ones = {'q': {'a': jnp.ones((2, 3, 4)), 'b': jnp.ones((2, 4, 5))}}
  for site, rank, mine, servers in ((0, 1, 0.25, 4.0), (1, 4, 1.0, 1.0)):
    has = np.arange(4) < rank
    for found, scale in (
        (ranks.mask(ones, site), has * 1.0), (ranks.to_site(ones, site), has * mine),
        (ranks.to_server(ones, site), np.full(4, servers))):
      a, b = found['q']['a'], found['q']['b']
      np.testing.assert_array_equal(b, np.broadcast_to(scale[:, None], b.shape))
      np.testing.assert_array_equal(
        a, np.broadcast_to(scale > 0, a.shape))


@pytest.mark.parametrize('site', range(SITES))
def test_a_site_trains_as_it_would_alone_with_its_rank(site):
  """Two rounds of AdamW with clipping; the others are absent, so the server becomes the site.

  Alone: an adapter of rank r_k in a model scaled by alpha / r_k. Columns beyond r_k stay.
  """
  only = DATA._replace(weight=jnp.zeros(SITES).at[site].set(1.0))
  together, _ = play(MIXED, only, 2, start=START)
  rank = RANKS[site]
  one = LocalData(*(jax.tree.map(lambda x: x[site:site + 1], part) for part in DATA))
  alone, _ = play(
    federation(sites=1, loss=regression(rank), optimizer=local.adamw(0.05, clip_norm=0.5)),
    one, 2, start=cut(START, rank))
  for found, expected in zip(
      jax.tree.leaves(cut(together.adapter, rank)), jax.tree.leaves(alone.adapter), strict=True):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
  np.testing.assert_array_equal(
    together.adapter['q']['a'][:, rank:], START['q']['a'][:, rank:])
  np.testing.assert_array_equal(together.adapter['q']['b'][rank:], START['q']['b'][rank:])


def test_ranks_all_equal_are_no_ranks():
  same, _ = play(mixed(ranks=(RANK,) * SITES), DATA, 2, start=START)
  none, _ = play(federation(
    loss=regression(RANK), optimizer=local.adamw(0.05, clip_norm=0.5)), DATA, 2, start=START)
  for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(none), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_noise_does_not_reach_columns_that_a_site_lacks():
  """A gradient that is noise everywhere: without masks a site of rank 2 would send all columns."""
  def noisy(loss_fn):
    def gradient(adapter, base, batch, key):
      loss, grad = mean_gradient(loss_fn)(adapter, base, batch, key)
      return loss, jax.tree.map(lambda g: g + 1.0, grad)
    return gradient

  only = DATA._replace(weight=jnp.array([1.0, 0, 0]))
  state, _ = play(mixed(gradient=noisy), only, start=START)
  np.testing.assert_array_equal(state.adapter['q']['a'][:, 2:], START['q']['a'][:, 2:])
  assert (state.adapter['q']['a'][:, :2] != START['q']['a'][:, :2]).all()


@pytest.fixture(scope='module')
def expected():
  """Sum of w_k times the scaled product of every site, each trained on its own, in numpy."""
  total = 0.0
  for site in range(SITES):
    only = DATA._replace(weight=jnp.zeros(SITES).at[site].set(1.0))
    state, _ = play(MIXED, only, start=START)
    kept = mixed_ranks(RANKS, RANK).mask(state.adapter, site)
    total = total + np.asarray(kept['q']['a'] @ kept['q']['b'], np.float64) / SITES
  return total


@pytest.mark.parametrize('name', ['stacked', 'with_residual', 'refactorised'])
def test_scaled_products_of_mixed_ranks_add_up(name, expected):
  """FLoRA, FedEx and FlexLoRA (at full rank here) against the dense sum of each site's product."""
  combine = {
    'stacked': products.stacked(rank=RANK, cohort_size=SITES, rounds=2),
    'with_residual': products.with_residual(
      rank=RANK, cohort_size=SITES, rounds=2),
    'refactorised': products.refactorised(RANK)}[name]
  algorithm = mixed(aggregator=adaptive_mean(combine=combine))
  state, metrics = play(algorithm, DATA, start=START)
  shown = factors.join(state.adapter, state.folded)['q']
  found = np.asarray(shown['a'] @ shown['b'], np.float64)
  if name == 'refactorised':
    u, s, v = np.linalg.svd(expected)
    expected = u[:, :RANK] * s[:RANK] @ v[:RANK]
    # What was cut off is what the round reports.
    gap = np.sqrt((s[RANK:] ** 2).sum() / (s ** 2).sum())
    np.testing.assert_allclose(metrics.product_gap, gap, atol=1e-3)
  else:
    assert float(metrics.product_gap) < 1e-3
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize('name', ['stacked', 'with_residual'])
def test_the_next_round_trains_on_top_of_what_was_folded(name):
  """The first step's loss in round 2 is that of the joined adapter; in round 3 of both folds."""
  combine = getattr(products, name)(rank=RANK, cohort_size=SITES, rounds=3)
  algorithm = federation(
    loss=regression(RANK), optimizer=local.adamw(0.05),
    aggregator=adaptive_mean(combine=combine, loss_power=1.0))
  state = algorithm.init(START)
  for number in range(3):
    joined = factors.join(state.adapter, state.folded)
    joined = jax.tree.map(np.array, joined)  # the state is donated
    state, metrics = algorithm.round(
      state, jnp.float32(1.0), DATA, jnp.arange(SITES), VALIDATION, jax.random.key(number))
    for site in range(SITES):
      first = {key: value[site, 0] for key, value in DATA.batches.items()}
      total, count = regression(RANK)(joined, jnp.float32(1.0), first)
      np.testing.assert_allclose(metrics.train_loss[site, 0], total / count, rtol=1e-4)
  assert algorithm.round._cache_size() == 1


# Eight sites of unlike ranks and steps, one of them absent.
EIGHT = LocalData(
  {'x': draw(7, 8, STEPS, 4, IN), 'y': draw(8, 8, STEPS, 4, OUT)},
  jnp.arange(STEPS)[None] < jnp.array([3, 1, 2, 3, 3, 2, 1, 3])[:, None],
  jnp.array([1.0, 2, 3, 0, 1, 2, 3, 4]))
LAYOUTS = ('one after the other', 'chunks of 3', 'by sixes on 2 devices', 'by fours on 4 devices')


def spread(groups, chunk, halvings):
  where = meshes.spread_of(meshes.make_mesh(groups, 1, 1), chunk)
  return dict(
    map_sites=map_sites(chunk, halvings, spread_vmap(where), groups), place=spread_state(where))


def parts_of(layout):
  """On devices with sites that are left over, and with halvings."""
  return {
    'at once': dict, 'one after the other': partial(dict, chunk=1),
    'chunks of 3': partial(dict, chunk=3),
    'by sixes on 2 devices': partial(spread, 2, 6, 2),
    'by fours on 4 devices': partial(spread, 4, 4, 1)}[layout]()


def laid_out(layout, dtype, rounds=3, **aggregator):
  """The state after some rounds, its leaves in float64."""
  start, data, val = jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, (START, EIGHT, VALIDATION))
  algorithm = mixed(
    (2, 3, 4, 4, 1, 2, 3, 4), sites=8, aggregator=adaptive_mean(**aggregator),
    **parts_of(layout))
  state, metrics = play(algorithm, data, rounds, val, start=start)
  return [
    np.asarray(leaf, np.float64)
    for leaf in jax.tree.leaves((state.adapter, state.folded, metrics.weights))]


def gap(found, expected):
  """Largest distance of a leaf, over its norm."""
  return max(
    np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(found, expected, strict=True))


@pytest.mark.slow
def test_layouts_agree():
  """Ranks, AdamW, weights by validation loss and folds, three rounds: to 1e-6 of the norm of every
  leaf, in float32."""
  parts = dict(loss_power=1.0, combine=products.with_residual(
    rank=RANK, cohort_size=8, rounds=3))
  expected = laid_out('at once', jnp.float32, **parts)
  assert max(gap(laid_out(layout, jnp.float32, **parts), expected) for layout in LAYOUTS) < 1e-6


def test_layouts_agree_where_float32_cannot_show_it():
  """Leave-one-out weights at a low temperature divide the difference of two nearly equal losses by
  0.01: float32's last bit of a loss of about 10 nats becomes 1e-4 of a weight. In float64 the same
  program agrees to 1e-10, so what differs there is rounding alone."""
  parts = dict(
    loss_power=1.0, signal=Signal(leave_one_out), temperature=0.01,
    combine=products.with_residual(
    rank=RANK, cohort_size=8, rounds=3))
  with jax.enable_x64(True):
    expected = laid_out('at once', jnp.float64, **parts)
    found = [gap(laid_out(layout, jnp.float64, **parts), expected) for layout in LAYOUTS[1:]]
  assert max(found) < 1e-10, found


def test_a_codec_without_zeros_gives_a_site_no_say_about_columns_it_lacks():
  """One bit a value is plus or minus a scale everywhere, 0 where a site has no rank: with sites
  of ranks 2, 2 and 3 the fourth column stays as it was."""
  state, _ = play(mixed((2, 2, 3), compression=outbound(sign())), DATA, start=START)
  moved = state.adapter['q']['b'] - START['q']['b']
  assert np.asarray(moved[:3]).all() and not np.asarray(moved[3]).any()


# Two sites of rank 1 and two of the whole rank, and an adapter as runs begin with it.
FOUR = LocalData(
  {'x': draw(9, 4, STEPS, 4, IN), 'y': draw(10, 4, STEPS, 4, OUT)},
  jnp.ones((4, STEPS), bool), jnp.ones(4))
FRESH = {'q': {'a': draw(1, IN, RANK), 'b': jnp.zeros((RANK, OUT))}}


def test_ranks_1_1_4_4_learn_as_the_plain_mean_does():
  """Cohorts (2, 3), (0, 1), (2, 3), twelve rounds. In the second nobody has columns 2 to 4: where
  they were lost, the sites of rank 4 ended as ones of rank 1, far above the plain mean's loss."""
  cohorts = [(2, 3), (0, 1), (2, 3)] * 4

  def after(combine):
    state, _ = play(
      mixed((1, 1, 4, 4), sites=4, aggregator=adaptive_mean(combine=combine)), FOUR, len(cohorts),
      start=FRESH, cohorts=cohorts)
    joined = factors.join(state.adapter, state.folded)
    wide = jax.tree.map(lambda x: x[2:].reshape(-1, *x.shape[3:]), FOUR.batches)
    return joined['q'], float(regression(RANK)(joined, jnp.float32(1.0), wide)[0])

  _, plain = after(factor_mean())
  pair, loss = after(products.padded_mean())
  assert (pair['a'] != 0).any(axis=0).all() and (pair['b'] != 0).any(axis=1).all()
  assert loss < 1.1 * plain
