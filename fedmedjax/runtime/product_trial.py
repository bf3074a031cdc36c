"""A trial of milliseconds: does this machine multiply in bfloat16 faster than in float32?

CPUs with matrix units for bfloat16 (AMX, AVX512-BF16) may do so several times as fast; all others
convert operands one by one and are slower. A processor's flags rule units out but do not promise
speed, since compilers, libraries and virtual machines may leave units unused: what has the flags
is tried. Two runs of one command have to decide alike, whatever else the machine does meanwhile,
so the trial compares the fastest calls.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp

# How many times as fast bfloat16 has to be: operands have to be rounded, too, and a trial errs.
LEAST = 1.3
# Tokens, and a projection of the model that the package installs: a tenth of a second in all where
# a float32 product takes 5 ms.
_TOKENS, _WIDTH, _INNER = 256, 576, 1536
_REPEATS = 9
# Of x86 CPUs, in /proc/cpuinfo.
_UNITS = {'amx_bf16', 'avx512_bf16'}


def lacks_units(cpuinfo: Path = Path('/proc/cpuinfo')) -> bool:
  """Whether an x86 CPU says that it has no units for bfloat16; False where nothing is said."""
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  found = [set(line.split()) for line in lines if line.startswith('flags')]
  return bool(found) and not any(flags & _UNITS for flags in found)


@cache
def bfloat16_gain() -> float:
  """How many times as fast it multiplies in bfloat16; tried once in a process."""
  return gain(_calls())


def gain(
  calls: dict[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter
) -> float:
  """Seconds of calls['float32'] over those of calls['bfloat16']: the least of each, in turns."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(1 + _REPEATS):
    for name, call in calls.items():
      begun = clock()
      call()
      seconds[name].append(clock() - begun)
  # The first ones compile.
  return min(seconds['float32'][1:]) / min(seconds['bfloat16'][1:])


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
