"""Rows of a task of one's own: what is read of files and of Python, and what is refused."""

import json

import datasets
import numpy as np
import pytest

import fedmedjax as fm
from fedmedjax.data.formats.corpora import SiteFolder, load_folder
from fedmedjax.data.tasks import ask
from fedmedjax.data.wording import parse_wording
from fedmedjax.types import PAPER, InputError

ROWS = [
  {'id': 'q1', 'input': ' Aspirin given.\nA drug? ', 'target': 'yes', 'source': 7, 'part': 'train'},
  {'id': 'test 2', 'input': 'Aspirin given.\nA test?', 'target': 'no', 'source': 9,
   'part': 'training'},
  {'id': 'q3', 'input': 'Cough.\nA drug?', 'target': 'no', 'source': 8, 'part': 'test'}]


def read(path, **more):
  return load_folder(SiteFolder('here', path, 'rows', **more))


def as_jsonl(path):
  path.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))


def as_csv(path):
  path.write_text('Input,TARGET,id,source,part,remark\n' + ''.join(
    f'"{row["input"]}",{row["target"]},{row["id"]},{row["source"]},{row["part"]},x\n'
    for row in ROWS))


def as_parquet(path):
  datasets.Dataset.from_list(ROWS).to_parquet(path)


@pytest.mark.parametrize('name, write', [
  ('rows.jsonl', as_jsonl), ('rows.csv', as_csv), ('rows.parquet', as_parquet)])
def test_forms_of_files_and_python_give_the_same_site(name, write, tmp_path):
  """An id that names another part than its row does is not taken for the part."""
  write(tmp_path / name)
  site = read(tmp_path / name)
  assert [(note.text, note.target, note.source) for note in (*site.train, *site.test)] == [
    (row['input'], row['target'], f'source-{row["source"]}') for row in ROWS]
  assert [note.name for note in (*site.train, *site.test)] == [
    'train/q1', 'train/test 2', 'test/q3'] and site.types == ()
  given = fm.Site('here', ROWS)
  assert [note[1:] for note in given.train] == [note[1:] for note in site.train]
  assert given.test == site.test


def test_parts_may_be_files_and_sources_are_never_parted(tmp_path):
  for part, rows in (('train', ROWS[:2]), ('test', ROWS[2:])):
    (tmp_path / f'{part}.jsonl').write_text(''.join(
      json.dumps({'input': row['input'], 'target': row['target']}) + '\n' for row in rows))
  site = read(tmp_path)
  assert (len(site.train), len(site.test)) == (2, 1)
  rows = [{'input': f'question {i}', 'target': 'yes', 'source': i // 3} for i in range(30)]
  site = fm.Site('here', rows, test_share=0.3)
  trained, tested = ({note.source for note in part} for part in (site.train, site.test))
  assert len(site.test) == 9 and len(tested) == 3 and not trained & tested


def test_a_row_whose_input_is_tested_is_not_trained_on_but_one_that_resembles_it_is():
  """Nineteen of twenty words are the same in questions about one note."""
  note = ' '.join(f'word{i}' for i in range(19))
  rows = [{'input': f'{note} {last}', 'target': 'x', 'part': part} for last, part in (
    ('drug?', 'train'), ('test?', 'train'), ('TEST?', 'test'))]
  site = fm.Site('here', rows)
  assert [row.text.split()[-1] for row in site.train] == ['drug?']
  assert site.report['leaked_documents'] == 1


@pytest.mark.parametrize('text, said', [
  ('input,target\na,\n ,b\nc,d\n', "rows.csv:2: 'target' is empty (and 1 more error: rows.csv:3)"),
  ('input,answer\na,b\n', "has no column for target (such as 'target'); it has 'input', 'answer'"),
  ('text,label\na,b\n', "has no column for input (such as 'input') and none for target"),
  ('input,target,part\na,b,train\nc,d,fold 3\n', "rows.csv:3: 'part' is 'fold 3'; one of train"),
  ('input,target,part\na,b,train\nc,d,\n', "rows.csv:3: 'part' is ''; one of train, dev, test"),
  ('input,target\n', 'no row in'), ('input,target\na,b\n', 'cannot be split with test_share 0.2')])
def test_files_of_rows_that_are_refused(text, said, tmp_path):
  (tmp_path / 'rows.csv').write_text(text)
  with pytest.raises(InputError) as error:
    read(tmp_path / 'rows.csv')
  assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('rows, said', [
  ([], "site 'here': there is no row"), (['yes'], "site 'here', row:1: str: {'input': TEXT"),
  ([{'input': 'a'}], "site 'here', row:1: has no 'target'; it has 'input'"),
  ([{'input': 'a', 'target': 1}, {'input': 'b', 'target': ['c']}],
   "site 'here', row:2: 'target' holds no text")])
def test_rows_in_python_that_are_refused(rows, said):
  with pytest.raises(InputError) as error:
    fm.Site('here', rows)
  assert said in str(error.value)


def test_notes_and_rows_are_not_taken_for_each_other():
  rows = fm.Site('here', ROWS)
  notes = fm.Site('there', types=('drug',), train=[rows.train[0]._replace(target=None)])
  with pytest.raises(InputError, match="'here': holds rows of input and target"):
    ask('ner', rows)
  with pytest.raises(InputError, match="'there': holds notes; .*format 'rows'"):
    ask('text', notes)
  with pytest.raises(InputError, match='rows, or notes with types'):
    fm.Site('here', ROWS, types=('drug',))
  with pytest.raises(InputError, match='types=..., the entity types'):
    fm.Site('here', train=notes.train)


PROMPT = "[text]\nprompt = '''\nYes or no?\n{input}\nAnswer: '''\n"


def test_words_of_ones_own_stand_around_the_input(smollm):
  """Instruction, input and target are tokenised apart; without words the start token is shared."""
  site, tokenizer = fm.Site('here', ROWS), smollm.tokenizer
  from fedmedjax.data.site import encode_site
  encoded = [
    encode_site(one, tokenizer, tasks=('text',), max_length=64, trains=False)
    for one in (site, site._replace(schema=parse_wording(PROMPT, 'p.toml', PAPER, ('ner',), ())))]
  plain, worded = (data.tasks[0] for data in encoded)

  def tokens(text):
    return tokenizer(text, add_special_tokens=False)['input_ids']

  (example,) = worded.test_tokens
  assert worded.instruction.tolist() == tokens('Yes or no?\n')
  assert example.tokens.tolist() == [
    worded.instruction[-1], *tokens('Cough.\nA drug?\nAnswer: '), *tokens('no'),
    tokenizer.eos_token_id]
  assert example.prompt_length == 1 + len(tokens('Cough.\nA drug?\nAnswer: '))
  assert plain.instruction.tolist() == [tokenizer.bos_token_id]
  assert plain.test_tokens[0].tokens.tolist() == [
    tokenizer.bos_token_id, *tokens('Cough.\nA drug?\n'), *tokens('no'), tokenizer.eos_token_id]


@pytest.mark.parametrize('text, said', [
  ("[text]\nprompt = 'Answer.'\n", '[text]: prompt has {input} 0 times'),
  ("[text]\nprompt = '{input} {types}'\n", "unknown placeholder '{types}'; allowed are {input}"),
  ("[text]\nsentence = 'Answer:'\n", '[text]: sentence: prompt is allowed'),
  ("[text]\nprompt = 3\n", 'prompt=3: a text is allowed'),
  ("[rows]\nprompt = '{input}'\n", '[rows]: definitions, ner, text are allowed')])
def test_words_that_are_refused(text, said):
  with pytest.raises(InputError) as error:
    parse_wording(text, 'p.toml', PAPER, ('ner',), ('markup',))
  assert said in str(error.value)


def test_a_part_that_rows_state_is_taken_at_its_word_and_ids_say_none(tmp_path):
  """Six rows to train on and two to develop with are no eight to be divided."""
  rows = [{'input': f'{i}?', 'target': 'yes', 'part': part, 'id': 'stress test'} for i, part in
          enumerate(['train'] * 6 + ['dev'] * 2)]
  site = fm.Site('here', rows)
  assert (len(site.train), len(site.test)) == (6, 0)
  alone = fm.Site('here', [row | {'part': 'test'} for row in rows])
  assert (len(alone.train), len(alone.test)) == (0, 8)
  named = fm.Site('here', [
    {'input': f'{i}?', 'target': 'yes', 'id': f'{("training", "stress test")[i % 2]} {i}'}
    for i in range(10)], test_share=0.5)
  assert (len(named.train), len(named.test)) == (5, 5)
  for part in ('train', ''):
    (tmp_path / f'{part or "more"}_1.csv').write_text(f'input,target,part\na{part}?,b,{part}\n')
  with pytest.raises(InputError):
    read(tmp_path)


def test_rows_of_one_id_or_source_stay_together():
  """Four questions about each of ten notes, whose id says patient and kind; sources that a part has
  to itself; articles that another site tests."""
  site = fm.Site('here', [
    {'input': f'{note} {i}?', 'target': 'yes', 'id': f'1000{note:04d}-DS-21'}
    for note in range(10) for i in range(4)], test_share=0.3)
  from fedmedjax.data.sources import source_of
  trained, tested = (set(map(source_of, part)) for part in (site.train, site.test))
  assert len(site.test) == 12 and len(tested) == 3 and not trained & tested
  site = fm.Site('here', [
    {'input': f'{part} {source} {i}?', 'target': 'yes', 'part': part, 'source': source}
    for part, source in (('test', 'p1'), ('train', 'p1'), ('train', 'p2')) for i in range(3)])
  assert {row.source[:2] for row in site.train} == {'tr'} and len(site.train) == 3
  assert site.report['leaked_documents'] == 3
  from fedmedjax.data.leaks import unleaked
  a, b = (fm.Site(name, [
    {'input': f'{number} {name} {i}?', 'target': 'yes', 'part': of, 'pmid': number + i}
    for of, number, count in ((part, 8701013, 4), ('train', 9000000, 2)) for i in range(count)])
    for name, part in (('a', 'test'), ('b', 'train')))
  cleaned = unleaked([a, b], [])[1]
  assert (len(cleaned.train), cleaned.report['leaked_documents']) == (2, 4)


def test_cells_of_data_frames():
  """Whole numbers of any width are text; what is no number is an empty cell, and yes is no True."""
  pandas = pytest.importorskip('pandas')
  frame = pandas.DataFrame({'input': [1, 2], 'target': pandas.array([1, None], 'Int64')})
  with pytest.raises(InputError, match="row:2: 'target' is empty"):
    fm.Site('here', frame.to_dict('records'))
  with pytest.raises(InputError, match="'target' holds no text but True; write it as text"):
    fm.Site('here', [{'input': 'a', 'target': np.bool_(True)}])
  with pytest.raises(InputError, match="'target' holds no text"):
    fm.Site('here', [{'input': 'a', 'target': np.zeros(2)}])
  rows = fm.Site('here', [{'input': np.int64(3), 'target': 2.0}])
  assert (rows.train[0].text, rows.train[0].target) == ('3', '2')
  for share in (20, -1):
    with pytest.raises(InputError, match='a number in \\[0, 1\\], or None'):
      fm.Site('here', ROWS, test_share=share)
