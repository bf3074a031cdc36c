"""Each trap of the formats on a small invented file, and the corpora's official counts."""

import functools
import json
import re
from collections import Counter

import pytest
from real_data import real_data

from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.phee import read_phee
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.types import Document, InputError, Relation, Span


def brat(folder, text, ann, name='note'):
  (folder / f'{name}.txt').write_bytes(text.encode())
  (folder / f'{name}.ann').write_bytes(ann.encode())
  return folder


def write(folder, text, name='corpus.txt'):
  (folder / name).write_bytes(text.encode())
  return folder / name


def texts(document):
  return [(document.text[s.start:s.end], s.type) for s in document.spans]


def one_line(error):
  message = str(error.value)
  assert '\n' not in message
  return message


# --- brat ---------------------------------------------------------------------------------------


def test_brat_counts_carriage_returns_and_characters_not_bytes(tmp_path):
  ann = 'T1\tSymptom 8 13\tcough\r\nT2\tSymptom 15 20\tfever\r\n'  # a Windows tool wrote this
  (document,), counts = read_brat(brat(tmp_path, '38.5 °\r\ncough\r\nfever', ann))
  assert document.name == 'note' and '\r\n' in document.text
  assert texts(document) == [('cough', 'Symptom'), ('fever', 'Symptom')]
  assert counts['documents'] == 1 and counts['entities'] == 2 and not counts['text_mismatch']


def test_brat_joins_a_line_broken_inside_a_span(tmp_path):
  ann = 'T1\tSymptom 0 10\tchest\npain\n\nT2\tSymptom 11 16\tcough\n'
  (document,), counts = read_brat(brat(tmp_path, 'chest\npain\ncough', ann))
  assert texts(document) == [('chest\npain', 'Symptom'), ('cough', 'Symptom')]
  assert not counts['text_mismatch']


def test_brat_resolves_events_and_counts_what_has_no_place(tmp_path):
  ann = (
    'R1\tMODIFY Arg1:T2 Arg2:E1\t\n'  # before what it refers to, and with a tab at its end
    '*\tOVERLAP E1 T2 T3\n'
    'T1\tSymptom 7 12\tcough\nE1\tSymptom:T1 \n'
    'T2\tSeverity 0 6\tsevere\n'
    'A1\tPOLARITY E1 NEG\n'
    '#1\tAnnotatorNotes E1\tsure?\n'
    'T3\tTime 13 18\ttoday\nE2\tTime:T3 Of:E1\n'
    'N1\tReference T1 UMLS:C0010200\tCough\n'
  )
  (document,), counts = read_brat(brat(tmp_path, 'severe cough today', ann))
  assert [s.type for s in document.spans] == ['Symptom', 'Severity', 'Time']
  assert document.relations == (  # in the order of their lines
    Relation('MODIFY', 1, 0), Relation('POLARITY=NEG', 0, 0), Relation('Of', 2, 0))
  assert counts == {'documents': 1, 'entities': 3, 'relations': 2, 'events': 2, 'nary': 1,
                    'attributes': 1, 'notes': 1, 'normalisations': 1, 'discontinuous': 0,
                    'text_mismatch': 0}


def test_brat_attributes_of_relations_and_with_several_words(tmp_path):
  ann = ('T1\tSymptom 0 5\tcough\nR1\tSAME Arg1:T1 Arg2:T1\nA1\tSure R1\n'
         'M1\tKind T1 very bad\nA2\tSeen T1\n')
  (document,), counts = read_brat(brat(tmp_path, 'cough', ann))
  assert [link.type for link in document.relations] == ['SAME', 'Kind=very_bad', 'Seen']
  assert (counts['relations'], counts['attributes'], counts['relation_attributes']) == (1, 3, 1)


def test_brat_covers_a_discontinuous_span_in_any_order(tmp_path):
  text = 'pain in chest'
  ann = 'T1\tSymptom 8 13;0 4\tchest pain\nT2\tSymptom 0 4;8 13\tpain breast\n'
  (document,), counts = read_brat(brat(tmp_path, text, ann))
  assert document.spans == (Span(0, 13, 'Symptom'),) * 2
  assert counts['discontinuous'] == 2
  assert counts['text_mismatch'] == 1  # T2 is misspelt; T1's fragments say what they should


@pytest.mark.parametrize(('ann', 'line', 'said'), [
  ('T1\tSymptom 2 99\tgh\nT2\tSymptom 3 99\tgh\n', 1, ['T1', '2 to 99', '5 characters']),
  ('T1\tSymptom 4 2\tgh\nT2\tSymptom 0 2;4 9\tg h\n', 1, ['T1', '4 to 2', '2 of 2']),
  ('T1\tSymptom 0 x\tcough\nR1\tM Arg1:T1\nx\n\nT2\tS 0\n', 1, ['(and 2 more errors: note.ann:3']),
  ('T1\tSymptom 0 5\tcough\nthis is no annotation\n', 2, ['malformed']),
  ('T1\tSymptom 0 5\tcough\n#1\tNote T1\tsure?\nno annotation\n', 3, ['malformed']),
  ('hello\n', 1, ['malformed']),
  ('T1\tSymptom 0 5\n', 1, ['malformed']),
  ('T1\tSymptom 0 ' + '9' * 5000 + '\tcough\n', 1, ['malformed']),
  ('T1\tSymptom -1 5\tcough\n', 1, ['malformed']),
  ('T1\tSymptom 0 5\tcough\nR1\tMODIFY T1 T1\n', 2, ['malformed']),
  ('T1\tSymptom 0 5\tcough\nR1\tMODIFY Arg1:T1 Arg2:T7\n', 2, ["'T7'"]),
  ('E1\tSymptom:T7\n', 1, ["'T7'"]),
  ('T1\tSymptom 0 5\tcough\nT1\tSymptom 0 5\tcough\n', 2, ['T1', 'twice']),
])
def test_brat_errors_name_file_and_line(tmp_path, ann, line, said):
  with pytest.raises(InputError) as error:
    read_brat(brat(tmp_path, 'cough', ann))
  message = one_line(error)
  assert f'{tmp_path / "note.ann"}:{line}: ' in message
  assert all(part in message for part in said), message


def test_brat_missing_files_are_named(tmp_path):
  with pytest.raises(InputError, match='nowhere'):
    read_brat(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='no .txt'):
    read_brat(tmp_path)
  brat(tmp_path, 'cough', '')
  for suffix in ('.ann', '.txt'):
    (tmp_path / f'note{suffix}').rename(tmp_path / 'away')
    with pytest.raises(InputError, match=re.escape(f'note{suffix}')):
      read_brat(tmp_path)
    (tmp_path / 'away').rename(tmp_path / f'note{suffix}')
  (tmp_path / 'note.txt').write_bytes(b'caf\xe9')
  with pytest.raises(InputError, match='note.txt'):
    read_brat(tmp_path)


# --- PubTator -----------------------------------------------------------------------------------

HEAD = '7|t|Renal and liver failure.\n7|a|After aspirin.\n'
MENTIONS = (
  '7\t0\t23\tRenal and liver failure\tDisease\tD1|D2\tRenal failure|liver failure\n'
  '7\t31\t38\taspirin\tChemical\tD3\n'
)


def test_pubtator_composites_relations_and_repeated_ids(tmp_path):
  links = '7\tCID\tD3\tD2\n7\tCID\tD3\tD9\n\n'
  first = HEAD + MENTIONS + links
  path = write(tmp_path, '\n' + first + first.replace('\n', '\r\n') + HEAD + MENTIONS)
  documents, counts = read_pubtator(path)
  assert documents[0] == Document(
    '7', 'Renal and liver failure.\nAfter aspirin.',
    (Span(0, 23, 'Disease'), Span(31, 38, 'Chemical')), (Relation('CID', 1, 0),),
    linked=(('CID', (1,), (0,)),))
  assert [d.name for d in documents] == ['7', '7_2'] and not documents[1].relations
  assert counts == {
    'documents': 2, 'entities': 4, 'relations': 1, 'unanchored': 1, 'composite': 2,
    'text_mismatch': 0, 'duplicate_documents': 1, 'duplicate_entities': 2, 'renamed_documents': 1,
  }


@pytest.mark.parametrize(('text', 'line', 'said'), [
  (HEAD + '8\t31\t38\taspirin\tChemical\tD3\n', 3, ['malformed', 'document 7']),
  (HEAD + '7\tx\t38\taspirin\tChemical\tD3\n', 3, ['malformed']),
  (HEAD + 'nonsense\n', 3, ['malformed']),
  ('7|t|No abstract.\n7\t0\t2\tNo\tDisease\tD1\n', 1, ['malformed']),
  ('7|t|A title.\n8|a|Of another.\n', 1, ['malformed']),
])
def test_pubtator_errors_name_file_and_line(tmp_path, text, line, said):
  path = write(tmp_path, text)
  with pytest.raises(InputError) as error:
    read_pubtator(path)
  assert one_line(error).startswith(f'{path}:{line}: ')
  assert all(part in str(error.value) for part in said)


# --- PHEE ---------------------------------------------------------------------------------------


def phee_line(context='aspirin and ibuprofen caused rash', **event):
  trigger = {'text': [['caused']], 'start': [[22]], 'entity_id': ['T1']}
  event = {'event_id': 'E1', 'event_type': 'Adverse_event', 'Trigger': trigger} | event
  return {'id': '12_3', 'context': context, 'annotations': [{'events': [event]}]}


def argument(*mentions, **below):
  return {'text': [[word for word, _ in mention] for mention in mentions],
          'start': [[start for _, start in mention] for mention in mentions], **below}


def test_phee_fragments_sub_arguments_and_combinations(tmp_path):
  drugs = argument([('aspirin', 0)], [('ibuprofen', 12)])
  record = phee_line(
    Treatment=argument([('aspirin', 0), ('ibuprofen', 12)], Drug=drugs, Combination=[
      {'event_id': 'E2', 'event_type': 'Combination', 'Drug': drugs}]),
    Effect=argument([('Rash', 29)]), Severity=argument([('caused', 22)], value='High'),
  )
  record['annotations'] += phee_line(Effect=argument([('rash', 29)]))['annotations']
  (document,), counts = read_phee(write(tmp_path, json.dumps(record) + '\n\n'))
  assert document.name == '12_3'
  assert texts(document) == [
    ('caused', 'Adverse_event'), ('aspirin', 'Treatment'), ('ibuprofen', 'Treatment'),
    ('aspirin', 'Treatment.Drug'), ('ibuprofen', 'Treatment.Drug'), ('rash', 'Effect'),
    ('caused', 'Severity'), ('caused', 'Adverse_event'), ('rash', 'Effect'),
  ]
  assert [(r.head, r.tail) for r in document.relations] == [
    (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (7, 8)]
  assert counts == {'documents': 1, 'entities': 9, 'relations': 7, 'events': 2, 'fragments': 2,
                    'combinations': 1, 'text_mismatch': 1}


@pytest.mark.parametrize('record', [
  'not json', '[' * 5000, '[]', '{"id": 5}', {'id': 1, 'context': 2, 'annotations': []},
  phee_line(event_type=3), phee_line(Trigger=None), phee_line(Trigger={'text': [], 'start': []}),
  phee_line(Effect={'text': [['rash']]}), phee_line(Effect={'text': [['rash']], 'start': [[]]}),
  phee_line(Effect={'text': ['rash'], 'start': [29]}), phee_line(Effect=argument([(4, 29)])),
  phee_line(Effect=argument([('rash', '29')])),
  {'id': '1', 'context': '\ud800', 'annotations': []},
])
def test_phee_errors_name_file_and_line(tmp_path, record):
  line = record if isinstance(record, str) else json.dumps(record)
  path = write(tmp_path, json.dumps(phee_line() | {'id': 'good'}) + '\n' + line)
  with pytest.raises(InputError) as error:
    read_phee(path)
  assert one_line(error).startswith(f'{path}:2: ')


def test_phee_arguments_without_a_place_are_set_aside(tmp_path):
  record = phee_line(Effect=argument([('rash', 30)], [('', 29)]), A=argument([('rash', 29)]))
  (document,), counts = read_phee(write(tmp_path, json.dumps(record)))
  assert texts(document) == [('caused', 'Adverse_event'), ('rash', 'A')]
  assert (counts['entities'], counts['out_of_range'], counts['empty_mentions']) == (2, 1, 1)


@pytest.mark.parametrize('read', [read_pubtator, read_phee])
def test_missing_and_empty_files_are_named(tmp_path, read):
  for path in (tmp_path / 'nowhere', tmp_path, write(tmp_path, '\n')):
    with pytest.raises(InputError, match=re.escape(str(path))):
      read(path)


# --- the corpora --------------------------------------------------------------------------------


@functools.cache
def corpus(read, *names):
  """Reads once however many tests ask: (documents, counts) of each file or folder."""
  root = real_data(*names)
  return [read(root / name) for name in names]


BC5CDR = [f'bc5cdr/CDR_{part}Set.PubTator.txt' for part in ('Training', 'Development', 'Test')]
NCBI = [f'ncbi_disease/NCBI{part}set_corpus.txt' for part in ('train', 'develop', 'test')]
PHEE = [f'phee/{part}.json' for part in ('train', 'dev', 'test')]


# Counts of the data notes; the second entry of NCBI's repeated abstract holds 11 of its 6,892.
@pytest.mark.parametrize(('read', 'names', 'documents', 'expected'), [
  (read_brat, ['maccrobat2020'], [200], dict(
    entities=25189, types=41, relations=16307, nary=2023, attributes=1416, discontinuous=44,
    text_mismatch=0)),
  (read_brat, ['chia'], [2000], dict(
    entities=44616, types=30, relations=20153, nary=5015, discontinuous=1796, text_mismatch=1,
    placed_by_words=2)),
  (read_phee, PHEE, [2898, 961, 968], dict(entities=30484, events=5019, text_mismatch=0)),
  (read_pubtator, BC5CDR, [500, 500, 500], dict(
    entities=28785, relations=3116, unanchored=0, text_mismatch=0)),
  (read_pubtator, NCBI, [592, 100, 100], dict(
    entities=6892 - 11, duplicate_documents=1, duplicate_entities=11, renamed_documents=0,
    text_mismatch=0)),
], ids=['maccrobat2020', 'chia', 'phee', 'bc5cdr', 'ncbi_disease'])
def test_official_counts(read, names, documents, expected):
  parts = corpus(read, *names)
  assert [len(part) for part, _ in parts] == documents
  total = sum((counts for _, counts in parts[1:]), parts[0][1].copy())
  total['types'] = len({s.type for part, _ in parts for d in part for s in d.spans})
  assert {key: total[key] for key in expected} == expected


def test_official_counts_by_type_and_source():
  """Arguments and cues of PHEE, abstracts that two corpora share, trials of Chia."""
  parts = corpus(read_phee, *PHEE)
  types = Counter(s.type for part, _ in parts for d in part for s in d.spans)
  expected = {
    'Effect': 4871, 'Treatment.Drug': 6058, 'Treatment.Dosage': 471, 'Treatment.Route': 632,
    'Treatment.Freq': 114, 'Treatment.Duration': 155, 'Severity': 418, 'Negated': 76,
    'Speculated': 640}
  assert {kind: types[kind] for kind in expected} == expected
  assert types['Treatment.Disorder'] + types['Subject.Disorder'] == 2085
  phee = {d.name.split('_')[0] for part, _ in parts for d in part}
  bc5cdr = {d.name for part, _ in corpus(read_pubtator, *BC5CDR) for d in part}
  assert len(phee & bc5cdr) == 21
  ((chia, _),) = corpus(read_brat, 'chia')
  assert len({d.name.split('_')[0] for d in chia}) == 1000
