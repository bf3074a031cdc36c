"""Times of steps on accelerators, and the order of executions that follows from them."""

import jax
import jax.numpy as jnp
import pytest
from planted_steps import PEAK, works

from fedmedjax.experiment.execution import Execution, alternatives, executions
from fedmedjax.model.llama import REMAT
from fedmedjax.train import flop, roofline
from fedmedjax.train.roofline import Work


def test_seconds_by_hand():
  """Five sites, two at once: chunks of 2, 2 and 1. Two sites' products take 2 s and one's 1 s, but
  reading 15 bytes of weights 1.5 s; 1 byte a site is moved in 0.1 s; 0.1 s start each chunk."""
  work = Work(100, 15.0, 1.0, round(0.1 / roofline.START))
  found = roofline.seconds(Execution(2, 'none'), work, PEAK, 5)
  assert found == pytest.approx(2 * (2 + 0.2 + 0.1) + (1.5 + 0.1 + 0.1))
  # All five on two groups of devices: three on the busier one.
  assert roofline.seconds(Execution(0, 'none'), work, PEAK, 5, 2) == pytest.approx(3 + 0.3 + 0.1)


def order(weights: float, sites: int = 4) -> list[Execution]:
  found, sizes = works(weights), {'none': 16, 'products': 8, 'narrow_products': 4, 'full': 2}
  return list(roofline.ranked(
    executions(-1, 'auto', sites, False),
    lambda one: roofline.seconds(one, found[one.remat], PEAK, sites),
    lambda one: sizes[one.remat] * (one.chunk or sites)))


def test_a_level_of_remat_or_fewer_sites_by_what_they_cost():
  """Four sites. Keeping less costs 1 s more at least. With a small base half the sites cost 0.1 s
  more; with weights of 3 s two chunks take 6 s, and all at once 4 s or, computing gate and up
  again, 5 s."""
  small, large = order(1.0), order(30.0)
  assert small[0] == large[0] == (0, 'none') and small[-1] == large[-1] == (1, 'full')
  assert small[:6] == [
    (0, 'none'), (0, 'products'), (2, 'none'), (2, 'products'), (1, 'none'), (1, 'products')]
  assert large[:3] == [(0, 'none'), (0, 'products'), (0, 'narrow_products')]
  assert large.index((0, 'narrow_products')) < large.index((2, 'none'))
  assert small.index((0, 'narrow_products')) > small.index((1, 'products'))


def test_of_equally_fast_ones_the_smaller_comes_first():
  """As with a model that has no levels: nothing differs but the sites at once, and not the time."""
  given = executions(-1, 'auto', 2, False)
  found = roofline.ranked(given, lambda one: 1.0, lambda one: one.chunk or 2)
  # The last is for when nothing fits by its estimate.
  assert [one.chunk for one in found] == [1, 1, 1, 0, 0, 0, 0, 1] and found[-1] == (1, 'full')
  assert set(found) == set(given)


def test_work_of_a_traced_step():
  """sin((x * a) W) with x [3, 4], W [4, 5]: 2 * 3 * 4 * 5 = 120 FLOP forward and as many for a's
  gradient; under remat the first once more. Each pass reads W, 80 bytes."""
  def loss(remat):
    def total(adapter, base, batch):
      return jnp.sin((batch * adapter) @ base).sum(), jnp.float32(1)
    return jax.checkpoint(total) if remat == 'full' else total

  work = roofline.step_work(
    loss, jnp.ones((1, 4)), jnp.ones((4, 5)), jnp.ones((3, 4)), {'none': 300, 'full': 100}.get)
  assert work('none') == (240, 160.0, 600, 2)
  assert work('full') == (360, 240.0, 800, 3)


def test_products_of_loops_are_started_each_time():
  def looped(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=7)[0] @ x

  assert flop.calls(jax.make_jaxpr(looped)(jnp.ones((2, 2)))) == 8


@pytest.mark.parametrize('kind, peak', [
  ('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H100 PCIe', 756e12), ('NVIDIA H200', 989e12),
  ('NVIDIA A100-SXM4-40GB', 312e12), ('TPU v5 lite', 197e12), ('TPU v5', 459e12),
  ('TPU v5p', 459e12), ('TPU v6 lite', 918e12), ('Radeon', roofline.USUAL.flop)])
def test_peaks_by_the_names_that_jax_has(kind, peak):
  assert roofline.peak_of('gpu', kind).flop == peak
  assert roofline.peak_of('cpu', kind) is None


def test_what_may_follow_where_memory_ran_out():
  """No more sites at once than before, at any level."""
  assert alternatives(Execution(0, 'full'), 5) == tuple(
    (chunk, remat) for chunk in (0, 3, 2, 1) for remat in REMAT)
  assert {one.chunk for one in alternatives(Execution(8, 'none'), 18, 4)} == {8, 4}
