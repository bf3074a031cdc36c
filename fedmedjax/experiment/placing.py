"""The data of a round on the devices that compute it, where these are of several processes."""

import hashlib

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedmedjax.data import schedule as schedules
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.slots import Slots, make_slots, slots_computed
from fedmedjax.fed.types import FedState, LocalData
from fedmedjax.runtime import signals
from fedmedjax.runtime.processes import Processes


def round_data(study: Study, number: int, participation: Participation) -> LocalData:
  """What the cohort trains on; each process packs the examples of its own sites.

  In a single process the leaves of batches are numpy arrays [C, K, ...], else global arrays
  [Z, K, ...], of which each process has the slots of its devices.
  """
  sites, steps, weights = (
    participation.cohort.sites, participation.steps, participation.weights)
  if study.spread is None:
    batches, mask = schedules.round_arrays(study.schedule, number, sites, steps)
    return LocalData(
      batches, mask, weights,
      delay=participation.arrivals and participation.arrivals.delay)
  mesh, axes, groups = *study.spread, study.spread.parts
  slots = _slots(study, participation)
  here = [group for group, devices in enumerate(mesh.devices.reshape(groups, -1))
          if devices[0].process_index == study.processes.index]
  mine = np.arange(groups * study.slot_width).reshape(groups, -1)[here].reshape(-1)
  own = schedules.slot_arrays(
    study.schedule, number, sites, steps, np.where(slots.filled, slots.place, -1)[mine])
  placed = NamedSharding(mesh, PartitionSpec(axes))
  batches = jax.tree.map(lambda x: jax.make_array_from_process_local_data(
    placed, x, (groups * study.slot_width, *x.shape[1:])), own)
  longest = study.schedule.most_steps
  return LocalData(
    batches, np.arange(longest)[None] < np.asarray(steps)[:, None], weights, slots)


def steps_computed(study: Study, chunk: int, participation: Participation) -> int:
  """Steps that a round computes with so many sites at once, padded ones included."""
  if study.spread is None:
    return study.site_map(chunk).laid_out(participation.steps)
  return slots_computed(
    _slots(study, participation), participation.steps, study.spread.parts, chunk)


def _slots(study: Study, participation: Participation) -> Slots:
  return make_slots(
    participation.cohort.sites, participation.steps, len(study.schedule.weights),
    study.spread.parts, study.slot_width)


def on_host(study: Study, arrays):
  """Arrays of a round's results; of several processes, as numpy arrays that each has whole."""
  if study.spread is None:
    return arrays
  whole = NamedSharding(study.spread.mesh, PartitionSpec())
  return jax.tree.map(np.asarray, jax.jit(lambda x: x, out_shardings=whole)(arrays))


def check_alike(study: Study, number: int, state: FedState) -> None:
  """Raises RuntimeError where processes have come to unlike adapters after a round."""
  if study.processes.count == 1:
    return
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves((state.adapter, state.folded)):
    digest.update(np.asarray(leaf).tobytes())
  hashes = study.processes.gather(f'the adapter of round {number}', digest.hexdigest())
  if unlike := [place for place, other in enumerate(hashes) if other != hashes[0]]:
    raise RuntimeError(
      f'round {number}: the adapter of process {unlike[0]} is not that of process 0; a device or '
      'its memory is at fault, and nothing of the round is kept')


def stop_together(processes: Processes, number: int) -> None:
  """After a round that is kept: a signal that one process has received stops all of them."""
  if processes.count > 1:
    asked = max(processes.gather(f'the end of round {number}', signals.pending()))
    if asked:
      raise signals.Stopped(asked)
