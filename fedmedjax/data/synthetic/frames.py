"""Sentence frames: a small grammar for sentences and their annotation.

  (a|b)            one of these; parentheses without a bar are plain text
  [text]           may be left out
  {sx} {rx2}       an entity of the patient's role; a digit tells several of one role apart
  {rx>} {img>2}    a partner of it: the problem that the drug is for, or that the study shows
  {n=test:ECG}     an entity in these very words
  {sx.severity}    a modifier of that entity, as its entry, the patient or the style has it
  {neg,neg2.negation=denies}   a modifier in these words, of all the entities named
  {a} {a:sx} {is:sx} {was:sx} {has:sx} {s:sx}   article, verb forms that agree with an entity
  {sys:sx}         organ system of a problem, once a note
  {flag:lab}       H or L of a test's value, if that is not normal
  {place:proc}     the body location of a treatment, which the schema has no modifier for
  {new:rx} {ongoing:rx}   nothing, but the note has not named it, or it is not given once
  {age} {he} ...   a plain word of the patient

A frame that asks for an entity or modifier that this patient or entry does not have yields no
sentence, and the caller tries another.
"""

import random
import re
from typing import NamedTuple

from fedmedjax.data.synthetic.note import Mention, Missing, Note, is_dosage
from fedmedjax.data.synthetic.patients import ROLES, Item
from fedmedjax.data.synthetic.vocabulary import Entry
from fedmedjax.types import MODIFIER_TYPES, Relation, Span

_OPTION = re.compile(r'\[([^\[\]]*)\]')
_CHOICE = re.compile(r'\(([^()]*\|[^()]*)\)')
_SLOT = re.compile(r'\{([^{}]*)\}')
_PARTS = re.compile(r'(?P<names>[a-z0-9>,]+)'
                    r'(?:\.(?P<attribute>[a-z]+))?(?:=(?:(?P<type>[a-z]+):)?(?P<words>.*))?')
_NAME = re.compile(r'(?P<parent>(?P<role>[a-z]+)\d?)(?P<partner>>\d?)?')
# Attributes that are not named after the modifier type they produce.
_TYPE_OF = {'value': 'labvalue', 'better': 'labvalue', 'word': 'labvalue', 'in': 'bodyloc',
            'range': 'reference_range'}
_AGREE = {'is': ('is', 'are'), 'was': ('was', 'were'), 'has': ('has', 'have'), 's': ('s', '')}
_FLAGS = {'+': 'H', '-': 'L'}


class Sentence(NamedTuple):
  """A sentence: its text, its spans, and relations by index into the spans."""

  text: str
  spans: list[Span]
  relations: list[Relation]


def expand(frame: str, rng: random.Random) -> str:
  """The frame after random choices of its options and alternatives, from the inside out."""
  while True:
    new = _OPTION.sub(lambda match: rng.choice((match[1], '')), frame)
    new = _CHOICE.sub(lambda match: rng.choice(match[1].split('|')), new)
    if new == frame:
      return frame
    frame = new


def render(frame: str, note: Note) -> Sentence:
  """Writes one sentence of a note.

  Raises:
    Missing: the patient or an entry lacks something that the frame, as expanded, needs.
    ValueError: the frame is wrong for every patient.
  """
  draft = _Draft(note)
  for index, piece in enumerate(_SLOT.split(expand(frame, note.rng))):
    if index % 2 == 0:
      draft.add(piece)
    elif piece == 'a':
      draft.article = True
    elif piece in note.patient.words:
      draft.add(note.patient.words[piece])
    elif re.match('[a-z]+:', piece):
      draft.agree(*piece.split(':'))
    else:
      parts = _PARTS.fullmatch(piece)
      if not parts:
        raise ValueError(f'{piece!r} in frame {frame!r}')
      names = parts['names'].split(',')
      if parts['attribute']:
        draft.modify(names, parts['attribute'], parts['words'])
      else:
        draft.place(names[0], parts['type'], parts['words'])
  try:
    return draft.finish()
  except KeyError as name:
    raise ValueError(f'{name} is modified but not mentioned in frame {frame!r}') from None


class _Draft:
  """A sentence that is being written, without double blanks and with articles that fit."""

  def __init__(self, note: Note):
    self.note = note
    self.text = ''
    self.article = False  # one is due before the next words
    self.chosen: dict[str, Mention] = {}
    self.spans: list[Span] = []
    self.at: dict[str, int] = {}  # slot -> index of its span
    self.links: list[tuple[str, str, int]] = []  # modifier type, slot, index of its span
    self.systems: set[str] = set()

  def add(self, text: str) -> tuple[int, int]:
    """Appends text -> its range in the sentence."""
    text = re.sub(' +', ' ', text)  # what was left out leaves its blanks
    if self.note.style['capitals']:  # only the tokenised style has a blank before a comma
      text = re.sub(' +(?=[,;:])', '', text)
      if text[:1] in tuple(',;:'):
        self.text = self.text.rstrip(' ')
    if self.article or self.text[-1:] in ('', ' '):
      text = text.lstrip(' ')
    if self.article and text:
      self.text += f'{article(text)} '
      self.article = False
    self.text += text
    return len(self.text) - len(text), len(self.text)

  def mention(self, name: str) -> Mention:
    """The entity of a slot, drawn when the frame first asks for it."""
    if name not in self.chosen:
      slot = _NAME.fullmatch(name)
      if not slot or slot['role'] not in ROLES:
        raise ValueError(f'no such slot: {name!r}')
      taken = {mention.entry.key for mention in self.chosen.values()}
      if slot['partner']:
        self.chosen[name] = self.note.partner(self.mention(slot['parent']), taken)
      else:
        self.chosen[name] = self.note.pick(slot['role'], taken)
    return self.chosen[name]

  def place(self, name: str, kind: str | None, words: str | None) -> None:
    """Appends the entity of a slot, in the frame's own words where it has them."""
    if words:
      self.chosen[name] = Mention(Entry(words, kind, (words,)), words, Item(words), '')
    mention = self.mention(name)
    if name in self.at:
      raise ValueError(f'{name!r} is mentioned twice')
    self.at[name] = len(self.spans)
    self.spans.append(Span(*self.add(mention.surface), mention.entry.type))

  def modify(self, names: list[str], attribute: str, words: str | None) -> None:
    """Appends a modifier of the entities of some slots."""
    mentions = [self.mention(name) for name in names]
    if words is None:
      words = self.note.attribute(mentions[0], attribute)
    kind = _TYPE_OF.get(attribute, attribute)
    if attribute == 'amount':
      kind = 'dosage' if is_dosage(words) else 'strength'
    if any(kind not in MODIFIER_TYPES[mention.entry.type] for mention in mentions):
      raise ValueError(f'{kind!r} is no modifier of {names}')
    if words:
      self.links += [(kind, name, len(self.spans)) for name in names]
      self.spans.append(Span(*self.add(words), kind))

  def agree(self, what: str, name: str) -> None:
    """Appends words that depend on an entity, such as a verb, or raises Missing."""
    mention = self.mention(name)
    if what == 'a':
      self.article = mention.entry.countable and not plural(mention.surface)
    elif what == 'sys':
      if not mention.entry.system or mention.entry.system in self.note.systems:
        raise Missing('system')
      self.systems.add(mention.entry.system)
      self.add(mention.entry.system)
    elif what == 'flag':
      if mention.item.direction == '=':
        raise Missing('a value out of range')
      self.add(_FLAGS[mention.item.direction])
    elif what == 'place':
      self.add(self.note.patient.places.get(mention.entry.key, '').rstrip('*'))
    elif what == 'new':
      if mention.entry.key in self.note.mentioned:
        raise Missing('a drug that the note has not named')
    elif what == 'ongoing':
      if 'once' in mention.entry.codes:
        raise Missing('a drug that goes on')
    else:
      self.add(_AGREE[what][plural(mention.surface)])

  def finish(self) -> Sentence:
    """The sentence; the note remembers its entities."""
    relations = [Relation(kind, self.at[name], tail) for kind, name, tail in self.links]
    text = self.text.rstrip()
    # Sentences begin with a capital, but pH and tPA stay as they are.
    if self.note.style['capitals'] and re.match(r'[a-z]+\b(?![A-Z])', text):
      text = text[0].upper() + text[1:]
    self.note.commit([self.chosen[name] for name in self.at],
                     [self.chosen[name] for kind, name, _ in self.links if kind == 'negation'])
    self.note.systems |= self.systems
    return Sentence(text, self.spans, relations)


def article(text: str) -> str:
  """'a' or 'an', by the sound of the word that follows."""
  word = re.match(r'\w*', text)[0]
  if word[:1].isdigit():
    return 'an' if re.match(r'8|1[18](?!\d)', word) else 'a'
  if re.match(r'[A-Z](?![a-z])', word) and not re.match('HIDA|MICU|NICU|SIRS|STEMI', word):
    return 'an' if word[0] in 'AEFHILMNORSX' else 'a'
  if re.match(r'(?i)u(?:ni(?!n)|se|su|ro|te|ti|re|ri)|eu|one', word):
    return 'a'
  return 'an' if word[:1].lower() in tuple('aeiou') or word.startswith('hour') else 'a'


def plural(surface: str) -> bool:
  """True where a surface takes a verb in the plural."""
  head = re.split(r' (?:of|to|in|with|on|for|per|by) ', surface)[0].split()[-1]
  if head.isupper() or surface.startswith('CT '):
    return False
  return bool(re.search(r'(?:s|ae|i)$', head)
              and not re.search(r'(?:is|us|ss|tes|mens|cans|scabies)$', head))
