"""The four curves and the tables of scripts/bench_sites.py, from what its --out holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

# Of a row's keys: name in the legend.
_NAMES = {
  'ours_seconds_per_round': 'compiled round', 'ours_loop_seconds_per_round': 'Python loop',
  'peer_peft_seconds_per_round': 'torch + PEFT loop'}


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints rows; what one lacks is '-'."""
  table = Table(title=title.replace('_', ' '))
  shown = list(dict.fromkeys(
    key for row in rows for key, value in row.items() if not isinstance(value, list)))
  for key in shown:
    table.add_column(key.removeprefix('ours_').replace('_', ' '), justify='right')
  for row in rows:
    table.add_row(*(_shown(row.get(key, '-')) for key in shown))
  console = Console()
  (console if console.is_terminal else Console(width=200)).print(table)


def _shown(value: float | str) -> str:
  return value if isinstance(value, str) else f'{value:.4g}'


def _against(axes, rows, x: str, y: str, label: str) -> None:
  pairs = [(row[x], row[y]) for row in rows if y in row]
  if pairs:
    axes.plot(*zip(*pairs, strict=True), marker='o', label=label)


def _by_sites(axes, rows) -> None:
  for key, name in _NAMES.items():
    _against(axes, rows, 'sites', key, name)
  scaled = [
    (row['sites'], row[key]) for row in rows if 'loops_scaled_from_sites' in row
    for key in _NAMES if key in row and not key.startswith('ours_seconds')]
  if scaled:
    # Hollow: a loop over fewer sites, scaled up.
    axes.plot(*zip(*scaled, strict=True), linestyle='', marker='o', markerfacecolor='white',
              markeredgecolor='C7', label='scaled from fewer sites')
  axes.set(xscale='log', yscale='log', xlabel='sites', ylabel='seconds a round',
           title='Sites')
  axes.legend()


def _by_chunk(axes, rows) -> None:
  # All sites at once is the widest chunk.
  rows = sorted(
    ({**row, 'chunk': row['chunk'] or row['sites']} for row in rows), key=lambda r: r['chunk'])
  _against(axes, rows, 'chunk', 'ours_seconds_per_round', 'compiled round')
  axes.set(xscale='log', ylim=(0, None), xlabel='sites computed at once',
           ylabel='seconds a round', title=f'Chunk, {rows[0]["sites"]} sites')


def _by_skew(axes, rows) -> None:
  _against(axes, rows, 'skew_exponent', 'ours_seconds_per_round', 'seconds')
  axes.set(xlabel='exponent of the sizes\' power law', ylabel='seconds a round', ylim=(0, None),
           title=f'Unlike sizes, {rows[0]["sites"]} sites by {rows[0]["chunk"]}s')
  share = axes.twinx()
  for key, name, style in (('useful_step_share', 'useful steps', 'C1s--'),
                           ('padded_useful_step_share', 'useful if all waited', 'C7s:')):
    share.plot([row['skew_exponent'] for row in rows], [row[key] for row in rows], style,
               label=name)
  share.set(ylim=(0, 1.05), ylabel='share of steps computed')
  share.legend(loc='lower left')


def _memory(axes, rows) -> None:
  _against(axes, [
    {**row, 'mib': row['ours_peak_bytes'] / 2**20} for row in rows], 'sites', 'mib', 'peak')
  axes.set(xscale='log', ylim=(0, None), xlabel='sites', ylabel='MiB at the peak',
           title='Memory of the compiled round')


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Writes an SVG with the curves of all parts that were measured."""
  panels = [
    (part, found[key]) for key, part in (
      ('by_sites', _by_sites), ('by_chunk', _by_chunk), ('by_skew', _by_skew),
      ('by_sites', _memory)) if found[key]]
  # The same bytes for the same numbers.
  with pyplot.rc_context({'svg.hashsalt': 'fedmedjax', 'svg.fonttype': 'none'}):
    figure, axes = pyplot.subplots(
      1, len(panels), figsize=(4.2 * len(panels), 3.6), layout='constrained', squeeze=False)
    for place, (part, rows) in zip(axes[0], panels, strict=True):
      part(place, rows)
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)
  print(f'drawn: {path}')
