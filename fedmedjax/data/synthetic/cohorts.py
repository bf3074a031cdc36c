"""Five invented clinical cohorts, so that everything can be tried without real notes.

Every note is written here: patients, words and sentence frames are our own (the files beside this
one), no text comes from any corpus, and there are no names, dates or places.

  synthetic_icu        in-domain: telegraphic intensive care notes, the largest site
  synthetic_dictation  in-domain: transcribed consultations in full sentences
  synthetic_clinic     in-domain: outpatient SOAP notes; 'treatment' is NOT annotated there
  synthetic_external   discharge summaries, lower case, tokens apart; meant never to be trained on
  synthetic_newsite    templated record with some free text; a site with few notes

They differ in style, scenarios, dialect (which synonym a site uses), entity mix, sentence length,
size and annotated types. They agree on the definition of an entity:

  The bare noun phrase, without article and without the words of its modifiers: severity,
  course, body location, negation, amounts. An adjective that names another condition stays
  ('acute kidney injury', 'type 2 diabetes'), and so does a place in a fixed term ('chest pain').
  drug is a medication by name; treatment a procedure, device, therapy or diet; test anything
  measured, imaged, examined or cultured, biopsies and endoscopies included.
  strength is an amount of substance ('25 mg'), dosage an amount to take or a rate ('2 puffs').
  One modifier span may belong to several entities ('denies chest pain or fever').

About 30 % of all entity surfaces occur in test notes only, of no matter which site.
"""

import contextlib
import functools
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedmedjax.data.synthetic.frames import Sentence, render
from fedmedjax.data.synthetic.note import Missing, Note
from fedmedjax.data.synthetic.patients import make_patient, scenarios
from fedmedjax.data.synthetic.vocabulary import held_out, read
from fedmedjax.types import (
  ENTITY_TYPES,
  MODIFIER_TYPES,
  Document,
  InputError,
  Relation,
  SiteCorpus,
  Span,
)

_PREFIX = re.compile(r'(?:#(\w+) )?((?:[+-]\w+ )*)(.*)')


class Cohort(NamedTuple):
  """The size and style of a cohort; `style` names its file of frames and selects its scenarios."""

  style: str
  train_notes: int
  test_notes: int
  types: tuple[str, ...] = ENTITY_TYPES


COHORTS = {
  'synthetic_icu': Cohort('icu', 36, 7),
  'synthetic_dictation': Cohort('dictation', 14, 5),
  'synthetic_clinic': Cohort('clinic', 12, 6, ('problem', 'test', 'drug')),
  'synthetic_external': Cohort('external', 0, 5),
  'synthetic_newsite': Cohort('newsite', 8, 5),
}


def generate_cohort(
  name: str, seed: int = 42, train_notes: int | None = None, test_notes: int | None = None
) -> SiteCorpus:
  """Writes the notes of an invented cohort.

  Note i of a split is a function of (name, seed, split, i): asking for more notes, or for other
  cohorts, changes nothing about it.

  Args:
    name: one of `COHORTS`.
    seed: of the whole cohort. The held-out surfaces do not depend on it.
    train_notes: number of training notes; by default the cohort's own, 0 for the external one.
    test_notes: number of test notes; by default the cohort's own.

  Returns:
    The corpus. In its report, `unseen_test_entities_percent` counts test mentions that are no
    entity of this cohort's training notes, `held_out_test_entities_percent` those that are none
    of any cohort's, whatever the seed.
  """
  if name not in COHORTS:
    raise InputError(f'invented cohort {name!r} is not one of {", ".join(COHORTS)}')
  cohort = COHORTS[name]
  counts = {'train': cohort.train_notes if train_notes is None else train_notes,
            'test': cohort.test_notes if test_notes is None else test_notes}
  train, test = (
    tuple(_write_note(name, split, seed, i) for i in range(count))
    for split, count in counts.items())
  mentions = _entities(test)
  held_out_mentions = sum(held_out(text) for _, text in mentions)
  report = {
    'documents': len(train) + len(test),
    'entities': len(_entities(train)) + len(mentions),
    'relations': sum(len(document.relations) for document in train + test),
    'unseen_test_entities_percent': round(100 * unseen_share(train, test)['all']),
    'held_out_test_entities_percent': round(
      100 * held_out_mentions / max(len(mentions), 1)),
  }
  return SiteCorpus(
    name, cohort.types, train, test, report, {kind: MODIFIER_TYPES[kind] for kind in cohort.types})


def unseen_share(train: Iterable[Document], test: Iterable[Document]) -> dict[str, float]:
  """Share of test entities whose lower-cased string is no entity of training, by type and 'all'."""
  seen = {text for _, text in _entities(train)}
  new, total = Counter(), Counter()
  for kind, text in _entities(test):
    for key in (kind, 'all'):
      total[key] += 1
      new[key] += text not in seen
  return {key: new[key] / total[key] for key in total} or {'all': 0.0}


def _entities(documents: Iterable[Document]) -> list[tuple[str, str]]:
  """(type, lower-cased text) of every entity."""
  return [(span.type, document.text[span.start:span.end].lower())
          for document in documents for span in document.spans if span.type in ENTITY_TYPES]


@functools.cache
def _style(name: str) -> dict:
  """The content of a style's file, with words of its family of styles where it has none itself."""
  style = read(f'style_{name}')
  return read('words')[style['words']] | style


# Studies of one seed ask for the same notes again and again.
@functools.lru_cache(maxsize=2048)
def _write_note(name: str, split: str, seed: int, number: int) -> Document:
  """Writes note `number` of a split of a cohort."""
  cohort, key = COHORTS[name], f'{name}/{split}/{seed}'
  rng = random.Random(f'{key}/{number}')
  # All scenarios once, in an order of their own, before any comes again.
  table = scenarios(cohort.style)
  lap, turn = divmod(number, len(table))
  order = random.Random(f'{key}/lap {lap}').sample(list(table), len(table))
  patient = make_patient(table[order[turn]], rng)
  patient.words.update(_plain_words(patient.words['sex'], rng))
  style = _style(cohort.style)
  note = Note(patient, style, name, split, rng)
  page = _Page(style, rng)
  tags = set()
  for section in style['section']:
    if rng.random() < section.get('chance', 1):
      note.section.clear()
      note.unique = section.get('unique', False)
      page.add(section, _sentences(section, note, tags))
  return page.document(f'{name}_{split}_{number:04d}', cohort.types)


def _plain_words(sex: str, rng: random.Random) -> dict[str, str]:
  """Words of the patient that frames use without annotation, by their names in frames."""
  words = (
    {'M': 'M', 'man': 'man', 'gentleman': 'gentleman', 'he': 'he', 'his': 'his', 'him': 'him'}
    if sex == 'M' else
    {'M': 'F', 'man': 'woman', 'gentleman': 'lady', 'he': 'she', 'his': 'her', 'him': 'her'})
  return words | {
    'He': words['he'].title(), 'His': words['his'].title(),
    'male': 'male' if sex == 'M' else 'female',
    'day': str(rng.randint(2, 6)),
    'weeks': rng.choice(('one week', 'two weeks', 'four weeks', 'three months')),
  }


def _sentences(section: dict, note: Note, tags: set[str]) -> list[Sentence]:
  """The sentences of a section: an opening one, a random number of others, perhaps a last one.

  Frames may begin with '#tag', of which a note has one, and '+trait' or '-trait' of a patient.
  """
  written, traits = [], note.patient.traits
  for pool, least, most in ((section.get('first', []), 1, 1),
                            (section.get('frames', []), *section['count']),
                            (section.get('last', []), 0, 1)):
    wanted = len(written) + note.rng.randint(least, most)
    for frame in note.rng.sample(pool, len(pool)):
      if len(written) >= wanted:
        break
      tag, needed, frame = _PREFIX.fullmatch(frame).groups()
      if tag in tags or any((trait[1:] in traits) != (trait[0] == '+')
                            for trait in needed.split()):
        continue
      for _ in range(4):  # a frame has many readings, and this one may not fit the patient
        with contextlib.suppress(Missing):
          written.append(render(frame, note))
          tags |= {tag} - {None}
          break
  return written


class _Page:
  """A note that is being written: its text so far, and annotation with offsets into it."""

  def __init__(self, style: dict, rng: random.Random):
    self.style, self.rng = style, rng
    self.text = ''
    self.spans: list[Span] = []
    self.relations: list[Relation] = []

  def add(self, section: dict, sentences: Sequence[Sentence]) -> None:
    """Appends a section with these sentences; nothing where there are none."""
    if not sentences:
      return
    stop = '' if section.get('bare') else self.style['stop']
    bullet, chained = section.get('bullet', ''), False
    self.text += section.get('head', '') + bullet
    for i, sentence in enumerate(sentences):
      # Two sentences may stand in one line, where the section has a mark for that.
      chained = bool(i) and 'chain' in section and not chained and self.rng.random() < 0.5
      if i:
        self.text += section['chain'] if chained else stop + section.get('join', '\n') + bullet
      base, first = len(self.text), len(self.spans)
      self.spans += [Span(base + s.start, base + s.end, s.type) for s in sentence.spans]
      self.relations += [Relation(r.type, first + r.head, first + r.tail)
                         for r in sentence.relations]
      self.text += sentence.text
    self.text += stop + '\n'

  def document(self, name: str, types: Sequence[str]) -> Document:
    """The note with only the entities of `types`, and only the modifiers that belong to one."""
    relations = [r for r in self.relations if self.spans[r.head].type in types]
    kept = {i for i, span in enumerate(self.spans) if span.type in types}
    kept = sorted(kept | {r.tail for r in relations}, key=lambda i: self.spans[i])
    place = {old: new for new, old in enumerate(kept)}
    return Document(
      name, self.text if self.style['capitals'] else self.text.lower(),
      tuple(self.spans[i] for i in kept),
      tuple(Relation(r.type, place[r.head], place[r.tail]) for r in relations))
