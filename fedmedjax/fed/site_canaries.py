"""Canaries among sites: updates of random direction that are added to a private sum.

Andrew, Kairouz, Oh, Oprea, McMahan & Suriyakumar, "One-shot Empirical Privacy Estimation for
Federated Learning", ICLR 2024, arXiv:2302.03098: sites that do not exist send a random direction of
the longest norm that counts, and how much the released model lies along it tells whether they were
there. We deviate in what is made of it: there two Gaussians are fitted to the cosines, which
bounds nothing; here each canary is in by a fair coin of its own, all are guessed, and the guesses
are held against the theorem of `audit/one_run.py`, which holds whatever the distribution is.

A canary that is in is in all rounds. It costs what a site costs that sends nonsense: with m of them
the sum moves by about clip * sqrt(m), where the noise is noise * clip * sqrt(numbers of the model).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.private_mean import SumFn
from fedmedjax.fed.private_sums import normal
from fedmedjax.fed.types import Array, Tree


def direction(key: Array, number: Array | int, like: Tree) -> Tree:
  """The direction of a canary, [*p] of norm 1.

  Args:
    key: of all canaries of a run.
    number: i32[], of this one.
    like: [*p], shapes and dtypes.
  """
  drawn = normal(jax.random.fold_in(key, number), like, 1.0)
  norm = tree.norm(drawn)
  return jax.tree.map(lambda x: x / norm.astype(x.dtype), drawn)


def planted(total: SumFn, key: Array, coins: Sequence[bool]) -> SumFn:
  """The sum [C, *q] -> [*q] with the canaries that are in, each of norm `bound` and weight 1.

  Args:
    total: the private sum over sites.
    key: of all canaries of the run.
    coins: bool[m], which of them are in.
  """
  numbers = jnp.asarray([number for number, coin in enumerate(coins) if coin], jnp.int32)
  if not len(numbers):
    return total

  def with_canaries(contributions, weights, bound, key_of_round, number):
    like = jax.tree.map(lambda x: x[0], contributions)

    def add(place, so_far):
      own = direction(key, numbers[place], like)
      return jax.tree.map(lambda x, y: x + bound.astype(y.dtype) * y, so_far, own)

    # One more row: the canaries together. None of them is longer than a site may be.
    row = jax.lax.fori_loop(0, len(numbers), add, jax.tree.map(jnp.zeros_like, like))
    return total(
      jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), contributions, row),
      jnp.concatenate([weights, jnp.ones(1, weights.dtype)]), bound, key_of_round, number)

  return with_canaries


def alignments(key: Array, count: int, step: Tree) -> Array:
  """How far a model moved along the direction of each canary, f32[m].

  Args:
    key: of `planted`.
    count: m.
    step: [*p], what was released, such as the last model less the first.
  """
  return jax.lax.map(
    lambda number: tree.inner(direction(key, number, step), step), jnp.arange(count))
