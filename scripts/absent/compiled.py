"""Compiles one program of a run for devices that are not there, and measures what came out."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src import xla_bridge  # no public way to XLA's count for a GPU that is not there
from jax._src.lib import _jax
from ml_collections import ConfigDict

from absent import hlo
from absent.devices import GIB, MEMORY_GIB, Topology
from absent.programs import PROGRAMS, Absent, asked_of, study_of
from fedmedjax import tree
from fedmedjax.experiment.execution import Execution
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.sharding import FSDP
from fedmedjax.runtime.cli import versions
from fedmedjax.train import estimates, memory, roofline
from fedmedjax.types import InputError

PACKAGE = 'fedmedjax'


class Asked(NamedTuple):
  """One program of one configuration on one topology."""

  topology: Topology
  config: ConfigDict
  program: str          # a key of PROGRAMS
  devices: list
  dump: Path            # where XLA writes
  top: int              # buffers that are told
  runs: int = 1         # whose rounds are one program
  runs_at_once: int = 0 # of them; 0 = all
  estimate: bool = False  # the planner's estimate alone; nothing is compiled


def compiled_row(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
  """What the compiler says of the program: a row of the table, numbers in GiB of one device.

  Of the executions that the configuration allows it is the fastest that fits, as in a run: those
  that cannot fit by the planner's estimate are skipped, others compiled. Where none fits, the last
  one's numbers are told. An estimate alone is that of the first that is not skipped.

  Raises:
    InputError: as a run would for this configuration.
  """
  jax.config.update('jax_traceback_in_locations_limit', 100)  # source lines of buffers
  with asked_of(asked.devices, 'gpu' if asked.topology.gpu else 'tpu'):
    absent = study_of(asked.config, asked.devices)._replace(
      runs=asked.runs, runs_at_once=asked.runs_at_once)
    together = (asked.runs_at_once or asked.runs) if asked.program == 'round' else 1
    limit = memory.SHARE * MEMORY_GIB[asked.topology.kind]
    estimate = estimates.estimate(absent.study, absent.inputs)
    order = roofline.by_time(
      absent.study, absent.inputs, absent.study.executions, estimate, roofline.peak_of(
        'gpu' if asked.topology.gpu else 'tpu', asked.devices[0].device_kind))
    base = _held(absent.study.trainable.base) / GIB
    row: dict[str, Any] = {}
    for execution in order:
      estimated = together * estimate(execution) / GIB
      if asked.program != 'decode' and execution != order[-1] and base + estimated > limit:
        continue
      say(described(asked, absent, execution))
      if asked.estimate:
        return _identity(asked, absent, execution) | {'estimated_gib': estimated}
      for entry in asked.dump.glob('*'):  # of the execution before
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
      row = _identity(asked, absent, execution) | {
        'estimated_gib': estimated} | _compiled(asked, absent, execution)
      if row.get('fits') or asked.program == 'decode':
        break
  return row


def _compiled(asked: Asked, absent: Absent, execution: Execution) -> dict[str, Any]:
  """The compiler's part of a row, of one execution."""
  begun = time.monotonic()
  lowered = PROGRAMS[asked.program](absent, execution)
  traced = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    line = next(iter(str(error).splitlines()), '')
    return {'refused': line[:200], 'compile_seconds': time.monotonic() - traced}
  seconds = time.monotonic() - traced
  return _memory(asked, compiled) | _work(compiled, lowered) | {
    'trace_seconds': traced - begun, 'compile_seconds': seconds} | _texts(
      asked, absent, compiled.as_text())


def described(asked: Asked, absent: Absent, execution: Execution) -> str:
  batch = absent.inputs[2].batches
  mesh = dict(asked.config.mesh)
  return (
    f'{len(asked.devices)} x {asked.devices[0].device_kind}, mesh {mesh}; '
    f'{absent.study.communication.sampler.size} sites, {execution}; '
    + (f'{absent.runs} runs, {absent.runs_at_once or "all"} at once; ' if absent.runs > 1 else '')
    + f'instruction '
    f'{batch.prefix.shape[-1]}, rows {batch.tokens.shape[-2:]}, targets {batch.targets.shape[-1]}')


def _identity(asked: Asked, absent: Absent, execution: Execution) -> dict[str, Any]:
  batch = absent.inputs[2].batches
  return {
    'topology': str(asked.topology), 'model': asked.config.model.path,
    'dtype': asked.config.model.dtype, 'quantization': asked.config.model.quantization,
    'attention': asked.config.model.attention, 'mesh': dict(asked.config.mesh),
    **({'runs': asked.runs, 'runs_at_once': asked.runs_at_once} if asked.runs > 1 else {}),
    'program': asked.program, 'sites': absent.study.communication.sampler.size,
    'chunk': execution.chunk, 'remat': execution.remat,
    'tokens_a_step': batch.prefix.shape[-1] + batch.tokens.shape[-1] * batch.tokens.shape[-2],
    'versions': {name: version for name, version in versions().items()
                 if name in ('python', 'jax', 'fedmedjax')} | _plugin(asked.topology)}


def _plugin(one: Topology) -> dict[str, str]:
  import importlib.metadata
  name = 'jax-cuda12-pjrt' if one.gpu else 'libtpu'
  return {name: importlib.metadata.version(name)}


def _memory(asked: Asked, compiled: Any) -> dict[str, Any]:
  counted = compiled.memory_analysis()
  sizes = {
    use: getattr(counted, f'{key}_size_in_bytes') / GIB for use, key in (
      ('arguments', 'argument'), ('outputs', 'output'), ('aliased', 'alias'),
      ('temporaries', 'temp'))}
  total = sizes['arguments'] + sizes['outputs'] + sizes['temporaries'] - sizes['aliased']
  device, peak = MEMORY_GIB[asked.topology.kind], counted.peak_memory_in_bytes / GIB
  return {f'{use}_gib': size for use, size in sizes.items()} | {
    'total_gib': total, 'peak_gib': peak, 'device_gib': device,
    'fits': peak <= memory.SHARE * device}


def _work(compiled: Any, lowered: Any) -> dict[str, float]:
  """FLOP and bytes by XLA's count, in which the body of a loop counts once."""
  cost = compiled.cost_analysis() or _jax.hlo_module_cost_analysis(
    xla_bridge.get_backend('cpu'), lowered.compiler_ir('hlo').as_hlo_module())
  return {'flop': cost['flops'], 'bytes': cost['bytes accessed']}


def _texts(asked: Asked, absent: Absent, text: str) -> dict[str, Any]:
  """What XLA's texts say: collectives, copies of the base, the largest buffers."""
  assignment = hlo.report(asked.dump, 'buffer-assignment')
  alive = hlo.fullest(
    hlo.parsed(text, PACKAGE), assignment, hlo.report(asked.dump, 'live-range'))
  shape, base = absent.study.data.base.config, absent.study.trainable.base
  copies = hlo.base_copies(
    assignment, _kernel_shapes(base) or set(map(shape.projection_shape, shape.projections)),
    shape.num_layers,
    DTYPES[asked.config.model.dtype].dtype.itemsize)
  return {
    'collectives': hlo.collectives(text),
    'base_on_a_device': _held(base) / tree.num_bytes(base),
    'base_tiled_by_site': copies.tiled, 'base_up_cast': copies.up_cast,
    'alive_gib': sum(one.bytes for one in alive) / GIB,
    'buffers': [
      {'gib': one.bytes / GIB, 'shape': one.shape, 'source': one.source,
       'operation': one.operation[-90:]} for one in alive[:asked.top]]}


def _kernel_shapes(base: Any) -> set[tuple[int, int]]:
  """(D_in, D_out) of kernels that are arrays, as they lie on a device and gathered over 'fsdp'."""
  out = set()
  for path, leaf in zip(tree.paths(base), jax.tree.leaves(base), strict=True):
    if path.endswith('kernel'):
      here = list(leaf.sharding.shard_shape(leaf.shape))
      out.add(tuple(here[1:]))
      for place, entry in enumerate(getattr(leaf.sharding, 'spec', ())):
        if FSDP in (entry if isinstance(entry, tuple) else (entry,)):
          here[place] *= leaf.sharding.mesh.shape[FSDP]
      out.add(tuple(here[1:]))
  return out


def _held(base: Any) -> int:
  """Bytes of a base, arrays by shape, that lie on one device."""
  total = 0
  for leaf in jax.tree.leaves(base):
    size = leaf.dtype.itemsize
    for side in leaf.sharding.shard_shape(leaf.shape):
      size *= side
    total += size
  return total


def shown(row: dict[str, Any]) -> str:
  """A row for a reader, one fact a line."""
  if 'refused' in row:
    return f"the compiler refuses it: {row['refused']}"
  lines = [
    f"{key.removesuffix('_gib'):>12} {row[key]:9.3f} GiB"
    + (f" of {row['device_gib']} on a device{'' if row['fits'] else ': too much'}"
       if key == 'peak_gib' else '')
    for key in ('arguments_gib', 'outputs_gib', 'aliased_gib', 'temporaries_gib', 'total_gib',
                'peak_gib', 'estimated_gib') if key in row]
  return '\n'.join([*lines, *_compilers_lines(row)] if 'flop' in row else lines)


def _compilers_lines(row: dict[str, Any]) -> list[str]:
  return [
    f"        FLOP {row['flop']:.4g}, bytes {row['bytes']:.4g} (a loop's body counts once)",
    '   the base: ' + (
      'whole on every device' if row['base_on_a_device'] == 1 else
      f"{row['base_on_a_device']:.3f} of it on a device"),
    f"   once a site: {', '.join(row['base_tiled_by_site']) or 'no kernel'}; "
    f"up-cast: {', '.join(row['base_up_cast']) or 'no kernel'}",
    *(f'  {kind}: {count}, {size / GIB:.3f} GiB of results'
      for kind, (count, size) in row['collectives'].items()),
    f"alive at the fullest moment, {row['alive_gib']:.2f} GiB, of it:",
    *(f"  {one['gib']:8.3f} GiB  {one['shape']:28} {one['source']:36} {one['operation']}"
      for one in row['buffers']),
    f"traced in {row['trace_seconds']:.0f} s, compiled in {row['compile_seconds']:.0f} s"]


def with_sites(config: ConfigDict, sites: int) -> None:
  """Deals the notes out to so many sites, alike; 0 = those of the configuration."""
  if sites < 0:
    raise InputError(f'--sites={sites}: an integer >= 0 is allowed')
  if sites:
    config.data.partition.update(kind='iid', unit='sentence', sites=sites)
