"""Which sentences of a site are trained and tested on."""

import numpy as np
import pytest

from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.experiment.notes import watched_sites
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


def test_what_is_watched_while_training_is_held_out(site):
  """Eight sentences or as many as V may have, the same for every seed, of V's notes alone."""
  every = site(validation_share=0.25, validation_examples=16)
  few = site(validation_share=0.25, validation_examples=3, seed=7)
  for part, fewer in zip(every.tasks, few.tasks, strict=True):
    assert (len(part.watched), len(fewer.watched)) == (8, 3)
    assert set(places(fewer.watched)) <= set(places(part.watched))
    assert len(part.watched_tokens) == 8
    notes = {example.document for example in part.watched}
    assert not notes & {example.document for example in (*part.solved, *part.test)}
  assert site(validation_share=0.25, validation_examples=0).tasks[0].watched == ()
  watched, = watched_sites([every, every._replace(tasks=())])
  assert watched.test == every.tasks[0].watched and len(watched.tasks) == 1
  assert len(watched_sites([every] * 30)) == 12


def test_what_is_too_long_is_counted_with_its_entities(smollm):
  """Of two sentences the longer, with two of three entities, does not fit."""
  short, long = 'Gave aspirin.', 'Later heparin was given again and again, and aspirin, too.'
  text = f'{short}\n{long}\n'
  spans = tuple(Span(at, at + 7, 'drug') for at in (
    text.index('aspirin'), text.index('heparin'), text.rindex('aspirin')))
  note = Document('n', text, spans, ())
  corpus = SiteCorpus('x', ('drug',), (note,), (note._replace(name='t'),), {})
  report = encode_site(corpus, smollm.tokenizer, max_length=40).report
  assert {key: report[key] for key in (
    'too_long', 'too_long_entities', 'measured_examples', 'measured_entities')} == {
      'too_long': 1, 'too_long_entities': 2, 'measured_examples': 2, 'measured_entities': 3}


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
