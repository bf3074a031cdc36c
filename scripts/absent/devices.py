"""Accelerators that are not there, as a compiler needs to know them.

libtpu describes a TPU by the name of its topology. A GPU is described by a target, written here
from NVIDIA's public documents: the data sheet of the H100 (SXM) and the table of compute
capability 9.0 in the CUDA programming guide.
"""

import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

from fedmedjax.types import InputError

GIB = 2**30
# Kind of device -> memory of one, GiB (vendors' data sheets).
MEMORY_GIB = {'v5e': 16, 'v5p': 95, 'v6e': 32, 'h100': 80}
GPUS = ('h100',)

# What the compiler asks of an H100 SXM. Its clock is that at which 132 x 128 units, two operations
# each, make the 67 TFLOP/s of float32 that the data sheet states.
_H100 = {
  'core_count': 132, 'fpus_per_core': 128, 'clock_rate_ghz': 1.98,
  'device_memory_size': 80 * GIB, 'memory_bandwidth': 3_350_000_000_000,
  'l2_cache_size': 50 * 2**20, 'threads_per_warp': 32, 'threads_per_block_limit': 1024,
  'threads_per_core_limit': 2048, 'registers_per_block_limit': 65_536,
  'registers_per_core_limit': 65_536, 'shared_memory_per_block': 48 * 1024,
  'shared_memory_per_block_optin': 227 * 1024, 'shared_memory_per_core': 228 * 1024,
  'block_dim_limit_x': 2**31 - 1, 'block_dim_limit_y': 65_535, 'block_dim_limit_z': 65_535}
_H100_NAME = 'NVIDIA H100 80GB HBM3'
# Of CUDA and cuDNN; what the wheels that `aot_environment.sh` installs were built for.
_CUDA, _CUDNN = (12, 8, 0), (9, 10, 0)


class Topology(NamedTuple):
  """Some devices of one kind: v5e:2x4 are eight chips, h100:8 eight cards."""

  kind: str   # a key of MEMORY_GIB
  shape: str  # 2x4, 2x2x1, 8

  @property
  def gpu(self) -> bool:
    return self.kind in GPUS

  def __str__(self) -> str:
    return f'{self.kind}:{self.shape}'


def topology(name: str) -> Topology:
  """Reads v5e:2x4 and the like; raises InputError for what is not of this form."""
  found = re.fullmatch(r'(\w+):([1-9]\d*(?:x[1-9]\d*)*)', name)
  if not found or found[1] not in MEMORY_GIB or (found[1] in GPUS and 'x' in found[2]):
    raise InputError(
      f'--topology={name}: a kind of {", ".join(MEMORY_GIB)} and its shape are allowed, such as '
      'v5e:2x4, v5p:2x2x1, h100:1 or h100:8')
  return Topology(found[1], found[2])


def prepare_environment(
  one: Topology, dump: Path, programs: str, environment: MutableMapping[str, str] = os.environ
) -> None:
  """Sets the variables that JAX, libtpu and XLA read when they start.

  Args:
    one: what is compiled for.
    dump: folder that XLA writes its account of memory to.
    programs: pattern of the names of the modules of which it does.
    environment: that is changed.

  Raises:
    RuntimeError: JAX was imported before.
  """
  if 'jax' in sys.modules:
    raise RuntimeError('the environment is prepared before JAX is imported')
  # This machine computes; TPUs and cards are only compiled for. Without the others libtpu asks a
  # cloud's metadata server which machine it is on. Of what a cache holds XLA writes no account.
  environment |= {
    'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  options = [
    f'--xla_dump_to={dump}', '--xla_dump_hlo_as_text', f'--xla_dump_hlo_module_re={programs}']
  if one.gpu:  # trying kernels takes a card
    options.append('--xla_gpu_autotune_level=0')
  environment['XLA_FLAGS'] = ' '.join([*options, environment.get('XLA_FLAGS', '')]).strip()


def devices(one: Topology, gpu_target: Path | None = None) -> list:
  """The devices of a topology, to compile for; they cannot run anything.

  Args:
    one: which.
    gpu_target: a file with XLA's description of another card (GpuTargetConfigProto in text form)
      in place of the H100's here.

  Raises:
    InputError: there is no such file, it describes no card, or libtpu knows no such topology.
  """
  from jax.experimental import topologies
  if not one.gpu:
    try:
      return topologies.get_topology_desc(platform='tpu', topology_name=str(one)).devices
    except Exception as error:  # the plug-in raises what it likes
      line = (str(error).splitlines() or [''])[0]
      raise InputError(f'--topology={one}: libtpu refuses it ({line})') from None
  try:
    target = gpu_target.read_text() if gpu_target else h100_target()
  except OSError as error:
    raise InputError(f'--gpu_target={gpu_target}: {error.strerror}') from None
  except UnicodeDecodeError:
    raise InputError(f'--gpu_target={gpu_target}: not a text file') from None
  try:
    return topologies.get_topology_desc(
      platform='cuda', topology_name=one.kind, topology=f'1x1x{one.shape}',
      target_config=target).devices
  except RuntimeError as error:
    if gpu_target is None:
      raise
    line = (str(error).splitlines() or [''])[0]
    raise InputError(f'--gpu_target={gpu_target}: XLA refuses it ({line})') from None


def h100_target() -> str:
  """The card as XLA's GpuTargetConfigProto, in text form."""
  version = lambda numbers: '.'.join(map(str, numbers))  # noqa: E731
  return '\n'.join([
    'gpu_device_info {', *(f'  {key}: {value}' for key, value in _H100.items()),
    '  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }',
    f'  name: "{_H100_NAME}"',
    *(f'  {key}: "{version(_CUDA)}"' for key in (
      'driver_version', 'runtime_version', 'compile_time_toolkit_version')),
    f'  dnn_version: "{version(_CUDNN)}"', '}', 'platform_name: "CUDA"',
    f'dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}',
    f'runtime_version {{ major: {_CUDA[0]} minor: {_CUDA[1]} }}',
    f'device_description_str: "{_H100_NAME}"', ''])
