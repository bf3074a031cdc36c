"""Files of UIMA CAS, read by the library `cassis` (dkpro-cassis)."""

import json
import re
import warnings
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmedjax.data.formats.files import read_bytes, read_text
from fedmedjax.types import InputError

ANNOTATION = 'uima.tcas.Annotation'
# What describes the text and not what it says: not read unless a mapping names it.
STRUCTURE = re.compile(
  r'.*\.(segmentation|syntax|lexmorph|textspan|metadata|transform|morph)\..*|'
  r'(.*\.)?(Token|Sentence|Paragraph|Section|Segment|Lemma|Stem|POS|Chunk|DocumentMetaData|'
  r'TagDescription|TagsetDescription)')
_OFFSET = re.compile(r'offset \[([^\]]*)\]')
_FEATURE = re.compile('[A-Za-z_][A-Za-z0-9_]*')
_NAMED = 8  # most types in a message


def library(place: object) -> ModuleType:
  """The module `cassis`; raises InputError, naming the extra, where it is not there."""
  try:
    import cassis
  except ImportError:
    raise InputError(f"{place}: UIMA CAS needs a package; pip install 'fedmedjax[uima]'") from None
  return cassis


def load_cas(path: Path) -> Any:
  """The CAS of a file, with offsets in characters."""
  cassis = library(path)
  content = read_bytes(path)
  if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
    raise InputError(f'{path}:1: XML entities are not read')
  text = read_text(path)
  place, types = path, None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      # An offset without a place would be taken as it is, and mean another one.
      warnings.filterwarnings('error', message='Not mapping')
      if path.suffix.lower() == '.json':
        named = json.loads(text)['%TYPES'].values()
        _check_features(path, (key for kind in named for key in kind if not key.startswith('%')))
        return cassis.load_cas_from_json(text)
      types = _type_system_file(path)
      place = types
      system = _type_system(types, types.stat().st_mtime_ns)
      place = path
      return cassis.load_cas_from_xmi(text, typesystem=system)
  except InputError:
    raise
  except UserWarning as error:
    at = _OFFSET.search(str(error))
    at = at[1] if at else '?'
    written = re.search(rf'\b(?:begin|end)"?\s*[=:]\s*"?{re.escape(at)}\b', text)
    line = text.count('\n', 0, written.start()) + 1 if written else 1
    raise InputError(f'{path}:{line}: the offset {at}, in UTF-16 units, is outside of the text or '
                     'inside a character') from None
  except Exception as error:  # whatever a damaged file makes of the library
    if type(error).__name__ == 'TypeNotFoundError':
      lacks = re.search(r'\[([^\]]+)\]', str(error))
      lacks = lacks[1] if lacks else str(error)
      used = re.search(rf'\b{re.escape(last_part(lacks))}\b', text)
      line = text.count('\n', 0, used.start()) + 1 if used else 1
      where = f'its type system {types}' if types else 'its type system'
      raise InputError(f'{path}:{line}: {where} lacks the type {lacks}') from None
    line = getattr(error, 'lineno', None) or 1
    said = (str(error).splitlines() or [''])[0]
    raise InputError(f'{place}:{line}: no UIMA CAS that can be read '
                     f'({type(error).__name__}: {said})') from None


def _type_system_file(path: Path) -> Path:
  """The type system of an XMI file: beside it, or in one of three folders around it."""
  for folder in path.absolute().parents[:4]:
    found = [file for file in sorted(folder.glob('*.[xX][mM][lL]'))
             if 'typesystem' in file.stem.casefold().replace('_', '').replace('-', '')]
    if found:
      return found[0]
  raise InputError(f'{path}: no TypeSystem.xml beside it, which says what its types are')


@lru_cache(maxsize=4)
def _type_system(path: Path, changed: int) -> Any:
  """The type system of a file, which all notes of a folder share; `changed` is its time."""
  content = read_bytes(path)
  if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
    raise InputError(f'{path}:1: XML entities are not read')
  with path.open('rb') as file:
    system = library(path).load_typesystem(file)
  _check_features(path, (feature.name for kind in system.get_types() for feature in kind.features))
  return system


def _check_features(path: Path, names: Iterable[str]) -> None:
  """Raises InputError for a feature whose name is none: the library makes Python of names."""
  wrong = next((name for name in names if not _FEATURE.fullmatch(name)), None)
  if wrong is not None:
    raise InputError(f'{path}:1: its type system has a feature {wrong[:40]!r}; letters and figures '
                     'are allowed')


def check_wanted(path: Path, system: Any, wanted: Collection[str]) -> None:
  """Raises InputError where a name that says a type is of none in the type system.

  Names that are neither whole ones, as in a.b.Finding, nor of the form TYPE=LABEL may be labels,
  which a type system does not list.
  """
  own = sorted(kind.name for kind in system.get_types() if system.is_instance_of(kind, ANNOTATION))
  there = {name for kind in own for name in (kind, last_part(kind))}
  asked = {name: name.partition('=')[0] for name in wanted
           if name.count('.') > 1 or '=' in name}
  lacking = [name for name, kind in asked.items() if kind not in there]
  if lacking:
    names = [name for name in own
             if not name.startswith('uima.') and not STRUCTURE.fullmatch(name)]
    there = ', '.join(names[:_NAMED]) + ', ...' * (len(names) > _NAMED)
    raise InputError(f'{path}:1: its type system lacks {", ".join(map(repr, lacking))}, which the '
                     f'mapping names; it has {there or "no types of its own"}')


def last_part(name: str) -> str:
  """A type's name without its package."""
  return name.rpartition('.')[2]
