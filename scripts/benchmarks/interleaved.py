"""What scripts/bench_*.py share: callables timed in turns in one process, a table and a file.

    interleaved.run(argv, define, check_flags, bench)    # a whole script, or by hand:
    threads = interleaved.pin_threads(values.threads)    # first of all, before jax computes
    ceiling = interleaved.matmul_ceiling('float32', with_torch=True)
    timings = interleaved.measure({'ours': ours, 'peer_peft_batch8': peer}, values.repeats, check)
    quantities = {'examples_per_second': lambda seconds: examples / seconds}
    interleaved.show('NER, 16 examples a step', timings, quantities)
    interleaved.write(values.out, interleaved.found(timings, quantities) | ceiling, threads)

An entrant is named 'ours' (one has to be), 'ours_VARIANT' or 'peer_NAME'. Its callable does the
same work from the same start every time, and returns when it is done (jax.block_until_ready,
torch.cuda.synchronize). Other processes that it starts inherit the cores it is pinned to.
"""

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

from fedmedjax.runtime.cli import guarded, read_flags, versions
from fedmedjax.store.files import plain, write_json
from fedmedjax.types import InputError

# Idle threads spin for some milliseconds before they sleep; the next entrant waits that out.
_SETTLE_SECONDS = 0.1
# Side of the square product whose speed is the ceiling: 0.2 s on two cores, 2 ms on an H100. There
# 20 of them are started at once, since to start one takes a part of that.
_SIDE = {'cpu': 2048, 'accelerator': 8192}
_PRODUCTS = {'cpu': 1, 'accelerator': 20}


class Tolerance(NamedTuple):
  """How far apart two ways to do the same work may come out."""

  loss: float   # nats, above 1 relatively
  learnt: float # length of the difference of two adapters, in lengths of what was learnt


# In bfloat16 a rounding is 1/256, and two programs round differently: losses of later steps differ
# by some thousandths, and AdamW's first steps, which have the sign of a gradient, by far more.
TOLERANCES = {'float32': Tolerance(1e-3, 1e-2), 'bfloat16': Tolerance(1e-2, 0.5)}


class Timing(NamedTuple):
  """One entrant."""

  compile_seconds: float       # of the warm-up, less the median of the others; with a persistent
                               # cache of compilations that holds it, of reading it
  seconds: tuple[float, ...]   # of every repeat, in their order
  result: Any                  # what the warm-up returned


# Of an entrant: (seconds of a call) -> a number, by a key that ends in its unit.
Quantities = Mapping[str, Callable[[float], float]]


def define_flags(values: flags.FlagValues, repeats: int) -> None:
  """--repeats, --threads and --out."""
  flags.DEFINE_integer(
    'repeats', repeats, 'Measured calls of each, beside one to warm up.', lower_bound=1,
    flag_values=values)
  flags.DEFINE_integer(
    'threads', 0, 'Cores used; 0 = all that this process may use.', lower_bound=0,
    flag_values=values)
  flags.DEFINE_string('out', None, 'JSON file for what was found.', flag_values=values)


def check_out(out: str | None) -> None:
  """Raises InputError, before anything is measured, when the file could not be written."""
  if out and not Path(out).absolute().parent.is_dir():
    raise InputError(f'--out={out}: its folder is not there')


def pin_threads(count: int = 0) -> int:
  """Binds this process to `count` cores (0 = all it may use), for XLA, OpenMP and torch alike.

  To be called before jax's first computation: XLA's pool is made then. It is also told to leave
  the memory of an accelerator that it does not use to others.

  Returns:
    The number of cores.

  Raises InputError: there are not so many.
  """
  cores = sorted(os.sched_getaffinity(0))
  if count > len(cores):
    raise InputError(f'--threads={count}: this process may use {len(cores)} cores')
  count = count or len(cores)
  # torch shares the accelerator.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.sched_setaffinity(0, cores[:count])
  # NPROC is what XLA's client for CPUs asks for, before the affinity.
  os.environ['NPROC'] = os.environ['OMP_NUM_THREADS'] = str(count)
  if 'torch' in sys.modules:
    sys.modules['torch'].set_num_threads(count)
  return count


def measure(
  entrants: Mapping[str, Callable[[], Any]], repeats: int,
  check: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Timing]:
  """Calls each once to warm up, then all of them in turns `repeats` times, in rotated order.

  Args:
    entrants: by name, see above.
    repeats: measured calls of each.
    check: given what the warm-ups returned, by name; raises RuntimeError when they disagree.
  """
  def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    time.sleep(_SETTLE_SECONDS)
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result

  names = list(entrants)
  first = {name: timed(entrants[name]) for name in names}
  check({name: result for name, (_, result) in first.items()})
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for repeat in range(repeats):
    turn = repeat % len(names)
    for name in names[turn:] + names[:turn]:
      seconds[name].append(timed(entrants[name])[0])
  return {
    name: Timing(
      max(0.0, warm - statistics.median(seconds[name])), tuple(seconds[name]), result)
    for name, (warm, result) in first.items()}


def ratios(timings: Mapping[str, Timing]) -> dict[str, list[float]]:
  """How many times faster one was than another, repeat by repeat: they are neighbours in time, so
  that what slows the machine for a while slows both.

  ratio_to_NAME is 'ours' against every other entrant, ratio_VARIANT_to_NAME 'ours_VARIANT' against
  a peer; NAME is without its 'peer_' or 'ours_'.
  """
  out = {}
  for name, timing in timings.items():
    for other, slower in timings.items():
      if name == other or not (name == 'ours' or name.startswith('ours') and _is_peer(other)):
        continue
      key = f'ratio_{"" if name == "ours" else _short(name) + "_"}to_{_short(other)}'
      out[key] = [
        theirs / own for own, theirs in zip(timing.seconds, slower.seconds, strict=True)]
  return out


def _is_peer(name: str) -> bool:
  return name.startswith('peer_')


def _short(name: str) -> str:
  return name.removeprefix('peer_').removeprefix('ours_')


def found(
  timings: Mapping[str, Timing], quantities: Quantities, suffix: str = ''
) -> dict[str, Any]:
  """The entries of the file: medians, and [least, most] over the repeats as KEY_range.

  NAME_QUANTITY, NAME_seconds (all repeats) and NAME_compile_seconds of every entrant, and
  `ratios`. `suffix` ends each key, such as '_1000_sites'.
  """
  out: dict[str, Any] = {}

  def put(key: str, values: list[float]) -> None:
    out[f'{key}{suffix}'] = statistics.median(values)
    out[f'{key}{suffix}_range'] = [min(values), max(values)]

  for name, timing in timings.items():
    for key, of in quantities.items():
      put(f'{name}_{key}', [of(seconds) for seconds in timing.seconds])
    out[f'{name}_seconds{suffix}'] = list(timing.seconds)
    out[f'{name}_compile_seconds{suffix}'] = timing.compile_seconds
  for key, values in ratios(timings).items():
    put(key, values)
  return out


def show(title: str, timings: Mapping[str, Timing], quantities: Quantities) -> None:
  """Prints the table: median (least to most) of every quantity, and of `ratios` of 'ours'."""
  def cell(values: list[float]) -> str:
    return f'{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})'

  table = Table(title=title)
  columns = [key.replace('_', ' ') for key in quantities]
  for column in ('', *columns, 'ours is faster by', 'compile seconds'):
    table.add_column(column, justify='right' if column else 'left')
  faster = ratios(timings)
  for name, timing in timings.items():
    ratio = faster.get(f'ratio_to_{_short(name)}')
    table.add_row(
      name.replace('_', ' '),
      *(cell([of(seconds) for seconds in timing.seconds]) for of in quantities.values()),
      cell(ratio) if ratio else '', f'{timing.compile_seconds:.3g}')
  # Wide enough for its columns where no terminal says otherwise.
  console = Console()
  (console if console.is_terminal else Console(width=200)).print(table)


def commit() -> str:
  """Of this checkout, marked when it has changes."""
  try:
    git = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*'],
      cwd=Path(__file__).parent, capture_output=True, text=True)
  except OSError:  # a machine without git
    return 'unknown'
  return git.stdout.strip() or 'unknown'


def machine(threads: int) -> dict[str, Any]:
  """Where, with what and by which command something was measured."""
  device = jax.devices()[0]
  name = platform.machine()
  if Path('/proc/cpuinfo').exists():
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    name = next((line.split(':')[1].strip() for line in lines if 'model name' in line), name)
  peers = {
    name: sys.modules[name].__version__
    for name in ('torch', 'peft', 'flwr') if hasattr(sys.modules.get(name), '__version__')}
  return {
    'machine': {
      'processor': name, 'cores_used': threads, 'device': device.device_kind,
      'devices': jax.device_count(), 'backend': jax.default_backend()},
    'commit': commit(), 'versions': versions() | peers,
    'command': shlex.join([Path(sys.executable).name, *sys.argv])}


def write(out: str | None, values: Mapping[str, Any], threads: int) -> None:
  """Writes `values` and what `machine` says to the file, if one is wanted."""
  if out:
    write_json(Path(out), plain({**values, **machine(threads)}))
    print(f'written: {out}')


def run(
  argv: list[str], define: Callable[[flags.FlagValues], None],
  check: Callable[[flags.FlagValues], None], bench: Callable[[flags.FlagValues], dict[str, Any]],
) -> int:
  """A script from its command line to its exit status: what `bench` finds goes to --out."""
  def body():
    values = read_flags(argv, define)
    check(values)
    threads = pin_threads(values.threads)
    write(values.out, bench(values), threads)

  return guarded(body)


def matmul_ceiling(dtype: str, with_torch: bool, repeats: int = 5) -> dict[str, float]:
  """FLOP a second of a large square product of `dtype`: the best that can be had of the machine.

  CPUs add up products of bfloat16 in float32, which is the faster there.

  Args:
    dtype: 'float32' or 'bfloat16'.
    with_torch: measure torch's product as well, on the same device.
    repeats: measured calls; medians count.

  Returns:
    ceiling_flop_per_second, the faster library's, and each one's own.
  """
  kind = 'cpu' if jax.default_backend() == 'cpu' else 'accelerator'
  side, count = _SIDE[kind], _PRODUCTS[kind]
  values = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(partial(
    jnp.matmul, preferred_element_type=jnp.float32 if kind == 'cpu' else None))

  def own_product():
    for _ in range(count):
      last = multiply(values, values)
    last.block_until_ready()

  entrants = {'xla': own_product}
  if with_torch:
    import torch
    on_gpu = jax.default_backend() == 'gpu'
    tensor = torch.randn(
      side, side, dtype=getattr(torch, dtype), device='cuda' if on_gpu else 'cpu')

    def product():
      for _ in range(count):
        tensor @ tensor
      if on_gpu:
        torch.cuda.synchronize()

    entrants['torch'] = product
  rates = {
    f'ceiling_{name}_flop_per_second': 2 * count * side**3 / statistics.median(timing.seconds)
    for name, timing in measure(entrants, repeats).items()}
  return rates | {'ceiling_flop_per_second': max(rates.values())}
