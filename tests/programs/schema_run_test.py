"""Runs of schemas of one's own, on the real corpora: what they ask, score, write and annotate."""

import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax import describe, main
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.schema import read_schema
from fedmedjax.eval import evaluate
from fedmedjax.predict import __main__ as predict
from fedmedjax.predict.trained import FLAGS, read_trained
from fedmedjax.store.words import sentence
from fedmedjax.train import loop, run
from fedmedjax.types import InputError, Span

_FEW = ['--config.data.external=()', '--config.data.max_train_notes=4',
        '--config.eval.max_examples=20', '--config.eval.bootstrap_samples=1',
        '--config.log.steps=False', '--config.eval.zero_shot=False']


@pytest.fixture(scope='module')
def few(data_folder, tmp_path_factory) -> str:
  """The first notes of two corpora, where config.data.root looks for them."""
  root = tmp_path_factory.mktemp('few')
  (root / 'bc5cdr').mkdir()
  for path in (data_folder / 'bc5cdr').glob('*.PubTator.txt'):
    blocks = path.read_text().replace('\r\n', '\n').split('\n\n')[:30]
    (root / 'bc5cdr' / path.name).write_text('\n\n'.join(blocks) + '\n')
  (root / 'maccrobat2020').mkdir()
  for path in sorted((data_folder / 'maccrobat2020').glob('*.[at]*'))[:60]:
    shutil.copy(path, root / 'maccrobat2020')
  return f'--config.data.root={root}'


def per_type(workdir: Path, site: str, task: str = 'ner') -> dict:
  scores = json.loads((workdir / 'summary.json').read_text())['scores'][site][task]
  return scores.get('modifier', scores)['per_type']


@pytest.fixture(scope='module')
def bc5cdr(tiny_folder, few, tmp_path_factory) -> Path:
  """A run on BC5CDR by its own names, entities and relations. Its adapter is drawn in place of
  training, and its answers are the annotation."""
  def drawn(study, workdir, reporter, display, plan, tracker):
    rng = np.random.default_rng(5)
    state = study.algorithm.init(jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), study.trainable.adapter))
    return loop.Trained(state, [], 0.0, 0.0, None)

  def solved(generator, adapter, base, part, advance=lambda count: None):
    advance(len(part.test))
    return [part.ask.render(example)[1] for example in part.test]

  folder = tmp_path_factory.mktemp('schemas')
  shutil.copy(read_schema('bc5cdr').source, folder / 'own.toml')
  (folder / 'words.toml').write_text(
    "[re.markup]\nprompt = '''\nTag its {types}:\n{examples}\n{definitions}\n{input}\n"
    "So:'''\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'train', drawn)
    patch.setattr(run, 'planned', lambda *_: None)
    patch.setattr(evaluate, 'generate', solved)
    assert main.main([
      'fedmedjax', '--config=configs/quickstart.py:fed_medlora', f'--workdir={folder / "run"}',
      f'--config.model.path={tiny_folder}', f'--config.data.schema={folder / "own.toml"}',
      f'--config.data.prompt={folder / "words.toml"}',
      "--config.data.sites=('bc5cdr',)", "--config.data.tasks=('ner','re')", *_FEW, few,
      '--config.data.max_length=400', '--config.lora.rank=2',
      '--config.lora.targets=("q_proj","v_proj")']) == 0
  return folder / 'run'


def test_a_run_asks_scores_and_shows_the_types_of_its_schema(bc5cdr):
  found, links = per_type(bc5cdr, 'bc5cdr'), per_type(bc5cdr, 'bc5cdr', 're')
  assert list(found) == ['Disease', 'Chemical'] and list(links) == ['CID']
  assert [row['strict']['f1'] for row in (*found.values(), *links.values())] == [1, 1, 1]
  asked = json.loads((bc5cdr / 'summary.json').read_text())['instructions']['bc5cdr']
  assert '\nChemical: a drug or another chemical\n' in asked['ner']
  assert asked['re'] == ('Tag its CID:\n<span class="CID">hepatitis</span>\n'
                         'CID: a disease that the chemical induces\n')
  records = [json.loads(line) for line in (
    bc5cdr / 'predictions' / 'bc5cdr.jsonl').read_text().splitlines()]
  for record in records:
    related = record['task'] != 'ner'
    assert record['model_input'].endswith('\nSo:' if related else '\n### Output Text:\n')
    assert record.get('output_heading') == ('\nSo:' if related else None)
    assert not sentence(record).endswith(':')
  sites = json.loads((bc5cdr / 'sites.json').read_text())
  assert set(sites['schema']['entities']) == {'Disease', 'Chemical'}
  assert sites['schema']['relations']['CID']['of'] == ['Chemical']
  assert sites['sites']['bc5cdr']['types'] == ['Disease', 'Chemical']
  assert (bc5cdr / 'prompt.toml').read_bytes() == (bc5cdr.parent / 'words.toml').read_bytes()
  assert (bc5cdr / 'schema.toml').read_bytes() == (bc5cdr.parent / 'own.toml').read_bytes()
  page = (bc5cdr / 'report.html').read_text()
  # The stripes of the chart and the words in sentences have the colour of their type.
  assert '.t-Chemical { background: var(--type-2); }' in page and 'var(--type-1)"' not in page
  assert re.search(r'fill: var\(--type-2\)', page) and 't-problem' not in page


def test_new_notes_are_annotated_with_the_schema_of_the_run(bc5cdr, tmp_path, monkeypatch):
  """The schema is that in the run's folder: the file that it was read from is not needed."""
  trained = read_trained(bc5cdr, dict.fromkeys(FLAGS), '', 'Chemical,Chemical.CID')
  assert [ask.types for ask in trained.asks] == [('Chemical',), ('CID',)]
  assert trained.asks[1].instruction.startswith('Tag its CID:\n')
  assert trained.asks[1].after == '\nSo:'
  with pytest.raises(InputError, match="--types: 'drug' is unknown; allowed are Disease, Chem"):
    read_trained(bc5cdr, dict.fromkeys(FLAGS), '', 'drug')

  def planted(generator, adapter, base, part, advance=lambda count: None):
    advance(len(part.test))
    wanted = {'re': [('ulcers', 'CID')], 'ner': [('aspirin', 'Chemical'), ('ulcers', 'Disease')]}
    return [part.ask.render(example._replace(entities=tuple(
      Span(at, at + len(words), kind) for words, kind in wanted[part.ask.task]
      if (at := example.text.find(words)) >= 0)))[1] for example in part.test]

  monkeypatch.setattr(evaluate, 'generate', planted)
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.txt').write_text('On aspirin, ulcers came.\n')
  for form in ('brat', 'html'):
    assert predict.main([
      'predict', f'--adapter={bc5cdr}', f'--input={tmp_path / "in"}', f'--output={tmp_path / "o"}',
      f'--format={form}']) == 0
  (read,), _ = read_brat(tmp_path / 'o' / 'brat')
  (record,) = map(json.loads, (tmp_path / 'o' / 'annotations.jsonl').read_text().splitlines())
  assert [(span['text'], span['type']) for span in record['entities']] == [
    ('aspirin', 'Chemical'), ('ulcers', 'Disease'), ('ulcers', 'CID')]
  assert [link['type'] for link in record['relations']] == ['CID']
  assert {span.type for span in read.spans} == {'Chemical', 'Disease', 'CID'}
  page = (tmp_path / 'o' / 'html' / 'a.txt.html').read_text()
  assert 't-Chemical' in page and '<option>CID</option>' in page and '<option>drug' not in page


def test_a_tagger_has_a_head_for_each_of_twenty_types(few, tmp_path, capsys):
  """MACCROBAT2020's 20 commonest types: 41 labels, and a row of scores for each type. What the
  schema lacks is in one line. The finished run notices another text of its schema."""
  workdir, own = tmp_path / 'run', tmp_path / 'own.toml'
  text = Path(read_schema('maccrobat20').source).read_text()
  own.write_text(text)
  argv = [
    'fedmedjax', '--config=configs/ablation.py:centralised', f'--workdir={workdir}', *_FEW, few,
    f'--config.data.schema={own}', "--config.data.sites=('maccrobat2020',)",
    '--config.data.partition.kind=', '--config.fed.rounds=1', '--config.fed.local_steps=2',
    '--config.tagger.width=8', '--config.tagger.buckets=64']
  assert main.main(argv) == 0
  (line,) = [line for line in capsys.readouterr().out.splitlines() if 'the schema lacks' in line]
  assert line.startswith('maccrobat2020: ') and re.search(r'\bActivity \d+, ', line)
  assert line.count(', ') > 15 and '; relations ' in line
  types = read_schema('maccrobat20').types
  assert tuple(per_type(workdir, 'maccrobat2020')) == types
  assert len(json.loads((workdir / 'summary.json').read_text())['labels']) == 1 + 2 * 20
  assert set(json.loads((workdir / 'sites.json').read_text())['schema']['entities']) == set(types)
  page = (workdir / 'report.html').read_text()
  assert all(f'.t-{kind} {{' in page for kind in types) and 'hsl(' in page
  own.write_text(text.replace('an examination', 'examination') + '# more\n')
  assert main.main(argv) == 2
  assert 'schema: its text changed since the run began' in capsys.readouterr().err


def test_a_schema_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys):
  argv = ['fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path / "run"}']
  (tmp_path / 's.toml').write_text('[entities.Disease]\ndefinition = "d"\n')
  for value, said in (
      (tmp_path / 's.toml', "s.toml:1: [entities.Disease]: 'example' is missing"),
      ('bc5cdr', "bc5cdr.toml': site 'synthetic_icu' annotates problem, treatment, test, drug, "
       'none of which is in it'),
      ('nowhere', "config.data.schema='nowhere': one of bc5cdr, maccrobat20, paper, a .toml")):
    assert main.main([*argv, f'--config.data.schema={value}']) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert said in line, line
  assert not (tmp_path / 'run').exists()


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
  """docs/data.md: its schema is the file beside, and both commands run as they stand there."""
  root = Path(__file__).parents[2]
  page = (root / 'docs' / 'data.md').read_text()
  section = page.split('### Your own types')[1].split('\n## ')[0]
  (_, schema), (_, block) = re.findall(r'^```(\w*)\n(.*?)^```$', section, re.M | re.S)[:2]
  assert schema == (root / 'docs' / 'examples' / 'allergies.toml').read_text()
  first, second = map(shlex.split, block.replace('\\\n', ' ').strip().split('\n'))
  (tmp_path / 'docs').symlink_to(root / 'docs')
  monkeypatch.chdir(tmp_path)
  assert describe.main(first[2:]) == 0
  assert 'allergic reaction' in capsys.readouterr().out
  assert main.main(second[2:]) == 0
  assert list(per_type(Path('runs/allergies'), 'ward')) == ['allergen', 'allergic reaction']
  assert '.t-allergic_reaction {' in Path('runs/allergies/report.html').read_text()
