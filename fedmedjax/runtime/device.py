"""Devices: whether JAX has them, their memory or this machine's, and the seconds of compiling."""

import os
import resource
from functools import cache
from pathlib import Path

import jax

from fedmedjax.types import InputError

# Settings of JAX that change its arithmetic: the value that nothing here is written for, another
# one, and that one as the environment has it.
_REFUSED = {
  'jax_enable_x64': (True, False, '0'),
  'jax_numpy_dtype_promotion': ('strict', 'standard', 'standard'),
}
# Those that name devices, the first that is set.
_DEVICES = ('JAX_DEFAULT_DEVICE', 'JAX_PLATFORMS', 'JAX_PLATFORM_NAME')


def check() -> None:
  """Starts JAX's devices; raises InputError where its settings ask for what is not there."""
  for name, (refused, needed, written) in _REFUSED.items():
    value = getattr(jax.config, name)
    if value == refused:
      setting = name.upper()
      raise InputError(
        f'{setting}={os.environ.get(setting, value)}: only {needed!r} is supported; leave it out, '
        f'or start the same command behind {setting}={written}')
  try:
    jax.devices()
    if isinstance(jax.config.jax_default_device, str):
      jax.devices(jax.config.jax_default_device)
  except Exception as error:  # JAX raises what the plug-in of a device hits, also bare assertions
    line = (str(error).splitlines() or [''])[0]
    values = {name: getattr(jax.config, name.lower(), None) or os.environ.get(name)
              for name in _DEVICES}
    setting = next((name for name in _DEVICES if values[name]), 'JAX_PLATFORMS')
    raise InputError(
      f'{setting}={values[setting] or ""}: JAX finds no such device here'
      f'{f" ({line})" if line else ""}; without {setting} it takes what there is, with '
      f'{setting}=cpu the processor') from None


def limit() -> int:
  """Bytes of memory: of an accelerator that reports them, else of this machine or container."""
  return _stats().get('bytes_limit') or min(
    [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), *container_limits(Path('/'))])


def held() -> int:
  """Bytes in use now: on the first device, or on a CPU by this process."""
  if 'bytes_in_use' in _stats():
    return _stats()['bytes_in_use']
  try:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
  except OSError:  # no Linux: the most that it ever used
    return peak()
  return pages * os.sysconf('SC_PAGE_SIZE')


def peak() -> int:
  """The largest number of bytes in use so far, on the device or by the process as in `held`."""
  # ru_maxrss is in KiB on Linux.
  return _stats().get('peak_bytes_in_use') or (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def compile_seconds() -> float:
  """Seconds that this process spent compiling since this function was first called."""
  return _compiler_clock()[0]


@cache
def _compiler_clock() -> list[float]:
  """A number that the compiler's events add to; they are listened to from the first call on."""
  seconds = [0.0]

  def count(event: str, duration: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      seconds[0] += duration

  jax.monitoring.register_event_duration_secs_listener(count)
  return seconds


def _stats() -> dict[str, int]:
  return jax.local_devices()[0].memory_stats() or {}


def container_limits(root: Path) -> list[int]:
  """Memory limits in bytes that control groups, version 2 or 1, set for this process.

  A limit applies to all groups below it, so those of the parents of this process's group count
  too. `root` is the root of the file system.
  """
  try:
    lines = (root / 'proc/self/cgroup').read_text().splitlines()
  except OSError:  # no Linux
    return []
  limits = []
  for line in lines:
    _, controllers, place = line.split(':', 2)
    if controllers and 'memory' not in controllers.split(','):
      continue
    mount, name = (
      ('sys/fs/cgroup/memory', 'memory.limit_in_bytes') if controllers else
      ('sys/fs/cgroup', 'memory.max'))
    group = Path(place.lstrip('/'))
    for folder in (group, *group.parents):
      try:
        limits.append(int((root / mount / folder / name).read_text()))
      except (OSError, ValueError):  # The file is missing, or contains 'max'.
        continue
  return limits
