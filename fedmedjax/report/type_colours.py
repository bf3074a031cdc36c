"""The colours of entity types, the same in reports and on pages of annotated notes.

Pastel fills mean types; the deep colours of charts mean sites or regimes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedmedjax.data.schema import plain_name
from fedmedjax.types import PAPER, EntityType, RelationType, Schema

# The paper's types, in light and dark.
_CHOSEN = {
  'problem': ('#d6e9f8', '#173a54'), 'treatment': ('#fde3d0', '#55300f'),
  'test': ('#d3efe2', '#124534'), 'drug': ('#f3dcec', '#4d2744')}
_TURN = 137.508  # degrees between the hues of neighbours: the golden angle keeps all of them apart


class TypeColour(NamedTuple):
  """An entity type on a page."""

  name: str   # of its class, behind 't-'
  light: str  # its fill, as CSS has it
  dark: str


def type_colours(schema: Schema) -> dict[str, TypeColour]:
  """{entity type: its colour}, in the order of the schema.

  A colour that the schema gives is mixed with white or black, so that words on it can be read.
  """
  colours = {}
  for number, entity in enumerate(schema.entities):
    hue = round((210 + number * _TURN) % 360)
    chosen = _CHOSEN.get(entity.name, (f'hsl({hue} 70% 88%)', f'hsl({hue} 45% 22%)'))
    if entity.colour:
      chosen = tuple(
        f'color-mix(in srgb, {entity.colour} 45%, {other})' for other in ('white', 'black'))
    colours[entity.name] = TypeColour(plain_name(entity.name), *chosen)
  return colours


def described(schema: Schema) -> dict[str, Any]:
  """The schema's entry of sites.json."""
  return {
    'entities': {one.name: {key: value for key, value in one._asdict().items() if key != 'name'}
                 for one in schema.entities},
    'relations': {one.name: {key: value for key, value in one._asdict().items() if key != 'name'}
                  for one in schema.relations}}


def recorded(sites: Mapping[str, Any]) -> Schema:
  """The schema of a run, from its sites.json; the paper's where an older version wrote it."""
  held = sites.get('schema')
  return Schema(*(
    tuple(kind(name, **row) for name, row in held[key].items())
    for kind, key in ((EntityType, 'entities'), (RelationType, 'relations')))) if held else PAPER
