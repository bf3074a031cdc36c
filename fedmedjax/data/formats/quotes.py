"""Annotations as files state them, and the rule that explains the offsets of a file."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from fedmedjax.data.formats.files import Layout, Unit
from fedmedjax.data.formats.offset_rules import PLAIN, Rule, Ruler
from fedmedjax.data.formats.quoted_words import folded, occurrences, spaced
from fedmedjax.types import Document

# Up to this share of annotations may disagree with the rule that places the others.
SHARE = 0.1
# Places of a word that are looked at for a shift; rarer words tell shifts apart.
_MOST = 50
# Quotes that a rule must explain before it is one of annotations that quote nothing.
_SHOWN = 3

Pieces = tuple[tuple[int, int], ...]  # ranges of offsets; () where there is no such place


class Quote(NamedTuple):
  """An annotation as its file states it."""

  place: tuple   # file, line and id, for messages
  pieces: Pieces
  words: str     # '' where the file quotes none
  home: int = 0  # the unit that holds it


class Draft(NamedTuple):
  """A document whose spans have their types, but places that nobody has looked at."""

  document: Document
  quotes: tuple[Quote, ...]  # one a span
  layout: Layout
  # Other ways to read the stated places: (`Rule.reading`, pieces of each quote).
  readings: Callable[[], Sequence[tuple[str, Sequence[Pieces]]]] = tuple


def as_one_unit(text: str) -> Layout:
  """The layout of a text whose offsets begin at 0."""
  return Layout((Unit(0, text),), (0,), text)


def straight(draft: Draft) -> list[tuple[int, int]] | None:
  """The ranges of all spans, where each states characters of one text and the words there.

  That is how nearly all files are, and takes a third of the time that `Evidence` takes.
  """
  text, ranges = draft.layout.text, []
  if draft.layout.units != ((0, text),):
    return None
  for _, pieces, words, _ in draft.quotes:
    if not pieces or not all(0 <= start < end <= len(text) for start, end in pieces):
      return None
    actual = ' '.join([text[start:end] for start, end in pieces])
    if actual != words and (not words.strip() or spaced(actual) != spaced(words)):
      return None
    ranges.append((min(pieces)[0], max(end for _, end in pieces)))
  return ranges


class Evidence:
  """A draft and what rules make of its quotes, computed when it is asked for.

  Args:
    draft: a document.
    rules: that are tried, those of fewest reasons first; the first takes offsets as they are.
  """

  def __init__(self, draft: Draft, rules: Sequence[Rule]):
    self.draft, self.rules = draft, rules
    self.straight = straight(draft)
    self._rulers: dict[Rule, Ruler] = {}
    self._readings: dict[str, Sequence[Pieces]] | None = None
    self._standing: dict[int, list[tuple[int, int]]] = {}
    self._ranges: dict[tuple[int, Rule], Pieces] = {}
    self._scores: dict[tuple, int] = {}

  @cached_property
  def words(self) -> list[str]:
    """The words of each quote, as they are compared."""
    return [folded(quote.words) for quote in self.draft.quotes]

  def readings(self) -> dict[str, Sequence[Pieces]]:
    """Pieces of each quote, by reading; '' is as they are stated."""
    if self._readings is None:
      stated = [quote.pieces for quote in self.draft.quotes]
      self._readings = {'': stated, **dict(self.draft.readings())}
      if len(self.rules) > 1:  # ends are characters: of the last one, or lengths
        self._readings |= {
          'offsets_of_ends:1': [tuple((first, last + 1) for first, last in one) for one in stated],
          'offsets_of_ends:2': [tuple((at, at + length) for at, length in one) for one in stated]}
    return self._readings

  def ruler(self, rule: Rule) -> Ruler:
    """The document's text measured by a rule."""
    key = rule._replace(reading='')
    if key not in self._rulers:
      self._rulers[key] = Ruler(self.draft.layout, key)
    return self._rulers[key]

  def ranges(self, i: int, rule: Rule) -> Pieces:
    """The characters of the pieces of quote number i; () unless each piece has a place."""
    if (i, rule) not in self._ranges:
      quote, ruler = self.draft.quotes[i], self.ruler(rule)
      pieces = self.readings()[rule.reading][i] if rule.reading else quote.pieces
      # A piece without a character adds nothing to others.
      found = [ruler.range_of(*piece, quote.home) for piece in pieces
               if len(pieces) == 1 or piece[0] != piece[1]]
      self._ranges[i, rule] = () if None in found else tuple(found)
    return self._ranges[i, rule]

  def agrees(self, i: int, rule: Rule) -> bool:
    """Whether the words that quote number i has stand where a rule places it."""
    found = self.ranges(i, rule)
    return bool(found) and bool(self.words[i]) and self.words[i] == folded(
      ' '.join(self.draft.layout.text[start:end] for start, end in found))

  def explained(self, rule: Rule) -> bool:
    """Whether all quoted words stand where a rule places them."""
    return all(self.agrees(i, rule) for i, words in enumerate(self.words) if words)

  def standing(self, i: int) -> list[tuple[int, int]]:
    """The ranges of the text in which the words of quote number i stand."""
    if i not in self._standing:
      self._standing[i] = occurrences(self.draft.layout.text, self.draft.quotes[i].words)
    return self._standing[i]

  def known(self) -> list[int]:
    """The quotes whose words the text has: what rules are judged by."""
    return [i for i, words in enumerate(self.words) if words and self.standing(i)]

  def score(self, rule: Rule) -> int:
    """How many of the known quotes a rule places at their words."""
    key = rule.reading, rule.shift, self.ruler(rule).key
    if key not in self._scores:  # rules may measure a text alike
      self._scores[key] = sum(self.agrees(i, rule) for i in self.known())
    return self._scores[key]

  def best(self) -> list[Rule]:
    """The rules that explain most quotes, if that is nearly all whose words the text has.

    Rules of more reasons are tried only where those of fewer leave something open, and those with
    a shift after the others.
    """
    plain, known = self.rules[0], len(self.known())
    levels: dict[int, list[Rule]] = {}
    for rule in (rule._replace(reading=reading) for reading in self.readings()
                 for rule in self.rules):
      levels.setdefault(len(rule.reasons()), []).append(rule)
    tried, most = [], 0
    for level in sorted(levels):
      tried += levels[level]
      most = max(map(self.score, tried))
      # A format that states words and lines, with one rule only, has no shift in characters.
      if level and most < known and len(self.rules) > 1:
        tried += [shifted for rule in levels[level - 1] for shifted in self._shifts(rule)]
        most = max(map(self.score, tried))
      if most == known or level and self.score(plain) == most >= (1 - SHARE) * known:
        break
    return [rule for rule in tried if self.score(rule) == most >= (1 - SHARE) * known]

  def _shifts(self, rule: Rule) -> list[Rule]:
    """The rule with the two shifts that most quotes ask for, if these are nearly all."""
    ruler, pieces, votes = self.ruler(rule), self.readings()[rule.reading], Counter()
    for i in self.known():
      if pieces[i]:
        votes.update({ruler.offset_of(start) - pieces[i][0][0]
                      for start, _ in self.standing(i)[:_MOST]} - {0})
    return [rule._replace(shift=shift) for shift, many in votes.most_common(2)
            if many >= (1 - SHARE) * len(self.known())]


def choose_rules(documents: Sequence[Evidence]) -> list[Rule]:
  """The rule of each document of a file: of those that explain it, what explains most others."""
  found = [None if one.straight is not None or one.explained(one.rules[0]) else one.best()
           for one in documents]
  many = Counter(rule for rules in found for rule in rules or ())
  order = {rule: (-count, len(rule.reasons())) for rule, count in many.items()}
  common = min(order, key=order.__getitem__, default=PLAIN)
  # What explains the whole file holds for annotations, too, that quote nothing.
  shown = sum(one.score(common) for one, rules in zip(documents, found, strict=True) if rules)
  if common != PLAIN and shown >= _SHOWN and all(
      one.explained(common) if rules is None else one.score(common) >= max(map(one.score, rules))
      if rules else False for one, rules in zip(documents, found, strict=True)):
    return [common] * len(documents)
  return [one.rules[0] if not rules else _choice(one, rules, order, common)
          for one, rules in zip(documents, found, strict=True)]


def _choice(one: Evidence, rules: Sequence[Rule], order, common: Rule) -> Rule:
  """The rule of a document that has several: `common`, if it explains as much."""
  if one.score(common) >= one.score(rules[0]):
    return common
  rule = min(rules, key=order.__getitem__)
  twins = [other for other in rules if order[other] == order[rule]
           and other != rule and other._replace(shift=rule.shift) == rule]
  # Of two shifts nothing tells which.
  return one.rules[0] if twins else rule
