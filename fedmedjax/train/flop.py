"""Matrix products of a traced program, and how fast the device at hand multiplies matrices."""

import time
from collections import Counter
from functools import cache
from math import prod
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# A timed call multiplies by this many bytes of matrices in turn, since no cache of a processor
# holds a model, and lasts so many seconds at least.
_BYTES, _SECONDS = 2**26, 0.03


class Product(NamedTuple):
  """The shape of a product [rows, inner] x [inner, columns]."""

  rows: int
  inner: int
  columns: int
  dtype: Any

  @property
  def flop(self) -> int:
    return 2 * self.rows * self.inner * self.columns


def products(jaxpr: Any, trips: int = 1) -> Counter:
  """{a product: FLOP of all products of its shape} of a traced program, the loops in it included.

  Only products count: beside them all else of a model is little arithmetic.

  Args:
    jaxpr: from `jax.make_jaxpr` or the like.
    trips: how often the body of a loop runs whose length is not known before it does.
  """
  found: Counter = Counter()
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      product, count = _product(equation)
      found[product] += count * product.flop
    elif name == 'cond':
      # The dearest of the branches.
      found += max((products(branch, trips) for branch in params['branches']), key=Counter.total)
    else:
      times = {'scan': params.get('length'), 'while': trips}.get(name, 1)
      if name == 'shard_map':  # its products are those of one part
        times = prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
      for part in params.values():
        if times and hasattr(getattr(part, 'jaxpr', part), 'eqns'):
          found.update({
            product: times * flop for product, flop in products(part, trips).items()})
  return found


def calls(jaxpr: Any) -> int:
  """How many products a traced program starts, loops of known length included, branches not."""
  total = 0
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    total += equation.primitive.name == 'dot_general'
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    total += times * sum(
      calls(part) for part in equation.params.values()
      if hasattr(getattr(part, 'jaxpr', part), 'eqns'))
  return total


def _product(equation: Any) -> tuple[Product, int]:
  """The shape of a `dot_general`, and of how many such products it is a batch."""
  (left, right), (batch, _) = equation.params['dimension_numbers']
  a, b = (variable.aval for variable in equation.invars)
  inner, count = prod(a.shape[i] for i in left), prod(a.shape[i] for i in batch)
  del right
  if not inner * count:
    return Product(0, 0, 0, a.dtype), 0
  return Product(a.size // (inner * count), inner, b.size // (inner * count), a.dtype), count


@cache
def product_rate(product: Product) -> float:
  """FLOP a second of products of this shape on the first device, measured once: under a second.

  Inputs go through matrices [inner, columns] and [columns, inner] in turn, as a model's do. It is
  the median of five calls, each of as many products as take `_SECONDS`.
  """
  rows, inner, columns, dtype = product
  wide = jnp.promote_types(dtype, jnp.float32)
  # A large product needs few matrices to last long enough, and a small one many to be read anew.
  pairs = max(1, min(
    _BYTES // (2 * inner * columns * dtype.itemsize), int(5e9 / product.flop)))
  # Numbers stay ones.
  up = jnp.full((pairs, inner, columns), 1 / inner, dtype)
  down = jnp.full((pairs, columns, inner), 1 / columns, dtype)

  @jax.jit
  def multiply(times, x, up, down):
    def both(x, matrices):
      for matrix in matrices:
        # As models add up products of bfloat16 (`quant.rounded_product`).
        x = jnp.matmul(x, matrix, preferred_element_type=wide).astype(dtype)
      return x, None

    return jax.lax.fori_loop(0, times, lambda _, x: jax.lax.scan(both, x, (up, down))[0], x)

  def seconds(times: int) -> float:
    begun = time.perf_counter()
    multiply(jnp.int32(times), jnp.ones((rows, inner), dtype), up, down).block_until_ready()
    return time.perf_counter() - begun

  times = 1
  seconds(times)
  while (taken := seconds(times)) < _SECONDS:
    times = max(times + 1, min(100 * times, int(1.2 * times * _SECONDS / max(taken, 1e-9))))
  return 2 * pairs * times * product.flop / median(seconds(times) for _ in range(5))
