"""Which sentences of a site are trained and tested on."""

import numpy as np
import pytest

from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.types import Document, SiteCorpus, Span


@pytest.fixture(scope='module')
def site(smollm):
  corpus = generate_cohort('synthetic_icu', train_notes=12)
  return lambda **split: encode_site(
    corpus, smollm.tokenizer, max_length=400, tasks=('ner', 're'), **split)


def places(examples) -> set:
  return {(example.document, example.start) for example in examples}


def test_tested_sentences_are_drawn_from_all_notes(site):
  """Fewer are a subset of more; all questions about a drawn sentence are asked."""
  few, more, every = (site(max_test=number) for number in (6, 30, 0))
  entities, modifiers = every.tasks
  assert len(places(few.tasks[0].test)) == 6 and len(places(more.tasks[0].test)) == 30
  assert places(few.test) < places(more.test) < places(every.test)
  notes = [note for note, _ in sorted(places(more.test))]
  assert len(set(notes)) > len({example.document for example in entities.test[:30]})
  drawn = places(more.tasks[0].test)
  assert more.tasks[1].test == tuple(
    example for example in modifiers.test if (example.document, example.start) in drawn)
  # In the order of the notes, whatever the order in which they were drawn.
  assert more.tasks[0].test == tuple(e for e in entities.test if (e.document, e.start) in drawn)


def test_sentences_to_train_on_are_drawn_alike(site):
  """Not from the held-out notes, and V stays as it is."""
  split = dict(validation_share=0.25, validation_examples=4)
  few, more, every = (site(max_train_sentences=n, **split) for n in (5, 20, 0))
  assert [len(places(part.tasks[0].solved)) for part in (few, more)] == [5, 20]
  assert places(few.tasks[0].solved) < places(more.tasks[0].solved)
  other = site(max_train_sentences=5, seed=1, **split)
  assert places(other.tasks[0].solved) != places(few.tasks[0].solved) and other.test == few.test
  for small, whole in zip(more.tasks, every.tasks, strict=True):
    assert places(small.solved) <= places(whole.solved) and small.test == whole.test
    for one, other in zip(small.validation, whole.validation, strict=True):
      np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_part_without_main_entities_has_no_part_in_relations(smollm):
  """Its notes were dealt out of a pool that annotates modifiers; none of its own has a main
  entity, so there is nothing to ask about, and its entities are trained on all the same."""
  note = Document('quiet', 'Nothing new today.', (), ())
  spoken = Document('told', 'Fever since Monday.', (Span(0, 5, 'problem'),), ())
  corpus = SiteCorpus('part', ('problem',), (note,), (), {}, {'problem': ('temporal',)})
  found = encode_site(
    corpus, smollm.tokenizer, max_length=400, tasks=('ner', 're'), tests=False)
  assert [part.ask.task for part in found.tasks] == ['ner'] and len(found.train) == 1
  both = encode_site(
    corpus._replace(train=(note, spoken)), smollm.tokenizer, max_length=400, tasks=('ner', 're'),
    tests=False)
  assert [part.ask.task for part in both.tasks] == ['ner', 're']
