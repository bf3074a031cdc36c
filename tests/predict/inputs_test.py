"""What predict takes: rows of tables and JSON, FHIR resources, and where their files go."""

import base64
import json
from pathlib import Path, PurePosixPath

import pytest

from fedmedjax.predict.inputs import find_notes
from fedmedjax.predict.places import place, stem
from fedmedjax.types import InputError


def written(path: Path, content) -> Path:
  content = content if isinstance(content, str | bytes) else json.dumps(content, indent=1)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def taken(path: Path, **flags) -> tuple[dict, dict]:
  """({name: text}, {name: why skipped})."""
  notes = find_notes(path, **flags)
  return {note.name: note.text for note in notes.read(notes.names)}, notes.skipped


def refused(path: Path, **flags) -> str:
  with pytest.raises(InputError) as error:
    find_notes(path, **flags)
  assert '\n' not in str(error.value)
  return str(error.value)


def data(content: bytes) -> str:
  return base64.b64encode(content).decode()


@pytest.mark.parametrize('name, content, flags, expected', [
  # A mark, CR LF in a cell, a long note, and an id that is a path.
  ('a.csv', '\ufeffid,text\r\nward/7,"Fever\r\n""🫁"""\r\n8,' + 'x' * 200_000 + '\r\n', {},
   {'ward/7': 'Fever\r\n"🫁"', '8': 'x' * 200_000}),
  ('a.tsv', 'ROW_ID\tTEXT\n7\ta,b;c\n', {}, {'7': 'a,b;c'}),
  ('a.csv', 'visit;report;text\n7;Fever;-\n', {'text_column': 'report', 'id_column': 'visit'},
   {'7': 'Fever'}),
  ('a.jsonl', '{"text": "\ufeffFever\\r\\n", "note_id": 7}\n\n{"note_id": "b", "text": "-"}\n', {},
   {'7': '\ufeffFever\r\n', 'b': '-'}),
  ('a.json', [{'text': 'Fever'}, {'text': 'Well'}], {}, {'a_000001': 'Fever', 'a_000002': 'Well'}),
])
def test_rows_keep_their_ids_and_texts(name, content, flags, expected, tmp_path):
  assert taken(written(tmp_path / name, content), **flags) == (expected, {})


def test_rows_of_parquet_and_rows_without_a_text(tmp_path):
  """Numbers of a column with gaps are floats there."""
  import pyarrow
  import pyarrow.parquet
  pyarrow.parquet.write_table(pyarrow.table(
    {'note_id': [7.0, 8.0], 'text': ['Fever', None]}), tmp_path / 'a.parquet')
  assert taken(tmp_path / 'a.parquet') == ({'7': 'Fever'}, {'8': "2: has no 'text'"})


@pytest.mark.parametrize('name, content, flags, said', [
  ('a.csv', 'id,body2\n1,x\n', {},
   "a.csv:1: has no column 'text'; --text_column names one of 'id', 'body2'"),
  ('a.csv', 'id,text\n1,x\n', {'text_column': 'report'},
   "--text_column=report: {}/a.csv:1 has no such column; it has 'id', 'text'"),
  ('a.csv', 'id,text\n1,x\n', {'id_column': 'visit'}, '--id_column=visit: '),
  ('a.csv', 'id,text\n1,x\n1,y\n,z\n', {},
   "a.csv:3: the id '1' occurs twice (and 1 more error: a.csv:4)"),
  ('a.jsonl', '{"text": ["x"]}\n', {}, "a.jsonl:1: 'text' holds no text"),
  ('a.jsonl', '{"text": "\\ud800"}\n', {}, "a.jsonl:1: 'text' is no UTF-8 text"),
  ('a.jsonl', '{"text": "x"}\n[]\n', {}, 'a.jsonl:2: malformed line'),
  ('a.csv', 'id,text\n', {}, 'a.csv: has no row'), ('a.parquet', 'x', {}, 'as Parquet: '),
  ('a.pdf', 'x', {}, 'a folder of .txt files is expected, or a file ending in .csv, '),
  ('folder/a.txt', 'x', {'id_column': 'visit'}, '--id_column=visit: goes with rows'),
])
def test_rows_that_are_refused(name, content, flags, said, tmp_path):
  path = written(tmp_path / name, content)
  path = path.parent if path.suffix == '.txt' else path
  assert said.format(tmp_path) in refused(path, **flags)


def test_a_folder_of_tables(tmp_path):
  written(tmp_path / 'a.csv', 'id,text\n1,x\n')
  written(tmp_path / 'b' / 'c.jsonl', '{"id": 2, "text": "y"}\n')
  assert taken(tmp_path) == ({'1': 'x', '2': 'y'}, {})
  written(tmp_path / 'b' / 'd.jsonl', '{"id": 1, "text": "y"}\n')
  assert "d.jsonl:1: the id '1' occurs in another file, too" in refused(tmp_path)
  written(tmp_path / 'n.txt', 'Fever')  # text files go first, as ever
  assert taken(tmp_path) == ({'n.txt': 'Fever'}, {})


# --- FHIR ---------------------------------------------------------------------------------------

def document(ident, *attachments):
  return {'resourceType': 'DocumentReference', 'id': ident,
          'content': [{'attachment': one} for one in attachments]}


def report(ident, *attachments):
  return {'resourceType': 'DiagnosticReport', 'id': ident, 'presentedForm': list(attachments)}


def bundle(*resources):
  return {'resourceType': 'Bundle', 'type': 'searchset', 'entry': [
    {'fullUrl': f'urn:uuid:u{i}', 'resource': one} for i, one in enumerate(resources, 1)]}


PLAIN = {'contentType': 'text/plain', 'data': data('Fever 🫁\r\n'.encode())}


def test_resources_keep_their_ids(tmp_path):
  """A charset of its own, a PDF beside the text, an id of two kinds, none at all, a Binary of the
  same bundle; what has no text is named and skipped."""
  pdf = {'contentType': 'application/pdf', 'url': 'https://a.b/c.pdf'}
  content = bundle(
    {'resourceType': 'Patient', 'id': 'p'}, document('d1', pdf, PLAIN),
    report('r1', {'contentType': 'TEXT/PLAIN; charset=ISO-8859-1', 'data': data(b'M\xfcde')}),
    document('x', PLAIN, {'data': data(b'Second')}), report('x', PLAIN), report('r2', pdf),
    {**document(None, PLAIN), 'id': ''}, document('d3', {'url': 'Binary/b'}),
    {'resourceType': 'Binary', 'id': 'b', 'contentType': 'text/plain', 'data': data(b'Held')})
  texts, skipped = taken(written(tmp_path / 'a.json', content))
  fever = 'Fever 🫁\r\n'
  assert texts == {
    'd1': fever, 'r1': 'Müde', 'DocumentReference/x': fever, 'DocumentReference/x_2': 'Second',
    'DiagnosticReport/x': fever, 'u7': fever, 'd3': 'Held'}
  assert skipped == {'r2': 'no text/plain: application/pdf'}
  lines = '\n'.join(map(json.dumps, [document('d1', PLAIN), report('r1', PLAIN)]))
  assert taken(written(tmp_path / 'a.ndjson', lines)) == ({'d1': fever, 'r1': fever}, {})
  assert taken(written(tmp_path / 'one.json', document('d1', PLAIN)))[0] == {'d1': fever}


@pytest.mark.parametrize('resource, said', [
  (document('d', {'contentType': 'text/plain', 'url': 'https://a.b/c'}),
   'entry 2 (DocumentReference/d): attachment 1 stands at a URL (https://a.b/c) and is not'),
  (document('d', {'contentType': 'text/plain', 'data': 'no base64!'}), 'attachment 1 is no base64'),
  (document('d', {'contentType': 'text/plain', 'data': 7}), 'attachment 1 is no base64'),
  (report('d', {'data': data(b'%PDF-1.7\xff\xfe')}), 'attachment 1 is no text in utf-8'),
  (report('d', {'data': data(b'a\0b')}), 'attachment 1 is no text: it has zero bytes'),
  (report('d', {'contentType': 'text/plain; charset=hex', 'data': data(b'61')}),
   "the unknown charset 'hex'"),
  (report('d', {'contentType': ['text/plain'], 'data': data(b'a')}), 'attachment 1 is no text'),
  (document('p', PLAIN), "the id 'p' occurs twice"),
  ({'resourceType': 'DocumentReference', 'content': 3}, "'content' is no list"),
  (3, 'entry 2 is no resource')])
def test_resources_that_are_refused(resource, said, tmp_path):
  """With the line in which the second entry's resource begins; the bundle's for what is none."""
  path = written(tmp_path / 'a.json', bundle(document('p', PLAIN), resource))
  line = 1 if resource == 3 else 1 + path.read_text()[:path.read_text().rindex(
    '"resource":')].count('\n')
  error = refused(path)
  assert f'{path}:{line}: ' in error and said in error


def test_all_faults_of_a_bundle_are_told(tmp_path):
  path = written(tmp_path / 'a.json', bundle(
    document('a', {'url': 'u'}), document('b', {'url': 'v'}), report('c', {'data': '%'})))
  assert 'stands at a URL (u)' in refused(path) and '(and 2 more errors: a.json:' in refused(path)
  assert "no DocumentReference or DiagnosticReport in it; it has Patient" in refused(
    written(path, bundle({'resourceType': 'Patient'})))
  assert '--text_column=note: goes with rows' in refused(
    written(path, bundle(document('a', PLAIN))), text_column='note')


# --- places -------------------------------------------------------------------------------------

def test_files_of_text_keep_their_folders_and_other_ids_stay_inside():
  same = ('a.txt', 'ward/b c/a.txt', 'A.TXT', '100%.txt', 'line\nbreak.txt')
  assert [place(name) for name in same] == list(same)
  others = ('../x', '..', '/etc/x.txt', 'a/../../b.txt', '.txt', 'a\\b', 'a.txt/b.txt', 'a//b.txt',
            'x/../y.txt', 'n.', 'a%2Fb')
  assert all(len(PurePosixPath(place(name)).parts) == 1 and place(name) not in ('.', '..')
             and not place(name).startswith('.') for name in others)
  assert len({place(name) for name in (*same, *others)}) == len(same) + len(others)
  assert (stem('ward/a.txt'), stem('../x'), stem('7')) == ('ward/a', '%2E.%2Fx', '7')


def test_rows_of_blanks_are_skipped(tmp_path):
  """In a CSV file an empty cell is an empty text."""
  assert taken(written(tmp_path / 'a.csv', 'id,text\n7,Fever\n8,\n9," "\n')) == (
    {'7': 'Fever'}, {'8': "3: has no 'text'", '9': "4: has no 'text'"})


def test_two_ids_of_one_place_and_ids_that_are_too_long(tmp_path):
  rows = [{'id': ident, 'text': 'x'} for ident in ('a', 'a.txt', 'y' * 241)]
  texts, skipped = taken(written(tmp_path / 'a.json', rows))
  assert list(texts) == ['a'] and skipped == {
    'a.txt': 'has the same name in brat as a', 'y' * 241: 'its name is longer than 240 bytes'}
