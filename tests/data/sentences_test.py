"""Where sentences end in clinical text, and what cutting them does to entities."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.data.sentences import flat, note_sentences, sentence_examples, split_sentences
from fedmedjax.types import Document, Span

WRAPPED = '\n'.join((
  'The patient is a 61-year-old man with a long history of hypertension and',
  'diabetes mellitus who came to the emergency department because of severe',
  'shortness of breath and swelling of both legs for about two weeks before',
  'admission, together with a cough that produced some blood. He was given a',
  'diuretic by mouth and by vein without any relief and was admitted for more',
  'tests.',
))


def split(text):
  return [text[start:end] for start, end in split_sentences(text)]


# '|' marks each expected end of a sentence; it is taken out before splitting.
@pytest.mark.parametrize('marked', [
  'Dr. Smith saw him.| BP was 120/80, temp. 98.6.| He left.',
  'Lasix 2.5 mg p.o. b.i.d. and q.6h. as needed.| Rats got 5 mg i.v.| Controls did not.',
  'Drugs (e.g. aspirin, i.e. NSAIDs) vs. placebo at approx. 5 mg.| No change.',
  'He had a cough.| it got worse.| "Severe."| (Not seen before.)| Then he left!| 3 days passed.',
  'Growth of S. aureus, see Fig. 2. and ref. 12; p < 0. 05 in No. 3.| U.S. Food and Drug.',
  'He improved (see above. Note the dose. It was low) and left.| Was it (a slip.| So it was.',
  'MEDICATIONS:|\n1. Aspirin 81 mg.|\n2. Lasix 40 mg. daily|\n- cough|\r\n- fever|\n\n\nplan: none',
  'He coughs.| - No fever.| • No rash.',
  'Positive for H.\ncinaedi in blood.|\nNegative otherwise',
  'He took it for 6 months.The patient (p.Val204Asp) left [12].Our plan',
  'No pain? none.| Really?!| Yes...| Well',
  '',
  ' \n\r\n ',
])
def test_sentence_ends(marked):
  # The two sentences stuck together have no white space to put a mark at.
  stuck = marked.replace('months.The', 'months.|The').replace('].Our', '].|Our')
  expected = [part.strip() for part in stuck.split('|') if part.strip()]
  assert split(marked.replace('|', '')) == expected


# By Unicode's annex 29 where a mark is surely the end; whole where a dot may be an abbreviation's.
@pytest.mark.parametrize('marked', [
  '体温38.5度。|脉搏90次/分，血压120/80mmHg。|无咳嗽',
  '他说：“很疼。”|然后离开。|发热？！|无。',
  '患者（见上。注意剂量）好转。|1.患者出院.2.随访',
  '「痛い。」|と言った。|血压正常?|无胸痛.',
  '体温は３８．５度．|担当はDr. 田中です。|以上。',
  '환자는 열이 났다. |아스피린 5 mg을 투여했다! |3일 후 퇴원하였다.',
  '투여 b.i.d. 환자, q.d. 복용. |Aspirin 투여. |체온은 38.5. |네.',
  'المريض يعاني من حمى شديدة. |أعطي الأسبرين! |هل يوجد ألم؟ |لا.',
  'قال د. أحمد إن المريض بخير. |خرج.',
  'מטופל עם חום גבוה. |קיבל אספירין? |לא ידוע.',
  'रोगी को बुखार है। |डॉ. शर्मा ने एस्पिरिन दी। |क्या दर्द है? |नहीं।',
  'مریض کو بخار ہے۔ |اسپرین دی گئی۔',  # Urdu
  'ታካሚው ትኩሳት አለው። |አስፕሪን ተሰጠ።',  # Amharic
  'လူနာ ဖျားနေသည်။ |အက်စပရင် ပေးခဲ့သည်။',  # Burmese
  'נתן 2.5 מ"ג. |הוא ישן. |בשנת ת.ש.ח. נולד.',
  'ผู้ป่วยได้ยา 500 มก. ทุก 6 ชม. โดย นพ. สมชาย |\nพ.ศ. 2563',  # Thai: no dot ends a sentence there
  'दवा 2.5 मि.ग्रा. दी गई। |वजन 60कि.ग्रा. है. |कोई दर्द नहीं.', 'ডা. রহমান ৫ মি.গ্রা. দেন।',
  '担当：Dr.山田。|见Fig. 2。|服100mg.|无出血.|好转',
  'রোগীর জ্বর আছে। |অ্যাসপিরিন দেওয়া হয়েছে।',  # Bengali
])
def test_scripts_without_letter_case(marked):
  expected = [part.strip() for part in marked.split('|')]
  assert split(marked.replace('|', '')) == expected


@pytest.mark.parametrize('word, blank', [
  ('患者发热', ''), ('환자는 열이', ' '), ('حمى شديدة', ' ')])
def test_wrapped_lines_without_letter_case(word, blank):
  """Lines as wide as the longest go on in the next one; a short one does not."""
  line = blank.join([word] * (10 if blank == '' else 7))
  assert len(split('\n'.join([line] * 6) + '。')) == 1
  assert len(split('\n'.join([line] * 5 + [word, line]))) == 2


def test_a_wrapped_line_goes_on_and_a_list_does_not():
  first, second = split(WRAPPED)
  assert first.endswith('produced some blood.') and second.endswith('for more\ntests.')
  assert split(WRAPPED.rstrip('.') + '\nplan')[2] == 'plan'  # 'tests' had room for it
  assert split('known allergy to penicillin or to any other drug of this family\npregnancy') == [
    'known allergy to penicillin or to any other drug of this family', 'pregnancy']


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(st.text(
  st.sampled_from('ab A1.?!()[]" \n\r\t-\x1c\x85\u2028患。？「」（）، ।حि．'), max_size=60))
def test_every_visible_character_is_in_exactly_one_sentence(text):
  seen = []
  for start, end in split_sentences(text):
    assert start < end and text[start:end] == text[start:end].strip()
    seen += range(start, end)
  assert seen == sorted(set(seen))
  assert all(c.isspace() for i, c in enumerate(text) if i not in set(seen))


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.text(st.sampled_from('ab A1.?! \n\r'), max_size=40),
       st.lists(st.tuples(st.integers(0, 45), st.integers(0, 45)), max_size=4))
def test_given_sentences_stay_and_the_rest_is_split(text, given_ranges):
  """Whatever ranges are given: each visible character is in one sentence; sound ones are kept."""
  found = note_sentences(Document('n', text, (), (), sentences=tuple(given_ranges)))
  seen = [at for start, end in found for at in range(start, end)]
  assert seen == sorted(set(seen)) and all(start < end for start, end in found)
  assert all(c.isspace() for i, c in enumerate(text) if i not in set(seen))
  for start, end in given_ranges:
    others = [place for place in given_ranges if place != (start, end)]
    inside = text[start:end] and text[start:end] == text[start:end].strip() and end <= len(text)
    if inside and all(b <= start or end <= a for a, b in others):
      assert (start, end) in found


@pytest.mark.parametrize('unit', ['.', 'a. b ', '(', '()', '. ', ').', 'a.\n', '1. ', '([)] . ',
                                  '。', 'が．', '（。'])
def test_time_is_linear(unit):
  began = time.perf_counter()
  split_sentences(unit * 100_000)
  assert time.perf_counter() - began < 5  # takes 0.3 s; a quadratic search much longer


def test_examples_are_flat_trimmed_and_relative():
  text = 'Severe chest pain today. Given aspirin and ibuprofen.'

  def span(words, kind, pad=0):
    return Span(text.index(words) - pad, text.index(words) + len(words) + pad, kind)

  document = Document('note', text, (
    span('Severe chest', 'problem'), span('chest', 'problem'), span('pain', 'problem'),
    span('chest pain today', 'problem'),            # longer than all of them: it alone stays
    span('today. Given', 'problem'),                # crosses, and must not displace:
    span('Given', 'treatment'),
    Span(24, 25, 'problem'),                        # nothing but a blank
    span('ibuprofen', 'drug'), span('ibuprofen', 'test'),  # equally long: the first stays
    span('aspirin', 'drug', pad=1), span('and', 'treatment'),
    span('aspirin and', 'person'),                  # not asked for
  ), ())
  examples, counts = sentence_examples(document, ('problem', 'treatment', 'drug', 'test'))
  found = [[(e.text[s.start:s.end], s.type) for s in e.entities] for e in examples]
  assert found == [
    [('chest pain today', 'problem')],
    [('Given', 'treatment'), ('aspirin', 'drug'), ('and', 'treatment'), ('ibuprofen', 'drug')],
  ]
  assert [(e.document, e.start, e.text) for e in examples] == [
    ('note', 0, 'Severe chest pain today.'), ('note', 25, 'Given aspirin and ibuprofen.')]
  assert counts == {'sentences': 2, 'entities': 5, 'nested': 4, 'crossing': 1, 'blank': 1}


def test_examples_without_entities_are_kept():
  examples, counts = sentence_examples(Document('note', 'Well. Fine.', (), ()), ('drug',))
  assert [e.text for e in examples] == ['Well.', 'Fine.']
  assert counts['entities'] == 0


def test_of_overlapping_entities_a_whole_one_goes_before_one_in_pieces():
  """'left ... knee pain' covers 'left and right knee pain', in which 'right knee pain' is whole; of
  entities in pieces only the longest stays; one that touches none stays in any case."""
  text = 'Has left and right knee pain, then fever of bones.'
  left, right, pain = Span(4, 28, 'problem'), Span(13, 28, 'problem'), Span(24, 28, 'problem')
  other, apart = Span(9, 28, 'problem'), Span(35, 49, 'problem')
  covering = (left[:2], other[:2], apart[:2])
  for spans, kept in (
      ((left, right, pain), (right,)), ((pain, left), (pain,)), ((left, other), (left,)),
      ((other, left, apart), (left, apart)), ((left,), (left,))):
    examples, counts = sentence_examples(
      Document('n', text, spans, (), covering=covering), ('problem',))
    assert examples[0].entities == kept and counts['nested'] == len(spans) - len(kept)
  assert flat([left, right]) == [left] and flat([left, right], {left}) == [right]
