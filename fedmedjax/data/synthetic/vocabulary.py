"""The words of the invented cohorts, read from the TOML files beside this module.

An entry is one concept with every surface that may stand for it. Which of them a note may use
depends on its site (each has its dialect) and on its split: about 30 % of all surfaces are held
out of every training note of every site, so that a test asks for entities never seen.
"""

import functools
import re
import tomllib
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_BRIEF = re.compile('[A-Z]{2}|^[A-Z][a-z]{1,3}$|[a-z][A-Z]')


class Entry(NamedTuple):
  """A concept: its names, and the modifiers that it may have."""

  key: str
  type: str
  surfaces: tuple[str, ...]
  countable: bool = False
  graded: bool = False  # whether it may have severity and course
  system: str = ''  # problems: organ system
  places: tuple[str, ...] = ()  # problems: body locations
  conditions: tuple[str, ...] = ()  # problems
  amounts: tuple[str, ...] = ()  # drugs
  codes: tuple[str, ...] = ()  # drugs: form, route, frequency
  durations: tuple[str, ...] = ()  # drugs
  unit: str = ''  # tests
  values: tuple[tuple[str, str], ...] = ()  # tests: ('=' normal | '-' low | '+' high, range)


@functools.cache
def read(name: str) -> dict:
  """Returns the content of one of the TOML files beside this module."""
  with open(Path(__file__).parent / f'{name}.toml', 'rb') as file:
    return tomllib.load(file)


def held_out(surface: str) -> bool:
  """True for the about 30 % of surfaces that no training note of any site contains."""
  return zlib.crc32(surface.lower().encode()) % 100 < 30


def brief(surface: str) -> bool:
  """True for an abbreviation, or a surface with one inside."""
  return bool(_BRIEF.search(surface))


@functools.cache
def surfaces(kind: str, key: str, site: str, split: str, short: bool) -> tuple[str, ...]:
  """The names that a site's notes use for an entry: its dialect, in training less held-out names.

  Args:
    kind, key: of the entry.
    site: whose dialect it is.
    split: 'train' or 'test'.
    short: abbreviations are allowed; where False they are used only if there is nothing else.
  """
  words = entries()[kind, key].surfaces
  if not short:
    words = [word for word in words if not brief(word)] or words
  dialect = [word for word in words if zlib.crc32(f'{site}:{word}'.encode()) % 100 < 60]
  for choice in (dialect, words):
    kept = tuple(word for word in choice if split == 'test' or not held_out(word))
    if kept:
      return kept
  return ()


@functools.cache
def entries() -> dict[tuple[str, str], Entry]:
  """Returns all entries by (type, key)."""
  everything = [*_problems(), *_tests(), *_drugs(), *_treatments()]
  table = {(entry.type, entry.key): entry for entry in everything}
  if len(table) < len(everything):
    raise ValueError('an entry is written twice')
  return table


def split(text: str, mark: str) -> list[str]:
  """The pieces of a text between marks, without blanks at their edges."""
  return [piece.strip() for piece in text.split(mark)]


def _lines(block: str, mark: str) -> list[list[str]]:
  return [split(line, mark) for line in block.strip().splitlines()]


def _problems() -> Iterable[Entry]:
  for system, block in read('problems').items():
    for line in block.strip().splitlines():
      line, _, conditions = line.partition('?')
      line, _, places = line.partition('@')
      graded, article, names = re.match(r'(\+ )?(an? )?(.*)', line).groups()
      names = split(names, ' / ')
      yield Entry(
        names[0], 'problem', tuple(names), bool(article), bool(graded), system,
        tuple(split(places, ',')) if places else (),
        tuple(split(conditions, ',')) if conditions else ())


def _tests() -> Iterable[Entry]:
  tables = read('tests')
  for line in _lines(tables['vitals'], '|') + _lines(tables['labs'], '|'):
    names, unit, *ranges = line
    key, *synonyms = split(names, ' / ')
    values = tuple((sign, text) for sign, text in zip('=-+', ranges, strict=False) if text)
    yield Entry(key, 'test', _without_key(key, synonyms), unit=unit, values=values)
  for names in _lines(tables['studies'], ' / '):
    yield Entry(names[0], 'test', tuple(names), countable=True)


def _drugs() -> Iterable[Entry]:
  for group, block in read('drugs').items():
    form, route, frequency = group.split()
    for names, amounts, *durations in _lines(block, '|'):
      key, *synonyms = split(names, ' / ')
      yield Entry(
        key, 'drug', _without_key(key, synonyms), amounts=tuple(re.split(r',\s+', amounts)),
        codes=(form, route, frequency),
        durations=tuple(split(durations[0], ',')) if durations else ())


def _treatments() -> Iterable[Entry]:
  for names in _lines(read('treatments')['entries'], ' / '):
    yield Entry(names[0], 'treatment', tuple(names))


def _without_key(key: str, synonyms: list[str]) -> tuple[str, ...]:
  # "vancomycin:iv" tells two entries of one surface apart and is not itself a surface.
  return tuple(synonyms) if ':' in key else (key, *synonyms)
