"""Fewer sentences before training than after it: which, and what is scored on the same ones."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedmedjax.data.outlines import outline, restored
from fedmedjax.data.site import Form, read_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.data.tasks import ask
from fedmedjax.eval import evaluate
from fedmedjax.eval.text_metrics import USUAL
from fedmedjax.experiment.reading import Reading
from fedmedjax.runtime.processes import ALONE
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train.scoring import _untrained, fewer, score_all

QUIET = Reporter(Console(quiet=True))


@pytest.fixture(scope='module')
def sites():
  found = []
  for name in ('synthetic_icu', 'synthetic_external'):
    corpus = generate_cohort(name, train_notes=4, test_notes=4)
    found.append(read_site(corpus, [
      Form(ask(task, corpus), np.zeros(1, np.int32), lambda examples: (examples, Counter()),
           lambda examples: [example.text for example in examples], '') for task in ('ner', 're')
    ], trains=False, max_test=20))
  return found


def places(site):
  return {(example.document, example.start) for example in site.test}


def test_fewer_sentences_are_a_subset_with_all_their_examples(sites):
  for site in sites:
    six, three = fewer(site, 6), fewer(site, 3)
    assert len(places(six)) == 6 and len(places(three)) == 3 and places(three) < places(six)
    for part, whole in zip(six.tasks, site.tasks, strict=True):
      assert part.test == tuple(
        example for example in whole.test if (example.document, example.start) in places(six))
      assert part.test_tokens == tuple(example.text for example in part.test)
    assert fewer(site, 0) is fewer(site, 99) is fewer(site, len(places(site))) is site
  assert places(fewer(sites[0], 6)) == places(fewer(sites[0], 6))


def test_of_another_process_s_site_as_many_sentences_are_known(sites):
  for site in sites:
    other = restored(outline(site), {part.ask.task: part.ask for part in site.tasks}.get, False)
    assert len(other.test) == len(site.test) and len(places(other)) == len(places(site))
    assert len(places(fewer(other, 6))) == 6 and fewer(other, 99) is other


def study(sites, number):
  """A study whose adapters are error rates: 0 = every answer is right, 1 = nothing is found."""
  def answer(adapter, site, advance):
    return [record | {'predicted': record['predicted'] if i % 3 or not adapter else []}
            for i, record in enumerate(
              record for part in site.tasks for record in evaluate.predictions(
                part.ask, part.test, [part.ask.render(example)[1] for example in part.test]))]

  return SimpleNamespace(
    data=SimpleNamespace(tested=sites[:1], external=sites[1:], reading=Reading()),
    spread=None, processes=ALONE,
    options=SimpleNamespace(seed=1, bootstrap_samples=5, text=True, max_zero_shot=number),
    trainable=SimpleNamespace(answer=answer), text_metrics=USUAL)


@pytest.mark.parametrize('names', [('',), ('synthetic_icu', 'other')])
def test_both_are_scored_on_the_same_sentences(sites, names, tmp_path):
  """Where all answers are right, F1 is 1 on any sentences, and the entities that were to be found
  are counted: before training those of six sentences, after it of all, and of the six beside."""
  own = study(sites, 6)
  before, _ = score_all(own, {'': 0}, tmp_path / 'zero_shot', QUIET, trained=False, only=6)
  after, _ = score_all(own, dict.fromkeys(names, 0), tmp_path, QUIET, beside=6)
  found = _untrained(own, before, after)
  assert found['sentences'] == {site.name: 6 for site in sites}
  for site in sites:
    gold = {name: sum(entry['gold'] for entry in scores['ner']['per_type'].values())
            for name, scores in (
              ('before', found['scores'][site.name]), ('beside', found['trained'][site.name]),
              ('after', after[site.name].scores))}
    # Both adapters answer for the external cohort, and their counts are added.
    times = 2 if len(names) > 1 and site is sites[1] else 1
    asked = sum(len(example.entities) for example in fewer(site, 6).tasks[0].test)
    assert gold['before'] * times == gold['beside'] == asked * times
    assert gold['after'] == times * sum(len(example.entities) for example in site.tasks[0].test)
    assert found['trained'][site.name]['ner']['strict']['typed']['f1'] == 1.0
    assert found['trained'][site.name]['re']['modifier']['strict']['typed']['f1'] == 1.0


def test_as_many_sentences_as_are_tested_need_no_scores_of_their_own(sites, tmp_path):
  own = study(sites, 99)
  before, _ = score_all(own, {'': 0}, tmp_path / 'zero_shot', QUIET, trained=False, only=99)
  after, _ = score_all(own, {'': 1}, tmp_path, QUIET, beside=99)
  assert list(_untrained(own, before, after)) == ['scores', 'answers']
  assert after['synthetic_icu'].few is None


def test_answers_on_disk_are_those_of_as_many_sentences(sites, tmp_path):
  """A run that was stopped after zero-shot takes its answers up again, of fewer sentences, too."""
  own = study(sites, 6)
  first, _ = score_all(own, {'': 1}, tmp_path, QUIET, trained=False, only=6)
  own.trainable.answer = None
  again, _ = score_all(own, {'': 1}, tmp_path, QUIET, trained=False, only=6)
  assert [site.scores for site in first.values()] == [site.scores for site in again.values()]
