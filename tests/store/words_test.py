"""Words of notes in the files of a run: left out where asked, and found where they are."""

import shutil

import pytest
from invented_run import NOTE, invent, record, write

from fedmedjax import describe
from fedmedjax.data.tasks import ask
from fedmedjax.eval.evaluate import predictions
from fedmedjax.report import freshen
from fedmedjax.store import words
from fedmedjax.store.files import read_json
from fedmedjax.types import Example, SiteCorpus, Span

MARK = 'zyxwarts'  # a word of every sentence of an invented run, and of nothing else
INSIDE = 'leave_one_out/checkpoints/fed_medlora'


def listed(folder, capsys) -> dict[str, str]:
  """What describe --text says: {file: why}, and under '' its last line."""
  assert describe.main(['describe', '--text', f'--workdir={folder}']) == 0
  *found, last = capsys.readouterr().out.splitlines()
  return dict(line.removeprefix(f'{folder}/').split(': ', 1) for line in found) | {'': last}


def with_the_word(folder) -> set[str]:
  return {path.relative_to(folder).as_posix() for path in folder.rglob('*')
          if path.is_file() and MARK.encode() in path.read_bytes()}


@pytest.mark.parametrize('style', ['markup', 'json'])
def test_a_record_without_text_says_where_its_sentence_stands(style):
  """'<span class="drug">Aspirin</span> 5 mg daily' is 44 characters; its sentence, 18, from 100 to
  118. What looks like a tag is replaced in the input, character by character."""
  corpus = SiteCorpus('a', ('drug',), (), (), {}, {'drug': ('strength',)})
  example = Example(
    'n1', 100, 'Aspirin 5 mg daily', (Span(8, 12, 'strength'),), Span(0, 7, 'drug'))
  tagged = Example('n1', 200, 'a <span class="drug">b</span>', ())
  texts = [*predictions(ask('re', corpus, style), [example], ['<span']),
           *predictions(ask('ner', corpus, style), [tagged], ['said'])]
  assert 'Aspirin' in texts[0]['model_input'] and texts[0]['generated'] == '<span'
  first, second = words.kept(texts, text=False)
  assert first == {key: value for key, value in texts[0].items()
                   if key not in ('model_input', 'generated')} | {'sentence_end': 118}
  assert second['sentence_end'] == 200 + len(tagged.text)
  assert list(words.kept(texts, text=True)) == texts
  assert list(words.kept([first], text=False)) == [first]


def test_a_record_of_a_text_keeps_neither_answer_nor_target(tmp_path, capsys):
  """'Ward 7?' is 7 characters, and what ends the question is not among them."""
  asked = {'document': 'row 1', 'sentence_start': 0, 'task': 'text', 'output_heading': ' => '}
  text = asked | {'model_input': 'Ward 7? => ', 'generated': MARK, 'target': MARK}
  assert list(words.kept([text], text=False)) == [asked | {'sentence_end': 7}]
  run = invent(tmp_path / 'run', records=[text], config={'data.sites': ['icu', 'ward']})
  assert 'predictions/icu.jsonl' in listed(run, capsys)
  words.take_out(run)
  assert 'predictions/icu.jsonl' not in listed(run, capsys)
  # A target alone is words, too.
  write(run / 'predictions' / 'icu.jsonl', asked | {'target': MARK}, lines=True)
  assert listed(run, capsys)['predictions/icu.jsonl'] == 'tested sentences and answers'


def test_text_is_taken_out_of_a_folder_and_its_report_goes_on(tmp_path, capsys):
  """Both kinds of errors of the invented run are counted from offsets."""
  run = invent(tmp_path / 'run', config={'data.sites': ['icu', 'ward']})
  write(run / 'predictions' / 'zero_shot' / 'icu.jsonl', record(), lines=True)
  write(run / 'predictions' / 'counts.json', {'scores': {}})
  write(run / 'prompts.json', {'icu': NOTE})
  for name in ('adapter/adapter_config.json', 'checkpoints/1/manifest.json', 'lock'):
    write(run / name, {})
  freshen(run, 6)
  found = listed(run, capsys)
  assert set(found) - {''} == with_the_word(run) == {
    'report.html', 'prompts.json', 'predictions/zero_shot/icu.jsonl',
    *(f'predictions/{site}.jsonl' for site in ('icu', 'ward', 'elsewhere'))}
  assert found['report.html'] == 'quoted sentences'
  assert found[''] == f'{run}: 6 of 13 files hold words of notes'
  before = (run / 'report.html').read_text()
  (run / 'predictions' / 'icu.jsonl.part').write_text(NOTE)
  words.take_out(run)
  assert listed(run, capsys) == {
    'report.html': 'quoted sentences', '': f'{run}: 1 of 12 files holds words of notes'}
  once = (run / 'predictions' / 'icu.jsonl').stat().st_mtime_ns
  freshen(run, 0)
  words.take_out(run)
  assert listed(run, capsys) == {'': f'{run}: none of 12 files holds words of notes'}
  assert not with_the_word(run)
  assert (run / 'predictions' / 'icu.jsonl').stat().st_mtime_ns == once
  after = (run / 'report.html').read_text()
  table = before[before.index('Errors by kind'):].partition('</table>')[0]
  assert table in after and 'config.report.examples says when' in after
  # Asked for all the same, the page says what became of them.
  freshen(run, 3)
  assert 'kept without (config.store.text)' in (run / 'report.html').read_text()
  assert not with_the_word(run)


def test_examples_that_prompts_show_are_words_of_notes(tmp_path, capsys):
  """In the summary of a run, until it is to keep no text, and in what predict has written."""
  run, out = invent(tmp_path / 'run'), tmp_path / 'out'
  words.take_out(run)
  summary = read_json(run / 'summary.json')
  shown = {'icu': {'ner': [[f'{MARK}\n', f'<b>{MARK}</b>']]}}
  write(run / 'summary.json', summary | {'shots': shown})
  write(out / 'predict.json', {'prompts': {}, 'shots': shown['icu']})
  assert listed(run, capsys)['summary.json'] == 'examples out of notes that prompts show'
  assert set(listed(out, capsys)) - {''} == {'predict.json'}
  assert with_the_word(tmp_path) == {'run/summary.json', 'out/predict.json'}
  words.take_out(run)
  assert read_json(run / 'summary.json') == summary and set(listed(run, capsys)) == {''}
  assert with_the_word(run) == set()


def test_a_comparison_and_annotations_are_looked_into(tmp_path, capsys):
  """A folder is judged by the nearest run around it, whatever a site is called."""
  study = tmp_path / 'study'
  write(study / 'findings.json', [])
  run = invent(study / INSIDE)
  words.take_out(run)
  out = study / 'annotated'
  write(out / 'predict.json', {'prompts': {}})
  write(out / 'skipped.jsonl', {'file': 'b.txt', 'reason': 'is no file'}, lines=True)
  write(out / 'annotations.jsonl', {'entities': [{'text': MARK}]}, lines=True)
  (out / 'brat' / 'ward').mkdir(parents=True)
  for name in ('annotation.conf', 'ward/a.txt', 'ward/a.ann'):
    (out / 'brat' / name).write_text(MARK if name.endswith('txt') else '')
  assert set(listed(study, capsys)) - {''} == {
    'annotated/annotations.jsonl', 'annotated/brat/ward/a.txt'} == with_the_word(study)
  # Nobody knows what is in these.
  (run / 'notes.csv').write_text('x')
  (run / 'report.html.part').write_text('x')
  (run / 'predictions' / 'icu.jsonl').write_text('{"document": "n1", "gen')
  (study / 'elsewhere').symlink_to(tmp_path)
  write(run / 'predictions' / 'ward.jsonl', record(target=MARK) | {
    'predicted': MARK}, lines=True)
  shutil.rmtree(out)
  assert set(listed(study, capsys)) - {''} == {
    'elsewhere', *(f'{INSIDE}/{name}' for name in (
      'notes.csv', 'report.html.part', 'predictions/icu.jsonl', 'predictions/ward.jsonl'))}


@pytest.mark.parametrize(('flags', 'said'), [
  (('--text',), '--workdir is missing'),
  (('--text', '--workdir=nowhere'), '--workdir=nowhere: the folder of a run is expected'),
  (('--text', '--workdir=.'), '--workdir=.: holds no run (config.json), no comparison'),
  (('--text', '--workdir=.', '--config=fedmedjax:quickstart'), '--config: --text looks at'),
  (('--text', '--workdir=.', '--output='), '--output: --text looks at the files of --workdir'),
  (('--text=perhaps', '--workdir=.'), 'flag --text=perhaps'),
  (('--config=fedmedjax:quickstart', '--workdir=.'), '--workdir=.: goes with --text')])
def test_what_is_no_run_is_said_in_a_line(flags, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'notes' / 'a.txt').write_text(MARK)
  assert describe.main(['describe', *flags]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and said in error, error
