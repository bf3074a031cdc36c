"""Charts of a page about a sweep; none of their colours means a run or a method.

As in `charts.py`, each function turns arrays into an <svg> element. N is the number of rows or
points.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fedmedjax.report.svg import INK, LINE, MUTED, canvas, clean, embed

# Room for names beside rows, and the most characters of one.
_LEFT, _LONG = 128, 21
_ROW = 20


def rows(
  key: str, description: str, names: Sequence[str], values: np.ndarray, bounds: np.ndarray,
  label: str, form: str, line: float | None = None, *, whole: bool = False,
) -> Markup:
  """A dot with whiskers in each row, beside its name and its value.

  Args:
    key, description: see `svg.embed`.
    names: of the rows.
    values: f[N].
    bounds: f[N, 2], NaN where there is no interval.
    label: of the axis.
    form: of the values as text, such as '.2f'.
    line: where a vertical line stands; None = nowhere.
    whole: the axis has marks at whole numbers alone.
  """
  known = np.concatenate([values, bounds[np.isfinite(bounds)], [] if line is None else [line]])
  low, high = known.min(), known.max()
  margin = 0.06 * (high - low) or 0.05
  with canvas(_ROW * len(names) + 48, left=_LEFT, right=52, top=4, bottom=44) as axes:
    places = np.arange(len(names)) + 0.5
    if line is not None:
      axes.axvline(line, color=MUTED, linewidth=1.2)
    axes.hlines(places, *bounds.T, color=INK, linewidth=1.6, alpha=0.55)
    axes.plot(values, places, color=INK, marker='o', markersize=6, linestyle='')
    for place, name, value in zip(places, names, values, strict=True):
      axes.annotate(
        clean(name, _LONG), (0, place), xycoords=('axes fraction', 'data'), xytext=(8 - _LEFT, 0),
        textcoords='offset points', va='center', color=INK, fontsize=10.5)
      axes.annotate(
        format(value, form), (1, place), xycoords=('axes fraction', 'data'), xytext=(6, 0),
        textcoords='offset points', va='center', color=MUTED, fontsize=10.5)
    axes.grid(axis='x', linewidth=0.8)
    axes.set(xlim=(low - margin, high + margin), ylim=(len(names), 0), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.spines['left'].set_visible(False)
    axes.set_xlabel(clean(label))
    return embed(axes, key, description)


def scatter(
  key: str, description: str, x: np.ndarray, y: np.ndarray, x_label: str,
  marked: Sequence[tuple[int, str]] = (), *, logarithmic: bool = False,
) -> Markup:
  """Points; those that are `marked` are full, joined by steps, and have a text beside them.

  Args:
    key, description: see `svg.embed`.
    x, y: f[N].
    x_label: label of the x axis.
    marked: (number of a point, its text), from left to right.
    logarithmic: the x axis is so; x > 0.
  """
  with canvas(230, left=44, right=18, top=14, bottom=40) as axes:
    if logarithmic:
      axes.set_xscale('log')
    if marked:
      at = [number for number, _ in marked]
      axes.plot(x[at], y[at], color=LINE, linewidth=1.6, drawstyle='steps-post')
    axes.plot(
      x, y, color=MUTED, marker='o', markersize=6, markerfacecolor='none', linestyle='')
    for number, text in marked:
      axes.plot(x[number], y[number], color=INK, marker='o', markersize=7)
      axes.annotate(
        text, (x[number], y[number]), xytext=(0, 6), textcoords='offset points', ha='center',
        color=INK, fontsize=10.5)
    axes.grid(linewidth=0.8)
    axes.spines['left'].set_visible(False)
    axes.set_xlabel(clean(x_label))
    axes.margins(x=0.08, y=0.14)
    if logarithmic:
      axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
      axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
      axes.xaxis.set_minor_locator(NullLocator())
    else:
      axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return embed(axes, key, description)


