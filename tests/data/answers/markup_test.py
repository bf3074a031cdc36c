"""Span markup: what the parser makes of everything a model may write instead."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.data.answers import markup
from fedmedjax.types import ENTITY_TYPES, Span

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200, database=None)


def tagged(marked: str) -> str:
  """Short hand: [p:rash] is a tagged problem, [d:..] a drug, [t:..] a test."""
  for letter, name in (('p', 'problem'), ('d', 'drug'), ('t', 'test')):
    marked = marked.replace(f'[{letter}:', f'<span class="{name}">')
  return marked.replace(']', '</span>')


def parsed(generated: str, text: str, types=ENTITY_TYPES):
  """(words, start, type) of each entity, failed, copied."""
  spans, failed, copied, _ = markup.parse(generated, text, types)
  return [(text[s.start:s.end], s.start, s.type) for s in spans], failed, copied


def test_write():
  text = 'No rash\r\non aspirin'
  assert markup.write(text, (Span(3, 7, 'problem'), Span(12, 19, 'drug'))) == (
    'No <span class="problem">rash</span>\r\non <span class="drug">aspirin</span>')
  with pytest.raises(ValueError, match='overlaps'):
    markup.write(text, (Span(3, 7, 'drug'), Span(5, 8, 'drug')))


# What the tags look like does not matter; nothing here is a repair.
@pytest.mark.parametrize('generated', [
  'on <span class="drug">aspirin</span> daily',
  "on <span class='drug'>aspirin</span> daily",
  'on <SPAN CLASS=Drug >aspirin</ span > daily',
  'on <span class=\\"drug\\">aspirin</span> daily',
  'on <span id="7" class="drug">aspirin</span> daily',
  'on<span class="drug"> aspirin </span>daily',
  '<span class="dose">on</span> <span class="drug">aspirin</span> <span>daily</span>',
  '<span class="test">on</span> <span class="drug">aspirin</span> daily',
])
def test_copied_with_any_quotes_and_unasked_classes(generated):
  result = parsed(generated, 'on aspirin daily', ('problem', 'drug'))
  assert result == ([('aspirin', 3, 'drug')], False, True)


# Wrong markup over a true copy: what is right elsewhere stays, and the repair is reported.
@pytest.mark.parametrize('generated, entities', [
  ('[p:rash after [d:aspirin]] [t:ECG] ok', ['rash after', 'aspirin', 'ECG']),   # nested
  ('[p:rash after [d:aspirin] [t:ECG] ok', ['rash after', 'aspirin', 'ECG']),    # left open
  ('[p:[p:rash]] after aspirin [t:ECG] ok', ['rash', 'ECG']),                    # doubled
  ('[p:rash]] after] aspirin [t:ECG] ok', ['rash', 'ECG']),                      # stray closes
  ('[p:rash] after aspirin [t:ECG ok', ['rash', 'ECG ok']),                      # open to the end
])
def test_malformed_markup_is_repaired_and_reported(generated, entities):
  got, failed, copied = parsed(tagged(generated), 'rash after aspirin ECG ok')
  assert [words for words, _, _ in got] == entities
  assert failed and copied


# Not a copy. Beside each case, what a matcher that walks token by token would do with it.
@pytest.mark.parametrize('text, generated, entities', [
  # A word left out before the entity; everything after it would be one token off.
  ('he denies any chest pain or rash', 'he denies [p:chest pain] or [p:rash]',
   [('chest pain', 14, 'problem'), ('rash', 28, 'problem')]),
  ('chronic chest pain', '[p:chest pain]', [('chest pain', 8, 'problem')]),
  # A word put in, and one left out within the entity.
  ('fever and rash', 'has fever and a [p:rash]', [('rash', 10, 'problem')]),
  ('severe left chest pain', 'severe [p:left pain]', [('left chest pain', 7, 'problem')]),
  # Typing errors mended or made; a word cut at the edge.
  ('on asprin, diabetes mellitus', 'on [d:aspirin], [p:diabete] mellitus',
   [('asprin', 3, 'drug'), ('diabetes', 11, 'problem')]),
  ('had hypertension', 'had [p:tension]', [('hypertension', 4, 'problem')]),
  ('no   rash', 'no [p:xrash]', [('rash', 5, 'problem')]),
  ('Na 140\r\nK 4.1', '[t:NA] 140\n[t:K] 4.1', [('Na', 0, 'test'), ('K', 8, 'test')]),
  # The same words twice, the second tagged, with and without a loss before it.
  ('pain at rest, no pain at night', 'pain at rest, [p:pain] at night', [('pain', 17, 'problem')]),
  ('pain at rest, no pain at night', 'pain at rst, no [p:pain] at night',
   [('pain', 17, 'problem')]),
  # Both tagged: neither takes the other's place.
  ('pain and no pain', 'the [p:pain] and [p:pain]',
   [('pain', 0, 'problem'), ('pain', 12, 'problem')]),
  # Out of order.
  ('fever, cough and chest pain', '[p:chest pain], [p:cough] and [p:fever]',
   [('fever', 0, 'problem'), ('cough', 7, 'problem'), ('chest pain', 17, 'problem')]),
  # Not a word of its own: 'rash' stands in 'rashly' too.
  ('rashly took aspirin, rash', '[p:rash] after [d:aspirin]',
   [('aspirin', 12, 'drug'), ('rash', 21, 'problem')]),
])
def test_imperfect_copies(text, generated, entities):
  got, failed, copied = parsed(tagged(generated), text)
  assert got == entities and not copied
  assert failed == (text.startswith('fever, cough')), 'only the reordered one is unlike its input'


def test_words_put_in_go_to_the_nearest_place():
  text = 'pain at rest, pain at night, pain now, pain gone'
  got, _, _ = parsed(tagged('pain at rest, pain at night [p:pain], pain now, pain gone'), text)
  assert got == [('pain', 29, 'problem')]


def test_in_each_others_places_the_longer_gets_the_only_place_it_has():
  text = 'On rectal examination a mass, felt on digital rectal examination'
  got, _, _ = parsed(
    tagged('On [t:digital rectal examination] a mass, felt on [t:rectal examination]'), text)
  assert got == [('rectal examination', 3, 'test'), ('digital rectal examination', 38, 'test')]
  # One made up is no reason to move what stands where it was copied.
  text = 'had severe chest pain, no chest pain now'
  got, _, _ = parsed(tagged('had severe [p:chest pain], no chest pain now. [p:severe chest pain]'),
                     text)
  assert got == [('chest pain', 11, 'problem')]


def test_out_of_order_without_blanks_between_words():
  assert parsed(tagged('[p:发热]和[p:咳嗽]'), '咳嗽和发热')[0] == [
    ('咳嗽', 0, 'problem'), ('发热', 3, 'problem'),
  ]


# Text made up, missing or cut off: reported, and the entities that are there are kept.
@pytest.mark.parametrize('text, generated, entities', [
  ('rash daily', 'The [p:plague] is here. [p:rash] daily', [('rash', 0, 'problem')]),
  ('rash daily', '[p:rash] daily\n### Input Text:\nno [p:cough] today', [('rash', 0, 'problem')]),
  ('rash daily', '[p:rash] and [p:rash] daily', [('rash', 0, 'problem')]),
  ('rash, chest pain since', '[p:rash], [p:chest pa',
   [('rash', 0, 'problem'), ('chest pain', 6, 'problem')]),
  ('rash, chest pain since', '[p:rash], <span clas', [('rash', 0, 'problem')]),
  ('rash daily', '[p:rash</spa', [('rash', 0, 'problem')]),
  ('no pain today', 'no [p:pein] today. [d:pain]', [('pain', 3, 'drug')]),  # one place, one entity
  ('rash, chest pain since', '[p:rash], chest pain <', [('rash', 0, 'problem')]),
  ('severe chest pain', '[p:thoracic ache]', []),
  ('rash', '', []),
  ('', 'rash', []),
])
def test_hallucinated_and_truncated(text, generated, entities):
  assert parsed(tagged(generated), text) == (entities, True, False)


def test_literal_angle_brackets_are_text():
  text = 'Hgb <span, pH < 7.2 & <b>K</b> > 5 </p> <'
  entities = (Span(0, 3, 'test'), Span(4, 9, 'problem'), Span(11, 15, 'test'), Span(25, 26, 'test'))
  assert markup.write(text, ()) == text
  target = markup.write(text, entities)
  assert markup.parse(target, text, ENTITY_TYPES) == (entities, False, True, 0)
  assert parsed(tagged('[t:Hgb] <span, [t:pH] < 7.2 & K > 5'), text)[0] == [
    ('Hgb', 0, 'test'), ('pH', 11, 'test'),
  ]


def test_literal_tags_keep_offsets():
  """Without a look-alike the two targets below would be one string: nobody could tell them."""
  text = 'a</span></span>'
  first, both = Span(0, 8, 'drug'), Span(0, 15, 'drug')
  targets = [markup.write(text, (span,)) for span in (first, both)]
  assert targets[0] != targets[1]
  for span, target in zip((first, both), targets, strict=True):
    assert markup.parse(target, markup.guard(text), ENTITY_TYPES) == ((span,), False, True, 0)


def test_output_longer_than_is_read(monkeypatch):
  monkeypatch.setattr(markup, '_LONGEST', 0)
  whole = '<span class="problem">rash</span>   ' + '<span></span>' * 12
  assert len(whole) == markup._PER_CHARACTER * len('rash')
  for generated, too_long in ((whole, False), (whole + '<span></span>', True)):
    got, failed, copied = parsed(generated, 'rash')
    assert (got, failed, copied) == ([('rash', 0, 'problem')], too_long, False)


WORDS = st.lists(st.sampled_from(['no', 'of', 'left', 'mild', 'was', 'and']), max_size=5)


@SETTINGS
@given(WORDS, WORDS, WORDS, st.data())
def test_one_lost_word_loses_no_entity(before, between, after, data):
  """Whichever single word beside two entities is dropped, both are still found, exactly."""
  words = [*before, 'chest pain', *between, 'aspirin', *after]
  text = ' '.join(words)
  output = ['[p:chest pain]' if w == 'chest pain' else '[d:aspirin]' if w == 'aspirin' else w
            for w in words]
  plain = [i for i, w in enumerate(words) if output[i] == w]
  if plain:
    del output[data.draw(st.sampled_from(plain))]
  got, failed, _ = parsed(tagged(' '.join(output)), text)
  assert got == [('chest pain', text.index('chest pain'), 'problem'),
                 ('aspirin', text.index('aspirin'), 'drug')]
  assert not failed
