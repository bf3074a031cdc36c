"""Relations between concepts: the mentions that the ids of a relation's ends stand for.

Corpora of PubMed name concepts in a mention and in a relation, in many spellings: 'D003967',
'MESH:D003967', lists ('D001943,D010051', with any of , ; | +), variants as tmVar writes them
('c|SUB|G|12|A', of which the bars belong to one id), and the type with the id
('Disease|MESH:D003967').
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

# Lists are apart by these; bars and plus signs are also part of a variant's id.
_LISTED = re.compile(r'\s*[,;]\s*')
_JOINED = re.compile(r'\s*[|+]\s*')
_VARIANT = re.compile(r'(?:tmVar:)?[A-Za-z]?\|[A-Z][A-Za-z]+\|.*', re.DOTALL)
_SPACE = re.compile(r'(?:MESH|OMIM|tmVar|NCBI ?Gene|Gene|Taxonomy|CVCL)\s*:\s*', re.IGNORECASE)
_NONE = ('', '-', '-1', 'None')  # of a mention without a concept


class Concepts(NamedTuple):
  """The mentions of a document by the ids of their concepts; empty at first."""

  numbers: dict[str, list[int]]  # id -> its mentions, in the order of the document
  kinds: dict[int, str]          # mention -> its type

  def enter(self, ids: str, kind: str, number: int) -> None:
    """Enters mention `number`, of type `kind`, under each of its ids."""
    self.kinds[number] = kind.casefold()
    for name in dict.fromkeys(map(_bare, _ids(ids))):
      self.numbers.setdefault(name, []).append(number)

  def mentions(self, ident: str) -> list[int]:
    """The mentions of the concept that a relation's end names; of 'Type|ID' those of this type."""
    ident = ident.strip()
    if (found := self._named(ident)) or _VARIANT.fullmatch(ident):
      return found
    kind, _, rest = ident.partition('|')
    found = next(filter(None, map(self._named, _ids(rest))), [])
    alike = [number for number in found if self.kinds[number] == kind.strip().casefold()]
    return alike or found or next(filter(None, map(self._named, _ids(ident))), [])

  def link(self, head: str, tail: str) -> tuple[int, int] | None:
    """The first mentions of two concepts, or None where one has none.

    A mention that names both concepts does not stand at both ends: that would be an attribute.
    """
    heads, tails = self.mentions(head), self.mentions(tail)
    return next(((first, second) for first in heads for second in tails if first != second), None)

  def _named(self, ident: str) -> list[int]:
    """The mentions under one id, however it is spelt."""
    return self.numbers.get(_bare(ident), [])


def _ids(listed: str) -> Iterator[str]:
  """The ids of a list, the whole of it first."""
  listed = listed.strip()
  if listed not in _NONE:
    yield listed
  for part in _LISTED.split(listed):
    for one in [part] if _VARIANT.fullmatch(part) else _JOINED.split(part):
      if one not in _NONE and one != listed:
        yield one


def _bare(ident: str) -> str:
  """An id without the vocabulary in front of it ('MESH:'), which some corpora leave out."""
  return ident[place.end():] if (place := _SPACE.match(ident)) else ident
