"""Articles, trials and patients stay together, whatever their parts are called and come in."""

import json
from collections import Counter

import numpy as np
import pytest

from fedmedjax.data.formats.corpora import SiteFolder, load_folder
from fedmedjax.data.leaks import TextIndex, unleaked, without_texts
from fedmedjax.data.partition import partition
from fedmedjax.data.pieces import drawable, sentences_of
from fedmedjax.data.site import Form, read_site
from fedmedjax.data.sources import distinct, source_of, stated, with_sources
from fedmedjax.data.tasks import ask
from fedmedjax.experiment import notes
from fedmedjax.types import Document, InputError, SiteCorpus, Span

MAPPING = '[entities]\nChemical = "drug"\n'


@pytest.mark.parametrize(('name', 'form', 'pattern', 'source'), [
  ('NCT00050349_exc', 'brat', '', 'NCT00050349'),
  ('PMC-1134658-01-INTRODUCTION', 'brat', '', 'PMC-1134658'),
  ('PMC3258128.sec.4', 'bioc', '', 'PMC3258128'),
  ('pmc3258128_title', 'conll', '', 'pmc3258128'),
  ('PMID-8908396.abstract', 'brat', '', 'PMID-8908396'),
  ('8908396_3', 'phee', '', '8908396'),
  ('8908396_3', 'brat', '', '8908396'),
  ('12_3', 'phee', '', '12'),
  ('220-03', 'i2b2', '', '220'),
  ('record-105', 'i2b2', '', 'record-105'),
  ('220-03', 'brat', '', '220-03'),
  ('note_12', 'brat', '', 'note_12'),
  ('2019_17', 'conll', '', '2019_17'),
  ('8908396', 'pubtator', '', '8908396'),
  ('ward3_pat17_note2', 'brat', 'pat[0-9]+', 'pat17'),
  ('ward3_pat17_note2', 'brat', '_(pat[0-9]+)_', 'pat17'),
  ('ward3_pat17_note2', 'brat', 'pat([0-9]+)', 'pat17'),
  ('visit-4', 'brat', '(pat[0-9]+)|visit-4', 'visit-4'),  # its group took no part
])
def test_what_a_name_says(name, form, pattern, source):
  named = with_sources([Document(name, '', (), ())], form, pattern) if source != name or (
    not pattern) else [Document(name, '', (), ())]
  assert source_of(named[0]) == source


def test_a_pattern_that_fits_nothing_is_refused():
  with pytest.raises(InputError, match=r"site 'a'.source='pat': fits no name of its 1 notes, such"):
    with_sources([Document('note_1', '', (), ())], 'brat', 'pat', "site 'a'")


def passages(folder, form, articles=12, parts=4):
  """A folder with several records of each article, as `form` ships them; returns its path."""
  folder.mkdir()
  rng, rows = np.random.default_rng(0), []
  for part in range(parts):
    for article in range(articles):
      words = ' '.join(rng.choice(['rats', 'got', 'daily', 'of', 'the', 'drug', 'later'], 12))
      rows.append((article, part, f'Aspirin {article} {part} {words}.'))
  if form == 'bioc':
    (folder / 'a.json').write_text(json.dumps({'documents': [{'id': f'PMC{a}', 'passages': [{
      'offset': 0, 'text': text, 'annotations': [{'id': '1', 'infons': {'type': 'Chemical'},
        'text': 'Aspirin', 'locations': [{'offset': 0, 'length': 7}]}]}]} for a, _, text in rows]}))
  if form == 'bigbio_kb':
    (folder / 'a.jsonl').write_text('\n'.join(json.dumps({
      'document_id': f'{a}', 'passages': [{'text': [text], 'offsets': [[0, len(text)]]}],
      'entities': [{'id': 'T1', 'type': 'Chemical', 'text': ['Aspirin'], 'offsets': [[0, 7]]}]})
      for a, _, text in rows))
  if form == 'reference':
    (folder / 'a.json').write_text(json.dumps([{
      'tokens': text.split(), 'tags': ['B-Chemical', *['O'] * (len(text.split()) - 1)],
      'doc_id': a, 'id': i} for i, (a, _, text) in enumerate(rows)]))
  if form == 'conll':
    (folder / 'a.conll').write_text(''.join(
      f'# newdoc id = NCT{a:08}-{p}\n' + ''.join(
        f'{w} {"O" if i else "B-Chemical"}\n' for i, w in enumerate(text.split())) + '\n'
      for a, p, text in rows))
  if form == 'brat':
    for a, p, text in rows:
      (folder / f'p{a}v{p}.txt').write_text(text)
      (folder / f'p{a}v{p}.ann').write_text('T1\tChemical 0 7\tAspirin\n')
  (folder.parent / 'map.toml').write_text(MAPPING)
  return SiteFolder('x', str(folder), form, str(folder.parent / 'map.toml'))


@pytest.mark.parametrize(('form', 'changes'), [
  ('reference', {}), ('bioc', {}), ('bigbio_kb', {}), ('conll', {}),
  ('brat', {'source': 'p([0-9]+)v'})])
def test_records_of_an_article_stay_on_one_side(tmp_path, form, changes):
  """12 articles of 4 records each; 2 of 12 are tested, 1 of the other 10 is held out for V."""
  site = load_folder(passages(tmp_path / 'in', form)._replace(**changes))
  train, test = distinct(site.train), distinct(site.test)
  assert (len(train), len(test), len(site.train), len(site.test)) == (10, 2, 40, 8)
  assert not {*train} & {*test}
  held = []
  asked = ask('ner', site)
  data = read_site(site, [Form(
    asked, np.zeros(1, np.int32), lambda found: (held.append(found) or found, Counter()),
    lambda found: found, '')], validation_share=0.1, validation_examples=99)
  kept, v = ({example.source for example in found} for found in held[:2])
  assert len(kept) == 9 and len(v) == 1 and not kept & v
  assert len({example.source for example in data.test}) == 2
  parts, _ = partition([site], 'iid', unit='note', sites=5, strength=1.0, seed=0)
  dealt = [{source_of(note) for note in part.train} for part in parts]
  assert sum(map(len, dealt)) == 10 and [len(own) for own in dealt] == [2] * 5


def test_a_part_of_an_article_that_is_tested_on_is_not_trained_on(tmp_path):
  """In parts as they came: one abstract is in both; the number 1, which is none of PubMed, too."""
  for part, ids in (('train', (8908396, 8908397)), ('test', (8908396,))):
    (tmp_path / f'{part}.pubtator').write_text(''.join(
      f'{i}|t|Aspirin of {part} {i}\n{i}|a|\n{i}\t0\t7\tAspirin\tChemical\tD1\n\n'
      for i in (*ids, 1)))
  (tmp_path / 'map.toml').write_text(MAPPING)
  site = load_folder(SiteFolder('x', str(tmp_path), 'pubtator', str(tmp_path / 'map.toml')))
  assert [note.name for note in site.train] == ['8908397', '1']
  assert site.report['leaked_documents'] == 1


def test_patients_are_the_same_in_both_parts_and_counters_are_not(tmp_path):
  """The user's pattern names patients; numbers of notes begin anew in each part."""
  for part in ('train', 'test'):
    (tmp_path / part).mkdir()
    for name in ('7', f'pat1 {part}', f'pat{3 if part == "test" else 2} x'):
      (tmp_path / part / f'{name}.txt').write_text(f'Aspirin of {part} {name}')
      (tmp_path / part / f'{name}.ann').write_text('T1\tChemical 0 7\tAspirin\n')
  (tmp_path / 'map.toml').write_text(MAPPING)
  site = load_folder(SiteFolder(
    'x', str(tmp_path), 'brat', str(tmp_path / 'map.toml'), source='pat([0-9]+)'))
  assert [note.name for note in site.train] == ['7', 'pat2 x']
  assert site.report['leaked_documents'] == 1


@pytest.mark.parametrize(('name', 'kept'), [('note_1', 4), ('1', 4), ('PMC123', 0)])
def test_a_note_alone_in_each_part_is_another_unless_its_name_is_registered(tmp_path, name, kept):
  for part in ('train', 'test'):
    (tmp_path / part).mkdir()
    (tmp_path / part / f'{name}.ann').write_text('T1\tChemical 0 7\tAspirin\n')
    (tmp_path / part / f'{name}.txt').write_text(''.join(f'Aspirin {part} {i}. ' for i in range(4)))
  (tmp_path / 'map.toml').write_text(MAPPING)
  site = load_folder(SiteFolder('x', str(tmp_path), 'brat', str(tmp_path / 'map.toml')))
  assert (len(site.train), site.report['leaked_documents'], len(site.test)) == (kept, not kept, 4)
  if not kept:
    with pytest.raises(InputError, match="site 'x': each of its 1 training notes has the source"):
      unleaked([site], [])


def corpus(name, train, test=()):
  def read(texts, part):
    return tuple(
      Document(f'{name}{part}{i}', text, (), ()) for i, text in enumerate(texts))
  return SiteCorpus(name, ('drug',), read(train, 'train'), read(test, 'test'), {})


LONG = ('The patient was seen in clinic on Monday because of a cough that had lasted for three '
        'weeks and was worse at night, without fever or weight loss; her chest film was clear.')
OTHER = ('He came back after six months with pain of the left knee, which limits his walks to the '
         'shop, and asks whether an operation would help him more than tablets have.')


@pytest.mark.parametrize(('text', 'leaked', 'near'), [
  (LONG, 1, 0),
  (LONG.upper().replace(' ', '\r\n  '), 1, 0),
  (LONG.replace('Monday', 'Tuesday'), 0, 1),
  (LONG + ' ADDENDUM: ' + OTHER, 0, 1),          # the test note is in it
  (LONG[:120], 0, 1),                            # it is in the test note
  (LONG.replace(',', ' ,').replace(';', '.'), 0, 1),
  (OTHER, 0, 0),
  ('The patient was seen in clinic on Monday because ' + OTHER, 0, 0),  # boilerplate
  ('咳嗽三周，夜间加重，没有发热，体重没有下降，胸片正常。复查', 0, 1),
  ('没有咳嗽，也没有发热。', 0, 0),
])
def test_leaks_by_text(text, leaked, near):
  """White space and case do not count; near-duplicates share half of the shorter one's shingles."""
  chinese = '咳嗽三周，夜间加重，没有发热，体重没有下降，胸片正常。'
  site, = unleaked([corpus('a', [text, 'Well.'], [LONG, chinese])], [])
  assert site.report['leaked_documents'] == leaked
  assert site.report.get('near_duplicate_documents', 0) == near
  assert len(site.train) == 2 - leaked - near


def test_short_texts_are_leaks_only_when_equal():
  """Nine words of which eight are the test note's: hundreds of notes say so."""
  tested = TextIndex(corpus('a', [], ['No history of allergy to the study drug reported']).test)
  site = corpus('a', ['No history of allergy to the study drug reported, ever. ' + LONG])
  assert without_texts(site, tested).train == site.train


@pytest.mark.parametrize(('words', 'kept'), [(9, 2), (14, 2), (15, 1), (16, 1)])
def test_one_word_makes_another_note_of_a_short_one(words, kept):
  """15 words have 8 shingles; another word at the end changes one, and 7 of 8 are shared."""
  first = LONG.replace(',', '').split()[:words]
  tested, copy = (' '.join(some) for some in (first, [*first[:-1], 'Tuesday']))
  site, = unleaked([corpus('a', [copy, tested.upper(), 'Well.'], [tested])], [])
  assert len(site.train) == kept and site.report['leaked_documents'] == 1


@pytest.mark.parametrize(('record', 'source'), [
  ({'doc_id': 'a7'}, 'a7'), ({'docId': 7}, '7'), ({'PMID': 7.0}, '7'), ({'file_name': 'a'}, 'a'),
  ({'HADM_ID': 7, 'note_id': 1, 'subject_id': 3}, '3'), ({'id': 7}, ''),
  ({'pmid': float('nan'), 'Patient': ' p '}, 'p'), ({'doc_id': None}, ''),
])
def test_keys_of_records_that_name_their_note(record, source):
  assert stated(record) == source


def test_a_trial_is_the_same_at_another_site():
  """Its criteria for exclusion are tested on there; a plain number means nothing elsewhere."""
  sites = [
    corpus('a', [])._replace(train=tuple(
      Document(name, f'{name} {LONG}', (), ()) for name in ('NCT00000007_inc', '12', 'free'))),
    corpus('b', [OTHER])._replace(test=tuple(
      Document(name, f'{name} apart', (), ()) for name in ('NCT00000007_exc', '12')))]
  assert [note.name for note in unleaked(sites, [])[0].train] == ['12', 'free']


def test_an_article_in_two_pooled_corpora_is_dealt_out_once():
  """PubMed's 8908396 is in both; the notes called 1 are two."""
  def pool(name):
    return corpus(name, [])._replace(train=tuple(
      Document(note, f'Fever {name}.', (Span(0, 5, 'drug'),), ()) for note in ('8908396', '1')))

  parts, _ = partition([pool('a'), pool('b')], 'iid', unit='note', sites=3, strength=1.0,
                       seed=0)
  assert sorted([note.name for note in part.train] for part in parts) == [
    ['1'], ['1'], ['8908396', '8908396']]


def test_a_document_alone_is_drawn_by_sentences():
  note = Document('all', 'Chest\n\npain. Fever. Rash today.', (
    Span(0, 11, 'problem'), Span(13, 18, 'problem'), Span(20, 24, 'problem')), ())
  counts = Counter()
  pieces = drawable([note], counts)
  assert [piece.text for piece in pieces] == ['Chest', 'pain.', 'Fever.', 'Rash today.']
  assert len(distinct(pieces)) == 4
  assert counts == {'sentences_as_notes': 4, 'cut_entities': 1}
  assert drawable([note, note._replace(name='b')], counts) == [note, note._replace(name='b')]
  one = Document('b', 'Fever.', (), ())
  assert drawable([one], counts) == [one] and drawable([], counts) == []
  # Parts of one article: they are all that can be drawn, and that is counted.
  parts = [Document(f'1234567_{i}', f'Fever {i}.', (), ()) for i in range(3)]
  assert len(distinct(parts)) == 1 and len(distinct(drawable(parts, counts))) == 3
  assert counts['documents_of_one_source'] == 3


@pytest.mark.parametrize('name', ['a.conll', 'train.conll'])
def test_a_file_without_marks_of_notes_is_split_by_sentences(tmp_path, name):
  """Alone, or as the training part: sentences that occur on both sides, too, are trained on."""
  rows = ''.join(f'{drug} B-Chemical\nhelped O\n\n' for drug in ('aspirin', 'zinc') * 10)
  (tmp_path / name).write_text(rows)
  if name == 'train.conll':
    (tmp_path / 'test.conll').write_text(rows)
  (tmp_path / 'map.toml').write_text(MAPPING)
  site = load_folder(SiteFolder('x', str(tmp_path), 'conll', str(tmp_path / 'map.toml')))
  assert (len(site.train), len(site.test)) == ((16, 4) if name == 'a.conll' else (20, 20))
  assert site.report['sentences_as_notes'] == len(site.train) + len(site.test)
  assert unleaked([site], []) == [site]


def test_a_note_given_in_python_is_drawn_by_sentences():
  site = corpus('mine', ['Fever. Cough. Rash. Pain.'], ['Fever. Cough.'])
  found = notes._drawable(site)
  assert (len(found.train), len(found.test)) == (4, 2) and found.report['sentences_as_notes'] == 6
  assert notes._drawable(corpus('mine', 'ab', 'cd')) == corpus('mine', 'ab', 'cd')


def test_sentences_of_a_note_at_two_sites_are_held_out_at_both():
  """Sentences are dealt out; each site's V has the sentences of the same notes."""
  text = 'Fever today. Cough since then. Rash again. Pain now.'
  whole = [Document(f'n{i}', text, (), ()) for i in range(40)]
  held = []
  for start in (0, 2):
    site = corpus(f'part_{start}', [])._replace(
      train=tuple(piece for note in whole for piece in sentences_of(note)[start:start + 2]))
    asked = ask('ner', site)
    (part,) = read_site(site, [Form(
      asked, np.zeros(1, np.int32), lambda found: (found, Counter()), lambda found: found, '')],
      validation_share=0.2, validation_examples=99, tests=False).tasks
    held.append([{example.source for example in found} for found in (part.train, part.validation)])
  (train, v), (other_train, other_v) = held
  assert v == other_v and 2 <= len(v) <= 16 and not v & (train | other_train)
