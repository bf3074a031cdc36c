"""Mapping, splits and leaks, on invented folders and on the corpora where they are there."""

import functools
import json
from collections import Counter
from pathlib import Path

import pytest
from real_data import real_data

from configs.quickstart import get_config
from fedmedjax.data.formats.corpora import (
  CORPORA,
  SiteFolder,
  load_corpus,
  load_folder,
)
from fedmedjax.data.formats.readers import FORMATS, find_parts, read_parts
from fedmedjax.data.leaks import unleaked
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.sources import source_of
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.data.tasks import ask
from fedmedjax.experiment import notes
from fedmedjax.experiment.notes import load_corpora
from fedmedjax.report.set_aside import set_aside
from fedmedjax.types import ENTITY_TYPES, Document, InputError, SiteCorpus, Span


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
  folder.mkdir(parents=True)
  for source in sources:
    for name in names:
      (folder / f'NCT{source:03}_{name}.txt').write_text('Diabetes')
      (folder / f'NCT{source:03}_{name}.ann').write_text('T1\tCondition 0 8\tDiabetes\n')


def test_both_files_of_a_trial_are_on_the_same_side(tmp_path):
  write_trials(tmp_path / 'chia', range(30))
  site = load_corpus('chia', tmp_path)
  train, test = ({source_of(d) for d in part} for part in (site.train, site.test))
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


def folder_site(tmp_path, notes=10, rows='[entities]\nCondition = "problem"\n', **changes):
  write_trials(tmp_path / 'notes', range(notes), names=('a',))
  (tmp_path / 'mine.toml').write_text(rows)
  return SiteFolder('mine', str(tmp_path / 'notes'), 'brat', str(tmp_path / 'mine.toml'), 0.3
                    )._replace(**changes)


def test_a_site_of_ones_own(tmp_path):
  described = folder_site(tmp_path)
  # All trials have one text; as notes of their own they must differ, or all would be leaks.
  for i, path in enumerate(sorted((tmp_path / 'notes').glob('*.txt'))):
    path.write_text(f'Diabetes {i}')
  site = load_folder(described)
  assert (site.name, site.types, len(site.train), len(site.test)) == ('mine', ('problem',), 7, 3)
  assert not {d.name for d in site.train} & {d.name for d in site.test}
  assert site == load_folder(described) and site.modifiers == {}
  assert len(load_folder(described._replace(test_share=1.0)).test) == 10
  assert len(load_folder(described._replace(test_share=0.0)).train) == 10
  assert site.report['entities'] == 10 and site.train[0].spans == (Span(0, 8, 'problem'),)


def test_what_never_occurs_is_not_asked_unless_it_is_said_to_be_annotated(tmp_path):
  """A mapping for four types over notes of one: a model that finds others is not called wrong."""
  described = folder_site(tmp_path, mapping='schema')
  for path in (tmp_path / 'notes').glob('*.ann'):
    path.write_text('T1\tproblem 0 8\tDiabetes\nT2\tnegation 0 3\tDia\nR1\tnegation Arg1:T1 '
                    'Arg2:T2\n')
  site = load_folder(described)
  assert (site.types, site.modifiers) == (('problem',), {'problem': ('negation',)})
  assert site.report['absent_types'] == 3 and '3 types that never occur' in set_aside(site.report)
  wider = load_folder(described._replace(annotated=('drug', 'problem')))
  assert wider.types == ('problem', 'drug') and 'absent_types' not in wider.report
  with pytest.raises(InputError, match="site 'mine': annotated=.*'test',. .* yields problem only"):
    load_folder(folder_site(tmp_path / 'x', annotated=('test',)))
  # A file of one's own says so in its first line, of relations as well.
  declared = folder_site(
    tmp_path / 'y', rows='annotated = ["problem", "test"]\n[entities]\nCondition = "problem"\n'
    '[relations.R]\nmodifiers = "course"\n[definitions]\ntest = "a scan"\n')
  site = load_folder(declared)
  assert (site.types, site.modifiers) == (('problem', 'test'), {'problem': ('course',)})
  assert site.definitions == {'test': 'a scan'}
  # Fewer than occur: the others are set aside.
  narrow = folder_site(
    tmp_path / 'z', rows='[entities]\nCondition = "problem"\nX = "drug"\n', annotated=('problem',))
  (tmp_path / 'z/notes/NCT000_a.ann').write_text('T1\tX 0 8\tDiabetes\n')
  site = load_folder(narrow)
  assert (site.types, site.report['unmapped']) == (('problem',), 1)


def test_no_site_trains_on_what_another_is_tested_on(tmp_path):
  """Two folders with a note in common, and an external cohort with another."""
  def corpus(name, train, test):
    return SiteCorpus(name, ('problem',), *(
      tuple(Document(f'{name}{text}', text, (), ()) for text in texts) for texts in (train, test)),
      {'leaked_documents': 1})

  sites = [corpus('a', 'uvw', 'xy'), corpus('b', 'xvzp', 'pq')]
  found = unleaked(sites, [corpus('out', 'u', 'wz')])
  assert [[note.text for note in site.train] for site in found] == [['u', 'v'], ['v']]
  assert [site.report['leaked_documents'] for site in found] == [2, 4]
  assert [site.test for site in found] == [site.test for site in sites]
  with pytest.raises(InputError, match="site 'b': each of its 4 training notes has the source,"):
    unleaked(sites, [corpus('out', 'u', 'vz')])


def study_with(external: SiteCorpus):
  """The corpora of the default study, with an external cohort that is read in place of Chia."""
  config = get_config('fed_medlora')
  config.data.external = ('chia',)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(notes, 'load_corpus', lambda *_: external._replace(name='chia'))
    return load_corpora(config)


def test_a_study_leaves_out_what_its_sites_are_tested_on():
  """An external cohort is tested on thirty of a site's training notes: the site trains without."""
  train = generate_cohort('synthetic_icu')
  found = study_with(train._replace(train=(), test=train.train[:30]))
  icu = next(site for site in found.sites if site.name == 'synthetic_icu')
  assert len(icu.train) == len(train.train) - 30 and icu.report['leaked_documents'] == 30


def test_an_external_cohort_of_a_study_is_asked_as_its_sites_are():
  """Its own notes know one pair; the prompt is that of the site that asks for most all the same."""
  found = study_with(
    generate_cohort('synthetic_external')._replace(modifiers={'drug': ('route',)}))
  trained = max((ask('re', site) for site in found.sites), key=lambda asked: sum(
    map(len, asked.asked.values())))
  outside = ask('re', found.external[0])
  assert outside.instruction == trained.instruction and len(trained.types) > 1
  assert outside.asked == {'drug': ('route',)} and outside.types == ('route',)


def test_a_training_note_with_the_text_of_a_test_note_is_dropped(tmp_path):
  site = load_folder(folder_site(tmp_path))
  assert (len(site.train), len(site.test), site.report['leaked_documents']) == (0, 3, 7)


def test_parts_that_are_named_are_kept(tmp_path):
  described = folder_site(tmp_path, notes=3)
  for part in ('train', 'test'):
    write_trials(tmp_path / 'notes' / part, range(2 if part == 'train' else 1), names=(part,))
  (tmp_path / 'notes' / 'train' / 'NCT001_train.txt').write_text('Diabetes mellitus')
  site = load_folder(described)
  # NCT000 has the same text on both sides.
  assert [d.name for d in site.test] == ['NCT000_test']
  assert [d.name for d in site.train] == ['NCT001_train']
  (tmp_path / 'notes' / 'test').rename(tmp_path / 'notes' / 'tests')
  with pytest.raises(InputError, match='has train but no test part'):
    load_folder(described)


def test_files_named_for_parts_and_a_folder_of_files(tmp_path):
  for name in ('train-00000-of-00002', 'train-00001-of-00002', 'test', 'validation'):
    (tmp_path / f'{name}.bio').write_text(f'{name}\tO\nasthma\tB-Condition\n')
  found = load_folder(folder_site(tmp_path / 'x', path=str(tmp_path), format='conll'))
  assert [len(found.train), len(found.test), found.report['dev_documents']] == [2, 1, 1]
  (tmp_path / 'test.bio').rename(tmp_path / 'notes.bio')
  for path in tmp_path.glob('[tv]*.bio'):
    path.rename(tmp_path / f'a{path.name}')  # no word of a part is left
  found = load_folder(folder_site(tmp_path / 'y', path=tmp_path, format='conll'))
  assert [len(found.train), len(found.test)] == [3, 1]


@pytest.mark.parametrize(('names', 'expected'), [
  (('Train.BioC', 'TEST.BioC'), (1, 0, 1)), (('train_set', 'dev_set', 'test_set'), (1, 1, 1)),
  (('corpus-train', 'corpus-valid', 'corpus-test', 'README'), (1, 1, 1)),
  (('NCBItrainset_corpus', 'NCBIdevelopset_corpus', 'NCBItestset_corpus'), (1, 1, 1)),
  (('CDR_TrainingSet.PubTator', 'CDR_DevelopmentSet.PubTator', 'CDR_TestSet.PubTator'), (1, 1, 1)),
  (('2019 training 1', '2019 training 2', '2019 val', '2019 testing'), (2, 1, 1)),
  (('TrainData', 'testData'), (1, 0, 1)),
  (('training-a', 'training-b'), None), (('latest', 'contest', 'trainer', 'rest'), None),
  (('stress_test', *(f'note_{i}' for i in range(9))), None),
  (('train_dev', 'test'), 'train_dev names dev and train'),
  (('train_set', 'dev_set'), 'has train_set but no test part'),
  (('train_set', 'gold'), 'has train_set but no test part'),
  (('fold0_train', 'fold0_test', 'fold1_train', 'fold1_test'), 'are of two divisions'),
  (('split1-train', 'cv2-test'), 'cv2-test and split1-train are of two divisions'),
  (('fold3_train', 'fold3_test'), (1, 0, 1)),
  (('corpus_test', 'corpus'), 'corpus_test is named for the part test, and corpus for none'),
  (('a_train', 'a_test', 'b'), 'a_test is named for the part test, and b for none'),
])
def test_parts_are_words_of_names(tmp_path, names, expected):
  """(training, development, test) files; None = the files name no parts."""
  for name in names:
    (tmp_path / f'{name}.conll').write_text(f'{name.split()[0]}\tO\n')
  if isinstance(expected, str):
    with pytest.raises(InputError, match=expected):
      find_parts(tmp_path, FORMATS['conll'])
  else:
    found = find_parts(tmp_path, FORMATS['conll'])
    sizes = tuple(len(found.get(part, ())) for part in ('train', 'dev', 'test'))
    assert sizes == (expected or (0, 0, 0))
    # Folders as well, of a format that is read folder by folder.
    for path in tmp_path.iterdir():
      path.unlink()
      (tmp_path / path.stem).mkdir()
    assert expected is None or {
      part: [path.stem for path in paths] for part, paths in found.items()} == {
        part: [path.name for path in paths]
        for part, paths in find_parts(tmp_path, FORMATS['brat']).items()}


def test_notes_of_a_folder_that_name_their_part(tmp_path):
  described = folder_site(tmp_path, notes=4)
  for i, path in enumerate(sorted((tmp_path / 'notes').glob('*.txt'))):
    path.write_text(f'Diabetes {i}')
    for file in (path, path.with_suffix('.ann')):
      file.rename(file.with_name(f'{i}-{("Test", "train", "train", "dev")[i]}{file.suffix}'))
  site = load_folder(described)
  assert [d.name for d in site.train] == ['1-train', '2-train']
  assert [d.name for d in site.test] == ['0-Test'] and site.report['dev_documents'] == 1
  for ending in ('.txt', '.ann'):
    (tmp_path / 'notes' / f'5{ending}').write_text('')
  with pytest.raises(InputError, match='0-Test is named for the part test, and 5 for none'):
    load_folder(described)


@pytest.mark.parametrize(('parts', 'expected'), [
  (('train', 'test', 'Validation', 'train'), (2, 1, 1)), (('train', None, 'test'), 'for none'),
  (('a', 'b'), None), (('train', 'train'), None)])
def test_records_that_name_their_part(tmp_path, parts, expected):
  (tmp_path / 'a.json').write_text(json.dumps([
    {'tokens': [f'w{i}'], 'tags': ['O'], 'split': part} for i, part in enumerate(parts)]))
  if isinstance(expected, str):
    with pytest.raises(InputError, match=expected):
      read_parts(tmp_path, FORMATS['reference'])
  else:
    found, _ = read_parts(tmp_path, FORMATS['reference'])
    assert (tuple(map(len, found)) if expected else len(found)) == (expected or 2)


@pytest.mark.parametrize(('form', 'names'), [
  ('bioc', ('Train.BioC.XML', 'Train.BioC.JSON', 'Test.BioC.JSON')),
  ('conll', ('train.tsv', 'test.tsv', 'test.txt')), ('conll', ('notes.bio', 'Notes.txt')),
  ('pubtator', ('a.pubtator', 'b.txt', 'a.txt'))])
def test_notes_in_two_forms_are_not_read_twice(tmp_path, form, names):
  for name in names:
    (tmp_path / name).write_text('a O\n')
  with pytest.raises(InputError, match='are the same notes in two forms'):
    read_parts(tmp_path, FORMATS[form])


def test_concepts_of_i2b2_that_lie_apart_from_their_texts(tmp_path):
  """As the challenge ships them: the texts of its test notes are in a folder of their own."""
  for folder, name, text in (
      ('relation_training_data/beth/txt', 'a.txt', 'Fever.'), ('test_data', 'b.txt', 'No rash.'),
      ('relation_training_data/beth/concept', 'a.con', 'c="fever" 1:0 1:0||t="problem"'),
      ('reference_standard_for_test_data/concepts', 'b.con', 'c="rash" 1:1 1:1||t="problem"')):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / name).write_text(text)
  parts, counts = read_parts(tmp_path, FORMATS['i2b2'])
  assert [[d.name for d in part] for part in parts] == [['a'], [], ['b']]
  assert counts['entities'] == 2


@pytest.mark.parametrize(('files', 'said'), [
  (('data/train/a.ann', 'data/test/a.ann'), 'there are some in .*/data: give that folder'),
  (('p1/a.ann', 'p2/b.ann', 'p3/c.ann'), 'some in .*/p1 and 2 other folders: put them into one'),
  (('notes.tar.gz', 'README.txt'), 'unpack .*/notes.tar.gz'),
  (('a.ann', 'README.txt'), 'a.ann has no a.txt beside it'),
  (('a.txt', 'b.ann'), r'a.txt has no a.ann beside it \(and 1 more error')])
def test_what_a_brat_folder_lacks(tmp_path, files, said):
  for file in files:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('')
  with pytest.raises(InputError, match=said):
    read_parts(tmp_path, FORMATS['brat'])


def test_folders_of_a_home_and_those_that_hold_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  described = folder_site(tmp_path / 'mine')
  mapping = Path(described.mapping)
  mapping.write_bytes(b'\xef\xbb\xbf' + mapping.read_bytes())
  home = described._replace(path='~/mine/notes', mapping=Path('~') / mapping.relative_to(tmp_path))
  assert load_folder(home).test == load_folder(described).test
  with pytest.raises(InputError, match=r'no .txt and .ann files .*; there are some in .*notes'):
    load_folder(home._replace(path='~/mine'))
  for path in list((tmp_path / 'mine/notes').iterdir()):
    path.rename(path.with_suffix(path.suffix.upper()))
  with pytest.raises(InputError, match='NCT000_a.ANN is there: rename it'):
    load_folder(home)


@pytest.mark.parametrize(('rows', 'changes', 'said'), [
  ('[entities]\nCondition = "illness"\n', {}, "mine.toml:2: 'Condition': .*illness.* problem"),
  ('annotated = ["drug"]\n[entities]\nCondition = "problem"\n', {}, 'mine.toml:1: .*problem'),
  ('', {}, r'mine.toml:1: no \[entities\]'),
  ('[entities]\nCondition = \n', {}, 'mine.toml:2: no TOML'),
  ('[entities]\nCondition = ["problem", "drug"]\n', {}, "mine.toml:2: 'Condition'"),
  (f'x = {"9" * 5000}\n', {}, 'mine.toml:2: no TOML'),
  ('[entities]\nDisease = "problem"\n', {}, 'Disease do not occur in .*it has Condition'),
  ('[entities]\nConditions = "problem"\nX = "drug"\n', {}, 'do not occur'),
  ('[entities]\nCondition = "problem"\n[relations.R]\nmodifiers = "colour"\n', {},
   "mine.toml:3: 'R': .*colour"),
  ('[entities]\nCondition = "problem"\n[relations.R]\nmodifier = "course"\n', {},
   "mine.toml:3: 'R': 'modifier' is not among main, modifiers, sibling"),
  ('[entities]\nCondition = "problem"\n[attributes.A]\nmodifier = "negation"\n', {}, "'cues'"),
  ('[entities]\nCondition = "problem"\n[definitions]\ndrug = ""\n', {}, "mine.toml:4: 'drug': ''"),
  ('[entities]\nCondition = "problem"\n[definitions]\ndose = "x"\n', {}, "mine.toml:4: 'dose'"),
  ('[entity]\nCondition = "problem"\n', {}, "mine.toml:1: 'entity'.*entities"),
  ('[entities]\nCondition = "problem"\n', {'test_share': 0.01}, "site 'mine'.*0.01"),
  ('[entities]\nCondition = "problem"\n', {'mapping': 'chai'}, "'chai' is neither one of .*chia"),
  ('[entities]\nCondition = "problem"\n', {'path': '/nowhere'}, '/nowhere'),
  ('[entities]\nCondition = "problem"\n', {'format': 'conll', 'path': 'docs'}, 'no file ending in'),
])
def test_a_site_of_ones_own_with_mistakes(tmp_path, rows, changes, said):
  with pytest.raises(InputError, match=said) as error:
    load_folder(folder_site(tmp_path, 3, rows, **changes))
  assert '\n' not in str(error.value)


def test_a_slip_in_a_mapping_that_would_drop_a_type(tmp_path):
  described = folder_site(tmp_path, 3, '[entities]\nCondition = "problem"\nDurg = "drug"\n')
  assert load_folder(described).types == ('problem',)  # it may just not occur
  note = tmp_path / 'notes' / 'NCT000_a.ann'
  note.write_text(note.read_text() + 'T2\tDrug 0 8\tDiabetes\n')
  with pytest.raises(InputError, match="'Durg' does not occur in .*; it has 'Drug'"):
    load_folder(described)


@functools.cache
def corpus(name):
  return load_corpus(name, real_data(name))


# Official counts per schema type, over all parts; documents trained and tested on.
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
  assert not {source_of(d) for d in site.train} & {source_of(d) for d in site.test}


def test_sentences_of_an_abstract_are_one_source():
  """Of PHEE's 968 test sentences 893 share their abstract with another one: counted with sort and
  uniq, there are 359 abstracts. Both files of a Chia trial are one source, too."""
  tested = Counter(map(source_of, corpus('phee').test))
  assert (len(tested), sum(count for count in tested.values() if count > 1)) == (359, 893)
  assert {*Counter(map(source_of, corpus('chia').test)).values()} == {2}


# Official counts of relations that are in the schema, by (entity, modifier).
@pytest.mark.parametrize(('name', 'counts'), [
  ('maccrobat2020', dict(test_labvalue=2747, problem_bodyloc=1802, drug_dosage=354,
                         problem_severity=352, drug_route=179)),
  ('chia', dict(test_labvalue=2799, problem_temporal=1323, treatment_temporal=857,
                drug_temporal=532, test_temporal=286, problem_negation=380,
                treatment_negation=148, drug_negation=125, test_negation=13)),
])
def test_counts_of_mapped_relations(name, counts):
  """Chia's sum to the official 2,799 Has_value, 2,998 Has_temporal and 666 Has_negation."""
  assert {key: corpus(name).report[f'mapped_{key}'] for key in counts} == counts
  if name == 'chia':
    assert sum(counts.values()) == 2799 + 2998 + 666


def test_negation_cues_of_maccrobat():
  """909 of the 1,008 negated entities of the schema have a cue in their sentence."""
  report = corpus('maccrobat2020').report
  cued = sum(report[f'mapped_{kind}_negation'] for kind in ENTITY_TYPES)
  assert (cued, report['attributes_without_cue']) == (909, 99)


@pytest.mark.parametrize('name', CORPORA)
def test_sentences_cut_few_entities(name):
  site = corpus(name)
  documents = site.train + site.test
  total = sum((sentence_examples(d, site.types)[1] for d in documents), Counter())
  assert total['crossing'] <= 0.001 * total['entities']  # measured: 3 in all, in chia
  assert total['sentences'] > len(site.train)
