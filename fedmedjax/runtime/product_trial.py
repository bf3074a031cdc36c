"""A trial of milliseconds: does this machine multiply in bfloat16 faster than in float32?

CPUs with matrix units for bfloat16 (AMX, AVX512-BF16) do so several times as fast; all others
convert operands one by one and are slower. Flags of a processor say little about either, since
compilers, libraries and virtual machines may leave units unused.
"""

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import jax
import jax.numpy as jnp

# How many times as fast bfloat16 has to be: operands have to be rounded, too, and a trial errs.
LEAST = 1.3
# Tokens, and a projection of the model that the package installs: a tenth of a second in all where
# a float32 product takes 5 ms.
_TOKENS, _WIDTH, _INNER = 256, 576, 1536
_REPEATS = 5


@cache
def bfloat16_gain() -> float:
  """How many times as fast it multiplies in bfloat16; tried once in a process."""
  return gain(_calls())


def gain(
  calls: dict[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter
) -> float:
  """Seconds of calls['float32'] over those of calls['bfloat16']: medians, timed in turns."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(1 + _REPEATS):
    for name, call in calls.items():
      begun = clock()
      call()
      seconds[name].append(clock() - begun)
  # The first ones compile.
  return median(seconds['float32'][1:]) / median(seconds['bfloat16'][1:])


def _calls() -> dict[str, Callable[[], None]]:
  """A projection forward, and its gradient backward, as `model/quant.py` multiplies them."""
  @jax.jit
  def products(x, gradient, kernel):
    def times(spec, wide):
      return jnp.einsum(
        spec, wide.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)

    return times('ti,io->to', x), times('to,io->ti', gradient)

  x, gradient, kernel = (
    jax.random.normal(jax.random.key(0), shape)
    for shape in ((_TOKENS, _WIDTH), (_TOKENS, _INNER), (_WIDTH, _INNER)))
  kernels = {name: kernel.astype(name) for name in ('float32', 'bfloat16')}
  return {
    name: lambda kernel=kernel: jax.block_until_ready(products(x, gradient, kernel))
    for name, kernel in kernels.items()}
