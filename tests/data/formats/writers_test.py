"""What is written is read back: equal documents, or for CoNLL equal words and entities."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedjax.data.formats.bigbio import read_bigbio
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.conll import read_conll
from fedmedjax.data.formats.writers import write_bigbio, write_brat, write_conll
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.types import ENTITY_TYPES, Document, InputError, Relation, Span


@functools.cache
def notes():
  return list(generate_cohort('synthetic_dictation').test)


@st.composite
def documents(draw):
  """Any text, spans of any overlap, relations of which some are attributes."""
  text = draw(st.text(st.sampled_from('ab .\n\r\t\x0b\u2028é;|'), max_size=20))
  kinds = st.sampled_from(['Sign', 'T:x', 'K=1', 'a=b=c'])
  spans = []
  if text:
    for _ in range(draw(st.integers(0, 4))):
      start = draw(st.integers(0, len(text) - 1))
      spans.append(Span(start, draw(st.integers(start + 1, len(text))), draw(kinds)))
  ends = st.integers(0, len(spans) - 1)
  relations = [Relation(draw(kinds), draw(ends), draw(ends))
               for _ in range(draw(st.integers(0, 3)) if spans else 0)]
  return Document('note 1', text, tuple(spans), tuple(relations))


@given(documents())
def test_brat_and_bigbio_are_read_back_equal(document):
  with tempfile.TemporaryDirectory() as folder:
    write_brat(folder, [document])
    assert read_brat(folder)[0] == [document]
    write_bigbio(Path(folder) / 'x.jsonl', [document])
    assert read_bigbio(Path(folder) / 'x.jsonl')[0] == [document]


@pytest.mark.parametrize('name', ['maccrobat2020', 'chia'])
def test_corpora_are_read_back_equal(name, data_folder, tmp_path):
  """brat -> Document -> brat -> Document, and the same through bigbio_kb.

  What is written of a discontinuous entity is its covering range.
  """
  found = [note._replace(covering=()) for note in read_brat(data_folder / name)[0]]
  write_brat(tmp_path / 'brat', found)
  assert read_brat(tmp_path / 'brat')[0] == found
  write_bigbio(tmp_path / 'x.jsonl', found)
  assert read_bigbio(tmp_path / 'x.jsonl')[0] == found


def test_conll_keeps_words_and_entities(tmp_path):
  path = tmp_path / 'x.bio'
  counts = write_conll(path, notes(), ENTITY_TYPES)
  found, _ = read_conll(path)
  assert [d.name for d in found] == [d.name for d in notes()]
  squeezed = functools.partial(re.sub, r'\s', '')
  for ours, theirs in zip(notes(), found, strict=True):
    assert squeezed(ours.text) == squeezed(theirs.text)
    examples, _ = sentence_examples(ours, ENTITY_TYPES)
    assert [(s.type, squeezed(e.text[s.start:s.end])) for e in examples for s in e.entities] == [
      (s.type, squeezed(theirs.text[s.start:s.end])) for s in theirs.spans]
  assert counts['entities'] == sum(len(d.spans) for d in found) > 50


def test_conll_cuts_words_where_entities_begin_and_end(tmp_path):
  document = Document('d', 'No 5mg-asa.', (Span(4, 6, 'unit'), Span(7, 10, 'drug')), ())
  counts = write_conll(tmp_path / 'x', [document], ('unit', 'drug'))
  assert (tmp_path / 'x').read_text() == (
    '# newdoc id = d\nNo\tO\n5\tO\nmg\tB-unit\n-\tO\nasa\tB-drug\n.\tO\n')
  assert counts == {'sentences': 1, 'entities': 2}


@pytest.mark.parametrize(('document', 'said'), [
  (Document('../up', '', (), ()), "'../up' is no name of a file"),
  (Document('.', '', (), ()), "'.' is no name"),
  (Document('a', 'xy', (Span(0, 1, 'two words'),), ()), "'two words'.*blanks"),
])
def test_what_brat_cannot_hold_is_refused(tmp_path, document, said):
  with pytest.raises(InputError, match=said):
    write_brat(tmp_path, [document])
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write'):
    write_brat(tmp_path / 'file', [Document('a', '', (), ())])


def test_the_command_that_converts(tmp_path):
  """i2b2 in, brat out, with the schema's names and the cue of the negated problem."""
  (tmp_path / 'a.txt').write_text('Denies chest pain .\n')
  (tmp_path / 'a.con').write_text('c="chest pain" 1:1 1:2||t="problem"\n')
  (tmp_path / 'a.ast').write_text('c="chest pain" 1:1 1:2||t="problem"||a="absent"\n')
  root = Path(__file__).resolve().parents[3]
  command = [
    sys.executable, str(root / 'scripts' / 'convert.py'), f'--input={tmp_path}', '--format=i2b2',
    '--to=brat', f'--output={tmp_path / "out"}', '--mapping=i2b2_2010']
  run = functools.partial(
    subprocess.run, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(root)})
  done = run(command)
  assert done.returncode == 0, done.stderr
  assert '1 documents, 2 spans, 1 relations; set aside or repaired: nothing' in done.stdout
  (document,), _ = read_brat(tmp_path / 'out')
  assert document.spans == (Span(7, 17, 'problem'), Span(0, 6, 'negation'))
  assert document.relations == (Relation('negation', 0, 1),)
  done = run([*command, '--to=xls'])
  assert done.returncode == 2 and "--to='xls': one of brat, bigbio_kb, conll" in done.stderr
