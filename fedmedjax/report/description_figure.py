"""The figure of a description of sites, in the colours of reports."""

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmedjax.data import statistics
from fedmedjax.data.statistics import SiteStatistics
from fedmedjax.report.type_colours import type_colours
from fedmedjax.types import Schema

# Of templates/report.css, in the light.
_INK, _MUTED, _LINE, _BLUE = '#1a1d21', '#5a636e', '#dde1e6', '#0072b2'
_STYLE = {
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.spines.left': False,
  'axes.edgecolor': _LINE, 'axes.titlelocation': 'left', 'axes.titleweight': 'bold',
  'axes.titlesize': 11, 'axes.axisbelow': True, 'text.color': _INK, 'axes.titlecolor': _INK,
  'xtick.color': _LINE, 'ytick.color': _LINE, 'xtick.labelcolor': _MUTED,
  'ytick.labelcolor': _INK, 'grid.color': _LINE, 'legend.frameon': False, 'font.size': 10}
# No divergence has no colour, and 1 bit a half of the full one, on which dark text can be read.
_HEAT = colors.LinearSegmentedColormap.from_list('heat', ['#ffffff', '#80b9d9'])


def figure(
  sites: Sequence[SiteStatistics], labels: Sequence[str], schema: Schema,
  divergences: Mapping[str, Callable],
) -> Figure:
  """A figure with a panel each for sizes, sentence lengths, types or targets, and divergences.

  Args:
    sites: S sites.
    labels: their names.
    schema: whose types are drawn.
    divergences: {name: function of two sites}, two.
  """
  rows = any(site.targets is not None for site in sites)
  with matplotlib.rc_context(_STYLE):
    drawn = Figure(figsize=(14, 5 + 0.6 * len(sites)), layout='constrained')
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    above, below = drawn.subfigures(2, 1, height_ratios=(1, 1.1))
    size, length, mix = above.subplots(1, 3)
    _sizes(size, sites, rows)
    _lengths(length, [site.sentence_words for site in sites],
             'words an input' if rows else 'words a sentence')
    if rows:
      _lengths(mix, [statistics.target_words(site.targets or {}) for site in sites],
               'words a target')
    else:
      _mix(mix, sites, schema)
    for panel in (size, length, mix):
      panel.set_yticks(np.arange(len(sites)), labels if panel is size else [])
      panel.tick_params(length=0)
      panel.invert_yaxis()
    for panel, (what, divergence) in zip(
        below.subplots(1, 2), divergences.items(), strict=True):
      _apart(panel, statistics.matrix(divergence, sites), what, labels)
  return drawn


def _sizes(panel: Axes, sites: Sequence[SiteStatistics], rows: bool) -> None:
  train, test = (np.array([getattr(site, f'{part}_notes') for site in sites])
                 for part in ('train', 'test'))
  places = np.arange(len(sites))
  panel.barh(places, train, 0.6, color=_BLUE, label='training')
  panel.barh(places, test, 0.6, left=train, color=_HEAT(1.0), label='test')
  panel.grid(axis='x')
  panel.set_title('rows' if rows else 'notes')
  panel.legend(ncols=2, fontsize='small', loc='upper center', bbox_to_anchor=(0.5, -0.1))


def _lengths(panel: Axes, words: Sequence[np.ndarray], title: str) -> None:
  panel.boxplot(
    words, orientation='horizontal', positions=np.arange(len(words)), widths=0.5,
    showfliers=False, whis=(5, 95), patch_artist=True, boxprops={
      'facecolor': _HEAT(0.5), 'edgecolor': _BLUE}, medianprops={'color': _INK, 'linewidth': 1.6},
    whiskerprops={'color': _BLUE}, capprops={'color': _BLUE})
  panel.grid(axis='x')
  panel.set_title(f'{title} (whiskers: 5 % and 95 %)')


def _mix(panel: Axes, sites: Sequence[SiteStatistics], schema: Schema) -> None:
  shares = [statistics.shares(site.entities, schema.types) for site in sites]
  start = np.zeros(len(sites))
  for kind, colour in type_colours(schema).items():
    width = np.array([share[kind] for share in shares])
    panel.barh(np.arange(len(sites)), width, 0.6, left=start, label=kind,
               color=_plain(colour.light), edgecolor=_MUTED, linewidth=0.6)
    start += width
  panel.set(title='share of entity types', xlim=(0, 1))
  panel.legend(ncols=min(len(schema.types), 4), fontsize='small', loc='upper center',
               bbox_to_anchor=(0.5, -0.1))


def _plain(css: str) -> tuple[float, float, float] | str:
  """A colour of `type_colours` as matplotlib takes it."""
  if found := re.fullmatch(r'hsl\((\d+) (\d+)% (\d+)%\)', css):
    hue, saturation, light = map(int, found.groups())
    return colorsys.hls_to_rgb(hue / 360, light / 100, saturation / 100)
  if found := re.fullmatch(r'color-mix\(in srgb, (.*) 45%, white\)', css):
    # Colours of a schema may be written as only CSS knows them.
    chosen = colors.to_rgb(found[1]) if colors.is_color_like(found[1]) else (0.7, 0.7, 0.7)
    red, green, blue = (0.45 * part + 0.55 for part in chosen)
    return red, green, blue
  return css


def _apart(panel: Axes, values: np.ndarray, what: str, labels: Sequence[str]) -> None:
  panel.pcolormesh(values, vmin=0, vmax=1, cmap=_HEAT, edgecolors=_LINE, linewidth=0.8)
  for i, j in np.argwhere(~np.isnan(values)):
    panel.text(j + 0.5, i + 0.5, f'{values[i, j]:.3f}', ha='center', va='center',
               fontsize=10 if len(labels) <= 8 else 6)
  places, few = np.arange(len(labels)) + 0.5, len(labels) <= 4
  panel.set_title(f'divergence of {what}, bits (0 = alike)')
  panel.set_xticks(places, [re.sub('[_ ]+', '\n', label) if few else label for label in labels],
                   rotation=0 if few else 30, ha='center' if few else 'right', color=_INK)
  panel.set_yticks(places, labels)
  panel.tick_params(length=0)
  panel.invert_yaxis()
  panel.spines[:].set_visible(False)
