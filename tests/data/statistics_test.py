"""Divergences by hand, and the numbers of a site of two invented notes."""

import math

import numpy as np
import pytest

from fedmedjax.data.statistics import (
  jensen_shannon,
  matrix,
  site_statistics,
  type_divergence,
  vocabulary_divergence,
)
from fedmedjax.types import Document, Relation, SiteCorpus, Span


def test_jensen_shannon_by_hand():
  """P = (3/4, 1/4), Q = (1/4, 3/4): M = (1/2, 1/2), H(M) = 1 and H(P) = H(Q) = 0.811278 bits.
  P = (1, 0), Q = (1/2, 1/2): M = (3/4, 1/4), 0.811278 - (0 + 1) / 2."""
  entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
  assert jensen_shannon({'a': 3, 'b': 1}, {'a': 5, 'b': 15}) == pytest.approx(1 - entropy)
  assert jensen_shannon({'a': 9}, {'b': 2, 'a': 2}) == pytest.approx(entropy - 0.5)
  assert jensen_shannon({'a': 1, 'b': 2}, {'b': 4, 'a': 2}) == pytest.approx(0, abs=1e-12)
  assert jensen_shannon({'a': 1}, {'b': 1}) == pytest.approx(1)
  assert math.isnan(jensen_shannon({}, {'a': 1}))


def site(name, types, *spans):
  note = Document(name, 'Mild cough. No EKG, mild.', spans, (Relation('severity', 0, 1),))
  return site_statistics(SiteCorpus(
    name, types, (note,), (note._replace(text='Mild.', spans=(), relations=()),),
    {'unmapped': 3}))


def test_a_site_in_numbers():
  """A nested entity counts as set aside, one of a type that was not annotated not at all."""
  found = site('a', ('problem', 'test'), Span(5, 10, 'problem'), Span(0, 4, 'severity'),
               Span(0, 10, 'problem'), Span(15, 18, 'test'), Span(15, 18, 'drug'))
  assert found.sentence_words.tolist() == [3, 5, 2] and found.note_words.tolist() == [8, 2]
  assert found.vocabulary == {'mild': 3, '.': 3, 'cough': 1, 'no': 1, 'ekg': 1, ',': 1}
  assert found.entities == {'problem': 1, 'test': 1} and found.modifiers == {'severity': 1}
  assert (found.train_notes, found.test_notes) == (1, 1)
  assert found.report == {'unmapped': 3, 'used_nested': 1, 'used_crossing': 0}


def test_types_are_compared_where_both_sites_annotated_them():
  """Of problem and test: (1/2, 1/2) against (1, 0), as above; drug is the second site's alone."""
  a = site('a', ('problem', 'test'), Span(5, 10, 'problem'), Span(15, 18, 'test'))
  b = site('b', ('problem', 'test', 'drug'), Span(5, 10, 'problem'), Span(15, 18, 'drug'))
  c = site('c', ('drug',), Span(5, 10, 'drug'), Span(0, 4, 'drug'))
  entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
  values = matrix(type_divergence, (a, b, c))
  np.testing.assert_allclose(
    values, [[0, entropy - 0.5, np.nan], [entropy - 0.5, 0, np.nan], [np.nan, np.nan, 0]])
  assert vocabulary_divergence(a, b) == 0
