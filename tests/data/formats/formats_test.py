"""BioC, i2b2, CoNLL, the reference's JSON, bigbio_kb and data sets, on notes invented here."""

import json
import re
import struct

import bioc
import pytest
import seqeval.metrics.sequence_labeling as seqeval
from bioc import biocjson, biocxml
from hypothesis import given
from hypothesis import strategies as st

from fedmedjax.data.formats.bigbio import read_bigbio
from fedmedjax.data.formats.bioc import read_bioc
from fedmedjax.data.formats.conll import read_conll, tag_spans
from fedmedjax.data.formats.files import Unit, lay_out, with_own_names
from fedmedjax.data.formats.i2b2 import read_i2b2
from fedmedjax.data.formats.offset_rules import PLAIN, Ruler
from fedmedjax.data.formats.readers import FORMATS, read_parts
from fedmedjax.data.formats.reference import read_reference
from fedmedjax.data.formats.saved_datasets import read_datasets
from fedmedjax.types import Document, InputError, Relation, Span


def write(folder, text, name):
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).write_bytes(text.encode())
  return folder / name


def texts(document):
  return [(document.text[s.start:s.end], s.type) for s in document.spans]


def refused(read, path, line, said=''):
  with pytest.raises(InputError, match=said or None) as error:
    read(path)
  assert '\n' not in str(error.value)
  where = str(path) if line is None else f'{path}:{line}:'
  assert where in str(error.value), str(error.value)


# --- the text of passages -----------------------------------------------------------------------


def test_units_keep_their_offsets_and_repair_leaps():
  counts = {'moved_passages': 0}
  layout = lay_out((Unit(0, 'Rash.'), Unit(6, 'None'), Unit(12, 'seen')), counts)
  assert layout.text == 'Rash.\nNone\n seen' and layout.starts == (0, 6, 12)
  assert counts['moved_passages'] == 0
  # One that goes back, and one that leaps: both on lines of their own.
  layout = lay_out((Unit(0, 'Rash'), Unit(2, 'None'), Unit(900, 'seen')), counts)
  assert layout.text == 'Rash\nNone\nseen' and counts['moved_passages'] == 2
  ruler = Ruler(layout, PLAIN)
  assert ruler.range_of(900, 904) == (10, 14) and ruler.range_of(500, 503) is None


def test_names_that_occur_again_get_a_number_that_is_free():
  counts = {'renamed_documents': 0}
  documents = with_own_names([Document(n, '', (), ()) for n in ('a', 'a', 'a_2', 'a')], counts)
  assert [d.name for d in documents] == ['a', 'a_3', 'a_2', 'a_4']
  assert counts['renamed_documents'] == 2


# --- BioC ---------------------------------------------------------------------------------------


def bioc_collection():
  """Two passages, one of sentences; an annotation in two pieces; a relation across passages."""
  collection, document = bioc.BioCCollection(), bioc.BioCDocument()
  document.id = '7'
  collection.add_document(document)
  first = bioc.BioCPassage.of_text('Cough & fever. 38.5 °C today.', 0)
  document.add_passage(first)
  first.annotations = [annotation('1', 'sign', [(0, 5)], 'Cough'),
                       annotation('2', 'sign', [(0, 5), (8, 5)], 'Cough fever')]
  second = bioc.BioCPassage()
  second.offset = len(first.text) + 1
  for at, text in ((0, 'Takes aspirin.'), (15, 'No rash.')):
    sentence = bioc.BioCSentence()
    sentence.offset, sentence.text = second.offset + at, text
    second.add_sentence(sentence)
  at = second.offset + 6
  second.sentences[0].add_annotation(annotation('3', 'drug', [(at, 7)], 'aspirin'))
  document.add_passage(second)
  for nodes in (('3', '1'), ('1', '2', '3'), ('3', '9')):
    relation = bioc.BioCRelation()
    relation.id, relation.infons = 'R', {'type': 'against'}
    relation.nodes = [bioc.BioCNode(refid=refid, role='') for refid in nodes]
    document.add_relation(relation)
  return collection


def annotation(ident, kind, places, text):
  found = bioc.BioCAnnotation()
  found.id, found.infons, found.text = ident, {'type': kind}, text
  for offset, length in places:
    found.add_location(bioc.BioCLocation(offset, length))
  return found


@pytest.mark.parametrize('form', ['xml', 'json'])
def test_bioc_as_its_own_library_writes_it(tmp_path, form):
  library = {'xml': biocxml, 'json': biocjson}[form]
  path = write(tmp_path, library.dumps(bioc_collection()), f'notes.{form}')
  (document,), counts = read_bioc(path)
  assert document == Document(
    '7', 'Cough & fever. 38.5 °C today.\nTakes aspirin.\nNo rash.',
    (Span(0, 5, 'sign'), Span(0, 13, 'sign'), Span(36, 43, 'drug')), (Relation('against', 2, 0),),
    sentences=((30, 44), (45, 53)), covering=((0, 13),))
  assert {key: value for key, value in counts.items() if value} == {
    'documents': 1, 'entities': 3, 'relations': 1, 'discontinuous': 1, 'nary': 1, 'unanchored': 1}


def test_bioc_of_bc5cdr_agrees_with_its_library_and_with_pubtator(data_folder):
  """The development part comes in both formats: the same texts, mentions and types."""
  from fedmedjax.data.formats.pubtator import read_pubtator
  path = data_folder / 'bc5cdr' / 'CDR_DevelopmentSet.BioC.xml'
  documents, counts = read_bioc(path)
  with path.open(encoding='utf-8') as file:
    theirs = biocxml.load(file).documents
  assert [texts(d) for d in documents] == [
    [(d.text[min(x.offset for x in a.locations):max(x.end for x in a.locations)],
      a.infons['type']) for passage in their.passages for a in passage.annotations]
    for d, their in zip(documents, theirs, strict=True)]
  assert (counts['documents'], counts['entities'], counts['moved_passages']) == (500, 9773, 0)
  pubtator, _ = read_pubtator(path.with_name('CDR_DevelopmentSet.PubTator.txt'))
  for ours, other in zip(documents, pubtator, strict=True):
    assert (ours.name, ours.text) == (other.name, other.text)
    # PubTator lists the parts of a composite mention in a column of its own.
    assert set(other.spans) <= set(ours.spans)


def test_bioc_ignores_what_is_no_part_of_it(tmp_path):
  text = ('<collection><documents>x</documents><document passages="x" line="y"><id>1</id>\n'
          '<passage infons="z"><offset>0</offset><text>Rash</text></passage></document>'
          '</collection>')
  (document,), _ = read_bioc(write(tmp_path, text, 'a.xml'))
  assert document == Document('1', 'Rash', (), ())


def test_bioc_refuses_with_the_line(tmp_path):
  good = biocxml.dumps(bioc_collection())
  line = next(i for i, text in enumerate(good.split('\n'), 1) if '<annotation id="3"' in text)
  lines = good.split('\n')
  refused(read_bioc, write(tmp_path, '\n'.join(lines[:line]), 'cut.xml'), line, 'XML')
  far = re.sub('offset="[0-9]+" length="[57]"', 'offset="900" length="7"', good)
  first = next(i for i, text in enumerate(lines, 1) if '<annotation id="1"' in text)
  far = write(tmp_path, re.sub('<text>(Cough|aspirin)<', '<text>x<', far), 'far.xml')
  refused(read_bioc, far, first, "'1' has the offsets 900 to 907")
  refused(read_bioc, write(tmp_path, '<a/>', 'none.xml'), None, 'no BioC document')
  bomb = '<!DOCTYPE a [<!ENTITY b "bb">]>\n<collection><source>&b;</source></collection>'
  refused(read_bioc, write(tmp_path, bomb, 'bomb.xml'), 1, 'entities are not read')
  text = json.dumps(json.loads(biocjson.dumps(bioc_collection())), indent=1)
  at = text.index('"offset": 36')
  line = text[:text.rindex('{', 0, at)].count('\n') + 1
  far = text.replace('"offset": 36', '"offset": "36"')
  refused(read_bioc, write(tmp_path, far, 'a.json'), line, "'offset' is no offset")
  refused(read_bioc, write(tmp_path, text[:-9], 'b.json'), text[:-9].count('\n') + 1, 'JSON')
  refused(read_bioc, write(tmp_path, '[' * 9000, 'c.json'), 1, 'JSON')
  refused(read_bioc, write(tmp_path, '5', 'd.json'), 1, 'BioC')


# --- i2b2 2010 ----------------------------------------------------------------------------------

NOTE = 'Admission Date :\r\nDenies Chest  pain , takes aspirin .\n'


def i2b2(folder, con='', rel=None, ast=None):
  for name, text in (('txt/a.txt', NOTE), ('concept/a.con', con), ('rel/a.rel', rel),
                     ('ast/a.ast', ast)):
    if text is not None:
      write(folder, text, name)
  return folder


def test_i2b2_concepts_relations_and_assertions(tmp_path):
  con = ('c="chest pain" 2:1 2:2||t="problem"\r\nc="aspirin" 2:5 2:5||t="treatment"\n'
         'c="denies" 2:0 2:1||t="test"\n')
  rel = ('c="aspirin" 2:5 2:5||r="TrAP"||c="chest pain" 2:1 2:2\n'
         'c="takes" 2:4 2:4||r="TrAP"||c="chest pain" 2:1 2:2\n')
  ast = 'c="chest pain" 2:1 2:2||t="problem"||a="absent"\n'
  (document,), counts = read_i2b2(i2b2(tmp_path, con, rel, ast))
  # The last one quotes less than stands at its place.
  assert texts(document) == [('Chest  pain', 'problem'), ('aspirin', 'treatment'),
                             ('Denies', 'test')]
  assert document.relations == (Relation('assertion=absent', 0, 0), Relation('TrAP', 1, 0))
  assert counts == {'documents': 1, 'entities': 3, 'relations': 1, 'assertions': 1,
                    'text_mismatch': 0, 'placed_by_words': 1, 'unanchored': 1}


@pytest.mark.parametrize(('con', 'line', 'said'), [
  ('\nc="x" 2:9 2:9||t="problem"\nc="x" 0:0 0:0||t="problem"\n', 2, "'x 2:9 2:9' .*2 of 2"),
  ('c="x" 2:4 2:1||t="problem"\nc="x" 9:0 9:0||t="problem"\n', 1, "'x 2:4 2:1' .*2 of 2"),
  ('c="x" 2:4||t="problem"\n\nc\n', 1, r'i2b2 concept \(and 1 more error: a.con:3\)'),
])
def test_i2b2_refuses_with_the_line(tmp_path, con, line, said):
  with pytest.raises(InputError, match=f'a.con:{line}: .*{said}'):
    read_i2b2(i2b2(tmp_path, con))


def test_i2b2_notes_need_both_files_and_names_of_their_own(tmp_path):
  refused(read_i2b2, tmp_path, None, 'no .txt')
  refused(read_i2b2, i2b2(tmp_path, None), None, 'a.txt has no a.con')
  i2b2(tmp_path)
  write(tmp_path, NOTE, 'more/a.txt')
  refused(read_i2b2, tmp_path, None, 'a note of this name')


# --- CoNLL --------------------------------------------------------------------------------------


def test_conll_documents_columns_and_repairs(tmp_path):
  path = write(tmp_path, (
    '-DOCSTART- -X- O\r\n\r\nNo NN B-negation\r\nchest NN I-problem\r\npain NN I-problem\r\n\r\n'
    'EKG\tNN\tS-test\n\n\n# newdoc id = ward 3\nasa B-drug\nasa B-drug\nasa E-drug\n. I-drug\n'),
    'x.bio')
  documents, counts = read_conll(path)
  assert [(d.name, d.text) for d in documents] == [
    ('x_1', 'No chest pain\nEKG'), ('ward 3', 'asa asa asa .')]
  assert texts(documents[0]) == [('No', 'negation'), ('chest pain', 'problem'), ('EKG', 'test')]
  assert texts(documents[1]) == [('asa', 'drug'), ('asa asa', 'drug'), ('.', 'drug')]
  assert counts == {'documents': 2, 'entities': 6, 'stray_inside': 2}
  (document,), _ = read_conll(write(tmp_path, '# O\n#\tB-x\n', 'plain.tsv'))
  assert (document.name, document.text, texts(document)) == ('plain', '# #', [('#', 'x')])


@pytest.mark.parametrize(('text', 'line', 'said'), [
  ('a O\n\nb\n', 3, 'a word and its tag'), ('a O\nb X-drug\n', 2, "not 'X-drug'"),
  ('\n\n', None, 'no CoNLL sentence')])
def test_conll_refuses_with_the_line(tmp_path, text, line, said):
  refused(read_conll, write(tmp_path, text, 'x.bio'), line, said)


@given(st.lists(st.sampled_from(
  ['O', *(f'{prefix}-{kind}' for prefix in 'BIES' for kind in 'ab')]), max_size=12))
def test_tags_are_read_as_seqeval_reads_them(tags):
  """seqeval's end is the last word, ours the end of its characters: word i is [i, i + 1)."""
  spans = tag_spans(tags, [(i, i + 1) for i in range(len(tags))], {'stray_inside': 0})
  assert [(s.type, s.start, s.end - 1) for s in spans] == seqeval.get_entities(tags)


# --- the reference's JSON -----------------------------------------------------------------------


def test_reference_json_in_all_its_forms(tmp_path):
  mark = '<span class="{}">{}</span>'.format
  cough, fever = mark('problem', 'cough'), mark('problem', 'fever')
  records = [
    {'tokens': ['Mild', ' ', 'cough'], 'tags': ['O', 'O', 'B-problem']},
    {'tokens': ['No', 'cough'], 'tags': ['O', 'B-problem'], 'html': f'No  {cough}'},
    {'input': f'### Input Text: Mild {cough}, no fever', 'output':
     f"{mark('severity', 'Mild')} cough, no fever<EOS>", 'tokens': [], 'tags': []},
    {'input': f'Mild cough, no {fever}', 'output': f"Mild cough, {mark('negation', 'no')} fever"},
    {'input': cough, 'output': f"{mark('severity', 'Bad')} cough"},
    {'input': 'No cough', 'output': f'No {cough}</span>'},
  ]
  documents, counts = read_reference(write(tmp_path, json.dumps(records), 'r.json'))
  assert [d.name for d in documents] == [f'r_{i:06}' for i in (1, 2, 3, 4, 5)]
  assert [(d.text, texts(d)) for d in documents] == [
    ('Mild cough', [('cough', 'problem')]), ('No  cough', [('cough', 'problem')]),
    ('Mild cough, no fever', [('cough', 'problem'), ('Mild', 'severity'), ('fever', 'problem'),
                              ('no', 'negation')]),
    ('cough', [('cough', 'problem')]), ('No cough', [('cough', 'problem')])]
  assert documents[2].relations == (Relation('severity', 0, 1), Relation('negation', 2, 3))
  assert {key: value for key, value in counts.items() if value} == {
    'documents': 5, 'records': 6, 'merged_records': 1, 'entities': 8, 'relations': 2,
    'text_mismatch': 1, 'broken_markup': 1}
  lines = '\n'.join(json.dumps(record) for record in records)
  assert read_reference(write(tmp_path, lines, 'r.jsonl'))[0] == documents


@pytest.mark.parametrize('record', [
  {}, {'tokens': ['a'], 'tags': []}, {'tokens': ['a'], 'tags': ['Q']},
  {'tokens': [3], 'tags': ['O']}, {'tokens': 'a', 'tags': 'O'}, {'html': 3},
  {'input': 'a', 'output': ['b']}, {'html': '\ud800'}, 3])
def test_reference_json_refuses_with_the_line(tmp_path, record):
  good = {'tokens': ['a'], 'tags': ['O']}
  lines = write(tmp_path, f'{json.dumps(good)}\n{json.dumps(record)}', 'r.jsonl')
  refused(read_reference, lines, 2)
  array = write(tmp_path, f'[{json.dumps(good)},\n\n{json.dumps(record)}]', 'r.json')
  refused(read_reference, array, 1 if record == 3 else 3)


def test_reference_tokens_without_a_character_are_left_out(tmp_path):
  """The last tag goes on with an entity whose first token is one of them."""
  record = {'tokens': ['', 'no', '', 'rash'], 'tags': ['B-drug', 'O', 'B-problem', 'I-problem']}
  (document,), counts = read_reference(write(tmp_path, json.dumps(record), 'r.json'))
  assert (document.text, texts(document)) == ('no rash', [('rash', 'problem')])
  assert (counts['empty_tokens'], counts['stray_inside']) == (2, 1)
  refused(read_reference, write(tmp_path, '{"tokens": [""], "tags": ["O"]}', 'e.json'), None,
          'no record in')


# --- bigbio_kb ----------------------------------------------------------------------------------


def kb(**changes):
  return {
    'id': '0', 'document_id': 'd1',
    'passages': [{'id': 'p', 'type': 'title', 'text': ['Rash after aspirin'], 'offsets': [[0, 18]]},
                 {'id': 'q', 'type': 'abstract', 'text': ['Severe.'], 'offsets': [[19, 26]]}],
    'entities': [
      {'id': 'T1', 'type': 'sign', 'text': ['Rash'], 'offsets': [[0, 4]], 'normalized': []},
      {'id': 'T2', 'type': 'drug', 'text': ['Rash', 'aspirin'], 'offsets': [[0, 4], [11, 18]]}],
    'events': [{'id': 'E1', 'type': 'bad', 'trigger': {'text': ['Severe'], 'offsets': [[19, 25]]},
                'arguments': [{'role': 'of', 'ref_id': 'T1'}, {'role': 'of', 'ref_id': 'T9'}]}],
    'coreferences': [{'id': 'C', 'entity_ids': ['T1', 'T2']}],
    'relations': [{'id': 'R', 'type': 'by', 'arg1_id': 'T1', 'arg2_id': 'E1', 'normalized': []}],
  } | changes


def test_bigbio_passages_events_and_pieces(tmp_path):
  path = write(tmp_path, json.dumps(kb()) + '\n\n' + json.dumps(kb(relations=None)), 'x.jsonl')
  documents, counts = read_bigbio(path)
  assert documents[0] == Document(
    'd1', 'Rash after aspirin\nSevere.',
    (Span(0, 4, 'sign'), Span(0, 18, 'drug'), Span(19, 25, 'bad')),
    (Relation('of', 2, 0), Relation('by', 0, 2)), covering=((0, 18),))
  assert documents[1].name == 'd1_2'
  assert {key: value for key, value in counts.items() if value} == {
    'documents': 2, 'entities': 6, 'relations': 3, 'events': 2, 'discontinuous': 2,
    'unanchored': 2, 'coreferences': 2, 'renamed_documents': 1}


@pytest.mark.parametrize(('changes', 'said'), [
  ({'document_id': 3.5}, 'document_id'), ({'passages': 'x'}, 'passages'),
  ({'passages': [3]}, 'passages'), ({'passages': [{'text': ['a'], 'offsets': []}]}, 'one length'),
  ({'entities': [{'id': 'T1', 'type': 's', 'text': ['x'], 'offsets': [[0, True]]}]}, 'offsets'),
  ({'entities': [{'id': 'T1', 'type': 's', 'text': ['x'], 'offsets': [[0]]}]}, 'offsets'),
  ({'entities': kb()['entities'] * 2}, "'T1' occurs twice"),
  ({'events': [{'id': 'E', 'trigger': None}]}, 'trigger'),
  ({'relations': [{'type': 'by', 'arg1_id': 'T1'}]}, 'arg2_id')])
def test_bigbio_refuses_with_the_line(tmp_path, changes, said):
  path = write(tmp_path, json.dumps(kb()) + '\n' + json.dumps(kb(**changes)), 'x.jsonl')
  refused(read_bigbio, path, 2, said)


# --- data sets ----------------------------------------------------------------------------------


def test_saved_data_sets_are_the_same_documents(tmp_path):
  import datasets
  rows = datasets.Dataset.from_list([kb(), kb(document_id='d2')])
  rows.save_to_disk(tmp_path / 'saved')
  rows.to_parquet(tmp_path / 'x.parquet')
  path = write(tmp_path, '\n'.join(json.dumps(row) for row in rows), 'x.jsonl')
  expected, _ = read_bigbio(path)
  assert read_datasets(tmp_path / 'saved')[0] == expected
  assert read_datasets(tmp_path / 'x.parquet')[0] == expected
  parts = datasets.DatasetDict(train=rows, test=rows.select([1]))
  parts.save_to_disk(tmp_path / 'parts')
  found, counts = read_parts(tmp_path / 'parts', FORMATS['datasets'])
  assert (found.train, found.test, counts['documents']) == (expected, expected[1:], 3)


def test_data_sets_of_tags_by_number(tmp_path):
  import datasets
  tags = datasets.List(datasets.ClassLabel(names=['O', 'B-drug', 'I-drug']))
  datasets.Dataset.from_dict(
    {'tokens': [['takes', 'low', 'aspirin']], 'ner_tags': [[0, 1, 2]]},
    features=datasets.Features({'tokens': datasets.List(datasets.Value('string')),
                                'ner_tags': tags})).save_to_disk(tmp_path / 'n')
  (document,), _ = read_datasets(tmp_path / 'n')
  assert texts(document) == [('low aspirin', 'drug')]


def test_data_sets_that_cannot_be_read(tmp_path):
  import datasets
  refused(read_datasets, tmp_path / 'absent', None, 'there is no such')
  refused(read_datasets, write(tmp_path, 'x', 'x.parquet'), None, 'as a data set')
  refused(read_datasets, tmp_path, None, 'as a data set')
  datasets.Dataset.from_dict({'words': ['a']}).save_to_disk(tmp_path / 'w')
  refused(read_datasets, tmp_path / 'w', None, 'its columns are words')
  datasets.Dataset.from_list([kb(), kb(passages=[])]).save_to_disk(tmp_path / 'k')
  refused(read_datasets, tmp_path / 'k', 2, 'offsets')


def test_saved_offsets_that_lead_out_of_the_file(tmp_path):
  """Arrow does not look at them of its own accord: reading the row would end the process."""
  import datasets
  import pyarrow
  import pyarrow.parquet
  datasets.Dataset.from_dict({'html': ['rash']}).save_to_disk(tmp_path)
  offsets = pyarrow.py_buffer(struct.pack('<3i', 0, 1 << 30, 4))
  far = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b'rash'))
  table = pyarrow.table({'html': far})
  (file,) = tmp_path.glob('*.arrow')
  with pyarrow.ipc.new_stream(file, table.schema) as stream:
    stream.write_table(table)
  refused(read_datasets, tmp_path, None, 'as a data set')
