"""Sites of a partition whose annotation is wrong: types, places, missing entities."""

from collections import Counter

import numpy as np
import pytest

from fedmedjax.data.damage import CORRUPTIONS, Damage, incomplete, shifted
from fedmedjax.data.partition import KINDS, partition
from fedmedjax.data.scripts import word_ranges
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.types import ENTITY_TYPES, Document, InputError, Relation, Span


@pytest.fixture(scope='module')
def pool():
  return [generate_cohort(f'synthetic_{name}', train_notes=20) for name in ('icu', 'dictation')]


def deal(pool, damage=Damage(), kind='iid', seed=3, unit='note', **more):  # noqa: B008
  parts, _ = partition(
    pool, kind, unit=unit, sites=4, strength=0.5, seed=seed, damage=damage, **more)
  return parts


def entities(part):
  return [(note.name, span) for note in part.train for span in note.spans
          if span.type in ENTITY_TYPES]


def texts(part):
  return [(note.name, note.text) for note in part.train]


@pytest.mark.parametrize('unit', ['note', 'sentence'])
@pytest.mark.parametrize('corruption', CORRUPTIONS)
def test_named_sites_alone_are_corrupted_and_texts_stay(pool, corruption, unit):
  """Which note goes where does not depend on the damage; of the named sites no entity is right."""
  clean = deal(pool, unit=unit)
  parts = deal(pool, Damage(corrupted_sites=(3, 0), corruption=corruption), unit=unit)
  assert [part.report['corrupted'] for part in parts] == [1, 0, 0, 1]
  for site, (before, after) in enumerate(zip(clean, parts, strict=True)):
    assert texts(before) == texts(after)
    if site in (1, 2):
      assert before == after
      continue
    right = set(entities(before))
    kept = [one for one in entities(after) if one in right]
    assert entities(after) and len(kept) <= 0.02 * len(right)
    assert (after.modifiers == {}) == (corruption == 'mislabel')


def test_a_share_and_named_sites_damage_alike(pool):
  """A share draws sites; the same sites by number are the same to the last span."""
  drawn = deal(pool, Damage(corrupted=0.5))
  named = tuple(i for i, part in enumerate(drawn) if part.report['corrupted'])
  assert len(named) == 2
  assert [drawn[i] for i in named] == [
    deal(pool, Damage(corrupted_sites=named))[i] for i in named]


def test_shifted_by_hand():
  """Each span goes one word on; 'head', the last word of its sentence, one back; marks are no
  words. 'Stop' is all of its sentence, and 'today Stop' lies in two."""
  text = 'No severe chest pain, CT of head.\nFever today.\nStop.'
  note = Document(
    'n', text, (
      Span(3, 9, 'severity'), Span(10, 20, 'problem'), Span(28, 32, 'problem'),
      Span(34, 39, 'problem'), Span(47, 51, 'drug'), Span(40, 51, 'test')),
    (Relation('severity', 1, 0),), covering=((10, 20),))
  after = shifted(note)
  assert [text[span.start:span.end] for span in after.spans] == [
    'chest', 'pain, CT', 'of', 'today', 'Stop', 'today.\nStop']
  assert [span.type for span in after.spans] == [span.type for span in note.spans]
  assert after.relations == note.relations and after.covering == ((16, 24),)


@pytest.mark.parametrize('text', ['患者发热三天', 'Боль в груди', '', '+', 'pain', '  '])
def test_shifting_keeps_spans_in_the_text(text):
  """Each word an entity: it becomes another one, unless it is alone."""
  words = word_ranges(text)
  spans = tuple(Span(*word, 'problem') for word in words)
  for before, after in zip(spans, shifted(Document('n', text, spans, ())).spans, strict=True):
    assert after[:2] in words and (before == after) == (len(words) == 1)


@pytest.mark.parametrize('share', [0.0, 0.3, 0.9, 0.999])
def test_the_share_of_entities_that_is_missing(pool, share):
  """Rounded, of the site's entities together, one at least stays; modifiers of those that are gone
  go with them, and nothing else changes."""
  notes = list(deal(pool)[0].train)
  total = sum(span.type in ENTITY_TYPES for note in notes for span in note.spans)
  left = incomplete(notes, ENTITY_TYPES, share, np.random.default_rng(1))
  count = sum(span.type in ENTITY_TYPES for note in left for span in note.spans)
  assert count == max(total - round(share * total), 1)
  for before, after in zip(notes, left, strict=True):
    assert before.text == after.text and not Counter(after.spans) - Counter(before.spans)
    pairs = [{(note.spans[r.head], r.type, note.spans[r.tail]) for r in note.relations}
             for note in (before, after)]
    assert pairs[1] == {pair for pair in pairs[0] if {pair[0], pair[2]} <= {*after.spans}}
  more = incomplete(notes, ENTITY_TYPES, min(share + 0.1, 1), np.random.default_rng(1))
  for less, after in zip(left, more, strict=True):
    assert not Counter(after.spans) - Counter(less.spans)


def test_missing_entities_are_those_of_the_named_sites(pool):
  clean, parts = deal(pool), deal(pool, Damage(missing=0.9, missing_sites=(2, 3)))
  for site, (before, after) in enumerate(zip(clean, parts, strict=True)):
    assert texts(before) == texts(after) and before.types == after.types
    if site < 2:
      assert before == after
      continue
    whole = len(entities(before))
    assert len(entities(after)) == whole - round(0.9 * whole) == after.report['entities']
    assert after.report['left_unannotated'] == round(0.9 * whole)
    # No modifier stands alone: what is left is an entity, or modifies one.
    for note in after.train:
      tails = {r.tail for r in note.relations}
      assert all(span.type in ENTITY_TYPES or i in tails for i, span in enumerate(note.spans))
  assert entities(deal(pool, Damage(missing=0.9, missing_sites=(2,)), seed=4)[2]) != entities(
    parts[2])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('corruption', CORRUPTIONS)
def test_every_damaged_site_still_has_an_entity_in_its_sentences(pool, kind, corruption):
  """All sites corrupted, and of all of them all entities but one missing."""
  parts = deal(pool, Damage(
    corrupted_sites=(0, 1, 2, 3), corruption=corruption, missing=0.999,
    missing_sites=(0, 1, 2, 3)), kind)
  for part in parts:
    assert part.report['entities'] == 1
    assert sum(len(example.entities) for note in part.train
               for example in sentence_examples(note, part.types)[0]) == 1


def test_one_type_can_be_shifted_but_not_mixed_up(pool):
  alone = [
    site._replace(types=('drug',), modifiers={}, train=tuple(note._replace(
      spans=tuple(s for s in note.spans if s.type == 'drug'), relations=())
      for note in site.train)) for site in pool]
  with pytest.raises(InputError, match=r"corrupted_sites=\(1,\): the pooled sites annotate only "
                                       "drug; there is no other name .* corruption 'shift'"):
    deal(alone, Damage(corrupted_sites=(1,)))
  parts = deal(alone, Damage(corrupted_sites=(1,), corruption='shift'))
  assert entities(parts[1]) != entities(deal(alone)[1])
