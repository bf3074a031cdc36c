"""Damaged input: every reader gives sound documents or an InputError of one line, nothing else.

FEDMEDJAX_FUZZ is the number of inputs for each entry of SOUND, by default a few; e.g.
    FEDMEDJAX_FUZZ=100000 python -m pytest tests/data/fuzz_test.py
All damage follows from the input's number, which a failure names. None may take more than a second
of a core.
"""

import copy
import functools
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from fedmedjax.data.formats.doccano import doccano_record
from fedmedjax.data.formats.label_studio import label_studio_task
from fedmedjax.data.formats.mapping import FILES, read_mapping
from fedmedjax.data.formats.readers import FORMATS
from fedmedjax.data.formats.tables import csv_tables
from fedmedjax.data.formats.uima_writer import type_system, uima_json, uima_xmi
from fedmedjax.types import PAPER, Document, InputError, Relation, Span

KB = {
  'id': '0', 'document_id': 'd',
  'passages': [{'id': 'p', 'type': 'x', 'text': ['Rash after aspirin'], 'offsets': [[0, 18]]},
               {'id': 'q', 'type': 'x', 'text': ['Bad.'], 'offsets': [[19, 23]]}],
  'entities': [{'id': 'T1', 'type': 's', 'text': ['Rash'], 'offsets': [[0, 4]], 'normalized': []},
               {'id': 'T2', 'type': 's', 'text': ['Ra', 'as'], 'offsets': [[0, 2], [11, 13]]}],
  'events': [{'id': 'E1', 'type': 'b', 'trigger': {'text': ['Bad'], 'offsets': [[19, 22]]},
              'arguments': [{'role': 'of', 'ref_id': 'T1'}]}],
  'coreferences': [],
  'relations': [{'id': 'R', 'type': 'by', 'arg1_id': 'T1', 'arg2_id': 'E1', 'normalized': []}]}
REFERENCE = [
  {'tokens': ['a', ' ', 'b'], 'tags': ['O', 'O', 'B-x']},
  {'html': 'a <span class="x">b</span>'},
  {'input': 'a <span class="x">b</span> c', 'output': '<span class="y">a</span> b c'}]
BIOC = {'documents': [{
  'id': 'd', 'infons': {}, 'passages': [
    {'offset': 0, 'infons': {}, 'text': 'Rash, cough', 'annotations': [
      {'id': '1', 'infons': {'type': 's'}, 'text': 'Rash',
       'locations': [{'offset': 0, 'length': 4}]}], 'relations': [], 'sentences': []},
    {'offset': 12, 'sentences': [{'offset': 12, 'text': 'Bad.', 'annotations': []}]}],
  'relations': [{'id': 'R', 'infons': {'type': 'r'}, 'nodes': [
    {'refid': '1', 'role': ''}, {'refid': '1', 'role': ''}]}]}]}
_EVENT = {'event_type': 'A', 'Trigger': {'text': [['due']], 'start': [[5]]},
          'Effect': {'text': [['Rash']], 'start': [[0]], 'Drug': {'text': [['x']], 'start': [[9]]}}}
PHEE = {'id': '1_1', 'context': 'Rash due x', 'annotations': [{'events': [_EVENT]}]}
XML = (
  '<?xml version="1.0" encoding="UTF-8"?>\n<collection><source>s</source>\n<document><id>d</id>\n'
  '<passage><infon key="type">t</infon><offset>0</offset><text>Rash &amp; cough</text>\n'
  '<annotation id="1"><infon key="type">s</infon><location offset="0" length="4"/>'
  '<text>Rash</text></annotation>\n</passage>\n<relation id="R"><infon key="type">r</infon>'
  '<node refid="1" role=""/><node refid="1" role=""/></relation></document></collection>\n')
ROWS = [
  {'tokens': ['No', 'rash'], 'tags': ['O', 'B-x']}, {'tokens': ['', 'é'], 'tags': ['B-x', 'O']}]
NOTE = Document('a', 'Rash 🫁, no cough', (Span(0, 4, 's'), Span(8, 10, 'n'), Span(11, 16, 's')),
                (Relation('of', 2, 1),))
TASK = label_studio_task(NOTE)
# Format -> {file of a sound input: its content}; the first is what the reader is given, a folder
# for those of several files. Texts are damaged by characters, other values by their parts too.
SOUND = {
  'brat': {'a.txt': 'Rash, cough\nno', 'a.ann': (
    'T1\tS 0 4\tRash\nT2\tS 0 4;6 11\tRash cough\nE1\tS:T1 Of:T2\nR1\tM Arg1:T1 Arg2:E1\n'
    '*\tO T1 T2\nA1\tP E1 NEG\n#1\tN T1\tnote\nN1\tR T1 X:1\tx\n')},
  'i2b2': {'a.txt': 'Rash , cough\nno\n', 'a.con': (
    'c="rash" 1:0 1:0||t="problem"\nc="no" 2:0 2:0||t="test"\n'),
    'a.rel': 'c="rash" 1:0 1:0||r="R"||c="no" 2:0 2:0\n',
    'a.ast': 'c="rash" 1:0 1:0||t="problem"||a="absent"\n'},
  'bioc': {'a.xml': XML},
  'bioc json': {'a.json': BIOC},
  'pubtator': {'a.txt': (
    '7|t|Rash and cough\n7|a|After asa.\n7\t0\t4\tRash\tD\tM1|M2\tx|y\n7\t21\t24\tasa\tC\tM3\n'
    '7\tCID\tM3\tM1\n\n8|t|A\n8|a|B\n')},
  'phee': {'a.json': PHEE},
  'conll': {'a.bio': '-DOCSTART- O\n\nno O\nmild X B-s\ncough\tX\tI-s\n\n# newdoc id = n\na S-b\n'},
  'reference': {'a.json': REFERENCE},
  'bigbio_kb': {'a.json': [KB, KB]},
  'datasets': {'a.parquet': [KB]},
  'datasets sentences': {'a.parquet': ROWS},
  'label_studio': {'a.json': [TASK, {'id': 2, 'data': {'text': 'Rash'}, 'annotations': [
    {'was_cancelled': True}, {'ground_truth': True, 'result': [
      {'id': 'r', 'type': 'labels', 'value': {'start': 0, 'end': 4, 'labels': ['s']}}]}]}]},
  'label_studio min': {'a.json': [{'id': 1, 'text': 'Rash', 'annotator': 1, 'kind': [
    {'start': 0, 'end': 4, 'text': 'Rash', 'labels': ['s', 't']}]}]},
  'doccano': {'a.jsonl': [doccano_record(NOTE), {'id': 3, 'text': 'Rash', 'label': [[0, 4, 's']]}]},
  'tables': csv_tables([NOTE, NOTE._replace(name='b')]),
  'uima': {'a.xmi': uima_xmi(NOTE).replace('><', '>\n<'), 'TypeSystem.xml': type_system()},
  'uima json': {'a.json': json.loads(uima_json(NOTE))},
  'datasets saved': None,  # see `sound`
}
MANY = int(os.environ.get('FEDMEDJAX_FUZZ', 40))
_VALUES = (
  None, True, 0, 1, 7, -1, 40, 10**9, 10**30, 1.5, '', 'a', 'T1', 'E1', '1', '<span class="x">',
  '</span>', '\ud800', '\n', {}, [], [[]], [0], [3, 1], [0, 4], [None], ['a', 'b'], {'a': 1})
_PIECES = (
  '\n', '\t', '\r\n', '\r', ' ', '|', '||', ':', '"', "'", '<', '</', '>', '&x;', '0', '7', '99',
  '999999999999', '-1', 'T1', 'E1', '\ufeff', '\x00', '\x0b', '\u2028', 'é', 'B-', 'I-', '#', '*\t',
  '[', ']', '{', '}', ',', '\\', '\\ud800', '=', 'null', '<!DOCTYPE a [<!ENTITY b "c">]>')


@functools.cache
def sound(name: str) -> dict:
  """The files of a sound input; imports what their reader will, so that it is not timed."""
  if name.startswith('datasets'):
    import datasets
  if SOUND[name]:
    return SOUND[name]
  with tempfile.TemporaryDirectory() as folder:
    datasets.Dataset.from_list([KB, KB]).save_to_disk(folder)
    return {path.name: path.read_bytes() if path.suffix == '.arrow' else path.read_text()
            for path in sorted(Path(folder).iterdir())}


def given(name: str, folder: Path) -> Path:
  """What the reader is given of an input's folder."""
  whole = len(sound(name)) > 1 and (name == 'datasets saved' or not FORMATS[name].suffixes)
  return folder if whole else folder / next(iter(sound(name)))


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
  """Up to six stretches of other bytes; sometimes cut off."""
  for _ in range(rng.randint(1, 6)):
    at = rng.randint(0, len(content))
    content = content[:at] + rng.randbytes(rng.randint(1, 4)) + content[at + 4:]
  return content[:rng.randint(0, len(content))] if rng.random() < 0.05 else content


def damaged_text(rng: random.Random, text: str) -> bytes:
  """Up to four cuts, insertions, repetitions and swaps of stretches; sometimes stray bytes."""
  for _ in range(rng.randint(1, 4)):
    start = rng.randint(0, len(text))
    end = min(len(text), start + rng.randint(0, 12))
    piece = rng.choice(_PIECES)
    text = rng.choice((
      text[:start] + piece + text[start:], text[:start] + piece + text[end:],
      text[:start] + text[end:], text[:end] + text[start:], text[:start],
      text[end:] + text[:start]))
  content = text.encode()
  if rng.random() < 0.05:
    at = rng.randint(0, len(content))
    content = content[:at] + rng.randbytes(rng.randint(1, 3)) + content[at:]
  return content


def damaged_value(rng: random.Random, value):
  """Up to three parts anywhere in the value replaced, repeated or left out."""
  value = copy.deepcopy(value)
  for _ in range(rng.randint(1, 3)):
    holder = value
    while isinstance(holder, dict | list) and holder:
      key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
      if not isinstance(holder[key], dict | list) or rng.random() < 0.25:
        what = rng.randrange(6)
        if what == 0:
          del holder[key]
        elif what == 1 and isinstance(holder, list):
          holder.append(holder[key])
        else:
          holder[key] = copy.deepcopy(rng.choice(_VALUES))
        break
      holder = holder[key]
  return value


def write_damaged(rng: random.Random, path: Path, content) -> None:
  if isinstance(content, bytes):
    path.write_bytes(damaged_bytes(rng, content))
  elif isinstance(content, str):
    path.write_bytes(damaged_text(rng, content) if rng.random() < 0.6 else content.encode())
  elif path.suffix == '.parquet':
    write_parquet(rng, path, content)
  elif rng.random() < 0.75:
    content = damaged_value(rng, content)
    lines = isinstance(content, list) and rng.random() < 0.5
    path.write_text('\n'.join(map(json.dumps, content)) if lines else json.dumps(content))
  else:
    path.write_bytes(damaged_text(rng, json.dumps(content)))


def write_parquet(rng: random.Random, path: Path, rows) -> None:
  import pyarrow.parquet
  try:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(damaged_value(rng, rows)), path)
  except (pyarrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)  # no table has such rows
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))


def is_sound(documents, counts) -> None:
  assert documents and isinstance(counts, Counter)
  assert len({d.name for d in documents}) == len(documents)
  for document in documents:
    (document.name + document.text).encode()
    for start, end, kind in document.spans:
      assert 0 <= start < end <= len(document.text) and isinstance(kind, str)
    for kind, *ends in document.relations:
      assert isinstance(kind, str) and all(0 <= end < len(document.spans) for end in ends)


def check_reading(read, path: Path) -> None:
  began = time.thread_time()
  try:
    is_sound(*read(path))
  except InputError as error:
    folder = path if path.is_dir() else path.parent  # a type system lies beside its notes
    assert '\n' not in str(error) and str(folder) in str(error)
    # Where in the file, unless there is nothing in it, or no table of rows at all.
    assert re.search(r':\d+: ', str(error)) or re.search(
      ': (no|its columns)|^no |as a data set', str(error)), str(error)
  assert time.thread_time() - began < 1


@pytest.mark.parametrize('name', SOUND)
def test_damaged_notes(name):
  files = sound(name)
  with tempfile.TemporaryDirectory(dir='/dev/shm' if Path('/dev/shm').is_dir() else None) as folder:
    path = given(name, Path(folder))
    for number in range(MANY):
      rng = random.Random(number)
      for file, content in files.items():
        write_damaged(rng, Path(folder) / file, content)
      try:
        check_reading(FORMATS[name.split()[0]].read, path)
      except Exception as error:
        raise AssertionError(f'input {number}') from error


@pytest.mark.parametrize('name', SOUND)
def test_undamaged_notes(name, tmp_path):
  """Else the test above might only ever see errors."""
  files = sound(name)
  for file, content in files.items():
    if file.endswith('.parquet'):
      import pyarrow.parquet
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / file)
    else:
      content = content if isinstance(content, str | bytes) else json.dumps(content)
      (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
  is_sound(*FORMATS[name.split()[0]].read(given(name, tmp_path)))


def test_damaged_mappings(tmp_path):
  from importlib import resources
  path = tmp_path / 'x.toml'
  shipped = resources.files('fedmedjax.data.formats').joinpath('mappings')
  texts = [shipped.joinpath(f'{name}.toml').read_text() for name in FILES]
  for number in range(MANY):
    rng = random.Random(number)
    path.write_bytes(damaged_text(rng, rng.choice(texts)))
    try:
      mapping = read_mapping(path)
      assert set().union(*mapping.modifiers.values()) <= set(PAPER.kinds), number
    except InputError as error:
      assert '\n' not in str(error) and re.search(r'x.toml:\d+: ', str(error)), (number, error)
    except Exception as error:
      raise AssertionError(f'input {number}') from error
