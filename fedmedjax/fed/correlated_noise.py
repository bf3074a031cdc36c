"""Noise that is correlated over rounds or steps: banded matrix factorisation (DP-FTRL).

Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta & Xu, "(Amplified) Banded Matrix
Factorization: A unified approach to private training", NeurIPS 2023, arXiv:2306.08153. With g_t the
clipped sum of round t and C a lower triangular matrix with b bands, the server is given
g_t + (C^-1 z)_t, z_t independent Gaussian: the Gaussian mechanism on C g, then C^-1. What one round
adds too much, the next ones partly take back, so that the sum over rounds is less noisy. C is
Toeplitz here, with coefficients c_0 >= c_1 >= ... >= 0 of L2 norm 1.

What is accounted is C u for the rounds that a unit really takes part in (`sensitivity`; who takes
part when is known before the first round): row t of C g is a Gaussian mechanism that the unit
moves by (C u)_t. A unit of whose rounds any two lie at least b apart meets columns of C that share
no row, and k participations cost as much as k rounds of independent noise. Nearer ones cost more.

The noise of round t is a function of (key, t) alone: no state is kept, and a run that resumes draws
the same bits. It costs t + 1 draws of the adapter's size.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.fed.private_sums import NoiseFn, normal
from fedmedjax.fed.types import Array, Tree


def inverse_coefficients(coefficients: Sequence[float], rounds: int) -> np.ndarray:
  """First column of C^-1, f64[T]: d_0 = 1 / c_0, d_t = -(sum_{i=1}^{b-1} c_i d_{t-i}) / c_0.

  Args:
    coefficients: c, f[b], of the first column of C.
    rounds: T, rows of C.
  """
  c = np.asarray(coefficients, np.float64)
  d = np.zeros(rounds)
  d[0] = 1 / c[0]
  for t in range(1, rounds):
    past = d[max(0, t - len(c) + 1):t][::-1]
    d[t] = -(c[1:1 + len(past)] @ past) / c[0]
  return d


def banded_noise(
  inverse: Array | np.ndarray, key: Array, number: Array, like: Tree, deviation: Array | float
) -> Tree:
  """Row `number` of C^-1 z, [*p]: sum_{j <= t} d_{t-j} z_j, z_j of standard deviation `deviation`.

  Args:
    inverse: f32[T], of `inverse_coefficients`.
    key: of the noise of the whole run, the same in all rounds.
    number: t, i32[], from 0. Beyond T - 1 it is NaN: no noise was planned for it.
    like: [*p], shapes and dtypes.
    deviation: of one z.
  """
  inverse = jnp.asarray(inverse, jnp.float32)

  def add(past, total):
    z = normal(jax.random.fold_in(key, past), like, 1.0)
    weight = inverse[number - past]
    return jax.tree.map(lambda x, y: x + weight.astype(y.dtype) * y, total, z)

  total = jax.lax.fori_loop(0, number + 1, add, jax.tree.map(jnp.zeros_like, like))
  planned = jnp.where(number < len(inverse), jnp.float32(1), jnp.float32(jnp.nan))
  return jax.tree.map(lambda x: (planned * deviation).astype(x.dtype) * x, total)


def correlated_noise(coefficients: Sequence[float], rounds: int, key: Array) -> NoiseFn:
  """The noise [*p] of T rounds as a `NoiseFn`; it does not look at the round's own key.

  Args:
    coefficients: c, f[b].
    rounds: T, fixed before the first one.
    key: of the run's noise.
  """
  inverse = inverse_coefficients(coefficients, rounds).astype(np.float32)
  return lambda round_key, number, like, deviation: banded_noise(
    inverse, key, number, like, deviation)


def sensitivity(coefficients: Sequence[float], rounds: int, turns: Sequence[int]) -> float:
  """|C u| of a unit that takes part in the given rounds with contributions of norm 1 each.

  The most over all directions of the contributions: c >= 0, so that it is reached where all point
  the same way, and a unit that misses some of its rounds moves it less.

  Args:
    coefficients: c >= 0, f[b].
    rounds: T.
    turns: numbers of the unit's rounds, from 0.
  """
  c = np.asarray(coefficients, np.float64)
  total = np.zeros(rounds)
  for turn in turns:
    length = min(len(c), rounds - turn)
    total[turn:turn + length] += c[:length]
  return float(np.linalg.norm(total))
