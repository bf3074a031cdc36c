"""How a process finds the others of its run: by flags, or by what started it."""

import ctypes
import importlib.util
import ipaddress
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from fedmedjax.runtime import open_mpi
from fedmedjax.runtime.watch import CALL
from fedmedjax.types import InputError

if TYPE_CHECKING:
  from fedmedjax.runtime.processes import Processes

# Environment variables that say how many processes and nodes a launcher has started. An interactive
# shell of Slurm is a step of one task that may have kept the count of its whole job.
_COUNTS, _STEP = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'), 'SLURM_STEP_NUM_TASKS'
_NODES = ('SLURM_STEP_NUM_NODES', 'SLURM_JOB_NUM_NODES', 'OMPI_MCA_orte_num_nodes')
# Seconds that a live process may show no progress.
_DEADLINE = 1800.0
# JAX's own patience with silent processes; ours is shorter and says who is missing.
_HEARTBEATS = 5


class Launch(NamedTuple):
  """What the flags say; None = not given."""

  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  local_device_ids: tuple[int, ...] | None
  deadline: float
  call_deadline: float


def define(values: flags.FlagValues) -> None:
  """Declares the flags of a program that may be started in several processes."""
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where the run is started in several processes '
    'by hand; Slurm, Open MPI, Kubernetes and Cloud TPUs are recognised without it.',
    flag_values=values)
  flags.DEFINE_integer(
    'num_processes', None, 'With --coordinator: how many processes there are; 1 by itself: no '
    'others are looked for.', flag_values=values)
  flags.DEFINE_integer(
    'process_id', None, 'With --coordinator: which of them this is, from 0.', flag_values=values)
  flags.DEFINE_list(
    'local_device_ids', None, 'Devices of this machine that the process takes, such as 0,1; '
    'by default all, or what the launcher says.', flag_values=values)
  flags.DEFINE_float(
    'deadline', None, 'Seconds that processes wait for one that does not get on (default: 1800).',
    flag_values=values)
  flags.DEFINE_float(
    'call_deadline', None, 'Seconds that one round, one compilation or one batch of answers may '
    'take (default: 12 times --deadline).', flag_values=values)


def launch_of(values: flags.FlagValues) -> Launch:
  """The flags' values, checked.

  Raises:
    InputError: one that is not allowed, or that lacks another.
  """
  ids = values.local_device_ids
  if ids is not None:
    if not ids or not all(re.fullmatch(r'\d+', one) for one in ids) or len(set(ids)) < len(ids):
      raise InputError(
        f'--local_device_ids={",".join(ids)}: different numbers from 0 with commas are allowed')
    ids = tuple(map(int, ids))
  deadline = _DEADLINE if values.deadline is None else values.deadline
  if not 5 <= deadline < 1e6:
    raise InputError(f'--deadline={deadline:g}: 5 seconds or more are allowed')
  call_deadline = CALL * deadline if values.call_deadline is None else values.call_deadline
  if not deadline <= call_deadline < 1e8:
    raise InputError(
      f'--call_deadline={call_deadline:g}: --deadline={deadline:g} seconds or more are allowed')
  given = {name: values[name].value for name in ('coordinator', 'num_processes', 'process_id')}
  mpi = open_mpi.started(os.environ)
  if mpi and mpi.count > 1 and given['num_processes'] is None and given['process_id'] is None:
    coordinator = given['coordinator'] or open_mpi.coordinator(mpi, os.environ)
    _check(coordinator, mpi.count, mpi.index)
    # As JAX does for its earlier versions: of several processes of a machine each has one device.
    own = ids or (None if mpi.local_count == 1 else (mpi.local_index,))
    return Launch(coordinator, mpi.count, mpi.index, own, deadline, call_deadline)
  if absent := [name for name, value in given.items() if value is None]:
    alone = given == {'coordinator': None, 'num_processes': 1, 'process_id': None}
    if len(absent) < len(given) and not alone:
      named = next(name for name in given if name not in absent)
      raise InputError(f'--{named}={given[named]}: --{absent[0]} is missing beside it')
  else:
    _check(**given)
    _check_nodes(given['coordinator'])
  return Launch(*given.values(), ids, deadline, call_deadline)


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
  """Raises InputError for flags that cannot be meant, alone or together."""
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and re.fullmatch(r'\d+', port) and 0 < int(port) < 65536):
    raise InputError(f'--coordinator={coordinator}: HOST:PORT is expected, such as node1:12345')
  if num_processes < 1:
    raise InputError(f'--num_processes={num_processes}: 1 or more are allowed')
  if not 0 <= process_id < num_processes:
    raise InputError(
      f'--process_id={process_id}: with --num_processes={num_processes}, 0 to '
      f'{num_processes - 1} are allowed')


def _check_nodes(coordinator: str) -> None:
  """Raises InputError for a loopback coordinator where the launcher has several nodes."""
  nodes = max((int(os.environ[name]) for name in _NODES if os.environ.get(name, '').isdigit()),
              default=1)
  if nodes > 1 and is_loopback(coordinator):
    raise InputError(
      f'--coordinator={coordinator}: means each node itself, and this run is on {nodes} nodes; '
      'name a host that all of them reach')


def is_loopback(coordinator: str) -> bool:
  """Whether HOST:PORT is a machine's own address, which other machines do not reach."""
  host = coordinator.rpartition(':')[0].strip('[]')
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host.casefold() in ('localhost', 'localhost.localdomain', 'ip6-localhost')


def several(launch: Launch, environ: Mapping[str, str] = os.environ) -> bool:
  """Whether this process is one of several.

  Flags say it, or else the variables of a launcher. A machine with TPUs is asked by JAX.
  """
  if launch.num_processes is not None:
    return launch.num_processes > 1
  if any(environ.get(name, '').isdigit() and int(environ[name]) > 1 for name in _COUNTS):
    # In a Slurm job's own script, outside of srun, they count what srun would start.
    return 'OMPI_COMM_WORLD_SIZE' in environ or (
      'SLURM_STEP_NODELIST' in environ and environ.get(_STEP) != '1')
  if 'KUBERNETES_SERVICE_HOST' in environ and 'JOB_COMPLETION_INDEX' in environ:
    return True
  return _tpu_machines(environ) > 1


def alone_there(environ: Mapping[str, str] = os.environ) -> bool:
  """Whether the launcher has started one process on each machine, which takes all its devices."""
  tasks, nodes = environ.get('SLURM_NTASKS'), environ.get('SLURM_STEP_NUM_NODES')
  return (tasks is not None and tasks == nodes) or environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'


def _tpu_machines(environ: Mapping[str, str]) -> int:
  """The number of a Cloud TPU's machines; 1 where there is none."""
  if importlib.util.find_spec('libtpu') is None or environ.get('JAX_PLATFORMS') == 'cpu':
    return 1
  from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster
  found = next((one for one in (GkeTpuCluster, GceTpuCluster) if one.is_env_present()), None)
  return found.get_process_count() if found else 1


@contextmanager
def together(launch: Launch) -> Iterator['Processes']:
  """The processes of this run, joined; a single one joins nobody, and changes nothing."""
  from fedmedjax.runtime.processes import ALONE
  if not several(launch):
    if launch.local_device_ids:
      raise InputError(
        f'--local_device_ids={",".join(map(str, launch.local_device_ids))}: is for one of several '
        'processes; a single one takes its devices by config.mesh')
    yield ALONE
    return
  processes = joined(launch)
  with processes.taking_part():
    yield processes
  import jax
  # Waits for the others: where process 0 leaves first, JAX ends those that still have something to
  # do. JAX would do so when the interpreter ends, which it may not do by itself.
  jax.distributed.shutdown()


def leave(status: int) -> None:
  """Ends a process that failed among others at once: JAX would wait for them, and end otherwise."""
  distributed = sys.modules.get('jax._src.distributed')
  if status and distributed and distributed.global_state.client is not None:
    if sys.exc_info()[0]:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def joined(launch: Launch) -> 'Processes':
  """Joins the other processes -> this one's `Processes`, once all are there.

  Raises:
    InputError: the launcher's variables are incomplete, or a loopback coordinator with several
      machines.
    RuntimeError: the others do not come within the deadline.
  """
  # A function of the service's own threads, which ends the process when process 0 is gone.
  _end_with_status_1()
  import jax
  from jax._src import distributed

  from fedmedjax.runtime.processes import Processes
  where = f'--coordinator={launch.coordinator}' if launch.coordinator else 'the coordinator'
  try:
    jax.distributed.initialize(
      launch.coordinator, launch.num_processes, launch.process_id,
      # JAX gives a process that Slurm or Open MPI has started one GPU; [] means all.
      list(launch.local_device_ids or ()) if launch.local_device_ids or alone_there() else None,
      # Flags say all: what else may be found is another launcher's.
      cluster_detection_method='deactivate' if launch.coordinator else None,
      # Else a service of this machine's processes alone would listen on all of its addresses.
      coordinator_bind_address=launch.coordinator if (
        launch.coordinator and is_loopback(launch.coordinator)) else None,
      initialization_timeout=int(launch.deadline),
      heartbeat_timeout_seconds=int(_HEARTBEATS * launch.deadline) + 60,
      shutdown_timeout_seconds=int(launch.deadline))
  except ValueError as error:
    hint = '' if launch.coordinator else (
      ' What started this process does not say it; --coordinator, --num_processes and --process_id '
      'do, or --num_processes=1 where it is alone')
    raise InputError(f'{where}: {error}{hint}') from None
  except RuntimeError as error:
    line = (str(error).splitlines() or [''])[0]
    hint = '; it means each machine itself: name one that all reach' if (
      launch.coordinator and is_loopback(launch.coordinator)) else ''
    raise RuntimeError(
      f'{where}: not all processes have come within {launch.deadline:g} s{hint} ({line})') from None
  state = distributed.global_state
  processes = Processes(
    state.process_id, state.num_processes, state.client, launch.deadline,
    launch.call_deadline).begin()
  if len(set(processes.hosts)) > 1 and is_loopback(state.coordinator_address):
    raise InputError(
      f'--coordinator={state.coordinator_address}: means each node itself, and this run is on '
      f'{", ".join(sorted(set(processes.hosts)))}; name a host that all of them reach')
  return processes


# Kept, since the C library calls it.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _aborted())


def _aborted() -> None:
  print(
    'failed: JAX ended this process, most likely since process 0, where all meet, is gone; the '
    'same command goes on after what is saved', file=sys.stderr, flush=True)
  os._exit(1)


def _end_with_status_1() -> None:
  """JAX ends a process by SIGABRT as soon as it does not reach process 0 any more."""
  ctypes.CDLL(None).signal(int(signal.SIGABRT), _HANDLER)
