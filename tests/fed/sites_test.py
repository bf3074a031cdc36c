"""Layouts of sites of unlike size: what is computed, and that nothing else depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import data, federation, play

from fedmedjax.fed import sharing
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sites import (
  SiteProgram,
  Spread,
  enough_halvings,
  laid_out,
  map_sites,
  spread_vmap,
)

STEPS, TARGETS = (1, 6, 3, 0, 2), (1.0, 2.0, 4.0, 8.0, 16.0)


@pytest.mark.parametrize('chunk, halvings, steps, expected', [
  # All wait for the longest; by twos (4, 3) and (2, 1); one after the other.
  (0, 0, (2, 4, 1, 3), 4 * 4),
  (2, 0, (2, 4, 1, 3), 2 * 4 + 2 * 2),
  (1, 3, (2, 4, 1, 3), 4 + 3 + 2 + 1),
  # Four up to step 2, then two up to 4, or up to 3 and one to 4.
  (0, 1, (2, 4, 1, 3), 4 * 2 + 2 * 2),
  (0, 2, (2, 4, 1, 3), 4 * 2 + 2 * 1 + 1),
  (9, 9, (2, 4, 1, 3), 4 * 2 + 2 * 1 + 1),
  # What is left over is the longest; three at once: all of them once, then the longest alone.
  (2, 0, (1, 50, 1), 50 + 2 * 1),
  (0, 2, (1, 50, 1), 3 * 1 + 0 + 49),
  (0, 0, (0, 0), 0)])
def test_steps_laid_out_by_hand(chunk, halvings, steps, expected):
  assert laid_out(chunk, halvings, np.array(steps)) == expected
  assert map_sites(chunk, halvings).laid_out(np.array(steps)) == expected
  # Nothing is halved unless that is asked for.
  assert map_sites(chunk).laid_out(np.array(steps)) == laid_out(chunk, 0, np.array(steps))


def test_groups_of_devices_are_kept_busy_together():
  """Of three sites on two groups two go on, though one has no steps left; on four groups nothing is
  won by going on with fewer."""
  steps = np.array([1, 50, 1])
  assert laid_out(0, 2, steps, 2) == map_sites(0, 2, groups=2).laid_out(steps) == 3 * 1 + 2 * 49
  assert laid_out(0, 2, steps, 4) == 3 * 50
  assert enough_halvings([steps], 0, 2) == 1 and enough_halvings([steps], 0, 4) == 0


def test_nine_of_ten_steps_are_enough():
  """Five and four steps: ten are computed."""
  assert enough_halvings([np.array([5, 4])], 0) == 0 and enough_halvings([np.array([5, 3])], 0) == 1


def test_sites_are_batched_as_asked_and_one_alone_is_not():
  """How many sites each map is over: all five; by twos, when one is left over; one by one never.
  Halved, with steps 1 to 5: five, then three, then two and one more."""
  def batched(map_, *args):
    sizes = []

    def vmap(fn):
      mapped = jax.vmap(fn)
      return lambda *args: sizes.append(len(jax.tree.leaves(args)[0])) or mapped(*args)

    out = jax.eval_shape(map_(vmap), *args)
    assert jax.tree.map(lambda x: x.shape, out) == jax.tree.map(jnp.shape, args[0])
    return sizes

  sites = jnp.arange(10.0).reshape(5, 2)
  for chunk, sizes in ((0, [5]), (1, []), (2, [2]), (3, [3, 2])):
    found = batched(
      lambda vmap: map_sites(chunk, vmap=vmap).every(lambda x, no_numbers: x),  # noqa: B023
      sites, jnp.zeros((5, 0)))
    assert found == sizes
  program = SiteProgram(lambda x: x, lambda first, until, carry, x: carry, lambda carry, x: carry)
  steps = jnp.array([2, 4, 1, 5, 3])
  for chunk, halvings, sizes in (
      # Before, in, and after the steps; the results' room is laid out like the sites.
      (0, 0, [5] * 3), (5, 0, [5] * 3), (0, 1, [5, 5, 3, 5]), (0, 2, [5, 5, 3, 2, 5]),
      (0, 3, [5, 5, 3, 2, 5]), (1, 0, []), (2, 0, [2] * 3), (3, 0, [3] * 3 + [2] * 3)):
    found = batched(
      lambda vmap: map_sites(chunk, halvings, vmap).staged(program, steps), sites)  # noqa: B023
    assert sorted(set(found)) == sorted(set(sizes) | ({5} if (chunk or halvings) else set())), (
      chunk, halvings, found)


def test_one_group_of_devices_is_no_spread():
  alone, pair = (Spread(jax.make_mesh(
    (n,), ('site',), axis_types=(jax.sharding.AxisType.Auto,)), ('site',)) for n in (1, 2))
  assert spread_vmap(alone) is jax.vmap and spread_vmap(pair) is not jax.vmap
  assert (alone.parts, pair.parts) == (1, 2)
  # Three sites on two groups are four with one of zeros, and three again.
  for count, laid in ((3, 4), (4, 4)):
    program = jax.make_jaxpr(spread_vmap(pair)(lambda x: 2.0 * x))(jnp.ones((count, 5)))
    assert f'f32[{laid},5]' in str(program) and ('pad' in str(program)) == (count == 3)
    assert program.out_avals[0].shape == (count, 5)


@pytest.mark.parametrize('exponent', [0.0, 0.5, 1.0, 1.5])
def test_nine_tenths_of_the_steps_are_useful(exponent):
  """64 sites of power-law sizes, by eights, some 25 steps a site. Chunks alone do not suffice: of
  1, 1/2, ..., 1/8 together 2.7 of 8 parts are useful. As few halvings as do; equal sites need
  none."""
  shares = np.arange(1, 65)**-exponent
  steps = np.random.default_rng(0).permutation(np.ceil(1600 * shares / shares.sum()).astype(int))
  halvings = enough_halvings([steps, steps[:50]], 8)
  useful = lambda halvings: (steps.sum() + steps[:50].sum()) / (  # noqa: E731
    laid_out(8, halvings, steps) + laid_out(8, halvings, steps[:50]))
  assert useful(halvings) >= 0.9 and (halvings == 0 or useful(halvings - 1) < 0.9)
  assert halvings == {0.0: 0, 0.5: 1, 1.0: 3, 1.5: 3}[exponent]
  assert enough_halvings([steps], 1) == 0
  # Out of reach: as many as there can be.
  assert enough_halvings([np.array([9, 1, 1])], 0) == 2 == enough_halvings([np.array([3, 2, 1])], 0)


@pytest.mark.parametrize('chunk, halvings', [(1, 0), (0, 0), (0, 3), (2, 1), (3, 2)])
def test_sites_do_not_wait_and_nobody_can_tell(chunk, halvings):
  """Sites that share nothing: after n steps each is at target (1 - 2^-n), the one of 0 steps where
  it was, and every site in its own place. What is computed is what is laid out, and no more."""
  told, share = [], sharing.nothing()
  algorithm = federation(
    sites=5, sharing=share, map_sites=map_sites(chunk, halvings),
    on_step=lambda *args: told.append(tuple(x.item() for x in args)))
  state, metrics = play(algorithm, data(
    STEPS, TARGETS, (1.0,) * 5, np.array([1, 1, 1, 0, 1], np.float32)))
  jax.effects_barrier()
  assert len(told) == laid_out(chunk, halvings, np.array(STEPS))
  assert sorted(line[:2] for line in told if line[3]) == [
    (site, step) for site, steps in enumerate(STEPS) for step in range(steps)]
  losses = np.asarray(metrics.train_loss)
  for site, (steps, target) in enumerate(zip(STEPS, TARGETS, strict=True)):
    np.testing.assert_allclose(
      site_adapter(state, share, site)['layers']['q']['a'],
      np.full((1, 2, 1), target * (1 - 0.5**steps)), rtol=1e-6)
    # Losses 4 (target 2^-k)^2 / 2 before step k, and no more of them than steps.
    np.testing.assert_allclose(
      losses[site, :steps], 2 * (target * 0.5**np.arange(steps))**2, rtol=1e-5)
    assert np.isnan(losses[site, steps:]).all()


def test_a_step_left_out_in_between():
  """Steps 1 and 3 of a site are two steps, beside one that takes its first: 3 t / 4 and t / 2."""
  share = sharing.nothing()
  given = data((3, 1), (1.0, 2.0), (1.0, 1.0))
  given = given._replace(step_mask=jnp.array([[True, False, True], [True, False, False]]))
  state, metrics = play(
    federation(sites=2, sharing=share, map_sites=map_sites(0, 1)), given)
  for site, expected in enumerate((0.75, 1.0)):
    np.testing.assert_allclose(
      site_adapter(state, share, site)['layers']['q']['b'], np.full((1, 1, 2), expected))
  assert np.isnan(metrics.train_loss).tolist() == [[False, True, False], [False, True, True]]
