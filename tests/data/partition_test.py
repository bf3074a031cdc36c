"""Dealing pooled notes out: every note once, skews that go the right way, hand-worked numbers."""

from collections import Counter

import numpy as np
import pytest
from real_data import real_data

from fedmedjax.data.damage import Damage
from fedmedjax.data.formats.corpora import load_corpus
from fedmedjax.data.partition import (
  KINDS,
  SIZED,
  UNITS,
  annotated_types,
  annotating,
  asked_alike,
  by_quantity,
  each_with_entities,
  partition,
)
from fedmedjax.data.pieces import sentences_of
from fedmedjax.data.relations import annotated
from fedmedjax.data.shares import apportioned, in_turn
from fedmedjax.data.statistics import divergence, word_divergence
from fedmedjax.data.styles import by_style
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.data.type_mixes import _unlike
from fedmedjax.types import ENTITY_TYPES, Document, InputError, Relation, Span

STRENGTH = {'iid': 1.0, 'types': 0.05, 'quantity': 1.2, 'style': 1.0, 'labels': 0.5}


@pytest.fixture(scope='module')
def sources():
  return [generate_cohort(f'synthetic_{name}', train_notes=40) for name in ('icu', 'dictation')]


def deal(sources, kind, strength=None, seed=1, sites=8, unit='note', sizes=(), **damage):
  return partition(
    sources, kind, unit=unit, sites=sites, strength=strength or STRENGTH[kind], seed=seed,
    sizes=sizes, damage=Damage(**damage))


@pytest.mark.parametrize('kind', KINDS)
def test_every_note_goes_to_one_site_and_none_is_empty(sources, kind):
  parts, skew = deal(sources, kind)
  names = sorted(note.name for part in parts for note in part.train)
  assert names == sorted(note.name for source in sources for note in source.train)
  assert len(parts) == 8 and all(part.train and not part.test for part in parts)
  assert skew.sizes == tuple(len(part.train) for part in parts)
  again, other = deal(sources, kind)[0], deal(sources, kind, seed=2)[0]
  assert parts == again
  assert [note.name for note in parts[0].train] != [note.name for note in other[0].train]


def test_divergence_by_hand():
  """Rows (1, 0) and (0, 1): H(1/2, 1/2) - 0 = 1 bit. Rows (1, 0), (1/2, 1/2):
  H(3/4, 1/4) - 1/2 = 0.8113 - 0.5; the rows' sizes do not count, nor does an empty row."""
  assert divergence(np.asarray([[5, 0], [0, 2]])) == pytest.approx(1.0)
  assert divergence(np.asarray([[9, 0], [2, 2], [0, 0]])) == pytest.approx(0.811278 - 0.5, abs=1e-6)
  assert divergence(np.asarray([[3, 1], [6, 2]])) == pytest.approx(0.0)


@pytest.mark.parametrize('unit', UNITS)
@pytest.mark.parametrize('name', ['icu', 'dictation', 'clinic'])
def test_the_smaller_the_concentration_the_more_unlike_the_mixes(name, unit):
  """Whole notes as well as sentences: unlike sites of equal size, up to sites as alike as chance.

  A share 1 / (1 + strength) of the greatest divergence is left, beyond that of chance.
  """
  pool = [generate_cohort(f'synthetic_{name}', train_notes=40)]
  skews = [deal(pool, 'types', strength, unit=unit, sites=4)[1]
           for strength in (0.01, 0.1, 1, 10, 1e6)]
  divergences = [skew.type_divergence for skew in skews]
  assert divergences == sorted(divergences, reverse=True)
  even = deal(pool, 'iid', unit=unit, sites=4)[1].type_divergence
  assert divergences[0] > 4 * even and divergences[0] > 3 * divergences[-1]
  top, chance = divergences[0] * 1.01, divergences[-1]
  assert divergences[2] - chance == pytest.approx((top - chance) / 2, rel=0.25)
  assert all(max(skew.sizes) - min(skew.sizes) <= 1 for skew in skews)


@pytest.mark.parametrize(('name', 'notes'), [('maccrobat2020', 40), ('chia', 200), ('bc5cdr', 80)])
def test_the_dial_on_public_corpora(name, notes):
  pool = [load_corpus(name, real_data(name))]
  pool = [pool[0]._replace(train=pool[0].train[:notes])]
  for unit in UNITS:
    found = [deal(pool, 'types', strength, unit=unit, sites=6)[1].type_divergence
             for strength in (0.01, 0.3, 3, 30)]
    assert found[0] > found[1] > found[2] > found[3], (unit, found)


def test_groups_of_unlike_mixes_by_hand():
  """Shares of the first type 1, 0.9, 0.2, 0: cut in two along them. The note without entities takes
  the place that they leave."""
  counts = np.array([[4, 0], [9, 1], [2, 8], [0, 4], [0, 0]])
  found = _unlike(counts, 2, np.random.default_rng(0))
  assert found[0] == found[1] != found[2] == found[3]
  found = _unlike(counts, 5, np.random.default_rng(0))
  assert sorted(found) == [0, 1, 2, 3, 4] and {found[2], found[3]} == {0, 1} and found[4] >= 2


@pytest.mark.parametrize('sites', [3, 12])
def test_sites_of_unlike_mixes_have_equally_many_notes_with_entities(sites):
  """Three of four notes have no entities. Where these count as notes of the pool's mix, they fill
  the groups in the middle: 5 sites of 12 would have nothing to learn."""
  rng = np.random.default_rng(1)
  counts = rng.multinomial(3, [0.4, 0.3, 0.2, 0.1], 200) * (np.arange(200) % 4 == 0)[:, None]
  found = _unlike(counts, sites, rng)
  for some in (counts.sum(1) > 0, counts.sum(1) >= 0):
    held = np.bincount(found[some], minlength=sites)
    assert held.max() - held.min() <= 1
  mixes = np.stack([counts[found == group].sum(0) for group in range(sites)])
  assert divergence(mixes) > 0.15


def test_sizes_by_hand():
  """k^-1 over 3 sites: 6/11, 3/11, 2/11 of the 11 notes that are left after one each: 6, 3, 2."""
  dealt = by_quantity(range(14), (), 3, 1.0, np.random.default_rng(0))
  assert sorted(np.bincount(dealt)) == [3, 4, 7]


def test_the_realised_skew_of_styles(sources):
  """By hand: words a, b against a: shares (1/2, 1/2) and (1, 0) mix to (3/4, 1/4). Sites of one
  style each have words less alike than those dealt evenly."""
  assert word_divergence([['A b'], ['a', 'A'], []]) == pytest.approx(0.811278 - 0.5, abs=1e-6)
  assert word_divergence([[], ['']]) == 0.0
  style, even = (deal(sources, kind, sites=2)[1] for kind in ('style', 'iid'))
  assert style.word_divergence > 3 * even.word_divergence > 0
  assert f'words by {style.word_divergence:.3f}' in str(style)


def test_pooled_sites_are_asked_for_what_all_of_them_annotated(sources):
  """One source annotates no doses and no negated tests: dealt out, their absence means nothing."""
  less = sources[1]._replace(modifiers={'drug': ('strength', 'route'), 'test': ('labvalue',)})
  said = {'drug': 'a medication', 'test': 'a scan'}
  parts, _ = deal([one._replace(definitions=said) for one in (sources[0], less)], 'iid')
  assert all(annotated(part) == less.modifiers and part.definitions == said for part in parts)
  # And so are the notes on which they are tested.
  assert [annotated(site) for site in asked_alike([sources[0], less])] == [less.modifiers] * 2
  broken, = (part for part in deal([sources[0], less], 'iid', corrupted=0.125)[0]
             if part.report['corrupted'])
  assert annotated(broken) == {}
  other = less._replace(definitions={'drug': 'a vaccine'})
  with pytest.raises(InputError, match='types mean the same .* synthetic_icu and synthetic_dictat'):
    deal([sources[0], other], 'iid')


def test_styles_come_apart():
  """Two cohorts of unlike style, two sites: nearly all notes of a cohort at one of them."""
  sources = [generate_cohort(f'synthetic_{name}', train_notes=20) for name in ('icu', 'dictation')]
  parts, _ = deal(sources, 'style', sites=2)
  shares = [np.mean(['icu' in note.name for note in part.train]) for part in parts]
  assert sorted(shares) == [0.0, 1.0]
  parts, _ = deal(sources, 'style', strength=1e-9, sites=2)
  assert all(0.2 < np.mean(['icu' in note.name for note in part.train]) < 0.8 for part in parts)


@pytest.mark.parametrize('strength', [0.25, 0.5, 0.8])
def test_strength_is_the_share_of_notes_at_their_styles_site(strength):
  """Two styles of 1,000 notes each, two sites: a share s of the notes stays, and half of the others
  come there by chance, s + (1 - s) / 2 in all. Four standard errors are 0.044 at most; compared
  with the square of s, the share would be 0.08 to 0.13 less."""
  notes = [Document(str(i), text, (), ()) for i, text in enumerate(
    ['FEVER 38.5, BP 120/80.', 'the patient feels rather well'] * 1000)]
  dealt = by_style(notes, (), 2, strength, np.random.default_rng(3))
  styles = np.arange(2000) % 2
  share = np.mean(dealt == styles)
  assert max(share, 1 - share) == pytest.approx(strength + (1 - strength) / 2, abs=0.044)


def test_unannotated_types_are_gone(sources):
  parts, skew = deal(sources, 'labels')
  assert {name for part in parts for name in part.types} == set(ENTITY_TYPES)
  assert skew.annotated == sum(len(part.types) for part in parts) / 32 < 0.9
  for part in parts:
    for note in part.train:
      heads = {r.tail for r in note.relations}
      assert all(
        span.type in part.types or i in heads for i, span in enumerate(note.spans))
      assert all(note.spans[r.head].type in part.types for r in note.relations)
  alone = annotated_types(('a', 'b'), 1, 1.0, np.random.default_rng(0))
  assert alone == [('a', 'b')]  # every type is annotated somewhere


def test_corrupted_sites_call_every_type_another(sources):
  """Two of eight; types move on by one, so nothing keeps its name and nothing else changes."""
  clean, _ = deal(sources, 'iid')
  parts, _ = deal(sources, 'iid', corrupted=0.25)
  broken = [i for i, part in enumerate(parts) if part.report['corrupted']]
  assert len(broken) == 2
  following = dict(zip(ENTITY_TYPES, (*ENTITY_TYPES[1:], ENTITY_TYPES[0]), strict=True))
  for i, (before, after) in enumerate(zip(clean, parts, strict=True)):
    if i not in broken:
      assert before.train == after.train
      continue
    for one, other in zip(before.train, after.train, strict=True):
      assert one.text == other.text and not other.relations
      assert [following[span.type] for span in one.spans if span.type in following] == [
        span.type for span in other.spans]


def test_corrupted_sites_of_few_types_have_wrong_entities(sources):
  """Each site annotates one type of four, or few: its entities are those of the type before it,
  however it is dealt, and of these it has one at least."""
  notes = {note.name: note for source in sources for note in source.train}
  parts, _ = deal(sources, 'labels', 1.0, corrupted=1.0)
  assert any(len(part.types) == 1 for part in parts)
  before = dict(zip((*ENTITY_TYPES[1:], ENTITY_TYPES[0]), ENTITY_TYPES, strict=True))
  for part in parts:
    for note in part.train:
      assert [span._replace(type=before[span.type]) for span in note.spans] == [
        span for span in notes[note.name].spans
        if span.type in {before[kind] for kind in part.types}]
  parts, _ = deal(sources, 'labels', 1.0, corrupted=1.0, sites=60, unit='sentence')
  assert all(part.report['corrupted'] and part.report['entities'] for part in parts)


def test_one_type_cannot_be_mixed_up(sources):
  alone = [annotating(source, ('drug',)) for source in sources]
  with pytest.raises(InputError, match='corrupted=0.5: the pooled sites annotate only drug; there'):
    deal(alone, 'iid', corrupted=0.5)
  assert deal(alone, 'iid')[1].annotated == 1


def test_entities_lost_by_cutting_are_counted(sources):
  text = 'Chest\n\npain. Fever.'
  note = Document('n', text, (Span(0, 11, 'problem'), Span(13, 18, 'problem')), ())
  torn = sources[0]._replace(train=(*sources[0].train, note))
  assert deal([torn, sources[1]], 'iid', unit='sentence')[1].crossing == 1
  assert deal([torn, sources[1]], 'iid')[1].crossing == 0


def test_a_note_as_sentences():
  """Spans and relations move along; what lies in two sentences goes."""
  note = Document(
    'n', 'No severe pain. CT of head.\nFever today.',
    (Span(3, 9, 'severity'), Span(10, 14, 'problem'), Span(16, 18, 'test'),
     Span(28, 33, 'problem')),
    (Relation('severity', 1, 0), Relation('temporal', 3, 0)))
  first, second, third = sentences_of(note)
  assert (first.name, first.text) == ('n#0', 'No severe pain.')
  assert first.relations == (Relation('severity', 1, 0),)
  assert second.spans == (Span(0, 2, 'test'),) and third.spans == (Span(0, 5, 'problem'),)
  assert (third.name, third.relations) == ('n#28', ())


@pytest.mark.parametrize('kind', KINDS)
def test_every_site_has_an_entity_to_learn(sources, kind):
  """Sixty sites of few sentences each, as skewed as can be."""
  parts, skew = deal(sources, kind, sites=60, unit='sentence')
  for part in parts:
    assert any(span.type in part.types for note in part.train for span in note.spans)
  names = [note.name for part in parts for note in part.train]
  assert len(names) == len(set(names)) == sum(skew.sizes)


def test_swaps_by_hand():
  """Site 1 has nothing it can learn from; notes 0 and 1 of site 0 would serve, and note 4 of site
  2, which is its last. One swap, with note 2 or 3, leaves the sizes as they were."""
  dealt, holds = np.array([0, 0, 1, 1, 2]), np.array([[1, 1, 0, 0, 1]] * 3, bool)
  found = each_with_entities(dealt, holds, np.random.default_rng(0))
  assert np.bincount(found).tolist() == [2, 2, 1] and found[4] == 2
  assert sorted(found[:2]) == [0, 1] and (found != dealt).sum() == 2
  assert (each_with_entities(found, holds, np.random.default_rng(0)) == found).all()
  # Note 4 is of no use to the site that has it: it may go.
  holds[2, 4], holds[2, 2] = False, True
  assert all(holds[site][found == site].any() for found in [each_with_entities(
    dealt, holds, np.random.default_rng(1))] for site in range(3))
  with pytest.raises(InputError, match='partition.sites=3: 2 of 5 notes'):
    each_with_entities(dealt, np.array([[1, 0, 0, 0, 1]] * 3, bool), np.random.default_rng(0))


def test_what_cannot_be_dealt_out(sources):
  with pytest.raises(InputError, match='partition.sites=500: there are 80 notes'):
    deal(sources, 'iid', sites=500)
  with pytest.raises(InputError, match='synthetic_clinic problem, test, drug'):
    deal([*sources, generate_cohort('synthetic_clinic')], 'iid')


@pytest.mark.parametrize(('shares', 'total', 'wanted'), [
  ((0.4, 0.2, 0.2, 0.2), 200, [80, 40, 40, 40]), ((0.29, 0.71), 100, [29, 71]),
  # 3.3 each: the unit that is left goes to the first of equal remainders.
  ((1 / 3, 1 / 3, 1 / 3), 10, [4, 3, 3]),
  # 1.8, 2.7, 4.5 of 9: 1 + 2 + 4 leave two, for remainders 0.8 and 0.7.
  ((0.2, 0.3, 0.5), 9, [2, 3, 4]), ((2, 1, 1), 4, [2, 1, 1]), ((1.0,), 7, [7])])
def test_whole_numbers_by_shares(shares, total, wanted):
  assert apportioned(shares, total).tolist() == wanted


def test_in_turn_by_hand():
  """Places (k + 1/2) / n: of 4 at 1/8, 3/8, 5/8, 7/8, of 2 at 1/4, 3/4; equal ones in their order.
  """
  assert in_turn(np.array([4, 2])).tolist() == [0, 1, 0, 0, 1, 0]
  assert in_turn(np.array([2, 2, 2])).tolist() == [0, 1, 2] * 2
  assert in_turn(np.array([0, 2])).tolist() == [1, 1]


@pytest.mark.parametrize('kind', SIZED)
@pytest.mark.parametrize('unit', UNITS)
def test_sites_get_their_shares(sources, kind, unit):
  """To the unit, by the largest remainders, however unlike the sites are, and nothing is lost."""
  shares = (0.4, 0.3, 0.2, 0.1)
  parts, skew = deal(sources, kind, sites=4, unit=unit, sizes=shares)
  names = [note.name for part in parts for note in part.train]
  total = len(names)
  assert len(set(names)) == total and skew.sizes == tuple(apportioned(shares, total))
  if unit == 'note':
    assert skew.sizes == (32, 24, 16, 8)
  again, _ = deal(sources, kind, sites=4, unit=unit, sizes=shares)
  assert parts == again


def test_sizes_leave_the_dial_of_types(sources):
  """Unlike mixes at sites of unlike size, and the smaller the strength the more unlike; sites of
  one mix are as alike as chance has it."""
  sizes = (0.4, 0.2, 0.2, 0.2)
  found = [deal(sources, 'types', strength, sites=4, unit='sentence', sizes=sizes)[1]
           for strength in (0.01, 0.3, 3, 30)]
  assert [skew.sizes for skew in found] == [found[0].sizes] * 4
  left = [skew.type_divergence for skew in found]
  assert left == sorted(left, reverse=True) and left[0] > 3 * left[-1]
  even = deal(sources, 'iid', sites=4, unit='sentence', sizes=sizes)[1]
  assert left[1] > 4 * even.type_divergence
  # Each stratum is shared out by the shares: the large site has its part of every type.
  counts = np.array([Counter(s.type for note in part.train for s in note.spans)['problem']
                     for part in deal(sources, 'iid', sites=4, unit='sentence', sizes=sizes)[0]])
  assert counts / counts.sum() == pytest.approx(sizes, abs=0.05)


@pytest.mark.parametrize('room', [(7, 1, 1), (1, 7, 1), (1, 1, 1, 6), (3, 3, 3)])
@pytest.mark.parametrize('blank', [0, 2, 8])
def test_groups_fill_their_room_exactly(room, blank):
  """Also where all notes have entities, so that rounding has nowhere to go, and where few have."""
  rng = np.random.default_rng(5)
  counts = rng.integers(1, 5, (9, 3)) * (np.arange(9) >= blank)[:, None]
  found = _unlike(counts, len(room), rng, np.array(room))
  assert np.bincount(found, minlength=len(room)).tolist() == list(room)


def test_a_share_that_is_no_note_is_refused(sources):
  with pytest.raises(InputError, match='0.001 of the 80 notes that are dealt out is none'):
    deal(sources, 'iid', sites=2, sizes=(0.999, 0.001))
