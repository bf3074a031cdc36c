"""Label Studio, doccano, UIMA CAS and tables: what is written is read back, and by hand."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.data.formats.corpora import SiteFolder, load_folder
from fedmedjax.data.formats.doccano import doccano_record
from fedmedjax.data.formats.label_studio import label_studio_task
from fedmedjax.data.formats.readers import FORMATS, asking, read_notes, read_parts
from fedmedjax.data.formats.tables import csv_tables, parquet_tables
from fedmedjax.data.formats.uima_writer import type_system, uima_json, uima_xmi
from fedmedjax.types import Document, InputError, Relation, Span

# By hand: the mark 0, 'pain🫁' [1, 6), ' today.' to 13, CR LF 13 and 14, 'Gave aspirin' from 15.
NOTE = Document(
  'ward/a.txt', '\ufeffpain🫁 today.\r\nGave aspirin\tby mouth\r.',
  (Span(1, 6, 'problem'), Span(20, 27, 'drug'), Span(28, 36, 'route')), (Relation('route', 1, 2),))


def written(folder: Path, files: dict) -> Path:
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return folder


def tasks(documents):
  return {'a.json': [label_studio_task(one) for one in documents]}


def lines(documents):
  return {'a.jsonl': ''.join(json.dumps(doccano_record(one)) + '\n' for one in documents)}


def cas(documents):
  return {f'{i}.json': uima_json(one) for i, one in enumerate(documents)}


def xmi(documents):
  return {'TypeSystem.xml': type_system()} | {
    f'{i}.xmi': uima_xmi(one) for i, one in enumerate(documents)}


WRITTEN = {'label_studio': tasks, 'doccano': lines, 'tables': csv_tables, 'tables parquet':
           parquet_tables, 'uima': xmi, 'uima json': cas}


def read(name: str, folder: Path, wanted=()):
  return read_notes(folder, asking(FORMATS[name.split()[0]], wanted))


@st.composite
def documents(draw):
  """Any text, beyond 16 bits and with line ends of all kinds; spans of any overlap; relations."""
  signs = 'ab .,;"\'\n\r\t\u2028é🫁𝔸&<|\\\ufeff'
  text = draw(st.text(st.sampled_from(signs), min_size=1, max_size=16))
  text = f'{text}x'  # tables and doccano have no place for a note of blanks
  kinds = st.sampled_from(['Sign', 'T:x', 'two words', 'é"<'])
  spans = []
  for _ in range(draw(st.integers(0, 4))):
    start = draw(st.integers(0, len(text) - 1))
    spans.append(Span(start, draw(st.integers(start + 1, len(text))), draw(kinds)))
  ends = st.integers(0, len(spans) - 1)
  links = [Relation(draw(kinds), draw(ends), draw(ends))
           for _ in range(draw(st.integers(0, 3)) if spans else 0)]
  return Document(draw(st.sampled_from(['7', 'ward/a.txt', 'a,"b"'])), text, tuple(spans),
                  tuple(link for link in links if link.head != link.tail))


@pytest.mark.parametrize('name', WRITTEN)
@settings(max_examples=25, deadline=None)
@given(document=documents())
def test_what_is_written_is_read_back_equal(name, document):
  second = document._replace(name='8', spans=(), relations=())
  with tempfile.TemporaryDirectory() as folder:
    written(Path(folder), WRITTEN[name]([document, second]))
    assert read(name, Path(folder))[0] == [document, second]


@pytest.mark.parametrize('name', WRITTEN)
def test_offsets_of_the_files_by_hand(name, tmp_path):
  """'pain🫁' is [1, 6) in characters; in UTF-16 the sign is two units, so it is [1, 7), and what
  follows is one unit later: 'aspirin' [20, 27) becomes [21, 28)."""
  content = WRITTEN[name]([NOTE])
  found = ''.join(text for text in content.values() if isinstance(text, str)) or json.dumps(
    content.get('a.json'))
  stated = {
    'label_studio': '"start": 20, "end": 27, "labels": ["drug"], "text": "aspirin"',
    'doccano': '"label": "drug", "start_offset": 20, "end_offset": 27',
    'tables': 'ward/a.txt,T2,20,27,drug,aspirin', 'tables parquet': 'null',
    'uima': 'begin="21" end="28" value="drug"', 'uima json': '"begin": 21, "end": 28'}
  assert stated[name] in found
  written(tmp_path, content)
  (document,), counts = read(name, tmp_path)
  assert document == NOTE and counts['entities'] == 3 and counts['relations'] == 1
  assert counts['text_mismatch'] == 0


def test_what_xml_cannot_hold_becomes_a_blank(tmp_path):
  note = Document('a', 'x\x0cy\ufffe', (Span(0, 3, 's'),), ())
  written(tmp_path, xmi([note]))
  assert read('uima', tmp_path)[0] == [note._replace(text='x y ')]


# --- Label Studio -------------------------------------------------------------------------------

def region(ident, start, end, text, *labels):
  return {'id': ident, 'from_name': 'l', 'to_name': 't', 'type': 'labels',
          'value': {'start': start, 'end': end, 'text': text, 'labels': list(labels)}}


def test_an_export_of_label_studio(tmp_path):
  """Two annotators, a skipped task, one without annotation, choices, an arrow to the left, words
  with an escaped line end, offsets of an old version in UTF-16."""
  first = [region('a', 0, 4, 'Rash', 'sign'), region('b', 8, 13, 'asa\\nx', 'drug', 'cause'),
           {'type': 'relation', 'from_id': 'a', 'to_id': 'b', 'direction': 'left', 'labels': []},
           {'type': 'relation', 'from_id': 'a', 'to_id': 'gone', 'labels': ['by']},
           {'id': 'c', 'type': 'choices', 'value': {'choices': ['yes']}},
           # Of a region, whose place they repeat.
           {'id': 'a', 'type': 'choices', 'value': {'start': 0, 'end': 4, 'choices': ['mild']}},
           {'id': 'a', 'type': 'rating', 'value': {'start': 0, 'end': 4, 'rating': 4}}]
  other = [{'id': 1, 'result': [], 'was_cancelled': True}, {'id': 2, 'result': []},
           {'id': 3, 'result': first, 'ground_truth': True}]
  path = written(tmp_path, {'a.json': [
    {'id': 5, 'data': {'text': 'Rash to asa\nx', 'patient_id': 'p7'}, 'annotations': other},
    {'id': 6, 'data': {'text': 'Not seen'}, 'annotations': [], 'predictions': [{'result': first}]},
    {'id': 7, 'data': {'note': '🫁 pain, 🫁 cough', 'file': 'n'}, 'annotations': [{'result': [
      region('a', 3, 7, 'pain', 'sign'), region('b', 12, 17, 'cough', 'sign')]}]}]}) / 'a.json'
  found, counts = read_notes(path, FORMATS['label_studio'])
  assert found == [
    Document('5', 'Rash to asa\nx', (Span(0, 4, 'sign'), Span(8, 13, 'drug'), Span(8, 13, 'cause')),
             (Relation('relation', 1, 0),), 'p7'),
    Document('n', '🫁 pain, 🫁 cough', (Span(2, 6, 'sign'), Span(10, 15, 'sign')), ())]
  assert {key: counts[key] for key in (
    'unannotated', 'other_annotations', 'other_results', 'unanchored', 'offsets_utf16',
    'predictions')} == {'unannotated': 1, 'other_annotations': 1, 'other_results': 3,
                        'unanchored': 1, 'offsets_utf16': 2, 'predictions': 0}


def test_the_short_export_of_label_studio(tmp_path):
  written(tmp_path, {'a.json': [
    {'id': 3, 'report': 'Rash.', 'created_at': 'today', 'annotator': 1, 'kinds': [
      {'start': 0, 'end': 4, 'text': 'Rash', 'labels': ['sign']}]}, {'id': 4, 'report': 'No.'},
    # Of a second annotator.
    {'id': 3, 'report': 'Rash.', 'created_at': 'today', 'annotator': 2, 'kinds': [
      {'start': 0, 'end': 5, 'text': 'Rash.', 'labels': ['sign']}]}]})
  found, counts = read('label_studio', tmp_path)
  assert found == [Document('3', 'Rash.', (Span(0, 4, 'sign'),), ())]
  assert counts['unannotated'] == counts['other_annotations'] == 1


@pytest.mark.parametrize('task, line, said', [
  ({'data': {'a': 'x', 'b': 'y'}}, 1, "no key 'text'; its texts are 'a', 'b'"),
  ({'data': {'text': 3}, 'annotations': [{'result': []}]}, 1, "'text' is no text"),
  ({'data': {'text': 'x'}, 'annotations': [{'result': [{'type': 'hypertextlabels', 'value': {
    'start': '/p[1]', 'hypertextlabels': ['s']}}]}]}, 1, 'those of HyperText are not'),
  ({'data': {'text': 'x'}, 'annotations': [{'result': [region('a', -1, 1, 'x', 's')]}]}, 1,
   "'start' is no offset"),
  ({'data': {'text': 'x'}, 'annotations': []}, None, 'no annotated task in')])
def test_tasks_that_are_refused(task, line, said, tmp_path):
  written(tmp_path, {'a.json': [task]})
  with pytest.raises(InputError) as error:
    read('label_studio', tmp_path)
  assert said in str(error.value) and (line is None or f'a.json:{line}: ' in str(error.value))


# --- doccano ------------------------------------------------------------------------------------

def test_the_forms_of_doccano(tmp_path):
  """Old and new names of keys; an id of a column goes before doccano's own number."""
  written(tmp_path, {'a.jsonl': '\n'.join(map(json.dumps, [
    {'id': 1, 'text': '🫁 pain', 'label': [[2, 6, 'sign']], 'Comments': ['sure?']},
    {'id': 2, 'data': 'Rash', 'labels': [[0, 4, 'sign']], 'note_id': 'n7'},
    {'id': 3, 'text': ' ', 'label': []},
    {'id': 4, 'text': 'a b', 'entities': [
      {'id': 9, 'label': 's', 'start_offset': 0, 'end_offset': 1},
      {'id': 8, 'label': 't', 'start_offset': 2, 'end_offset': 3}],
     'relations': [{'id': 1, 'from_id': 8, 'to_id': 9, 'type': 'of'},
                   {'id': 2, 'from_id': 8, 'to_id': 5, 'type': 'of'}]}]))})
  found, counts = read('doccano', tmp_path)
  assert found == [
    Document('1', '🫁 pain', (Span(2, 6, 'sign'),), ()),
    Document('n7', 'Rash', (Span(0, 4, 'sign'),), ()),
    Document('4', 'a b', (Span(0, 1, 's'), Span(2, 3, 't')), (Relation('of', 1, 0),))]
  assert (counts['empty_records'], counts['unanchored'], counts['comments']) == (1, 1, 1)


def test_all_faults_of_a_file_are_told_in_one_line(tmp_path):
  written(tmp_path, {'a.jsonl': '{"text": "x", "label": [[0, "1", "s"]]}\n{"text": "x"}\n'
                     '{"text": "x", "label": [[0, 1]]}\n'})
  with pytest.raises(InputError) as error:
    read('doccano', tmp_path)
  assert "a.jsonl:1: malformed, expected doccano's JSON lines: 'end_offset' is no offset (and 2 " \
    'more errors: a.jsonl:2, a.jsonl:3)' in str(error.value)


# --- UIMA CAS -----------------------------------------------------------------------------------

def layers(folder: Path) -> None:
  """Notes as INCEpTION and cTAKES have them: a layer with one feature of its own, one without a
  label, arguments of relations, links with roles, tokens and sentences."""
  import cassis
  types = cassis.TypeSystem()
  base = 'uima.tcas.Annotation'
  finding = types.create_type('webanno.custom.Finding', base)
  types.create_feature(finding, 'kind', 'uima.cas.String')
  types.create_feature(finding, 'negated', 'uima.cas.Boolean')
  mention = types.create_type('org.apache.ctakes.typesystem.type.textsem.DrugMention', base)
  types.create_feature(mention, 'subject', 'uima.cas.String')
  types.create_feature(mention, 'segmentID', 'uima.cas.String')
  argument = types.create_type('org.apache.ctakes.RelationArgument', 'uima.cas.TOP')
  types.create_feature(argument, 'argument', base)
  binary = types.create_type('org.apache.ctakes.BinaryTextRelation', 'uima.cas.TOP')
  for name, held in (('arg1', argument.name), ('arg2', argument.name),
                     ('category', 'uima.cas.String')):
    types.create_feature(binary, name, held)
  link = types.create_type('webanno.custom.FindingCauseLink', 'uima.cas.TOP')
  types.create_feature(link, 'role', 'uima.cas.String')
  types.create_feature(link, 'target', mention.name)
  types.create_feature(finding, 'cause', 'uima.cas.FSArray', elementType=link.name)
  package = 'de.tudarmstadt.ukp.dkpro.core.api.segmentation.type'
  token, sentence = (types.create_type(f'{package}.{name}', base) for name in ('Token', 'Sentence'))
  cas = cassis.Cas(types)
  cas.sofa_string = '🫁 rash to asa. Well.'
  for start, end in ((0, 13), (14, 19)):
    cas.add(sentence(begin=start, end=end))
  cas.add(token(begin=2, end=6))
  drug = mention(begin=10, end=13, subject='patient')
  array = types.get_type('uima.cas.FSArray')
  rash = finding(begin=2, end=6, kind='sign', negated=True,
                 cause=array(elements=[link(role='by', target=drug)]))
  cas.add_all([rash, drug, binary(
    arg1=argument(argument=drug), arg2=argument(argument=rash), category='harms')])
  written(folder, {'notes/n.xmi': cas.to_xmi(), 'TypeSystem.xml': types.to_xml()})


def test_layers_of_inception_and_ctakes(tmp_path):
  """The label is the only feature that holds a text, or the type's name where several do; 'rash' is
  [3, 7) in UTF-16 units and [2, 6) in characters."""
  layers(tmp_path)
  ((note,), counts) = read('uima', tmp_path / 'notes')
  assert note.spans == (Span(2, 6, 'sign'), Span(10, 13, 'DrugMention'))
  assert set(note.relations) == {
    Relation('by', 0, 1), Relation('harms', 1, 0), Relation('negated', 0, 0),
    Relation('subject=patient', 1, 1)}
  assert (counts['relations'], counts['attributes'], note.sentences) == (2, 2, ((0, 13), (14, 19)))
  wanted = {'Finding=sign', 'org.apache.ctakes.typesystem.type.textsem.DrugMention', 'Token'}
  ((note,), _) = read('uima', tmp_path / 'notes', wanted)
  assert {span.type for span in note.spans} == wanted


def refused_cas(folder: Path, wanted=(), **changes) -> str:
  content = {'n.xmi': uima_xmi(NOTE).replace('><', '>\n<'), 'TypeSystem.xml': type_system()}
  for name, (old, new) in changes.items():
    name = {'xmi': 'n.xmi', 'types': 'TypeSystem.xml'}[name]
    assert old in content[name]
    content[name] = content[name].replace(old, new)
  with pytest.raises(InputError) as error:
    read('uima', written(folder, content), wanted)
  return str(error.value)


def test_what_a_type_system_lacks(tmp_path):
  """The relation is the eighth line: XML, XMI, NULL, metadata, three spans, then it."""
  said = refused_cas(tmp_path, types=('custom.Relation', 'custom.Other'))
  assert said == (f'{tmp_path}/n.xmi:8: its type system {tmp_path}/TypeSystem.xml lacks the type '
                  'webanno.custom.Relation')
  said = refused_cas(tmp_path, {'a.b.Finding', 'problem'})
  assert "n.xmi:1: its type system lacks 'a.b.Finding', which the mapping names; it has de." in said
  (tmp_path / 'TypeSystem.xml').unlink()
  with pytest.raises(InputError, match='n.xmi: no TypeSystem.xml beside it'):
    read('uima', tmp_path)
  # From a study: the names of its mapping are those that are wanted.
  written(tmp_path, {'TypeSystem.xml': type_system(), 'm.toml': '[entities]\n"a.b.C" = "drug"\n'})
  with pytest.raises(InputError, match="lacks 'a.b.C', which the mapping names"):
    load_folder(SiteFolder('s', str(tmp_path), 'uima', str(tmp_path / 'm.toml')))


def test_offsets_that_have_no_place_are_not_taken_for_others(tmp_path):
  """Unit 6 is inside of the sign, which is 5 and 6; as a character, 6 would be the blank."""
  said = refused_cas(tmp_path, xmi=('begin="1"', 'begin="6"'))
  assert 'n.xmi:5: the offset 6, in UTF-16 units, is outside of the text or inside' in said
  assert 'the offset 99, ' in refused_cas(tmp_path, xmi=('end="28"', 'end="99"'))


@pytest.mark.parametrize('changes, said', [
  ({'xmi': ('<cas:NULL', '<!DOCTYPE a [<!ENTITY b "c">]><cas:NULL')}, 'XML entities are not read'),
  ({'types': ('<name>identifier', '<name>a=print(1)')}, "has a feature 'a=print(1)'")])
def test_files_that_would_do_more_than_hold_notes(changes, said, tmp_path):
  assert said in refused_cas(tmp_path, **changes)


def test_the_library_is_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'cassis', None)
  written(tmp_path, {'a.json': {}})
  with pytest.raises(InputError, match=r"a UIMA|needs a package; pip install 'fedmedjax\[uima\]'"):
    read('uima', tmp_path)


# --- tables -------------------------------------------------------------------------------------

def test_tables_of_other_hands(tmp_path):
  """Semicolons, other names and cases of columns, numbers as pandas writes them with gaps, parts,
  patients, offsets that count line ends once."""
  written(tmp_path, {
    'all_notes.csv': '\ufeffDocId;SUBJECT_ID;Split;Text\r\n1;p;train;"Rash,\r\npain\r\nand  cough"'
                     '\r\n2;q;test;Well.\r\n3;q;test; \r\n',
    'note-spans.tsv': 'docid\tLabel\tBegin\tEnd\tCovered_Text\n1\ts\t6.0\t10.0\tpain\n'
                      '1\ts\t16\t21\tcough\n', 'README.csv': 'x'})
  parts, counts = read_parts(tmp_path, FORMATS['tables'])
  assert parts.train == [Document(
    'train_1', 'Rash,\r\npain\r\nand  cough', (Span(7, 11, 's'), Span(18, 23, 's')), (), 'p')]
  assert [note.name for note in parts.test] == ['test_2'] and parts.test[0].source == 'q'
  assert counts['offsets_line_ends'] == 2 and counts['empty_records'] == 1


@pytest.mark.parametrize('changes, said', [
  ({'notes.csv': 'note_id,body2\n1,x\n'},
   "notes.csv:1: has no column for text (such as 'text', 'note_text', 'note', 'content'); it has "
   "'note_id', 'body2'"),
  ({'spans.csv': 'start,end\n0,1\n'}, 'spans.csv:1: has no column for note'),
  ({'spans.csv': 'note_id,start,end,type\n1,0,1,s\n2,0,1,s\n1,a,1,s\n1,0,1,\n'},
   "spans.csv:3: the table of notes has no note '2' with a text (and 2 more errors: spans.csv"),
  ({'spans.csv': 'note_id,start,end,type\n1,0,1\n'}, 'spans.csv:2: 3 cells, the first line has 4'),
  ({'notes.csv': 'note_id,text\n1,x\n1,y\n'}, "notes.csv:3: the id '1' occurs twice"),
  ({'notes.csv': 'note_id,text\n1,"x\n2,y'}, 'notes.csv:2: no CSV: unexpected end of data'),
  ({'notes.csv': 'note_id,text,text\n1,x,y\n'}, "notes.csv:1: the column 'text' occurs twice"),
  ({'notes.parquet': b'x'}, 'notes.csv and notes.parquet are both tables of notes'),
  ({'relations.csv': 'note_id,head,tail\n'}, 'relations.csv:1: has no column for type'),
  ({'spans.csv': None}, 'no table spans.csv or spans.parquet; it has notes.csv')])
def test_tables_that_are_refused(changes, said, tmp_path):
  sound = {'notes.csv': 'note_id,text\n1,x\n', 'spans.csv': 'note_id,start,end,type\n1,0,1,s\n'}
  written(tmp_path, {name: text for name, text in (sound | changes).items() if text is not None})
  with pytest.raises(InputError) as error:
    read('tables', tmp_path)
  assert said in str(error.value) and '\n' not in str(error.value)
