"""SVG drawings for an HTML page, in the page's fonts and its light or dark colours.

Matplotlib draws in placeholder colours, which are replaced by the page's CSS variables, such as
`var(--ink)`. One unit is a CSS pixel when the drawing is 340 pixels wide, as on a phone.
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
# The palette: each series has a colour and a mark of its own, which the page's legend shows.
MARKERS = 'os^DvPX*'
SERIES = tuple(f'#0100a{i}' for i in range(1, len(MARKERS) + 1))
INK, MUTED, LINE, HEAT = '#010001', '#010002', '#010003', '#010004'
_VARIABLES = {
  INK: 'var(--ink)', MUTED: 'var(--muted)', LINE: 'var(--line)', HEAT: 'var(--heat)',
  **{colour: f'var(--s{i})' for i, colour in enumerate(SERIES, 1)}}
# Entity types have colours of their own, which mean nothing else on a page (templates/types.css).
_COLOUR = re.compile('|'.join(_VARIABLES) + '|#02([0-9a-f]{4})')
_SVG = 'http://www.w3.org/2000/svg'
_HREF = '{http://www.w3.org/1999/xlink}href'
_SETTINGS = {
  # Text is not turned into outlines, and a dollar sign does not begin a formula.
  'svg.fonttype': 'none', 'text.parse_math': False, 'font.size': 10.5, 'text.color': INK,
  'axes.edgecolor': LINE, 'axes.labelcolor': MUTED, 'xtick.color': LINE, 'ytick.color': LINE,
  'xtick.labelcolor': MUTED, 'ytick.labelcolor': MUTED, 'grid.color': LINE,
  'axes.labelsize': 10.5, 'xtick.labelsize': 10.5, 'ytick.labelsize': 10.5,
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.unicode_minus': False,
}


def type_colour(number: int) -> str:
  """The placeholder of the colour of the entity type of this number, from 1."""
  return f'#02{number:04x}'


@contextmanager
def canvas(
  height: float, *, left: float = 8, right: float = 8, top: float = 8, bottom: float = 34
) -> Iterator[Axes]:
  """A context with the axes of a new drawing, which are drawn on and given to `embed` inside it.

  Args:
    height: of the drawing; its width is WIDTH.
    left, right, top, bottom: margins around the axes, in the same units.
  """
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
    axes: from `canvas`.
    key: a word that is different for every drawing of a page.
    description: text that screen readers read out.
  """
  out = io.BytesIO()
  # Ids are hashes, salted so that the same drawing has the same bytes and no two share an id.
  with matplotlib.rc_context({'svg.hashsalt': key}), warnings.catch_warnings():
    # Matplotlib's font only measures the text; the browser has fonts with the missing glyphs.
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
  """Removes metadata and the style sheet, which would apply to the whole page."""
  for parent in list(root.iter()):
    for child in list(parent):
      inside = {grandchild.tag for grandchild in child}
      if child.tag.endswith('}metadata') or inside == {f'{{{_SVG}}}style'}:
        parent.remove(child)


def _restyle(element: ElementTree.Element, wanted: set[str]) -> None:
  """Sets the page's colours and fonts, and removes ids that are not `wanted`.

  Ids that nothing refers to are the same in every drawing, and a page must not repeat them.
  """
  if element.attrib.get('id') not in wanted:
    element.attrib.pop('id', None)
  if _HREF in element.attrib:
    element.set('href', element.attrib.pop(_HREF))
  style = element.attrib.get('style')
  if style:
    style = _COLOUR.sub(
      lambda match: f'var(--type-{int(match[1], 16)})' if match[1] else _VARIABLES[match[0]], style)
    element.set('style', re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;]*", r'font: \1 var(--font)', style))


def clean(text: str, most: int = 0) -> str:
  """`text` as a label: without unprintable characters and, unless 0, of at most `most` characters.

  The middle of a long text is left out, since names that begin alike often differ at the end.
  """
  text = ''.join(sign if sign.isprintable() else '\N{REPLACEMENT CHARACTER}' for sign in text)
  if not most or len(text) <= most:
    return text
  end = most // 3
  return f'{text[:most - 1 - end]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}'
