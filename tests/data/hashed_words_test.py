"""Words of sentences as hashed features, and labels of words back to spans."""

import zlib

import numpy as np
import pytest

from fedmedjax.data.hashed_words import FEATURES, encode_word_site, encode_words, features, shape
from fedmedjax.data.labels import label_names, spans
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.types import ENTITY_TYPES, Example, Span

LABELS = label_names(('problem', 'drug'))  # O, B-problem, I-problem, B-drug, I-drug
NAMES = label_names(ENTITY_TYPES)
# Characters: denies 0-6, chest 7-12, pain 13-17, the comma 17-18, takes 19-24, Aspirin 25-32.
TEXT = 'denies chest pain, takes Aspirin'
ENTITIES = (Span(7, 17, 'problem'), Span(25, 32, 'drug'))


@pytest.mark.parametrize('word, looks', [
  ('HbA1c', 'XxX9x'), ('12', '9'), ('q.d.', 'x.x.'), ('μg', 'x'), ('--', '-')])
def test_shapes_of_words(word, looks):
  assert shape(word) == looks


def test_features_are_checksums_of_their_names():
  """Known to any CRC-32: of the ASCII text of a feature, modulo the number of buckets."""
  named = (b'word=Aspirin', b'lower=aspirin', b'p2=as', b'p4=aspi', b's2=in', b's3=rin',
           b's4=irin', b'shape=Xx')
  assert features('Aspirin', 4096) == tuple(zlib.crc32(name) % 4096 for name in named)
  assert zlib.crc32(b'123456789') == 0xCBF43926  # the check value of the algorithm


@pytest.mark.parametrize('longest, cuts', [(24, 0), (3, 1), (1, 1)])
def test_words_come_back_as_the_spans_they_were(longest, cuts):
  windows, counts = encode_words([Example('n', 0, TEXT, ENTITIES)], LABELS, 64, longest)
  assert counts['cut_sentences'] == cuts and counts['unlabelled'] == 0
  tags = [LABELS[label] for window in windows[0] for label in window.labels]
  words = [word for window in windows[0] for word in window.words]
  assert tags == ['O', 'B-problem', 'I-problem', 'O', 'O', 'B-drug']
  assert [TEXT[a:b] for a, b in words] == ['denies', 'chest', 'pain', ',', 'takes', 'Aspirin']
  assert spans(tags, words) == ENTITIES
  for window in windows[0]:
    assert window.tokens.shape == (len(window.labels), len(FEATURES)) and len(window.labels)
    assert window.places.tolist() == list(range(len(window.labels)))
    assert len(window.labels) <= longest


def test_texts_without_words_and_words_that_two_entities_share():
  assert encode_words([Example('n', 0, ' \n', ())], LABELS, 64, 8)[0] == [()]
  assert encode_words([], LABELS, 64, 8)[0] == []
  one = Example('n', 0, 'chestpain', (Span(0, 5, 'problem'), Span(5, 9, 'drug')))
  windows, counts = encode_words([one], LABELS, 64, 8)
  assert windows[0][0].labels.tolist() == [1] and counts['unlabelled'] == 1


def test_a_cohort_comes_back_whole():
  """All entities of invented notes are of whole words; test sentences hide theirs."""
  corpus = generate_cohort('synthetic_icu', train_notes=6, test_notes=2)
  site = encode_word_site(
    corpus, labels=NAMES, buckets=64, max_length=500, validation_share=0.2, validation_examples=3)
  (part,) = site.tasks
  for example, window in zip(part.solved, part.train, strict=True):
    assert spans([NAMES[label] for label in window.labels], window.words) == example.entities
  assert len(part.validation) == 3 and part.test
  assert not any(window.labels.any() for windows in part.test_tokens for window in windows)
  assert all(np.issubdtype(window.tokens.dtype, np.int32) for window in part.train)
