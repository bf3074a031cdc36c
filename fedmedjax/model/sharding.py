"""How a base that is too large for one device is laid over several: one table.

Projections that read the residual stream are split by their outputs over 'tensor', those that
write to it by their inputs, as in Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter
Language Models Using Model Parallelism", arXiv:1909.08053: a block then needs two sums over
'tensor'. Between blocks the residual stream is split over 'tensor', too, so that those sums are
scattered and gathered again when they are read: Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", arXiv:2205.05198. We deviate in that its channels are
split rather than its tokens, since devices divide channels whatever is packed, and an adapter's
factors lie as the stream does. Inputs are split over 'fsdp', too, as in stage 3 of Rajbhandari et
al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv:1910.02054: a
layer is gathered when it is computed, in the form in which it is stored. Rows of a kernel are
gathered rather than columns, since for columns the compiler keeps a transposed copy of all layers;
NF4 has too few blocks of rows for that. We deviate in that the base is frozen: nothing of it is
ever reduced or written back. Over 'site' the base is copied.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedmedjax import tree
from fedmedjax.model.llama import Fetch, LlamaConfig, Stream, as_computed, as_stored
from fedmedjax.types import InputError

SITE, FSDP, TENSOR = AXES = ('site', 'fsdp', 'tensor')

_WHOLE = {1: P(), 2: P()}
# Path pattern -> by number of dimensions, how a leaf is split. Kernels are [L, D_in, D_out] or, as
# NF4, [L, blocks of D_in, n, D_out]; biases [L, D_out]; layers are scanned, so L stays whole. A
# block of the head's words is [parts, words of each, D].
RULES: dict[str, dict[int, P]] = {
  'embedding|head': {2: P((TENSOR, FSDP)), 3: P((TENSOR, FSDP))},
  r'norm/weight|layers/\w+_norm/weight': _WHOLE,
  'layers/(q|k|v|qkv|gate|up|gate_up)_proj/.+': {
    2: P(None, TENSOR), 3: P(None, FSDP, TENSOR), 4: P(None, FSDP, None, TENSOR)},
  'layers/(o|down)_proj/.+': {
    2: P(), 3: P(None, (TENSOR, FSDP)), 4: P(None, TENSOR, None, FSDP)},
}
# Rows of a table that are brought together to be looked up in.
_ROWS_AT_ONCE = 4096
# Leaves that stay whole where their size cannot be split: odd vocabularies.
_MAY_STAY_WHOLE = ('embedding', 'head')


def specs(paths: Mapping[str, int], rules: Mapping[str, dict[int, P]] = RULES) -> dict[str, P]:
  """How each leaf is split: {path: number of dimensions} of all leaves -> {path: PartitionSpec}.

  Raises:
    ValueError: no pattern matches a leaf, or several do, or a pattern matches no leaf.
  """
  chosen, used = {}, set()
  for path, dims in paths.items():
    matches = [pattern for pattern in rules if re.fullmatch(pattern, path)]
    if len(matches) != 1 or dims not in rules[matches[0]]:
      raise ValueError(
        f'{path} of {dims} dimensions: {len(matches)} sharding rules match, one for as many '
        'dimensions is needed')
    chosen[path] = rules[matches[0]][dims]
    used.add(matches[0])
  for pattern in rules:
    if pattern not in used:
      raise ValueError(f'sharding rule {pattern!r} matches no leaf')
  return chosen


def base_shardings(mesh: Mesh, config: LlamaConfig, shapes: Any) -> Any:
  """The sharding of each leaf of a base: a `Placement.sharding` once `mesh` is bound.

  Args:
    mesh: devices along AXES.
    config: the model's; the devices of 'tensor' must divide its numbers of heads.
    shapes: the `params` tree as it is stored, kernels [L, D_in, D_out], such as
      `convert.params_shape` gives it.

  Returns:
    A tree of NamedShardings of the same structure.

  Raises:
    InputError: the mesh does not divide a width or a number of heads.
  """
  for name in ('num_heads', 'num_kv_heads'):
    if getattr(config, name) % mesh.shape[TENSOR]:
      raise InputError(
        f'config.mesh.tensor={mesh.shape[TENSOR]}: the model has {name}={getattr(config, name)}, '
        'of which every device must have as many')
  leaves = dict(zip(tree.paths(shapes), jax.tree.leaves(shapes), strict=True))
  chosen = specs({path: len(leaf.shape) for path, leaf in leaves.items()})
  shardings = [
    NamedSharding(mesh, _spec_for(mesh, path, chosen[path], leaf.shape))
    for path, leaf in leaves.items()]
  return jax.tree.unflatten(jax.tree.structure(shapes), shardings)


def _axes(entry) -> tuple[str, ...]:
  return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _spec_for(mesh: Mesh, path: str, spec: P, shape: tuple[int, ...]) -> P:
  """`spec` for a leaf of this shape: a dimension of 1, such as that of scales, stays whole."""
  entries = []
  for size, entry in zip(shape, spec, strict=False):
    parts = 1
    for axis in _axes(entry):
      parts *= mesh.shape[axis]
    if size > 1 and size % parts and path not in _MAY_STAY_WHOLE:
      raise InputError(
        f'config.mesh.{" x ".join(axis for axis in _axes(entry) if mesh.shape[axis] > 1)}={parts}: '
        f'{path} is of shape {list(shape)}, and its {size} are not divided by {parts}')
    entries.append(entry if size % parts == 0 else None)
  return P(*entries)


class GatherOverFsdp(NamedTuple):
  """A `Llama.fetch`: brings weights together over 'fsdp', and leaves them split over 'tensor'."""

  mesh: Mesh

  def __call__(self, path: str, weights: Any) -> Any:
    """The same weights, gathered: [D_in, D_out] of one layer, or a block of the head's words."""
    stacked = path.startswith('layers/')

    def fetched(place, leaf):
      full = '/'.join(filter(None, (path, tree.path_string(place))))
      shape = (1,) * stacked + leaf.shape
      rule = next(rule for pattern, rule in RULES.items() if re.fullmatch(pattern, full))
      spec = _spec_for(self.mesh, full, rule[len(shape)], shape)[stacked:]
      kept = [tuple(axis for axis in _axes(entry) if axis != FSDP) or None for entry in spec]
      # As it lies at first: else what it is a part of might be gathered, and then cut.
      leaf = jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, P(*spec)))
      return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, P(*kept)))

    return jax.tree_util.tree_map_with_path(fetched, weights)

  def rows(self, table: jax.Array, places: jax.Array) -> jax.Array:
    """table[places], from [V, D] and i32[T] -> [T, D], by blocks of words: it is never whole."""
    parts = head_parts(self.mesh, len(table))
    if parts == 1:
      return table[places]
    words, width = len(table) // parts, table.shape[1]
    size = min(words, max(1, _ROWS_AT_ONCE // parts))
    split = table.reshape(parts, words, width)

    def see(number, found):
      first = jnp.minimum(number * size, words - size)
      block = self('embedding', jax.lax.dynamic_slice_in_dim(split, first, size, axis=1))
      place = places % words - first
      inside = (place >= 0) & (place < size)
      index = jnp.where(inside, places // words * size + place, 0)
      return jnp.where(inside[:, None], block.reshape(-1, width)[index], found)

    return jax.lax.fori_loop(
      0, -(-words // size), see, jnp.zeros((*places.shape, width), table.dtype))


def tensor_share(config: LlamaConfig, shapes: Any, parts: int) -> tuple[LlamaConfig, Any]:
  """What one device of 'tensor' computes with -> (its hyper-parameters, its base by shape).

  It is a model of fewer heads and a narrower MLP; the residual stream has its whole width, and
  embedding and head are left as they are.

  Args:
    config: the model's.
    shapes: the `params` tree, kernels [L, D_in, D_out], arrays or their shapes.
    parts: devices of 'tensor', which divide the model as `base_shardings` wants it.
  """
  def of_one(place, leaf):
    path = tree.path_string(place)
    rule = next(rule for pattern, rule in RULES.items() if re.fullmatch(pattern, path))
    shape = list(leaf.shape)
    for axis, entry in enumerate(rule[len(shape)] if path.startswith('layers/') else ()):
      if TENSOR in _axes(entry) and shape[axis] > 1:  # a dimension of 1 holds scales
        shape[axis] //= parts
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

  share = dataclasses.replace(
    config, num_heads=config.num_heads // parts, num_kv_heads=config.num_kv_heads // parts,
    intermediate_size=config.intermediate_size // parts)
  return share, jax.tree_util.tree_map_with_path(of_one, shapes)


def fetch_on(mesh: Mesh | None) -> Fetch:
  """The `Fetch` of a base that lies on a mesh, or, where `mesh` is None, on one device."""
  return as_stored if mesh is None or mesh.shape[FSDP] == 1 else GatherOverFsdp(mesh)


class SplitOverTensor(NamedTuple):
  """A `Llama.stream`: each device of 'tensor' has as many of the D channels, of all tokens."""

  mesh: Mesh

  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D], of which D is split and nothing is said of the other axes."""
    if x.shape[-1] % self.mesh.shape[TENSOR]:
      return x
    free = (P.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*free, TENSOR)))


def stream_on(mesh: Mesh | None) -> Stream:
  """The `Stream` of a base that lies on a mesh, or, where `mesh` is None, on one device."""
  return as_computed if mesh is None or mesh.shape[TENSOR] == 1 else SplitOverTensor(mesh)


def head_parts(mesh: Mesh | None, words: int) -> int:
  """How many devices the head's V = `words` are split over."""
  # Those of an odd vocabulary stay whole, see _MAY_STAY_WHOLE.
  parts = 1 if mesh is None else mesh.shape[FSDP] * mesh.shape[TENSOR]
  return 1 if words % parts else parts
