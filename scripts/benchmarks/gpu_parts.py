"""What scripts/bench_gpu.sh measures: its commands, and the machine that they are made for."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Where output of the parts and compiled programs stay.
WORK = ROOT / 'gpu_bench'
GIB = 2**30
NF4_BYTES = 16 * GIB
# Values of config.model.attention that are raced against the plain one, which part 8b has. Read,
# not imported: that takes seconds.
KERNELS = tuple(name for name in re.findall(r"'(\w+)':", re.search(
  r'^ATTENTIONS = \{(.*?)\}', (ROOT / 'fedmedjax/model/kernels.py').read_text(encoding='utf-8'),
  re.M | re.S)[1]) if name != 'plain')
# Bytes of a card on which an 8B model in bfloat16 trains so many sites at once with 'products'.
_ROOMY = {8: 42 * GIB, 16: 66 * GIB}
# Prints what JAX computes on. The share of the memory is asked for, not taken.
_PROBE = (
  'import jax, json; one = jax.devices()[0]; stats = one.memory_stats() or {}; print(json.dumps('
  '{"platform": one.platform, "kind": one.device_kind, "bytes": stats.get("bytes_limit", 0)}))')
# --dry: flags of a tiny model in place of the true one's.
_TINY = {
  '--model': 'width_256', '--batch': '2', '--steps': '1', '--repeats': '1',
  '--max_new_ratio': '0.1', '--site': 'synthetic_icu'}


class Part(NamedTuple):
  """A command that measures something."""

  name: str
  title: str
  least: float                          # seconds without which it is not begun
  most: float                           # seconds after which it is stopped
  command: tuple[str, ...]
  environment: Mapping[str, str] = MappingProxyType({})
  absent: str = ''                      # why it cannot be done here


class Machine(NamedTuple):
  """What the parts run on."""

  kind: str
  memory: int               # bytes of the card
  peers: bool               # whether torch, transformers and peft are installed
  site: str
  tokenizer: str            # folder; '' = SmolLM2's


def parts(machine: Machine, out: Path) -> tuple[Part, ...]:
  """All parts, in the order of what they tell."""
  # Rounded down: a limit.
  share = lambda count: f'{int(1e4 * min(count, 0.92)) / 1e4}'  # noqa: E731
  alone = {'XLA_CLIENT_MEM_FRACTION': share(1.0)}
  capped = {'XLA_CLIENT_MEM_FRACTION': share(NF4_BYTES / max(machine.memory, 1))}

  def bench(script: str, name: str, model: str, peers: str, *more: str) -> tuple[str, ...]:
    return (
      sys.executable, f'scripts/{script}', f'--model={model}', '--dtype=bfloat16', '--batch=16',
      f'--site={machine.site}', *((f'--tokenizer={machine.tokenizer}',) * bool(machine.tokenizer)),
      f'--peers={peers if machine.peers else ""}', *more, f'--out={out / name}.json')

  def train(
    name: str, model: str, sites: str, *more: str, peers: str = '', most: int = 8
  ) -> tuple[str, ...]:
    remat = 'products' if machine.memory >= _ROOMY[most] else 'full'
    return bench(
      'bench_train.py', name, model, peers, '--variants=', '--steps=4', '--repeats=3',
      f'--remat={remat}', f'--sites={sites}', '--chunk=0', '--noloop', *more)

  marked = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / 'tests').rglob('*_test.py')
    if '@pytest.mark.gpu' in path.read_text(encoding='utf-8'))
  recipe = 'peft_batch4_checkpointing'
  return (
    Part('tests', 'the tests marked gpu', 30, 100, (
      sys.executable, '-m', 'pytest', '-m', 'gpu', '-p', 'no:cacheprovider', '-W', 'default',
      *marked), {'XLA_FLAGS': ' '.join([
        os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=3']).strip()}),
    Part('8b', 'an 8B model, rounds of 1, 3 and 8 sites', 70, 300, train(
      '8b', 'llama31_8b', '1,3,8'), alone),
    # By itself, since torch needs room for the weights once more. Our program is in the cache.
    Part('peft', 'an 8B model at one site beside the PEFT recipe', 50, 150, train(
      'peft', 'llama31_8b', '', peers=f'{recipe},peft_batch8_checkpointing'), absent=(
        '' if machine.peers else 'torch, transformers and peft are not all installed')),
    *(Part(f'attention_{kernel}', f"attention={kernel} in place of part 8b's", 60, 150, train(
      f'attention_{kernel}', 'llama31_8b', '8', f'--attention={kernel}'), alone)
      for kernel in KERNELS),
    Part('nf4', 'an 8B model in NF4, within 16 GiB', 60, 150, train(
      'nf4', 'llama31_8b', '1,3', '--quantization=nf4'), capped),
    # It reads what the others wrote: time is left for it even when none is.
    Part('estimate', 'bytes as planned, as compiled and as seen', -60, 5, (
      sys.executable, 'scripts/benchmarks/gpu_summary.py', str(out), '--estimate')),
    Part('1b', 'a 1B model, rounds of 1 and 8 sites, beside PEFT', 50, 150, train(
      '1b', 'llama32_1b', '1,8', peers=f'{recipe},peft_batch4')),
    Part('sites16', 'an 8B model, a round of 16 sites', 50, 150, train(
      'sites16', 'llama31_8b', '16', most=16), alone),
    Part('decode', 'decoding by an 8B model beside generate', 60, 150, bench(
      'bench_decode.py', 'decode', 'llama31_8b', 'transformers', '--batches=1', '--repeats=2',
      '--guesses=0,3', '--max_new_ratio=1')),
  )


def shrunk(part: Part) -> Part:
  """The same for a tiny model on a CPU."""
  def flag(word: str) -> str:
    name, is_flag, _ = word.partition('=')
    return f'{name}={_TINY[name]}' if is_flag and name in _TINY else word

  return part._replace(
    least=min(part.least, 20.0), command=tuple(map(flag, part.command)), environment={
      # Programs that LLVM does not polish: they are compiled more than they are run.
      'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0'})


def chosen_parts(names: str, known: Sequence[Part]) -> list[Part]:
  """Those of --parts, in their own order; raises ValueError for a name that none has."""
  wanted = [name for name in names.split(',') if name]
  allowed = [part.name for part in known]
  for name in wanted:
    if name not in allowed:
      raise ValueError(f'--parts={name}: some of {", ".join(allowed)} are allowed')
  return [part for part in known if not wanted or part.name in wanted]


def environment(part: Part) -> dict[str, str]:
  """Of a part's process: modules of this tree, programs kept, memory left to torch."""
  # The two names of one setting: jax refuses to be given both.
  found = {key: value for key, value in os.environ.items() if key not in (
    'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')}
  given = [os.path.abspath(one) for one in found.get('PYTHONPATH', '').split(os.pathsep) if one]
  return {
    'JAX_COMPILATION_CACHE_DIR': str(WORK / 'xla'), 'HF_HUB_OFFLINE': '1',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2'} | found | {
    'PYTHONPATH': os.pathsep.join([str(ROOT), *given]), 'PYTHONUNBUFFERED': '1',
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **part.environment}


def this_machine(values: argparse.Namespace) -> Machine:
  """Raises ValueError where JAX has no GPU and the run is not dry."""
  # Of a relative path, as the parts see it.
  notes = ROOT / os.path.expanduser(os.environ.get('FEDMEDJAX_DATA') or '../shared/data')
  site = values.site or (
    'maccrobat2020' if (notes / 'maccrobat2020').is_dir() else 'synthetic_icu')
  peers = all(importlib.util.find_spec(name) for name in ('torch', 'transformers', 'peft'))
  kind, memory = 'cpu', 0
  if not values.dry:
    done = subprocess.run(
      [sys.executable, '-c', _PROBE], capture_output=True, text=True, cwd=ROOT,
      env=environment(Part('', '', 0, 0, (), {'XLA_CLIENT_MEM_FRACTION': '1.0'})))
    if done.returncode:
      raise ValueError(f'PYTHON={sys.executable}: {(done.stderr.splitlines() or ["?"])[-1]}')
    found = json.loads(done.stdout.splitlines()[-1])
    kind, memory = found['kind'], found['bytes']
    if found['platform'] != 'gpu':
      raise ValueError(
        f'JAX computes on {found["platform"]} here, a GPU is needed; --dry tries the script itself')
  print(('a tiny model on the CPU' if values.dry else
         f'on {kind}, {memory / GIB:.1f} GiB, notes of {site}') + (
    '' if peers else '; no peers: torch, transformers and peft are not all installed'), flush=True)
  return Machine(kind, memory, peers, site, values.tokenizer)
