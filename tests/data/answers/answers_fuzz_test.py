"""Both parsers against everything: FEDMEDJAX_FUZZ=100000 runs that many inputs of each test.

What only must not crash, hang or give unsound spans is made from the input's number, which a
failure names, so that a hundred thousand take minutes; what has more to say is Hypothesis's.
"""

import os
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmedjax.data.answers import json_list
from fedmedjax.data.answers.align import fold
from fedmedjax.data.tasks import STYLES
from fedmedjax.types import ENTITY_TYPES, Span

MANY = int(os.environ.get('FEDMEDJAX_FUZZ', 150))
SETTINGS = settings(
  derandomize=True, deadline=None, max_examples=MANY,
  database=None, suppress_health_check=[HealthCheck.too_slow])
styles = pytest.mark.parametrize('style', STYLES)

# Pieces that make trouble: markup and JSON, parts of them, and characters whose case changes their
# length.
TROUBLE = [
  '<', '>', '/', '&', '"', '<span', '</span', '</span>', '<span class="drug">', '<SPAN class=test>',
  'span', '[', ']', '{', '}', '{"entity": "drug", "text": "', '"}', '", "text": "', "'", '\\',
  '\\u', "{'text': '", "', 'entity': 'test'}", ': ', ', ', 'null', '```json', '```',
  ' ', '\n', '\r\n', '\u2039', '\u0130', 'ß', '\x1c', '\u3000', 'pain', 'a', '_', '\ud800',
]
PIECES = st.sampled_from(TROUBLE)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=8).map(''.join)


@st.composite
def annotated(draw):
  """A text and flat entities in it, without blanks at their edges."""
  text = draw(TEXTS)
  edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
  spans = []
  for start, end in zip(edges[::2], edges[1::2], strict=False):
    words = text[start:end].strip()
    if words:
      start = text.index(words, start)
      spans.append(Span(start, start + len(words), draw(st.sampled_from(ENTITY_TYPES))))
  return text, tuple(spans)


def check(parsed, text: str, types) -> None:
  end = 0
  for span in parsed.spans:
    assert end <= span.start < span.end <= len(text) and span.type in types
    assert text[span.start:span.end] == text[span.start:span.end].strip() != ''
    end = span.end
  assert type(parsed.failed) is type(parsed.copied) is bool and parsed.dropped >= 0


def trouble(rng: random.Random, most: int) -> str:
  """Up to `most` pieces and stray characters; now and then one of them thousands of times."""
  pieces = [
    rng.choice(TROUBLE) if rng.random() < 0.7 else chr(rng.randrange(1, 0x500))
    for _ in range(rng.randint(0, most))]
  if pieces and rng.random() < 0.002:
    pieces[rng.randrange(len(pieces))] *= rng.randint(1000, 20_000)
  return ''.join(pieces)


def noted(rng: random.Random) -> tuple[str, tuple[Span, ...]]:
  """A text and flat entities in it, without blanks at their edges."""
  words = [piece for piece in (trouble(rng, 3).strip() for _ in range(rng.randint(1, 6))) if piece]
  spans, at = [], 0
  for word in words:
    if rng.random() < 0.6:
      spans.append(Span(at, at + len(word), rng.choice(ENTITY_TYPES)))
    at += len(word) + 1
  return ' '.join(words), tuple(spans)


def parsed(style, generated: str, text: str, types, number: int) -> None:
  """Some texts have 400,000 characters: as many seconds as both have times 100,000, and one."""
  began = time.thread_time()
  try:
    check(STYLES[style].parse(generated, text, types), text, types)
  except Exception as error:
    raise AssertionError(f'input {number}') from error
  assert time.thread_time() - began < 1 + (len(generated) + len(text)) / 1e5, number


@styles
def test_a_parser_takes_anything(style):
  for number in range(MANY):
    rng = random.Random(number)
    parsed(style, trouble(rng, 20), trouble(rng, 8), ('drug', 'test'), number)


@styles
def test_a_parser_takes_any_broken_answer(style):
  """A right answer, cut off, with something put in, or with a stretch taken out."""
  for number in range(MANY):
    rng = random.Random(number)
    text, spans = noted(rng)
    whole = STYLES[style].write(text, spans)
    start = rng.randint(0, len(whole))
    rest = whole[start + rng.randint(0, 9):] if rng.random() < 0.7 else ''
    parsed(style, whole[:start] + trouble(rng, 3) + rest, text, ENTITY_TYPES, number)


@SETTINGS
@given(annotated())
def test_markup_comes_back_as_it_was_written(example):
  text, spans = example
  form = STYLES['markup']
  assert form.parse(form.write(text, spans), text, ENTITY_TYPES) == (spans, False, True, 0)


@SETTINGS
@given(annotated())
def test_a_list_comes_back_with_the_same_words(example):
  """It does not say where they stand: where all words stand once, it comes back whole."""
  text, spans = example
  form, folded = STYLES['json'], fold(text)
  parsed = form.parse(form.write(text, spans), text, ENTITY_TYPES)
  assert parsed.copied and parsed.failed == bool(parsed.dropped)
  if all(json_list._occurrences(text[s.start:s.end], folded).shape[1] == 1 for s in spans):
    assert parsed == (spans, False, True, 0)


WORDS = st.lists(st.sampled_from(['no', 'of', 'left', 'mild', 'was', 'and']), max_size=5)
PLANTED = st.sampled_from([
  'rash', 'chest', 'pain', 'aspirin 5 mg', '', ' ', 'was', 'no', 'chestnut', '"', '\\', '[]', '{'])


@styles
@SETTINGS
@given(WORDS, WORDS, WORDS, st.data())
def test_no_correct_entity_is_lost(style, before, between, after, data):
  """Beside two entities that are right: whatever else is tagged or listed, made up or doubled, and
  an answer cut off after them, both are found, exactly."""
  words = [*before, 'chest pain', *between, 'aspirin', *after]
  text = ' '.join(words)
  right = [Span(text.index(w), text.index(w) + len(w), kind)
           for w, kind in (('chest pain', 'problem'), ('aspirin', 'drug'))]
  form, planted = STYLES[style], data.draw(st.lists(PLANTED, max_size=3))
  wrong = [form.shown(data.draw(st.sampled_from(ENTITY_TYPES)), words) for words in planted]
  if style == 'json':
    entries = [form.write(text, [span])[1:-1] for span in right]
    for one in wrong:
      entries.insert(data.draw(st.integers(0, len(entries))), one)
    answer = '[' + ', '.join(entries) + data.draw(st.sampled_from([']', '', ', {"entity": "dr']))
  else:
    # Made-up entities after the copy; the copy itself has lost a word beside the entities.
    plain = [i for i, w in enumerate(words) if w not in ('chest pain', 'aspirin')]
    lost = data.draw(st.sampled_from(plain)) if plain else -1
    answer = ' '.join(
      form.shown('problem', w) if w == 'chest pain' else form.shown('drug', w) if w == 'aspirin'
      else w for i, w in enumerate(words) if i != lost)
    answer += ' '.join(['', *wrong]) + data.draw(
      st.sampled_from(['', '<span class="dr', '</span>', ' ...']))
  spans = form.parse(answer, text, ENTITY_TYPES).spans
  assert set(right) <= set(spans)
