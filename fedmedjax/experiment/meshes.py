"""The devices of a run: from config.mesh to what the model and the rounds are laid out by."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fedmedjax.fed.sites import (
  ByRows,
  SiteMap,
  Spread,
  fitted_map,
  spread_rows,
  spread_state,
  spread_vmap,
)
from fedmedjax.fed.slots import owner_group, slot_map
from fedmedjax.fed.types import FedState, RoundMetrics
from fedmedjax.model.sharding import AXES, FSDP, SITE
from fedmedjax.types import InputError


def make_mesh(site: int, fsdp: int, tensor: int) -> Mesh | None:
  """The first of the visible devices as a mesh of AXES; None = one device, on which all is whole.

  Args:
    site, fsdp, tensor: sizes of the axes; site -1 = what the others leave.

  Raises:
    InputError: there are not so many devices, or, for -1, not a multiple of fsdp * tensor.
  """
  count, split = len(jax.devices()), fsdp * tensor
  sites = count // split if site == -1 else site
  used = sites * split
  if not 0 < used <= count or (site == -1 and used != count):
    raise InputError(
      f'config.mesh: site={site}, fsdp={fsdp}, tensor={tensor} need '
      f'{"a multiple of " if site == -1 else ""}{split if site == -1 else used} devices; there are '
      f'{count}')
  if jax.process_count() > 1:
    return _mesh_of_processes(sites, fsdp, tensor, used)
  if used == 1:
    return None
  return jax.make_mesh(
    (sites, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:used])


def _mesh_of_processes(sites: int, fsdp: int, tensor: int, used: int) -> Mesh:
  """All devices of all processes; devices that compute a site together are of one process.

  Raises:
    InputError: they are not, or a process has other devices than the next or none of the mesh.
  """
  count, processes, split = len(jax.devices()), jax.process_count(), fsdp * tensor
  if used != count:
    raise InputError(
      f'config.mesh: site={sites}, fsdp={fsdp}, tensor={tensor} are {used} devices, and the '
      f'{processes} processes have {count}; config.mesh.site=-1 takes them all')
  own = jax.local_device_count()
  if count != own * processes:
    raise InputError(
      f'config.mesh: this process has {own} of {count} devices, and there are {processes} '
      'processes; each must have as many')
  if own % split:
    raise InputError(
      f'config.mesh: fsdp={fsdp} x tensor={tensor} devices compute a site together and have to be '
      f'of one process, which has {own}; divisors of that are allowed')
  devices = mesh_utils.create_hybrid_device_mesh(
    (own // split, fsdp, tensor), (processes, 1, 1), process_is_granule=True)
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def spread_of(mesh: Mesh | None, chunk: int) -> Spread | None:
  """How sites are spread: over 'site' and 'fsdp', whose devices would else do the same work.

  Args:
    mesh: of `make_mesh`.
    chunk: config.fed.chunk; below 1 it is no number of sites.

  Raises:
    InputError: a chunk that they do not share evenly.
  """
  if mesh is None:
    return None
  spread = Spread(mesh, (SITE, FSDP))
  if chunk > 0 and chunk % spread.parts:
    raise InputError(
      f'config.fed.chunk={chunk}: sites computed at once are spread over config.mesh.site x fsdp = '
      f'{spread.parts} groups of devices; -1, 0 or a multiple of {spread.parts} is allowed')
  return spread


def mesh_of(config: ConfigDict) -> Mesh | None:
  """The mesh of config.mesh; InputError also for what cannot be spread over it."""
  mesh = make_mesh(**config.mesh)
  spread_of(mesh, config.fed.chunk)
  return mesh


class RoundLayout(NamedTuple):
  """What a round is told of its devices, see `fed/sites.py`."""

  # (steps i[C] of the rounds, chunk) -> how sites are mapped over
  site_map: Callable[[list[np.ndarray], int], SiteMap]
  place: Callable[[FedState], FedState]  # where the state is kept
  groups: int                            # of devices, each with sites of its own
  told: Callable[[RoundMetrics], RoundMetrics] = lambda metrics: metrics  # where metrics are kept
  spread: Spread | None = None           # over devices of several processes; None = of one
  by_rows: ByRows = lambda sent: sent    # how what sites send is laid out


def round_layout(config: ConfigDict) -> RoundLayout:
  """By config.mesh; InputError as `mesh_of`."""
  spread = spread_of(make_mesh(**config.mesh), config.fed.chunk)
  if spread is None:
    return RoundLayout(_fitted(jax.vmap, 1), lambda state: state, 1)
  vmap, place = spread_vmap(spread), spread_state(spread)
  if jax.process_count() == 1:
    return RoundLayout(
      _fitted(vmap, spread.parts), place, spread.parts, by_rows=spread_rows(spread))

  def told(metrics: RoundMetrics) -> RoundMetrics:
    """On every device, so that each process can read them."""
    return jax.lax.with_sharding_constraint(
      metrics, NamedSharding(spread.mesh, PartitionSpec()))

  return RoundLayout(
    lambda steps, chunk: slot_map(chunk, spread, vmap), place, spread.parts, told, spread,
    spread_rows(spread))


def _fitted(vmap: Callable, groups: int) -> Callable[[list[np.ndarray], int], SiteMap]:
  return lambda steps, chunk: fitted_map(steps, chunk, vmap=vmap, groups=groups)


def owners(mesh: Mesh | None, sites: int, pooled: bool = False) -> list[int]:
  """The process that computes each of the sites, and so reads its notes.

  Args:
    mesh: of `make_mesh`.
    sites: S.
    pooled: all of them are trained on in one place.
  """
  if mesh is None:
    return [0] * sites
  spread = Spread(mesh, (SITE, FSDP))
  groups = mesh.devices.reshape(spread.parts, -1)
  return [
    groups[0 if pooled else owner_group(site, sites, spread.parts)][0].process_index
    for site in range(sites)]


def own_part(mesh: Mesh | None, arrays: Any) -> tuple[Mesh | None, Any]:
  """What this process holds of arrays of the base, as arrays on a mesh of its own devices alone.

  Nothing is copied. With it a process answers sentences without the others. In a single process
  it is what is given.
  """
  if mesh is None or jax.process_count() == 1:
    return mesh, arrays
  here = np.stack([
    group for group in mesh.devices if group.flat[0].process_index == jax.process_index()])
  if here.size == 1:
    return None, jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, arrays)
  own = Mesh(here, AXES, axis_types=(AxisType.Auto,) * 3)

  def part(leaf):
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(
      leaf.shape, NamedSharding(own, leaf.sharding.spec), shards)

  return own, jax.tree.map(part, arrays)


def replicate(mesh: Mesh | None, values: Any) -> Any:
  """The arrays of a tree, whole on every device of the mesh."""
  if mesh is None:
    return values
  whole = NamedSharding(mesh, PartitionSpec())
  if jax.process_count() == 1:
    return jax.device_put(values, whole)
  # Unlike device_put it does not send all of them around to compare them.
  return jax.tree.map(lambda x: jax.make_array_from_callback(
    x.shape, whole, lambda part: x[part]), jax.tree.map(np.asarray, values))


def anywhere(spread: Spread | None, arrays: Any) -> Any:
  """Arrays as arguments of a round; what lies on one device is none of one in several processes."""
  return arrays if spread is None else jax.tree.map(np.asarray, arrays)


def summed(spread: Spread | None, arrays: Any) -> Any:
  """The sums over processes of numpy arrays, known to all; as they are in a single process."""
  if spread is None:
    return arrays
  flat = NamedSharding(spread.mesh, PartitionSpec(AXES))
  whole = NamedSharding(spread.mesh, PartitionSpec())
  own = jax.local_device_count()

  def one(x: np.ndarray) -> np.ndarray:
    mine = np.concatenate([x[None], np.zeros((own - 1, *x.shape), x.dtype)])
    given = jax.make_array_from_process_local_data(
      flat, mine, (spread.mesh.size, *x.shape))
    return np.asarray(jax.jit(lambda x: x.sum(0, dtype=x.dtype), out_shardings=whole)(given))

  return jax.tree.map(one, arrays)
