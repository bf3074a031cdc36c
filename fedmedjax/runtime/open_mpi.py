"""Open MPI 5's variables: who of how many a process is, and where process 0 listens.

JAX recognises `mpirun` by OMPI_MCA_orte_hnp_uri, which versions before 5 set. Version 5 sets
OMPI_COMM_WORLD_SIZE, _RANK, _LOCAL_SIZE and _LOCAL_RANK
(https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html) and PMIX_NAMESPACE, such as
prterun-node1-4711@1: the machine of `mpirun`, the number of its process, and of the job.
"""

import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

from fedmedjax.types import InputError

# Ports of the last 4096, as JAX takes them for other launchers: few programs listen there.
_PORTS, _FIRST = 4096, 61440
_SIZE, _RANK = 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'


class Started(NamedTuple):
  """What Open MPI says."""

  count: int
  index: int
  local_count: int  # processes of this machine
  local_index: int


def started(environ: Mapping[str, str]) -> Started | None:
  """What Open MPI 5 or later says of this process; None where it has not started it."""
  if 'OMPI_MCA_orte_hnp_uri' in environ:
    return None
  names = (_SIZE, _RANK, 'OMPI_COMM_WORLD_LOCAL_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK')
  values = [environ.get(name, '') for name in names]
  return Started(*map(int, values)) if all(value.isdigit() for value in values) else None


def coordinator(found: Started, environ: Mapping[str, str]) -> str:
  """HOST:PORT where process 0 listens: as JAX_COORDINATOR_ADDRESS says, or by `mpirun`'s machine.

  Raises:
    InputError: it is not known, or process 0, which asks, is on another machine.
  """
  if said := environ.get('JAX_COORDINATOR_ADDRESS'):
    return said
  launcher = re.fullmatch(r'[^-]+-(.+)-(\d+)@(\d+)', environ.get('PMIX_NAMESPACE', ''))
  if not launcher:
    raise InputError(
      f'PMIX_NAMESPACE={environ.get("PMIX_NAMESPACE", "")}: does not say where mpirun runs; '
      '--coordinator=HOST:PORT says where process 0 is')
  host, number, job = launcher[1], *map(int, launcher.groups()[1:])
  port = environ.get('JAX_COORDINATOR_PORT') or str(_FIRST + (number + job) % _PORTS)
  if found.local_count == found.count:
    return f'localhost:{port}'
  here = socket.gethostname()
  if not found.index and here.partition('.')[0] != host.partition('.')[0]:
    raise InputError(
      f'process 0 is on {here}, and mpirun runs on {host}, where the others would look for it: '
      f'add --coordinator={here}:{port}')
  return f'{host}:{port}'
