"""The kinds of charts of a report: lines, bars and dots in groups, heat maps, shares.

Each function turns arrays into an <svg> element (see `svg.py`). Series have the colours of the
palette, by their number from 0. NaN stands for a missing value. In the shapes, G is the number of
groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedmedjax.report.svg import (
  HEAT,
  INK,
  LINE,
  MARKERS,
  MUTED,
  SERIES,
  WIDTH,
  canvas,
  clean,
  embed,
)

# Most characters of a label above a group, and of one beside a row or column.
_LONG, _SHORT = 44, 16
# Lines of more points than these have no marks.
_MARKED = 30
# Line styles of curves, which alternate so that a curve on top of another does not hide it.
_STYLES = '-', (0, (4, 2.5))
# Largest opacity of a heat map's colour at which text on it can be read.
_DEEPEST = 0.5


# Where a series is drawn: its place in the palette, or 'n0', 'n1', ... = without colour, told apart
# by its mark, since on a page a colour means one thing only: a site, or a regime.
Place = int | str


def neutral(count: int) -> list[Place]:
  """Places without colour for so many series."""
  return [f'n{i}' for i in range(count)]


def _look(place: Place) -> tuple[str, str, object]:
  """(colour, mark, style of its line)."""
  at = int(place[1:]) if isinstance(place, str) else place
  colour = (INK, MUTED)[at % 2] if isinstance(place, str) else SERIES[at]
  return colour, MARKERS[at], _STYLES[at % 2]


def lines(
  key: str, description: str, series: Sequence[tuple[Place | None, np.ndarray, np.ndarray]],
  x_label: str,
  *, bands: Sequence[tuple[Place, np.ndarray, np.ndarray, np.ndarray]] = (), whole: bool = True,
  zero: bool = False,
) -> Markup:
  """Curves.

  Args:
    key, description: see `svg.embed`.
    series: (place, x f[N], y f[N]); place None = a curve outside the legend.
    x_label: label of the x axis.
    bands: (place, x f[N], low f[N], high f[N]): a range around a curve.
    whole: x are whole numbers, such as rounds.
    zero: the y axis begins at 0.
  """
  with canvas(200, left=44, right=12, top=10, bottom=38) as axes:
    for place, x, low, high in bands:
      axes.fill_between(x, low, high, color=_look(place)[0], alpha=0.2, linewidth=0)
    for place, x, y in series:
      colour, mark, style = (INK, '.', '-') if place is None else _look(place)
      axes.plot(x, y, color=colour, linewidth=1.8, markersize=5, linestyle=style,
                marker=mark if len(x) <= _MARKED else '')
    axes.grid(axis='y', linewidth=0.8)
    axes.spines['left'].set_visible(False)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.04, y=0.1)
    if zero:
      # With room above the largest, too: otherwise its mark and line were cut.
      axes.set_ylim(0, 1.1 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else None)
    return embed(axes, key, description)


class _Rows(NamedTuple):
  """Vertical positions, downwards, of groups and of a row for each value that is not missing."""

  height: float
  labels: np.ndarray   # f[G]
  rows: np.ndarray     # f[G, series], NaN where there is no value


def _laid_out(values: np.ndarray, step: float) -> _Rows:
  known = np.isfinite(values)
  sizes = 18 + known.sum(1) * step + 12
  tops = np.cumsum(sizes) - sizes
  rows = tops[:, None] + 18 + (np.cumsum(known, 1) - 0.5) * step
  return _Rows(sizes.sum(), tops + 9, np.where(known, rows, np.nan))


def dots(
  key: str, description: str, groups: Sequence[str], values: np.ndarray, label: str,
  bounds: np.ndarray, places: Sequence[Place],
) -> Markup:
  """Dots in groups, `values` f[G, series], with whiskers `bounds` f[G, series, 2].

  `places` are those of the series.
  """
  low, high = limits(values, bounds)
  laid = _laid_out(values, 13)
  with canvas(laid.height + 46, bottom=38, right=36) as axes:
    for i, rows in enumerate(laid.rows.T):
      colour, mark, _ = _look(places[i])
      axes.hlines(rows, *bounds[:, i].T, color=colour, linewidth=1.6, alpha=0.55)
      axes.plot(values[:, i], rows, color=colour, marker=mark, markersize=6.5, linestyle='')
    _finish(axes, laid, groups, values, label, (low, high))
    axes.set_xlim(low - 0.02 * (high - low), high)
    return embed(axes, key, description)


def bars(
  key: str, description: str, groups: Sequence[str], values: np.ndarray, label: str,
  lighter: np.ndarray | None = None,
) -> Markup:
  """Bars in groups, `values` f[G, series], with lighter bars f[G, series], if any, behind."""
  laid, behind = _laid_out(values, 13), () if lighter is None else ((lighter, 0.35),)
  span = limits(values, *(widths for widths, _ in behind))
  with canvas(laid.height + 46, bottom=38, right=36) as axes:
    for i, rows in enumerate(laid.rows.T):
      known = np.isfinite(rows)
      for widths, alpha in (*behind, (values, 1)):
        axes.barh(rows[known], widths[known, i], 9, color=SERIES[i], alpha=alpha, linewidth=0)
    _finish(axes, laid, groups, values, label, span)
    axes.set_xlim(span)
    return embed(axes, key, description)


def limits(*values: np.ndarray) -> tuple[float, float]:
  """The ends of an axis: 0 and 1 where all values are between them, as most scores are."""
  known = np.concatenate([some[np.isfinite(some)] for some in values])
  low, high = known.min(initial=0.0), known.max(initial=0.0)
  return (0.0, 1.0) if low >= 0 and high <= 1 else (1.05 * low, 1.05 * high)


def shown(value: float) -> str:
  """A value as drawings show it: rounded as in tables, unless it is large."""
  return f'{value:.3f}' if abs(value) < 10 else _short(value)


def _short(value: float) -> str:
  return f'{value:.2f}' if abs(value) < 100 else f'{value:.3g}'


def _finish(
  axes, laid: _Rows, groups: Sequence[str], values: np.ndarray, label: str,
  span: tuple[float, float],
) -> None:
  """Names of groups, values as text, and an axis from the first to the second end of `span`."""
  low, high = span
  for value, y in zip(values.flat, laid.rows.flat, strict=True):
    if np.isfinite(value):
      axes.text(high + 0.015 * (high - low), y, shown(value), va='center', color=MUTED, fontsize=10)
  _name(axes, laid, groups, low)
  axes.grid(axis='x', linewidth=0.8)
  axes.set_xlabel(clean(label))


def _name(axes, laid: _Rows, groups: Sequence[str], left: float = 0) -> None:
  for name, y in zip(groups, laid.labels, strict=True):
    axes.text(left, y, clean(name, _LONG), va='center', color=INK, fontsize=11, weight='bold')
  axes.set_ylim(laid.height, 0)
  axes.set_yticks([])
  for side in ('left', 'bottom'):
    axes.spines[side].set_visible(False)


def heat(
  key: str, description: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray,
  span: tuple[float, float] | None = None, *, left: int = 108,
) -> Markup:
  """A heat map of `values` f[rows, columns]; a deeper colour is a larger value.

  `span` are the values without colour and of the deepest; None = `limits`. `left` is the room for
  names of rows.
  """
  low, high = span or limits(values)
  cell = (WIDTH - left - 8) / len(columns)
  side, most = min(cell, 34), round(_SHORT * left / 108)
  names = [clean(name, _SHORT) for name in columns]
  longest = max(map(len, names))
  # Names that fit over their columns are not turned.
  flat = 6.5 * longest <= cell
  top = 26 if flat else min(78, 24 + 4 * longest)
  with canvas(top + side * len(rows) + 8, left=left, top=top, bottom=8) as axes:
    for (i, j), value in np.ndenumerate(values):
      known = np.isfinite(value)
      axes.add_patch(_square(
        j, i, _DEEPEST * (value - low) / (high - low) if known and high > low else 0))
      axes.text(
        j + 0.5, i + 0.5, '\N{EN DASH}' if not known else
        shown(value) if cell >= 40 else _short(value), ha='center', va='center',
        color=INK, fontsize=10.5 if cell >= 26 else 8)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.xaxis.tick_top()
    axes.set_xticks(
      np.arange(len(columns)) + 0.5, names, rotation=0 if flat else -40,
      ha='center' if flat else 'right', rotation_mode='anchor')
    axes.set_yticks(np.arange(len(rows)) + 0.5, [clean(name, most) for name in rows])
    for spine in axes.spines.values():
      spine.set_visible(False)
    return embed(axes, key, description)


def _square(x: int, y: int, depth: float) -> Rectangle:
  return Rectangle((x, y), 1, 1, facecolor=(*_rgb(HEAT), depth), edgecolor=LINE, linewidth=0.8)


def _rgb(colour: str) -> tuple[float, ...]:
  return tuple(int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))


def shares(
  key: str, description: str, groups: Sequence[str], values: np.ndarray, colours: Sequence[str]
) -> Markup:
  """A stacked bar for each group: `values` f[G, series], whose rows add up to 1, or to 0.

  `colours` are those of the series; pale ones have an outline.
  """
  laid = _laid_out(values[:, :1], 15)
  with canvas(laid.height + 8, bottom=4) as axes:
    start = np.zeros(len(groups))
    for i, widths in enumerate(values.T):
      axes.barh(
        laid.rows[:, 0], widths, 14, left=start, color=colours[i], edgecolor=MUTED, linewidth=0.6)
      start = start + widths
    _name(axes, laid, groups)
    axes.set(xlim=(0, 1), xticks=[])
    return embed(axes, key, description)


def points(key: str, description: str, x: np.ndarray, y: np.ndarray, x_label: str) -> Markup:
  """A mark for each series; x f[series] >= 0, y f[series]."""
  with canvas(210, left=44, right=14, top=12, bottom=40) as axes:
    for i, (across, up) in enumerate(zip(x, y, strict=True)):
      axes.plot([across], [up], color=SERIES[i], marker=MARKERS[i], markersize=8, linestyle='')
    axes.grid(linewidth=0.8)
    axes.spines['left'].set_visible(False)
    axes.set_xlabel(x_label)
    right, top = (np.nanmax(values, initial=least) for values, least in ((x, 1), (y, 0.1)))
    bottom = min(0.0, 1.15 * np.nanmin(y, initial=0.0))
    axes.set(xlim=(-0.04 * right, 1.08 * right), ylim=(bottom, 1.15 * top))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return embed(axes, key, description)
