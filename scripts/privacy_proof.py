"""Audits tiny private runs whose epsilon is known, and such with planted faults.

    python scripts/privacy_proof.py [--runs=100] [--out=proof.json]

Half of the sound runs are trained with privacy of single examples (`fed/private_gradient.py` on
samples of `data/private_steps.py`), half with privacy of whole sites (`fed/private_mean.py`), each
by the package's own round. All that they train on are canaries, whose gradients are known and do
not depend on what was learnt before, and whoever audits sees every round: no attack on a run of
this size is stronger. The bound of each (99.9 % confidence, `fedmedjax/audit/one_run.py`) has to
lie under the epsilon that `experiment/accounting.py` computes. Then each of five faults is planted
in as many runs as there are kinds of runs, and has to be found: the bound above the claim, or, of
noise that is too much, its standard deviation over 10,000 draws.

Prints a line for each kind of run; the exit status is 0 when all sound runs lie under their claim
and every fault is found.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.audit.one_run import CONFIDENCE, lower_bound
from fedmedjax.data.private_steps import Units, capacity, poisson
from fedmedjax.experiment.accounting import TRAINED, Spending, epsilon, gaussian
from fedmedjax.fed.aggregators import private_mean
from fedmedjax.fed.local import sgd
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_gradient import clip_by_norm, private_gradient
from fedmedjax.fed.private_sums import normal
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.types import LocalData

DELTA = 1e-6
# Of single examples: canaries, and those of a step on average; every canary moves a number of its
# own, by more than the clip.
CANARIES, EXPECTED, STEPS, NOISE, LONG = 2048, 16, 128, 1.2, 10.0
# Of whole sites: all are canaries, each with a random direction, and larger than the largest size
# that counts more than others.
SITES, WIDTH, ROUNDS, CAP = 256, 4096, 4, 10.0
# Of sound runs so little noise that bounds are far from nothing; and more, so that a fault shows.
SITE_NOISE, MORE_NOISE = 1.5, 8.0
LARGE = 32
# Draws of which the noise's standard deviation is measured, and how far off it may be.
DRAWS, CLOSE = 10_000, 0.05
_AT_ONCE = 10  # runs

UNITS = Units('example')
PRIVATE = Private(clip=1.0, noise=NOISE, denominator=EXPECTED)


class Found(NamedTuple):
  """What came of runs of one kind."""

  kind: str
  claim: float           # epsilon
  bounds: list[float]    # of each run
  measured: float = 1.0  # the noise's standard deviation over what it has to be

  @property
  def refuted(self) -> bool:
    return max(self.bounds) > self.claim or abs(self.measured - 1) > CLOSE

  @property
  def told(self) -> str:
    above = sum(bound > self.claim for bound in self.bounds)
    return (
      f'{self.kind}: claim {self.claim:.3f}, bounds up to {max(self.bounds):.3f}, above the claim '
      f'in {above} of {len(self.bounds)}, noise {self.measured:.3f} of what it has to be')


# -- privacy of examples


def example_loss(adapter, base, batch):
  """Slope -LONG at the number of each canary, i32[U]; -1 = none."""
  del base
  there = batch >= 0
  return -LONG * jnp.sum(jnp.where(there, adapter['x'][batch], 0.0)), jnp.sum(there * 1.0)


def sound(loss_fn, private: Private = PRIVATE):
  return private_gradient(loss_fn, private, together=16, drawn=lambda batch: batch >= 0)


def clipped_late(loss_fn):
  """The fault: gradients are averaged, and their mean is clipped."""
  def gradient(adapter, base, batch, key):
    total = jax.grad(lambda own: example_loss(own, base, batch)[0])(adapter)
    mean = clip_by_norm(jax.tree.map(lambda x: x / EXPECTED, total), PRIVATE.clip)
    noise = normal(key, mean, NOISE * PRIVATE.clip / EXPECTED)
    return jnp.float32(0), jax.tree.map(jnp.add, mean, noise)

  del loss_fn
  return gradient


def one_key(loss_fn):
  """The fault: every step draws its noise from the same key."""
  own = sound(loss_fn)
  return lambda adapter, base, batch, key: own(adapter, base, batch, jax.random.key(0))


def with_noise(factor: float):
  """The fault: noise of another size; the sum's sigma is on the mean, or the mean's on the sum."""
  return lambda loss_fn: sound(loss_fn, PRIVATE._replace(noise=NOISE * factor))


TOO_MUCH, TOO_LITTLE = with_noise(EXPECTED), with_noise(1 / EXPECTED)


def drawn_steps(seed: int) -> np.ndarray:
  """i32[STEPS, U], the canaries of each step by the package's own sampling; -1 = none."""
  order = poisson(UNITS, EXPECTED, seed)
  part: Any = SimpleNamespace(train=range(CANARIES), units=())
  return _rows(members for members, _ in order.members(part, 0, 0, 0, 0, STEPS))


def fixed_steps(seed: int) -> np.ndarray:
  """The fault: batches of fixed size, one after the other."""
  del seed
  return _rows(np.arange(CANARIES).reshape(STEPS, -1))


def _rows(steps: Iterable[np.ndarray]) -> np.ndarray:
  rows = np.full((STEPS, capacity(EXPECTED)), -1, np.int32)
  for row, members in zip(rows, steps, strict=True):
    row[:len(members)] = members
  return rows


@partial(jax.jit, static_argnums=0)
def _trained(maker: Callable, steps, keys):
  """steps i32[N, T, U], keys [N] -> what each round of N runs adds to the model, f32[N, T, d]."""
  algorithm = federated_algorithm(example_loss, 1, gradient=maker, optimizer=sgd(1.0))

  def run(own, key):
    def one(state, turn):
      number, members = turn
      data = LocalData(members[None, None], jnp.ones((1, 1), bool), jnp.ones(1))
      new, _ = algorithm.round(
        state, {}, data, jnp.zeros(1, int), None, jax.random.fold_in(key, number))
      return new, new.adapter['x'] - state.adapter['x']

    start = algorithm.init({'x': jnp.zeros(CANARIES)})
    return jax.lax.scan(one, start, (jnp.arange(STEPS), own))[1]

  return jax.vmap(run)(steps, keys)


def example_runs(
  kind: str, seeds: Sequence[int], maker: Callable = sound, steps: Callable = drawn_steps,
  measured: float = 1.0,
) -> Found:
  """Runs with privacy of examples, each audited by all of three attacks."""
  claim = epsilon([Spending(
    TRAINED, NOISE, EXPECTED / CANARIES, capacity(EXPECTED), CANARIES, STEPS)], DELTA)
  bounds: list[float] = []
  for first in range(0, len(seeds), _AT_ONCE):
    some = seeds[first:first + _AT_ONCE]
    coins = [np.random.default_rng((seed, 1)).random(CANARIES) < 0.5 for seed in some]
    # A canary that is out has a gradient of zero, but a place among those that are drawn from.
    taken = [np.where(own[planned], planned, -1) for own, planned in zip(
      coins, map(steps, some), strict=True)]
    found = np.asarray(_trained(
      maker, jnp.asarray(np.stack(taken)), jnp.stack([jax.random.key(seed) for seed in some])))
    bounds += [example_bound(own, moves) for own, moves in zip(coins, found, strict=True)]
  return Found(kind, claim, bounds, measured)


def example_bound(coins: np.ndarray, moves: np.ndarray) -> float:
  """The largest bound of the attacks, with the whole confidence (Bonferroni).

  Args:
    coins: bool[d], which canaries are in.
    moves: f32[T, d], what each round adds to the number of each canary.
  """
  # All rounds together; how unlike rounds are, which noise of one key cannot hide; and the one
  # round that a canary would be in, were batches fixed.
  turn = np.arange(CANARIES) // (CANARIES // STEPS)
  scores = moves.sum(0), moves.std(0), moves[turn, np.arange(CANARIES)]
  confidence = 1 - (1 - CONFIDENCE) / len(scores)
  return max(lower_bound(one, coins, DELTA, confidence).epsilon for one in scores)


def measured_noise(maker: Callable) -> float:
  """The standard deviation of the noise on the sum, over what it has to be, from DRAWS draws."""
  gradient = maker(example_loss)
  empty, adapter = jnp.full(8, -1), {'x': jnp.zeros(8)}
  drawn = jax.jit(jax.vmap(lambda key: gradient(adapter, {}, empty, key)[1]['x']))(
    jax.random.split(jax.random.key(1), DRAWS))
  return float(jnp.std(drawn) * PRIVATE.denominator / (PRIVATE.clip * PRIVATE.noise))


# -- privacy of sites


def site_loss(adapter, base, batch):
  """Slope -3 along the site's direction, f32[d]."""
  del base
  return -3.0 * jnp.vdot(adapter['x'], batch), jnp.float32(1)


def site_runs(kind: str, seeds: Sequence[int], noise: float) -> Found:
  """Runs with privacy of sites, of which about half are there; weighed by size."""
  claim = epsilon([gaussian(TRAINED, noise, ROUNDS)], DELTA)
  private = Private(clip=1.0, noise=noise, denominator=SITES / 2)
  algorithm = federated_algorithm(
    site_loss, SITES, optimizer=sgd(1.0), quarantine=False,
    aggregator=private_mean.private_mean(private, size_power=1.0, size_cap=CAP))

  @jax.jit
  def run(key, weight):
    rows = jax.random.normal(jax.random.fold_in(key, ROUNDS), (SITES, WIDTH))
    rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
    data = LocalData(rows[:, None], jnp.ones((SITES, 1), bool), weight)

    def one(state, number):
      return algorithm.round(
        state, {}, data, jnp.arange(SITES), None, jax.random.fold_in(key, number))[0], None

    state, _ = jax.lax.scan(one, algorithm.init({'x': jnp.zeros(WIDTH)}), jnp.arange(ROUNDS))
    return rows @ state.adapter['x']

  bounds = []
  for seed in seeds:
    coins = np.random.default_rng((seed, 2)).random(SITES) < 0.5
    scores = run(jax.random.key(seed), jnp.asarray(coins * CAP * LARGE, jnp.float32))
    bounds.append(lower_bound(np.asarray(scores), coins, DELTA).epsilon)
  return Found(kind, claim, bounds)


def unbounded(sizes, cap, power):
  """The fault: weights by size that nothing bounds, and noise as if they were 1 at most."""
  return jnp.where(sizes > 0, (sizes / cap) ** power, 0.0)


# -- the proof


def sound_runs(seeds: Sequence[int]) -> list[Found]:
  half = (len(seeds) + 1) // 2
  found = [example_runs(
    'sound, examples', seeds[:half], measured=measured_noise(sound))]
  return found + ([site_runs('sound, sites', seeds[half:], SITE_NOISE)] if seeds[half:] else [])


def faulty_runs(seeds: Sequence[int]) -> list[Found]:
  """Each planted fault."""
  found = [
    example_runs("noise on the mean with the sum's sigma", seeds, TOO_MUCH,
                 measured=measured_noise(TOO_MUCH)),
    example_runs("noise on the sum with the mean's sigma", seeds, TOO_LITTLE,
                 measured=measured_noise(TOO_LITTLE)),
    example_runs('clipped after averaging', seeds, clipped_late),
    example_runs('one key for all rounds', seeds, one_key),
    example_runs('fixed batches, claimed as drawn', seeds, sound, fixed_steps)]
  with mock.patch.object(private_mean, 'bounded_weights', unbounded):
    return [*found, site_runs('sensitivity without weights', seeds, MORE_NOISE)]


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--runs', type=int, default=100, help='sound runs')
  parser.add_argument('--faulty', type=int, default=5, help='runs of each fault')
  parser.add_argument('--out', type=Path, default=None, help='file for the numbers')
  flags = parser.parse_args(argv)
  begun = time.monotonic()
  runs = sound_runs(range(flags.runs))
  faults = faulty_runs(range(1000, 1000 + flags.faulty))
  for one in (*runs, *faults):
    print(one.told)
  wrong = [one.kind for one in runs if one.refuted] + [
    one.kind for one in faults if not one.refuted]
  print(f'{flags.runs} sound runs and {len(faults)} faults in {time.monotonic() - begun:.0f} s: '
        + (f'failed: {", ".join(wrong)}' if wrong else 'all as it has to be'))
  if flags.out:
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(
      {'delta': DELTA, 'confidence': CONFIDENCE, 'sound': [one._asdict() for one in runs],
       'faults': [one._asdict() for one in faults]}, indent=1) + '\n')
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
