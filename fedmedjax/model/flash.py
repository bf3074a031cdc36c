"""Attention whose scores never reach memory: one Pallas kernel forward, two backward.

FlashAttention (Dao, arXiv:2307.08691) over the union of several sources of keys, each with a mask:
a tile of queries meets the shared instruction's keys, then its own row's, and goes on with one
maximum and one denominator. So the sources are merged by their log-sum-exp without a copy of the
shared keys for each row. The backward kernels make the weights again from that merged log-sum-exp,
and every source's gradient has the whole mean (sum of cotangent times output) in it.

The same kernels are compiled by Mosaic for TPUs and by Triton for GPUs; on a CPU Pallas can only
interpret them. Letters as in `attention.py`; E is B for keys of a row's own and 1 for shared ones.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from fedmedjax.model.attention import SAVED, Attend, Source

Array = jax.Array

# Stands for minus infinity: exp(_HIDDEN - _HIDDEN) is a number, so that a query of padding, which
# may see no key, makes no NaN.
_HIDDEN = -1e30
# Bytes of queries that a backward kernel for keys holds at once. TPUs have 16 MiB for them, their
# cotangents and the next ones of both, besides the scores.
_QUERY_BYTES = 2 ** 20


class Tiling(NamedTuple):
  """How an accelerator wants the kernels cut."""

  queries: int  # at most so many in a tile
  keys: int     # at most so many in a tile
  # Triton wants tiles of powers of two; Mosaic whole arrays, or multiples of 128.
  powers_of_two: bool
  compiler_params: Any = None
  interpret: bool = False

  def tile(self, length: int, most: int) -> int:
    """Size of equal tiles that cover `length` places, at most `most` in each."""
    if self.powers_of_two:
      return min(most, max(16, pl.next_power_of_2(length)))
    count = pl.cdiv(length, most)
    unit = 16 if count == 1 else 128
    return pl.cdiv(pl.cdiv(length, count), unit) * unit

  def width(self, dim: int) -> int:
    """Width that heads of `dim` are padded to."""
    return max(16, pl.next_power_of_2(dim)) if self.powers_of_two else dim


def tiling(backend: str) -> Tiling:
  """The tiling of JAX's backend 'tpu' or 'gpu'; any other one interprets small tiles."""
  # Either import loads a compiler's dialect, which only its machine needs.
  if backend == 'tpu':
    from jax.experimental.pallas import tpu
    return Tiling(512, 512, False, tpu.CompilerParams())
  if backend == 'gpu':
    from jax.experimental.pallas import triton
    return Tiling(64, 64, True, triton.CompilerParams(num_warps=4, num_stages=2))
  return Tiling(16, 16, True, interpret=True)


@cache
def flash_attend(tiles: Tiling) -> Attend:
  """An `attention.Attend` by these kernels, with a gradient; it refuses to cap scores.

  Sites that are mapped over become one more axis of the kernels' grid (Pallas's rule for vmap).
  """
  def flash(q: Array, sources: tuple[Source, ...], cap: float = 0.0) -> Array:
    if cap:
      raise ValueError('the flash kernel does not cap scores')
    batch, length, heads, dim = q.shape
    rows = pl.cdiv(length, tile := tiles.tile(length, tiles.queries)) * tile
    q = _padded(jnp.moveaxis(q * dim**-0.5, 2, 0), rows, tiles.width(dim))
    out = _average(tiles, q, tuple(_tiled(tiles, source, rows) for source in sources))
    return jnp.moveaxis(out[:, :, :length, :dim], 0, 2)

  return flash


def _padded(x: Array, *sizes: int) -> Array:
  """x with zeros at the end of its last axes, so that they have these sizes."""
  lead = x.ndim - len(sizes)
  return jnp.pad(x, [(0, 0)] * lead + [
    (0, size - now) for size, now in zip(sizes, x.shape[lead:], strict=True)])


def _tiled(tiles: Tiling, source: Source, rows: int) -> Source:
  """A source as the kernels take it, in whole tiles: k, v [KV, E, M, d], mask i8[E, rows or 1, M].

  Keys of padding are hidden from all queries.
  """
  k, v, mask = source
  if k.ndim == 3:
    k, v = k[:, None], v[:, None]
  keys = pl.cdiv(k.shape[2], tile := tiles.tile(k.shape[2], tiles.keys)) * tile
  k, v = (_padded(x, keys, tiles.width(x.shape[-1])) for x in (k, v))
  mask = mask[None, None] if mask.ndim == 1 else mask
  return Source(k, v, _padded(
    mask.astype(jnp.int8), 1 if mask.shape[1] == 1 else rows, keys))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(tiles: Tiling, q: Array, sources: tuple[Source, ...]) -> Array:
  """Values averaged by softmax weights: q [H, B, T, d], already scaled -> [H, B, T, d]."""
  return _forward(tiles, q, sources)[0]


def _forward(tiles, q, sources):
  heads, batch, length, dim = q.shape
  size = tiles.tile(length, tiles.queries)
  at = pl.BlockSpec((None, None, size, dim), lambda h, b, i: (h, b, i, 0))
  out, log_total = pl.pallas_call(
    partial(_forward_kernel, tiles),
    grid=(heads, batch, length // size),
    in_specs=[at, *_specs_of_queries(sources, heads, size)],
    out_specs=[at, pl.BlockSpec((None, None, 1, size), lambda h, b, i: (h, b, 0, i))],
    out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype),
               jax.ShapeDtypeStruct((heads, batch, 1, length), jnp.float32)],
    compiler_params=tiles.compiler_params, interpret=tiles.interpret, name='flash_forward',
  )(q, *jax.tree.leaves(sources))
  out, log_total = checkpoint_name(out, SAVED), checkpoint_name(log_total, SAVED)
  return out, (q, sources, out, log_total)


def _specs_of_queries(sources: tuple[Source, ...], heads: int, size: int) -> list[pl.BlockSpec]:
  """What a tile of `size` queries reads of every source, in a grid of (H, B, tiles of T)."""
  specs = []
  for k, v, mask in sources:
    group, own = heads // k.shape[0], min(1, k.shape[1] - 1)
    whole = lambda h, b, i, group=group, own=own: (jax.lax.div(h, group), b * own, 0, 0)  # noqa: E731
    specs += [pl.BlockSpec((None, None, *x.shape[2:]), whole) for x in (k, v)]
    row, each = min(1, mask.shape[0] - 1), min(1, mask.shape[1] - 1)
    specs.append(pl.BlockSpec(
      (None, size if each else 1, mask.shape[2]),
      lambda h, b, i, row=row, each=each: (b * row, i * each, 0)))
  return specs


def _product(x: Array, y: Array, over: tuple[int, int]) -> Array:
  """float32 product of two matrices that sums over the axis over[0] of x and over[1] of y."""
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x, y, (((over[0],), (over[1],)), ((), ())), precision=exact,
    preferred_element_type=jnp.float32)


def _for_tiles(tiles: Tiling, keys: int, step, carry):
  """step(slice of a tile of keys, carry) -> carry, over all tiles."""
  size = tiles.tile(keys, tiles.keys)
  if keys == size:
    return step(pl.ds(0, size), carry)
  return jax.lax.fori_loop(
    0, keys // size, lambda i, carry: step(pl.ds(pl.multiple_of(i * size, size), size), carry),
    carry)


def _forward_kernel(tiles: Tiling, q_ref, *refs):
  *source_refs, out_ref, log_ref = refs
  q = q_ref[...]

  def see(k_ref, v_ref, mask_ref, tile, carry):
    peak, total, out = carry
    score = jnp.where(
      mask_ref[:, tile].astype(jnp.int32) != 0, _product(q, k_ref[tile, :], (1, 1)), _HIDDEN)
    higher = jnp.maximum(peak, score.max(axis=1, keepdims=True))
    weight, shrink = jnp.exp(score - higher), jnp.exp(peak - higher)
    value = _product(weight.astype(v_ref.dtype), v_ref[tile, :], (1, 0))
    return higher, total * shrink + weight.sum(axis=1, keepdims=True), out * shrink + value

  zeros = partial(jnp.zeros, dtype=jnp.float32)
  carry = zeros((q.shape[0], 1)) + _HIDDEN, zeros((q.shape[0], 1)), zeros(q.shape)
  for refs in zip(*[iter(source_refs)] * 3, strict=True):
    carry = _for_tiles(tiles, refs[0].shape[0], partial(see, *refs), carry)
  peak, total, out = carry
  out_ref[...] = (out / total).astype(out_ref.dtype)
  log_ref[...] = (peak + jnp.log(total)).T


def _score_gradient(q, k, v, mask, cotangent, log_total, mean):
  """(weights, gradient of the scores) float32 [Q, M] of a tile; log_total and mean are [1, Q]."""
  weight = jnp.where(
    mask.astype(jnp.int32) != 0, jnp.exp(_product(q, k, (1, 1)) - log_total.T), 0.0)
  return weight, weight * (_product(cotangent, v, (1, 1)) - mean.T)


def _query_kernel(tiles: Tiling, q_ref, towards_ref, log_ref, mean_ref, *refs):
  *source_refs, grad_ref = refs
  q, towards, log_total, mean = q_ref[...], towards_ref[...], log_ref[...], mean_ref[...]

  def see(k_ref, v_ref, mask_ref, tile, grad):
    k = k_ref[tile, :]
    _, slope = _score_gradient(
      q, k, v_ref[tile, :], mask_ref[:, tile], towards, log_total, mean)
    return grad + _product(slope.astype(k.dtype), k, (1, 0))

  grad = jnp.zeros(q.shape, jnp.float32)
  for refs in zip(*[iter(source_refs)] * 3, strict=True):
    grad = _for_tiles(tiles, refs[0].shape[0], partial(see, *refs), grad)
  grad_ref[...] = grad.astype(grad_ref.dtype)


def _key_kernel(
  size: int, q_ref, towards_ref, log_ref, mean_ref, k_ref, v_ref, mask_ref, k_grad, v_grad):
  """Sums over the queries of a group's heads and of some rows, in tiles of `size`."""
  k, v = k_ref[...], v_ref[...]
  group, rows, length, _ = q_ref.shape
  each_row, each_query = mask_ref.shape[0] > 1, mask_ref.shape[1] > 1

  count = length // size

  def see(index, carry):
    head, rest = jax.lax.div(index, rows * count), jax.lax.rem(index, rows * count)
    place = head, jax.lax.div(rest, count)
    start = 0 if count == 1 else pl.multiple_of(jax.lax.rem(rest, count) * size, size)
    tile = pl.ds(start, size)
    q, towards = q_ref[*place, tile, :], towards_ref[*place, tile, :]
    mask = mask_ref[place[1] if each_row else 0, tile if each_query else slice(None), :]
    weight, slope = _score_gradient(
      q, k, v, mask, towards, log_ref[*place, :, tile], mean_ref[*place, :, tile])
    return (carry[0] + _product(slope.astype(q.dtype), q, (0, 0)),
            carry[1] + _product(weight.astype(q.dtype), towards, (0, 0)))

  zeros = jnp.zeros(k.shape, jnp.float32)
  k_sum, v_sum = jax.lax.fori_loop(0, group * rows * count, see, (zeros, zeros))
  k_grad[...], v_grad[...] = k_sum.astype(k_grad.dtype), v_sum.astype(v_grad.dtype)


def _backward(tiles, kept, cotangent):
  q, sources, out, log_total = kept
  # The denominator's part, of all sources together: sum over keys of weight times its cotangent.
  mean = jnp.sum(
    cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[:, :, None]
  queries = (q, cotangent, log_total, mean)
  return _query_gradient(tiles, queries, sources), tuple(
    _key_gradient(tiles, queries, source) for source in sources)


_average.defvjp(_forward, _backward)


def _query_gradient(tiles: Tiling, queries: tuple, sources: tuple[Source, ...]) -> Array:
  """The gradient of q; `queries` are q and its cotangent [H, B, T, d], log-sum-exp and mean
  [H, B, 1, T]."""
  heads, batch, length, dim = queries[0].shape
  size = tiles.tile(length, tiles.queries)
  at = pl.BlockSpec((None, None, size, dim), lambda h, b, i: (h, b, i, 0))
  number = pl.BlockSpec((None, None, 1, size), lambda h, b, i: (h, b, 0, i))
  return pl.pallas_call(
    partial(_query_kernel, tiles),
    grid=(heads, batch, length // size),
    in_specs=[at, at, number, number, *_specs_of_queries(sources, heads, size)],
    out_specs=at, out_shape=jax.ShapeDtypeStruct(queries[0].shape, queries[0].dtype),
    compiler_params=tiles.compiler_params, interpret=tiles.interpret, name='flash_queries',
  )(*queries, *jax.tree.leaves(sources))


def _key_gradient(tiles: Tiling, queries: tuple, source: Source) -> Source:
  """The gradients of one source; `queries` as in `_query_gradient`."""
  k, v, mask = source
  heads, batch, length, dim = queries[0].shape
  kv_heads, elements, keys, _ = k.shape
  group, size = heads // kv_heads, tiles.tile(keys, tiles.keys)
  # Shared keys get a gradient from every row: from some rows at a time, summed below.
  most = max(1, _QUERY_BYTES // (group * length * dim * queries[0].dtype.itemsize))
  rows = 1 if elements > 1 else next(n for n in range(min(most, batch), 0, -1) if batch % n == 0)
  own, row, each = (min(1, n - 1) for n in (elements, *mask.shape[:2]))
  at = lambda *shape: pl.BlockSpec(  # noqa: E731
    (group, rows, *shape), lambda h, part, i: (h, part, 0, 0))
  key = pl.BlockSpec((None, None, size, dim), lambda h, part, i: (h, part * own, i, 0))
  grad = pl.BlockSpec((None, None, size, dim), lambda h, part, i: (h, part, i, 0))
  parts = batch // rows
  shape = jax.ShapeDtypeStruct(
    (kv_heads, parts, keys, dim), k.dtype if parts == elements else jnp.float32)
  grads = pl.pallas_call(
    partial(_key_kernel, tiles.tile(length, tiles.queries)),
    grid=(kv_heads, parts, keys // size),
    in_specs=[
      at(length, dim), at(length, dim), at(1, length), at(1, length), key, key,
      pl.BlockSpec((rows if row else 1, length if each else 1, size),
                   lambda h, part, i: (part * row, 0, i))],
    out_specs=[grad, grad], out_shape=[shape, shape],
    compiler_params=tiles.compiler_params, interpret=tiles.interpret, name='flash_keys',
  )(*queries, *source)
  if parts != elements:
    grads = [x.sum(axis=1, keepdims=True).astype(k.dtype) for x in grads]
  return Source(*grads, None)
