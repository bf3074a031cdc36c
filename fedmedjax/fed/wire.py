"""Trees of arrays as the named arrays of a message, and back.

What travels in a round, and as which arrays, is what `ledger.py` counts. A name is
'KIND/TENSOR:PART' with the ledger's kind and tensor, such as 'adapter/layers/q_proj/a:codes'. In
shapes, n is the number of values of a flattened leaf; a site of rank r_k has r_k columns of A and
rows of B, with the rank's axis first (see `ranks.py`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from fedmedjax import tree
from fedmedjax.fed.compression import Codec, float32
from fedmedjax.fed.sharing import moves
from fedmedjax.fed.types import Sharing, Tree

Arrays = dict[str, np.ndarray]


class Wire(NamedTuple):
  """What both ends know of the messages of a study before the first one."""

  adapter: Tree            # [*p], arrays or shapes
  sharing: Sharing
  codec: Codec             # of updates
  ranks: tuple[int, ...]   # of the sites, i[S]; () = all have the server's
  controlled: bool         # control variates travel, too
  columns: int             # that a round adds to the base; 0 = none

  @property
  def paths(self) -> list[str]:
    """The path of every leaf [*p]."""
    return tree.paths(self.adapter)

  def travelling(self, changed: int) -> list[str]:
    """Paths of the leaves that are trained and sent after `changed` rounds that changed something.
    """
    return [path for path in self.paths
            if self.sharing.trained(path, changed) and self.sharing.shared(path)]

  def lacking(self, changed: int, before: int | None) -> list[str]:
    """Paths of the shared leaves that a site does not have yet.

    Args:
      changed: rounds so far that changed something.
      before: their number when the site was last sent the adapter; None = never.
    """
    return [
      path for path in self.paths if self.sharing.shared(path) and (
        before is None
        or any(moves(self.sharing, path, past) for past in range(before, changed)))]

  @property
  def whole_ranks(self) -> 'Wire':
    """Of the final adapter: sites answer with the server's rank, as in a simulation."""
    return self._replace(ranks=())

  @property
  def shared(self) -> list[str]:
    """Paths of all leaves that the server has."""
    return self.lacking(0, None)


def name_of(kind: str, tensor: str, part: str = 'values') -> str:
  """The name of one of the arrays, such as f32[n], in which a tensor travels."""
  return f'{kind}/{tensor}:{part}'


def key_of(name: str) -> tuple[str, str]:
  """(kind, tensor) of a name, as in the ledger."""
  kind, _, rest = name.partition('/')
  return kind, rest.rpartition(':')[0]


def plain_arrays(
  wire: Wire, kind: str, values: Tree, paths: Iterable[str], site: int, part: str = 'values'
) -> Arrays:
  """Leaves of [*p] in float32, cut to the site's rank: f32[n] each."""
  kept = set(paths)
  return {
    name_of(kind, path, part): np.asarray(
      _flat(wire, path, leaf)[:_length(wire, path, leaf, site)], np.float32)
    for path, leaf in zip(wire.paths, jax.tree.leaves(values), strict=True) if path in kept}


def read_plain(
  wire: Wire, kind: str, arrays: Mapping[str, np.ndarray], paths: Iterable[str], site: int,
  part: str = 'values', into: Tree | None = None,
) -> Tree:
  """The inverse of `plain_arrays`: [*p], with the leaves of `into`, or zeros, for the others.

  Raises:
    ValueError: an array is missing, or of another shape or type.
  """
  kept = set(paths)

  def leaf(number, path, like):
    if path not in kept:
      return np.zeros(like.shape, like.dtype) if into is None else np.asarray(others[number])
    n = _length(wire, path, like, site)
    flat = _checked(arrays, name_of(kind, path, part), (n,), np.dtype(np.float32))
    return np.asarray(_unflat(wire, path, like, _padded(flat, math.prod(like.shape))))

  others = None if into is None else jax.tree.leaves(into)
  leaves, treedef = jax.tree.flatten(wire.adapter)
  return jax.tree.unflatten(treedef, [
    leaf(number, path, like)
    for number, (path, like) in enumerate(zip(wire.paths, leaves, strict=True))])


def encoder(wire: Wire, owed: Callable) -> Callable:
  """(update [*p], state of the sender, key) -> the codec's arrays of every leaf, a list.

  Args:
    owed: (update [*p], state) -> [*p], what the codec is given: clipped, with what earlier rounds
      left out.
  """

  def encode(update, outbound, key):
    leaves = jax.tree.leaves(owed(update, outbound))
    # As in `compression.compress`, so that the arrays are those that the simulation decodes.
    return [
      wire.codec.encode(
        _flat(wire, path, leaf).astype(jnp.float32), jax.random.fold_in(key, number))
      for number, (path, leaf) in enumerate(zip(wire.paths, leaves, strict=True))]

  return encode


def coded_arrays(wire: Wire, parts: list, paths: Iterable[str], site: int) -> Arrays:
  """What `encoder` made of the leaves `paths` of [*p], cut to the site's rank, with their names."""
  kept, found = set(paths), {}
  for path, like, sent in zip(wire.paths, jax.tree.leaves(wire.adapter), parts, strict=True):
    if path in kept:
      for name, (shape, dtype) in _coded_shapes(wire, path, like, site).items():
        array = np.asarray(dict(_named(path, sent))[name])[:shape[0]]
        # safetensors' numpy has no bfloat16.
        found[name] = array.view(np.uint16) if dtype == ml_dtypes.bfloat16 else array
  return found


def read_coded(
  wire: Wire, arrays: Mapping[str, np.ndarray], paths: Iterable[str], site: int
) -> Tree:
  """The update [*p] that the server reads from a site's arrays, zeros where nothing was sent.

  Raises:
    ValueError: an array is missing, or of another shape or type.
  """
  kept = set(paths)

  def leaf(path, like):
    size, n = math.prod(like.shape), _length(wire, path, like, site)
    if path not in kept:
      return np.zeros(like.shape, like.dtype)
    read = {}
    for name, (shape, dtype) in _coded_shapes(wire, path, like, site).items():
      travels = np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else np.dtype(dtype)
      read[name] = _checked(arrays, name, shape, travels).view(dtype)
    shapes = _shapes(wire.codec, n)
    names = [name for name, _ in _named(path, shapes)]
    sent = jax.tree.unflatten(jax.tree.structure(shapes), [read[name] for name in names])
    if 'indices' in sent and (sent['indices'].size and int(sent['indices'].max()) >= n):
      raise ValueError(f'{path}: an index is beyond the tensor')
    flat = np.asarray(wire.codec.decode(jax.tree.map(jnp.asarray, sent), n))
    return np.asarray(_unflat(wire, path, like, _padded(flat, size))).astype(like.dtype)

  leaves, treedef = jax.tree.flatten(wire.adapter)
  return jax.tree.unflatten(treedef, [
    leaf(path, like) for path, like in zip(wire.paths, leaves, strict=True)])


def most_bytes(wire: Wire) -> int:
  """Bytes of all leaves [*p] in float32, which no codec's arrays exceed by much."""
  return 4 * tree.size(wire.adapter)


def _flat(wire: Wire, path: str, leaf):
  """f32[n], with the rank's axis first where sites have ranks of their own."""
  if wire.ranks:
    leaf = (np if isinstance(leaf, np.ndarray) else jnp).moveaxis(leaf, _rank_axis(path), 0)
  return leaf.reshape(-1)


def _unflat(wire: Wire, path: str, like, flat):
  """The inverse of `_flat`, for a leaf of the shape of `like`."""
  if not wire.ranks:
    return flat.reshape(like.shape)
  axis = _rank_axis(path)
  rank = like.shape[axis]
  others = [size for number, size in enumerate(like.shape) if number != len(like.shape) + axis]
  return np.moveaxis(np.asarray(flat).reshape(rank, *others), 0, axis)


def _rank_axis(path: str) -> int:
  return -1 if path.endswith('/a') else -2


def _length(wire: Wire, path: str, like, site: int) -> int:
  """n of what a site has of a leaf."""
  size = math.prod(like.shape)
  return size // like.shape[_rank_axis(path)] * wire.ranks[site] if wire.ranks else size


def _padded(flat: np.ndarray, size: int) -> np.ndarray:
  return np.concatenate([flat, np.zeros(size - flat.size, flat.dtype)])


def _shapes(codec: Codec, n: int) -> Tree:
  flat = jax.ShapeDtypeStruct((n,), jnp.float32)
  seed = jax.ShapeDtypeStruct((), jnp.uint32)
  return jax.eval_shape(lambda x, seed: codec.encode(x, jax.random.key(seed)), flat, seed)


def _coded_shapes(wire: Wire, path: str, like, site: int) -> dict[str, tuple[tuple, np.dtype]]:
  return {name: (array.shape, array.dtype) for name, array in _named(
    path, _shapes(wire.codec, _length(wire, path, like, site)))}


def _named(path: str, parts: Tree) -> list[tuple[str, jax.Array]]:
  return [(name_of('adapter', path, tree.path_string(part)), array)
          for part, array in jax.tree_util.tree_leaves_with_path(parts)]


def _checked(
  arrays: Mapping[str, np.ndarray], name: str, shape: tuple, dtype: np.dtype
) -> np.ndarray:
  """Raises ValueError where a stranger's array is not what was agreed."""
  array = arrays.get(name)
  if array is None:
    raise ValueError(f'{name} is missing')
  if array.shape != shape or array.dtype != dtype:
    raise ValueError(
      f'{name} is {array.dtype}{list(array.shape)}, {dtype}{list(shape)} is expected')
  return array


def codec_name(wire: Wire, kind: str) -> str:
  """The ledger's name of how the arrays of a kind, f32[n] or packed, travel on the way up."""
  return wire.codec.name if kind == 'adapter' else float32().name


def by_path(values: Tree) -> list[tuple[str, jax.Array]]:
  """(path, leaf [*p]) of every leaf."""
  return list(zip(tree.paths(values), jax.tree.leaves(values), strict=True))
