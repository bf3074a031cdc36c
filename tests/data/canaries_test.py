"""Canaries: who gets them, which are in, and that they are trained on and nothing else."""

import numpy as np
import pytest

from fedmedjax.data import canaries
from fedmedjax.data.hashed_words import encode_word_site
from fedmedjax.data.labels import label_names
from fedmedjax.data.synthetic.cohorts import generate_cohort

SITES = [('a', ('problem', 'drug')), ('b', ('test',))]


def test_coins_are_fair_independent_and_of_the_seed():
  drawn = canaries.draw_canaries(SITES, 500, 7)
  assert drawn == canaries.draw_canaries(SITES, 500, 7) != canaries.draw_canaries(SITES, 500, 8)
  assert [one.site for one in drawn[:4]] == ['a', 'b', 'a', 'b'] and len(drawn) == 1000
  coins = np.asarray([one.planted for one in drawn])
  assert abs(coins.mean() - 0.5) < 0.06 and abs(np.corrcoef(coins[1:], coins[:-1])[0, 1]) < 0.1
  # A fixed number of them would make each coin depend on the others.
  numbers = {sum(one.planted for one in canaries.draw_canaries(SITES, 20, seed))
             for seed in range(9)}
  assert len(numbers) > 3
  assert {one.kind for one in drawn if one.site == 'b'} == {'test'}
  assert len({one.document.text for one in drawn}) == 1000
  note = drawn[0].document
  (span,) = note.spans
  assert note.text[span.start:span.end].count(' ') == 1 and note.source == note.name
  row = canaries.draw_canaries(SITES, 1, 0, rows=True)[0].document
  assert row.target.isdigit() and row.target not in row.text


@pytest.mark.parametrize('limit', [0, 5])
def test_planted_notes_are_trained_on_and_nothing_else(limit):
  corpus = generate_cohort('synthetic_icu', seed=1, train_notes=6)
  labels = label_names(corpus.types)
  drawn = canaries.draw_canaries([(corpus.name, corpus.types)], 6, 3)
  (notes,) = canaries.notes_of(drawn, [corpus])

  def site(**more):
    return encode_word_site(
      corpus, labels=labels, buckets=64, max_length=24, validation_share=0.3,
      validation_examples=4, max_train_sentences=limit, **more)

  (plain,), (planted,) = site().tasks, site(planted=notes).tasks
  known = [example for example in planted.solved if canaries.is_canary(example)]
  assert [example.document for example in known] == [note.name for note in notes]
  assert len(planted.train) == len(plain.train) + len(notes) > len(plain.train)
  assert planted.test == plain.test and len(planted.validation) == len(plain.validation)
  assert planted.solved[:len(plain.solved)] == plain.solved
