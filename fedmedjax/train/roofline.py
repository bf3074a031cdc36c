"""How long a local step takes on an accelerator, to compare executions before one runs.

After Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", doi:10.1145/1498765.1498785: products take as long as their arithmetic or as reading
the frozen weights, whichever is longer. All sites that are computed at once share one reading, so a
smaller chunk reads more often; less that is kept means more products, and more readings with them.
Left out is what hardly depends on the execution, and the network of a base that is split over
devices.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution, sites_at_once
from fedmedjax.experiment.types import Study
from fedmedjax.fed.types import LossFn
from fedmedjax.train.estimates import activations, computed
from fedmedjax.train.flop import calls, products

# Seconds to start a product and the passes around it, whatever their size.
START = 4e-6


class Peak(NamedTuple):
  """What a device reaches at best."""

  flop: float       # of products in bfloat16, a second
  bandwidth: float  # bytes of its memory, a second


# Words of jax's `device_kind`, the first that is in it counts -> the vendor's data sheet (products
# without sparsity).
PEAKS = {
  'h100 pcie': Peak(756e12, 2.0e12), 'h100': Peak(989e12, 3.35e12), 'h200': Peak(989e12, 4.8e12),
  'a100-sxm4-40gb': Peak(312e12, 1.555e12), 'a100': Peak(312e12, 2.039e12),
  'v5 lite': Peak(197e12, 0.819e12), 'v5e': Peak(197e12, 0.819e12), 'v5': Peak(459e12, 2.765e12),
  'v6': Peak(918e12, 1.64e12)}
# Taken for an accelerator that is not listed.
USUAL = PEAKS['a100']


def peak_of(platform: str, kind: str) -> Peak | None:
  """The peak of a device by its `platform` and `device_kind`; None of a CPU.

  There executions keep their fixed order: what is fastest does not follow from peaks.
  """
  if platform == 'cpu':
    return None
  return next((peak for words, peak in PEAKS.items() if words in kind.lower()), USUAL)


class Work(NamedTuple):
  """What one step of one site takes at a remat level."""

  flop: float     # of all products, those that are computed again included
  weights: float  # bytes of frozen weights that the products read; once for all sites at once
  moved: float    # bytes of activations that are kept, or made again
  calls: int      # products that are started, once for all sites at once


def step_work(
  loss_fn: Callable[[str], LossFn], adapter: Any, base: Any, batch: Any, kept: Callable[[str], int]
) -> Callable[[str], Work]:
  """(remat) -> the `Work` of a step, from its traced gradient; nothing is compiled.

  Every pass through the model, forward, backward or again, reads its weights. What is kept is
  written and read; what is made again is written and read, and what it is made of is read once
  more.

  Args:
    loss_fn: (remat) -> the loss of a step.
    adapter, base, batch: its arguments, arrays or their shapes.
    kept: (remat) -> bytes that the loss keeps for its gradient.
  """

  def traced(remat: str, change: Callable) -> Any:
    def total(adapter, base, batch):
      return loss_fn(remat)(adapter, base, batch)[0]
    return jax.make_jaxpr(change(total))(adapter, base, batch)

  @cache
  def forward() -> int:
    return max(1, products(traced('none', lambda total: total)).total())

  @cache
  def work(remat: str) -> Work:
    gradient = traced(remat, jax.grad)
    flop = products(gradient).total()
    return Work(
      flop, tree.num_bytes(base) * flop / forward(), 3 * kept('none') - kept(remat),
      calls(gradient))

  return work


def seconds(
  execution: Execution, work: Work, peak: Peak, sites: int, groups: int = 1
) -> float:
  """Of one step of every site, chunk after chunk.

  Args:
    execution: whose chunk is meant.
    work: at its remat level.
    peak: of a device.
    sites: C, of a round.
    groups: of devices, which share a chunk.
  """
  at_once = sites_at_once(execution, sites)

  def of_chunk(count: int) -> float:
    own = -(-count // groups)
    return (
      max(own * work.flop / peak.flop, work.weights / peak.bandwidth)
      + own * work.moved / peak.bandwidth + work.calls * START)

  whole, rest = divmod(sites, at_once)
  return whole * of_chunk(at_once) + (of_chunk(rest) if rest else 0.0)


def ranked(
  executions: Iterable[Execution], seconds: Callable[[Execution], float],
  needed: Callable[[Execution], int],
) -> tuple[Execution, ...]:
  """From the fastest on; of equally fast ones the smaller first; the smallest of all comes last.

  Args:
    executions: in any order.
    seconds: (execution) -> its time, in any unit.
    needed: (execution) -> bytes that it needs.
  """
  order = sorted(executions, key=lambda one: (seconds(one), needed(one)))
  least = min(reversed(order), key=needed)
  return (*(one for one in order if one != least), least)


def by_time(
  study: Study, inputs: tuple, executions: Sequence[Execution],
  guess: Callable[[Execution], int], peak: Peak | None,
) -> tuple[Execution, ...]:
  """The executions from the fastest on, of equally fast ones the smaller first.

  Args:
    study: what is trained.
    inputs: arguments of its round, arrays or their shapes.
    executions: that there are to choose from.
    guess: the `estimate` of their memory.
    peak: of the device; None = a CPU, where they are in this order already.
  """
  if peak is None or len(executions) < 2:
    return tuple(executions)
  held = activations(study, inputs)
  work = step_work(*computed(study, inputs), lambda remat: held(remat).kept)
  sites = study.communication.sampler.size
  return ranked(
    executions, lambda one: seconds(one, work(one.remat), peak, sites, study.groups), guess)
