"""Mapping, splits and leaks, on invented folders and on the corpora where they are there."""

import functools
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from fedmedjax.data.corpora import CORPORA, load_brat_site, load_corpus, map_types, source_id
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.types import Document, InputError, Relation, Span

DATA = Path(os.environ.get('FEDMEDJAX_DATA')
            or Path(__file__).resolve().parents[2] / '../shared/data')


def test_mapping_drops_merges_and_keeps_relations_between_survivors():
  document = Document('note', 'severe cough', (
    Span(0, 6, 'Severity'), Span(7, 12, 'Disease'), Span(0, 6, 'Sign'), Span(7, 12, 'Sign'),
  ), (Relation('MODIFY', 0, 1), Relation('CAUSE', 2, 3), Relation('CAUSE', 3, 1)))
  (mapped,), counts = map_types([document], {'Disease': 'problem', 'Sign': 'problem'})
  assert mapped.spans == (Span(7, 12, 'problem'), Span(0, 6, 'problem'))
  assert mapped.relations == (Relation('CAUSE', 1, 0), Relation('CAUSE', 0, 0))
  assert counts == {'entities': 2, 'unmapped': 1, 'duplicate': 1, 'mapped_problem': 3,
                    'relations': 2, 'unlinked': 1}


def write_pubtator(path, ids):
  path.write_text('\n'.join(f'{i}|t|Rash {i}.\n{i}|a|None.\n{i}\t0\t4\tRash\tDisease\tD1\n'
                            for i in ids))


def write_phee(path, ids):
  trigger = {'text': [['due']], 'start': [[5]]}
  effect = {'text': [['Rash']], 'start': [[0]]}
  events = [{'events': [{'event_type': 'Adverse_event', 'Trigger': trigger, 'Effect': effect}]}]
  path.write_text('\n'.join(json.dumps({'id': i, 'context': 'Rash due', 'annotations': events})
                            for i in ids))


def test_training_never_sees_a_note_that_another_corpus_tests_on(tmp_path):
  files = {
    'phee': (write_phee, {'train': ['1_1', '1_2', '2_1', '3_1'], 'dev': ['4_1'], 'test': ['5_1']}),
    'bc5cdr': (write_pubtator, {'CDR_TrainingSet.PubTator': ['5', '3', '4'],
                                'CDR_DevelopmentSet.PubTator': ['2'],
                                'CDR_TestSet.PubTator': ['1']}),
  }
  for name, (write, parts) in files.items():
    (tmp_path / name).mkdir()
    for part, ids in parts.items():
      write(tmp_path / name / f'{part}.{"json" if name == "phee" else "txt"}', ids)
  phee, bc5cdr = load_corpus('phee', tmp_path), load_corpus('bc5cdr', tmp_path)
  assert [d.name for d in phee.train] == ['2_1', '3_1']  # both sentences of abstract 1 are out
  assert [d.name for d in phee.test] == ['5_1'] and [d.name for d in bc5cdr.test] == ['1']
  assert [d.name for d in bc5cdr.train] == ['3', '4']
  assert phee.report['leaked_documents'] == 2 and bc5cdr.report['leaked_documents'] == 1
  assert phee.report['train_documents'] == 2 and phee.report['mapped_problem'] == 6


def write_trials(folder, sources, names=('inc', 'exc')):
  folder.mkdir()
  for source in sources:
    for name in names:
      (folder / f'NCT{source:03}_{name}.txt').write_text('Diabetes')
      (folder / f'NCT{source:03}_{name}.ann').write_text('T1\tCondition 0 8\tDiabetes\n')


def test_both_files_of_a_trial_are_on_the_same_side(tmp_path):
  write_trials(tmp_path / 'chia', range(30))
  site = load_corpus('chia', tmp_path)
  train, test = ({source_id(d.name) for d in part} for part in (site.train, site.test))
  assert (len(site.train), len(site.test), site.report['dev_documents']) == (48, 6, 6)
  assert (len(train), len(test)) == (24, 3) and not train & test
  assert site == load_corpus('chia', tmp_path)
  assert sorted(test) != [f'NCT{i:03}' for i in (27, 28, 29)]  # shuffled, not cut off


def test_load_corpus_names_what_is_wrong(tmp_path):
  with pytest.raises(InputError, match="'nope'.*maccrobat2020, chia, phee, bc5cdr, ncbi_disease"):
    load_corpus('nope', tmp_path)
  with pytest.raises(InputError) as error:
    load_corpus('chia', tmp_path)
  message = str(error.value)
  assert '\n' not in message and 'FEDMEDJAX_DATA' in message and 'data.root' in message
  assert 'chia/' in message and str(tmp_path / 'chia') in message


def test_a_site_of_ones_own(tmp_path):
  write_trials(tmp_path / 'notes', range(10), names=('a',))
  own = functools.partial(load_brat_site, 'mine', tmp_path / 'notes', {'Condition': 'problem'},
                          ['problem'])
  site = own(0.3, seed=1)
  assert (site.name, site.types, len(site.train), len(site.test)) == ('mine', ('problem',), 7, 3)
  assert not {d.name for d in site.train} & {d.name for d in site.test}
  assert site == own(0.3, seed=1) and site.test != own(0.3, seed=2).test
  assert len(own(1.0, seed=1).test) == 10 and len(own(0.0, seed=1).train) == 10
  assert site.report['entities'] == 10 and site.train[0].spans == (Span(0, 8, 'problem'),)


@pytest.mark.parametrize(('mapping', 'types', 'share', 'said'), [
  ({'Condition': 'illness'}, ['problem'], 0.3, 'illness'),
  ({'Condition': 'problem'}, ['drug'], 0.3, 'problem'),
  ({'Condition': 'problem'}, [], 0.3, 'no entity type'),
  ({'Condition': 'problem', 'Conditon': 'problem'}, ['problem'], 0.3, 'Conditon.*it has Condition'),
  ({'Condition': 'problem'}, ['problem'], 1.3, '1.3'),
  ({'Condition': 'problem'}, ['problem'], 0.01, '0.01'),
])
def test_a_site_of_ones_own_with_mistakes(tmp_path, mapping, types, share, said):
  write_trials(tmp_path / 'notes', range(3), names=('a',))
  with pytest.raises(InputError, match=said) as error:
    load_brat_site('mine', tmp_path / 'notes', mapping, types, share, seed=1)
  assert '\n' not in str(error.value) and re.match("site 'mine'", str(error.value))


@functools.cache
def corpus(name):
  if not (DATA / name).is_dir():
    # CI sets this where corpora lie beside the checkout: none may go unread there.
    assert not os.environ.get('FEDMEDJAX_REQUIRE_DATA'), f'{DATA / name} is absent'
    pytest.skip(f'{DATA / name} is absent; FEDMEDJAX_DATA names the folder of the corpora')
  return load_corpus(name, DATA)


# Counts of shared/DATA.md per schema type, over all parts; documents trained and tested on.
@pytest.mark.parametrize(('name', 'mapped', 'documents'), [
  ('maccrobat2020', dict(problem=4744, treatment=1036, test=4598, drug=1080), (160, 20)),
  ('chia', dict(problem=12039, treatment=3595, test=3305, drug=3801), (1600, 200)),
  ('phee', dict(problem=4871 + 2085, drug=6058), (2898 - 18, 968)),
  ('bc5cdr', dict(problem=12850, drug=15935), (500 - 1, 500)),
  ('ncbi_disease', dict(problem=6892 - 11), (592, 100)),
], ids=list(CORPORA))
def test_counts_and_splits_of_the_corpora(name, mapped, documents):
  site = corpus(name)
  assert site.types == tuple(mapped)
  assert {kind: site.report[f'mapped_{kind}'] for kind in mapped} == mapped
  assert (len(site.train), len(site.test)) == documents
  assert not {source_id(d.name) for d in site.train} & {source_id(d.name) for d in site.test}


@pytest.mark.parametrize('name', CORPORA)
def test_sentences_cut_few_entities(name):
  site = corpus(name)
  documents = site.train + site.test
  total = sum((sentence_examples(d, site.types)[1] for d in documents), Counter())
  assert total['crossing'] <= 0.001 * total['entities']  # measured: 3 in all, in chia
  assert total['sentences'] > len(site.train)
