"""Secure aggregation with differential privacy: no server is trusted with a sum without noise.

Kairouz, Liu & Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation", ICML 2021, arXiv:2102.06387, on the masks of `secure.py`. Every site cuts its
update to a fixed norm, counts it in steps of a fixed size, adds discrete Gaussian noise of its own,
and masks the result. Nothing about the size of an update travels in the clear: `secure.py` alone
takes the step from the largest magnitudes that the sites report.

We deviate in three ways. Values are rounded to the nearest step, with steps so fine that it hardly
matters, in place of a random rotation and random rounding of coarse ones: rounding moves an update
of d numbers by at most sqrt(d) / 2 steps, which is added to the sensitivity. The modulus is 2^32,
and no sum can reach it, so that nothing wraps around. And every site adds noise for C - t senders,
where t of the C sites of a round may be missing: then the sum has at least the noise that is
claimed, and more where fewer are missing. With fewer senders nothing is released.

Left out as in `secure.py`: the agreement on keys. A site that is lost after it has sent its masks
is a site that sent: its noise is in the sum.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed import discrete_gaussian
from fedmedjax.fed.aggregators.private_mean import SumFn
from fedmedjax.fed.aggregators.secure import masked, signed
from fedmedjax.fed.privacy import Private
from fedmedjax.types import InputError

# Steps that the clip has, in square roots of the number of values: rounding adds half of one.
_FINENESS = 50
# Steps in the standard deviation of one site's noise at least, so that a sum of discrete Gaussians
# costs no more than one.
_LEAST_SIGMA = 4
# Apart from the keys of masks, which count up from 0.
_NOISE_KEY = 0x6E6F6973


class Ring(NamedTuple):
  """How values become whole numbers modulo 2^32, fixed by the config."""

  step: float         # the value of 1
  sigma: float        # of one site's discrete Gaussian, in steps
  sensitivity: float  # L2 of one site's message, in steps
  senders: int        # fewest sites whose noise is in a sum
  values: int         # d, numbers in a message


def ring(private: Private, values: int, sites: int, missing: int) -> Ring:
  """The fixed-point numbers of a run.

  Args:
    private: clip and noise multiplier.
    values: d, numbers in a message.
    sites: C, of a round.
    missing: t, how many of these may be missing.

  Raises:
    InputError: fewer than two senders would be left, there is no noise, or a sum might not fit.
  """
  senders = sites - missing
  if senders < 2:
    raise InputError(
      f'config.privacy.missing={missing}: of {sites} sites a round at least 2 have to be left, '
      f'so that it may be {max(sites - 2, 0)} at most')
  if not private.noise > 0:
    raise InputError(
      f'config.privacy.noise={private.noise}: secure aggregation with privacy needs a number > 0')
  deviation = private.noise * private.clip / math.sqrt(senders)
  step = min(private.clip / (_FINENESS * math.sqrt(values)), deviation / _LEAST_SIGMA)
  step = max(step, deviation / discrete_gaussian.LARGEST)
  sigma, sensitivity = deviation / step, private.clip / step + math.sqrt(values) / 2
  largest = sites * (sensitivity + discrete_gaussian.support(sigma))
  if largest >= 2**31:
    raise InputError(
      f'config.privacy.noise={private.noise}: the sum of {sites} messages would need whole numbers '
      f'up to {largest:.3g}, and 2^31 is the end; fewer sites a round or other noise are allowed')
  return Ring(step, sigma, sensitivity, senders, values)


def noise_multiplier(own: Ring) -> float:
  """The Gaussian noise multiplier of the same concentrated DP: 1 / epsilon of `sum_epsilon`.

  It is to be accounted by Renyi divergences, of which the theorem speaks: those of a Gaussian with
  this multiplier are at least those of the sum.
  """
  return 1 / discrete_gaussian.sum_epsilon(own.sensitivity, own.sigma, own.senders, own.values)


def discrete_sum(private: Private, sites: int, missing: int) -> SumFn:
  """sum_k w_k v_k with noise from every site, [C, *q] -> [*q]; the server sees the sum alone.

  Not usable where more than `missing` of the C sites sent nothing: then the sum has too little
  noise, and is thrown away.

  Args:
    private: clip and noise multiplier, > 0.
    sites: C, of a round.
    missing: t, how many of these may be missing.
  """
  def noised(contributions, weights, bound, key, number):
    del bound, number  # the clip is fixed
    values = sum(x[0].size for x in jax.tree.leaves(contributions))
    own = ring(private, values, sites, missing)
    thresholds = discrete_gaussian.table(own.sigma)
    noise_key = jax.random.fold_in(key, _NOISE_KEY)

    def numbers(site, weight, update):
      leaves, treedef = jax.tree.flatten(update)
      keys = jax.random.split(jax.random.fold_in(noise_key, site), len(leaves))
      return treedef.unflatten([
        jnp.round(weight * x / own.step).astype(jnp.int32)
        + discrete_gaussian.draw(one, x.shape, thresholds)
        for one, x in zip(keys, leaves, strict=True)])

    sends = weights > 0
    sent = masked(
      numbers, (jnp.arange(len(weights)), weights, contributions), sends, key)
    total = jax.tree.map(
      lambda x, like: signed(x.sum(axis=0, dtype=jnp.uint32)).astype(like.dtype) * own.step,
      sent, contributions)
    enough = sends.sum() >= own.senders
    return jax.tree.map(lambda x: jnp.where(enough, x, 0), total), enough

  return noised
