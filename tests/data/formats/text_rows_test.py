"""Rows of a task of one's own: what is read of files and of Python, and what is refused."""

import json

import datasets
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
  assert [note.name for note in site.test] == ['test_q3'] and site.types == ()
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
