"""Reads XLA's account of a compiled program: what is alive at its fullest moment, what is sent.

XLA writes it as text when asked to (--xla_dump_to): the program after all optimisations, which
place of memory each value has (buffer-assignment), and which values are alive when the most memory
is taken (live-range).
"""

import collections
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's4': 1, 'u4': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
  'f64': 8, 's64': 8, 'u64': 8}
COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Instructions that only move what their operand of this number holds.
_MOVES = {'dynamic-update-slice': 1} | dict.fromkeys((
  'bitcast', 'copy', 'reshape', 'transpose', 'get-tuple-element', 'copy-start', 'copy-done'), 0)
# So many instructions back, a value's origin is given up.
_FARTHEST = 60


class Buffer(NamedTuple):
  """A temporary that is alive at the fullest moment."""

  bytes: int
  shape: str      # such as f32[32,656,4096]
  source: str     # FILE:LINE in the package that made what it holds; '' = the compiler itself
  operation: str  # JAX's name of what made it


class _Instruction(NamedTuple):
  kind: str
  operands: list[tuple[str, str]]  # (name, which result of it or '')
  text: str

  def find(self, pattern: str) -> str:
    found = re.search(pattern, self.text)
    return found[1] if found else ''


class Program(NamedTuple):
  """The text of a compiled program, taken apart."""

  instructions: dict[str, _Instruction]
  roots: dict[str, str]   # computation -> the name of its last instruction
  sources: dict[int, str] # number of a stack frame -> FILE:LINE in the package


def parsed(text: str, package: str) -> Program:
  """Takes a program's text apart.

  Args:
    text: of XLA, after optimisations.
    package: name of the folder whose source lines are told.
  """
  instructions, roots, computation = {}, {}, ''
  for line in text.splitlines():
    if head := re.match(r'(?:ENTRY )?%?([\w.-]+) \(.*\{$', line):
      computation = head[1]
    elif made := re.match(r'\s+(ROOT )?%?([\w.-]+) = (.*)$', line):
      call = re.search(r' ([a-z][\w-]*)\(([^)]*)', made[3])
      operands = re.findall(r'%([\w.-]+)(?:#(\d+))?', call[2]) if call else []
      instructions[made[2]] = _Instruction(call[1] if call else '', operands, made[3])
      if made[1]:
        roots[computation] = made[2]
  return Program(instructions, roots, _sources(text, package))


def _sources(text: str, package: str) -> dict[int, str]:
  """Number of a stack frame -> the innermost FILE:LINE of it that lies in the package."""
  def table(name: str) -> dict[int, str]:
    found = re.search(rf'^{name}\n((?:\d+ .*\n)*)', text, re.MULTILINE)
    return {int(number): rest for number, rest in re.findall(
      r'^(\d+) (.*)$', found[1], re.MULTILINE)} if found else {}

  def number(line: str, key: str) -> int:
    found = re.search(rf'\b{key}=(\d+)', line)
    return int(found[1]) if found else 0

  files, places, frames = table('FileNames'), table('FileLocations'), table('StackFrames')
  out = {}
  for first in frames:
    frame = first
    while frame in frames:
      place = places.get(number(frames[frame], 'file_location_id'), '')
      file = files.get(number(place, 'file_name_id'), '').strip('"')
      if f'/{package}/' in file:
        out[first] = f'{file[file.rindex(f"/{package}/") + 1:]}:{number(place, "line")}'
        break
      frame = number(frames[frame], 'parent_frame_id') - 1  # 1 = there is none above
  return out


def _origin(program: Program, name: str, index: str) -> _Instruction | None:
  """The instruction that made what is in result `index` of `name`, however it was moved since."""
  calls: list[_Instruction] = []
  named = None  # the last on the way that JAX has a name for
  for _ in range(_FARTHEST):
    if not (one := program.instructions.get(name)):
      break
    if one.find(r'(op_name=)') and 'dynamic_update' not in one.text:
      named = one
    called = one.find(r'calls=%?([\w.-]+)')
    if one.kind == 'fusion' and called in program.roots:
      calls.append(one)
      name = program.roots[called]
      root = program.instructions[name]
      if root.kind == 'tuple':
        name, index = root.operands[int(index or 0)]
    elif one.kind == 'parameter' and calls:
      name, index = calls.pop().operands[int(one.find(r'parameter\((\d+)'))]
    elif one.kind in _MOVES and len(one.operands) > _MOVES[one.kind]:
      own = one.find(r'\bindex=(\d+)')
      name, index = one.operands[_MOVES[one.kind]]
      index = own or index
    else:
      break
  return named


def report(folder: Path, ending: str) -> str:
  """The text of the largest program that XLA wrote a file of this ending about."""
  files = sorted(folder.glob(f'*{ending}.txt'), key=lambda file: file.stat().st_size)
  if not files:
    raise RuntimeError(f'{folder}: XLA wrote no *{ending}.txt')
  return files[-1].read_text()


def temporaries(assignment: str) -> dict[tuple, list[str]]:
  """(allocation, offset, bytes, shape) -> names of the values that take turns in this place."""
  out, temporary, allocation = collections.defaultdict(list), False, ''
  for line in assignment.splitlines():
    if head := re.match(r'allocation (\d+): size', line):
      allocation, temporary = head[1], 'preallocated-temp' in line
    value = re.match(r' value: <\d+ (\S+) .*@\d+> \(size=(\d+),offset=(\d+)\): ([^{]*)', line)
    if value and temporary:
      out[allocation, int(value[3]), int(value[2]), value[4].strip()].append(
        value[1].removesuffix('{}'))
  return dict(out)


def fullest(program: Program, assignment: str, live: str) -> list[Buffer]:
  """Temporaries at the fullest moment, largest first; those that share a place count once.

  Args:
    program: of `parsed`.
    assignment: XLA's buffer-assignment.
    live: its live-range.
  """
  live = live[live.index('(peak):'):].split('Stack trace')[0]
  names = set(re.findall(r'^\s+(\S+?)(?:\{\})?: \d+ bytes', live, re.MULTILINE))

  def described(size: int, shape: str, held: list[str]) -> Buffer:
    best = Buffer(size, shape, '', '')
    # Loops carry a value under many names; those that are alive now come first.
    for value in sorted(held, key=lambda name: name not in names):
      name, _, index = value.rstrip('}').partition('{')
      made = _origin(program, name, index)
      if made is None:
        continue
      found = Buffer(
        size, shape, program.sources.get(int(made.find(r'stack_frame_id=(\d+)') or 0), ''),
        made.find(r'op_name="([^"]*)"'))
      if found.source and made.kind not in ('while', 'broadcast', 'conditional'):
        return found
      if found.operation and not best.operation:
        best = found
    return best

  return sorted(
    (described(size, shape, held)
     for (_, _, size, shape), held in temporaries(assignment).items()
     if names.intersection(held)), reverse=True)


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """Kind -> (how many stand in the program, bytes of their results); a loop's count once."""
  out: dict[str, tuple[int, int]] = {}
  pattern = rf'^\s+(?:ROOT )?\S+ = (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\('
  for shapes, kind in re.findall(pattern, text, re.MULTILINE):
    # The start of an asynchronous one names its operand, too: the larger is counted.
    size = max((_size(shape) for shape in re.findall(r'\w+\[[\d,]*\]', shapes)), default=0)
    count, total = out.get(kind, (0, 0))
    out[kind] = count + 1, total + size
  return out


def _dims(shape: str) -> tuple[int, ...]:
  """f32[2,3] -> (2, 3)."""
  return tuple(map(int, filter(None, shape[shape.index('[') + 1:shape.index(']')].split(','))))


def _size(shape: str) -> int:
  return math.prod(_dims(shape)) * _BYTES.get(shape.partition('[')[0], 4)


class BaseCopies(NamedTuple):
  """Temporaries that are copies of a base kernel: shapes of them."""

  tiled: tuple[str, ...]    # one for each of several sites
  up_cast: tuple[str, ...]  # in a wider number format than the base has


def base_copies(
  assignment: str, kernels: Iterable[tuple[int, int]], layers: int, width: int
) -> BaseCopies:
  """Which temporaries hold a base kernel once a site, or in a wider format.

  Args:
    assignment: XLA's buffer-assignment.
    kernels: (D_in, D_out) of the projections on a device.
    layers: L, of the stacked kernels.
    width: bytes of a weight as the model computes with it.
  """
  ends = {frozenset(pair) for pair in kernels}
  tiled, up_cast = set(), set()
  for *_, shape in temporaries(assignment):
    dims = [size for size in _dims(shape) if size != 1] if '[' in shape else []
    kind = shape.partition('[')[0]
    if len(dims) < 2 or frozenset(dims[-2:]) not in ends or kind not in ('f32', 'bf16', 'f16'):
      continue
    if len(dims) > 2 and dims[:-2] != [layers]:
      tiled.add(shape)
    if _BYTES.get(kind, 4) > width:
      up_cast.add(shape)
  return BaseCopies(tuple(sorted(tiled)), tuple(sorted(up_cast)))
