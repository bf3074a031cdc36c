"""Drawings as SVG that is part of an HTML page: in its colours, light and dark, and in its fonts.

Drawn by matplotlib in colours that stand for the page's own: `var(--ink)` and so on replace them.
One unit is a CSS pixel where the drawing is 340 wide, as on a phone.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 340
# Series of a drawing have a colour and a mark each; the page's legend shows both.
MARKERS = 'os^DvPX*'
SERIES = tuple(f'#0100a{i}' for i in range(1, len(MARKERS) + 1))
INK, MUTED, LINE, HEAT = '#010001', '#010002', '#010003', '#010004'
_VARIABLES = {
  INK: 'var(--ink)', MUTED: 'var(--muted)', LINE: 'var(--line)', HEAT: 'var(--heat)',
  **{colour: f'var(--s{i})' for i, colour in enumerate(SERIES, 1)}}
_COLOUR = re.compile('|'.join(_VARIABLES))
_SVG = 'http://www.w3.org/2000/svg'
_HREF = '{http://www.w3.org/1999/xlink}href'
_SETTINGS = {
  # Text stays text; a dollar sign is one.
  'svg.fonttype': 'none', 'text.parse_math': False, 'font.size': 10.5, 'text.color': INK,
  'axes.edgecolor': LINE, 'axes.labelcolor': MUTED, 'xtick.color': LINE, 'ytick.color': LINE,
  'xtick.labelcolor': MUTED, 'ytick.labelcolor': MUTED, 'grid.color': LINE,
  'axes.labelsize': 10.5, 'xtick.labelsize': 10.5, 'ytick.labelsize': 10.5,
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.unicode_minus': False,
}


@contextmanager
def canvas(
  height: float, *, left: float = 8, right: float = 8, top: float = 8, bottom: float = 34
) -> Iterator[Axes]:
  """Axes in a drawing of the given height and margins, in units; to be drawn and given to `embed`
  inside the context."""
  with matplotlib.rc_context(_SETTINGS):
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((
      left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH,
      (height - top - bottom) / height))
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    yield axes


def embed(axes: Axes, key: str, description: str) -> Markup:
  """The drawing as an <svg> element.

  Args:
    axes: of `canvas`.
    key: different for every drawing of a page.
    description: what a reader hears who does not see it.
  """
  out = io.BytesIO()
  # Ids are hashes, salted so that the same drawing has the same bytes and no two share an id.
  with matplotlib.rc_context({'svg.hashsalt': key}), warnings.catch_warnings():
    # Only measures text with its own font; the browser has more.
    warnings.filterwarnings('ignore', 'Glyph .* missing from')
    axes.figure.savefig(out, format='svg', transparent=True, metadata={
      'Date': None, 'Creator': None, 'Format': None, 'Type': None})
  root = ElementTree.fromstring(out.getvalue())
  _strip(root)
  wanted = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', out.getvalue().decode()))
  for element in root.iter():
    _restyle(element, wanted)
    element.tag = element.tag.removeprefix(f'{{{_SVG}}}')
  for name in ('width', 'height', 'version'):
    root.attrib.pop(name, None)
  root.attrib |= {'role': 'img', 'aria-label': description}
  return Markup(ElementTree.tostring(root, encoding='unicode'))


def _strip(root: ElementTree.Element) -> None:
  """Takes out metadata, and the style sheet, which would be the whole page's."""
  for parent in list(root.iter()):
    for child in list(parent):
      inside = {grandchild.tag for grandchild in child}
      if child.tag.endswith('}metadata') or inside == {f'{{{_SVG}}}style'}:
        parent.remove(child)


def _restyle(element: ElementTree.Element, wanted: set[str]) -> None:
  """The page's colours and fonts, and only ids that are wanted: others recur in every drawing."""
  if element.attrib.get('id') not in wanted:
    element.attrib.pop('id', None)
  if _HREF in element.attrib:
    element.set('href', element.attrib.pop(_HREF))
  style = element.attrib.get('style')
  if style:
    style = _COLOUR.sub(lambda found: _VARIABLES[found[0]], style)
    element.set('style', re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;]*", r'font: \1 var(--font)', style))


def clean(text: str, most: int = 0) -> str:
  """`text` as a label: without what XML cannot hold, and not longer than `most` signs, if given:
  names that begin alike often differ at the end, so the middle is left out."""
  text = ''.join(sign if sign.isprintable() else '\N{REPLACEMENT CHARACTER}' for sign in text)
  if not most or len(text) <= most:
    return text
  end = most // 3
  return f'{text[:most - 1 - end]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}'
