"""Discrete Gaussian noise: whole numbers of probability proportional to exp(-x^2 / (2 sigma^2)).

Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
arXiv:2004.00010. On a query of whole numbers with L2 sensitivity D it gives (D / sigma)^2 / 2
concentrated differential privacy, as the Gaussian does on real numbers. The sum of n of them, one
from each site, is not quite a discrete Gaussian of n sigma^2: Kairouz, Liu & Steinke, "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021,
arXiv:2102.06387, theorem 1 bounds what that costs.

Numbers are drawn by a table of the distribution function in steps of 2^-96, cut off at 13 sigma. It
is made of weights that are exact to the 53 bits of a float64 and added up as whole numbers. So the
chance of any number is off by a factor of 1 +- 2^-50, and by `sampling_error` < 2^-74 beside that.
A float32 formula would be off by 2^-24, which a million numbers add up. The bits come from JAX's
generator.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.fed.types import Array

_BITS, _WEIGHT_BITS = 96, 180
# Of the table, in standard deviations: what lies beyond has less than 2^-96.
_TAIL = 13.0
# The largest sigma whose table of 26 sigma entries of 12 bytes is still a small array.
LARGEST = 2.0**17


def support(sigma: float) -> int:
  """The largest number that is ever drawn; the smallest is its negative."""
  return math.ceil(_TAIL * sigma)


def probabilities(sigma: float) -> np.ndarray:
  """Of -m, ..., m with m = `support(sigma)`, f64[2 m + 1], sum 1."""
  numbers = np.arange(-support(sigma), support(sigma) + 1, dtype=np.float64)
  weights = np.exp(-numbers**2 / (2 * sigma**2))
  return weights / math.fsum(weights)


def table(sigma: float) -> np.ndarray:
  """The distribution function at -m, ..., m - 1 in units of 2^-96: u32[2 m, 3], high words first.

  Raises:
    ValueError: sigma is not in (0, LARGEST].
  """
  if not 0 < sigma <= LARGEST:
    raise ValueError(f'sigma={sigma}: a table is made for a number in (0, {LARGEST:g}]')
  numbers = np.arange(support(sigma), 0, -1, dtype=np.float64)
  # Of -m, ..., -1; the smallest are near 2^-122 of the largest, which is that of 0.
  weights = [int(math.ldexp(one, _WEIGHT_BITS)) for one in np.exp(-numbers**2 / (2 * sigma**2))]
  below = list(itertools.accumulate(weights))
  whole = 2 * below[-1] + (1 << _WEIGHT_BITS)
  # Symmetric: F(x) = 1 - F(-x - 1).
  sums = [*below, *(whole - value for value in reversed(below))]
  words = b''.join(((value << _BITS) // whole).to_bytes(12, 'big') for value in sums)
  return np.frombuffer(words, '>u4').reshape(-1, 3).astype(np.uint32)


def draw(key: Array, shape: tuple[int, ...], thresholds: np.ndarray) -> Array:
  """i32[shape] of the discrete Gaussian of a `table` u32[2 m, 3]."""
  rows = jnp.asarray(thresholds)
  bits = jax.random.bits(key, (3, *shape), jnp.uint32)

  def smaller_or_equal(place):
    """Whether the threshold at `place` is no larger than the bits."""
    high, middle, low = (rows[place, word] for word in range(3))
    return (high < bits[0]) | (high == bits[0]) & (
      (middle < bits[1]) | (middle == bits[1]) & (low <= bits[2]))

  def halve(_, bounds):
    first, last = bounds  # the count of thresholds that are no larger lies in [first, last]
    middle = (first + last) // 2
    right = smaller_or_equal(jnp.minimum(middle, len(rows) - 1)) & (middle < last)
    return jnp.where(right, middle + 1, first), jnp.where(right, last, middle)

  start = jnp.zeros(shape, jnp.int32), jnp.full(shape, len(rows), jnp.int32)
  count, _ = jax.lax.fori_loop(0, int(len(rows)).bit_length() + 1, halve, start)
  return count - len(rows) // 2


def sampling_error(sigma: float) -> float:
  """Total variation between one draw and the discrete Gaussian, at most.

  Every entry of the table is off by less than 2^-96, and less than that lies beyond it.
  """
  return (2 * support(sigma) + 2) * 2.0**-_BITS


def sum_epsilon(sensitivity: float, sigma: float, sites: int, numbers: int) -> float:
  """epsilon of a sum of discrete Gaussians, which then has epsilon^2 / 2 concentrated DP.

  Kairouz, Liu & Steinke, theorem 1, its first two bounds, for any L2 sensitivity D:
  min(sqrt(D^2 / (n sigma^2) + tau d / 2), D / (sqrt(n) sigma) + tau sqrt(d)) with
  tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k / (k + 1)).

  Args:
    sensitivity: D, L2, in whole steps.
    sigma: of one site's noise, at least 1/2.
    sites: n, whose noise is in the sum.
    numbers: d, in one site's message.

  Raises:
    ValueError: sigma is below 1/2, where the theorem says nothing.
  """
  if sigma < 0.5:
    raise ValueError(f'sigma={sigma}: at least 1/2 is needed')
  tau = 10 * sum(math.exp(-2 * (math.pi * sigma)**2 * k / (k + 1)) for k in range(1, sites))
  ratio = sensitivity / (math.sqrt(sites) * sigma)
  return min(math.sqrt(ratio**2 + tau * numbers / 2), ratio + tau * math.sqrt(numbers))
