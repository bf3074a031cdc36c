"""Which targets the files of scripts/bench_gpu.sh meet, as rows for docs/benchmarks.md.

    python scripts/benchmarks/gpu_summary.py FOLDER
    python scripts/benchmarks/gpu_summary.py FOLDER --estimate    # writes FOLDER/estimate.json

Files that are not there, or hold no such number, leave a row that says so.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
# Of the ceiling, times the recipe, of a site-step's cost at 1 site, bytes, share of the bytes.
CEILING_SHARE, FASTER, STEP_COST, NF4_BYTES, ESTIMATE_ERROR = 0.55, 6.0, 1.05, 16 * GIB, 0.05
_RECIPE = 'peft_batch4_checkpointing'
_NONE = 'not measured'

Found = dict[str, Any]


def read(path: Path) -> Found | None:
  """The JSON object of a file; None where there is none."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def number(found: Found | None, *keys: str) -> float | None:
  """The first of these entries that is a finite number."""
  for key in keys:
    value = (found or {}).get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
      return float(value)
  return None


def trained(parts: dict[str, Found | None]) -> list[str]:
  """The parts that measured training, in the order of the script."""
  kernels = sorted(name for name in parts if name.startswith('attention_'))
  return [name for name in ('8b', 'peft', *kernels, 'nf4', '1b', 'sites16') if parts.get(name)]


def site_counts(found: Found) -> list[int]:
  """Numbers of sites whose rounds were measured."""
  return sorted({
    int(match[1]) for key in found
    if (match := re.fullmatch(r'ours_seconds_per_site_step_(\d+)_sites', key))})


def ratio(found: Found | None, peer: str) -> float | None:
  """How many times faster ours was than a peer; its number format may end the key."""
  return number(found, f'ratio_to_{peer}', f'ratio_to_{peer}_bfloat16', f'ratio_to_{peer}_float32')


def ceiling_share(parts: dict[str, Found | None], name: str, sites: int) -> float | None:
  """Of the ceiling of products, the best that any part measured, what a round of a part reached."""
  rate = number(parts.get(name), f'ours_model_flop_per_second_{sites}_sites')
  ceiling = max((number(found, 'ceiling_flop_per_second') or 0.0 for found in parts.values()),
                default=0.0)
  return rate / ceiling if rate is not None and ceiling else None


def estimates(parts: dict[str, Found | None]) -> list[Found]:
  """Bytes of every round that was measured: as planned, as compiled, as the device saw them.

  Errors are of what a round needs beside the base, whose size nobody has to guess. The device's
  figure is the largest since its process began, so it tells of a round that no larger one went
  before, and holds what lay beside it.
  """
  rows = []
  for name in trained(parts):
    for sites in site_counts(parts[name] or {}):
      of = lambda key, name=name, sites=sites: number(  # noqa: E731
        parts[name], f'{key}_{sites}_sites')
      base, planned, compiled, seen = map(of, (
        'base_bytes', 'ours_estimated_bytes', 'ours_peak_bytes', 'ours_device_peak_bytes'))
      if base is None or planned is None or compiled is None:
        continue
      rows.append({
        'part': name, 'sites': sites, 'base_bytes': base, 'estimated_bytes': planned,
        'compiled_bytes': compiled, 'device_peak_bytes': seen,
        'temporary_bytes': of('ours_temporary_bytes'),
        'estimate_error': (planned - compiled) / (compiled - base) if compiled > base else None})
  return rows


def _shown(value: float | None, form: Callable[[float], str] = '{:.3g}'.format) -> str:
  return _NONE if value is None else form(value)


def _gib(count: float) -> str:
  return f'{count / GIB:.2f}'


def targets(parts: dict[str, Found | None]) -> Iterator[tuple[str, str, str, str]]:
  """(what, wanted, found, whether it is met: 'yes', 'no' or 'not measured') of every target."""
  def row(what: str, wanted: str, value: float | None, good: Callable[[float], bool],
          form: Callable[[float], str] = '{:.3f}'.format) -> tuple[str, str, str, str]:
    met = _NONE if value is None else 'yes' if good(value) else 'no'
    return what, wanted, _shown(value, form), met

  tested, large, narrow = (parts.get(name) for name in ('tests', '8b', 'nf4'))
  status = (tested or {}).get('part_status')
  yield ('tests marked gpu', 'pass', status or _NONE,
         {'done': 'yes', 'failed': 'no', 'partial': 'no'}.get(status, _NONE))
  for sites in (1, 3, 8):
    yield row(
      f'8B, a round of {sites} sites: share of the ceiling of products', f'>= {CEILING_SHARE}',
      ceiling_share(parts, '8b', sites), lambda x: x >= CEILING_SHARE)
  yield row(
    '8B: times as fast as PEFT in micro-batches of 4, checkpointing', f'>= {FASTER:g}',
    ratio(parts.get('peft'), _RECIPE), lambda x: x >= FASTER, '{:.2f}'.format)
  yield row(
    '8B: cost of a site-step at 8 sites over that at 1', f'<= {STEP_COST}',
    number(large, 'ours_site_step_cost_8_over_1_sites'), lambda x: x <= STEP_COST)
  one, eight = (number(large, f'ours_model_flop_per_second_{n}_sites') for n in (1, 8))
  yield row(
    'the same for a FLOP, as sentences differ', f'<= {STEP_COST}',
    one / eight if one and eight else None, lambda x: x <= STEP_COST)
  peaks = [number(narrow, f'ours_device_peak_bytes_{n}_sites') for n in site_counts(narrow or {})]
  counts = ' and '.join(map(str, site_counts(narrow or {}))) or 'no'
  yield row(
    f'8B in NF4, rounds of {counts} sites: GiB that the card saw',
    f'<= {_gib(NF4_BYTES)}', max((x for x in peaks if x is not None), default=None),
    lambda x: x <= NF4_BYTES, _gib)
  errors = [row['estimate_error'] for row in estimates(parts)]
  yield row(
    f"largest error of the planner's estimate, of {len(errors)} rounds", f'<= {ESTIMATE_ERROR}',
    max((abs(x) for x in errors if x is not None), default=None), lambda x: x <= ESTIMATE_ERROR)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A table in Markdown."""
  return [f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows)]


def races(parts: dict[str, Found | None]) -> list[Sequence[str]]:
  """A row for every entrant of every race."""
  rows = []
  for name in (*trained(parts), 'decode'):
    found = parts.get(name) or {}
    for key in found:
      match = re.fullmatch(r'(ours|ours_guesses\d+|peer_\w+?)_examples_per_second', key)
      if match:
        entrant = match[1]
        short = entrant.removeprefix('peer_').removeprefix('ours_')
        rows.append((
          name, entrant.replace('_', ' '), _shown(number(found, key)),
          _shown(number(found, f'{entrant}_unique_tokens_per_second',
                        f'{entrant}_new_tokens_per_second'), '{:,.0f}'.format),
          _shown(number(found, f'{entrant}_model_flop_utilisation')),
          '' if entrant == 'ours' else _shown(ratio(found, short))))
  return rows


def rounds(parts: dict[str, Found | None]) -> list[Sequence[str]]:
  """A row for every round: its speed, and its bytes as planned, as compiled and as seen."""
  rows, plain = [], parts.get('8b')
  told = {(row['part'], row['sites']): row for row in estimates(parts)}
  for name in trained(parts):
    found = parts[name] or {}
    for sites in site_counts(found):
      row = told.get((name, sites), {})
      seconds = f'ours_seconds_per_site_step_{sites}_sites'
      own, theirs = number(found, seconds), number(plain, seconds)
      rows.append((
        name, str(sites), _shown(own), _shown(ceiling_share(parts, name, sites)),
        f'{theirs / own:.2f}' if own and theirs and name.startswith(('attention_', 'nf4')) else '',
        *(_shown(number(row, key), _gib) for key in (
          'estimated_bytes', 'compiled_bytes', 'device_peak_bytes')),
        _shown(number(row, 'estimate_error'), '{:+.1%}'.format)))
  return rows


def text(folder: Path) -> str:
  """All that the files of a folder say, in Markdown."""
  parts = {path.stem: read(path) for path in sorted(folder.glob('*.json'))}
  done = [found for found in parts.values() if found and isinstance(found.get('machine'), dict)]
  lines = [
    f'{found["machine"].get("device")}, commit {found.get("commit")}, {versions}' for found in done
    for versions in [', '.join(
      f'{name} {found["versions"][name]}' for name in ('jax', 'torch', 'transformers', 'peft')
      if name in (found.get('versions') or ()))]]
  lines = [*dict.fromkeys(lines), '', *table(
    ('target', 'wanted', 'found', 'met'), list(targets(parts)))]
  for title, head, rows in (
      ('Training, one site, and decoding', (
        'part', '', 'examples a second', 'tokens a second', 'of the ceiling', 'ours is faster by',
      ), races(parts)),
      ('Rounds', (
        'part', 'sites', 'seconds a site-step', 'of the ceiling', 'faster than part 8b',
        'GiB planned', 'compiled', 'on the card', "the estimate's error beside the base",
      ), rounds(parts))):
    if rows:
      lines += ['', f'{title}:', '', *table(head, rows)]
  commands = [
    str(found['part_command']) for found in parts.values() if found and 'part_command' in found]
  ended = [
    f'- {name}: {found["part_status"]}, {found.get("part_why")}' for name, found in parts.items()
    if found and found.get('part_status', 'done') != 'done']
  if ended:
    lines += ['', 'Not done, or not whole:', '', *ended]
  if commands:
    lines += ['', 'By these commands:', '', *(f'    {line}' for line in commands)]
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder', type=Path)
  parser.add_argument('--estimate', action='store_true')
  values = parser.parse_args(argv[1:])
  parts = {path.stem: read(path) for path in values.folder.glob('*.json')}
  if not values.estimate:
    if not any(parts.values()):
      print(f'error: {values.folder}: no file of scripts/bench_gpu.sh is there', file=sys.stderr)
      return 2
    print(text(values.folder))
    return 0
  rows = estimates(parts)
  if not rows:
    print('error: no part has told the bytes of a round', file=sys.stderr)
    return 2
  path = values.folder / 'estimate.json'
  part = path.with_name('estimate.json.part')
  part.write_text(json.dumps({'rounds': rows}, indent=2, allow_nan=False) + '\n')
  part.replace(path)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
