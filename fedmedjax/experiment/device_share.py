"""What one device of a mesh holds and computes of a round: what memory is estimated by."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedmedjax import tree
from fedmedjax.experiment.types import DeviceShare
from fedmedjax.model.attention import Attention
from fedmedjax.model.files.convert import BaseModel, Placement, params_shape
from fedmedjax.model.llama import Llama, LlamaConfig
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_loss
from fedmedjax.model.quant import NF4, Int8, Rounded
from fedmedjax.model.sharding import FSDP, TENSOR, tensor_share

# How many times a TPU has a layer of NF4 unpacked whose kernels are split over an axis of the mesh;
# fitted to the rows of docs/accelerators.md.
_UNPACKED = {FSDP: 2.3, TENSOR: 3.0}
# What an H100's products ask for as scratch space, as XLA's accounts of memory show it.
_WORKSPACE = 2**25
# Vector memory of a TPU's core, in which its compiler keeps what a layer makes. Words of jax's
# `device_kind`, the first that is in it counts -> bytes, as jax's Pallas has them; else that of v5e
# and v6e.
_VECTOR_MEMORY = {
  'v2': 2**24, 'v3': 2**24, 'v4': 2**24, 'v5 lite': 2**27, 'v5e': 2**27, 'v5': 2**26, '7': 2**26}
_USUAL_VECTOR_MEMORY = 2**27
# A TPU's arrays are as wide as a multiple of it.
_TILE = 128
# Kernels of an MLP that it keeps in another layout, too, where 'tensor' makes them as wide as no
# multiple of that: for one site all three, for several gate's and up's twice; seen in these rows.
_KEPT = 3, 5


def device_share(
  base: BaseModel, lora: LoraConfig, adapter: dict, attention: Attention, dtype, mesh: Mesh | None
) -> DeviceShare:
  """What a device of `mesh` holds and computes.

  On a mesh the residual stream and the adapter are split over 'tensor' wherever they stay
  (`sharding.SplitOverTensor`), so what a device holds is a narrower model; products see the whole
  width. On a TPU a product reads its part of the stacked base as it lies; of one that is quantised
  it has a whole layer unpacked. Elsewhere one kernel at a time is cut out or unpacked.
  """
  tensor, platform = mesh.shape[TENSOR] if mesh else 1, jax.default_backend()
  config, params = tensor_share(base.config, base.params, tensor)
  on_tpu = platform == 'tpu'
  sizes = [math.prod(config.projection_shape(name)) for name in config.projections]
  kernels = [one.get('kernel') for one in params['layers'].values()]
  # A kernel that is cut out has the width of its products.
  width = jnp.dtype(
    jnp.bfloat16 if any(isinstance(one, Rounded) for one in kernels) else dtype).itemsize
  kinds = {type(one.kernel if isinstance(one, Rounded) else one) for one in kernels}
  as_is = on_tpu and not kinds & {Int8, NF4}
  split = [axis for axis in _UNPACKED if mesh and mesh.shape[axis] > 1 and NF4 in kinds]
  unpacked = 0 if as_is else max(sizes) if not on_tpu else int(sum(sizes) * max(
    (_UNPACKED[axis] for axis in split), default=1))

  def part(config: LlamaConfig, params: Any) -> tuple[Callable, dict, Any]:
    model = partial(Llama, config, attention, lora_scale=lora.scale, dtype=dtype)
    return lambda remat: partial(packed_loss, model(remat=remat)), (
      adapter if tensor == 1 else _fresh_shapes(config, lora)), params

  work, narrow = part(config, params), config
  if tensor > 1 and not config.hidden_size % tensor:
    tiles = _TILE if on_tpu else 1
    narrow = dataclasses.replace(
      config, hidden_size=_rounded_up(config.hidden_size // tensor, tiles),
      intermediate_size=_rounded_up(config.intermediate_size, tiles))
  # Kernels that are unpacked serve all sites: they are counted once, below.
  held = work if narrow is config and not kinds & {Int8, NF4} else part(
    narrow, params_shape(narrow, Placement(dtype)))
  padded = _rounded_up(config.intermediate_size, _TILE)
  copied = width * config.num_layers * config.hidden_size * padded * (
    as_is and tensor > 1 and padded > config.intermediate_size)
  return DeviceShare(
    *held, tree.num_bytes(adapter) // tensor, unpacked * width, work,
    tuple(copies * copied for copies in _KEPT), _WORKSPACE * (platform == 'gpu'),
    _vector_memory(jax.devices()[0].device_kind) if on_tpu else 0)


def _vector_memory(kind: str) -> int:
  return next(
    (size for words, size in _VECTOR_MEMORY.items() if words in kind.lower()),
    _USUAL_VECTOR_MEMORY)


def _rounded_up(width: int, tiles: int) -> int:
  """The next multiple of `tiles`."""
  return -(-width // tiles) * tiles


def _fresh_shapes(config: LlamaConfig, lora: LoraConfig) -> dict:
  """The shapes of a fresh adapter, A f32[L, D_in, rank] and B f32[L, rank, D_out]."""
  return jax.eval_shape(lambda: init_adapter(jax.random.key(0), config, lora))
