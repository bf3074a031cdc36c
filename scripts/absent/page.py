"""The rows of scripts/aot.py as the tables of docs/accelerators.md."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absent.table import DEVICES, MODELS, SITES
from fedmedjax.types import InputError

BEGIN, END = '<!-- rows of aot.jsonl -->', '<!-- end of rows -->'
_DEVICE_NAMES = {
  'h100': 'one H100', 'h100x8_fsdp': '8 H100, fsdp 8', 'h100x8_tensor': '8 H100, tensor 8',
  'v5e': 'one v5e', 'v5e_8_fsdp': 'v5e-8, fsdp 8', 'v5e_8_tensor': 'v5e-8, tensor 8',
  'v5p': 'one v5p'}
_MODEL_NAMES = {
  'llama32_1b': 'Llama-3.2-1B', 'llama31_8b': 'Llama-3.1-8B', 'llama31_8b_nf4': 'Llama-3.1-8B, NF4',
  'qwen3_4b': 'Qwen3-4B'}


def tables(rows: dict[str, dict[str, Any]]) -> str:
  """Markdown: the round by model, device and sites; then validation and decoding; then chunks."""
  lines = [
    '| round: model | device | '
    + ' | '.join(f'{count} site{"s" * (count > 1)}' for count in SITES) + ' |',
    '|---|---|' + '---|' * len(SITES)]
  for model in MODELS:
    for device in DEVICES:
      cells = [rows.get(f'round/{model}/{device}/{count}') for count in SITES]
      if any(cells):
        lines.append(f'| {_MODEL_NAMES[model]} | {_DEVICE_NAMES[device]} | '
                     + ' | '.join(map(_round_cell, cells)) + ' |')
  lines += ['', '| 8 sites: model | device | validation | decoding |', '|---|---|---|---|']
  for model in MODELS:
    for device in DEVICES:
      cells = [rows.get(f'{program}/{model}/{device}/8') for program in ('validate', 'decode')]
      if any(cells):
        lines.append(f'| {_MODEL_NAMES[model]} | {_DEVICE_NAMES[device]} | '
                     + ' | '.join(map(_total, cells)) + ' |')
  chunks = [row for name, row in rows.items() if name.startswith('chunk/')]
  if chunks:
    lines += ['', *_chunk_table(chunks)]
  return '\n'.join(lines)


def _total(row: dict[str, Any] | None) -> str:
  """GiB of a device in all; which is not enough where it does not fit."""
  if row is None:
    return ''
  if 'refused' in row:
    return 'refused'
  return f"{row['peak_gib']:.1f}" + ('' if row['fits'] else f" of {row['device_gib']}")


def _round_cell(row: dict[str, Any] | None) -> str:
  if row is None or 'refused' in row:
    return _total(row)
  return f"{_total(row)} ({row['chunk'] or 'all'}, {row['remat']})"


def _chunk_table(rows: Iterable[dict[str, Any]]) -> list[str]:
  """FLOP and bytes of one site's step; XLA counts a chunk's step once, whatever the chunks."""
  lines = ['| Llama-3.1-8B, one H100, 8 sites: at once | temporaries, GiB | TFLOP a site-step | '
           'GB a site-step |', '|---|---|---|---|']
  for row in rows:
    at_once = row['chunk'] or row['sites']
    lines.append(
      f"| {at_once} | {row['temporaries_gib']:.2f} | {row['flop'] / at_once / 1e12:.2f} | "
      f"{row['bytes'] / at_once / 1e9:.1f} |")
  return lines


def around(page: Path) -> tuple[str, str]:
  """What stands before and after the page's two marks; InputError where it has none."""
  try:
    text = page.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'--page={page}: cannot be read: {error}') from None
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end or text.count(BEGIN) + text.count(END) > 2:
    raise InputError(f'--page={page}: {BEGIN} and {END} are needed, each once and in this order')
  return before, after


def fill(page: Path, rows: dict[str, dict[str, Any]]) -> None:
  """Writes the tables between the page's two marks; InputError where it has none."""
  before, after = around(page)
  page.write_text(f'{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}')
