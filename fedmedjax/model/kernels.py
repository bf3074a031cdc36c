"""Which kernel computes a packed pass's attention: `attend`, our Pallas kernels, or cuDNN's.

All take the same sources and give the same averages; they differ in what goes through memory. The
plain one writes a score for every query and key. The others (FlashAttention; Dao, arXiv:2307.08691)
keep scores on the chip, have to be asked for, and are used where they were found on this machine,
for the model's own heads, to be about as near to float32 as the plain one is.

- 'flash' (`flash.py`) runs on TPUs and GPUs. It is our own because no kernel that JAX ships hides
  keys by another rule than equal segments and order, while all see a packed pass's instruction, or
  takes the log-sum-exp of several passes for its gradient. Worth it: compiled for a v5e, a layer of
  Llama-3.1-8B's attention forward and backward (3 sites, 8 rows of 161 tokens behind 303, bfloat16)
  needs 64 MiB of temporaries instead of 429 and moves 1.7 GiB instead of 4.5.
- 'cudnn' (by jax.nn.dot_product_attention) runs on NVIDIA cards in 16 bits, copies the
  instruction's keys for every row, and adds up gradients in an order of its own, so that a run
  cannot be repeated bit for bit.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh

from fedmedjax.model.attention import SAVED, Attend, Source, attend
from fedmedjax.model.flash import Tiling, flash_attend, tiling
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.types import InputError

Array = jax.Array

# A kernel may be four times as far from float32 as `attend` is: both round to 16 bits, at other
# places. A key too many or too few is hundreds of times as far.
FARTHER = 4.0
# Where `attend` is exact, as float32 on some machines, others may be so far from it, relatively.
_EXACT = 1e-6
# Rows, tokens of a row and tokens of the instruction in the trial: as many as in a step, so that a
# kernel's tiles have edges, and odd.
_TRIAL = (2, 161, 303)


@cache
def fused_attend(call: Callable[..., Array]) -> Attend:
  """An `attend` that joins the sources and leaves the rest to one kernel.

  The gradient keeps the kernel's inputs, a copy of shared keys for every row included, and runs it
  forward again. Where T or M is odd, which cuDNN refuses for gradients with a mask, M gets a key
  that is never seen, and T a query that nobody reads.

  Args:
    call: (q [B, T, H, d], k, v [B, M, KV, d], mask bool[B, 1, T, M]) -> [B, T, H, d], with a
      gradient. It never meets vmap: sites are folded into B before.
  """
  def grad(q, k, v, mask, cotangent):
    return jax.vjp(lambda *inputs: call(*inputs, mask), q, k, v)[1](cotangent)

  forward, backward = _sites_in_batch(call), _sites_in_batch(grad)

  @jax.custom_vjp
  def average(q, k, v, mask):
    return forward(q, k, v, mask)

  def keep(q, k, v, mask):
    return checkpoint_name(forward(q, k, v, mask), SAVED), (q, k, v, mask)

  def give(kept, cotangent):
    return *backward(*kept, cotangent), None

  average.defvjp(keep, give)

  def fused(q: Array, sources: tuple[Source, ...], cap: float = 0.0) -> Array:
    if cap:
      raise ValueError('a fused kernel does not cap scores')
    batch, length = q.shape[:2]
    k, v, mask = (jnp.concatenate(parts, axis) for parts, axis in zip(
      zip(*(_for_every_row(source, batch, length) for source in sources), strict=True), (1, 1, 2),
      strict=True))
    queries, keys = length % 2, mask.shape[-1] % 2
    widened = lambda x, count: jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))  # noqa: E731
    # The added query sees what the last one sees: a row of nothing but hidden keys is no average.
    mask = jnp.pad(jnp.pad(mask, ((0, 0), (0, queries), (0, 0)), mode='edge'),
                   ((0, 0), (0, 0), (0, keys)))
    out = average(widened(q, queries), widened(k, keys), widened(v, keys), mask[:, None])
    return out[:, :length]

  return fused


def _for_every_row(source: Source, batch: int, length: int) -> tuple[Array, Array, Array]:
  """(k, v [B, M, KV, d], mask bool[B, T, M]), with a copy of shared keys for each batch element."""
  def spread(x):
    x = x[:, None] if x.ndim == 3 else x
    x = jnp.moveaxis(x, 0, 2)
    return jnp.broadcast_to(x, (batch, *x.shape[1:]))

  mask = source.mask[None, None] if source.mask.ndim == 1 else source.mask
  return spread(source.k), spread(source.v), jnp.broadcast_to(
    mask, (batch, length, mask.shape[-1]))


def _sites_in_batch(function: Callable) -> Callable:
  """`function` of arrays with a leading batch axis; under vmap the mapped axis is laid into it.

  jax 0.10's own rule for cuDNN's kernel wants a mask for every head then.
  """
  @custom_vmap
  def folded(*arrays):
    return function(*arrays)

  @folded.def_vmap
  def rule(size, batched, *arrays):
    def flat(x, mapped):
      x = x if mapped else jnp.broadcast_to(x, (size, *x.shape))
      return x.reshape(-1, *x.shape[2:])

    results = folded(*map(flat, arrays, batched))
    split = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results)
    return split, jax.tree.map(lambda _: True, split)

  return folded


def cudnn_call(q: Array, k: Array, v: Array, mask: Array) -> Array:
  """cuDNN's kernel, a `call` of `fused_attend`: q [B, T, H, d], k, v [B, M, KV, d] -> [B, T, H, d].

  Raises whatever JAX raises where the kernel is not available.
  """
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='cudnn')


def _trial_inputs(heads: int, kv_heads: int, head_dim: int, dtype) -> tuple[tuple, Array]:
  """((q, instruction's k and v, rows' k and v), cotangent) of two sites, see `attend`."""
  rows, length, before = _TRIAL
  keys = jax.random.split(jax.random.key(0), 6)
  draw = lambda key, *shape: jax.random.normal(key, (2, *shape), dtype)  # noqa: E731
  return (
    draw(keys[0], rows, length, heads, head_dim),
    *(draw(key, kv_heads, before, head_dim) for key in keys[1:3]),
    *(draw(key, kv_heads, rows, length, head_dim) for key in keys[3:5]),
  ), draw(keys[5], rows, length, heads, head_dim)


def _trial(kernel: Attend, inputs: tuple, cotangent: Array) -> list[Array]:
  """float32 averages and gradients of rows of two segments that follow a shared instruction."""
  rows, length, before = _TRIAL
  segments = jnp.arange(length) < length // 3
  own = (segments[:, None] == segments[None]) & jnp.tril(jnp.ones((length, length), bool))
  own = jnp.broadcast_to(own, (rows, length, length))

  def averages(q, prefix_k, prefix_v, row_k, row_v):
    return kernel(q, (
      Source(prefix_k, prefix_v, jnp.arange(before) < before - 5), Source(row_k, row_v, own)))

  def both(inputs, cotangent):
    out, pull = jax.vjp(averages, *inputs)
    return out, pull(cotangent)

  results = jax.jit(jax.vmap(both))(inputs, cotangent)
  return [x.astype(jnp.float32) for x in jax.tree.leaves(results)]


@cache
def distance(kernel: Attend, heads: int, kv_heads: int, head_dim: int, dtype) -> float:
  """A kernel's error in averages and gradients against float32, relative to the error of `attend`.

  1 = just as far from float32. On random q [B, T, H, d] and keys of a shared instruction and of
  rows, in the sizes of the model's heads, mapped over two sites.

  Args:
    kernel: tried in `dtype`.
    heads, kv_heads, head_dim: H, KV and d.
    dtype: number format of the model.
  """
  inputs = _trial_inputs(heads, kv_heads, head_dim, dtype)
  # Else an accelerator's float32 is one of 10 bits.
  with jax.default_matmul_precision('highest'):
    true = _trial(attend, *jax.tree.map(lambda x: x.astype(jnp.float32), inputs))

  def error(kernel: Attend) -> Array:
    return jnp.stack([
      jnp.linalg.norm(x - y) for x, y in zip(_trial(kernel, *inputs), true, strict=True)])

  least = _EXACT * jnp.stack([jnp.linalg.norm(x) for x in true])
  return float(jnp.max(error(kernel) / jnp.maximum(error(attend), least)))


def plain(config: LlamaConfig, dtype, mesh: Mesh | None) -> Attend:
  """Returns `attend`, which serves any model on any machine: config.model.attention='plain'."""
  del config, dtype, mesh
  return attend


def cudnn(
  config: LlamaConfig, dtype, mesh: Mesh | None, *, call: Callable[..., Array] = cudnn_call
) -> Attend:
  """cuDNN's kernel (q [B, T, H, d] -> [B, T, H, d], see `attention.Attend`), after its trial.

  Args:
    config: the model's, whose numbers and width of heads are tried.
    dtype: number format of the model.
    mesh: devices that the model lies on; None = one device.
    call: see `fused_attend`; tests give another one.

  Raises:
    InputError: the kernel is not available here, or gives other results.
  """
  why = ''
  if jax.default_backend() != 'gpu':
    why = f'this machine computes on {jax.default_backend()}'
  elif jnp.dtype(dtype).itemsize != 2:
    why = f'the model is in {jnp.dtype(dtype).name}, the kernel in 16 bits'
  return _trusted('cudnn', fused_attend(call), why, config, dtype, mesh)


def flash(
  config: LlamaConfig, dtype, mesh: Mesh | None, *, tiles: Tiling | None = None
) -> Attend:
  """Our Pallas kernels (q [B, T, H, d] -> [B, T, H, d], see `flash.py`), after their trial.

  Args:
    config, dtype, mesh: as of `cudnn`.
    tiles: how the kernels are cut; None = as this machine wants it.

  Raises:
    InputError: the kernels do not run here, or give other results.
  """
  backend = jax.default_backend()
  why = '' if backend in ('tpu', 'gpu') else f'this machine computes on {backend}'
  return _trusted('flash', flash_attend(tiles or tiling(backend)), why, config, dtype, mesh)


def _trusted(
  name: str, kernel: Attend, why: str, config: LlamaConfig, dtype, mesh: Mesh | None) -> Attend:
  """`kernel`, or InputError that says why config.model.attention=`name` is refused; `why` first."""
  if not why and config.score_cap:
    why = f'the kernel does not cap scores, the model does at {config.score_cap:g}'
  if not why and mesh is not None:
    why = 'it was never tried on several devices (config.mesh)'
  why = why or _disagreement(kernel, config, dtype)
  if why:
    raise InputError(f"config.model.attention='{name}': {why}; 'plain' is allowed here")
  return kernel


def _disagreement(kernel: Attend, config: LlamaConfig, dtype) -> str:
  """Why a kernel cannot be trusted on this machine; '' = it can."""
  try:
    apart = distance(kernel, config.num_heads, config.num_kv_heads, config.head_dim, dtype)
  # Libraries that are missing, too old or of another card: whatever they raise.
  except Exception as error:
    return f'{type(error).__name__}: {next(iter(str(error).splitlines()), "")}'
  # Written as "not farther", so that a NaN is no agreement.
  return '' if apart <= FARTHER else (
    f'its results are {apart:.3g} times as far from float32 as those of the plain one')


# Values of config.model.attention -> (config, dtype, mesh or None) -> `Attend`.
ATTENTIONS = {'plain': plain, 'flash': flash, 'cudnn': cudnn}
