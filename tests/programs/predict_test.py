"""Notes in, annotations out: the real command with a tiny run's adapter, or planted answers."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_runs import shared_folder
from shown_files import shown_command, shown_files

from fedmedjax import main
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.readers import FORMATS, read_notes
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.eval import evaluate
from fedmedjax.predict import __main__ as predict
from fedmedjax.predict import annotate
from fedmedjax.predict import folder as folders
from fedmedjax.predict.pages import stretches
from fedmedjax.predict.trained import FLAGS, read_trained
from fedmedjax.train import loop, run
from fedmedjax.types import Document, Relation, Span


@pytest.fixture(scope='module')
def joint(tiny_folder, tmp_path_factory) -> Path:
  """A finished run, both tasks at one site, entities only at the other; in place of training its
  adapter is drawn at random, both factors."""
  def drawn(study, workdir, reporter, display, plan, tracker):
    rng = np.random.default_rng(5)
    state = study.algorithm.init(jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), study.trainable.adapter))
    return loop.Trained(state, [], 0.0, 0.0, plan)

  def fill(workdir):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(run, 'train', drawn)
      assert main.main([
        'fedmedjax', '--config=configs/quickstart.py:fed_medlora',
        f'--config.model.path={tiny_folder}', f'--workdir={workdir}', '--config.data.external=()',
        "--config.data.sites=('synthetic_clinic','synthetic_icu')",
        "--config.data.tasks=('ner','re')", "--config.data.site_tasks=('ner','ner+re')",
        '--config.data.max_length=300', '--config.lora.rank=2', '--config.eval.zero_shot=False',
        '--config.log.steps=False', '--config.lora.targets=("q_proj","v_proj")',
        '--config.eval.max_examples=4', '--config.eval.batch_size=2',
        '--config.eval.max_new_ratio=0.1', '--config.eval.bootstrap_samples=1']) == 0

  return shared_folder(tmp_path_factory, 'joint', fill)


# What the planted model finds, and of which entities it finds modifiers.
_WORDS = {
  'aspirin': 'drug', 'fever': 'problem', 'blood count': 'test', 'pain🫁': 'problem',
  '<b>rash</b>': 'problem'}
_MODIFIERS = {('by mouth', 'drug'): 'route', ('no', 'problem'): 'negation',
              # Nothing that a problem can have.
              ('daily', 'problem'): 'frequency'}


def _found(example) -> tuple[Span, ...]:
  wanted = _WORDS if example.main is None else {
    words: kind for (words, of), kind in _MODIFIERS.items() if of == example.main.type}
  spans = [Span(*match.span(), kind) for words, kind in wanted.items()
           for match in re.finditer(rf'(?<!\w){re.escape(words)}', example.text)]
  return tuple(sorted(spans))


@pytest.fixture
def planted(monkeypatch):
  """Instead of the model: the words above are found. The list of all sentences asked about."""
  asked = []

  def answer(generator, adapter, base, part, advance=lambda count: None):
    asked.extend(example.text for example in part.test if example.main is None)
    advance(len(part.test))
    return [part.ask.render(example._replace(entities=_found(example)))[1]
            for example in part.test]

  monkeypatch.setattr(evaluate, 'generate', answer)
  return asked


def command(adapter, source, output, *more) -> list[str]:
  return ['predict', f'--adapter={adapter}', f'--input={source}', f'--output={output}', *more]


def records(output: Path) -> dict[str, dict]:
  lines = (output / 'annotations.jsonl').read_text(encoding='utf-8').splitlines()
  return {record['file']: record for record in map(json.loads, lines)}


def contents(folder: Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes()
          for path in sorted(folder.rglob('*')) if path.is_file()}


_NOTES = {
  # A byte order mark, Windows line ends, a character beyond 16 bits before the entities.
  'a.txt': '\ufeffpain🫁 today.\r\nGave aspirin by mouth daily.\r\n',
  # The same name elsewhere; markup in the note itself.
  'ward/b c/a.txt': 'A <b>rash</b> & no fever daily.\nBlood count? blood count 4.\n',
  'ward/empty.txt': '', 'ward/blank.TXT': ' \n\n',
}


def write_notes(folder: Path, notes=None) -> Path:
  for name, text in (notes or _NOTES).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
  return folder


@pytest.mark.parametrize('flags, shape', [
  ((), None),
  # The base split in two, and two copies of that; the run had one device.
  pytest.param(('--mesh_site=2', '--mesh_fsdp=2'), {'site': 2, 'fsdp': 2, 'tensor': 1},
               marks=pytest.mark.slow)])
def test_answers_are_those_of_the_run(flags, shape, joint, tmp_path, monkeypatch, capsys):
  """The test notes of a site as files: every sentence that the run decoded is answered alike.

  And batches have their own size whatever the number of sentences.
  """
  notes = {note.name: note.text for note in generate_cohort('synthetic_icu', seed=42).test}
  lines = (joint / 'predictions' / 'synthetic_icu.jsonl').read_text().splitlines()
  held = [record for record in map(json.loads, lines) if record['task'] == 'ner']
  assert len(held) == 4 and len({record['generated'] for record in held}) > 1
  # Every sentence of a note is decoded, not those alone that the run tested: without a mesh, of one
  # note only.
  needed = {record['document'] for record in (held if shape else held[:1])}
  held = [record for record in held if record['document'] in needed]
  source = write_notes(tmp_path / 'notes', {f'{name}.txt': notes[name] for name in needed})
  answered = []
  predictions = evaluate.predictions

  def told(ask, examples, outputs):
    found = predictions(ask, examples, outputs)
    answered.extend(found)
    return found

  monkeypatch.setattr(evaluate, 'predictions', told)
  meshes = []

  def laid_on(trained, base, mesh):
    meshes.append(mesh and dict(mesh.shape))
    return make_annotator(trained, base, mesh)

  make_annotator = folders.make_annotator
  monkeypatch.setattr(folders, 'make_annotator', laid_on)
  assert predict.main(
    command(joint / 'adapter', source, tmp_path / 'out', '--site=synthetic_icu', *flags)) == 0
  assert meshes == [shape]
  found = {(r['document'], r['sentence_start']): r for r in answered if r['task'] == 'ner'}
  for record in held:
    ours = found[f'{record["document"]}.txt', record['sentence_start']]
    for key in ('model_input', 'generated', 'predicted', 'parse_failed'):
      assert ours[key] == record[key]
  assert 'with the prompt of site synthetic_icu' in capsys.readouterr().out


def test_every_format_states_the_characters_of_the_file(joint, tmp_path, planted, capsys):
  """Offsets by hand: a.txt is the mark (0), 'pain🫁 today.' [1, 13), '\\r\\n', 'Gave aspirin ...'.

  So 'pain🫁' is [1, 6); 'Gave' begins at 15, 'aspirin' is [20, 27), 'by mouth' [28, 36).
  """
  source, out = write_notes(tmp_path / 'notes'), tmp_path / 'out'
  assert predict.main(command(joint, source, out)) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert '4 notes in' in said and 'unreadable answers 0 of' in said
  # The clinic comes first but does not annotate treatments.
  assert 'asked for problem, treatment, test, drug, with the prompt of site synthetic_icu' in said
  found = records(out)
  assert found['a.txt']['entities'] == [
    {'start': 1, 'end': 6, 'type': 'problem', 'text': 'pain🫁'},
    {'start': 20, 'end': 27, 'type': 'drug', 'text': 'aspirin'},
    {'start': 28, 'end': 36, 'type': 'route', 'text': 'by mouth'}]
  assert found['a.txt']['relations'] == [{'type': 'route', 'head': 1, 'tail': 2}]
  other = found['ward/b c/a.txt']
  assert [entity['text'] for entity in other['entities']] == [
    '<b>rash</b>', 'fever', 'blood count', 'no']
  # Both problems of the sentence have the one 'no'.
  assert other['relations'] == [
    {'type': 'negation', 'head': 0, 'tail': 3}, {'type': 'negation', 'head': 1, 'tail': 3}]
  # A blank sentence is none; two sentences, two mains each.
  assert {name: (r['sentences'], r['answers'], r['cut']) for name, r in found.items()} == {
    'a.txt': (2, 4, 0), 'ward/b c/a.txt': (2, 5, 0), 'ward/empty.txt': (0, 0, 0),
    'ward/blank.TXT': (0, 0, 0)}
  for name, text in _NOTES.items():
    copy = name if name.endswith('.txt') else f'{name}.txt'
    assert (out / 'brat' / copy).read_bytes() == text.encode()
  documents = {}
  for folder, name in (('', 'a'), ('ward/b c', 'a')):
    read, _ = read_brat(out / 'brat' / folder)
    documents[folder] = next(d for d in read if d.name == name)
  assert 'negation\tArg1:' in (out / 'brat' / 'annotation.conf').read_text()
  # What reads brat leaves the mark out, which predict's offsets count.
  assert documents[''].text == _NOTES['a.txt'].removeprefix('\ufeff')
  assert documents[''].spans == (
    Span(0, 5, 'problem'), Span(19, 26, 'drug'), Span(27, 35, 'route'))
  assert documents[''].relations == (Relation('route', 1, 2),)
  # Another format needs no model.
  planted.clear()
  assert predict.main(command(joint, source, out, '--format=html')) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert planted == [] and '4 notes in' in said and ', from before: ' in said
  # Without a terminal, no words of notes are printed.
  assert 'Found' not in said and 'aspirin' not in said
  page = (out / 'html' / 'ward' / 'b c' / 'a.txt.html').read_text()
  assert '&lt;b&gt;rash&lt;/b&gt;</mark>' in page and '<b>' not in page
  assert 'href="../../index.html"' in page and 'data-label="negation"' in page
  index = (out / 'html' / 'index.html').read_text()
  assert 'href="ward/b%20c/a.txt.html"' in index


_PAGE = (Path(__file__).parents[2] / 'docs' / 'running.md').read_text()


def _shown(part: str, joint: Path) -> list[str]:
  """A command of docs/running.md, with the adapter at hand."""
  words = shown_command(_PAGE, part)
  return [f'--adapter={joint}' if word.startswith('--adapter=') else word for word in words]


def test_the_examples_of_the_page(joint, tmp_path, planted, monkeypatch):
  """Rows with CR LF, as a spreadsheet saves them; 'Fever' is none of the planted words, 'fever' is.

  In visit 7 'Fever since Monday.' ends at 19, CR LF at 21, 'Gave ' at 26: 'aspirin' is [26, 33).
  """
  monkeypatch.chdir(tmp_path)
  for name, text in shown_files(_PAGE).items():
    Path(name).write_bytes(text.replace('\n', '\r\n').encode())
  assert predict.main(_shown('--input=visits.csv', joint)) == 0
  read, counts = read_notes(tmp_path / 'checked' / 'label_studio', FORMATS['label_studio'])
  text = 'Fever since Monday.\r\nGave aspirin by mouth.'
  assert read == [
    Document('7', text, (Span(26, 33, 'drug'), Span(34, 42, 'route')), (Relation('route', 0, 1),)),
    Document('8', 'No rash.', (), ())] and counts['predictions'] == 2
  assert '<Label value="route"/>' in (tmp_path / 'checked/label_studio/labelling.xml').read_text()
  assert predict.main(_shown('--input=bundle.json', joint)) == 0
  assert read_notes(tmp_path / 'from_fhir' / 'uima_xmi', FORMATS['uima'])[0] == [
    Document('r7', 'No fever.', (Span(3, 8, 'problem'),), ())]


def test_every_format_is_read_back(joint, tmp_path, planted):
  """The note with a mark, CR LF and a sign beyond 16 bits, as every reader gives it; asked once."""
  text = _NOTES['a.txt']
  source = tmp_path / 'notes.jsonl'
  source.write_text(json.dumps({'note_id': 'ward/../7', 'text': text}) + '\n' + json.dumps(
    {'note_id': 8, 'text': ''}))
  spans = (Span(1, 6, 'problem'), Span(20, 27, 'drug'), Span(28, 36, 'route'))
  note = Document('ward/../7', text, spans, (Relation('route', 1, 2),))
  out = tmp_path / 'out'
  for form, reader in (
      ('label_studio', 'label_studio'), ('doccano', 'doccano'), ('uima_xmi', 'uima'),
      ('uima_json', 'uima'), ('csv', 'tables'), ('parquet', 'tables')):
    assert predict.main(command(joint, source, out, f'--format={form}')) == 0
    read, _ = read_notes(out / form, FORMATS[reader])
    assert [one for one in read if one.text] == [note], form
  assert planted == ['pain🫁 today.', 'Gave aspirin by mouth daily.']
  assert predict.main(command(joint, source, out, '--format=html')) == 0
  assert 'href="ward%252F..%252F7.html"' in (out / 'html' / 'index.html').read_text()
  assert (out / 'html' / 'ward%2F..%2F7.html').exists()
  assert records(out).keys() == {'ward/../7'}
  # What holds all notes is old in no format either.
  source.write_text(json.dumps({'note_id': 9, 'text': 'No fever.'}))
  assert predict.main(command(joint, source, out, '--format=csv')) == 0
  assert sorted(path.name for path in out.rglob('*.jsonl')) == [
    'annotations.jsonl', 'skipped.jsonl']
  assert not (out / 'parquet' / 'notes.parquet').exists()
  assert [note.name for note in read_notes(out / 'csv', FORMATS['tables'])[0]] == ['9']


def test_overlapping_spans_by_hand():
  """0123456789: a [1, 5), b [3, 7), c [3, 5) cut the text at 1, 3, 5, 7."""
  document = Document(
    'n', '0123456789', (Span(1, 5, 'a'), Span(3, 7, 'b'), Span(3, 5, 'c')), ())
  assert stretches(document) == [
    ('0', (), ()), ('12', ('a',), ()), ('34', ('a', 'c', 'b'), ('a', 'c')), ('56', ('b',), ('b',)),
    ('789', (), ())]


def test_it_goes_on_where_it_was_stopped(joint, tmp_path, monkeypatch, planted, capsys):
  """Chunks of 8 sentences (batch 1), stopped before the second: what is written stays, the rest is
  asked once, a note that changes is asked again, and all ends as if undisturbed."""
  notes = {f'{i}.txt': f'Fever {i}.\nGave aspirin {i} by mouth.\nWell.\n' for i in range(5)}
  source, out = write_notes(tmp_path / 'notes', notes), tmp_path / 'out'
  one = '--batch_size=1'
  assert predict.main(command(joint, source, tmp_path / 'whole', one)) == 0
  planted.clear()
  answer = evaluate.answer

  def stopping(*args):
    if planted:
      raise KeyboardInterrupt
    return answer(*args)

  with monkeypatch.context() as patch:
    patch.setattr(evaluate, 'answer', stopping)
    assert predict.main(command(joint, source, out, one)) == 130
  assert 'goes on after what is saved' in capsys.readouterr().err
  # Of the 8 sentences two notes have all three.
  assert sorted(records(out)) == ['0.txt', '1.txt'] and len(planted) == 8
  with (out / 'annotations.jsonl').open('a') as file:
    file.write('{"file": "2.t')  # torn
  (out / 'brat' / '0.ann').write_text('corrected by hand')
  (out / 'brat' / '1.ann').unlink()
  planted.clear()
  assert predict.main(command(joint, source, out, one)) == 0
  assert len(planted) == 9 and '2 of them from before' in ' '.join(capsys.readouterr().out.split())
  ours, whole = contents(out), contents(tmp_path / 'whole')
  assert ours.pop('brat/0.ann') == b'corrected by hand' and whole.pop('brat/0.ann')
  assert ours == whole
  planted.clear()
  write_notes(source, {'3.txt': 'No fever.'})
  assert predict.main(command(joint, source, out, one)) == 0
  assert planted == ['No fever.'] and len(records(out)['3.txt']['entities']) == 1


def test_a_changed_note_is_old_in_no_format(joint, tmp_path, planted):
  """Annotated anew as pages: its files for brat go, a neighbour's corrected ones stay."""
  notes = {'a.txt': 'Fever.', 'b.txt': 'Well.'}
  source, out = write_notes(tmp_path / 'notes', notes), tmp_path / 'out'
  assert predict.main(command(joint, source, out)) == 0
  (out / 'brat' / 'b.ann').write_text('corrected by hand')
  write_notes(source, {'a.txt': 'No fever, gave aspirin.'})
  assert predict.main(command(joint, source, out, '--format=html')) == 0
  assert sorted(path.name for path in (out / 'brat').iterdir()) == [
    'annotation.conf', 'b.ann', 'b.txt']
  planted.clear()
  assert predict.main(command(joint, source, out)) == 0
  assert planted == [] and (out / 'brat' / 'b.ann').read_text() == 'corrected by hand'
  assert (out / 'brat' / 'a.txt').read_text() == 'No fever, gave aspirin.'
  assert 'aspirin' in (out / 'brat' / 'a.ann').read_text()
  assert 'aspirin' in (out / 'html' / 'a.txt.html').read_text()


def test_a_note_that_cannot_be_read_once_keeps_its_record(joint, tmp_path, planted):
  notes = {'a.txt': 'Fever.', 'b.txt': 'Well.'}
  source, out = write_notes(tmp_path / 'notes', notes), tmp_path / 'out'
  assert predict.main(command(joint, source, out)) == 0
  (out / 'brat' / 'a.ann').write_text('corrected by hand')
  before = records(out)
  (source / 'a.txt').write_bytes(b'\xfc')
  assert predict.main(command(joint, source, out)) == 0
  assert records(out) == before and 'a.txt' in (out / 'skipped.jsonl').read_text()
  write_notes(source, {'a.txt': 'Fever.'})
  planted.clear()
  assert predict.main(command(joint, source, out)) == 0
  assert planted == [] and records(out) == before
  assert (out / 'brat' / 'a.ann').read_text() == 'corrected by hand'
  assert not (out / 'skipped.jsonl').read_text()


def test_bad_files_are_skipped_and_named(joint, tmp_path, planted, capsys):
  source, out = write_notes(tmp_path / 'notes'), tmp_path / 'out'
  (source / 'latin.txt').write_bytes('Müde [b]'.encode('latin-1'))
  (source / ('x' * 250 + '.txt')).write_text('Fever.')
  (source / 'gone.txt').symlink_to('nowhere')
  os.mkfifo(source / 'pipe.txt')
  os.mkdir(source / 'folder.txt')
  with open(os.fsencode(source) + b'/\xff.txt', 'w'):
    pass
  (source / '.hidden.txt').write_text('Fever.')
  (source / 'linked').symlink_to(source / 'ward')
  (source / 'line\nbreak [red].txt').write_text('Fever.')
  assert predict.main(command(joint, source, out, '--format=html')) == 0
  said = capsys.readouterr()
  assert said.err == ''
  lines = [json.loads(line) for line in (out / 'skipped.jsonl').read_text().splitlines()]
  assert {line['file'][:10]: line['reason'] for line in lines} == {
    'latin.txt': '1: no UTF-8 text: invalid start byte',
    'x' * 10: 'its name is longer than 240 bytes', 'gone.txt': 'is no file',
    'pipe.txt': 'is no file', '\\xff.txt': 'its name is no UTF-8 text',
    'linked': 'a link to a folder, which is not followed'}
  assert 'warning: 6 skipped' in ' '.join(said.out.split()) and 'Müde' not in said.out
  assert 'line\nbreak [red].txt' in records(out) and len(records(out)) == 5
  # Nothing but bad files: a failure.
  shutil.rmtree(out)
  alone = tmp_path / 'alone'
  alone.mkdir()
  (alone / 'latin.txt').write_bytes(b'\xfc')
  assert predict.main(command(joint, alone, out)) == 1
  error = capsys.readouterr().err
  assert error.startswith('failed: no note could be read, 1 skipped') and error.count('\n') == 1


def test_two_notes_of_one_name_in_brat(joint, tmp_path, planted):
  """NOTE.TXT is NOTE.TXT.txt there; NOTE.txt and one in another folder are apart from it."""
  notes = {'NOTE.TXT.txt': 'Fever.', 'NOTE.TXT': 'No fever.', 'NOTE.txt': 'Well.', 'b/NOTE.TXT': ''}
  source, out = write_notes(tmp_path / 'notes', notes), tmp_path / 'out'
  assert predict.main(command(joint, source, out)) == 0
  assert [json.loads(line) for line in (out / 'skipped.jsonl').read_text().splitlines()] == [
    {'file': 'NOTE.TXT.txt', 'reason': 'has the same name in brat as NOTE.TXT'}]
  assert sorted(records(out)) == ['NOTE.TXT', 'NOTE.txt', 'b/NOTE.TXT']
  assert (out / 'brat' / 'NOTE.TXT.txt').read_text() == 'No fever.'


def test_sentences_beyond_the_context_are_cut_between_words(joint, tmp_path, planted, capsys):
  """One line of 3,000 words, one of 40,000 letters: entities in them have their offsets.

  At 5 characters a word 'aspirin' begins at 5,000, away from all halves and quarters.
  """
  text = 'word ' * 1000 + 'aspirin by mouth ' + 'word ' * 2000 + '\n' + 'iVBORw0KGg' * 4000
  source = write_notes(tmp_path / 'notes', {'long.txt': text})
  assert predict.main(command(joint, source, tmp_path / 'out', '--format=jsonl')) == 0
  found = records(tmp_path / 'out')['long.txt']
  assert (found['sentences'], found['cut']) == (2, 2)
  assert [(e['start'], e['text']) for e in found['entities']] == [
    (5000, 'aspirin'), (5008, 'by mouth')]
  assert ''.join(''.join(planted).split()) == ''.join(text.split())
  assert '2 sentences were too long' in ' '.join(capsys.readouterr().out.split())
  assert not (tmp_path / 'out' / 'brat').exists()


def _bare(folder: Path, joint: Path, **changes) -> Path:
  """A copy of the run's adapter, and what is changed of its two files of JSON."""
  shutil.copytree(joint / 'adapter', folder / 'adapter')
  for name, change in changes.items():
    held = json.loads((joint / f'{name}.json').read_text())
    (folder / f'{name}.json').write_text(json.dumps(held | change))
  return folder / 'adapter'


def _instructions(joint: Path, keep) -> dict:
  held = json.loads((joint / 'summary.json').read_text())['instructions']
  return {'instructions': {
    site: {task: text for task, text in tasks.items() if keep(site, task)}
    for site, tasks in held.items()}}


@pytest.mark.parametrize('make, flags, message', [
  (lambda t, r: r, ['--site=moon'], '--site=moon: no site of '),
  (lambda t, r: r, ['--site=synthetic_icu', '--types=drug'], 'only one of them is allowed'),
  (lambda t, r: r, ['--types=drug,route'], "--types: 'route' is unknown; allowed are problem, "),
  (lambda t, r: r, ['--types=problem.route'], "--types: 'problem.route' is unknown"),
  (lambda t, r: r, ['--format=xml'], '--format=xml: one of brat, jsonl, html, '),
  (lambda t, r: r, ['--dtype=float16'], "--dtype='float16': one of float32, bfloat16 is allowed"),
  (lambda t, r: r, ['--batch_size=0'], '--batch_size=0: an integer >= 1 is allowed'),
  (lambda t, r: r, ['--batch_size=many'], 'batch_size'),
  (lambda t, r: r, ['--base=/nowhere'], "'/nowhere'"),
  (lambda t, r: r, ['--input='], '--input is missing'),
  (lambda t, r: r, ['--input=/nowhere'], '--input=/nowhere: a folder of .txt files is expected'),
  (lambda t, r: r, ['--text_column=note'], '--text_column=note: goes with rows of a table'),
  (lambda t, r: r, ['--input=/dev/null'], 'a folder of .txt files is expected, or a file ending'),
  (lambda t, r: r, ['--output=/dev/null/x'], 'is no folder that can be written in'),
  (lambda t, r: r, ['stray'], "'stray': not a flag; flags look like --adapter="),
  (lambda t, r: r, ['--adaptor=x'], "Unknown command line flag 'adaptor'"),
  (lambda t, r: t / 'nothing', [], "no adapter in PEFT's format (adapter_config.json) is there"),
  (lambda t, r: _bare(t, r), [], 'no run is around it (config.json), which would name its base'),
  (lambda t, r: _bare(t, r, config={}), [], 'no finished run is around it (summary.json)'),
  (lambda t, r: _bare(t, r, config={'model.dtype': 'int1'}), [], "config.json: model.dtype='int1'"),
  (lambda t, r: _bare(t, r, config={'eval.max_new_ratio': 900}), ['--types=drug'], 'has no room'),
  (lambda t, r: _bare(t, r, config={'model.path': '/gone/x.gguf'}), ['--types=drug'],
   '(--base names another place)'),
  (lambda t, r: _bare(t, r, config={}, summary={'instructions': 3}), [], 'does not say what its'),
  (lambda t, r: _bare(t, r, config={}, summary=_instructions(r, lambda s, task: task == 're')), [],
   'its run was asked for modifiers of given entities only'),
  (lambda t, r: (_bare(t / 'one', r), _bare(t / 'two', r), t)[-1], [],
   'holds 2 adapters, choose one: '),
  (lambda t, r: ((t / 'model').mkdir(), (t / 'config.json').write_text(
    '{"fed.preset": "fed_bert", "fed.learner": "bert"}'), t)[-1], [], 'trained a BERT classifier'),
  (lambda t, r: ((t / 'adapter').mkdir(), (t / 'config.json').write_text(
    '{"fed.preset": "fed_medlora", "fed.learner": "tagger"}'), t)[-1], [],
   'trained a word tagger (config.fed.learner)'),
])
def test_one_line_and_status_two(make, flags, message, joint, tmp_path, planted, capsys):
  (tmp_path / 'run').mkdir()
  source, out = write_notes(tmp_path / 'notes'), tmp_path / 'out'
  adapter = make(tmp_path / 'run', joint)
  assert predict.main(command(adapter, source, out, *flags)) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('error: ') and message in error, error
  assert not planted and not (out / 'annotations.jsonl').exists()


@pytest.mark.parametrize('place, message', [
  ('notes/out', 'a folder outside of --input='), ('.', 'and not around it, is allowed'),
  ('full', 'is not empty and holds no annotations'), ('full/file', 'a folder is expected'),
])
def test_outputs_that_hold_something_else(place, message, joint, tmp_path, capsys):
  source = write_notes(tmp_path / 'notes')
  write_notes(tmp_path / 'full', {'file': 'x'})
  before = contents(tmp_path)
  assert predict.main(command(joint, source, tmp_path / place)) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error
  assert contents(tmp_path) == before
  assert predict.main(command(joint, tmp_path / 'full', tmp_path / 'out')) == 2
  assert 'holds no .txt file' in capsys.readouterr().err


def test_other_settings_in_the_same_output_are_refused(joint, tmp_path, planted, capsys):
  source, out = write_notes(tmp_path / 'notes'), tmp_path / 'out'
  assert predict.main(command(joint, source, out)) == 0
  before = contents(out)
  for flags, message in (
      (['--types=drug'], 'with other prompts, other asked; choose another folder'),
      (['--dtype=bfloat16'], "model.dtype='float32', this one has 'bfloat16'")):
    assert predict.main(command(joint, source, out, *flags)) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and message in error
  adapter = _bare(tmp_path, joint, config={}, summary={})
  path = adapter / 'adapter_config.json'
  path.write_text(path.read_text() + ' ')
  assert predict.main(command(adapter, source, out)) == 2
  assert 'with other adapter; choose' in capsys.readouterr().err
  assert contents(out) == before


def test_new_sentences_are_asked_with_the_examples_of_the_run(
    joint, tmp_path, planted, monkeypatch, capsys):
  """Of the prompt's own site and task; without those that were not kept, or by --types, with none
  or not at all."""
  shot = ['Given codeine.\n### Output Text:\n', 'Given <span class="drug">codeine</span>.']
  kept = {'shots': {'synthetic_icu': {'ner': [shot] * 2, 're': [['mild rash', 'mild']]}}}
  adapter = _bare(tmp_path / 'kept', joint, config={'data.shots': 2}, summary=kept)
  prompts, generate = {}, evaluate.generate

  def answer(generator, adapter, base, part, *rest):
    prompts[part.ask.task] = generator.tokenizer.decode(part.instruction)
    return generate(generator, adapter, base, part, *rest)

  monkeypatch.setattr(evaluate, 'generate', answer)
  source, out = write_notes(tmp_path / 'notes', {'a.txt': 'Gave aspirin.'}), tmp_path / 'out'
  assert predict.main(command(adapter, source, out)) == 0
  assert 'with the prompt of site synthetic_icu and its 2 examples' in ' '.join(
    capsys.readouterr().out.split())
  asked = json.loads((out / 'predict.json').read_text())
  assert asked['shots'] == kept['shots']['synthetic_icu']
  assert prompts == {task: asked['prompts'][task] + shown for task, shown in (
    ('ner', 2 * f'{"".join(shot)}<|im_end|>### Input Text:\n'),
    ('re', 'mild rashmild<|im_end|>### Input Text:\n'))}
  # With other examples than those of the folder, or without, it does not go on.
  for flag in ('--site=synthetic_clinic', '--types=problem'):
    assert predict.main(command(adapter, source, out, flag)) == 2
    assert 'other prompts, other asked, other shots; choose' in capsys.readouterr().err
  lacking = _bare(tmp_path / 'lacking', joint, config={'data.shots': 2}, summary={})
  assert predict.main(command(lacking, source, tmp_path / 'none')) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and not (tmp_path / 'none').exists()
  assert 'with config.data.shots=2 examples out of its notes, which were not kept' in error
  typed = read_trained(lacking, dict.fromkeys(FLAGS), '', 'drug')
  assert typed.told == ('asked for drug, without the 2 examples that the run showed',)


def test_the_program_says_how_it_is_used(capsys):
  with pytest.raises(SystemExit, match='0'):
    predict.main(['predict', '--help'])
  assert '--adapter' in capsys.readouterr().out


def test_pieces_hold_every_character(smollm):
  """Whatever the text, pieces are in order, apart, short enough, and lose only white space."""
  fits = lambda text: len(text) <= 7  # noqa: E731
  for text in ('a b c d e f g h', 'x' * 50, 'ab ' + 'c' * 30 + ' d', 'word\u3000' * 9 + 'z', 'a'):
    found = list(annotate._pieces(text, 0, len(text), fits))
    assert all(fits(text[start:end]) for start, end in found)
    assert all(before[1] <= after[0] for before, after in zip(found, found[1:], strict=False))
    joined = ''.join(text[start:end] for start, end in found)
    assert ''.join(joined.split()) == ''.join(text.split())
  # At the blank before the middle, 'd e' being in it.
  assert list(annotate._pieces('a b c d e f g h', 0, 15, fits)) == [(0, 7), (8, 15)]


@pytest.mark.parametrize('text, expected', [
  ('患者发热三天，给予阿司匹林治疗', ['患者发热三天，', '给予阿司匹林治疗']),
  ('患者服用acetaminophenibuprofen出院', ['患者服用', 'acetaminophenibuprofen', '出院']),
  ('अस्पतालअस्पताल', ['अस्पताल', 'अस्पताल']),
  ('체온은 삼십팔점오도', ['체온은', '삼십팔점오도']),
  ('アスピリンを投与', ['アスピリン', 'を投与']),
])
def test_pieces_end_where_words_end(text, expected):
  """As long as the pieces of `expected` at most; a range of one word is cut between characters."""
  longest = max(map(len, expected))
  found = annotate._pieces(text, 0, len(text), lambda piece: len(piece) <= longest)
  pieces = [text[start:end] for start, end in found]
  assert pieces == expected


def test_the_prompt_is_a_trained_one(joint, tmp_path):
  """Of the widest site by default, entities and modifiers each; of a site's own adapter its own."""
  none = dict.fromkeys(FLAGS)
  held = json.loads((joint / 'summary.json').read_text())['instructions']
  trained = read_trained(joint, none, '', '')
  assert trained.adapter == joint / 'adapter'
  assert [ask.instruction for ask in trained.asks] == list(held['synthetic_icu'].values())
  clinic = read_trained(joint, none, 'synthetic_clinic', '')
  assert [ask.instruction for ask in clinic.asks] == [held['synthetic_clinic']['ner']]
  assert 'not for treatment (--site=synthetic_icu)' in clinic.told[0]
  own = _bare(tmp_path, joint, config={}, summary={}).rename(tmp_path / 'synthetic_clinic')
  assert read_trained(own, none, '', '').told == clinic.told
  typed = read_trained(joint, none, '', 'drug.route, problem').asks
  assert [ask.asked for ask in typed] == [{'': ('drug', 'problem')}, {'drug': ('route',)}]
