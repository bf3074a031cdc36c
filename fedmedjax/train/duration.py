"""How long a run will take: its matrix products, at the rate of the device at hand.

The products of a step, of the rest of a round and of decoding are counted in the traced programs,
and products of the commonest shapes are timed. What else a program does takes a share of its time
that was measured once. Compilation, reading and writing are left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax import tree
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import SiteData
from fedmedjax.experiment import communication
from fedmedjax.experiment.execution import sites_at_once
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.fed.dual import side_by_side
from fedmedjax.runtime.phrases import duration
from fedmedjax.train.flop import Product, product_rate, products
from fedmedjax.train.memory import Plan
from fedmedjax.train.scoring import fewer

# FLOP a second of a program over those of its commonest product. Steps of the quick start reached
# 0.71 to 0.86 (mean 0.78) and decoding without an adapter 0.70 to 0.73, products timed just before
# and after on two busy cores with AVX2; steps of the study 0.54 of large products with AVX-512.
TRAINING_SHARE, DECODING_SHARE = 0.7, 0.7


class Duration(NamedTuple):
  """Seconds of the rounds that are left, and of all answers before, between and after them."""

  rounds: tuple[float, ...]
  decoding: float
  flop: float        # of a round, on average
  product: Product   # the commonest of training
  rate: float        # FLOP a second of it

  def __str__(self) -> str:
    said = [f'{duration(self.decoding)} of decoding']
    if self.rounds:
      mean = sum(self.rounds) / len(self.rounds)
      said = [f'{duration(mean)} a round', f'{duration(sum(self.rounds))} of rounds', *said]
    rows, inner, columns, dtype = self.product
    return (
      f'time: about {", ".join(said)}: {duration(sum(self.rounds) + self.decoding)} in all without '
      f'compiling ({self.flop:.1e} FLOP a round; products [{rows}, {inner}] x [{inner}, {columns}] '
      f'of {dtype} run at {self.rate / 1e9:,.0f} GFLOP/s here now)')


def expected(
  study: Study, plan: Plan, inputs: tuple, done: int = 0,
  rate: Callable[[Product], float] = product_rate,
) -> Duration:
  """What is left of a run after `done` rounds, in seconds.

  Args:
    study: what is trained.
    plan: how its rounds are computed.
    inputs: arguments of round 0, which stands for all in the shapes of its steps.
    done: rounds that are finished.
    rate: FLOP a second of a product.
  """
  step, rest = _step(study, plan, inputs), _rest(study, plan, inputs)
  common = max(step, key=lambda product: step[product])
  computed = [_steps_computed(study, plan, number) for number in range(done, study.options.rounds)]
  flops = [count * step.total() + (rest.total() if count else 0) for count in computed]
  speed, devices = rate(common), _devices(study)

  def seconds(found: Counter) -> float:
    """Of one call while decoding; inputs are read as fast as in training, passes have few rows."""
    if not found:
      return 0.0
    own = max(found, key=lambda product: found[product])
    reached = speed if 2 * own.rows >= common.rows else rate(own)
    return found.total() / devices / DECODING_SHARE / reached

  return Duration(
    tuple(flop / devices / TRAINING_SHARE / speed for flop in flops),
    sum(times * seconds(found) for found, times in _decoding(study, done)),
    sum(flops) / max(len(flops), 1), common, speed)


def round_seconds(
  study: Study, plan: Plan, inputs: tuple, computed: float,
  rate: Callable[[Product], float] = product_rate,
) -> float | None:
  """Seconds of the round with these inputs; None where its steps have no matrix products.

  Args:
    study, plan, rate: see `expected`.
    inputs: arguments of the round.
    computed: steps that it computes, padded ones included.
  """
  step = _step(study, plan, inputs)
  if not step:
    return None
  flop = computed * step.total() + _rest(study, plan, inputs).total()
  common = max(step, key=lambda product: step[product])
  return flop / _devices(study) / TRAINING_SHARE / rate(common)


def _devices(study: Study) -> int:
  """Devices that the base lies on; they are taken to share all work evenly."""
  return max((
    len(leaf.sharding.device_set) for leaf in jax.tree.leaves(study.trainable.base)
    if isinstance(leaf, jax.Array)), default=1)


def _steps_computed(study: Study, plan: Plan, number: int) -> float:
  """Steps of a round that are computed, padded ones included."""
  steps = communication.round_participation(study.communication, study.schedule, number).steps
  return study.site_map(plan.execution.chunk).laid_out(steps) if steps.any() else 0


def _step(study: Study, plan: Plan, inputs: tuple) -> Counter:
  """The products of a local step, on average over those of round 0: each in its own shape."""
  _, base, data, *_ = inputs
  loss, buckets = study.step_loss(plan.execution.remat), study.schedule.layout.shape_buckets
  if sites_at_once(plan.execution, study.communication.sampler.size) > 1:
    buckets = ()

  def gradient(adapter, base, batch):
    return jax.grad(lambda adapter: loss(adapter, base, batch)[0])(adapter)

  chosen: Counter = Counter()
  for place in np.argwhere(data.step_mask):
    batch = jax.tree.map(lambda x, place=tuple(place): x[place], data.batches)
    chosen[next((i for i, bucket in enumerate(buckets) if bucket.holds(batch)), -1)] += 1
  mean: Counter = Counter()
  for which, count in (chosen or {-1: 1}).items():
    usual = _usual(study.schedule)
    arrays = usual if which < 0 else buckets[which].cut(usual)
    found = products(jax.make_jaxpr(gradient)(study.trainable.adapter, base, arrays))
    for product, flop in found.items():
      mean[product] += flop * count / max(chosen.total(), 1)
  return mean


def _usual(schedule: Schedule) -> Any:
  """The arrays of a step; of units of privacy those that are drawn on average."""
  blank = schedule.layout.blank
  return jax.tree.map(lambda x: x[:schedule.batch_size], blank) if schedule.units else blank


def _rest(study: Study, plan: Plan, inputs: tuple) -> Counter:
  """The products of a round beside its steps, such as those of validation losses."""
  # The loops over steps are the only ones whose length a round does not know beforehand.
  return products(study.algorithm_with(plan.execution).round.trace(*inputs).jaxpr, trips=0)


def _decoding(study: Study, done: int) -> Iterable[tuple[Counter, int]]:
  """(the products of a call, how often) of all answers."""
  trainable, counted = study.trainable, {}
  for site, adapter, times in _asked(study, done):
    for program, calls in trainable.answer_calls(adapter, site):
      shapes = str(jax.tree.map(lambda x: (np.shape(x), x.dtype), program.arguments))
      call = program.function, shapes
      if call not in counted:
        counted[call] = products(program.function.trace(*program.arguments).jaxpr)
      yield counted[call], calls * times


def _asked(study: Study, done: int) -> list[tuple[SiteData, dict, int]]:
  """(site, adapter, how many such adapters answer for it), as `run.py` and `scoring.py` ask."""
  options, adapter = study.options, study.trainable.adapter
  tested = (*study.data.tested, *study.data.external)
  private = sum(not study.sharing.shared(path) for path in tree.paths(adapter))
  own = participant_names(study) if private else ()

  def number(site: SiteData, every: bool) -> int:
    return len(own) if own and (every or site.name not in own) else 1

  # Of two adapters the sites answer with the sum.
  answering = jax.eval_shape(side_by_side, adapter)
  asked = [(site, answering, number(site, options.cross_site)) for site in tested]
  if 0 < private < len(tree.paths(adapter)):  # the average of all adapters answers, too
    asked += [(site, answering, 1) for site in tested]
  if options.every:
    rounds = options.rounds // options.every - done // options.every
    asked += [(site, answering, number(site, False) * rounds) for site in study.watched]
  if options.zero_shot and not done and study.trainable.untrained is not None:
    asked += [(fewer(site, options.max_zero_shot), study.trainable.untrained, 1)
              for site in tested]
  return asked
