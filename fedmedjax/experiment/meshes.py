"""The devices of a run: from config.mesh to what the model and the rounds are laid out by."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fedmedjax.fed.sites import Spread, spread_state, spread_vmap
from fedmedjax.fed.types import FedState
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
  if used == 1:
    return None
  return jax.make_mesh(
    (sites, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:used])


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

  vmap: Callable                         # sites computed at once
  place: Callable[[FedState], FedState]  # where the state is kept
  groups: int                            # of devices, each with sites of its own


def round_layout(config: ConfigDict) -> RoundLayout:
  """By config.mesh; InputError as `mesh_of`."""
  spread = spread_of(make_mesh(**config.mesh), config.fed.chunk)
  if spread is None:
    return RoundLayout(jax.vmap, lambda state: state, 1)
  return RoundLayout(spread_vmap(spread), spread_state(spread), spread.parts)


def replicate(mesh: Mesh | None, values: Any) -> Any:
  """The arrays of a tree, whole on every device of the mesh."""
  return values if mesh is None else jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
