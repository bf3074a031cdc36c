"""The memory of a note that is being written: no fact is told twice in two ways."""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from fedmedjax.data.synthetic import vocabulary
from fedmedjax.data.synthetic.patients import ROLES, Item, Patient
from fedmedjax.data.synthetic.vocabulary import Entry

# Roles whose names come once in a note; others may come back in another section.
_ONCE = ('drip', 'proc', 'comp', 'img', 'clear', 'order', 'ddx', 'psh', 'ruled', 'fh')
_DOSAGE = re.compile(r'/hr|/min|units|puff|spray|tablet')
_NUMERIC = re.compile(r'[\d.]+-[\d.]+')


class Missing(Exception):
  """The patient, or an entry, lacks an entity or modifier that a frame asks for."""


class Mention(NamedTuple):
  """An entity in the words of a sentence."""

  entry: Entry
  surface: str
  item: Item
  role: str  # '' where the frame itself has the words; 'rx>' for a partner


class Note:
  """One patient, one style, and a memory that the sentences of a note share."""

  def __init__(self, patient: Patient, style: dict, site: str, split: str, rng: random.Random):
    self.patient, self.style, self.site, self.split, self.rng = patient, style, site, split, rng
    self.facts = {}  # (entry, attribute) -> words
    self.section = set()  # keys used in this section
    self.spent = set()  # keys of _ONCE roles used in this note
    self.mentioned = set()  # keys of any role
    self.gone = set()  # drugs, tests, treatments that were stopped or not done
    self.unique = False  # in this section a problem comes once, also as a partner
    self.systems = set()  # organ systems that have had their line

  def pick(self, role: str, taken: set[str]) -> Mention:
    """Draws an entity of the role that the note has not used up and `taken` does not hold."""
    closed = taken | self.section | self.gone | (self.spent if role in _ONCE else set())
    free = [item for item in self.patient.roles[role]
            if item.key not in closed and self._surfaces(ROLES[role][0], item)]
    if not free:
      raise Missing(role)
    # Vital signs are read off in their usual order.
    item = free[0] if role == 'vital' else self.rng.choice(free)
    return self._mention(ROLES[role][0], item, role)

  def partner(self, mention: Mention, taken: set[str]) -> Mention:
    """Draws a partner of a mention: the problem that the drug is for, or that the study shows."""
    kind = ROLES[mention.role][1]
    if self.unique:
      taken = taken | self.section
    free = [item for item in mention.item.partners
            if item.key not in taken and self._surfaces(kind, item)]
    if not free:
      raise Missing(mention.role)
    return self._mention(kind, self.rng.choice(free), mention.role + '>')

  def commit(self, mentions: list[Mention], denied: list[Mention]) -> None:
    """Remembers the entities that a finished sentence mentioned, and those that it denied."""
    gone = {mention.entry.key for mention in denied
            if mention.entry.type != 'problem' and mention.role != 'held'}
    if gone & self.mentioned:
      raise Missing('a thing to deny that the note has not affirmed')
    self.gone |= gone
    for mention in mentions:
      self.mentioned.add(mention.entry.key)
      self.section.add(mention.entry.key)
      if mention.role in _ONCE:
        self.spent.add(mention.entry.key)

  def attribute(self, mention: Mention, name: str) -> str:
    """The words of a modifier; the same for an entity throughout the note."""
    fact = (mention.entry.key, name)
    if fact not in self.facts:
      options = list(self._options(mention, name))
      if not options:
        raise Missing(f'{mention.entry.key}.{name}')
      self.facts[fact] = self.rng.choice(options)
    return self.facts[fact]

  def _surfaces(self, kind: str, item: Item) -> tuple[str, ...]:
    """The words that this note may use for an item."""
    return vocabulary.surfaces(
      kind, item.key, self.site, self.split, self.style['abbreviations'] > 0)

  def _mention(self, kind: str, item: Item, role: str) -> Mention:
    """A mention of an item in random words, abbreviated as often as the style wants."""
    words = self._surfaces(kind, item)
    short = [word for word in words if vocabulary.brief(word)]
    if short and self.rng.random() < self.style['abbreviations']:
      words = short
    return Mention(vocabulary.entries()[kind, item.key], self.rng.choice(words), item, role)

  def _options(self, mention: Mention, name: str) -> Iterator[str]:
    """Yields the words that may be the modifier `name` of a mention."""
    entry, style = mention.entry, self.style
    if name == 'place':
      own = self.patient.places.get(entry.key)
      yield from (own,) if own else entry.places
    elif name in ('bodyloc', 'in'):
      # 'in' wants a noun phrase ("in the right hip"), marked with a star.
      place = self.attribute(mention, 'place')
      if name == 'bodyloc' or place.endswith('*'):
        yield place.rstrip('*')
    elif name == 'condition':
      yield from entry.conditions
    elif name == 'severity' and entry.graded:
      yield from style[name]
    elif name == 'course' and entry.graded:
      yield from style[name][self._pace()]
    elif name == 'temporal':
      times = style['temporal'].get(mention.role, ())
      yield from times[self._pace()] if mention.role == 'sx' else times
    elif name == 'subject':
      yield from self._relatives(entry)
    elif entry.type == 'drug':
      yield from self._drug_options(mention, name)
    elif entry.type == 'test':
      yield from self._test_options(mention, name)

  def _pace(self) -> str:
    return next(pace for pace in ('sudden', 'acute', 'chronic') if pace in self.patient.traits)

  def _relatives(self, entry: Entry) -> Iterator[str]:
    told = {words for (_, name), words in self.facts.items() if name == 'subject'}
    for sex, relatives in self.style['relatives'].items():
      other = vocabulary.read('common')['sex']['M' if sex == 'F' else 'F']
      if entry.key not in vocabulary.split(other, ','):
        yield from (relative for relative in relatives if relative not in told)

  def _drug_options(self, mention: Mention, name: str) -> Iterator[str]:
    entry, style = mention.entry, self.style
    rates = any(map(_DOSAGE.search, entry.amounts))
    if name == 'amount' or name == ('dosage' if rates else 'strength'):
      yield from entry.amounts if name == 'amount' else [self.attribute(mention, 'amount')]
    elif name in ('dosage', 'form'):
      yield from style[name].get(entry.codes[0], ())
    elif name in ('route', 'frequency'):
      yield from style[name].get(entry.codes[1 if name == 'route' else 2], ())
    elif name == 'duration':
      for code in entry.durations:
        yield from style['duration'][code]

  def _test_options(self, mention: Mention, name: str) -> Iterator[str]:
    entry, sign = mention.entry, mention.item.direction
    values, unit = dict(entry.values), entry.unit
    if name == 'word' and (sign == '=' and values or _NUMERIC.match(values.get(sign, ''))):
      yield from self.style['word'][sign]
    elif name == 'range' and _NUMERIC.fullmatch(values.get('=', '')):
      if not re.search('scor|scal', entry.key):  # no one prints the range of a score
        yield values['=']
    elif name == 'value' and sign in values or name == 'better' and sign != '=':
      text = _sample(values[sign], self.rng)
      if name == 'better':
        text = _towards(self.attribute(mention, 'value'), values['='], self.rng)
      # All values of a test have their unit, or none has.
      chance = self.facts.setdefault((entry.key, 'unit'), self.rng.random())
      if unit and text[0].isdigit() and chance < self.style['units']:
        text += unit if unit == '%' else f' {unit}'
      yield text


def is_dosage(amount: str) -> bool:
  """An amount to take or a rate is a dosage; an amount of substance is a strength."""
  return bool(_DOSAGE.search(amount))


def _towards(value: str, normal: str, rng: random.Random) -> str:
  """A value between a pathological one and the normal range: nobody recovers overnight."""
  number = re.match(r'[\d.]+(?![\d/])', value)
  if not number or not _NUMERIC.fullmatch(normal):
    raise Missing('a value that improves')
  low, high = map(float, normal.split('-'))
  start = float(number[0])
  end = start + rng.uniform(0.3, 0.7) * (min(max(start, low), high) - start)
  return f'{end:.{len(number[0].partition(".")[2])}f}'


def _sample(values: str, rng: random.Random) -> str:
  """A random value of a range 'low-high', 'low-high/low-high' or of choices 'words;words'."""
  drawn = []
  for span in values.split('/'):
    if not _NUMERIC.fullmatch(span):
      return rng.choice(values.split(';'))
    low, high = span.split('-')
    drawn.append(f'{rng.uniform(float(low), float(high)):.{len(low.partition(".")[2])}f}')
  return '/'.join(drawn)
