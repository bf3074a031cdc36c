"""The pages for people: sizes, links, commands, names and the worked example match the code."""

import ast
import doctest
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import invented_run
import pytest
from documented import differences, documented, undocumented
from imports_test import FLOORS

import fedmedjax
from fedmedjax import describe, main
from fedmedjax.audit import __main__ as audit
from fedmedjax.compare import __main__ as compare
from fedmedjax.compare import scenarios
from fedmedjax.deploy import app, server, site
from fedmedjax.experiment import lora
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.presets import PRESETS
from fedmedjax.experiment.refusals import NEEDS
from fedmedjax.fed.ledger import Row
from fedmedjax.fed.types import Aggregate, Aggregator
from fedmedjax.model.files import load
from fedmedjax.predict import __main__ as predict
from fedmedjax.runtime.cli import read_flags
from fedmedjax.sweep import __main__ as sweep
from fedmedjax.sweep.grid import points, read_grid
from fedmedjax.sweep.runs import named_axes
from fedmedjax.types import InputError

ROOT = Path(fedmedjax.__file__).parent.parent
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for path in (ROOT / 'README.md', ROOT / 'BUILD_NOTES.md', *sorted((ROOT / 'docs').glob('*.md')))}
_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)


def blocks(page: str, *languages: str) -> list[str]:
  """The fenced blocks of a page in these languages."""
  return [body for language, body in _BLOCK.findall(page) if language in languages]


def test_the_front_page_and_the_notes_are_short():
  assert len(PAGES['README.md'].splitlines()) <= 120
  assert len(PAGES['README.md'].encode()) <= 8192
  assert len(PAGES['BUILD_NOTES.md'].encode()) <= 15360
  picture = (ROOT / 'docs' / 'report.png').read_bytes()
  assert picture.startswith(b'\x89PNG') and 10_000 < len(picture) <= 200_000


def anchors(page: str) -> set[str]:
  """The names that headings of a page have in links, as GitHub makes them."""
  found: list[str] = []
  for heading in re.findall(r'^#+ (.*)$', _BLOCK.sub('', page), re.M):
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
    found.append(re.sub(r'[^\w\- ]', '', plain).replace(' ', '-'))
  return {f'{name}-{found[:i].count(name)}' if found[:i].count(name) else name
          for i, name in enumerate(found)}


def dead_links(name: str, page: str) -> list[str]:
  """Targets of a page's links that are not there; addresses of the web are not asked."""
  dead = []
  for target in re.findall(r'\]\(([^)\s]+)\)', _BLOCK.sub('', page)):
    if re.match(r'https?://', target):
      continue
    file, _, anchor = target.partition('#')
    path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
    if not path.exists() or not path.is_relative_to(ROOT) or (
        anchor and anchor not in anchors(path.read_text())):
      dead.append(target)
  return dead


def test_no_link_is_dead():
  for name, page in PAGES.items():
    assert not dead_links(name, page), name
  assert all(f'](docs/{path.name})' in PAGES['README.md'] or f']({path.name}' in ''.join(
    PAGES.values()) for path in (ROOT / 'docs').glob('*.md'))


@pytest.mark.parametrize('link', [
  '[x](nowhere.md)', '[x](methods.md#12-nothing)', '[x](#nothing)', '![x](../report.png)',
  '[x](../../elsewhere.md)'])
def test_a_dead_link_is_noticed(link):
  assert dead_links('docs/x.md', link)
  assert not dead_links('docs/methods.md', '[x](methods.md#5-tasks) [y](#1-setting) [z](data.md)')


def commands(page: str) -> list[list[str]]:
  """The programs that a page's fenced blocks call, split as a shell does."""
  found = []
  for body in blocks(page, '', 'bash', 'sh'):
    for line in body.replace('\\\n', ' ').splitlines():
      # What runs beside the next command; and the configuration that an app is written with.
      line = re.sub(r' &$', '', line)
      line = re.sub(r'--config=\S*study/config\.py', '--config=fedmedjax:quickstart', line)
      if re.match(r'(python (-m fedmedjax|scripts/)|bash (scripts/|\.ci/)|fedmedjax)', line):
        found.append(shlex.split(line, comments=True))
  return found


PROGRAMS = {
  'fedmedjax.main': main, 'fedmedjax': main, 'fedmedjax.compare': compare,
  'fedmedjax-compare': compare, 'fedmedjax.predict': predict, 'fedmedjax-predict': predict,
  'fedmedjax.describe': describe, 'fedmedjax-describe': describe, 'fedmedjax.audit': audit,
  'fedmedjax-audit': audit, 'fedmedjax.sweep': sweep, 'fedmedjax-sweep': sweep,
  'fedmedjax.deploy.app': app,
  'fedmedjax.deploy.site': site, 'fedmedjax.deploy.server': server}
_NEEDED = {predict: ('adapter', 'input', 'output'), audit: ('workdir',)}


def check_command(words: list[str]) -> None:
  """Parses a command as its program would, and runs nothing.

  Raises InputError for what the program refuses, AssertionError for what is not there.
  """
  if words[0] == 'bash':
    script = ROOT / words[1]
    subprocess.run(['bash', '-n', script], check=True)
    known = re.search(r'^known="(.*)"$', script.read_text(), re.M)
    names = {word for word in words[2:] if not word.startswith('-')}
    assert not known or names <= set(known[1].split())
    return
  if words[:2] == ['python', '-m']:
    words = words[2:]
  if words[0] == 'python':
    return check_script(words[1:])
  program = PROGRAMS[words[0]]
  if program in _NEEDED:
    read_flags(words, program.define, _NEEDED[program])
    return
  if program is describe and '--text' in words:
    read_flags(words, describe.define, ('text', 'workdir'))
    return
  config, values, overrides = parse(words, program.define, check=program not in (compare, sweep))
  if program is main:
    assert values.workdir or values.validate_only
  if program is sweep:
    points(read_grid(values.grid, leaves(config.to_dict()), named_axes(None)), values.random,
           values.latin)
  if program is compare:
    study = compare.study_of(config, Path(values.workdir), values, overrides)
    scenarios.parts(study, values.settings, [int(seed) for seed in values.seeds] or [config.seed])


def check_script(words: list[str]) -> None:
  """A script's flags are those that it defines."""
  path = ROOT / words[0]
  source = path.read_text()
  if 'argparse' in source:
    for word in words[1:]:
      assert not word.startswith('-') or f"'{word.split('=')[0]}'" in source, word
    return
  module = importlib.import_module(path.stem)
  if any(word.startswith('--config=') for word in words):
    parse(words, module.define)
  else:
    read_flags(words, module.define)


@pytest.fixture
def an_endpoint(monkeypatch):
  """The address and key that regimes behind an endpoint take from the environment."""
  monkeypatch.setenv('OPENAI_BASE_URL', 'http://127.0.0.1:1/v1')
  monkeypatch.setenv('OPENAI_API_KEY', 'none')
  monkeypatch.chdir(ROOT)


def test_every_command_is_one(an_endpoint):
  checked = 0
  for page in PAGES.values():
    for words in commands(page):
      # The user's part that a command names is not there before the examples are.
      if any('docs/examples/' in word for word in words) and not (
          ROOT / 'docs' / 'examples').exists():
        continue
      check_command(words)
      checked += 1
  assert checked > 40


@pytest.mark.parametrize('line', [
  'python -m fedmedjax.main --config=configs/quickstart.py --workdir=x --config.fed.round=5',
  'python -m fedmedjax.main --config=configs/quickstart.py --workdir=x --config.fed.chunk=-2',
  'python -m fedmedjax.main --config=configs/quickstart.py --folder=x',
  'python -m fedmedjax.compare --config=configs/quickstart.py --workdir=x --regimes=fedwhat',
  'python -m fedmedjax.compare --config=configs/quickstart.py --workdir=x --settings=new_site',
  'python -m fedmedjax.describe --text',
  'python -m fedmedjax.predict --adapter=a --input=b', 'bash scripts/reproduce.sh all',
  'python scripts/chaos.py --kill=3', 'python scripts/merge.py --adapters=a --output=b'])
def test_a_wrong_command_is_noticed(line, an_endpoint):
  (words,) = commands(f'```\n{line}\n```\n')
  with pytest.raises((InputError, AssertionError)):
    check_command(words)


def test_python_of_the_pages_is_python_and_names_what_there_is():
  for page in PAGES.values():
    for body in blocks(page, 'python'):
      if '>>>' in body:
        continue
      names = {node.attr for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Attribute)
               and isinstance(node.value, ast.Name) and node.value.id == 'fm'}
      assert all(hasattr(fedmedjax, name) for name in names)


def test_the_python_of_the_front_page(tiny_folder, tmp_path, monkeypatch, capsys):
  """README's own method, on a random model, in one step on little data."""
  (code,) = blocks(PAGES['README.md'], 'python')
  given = fedmedjax.load_config
  small = {
    'model.path': str(tiny_folder), 'fed.local_steps': 1, 'fed.batch_size': 2, 'lora.rank': 2,
    'data.sites': ('synthetic_icu', 'synthetic_clinic'), 'data.external': (),
    'data.synthetic_notes': 4, 'data.validation_examples': 0, 'eval.zero_shot': False,
    'eval.max_examples': 1, 'eval.max_new_ratio': 0.1, 'eval.bootstrap_samples': 10}
  monkeypatch.setattr(
    fedmedjax, 'load_config', lambda name, keys: given(name, dict(keys) | small), raising=False)
  monkeypatch.chdir(tmp_path)
  exec(compile(code, 'README.md', 'exec'), names := {})
  rows = names['result'].metrics
  assert all(documented('The table of results') == (set(row), set()) for row in rows)
  assert (tmp_path / 'runs' / 'worse_first').is_dir()
  assert "(2, 16, 2)" in capsys.readouterr().out
  assert not undocumented(tmp_path / 'runs' / 'worse_first')


def test_one_sentence_from_note_to_loss(smollm, monkeypatch):
  """docs/data.md: what stands under each line is what the line prints. The model is loaded once for
  all tests."""
  monkeypatch.setattr(load, 'load_model', lambda path: smollm)
  monkeypatch.setattr(lora, 'load_model', lambda path, placement: smollm)
  code = ''.join(blocks(PAGES['docs/data.md'], 'python'))
  example = doctest.DocTestParser().get_doctest(code, {}, 'docs/data.md', 'docs/data.md', 0)
  assert len(example.examples) > 25
  told: list[str] = []
  result = doctest.DocTestRunner(verbose=False).run(example, out=told.append)
  assert not result.failed, ''.join(told)


def test_pointers_lead_to_sections_and_files():
  """Comments point to numbered sections of the pages, and pages to files of the repository."""
  for folder in ('fedmedjax', 'configs', 'scripts', 'tests'):
    for path in (ROOT / folder).rglob('*.py'):
      text = re.sub(r'\s+#?\s*', ' ', path.read_text())
      if path != Path(__file__):
        assert not re.search(r'\bMETHOD\b', text), path
      for page, sections in re.findall(
          r'(docs/\w+\.md), sections? (\d+(?: and \d+)?)', text):
        for number in sections.split(' and '):
          assert f'\n## {number}. ' in PAGES[page], f'{path}: {page}, section {number}'
  for name, page in PAGES.items():
    for file in re.findall(
        r'\b(?:fedmedjax|tests|scripts|configs)/[\w/]+\.(?:py|sh|json|svg)', page):
      assert (ROOT / file).exists(), f'{name}: {file}'


def test_the_floors_of_the_design():
  rows = re.findall(r'^\| \d \| (.*?) \|', PAGES['docs/design.md'], re.M)
  assert [set(re.findall(r'`(\w+)`', row)) for row in reversed(rows)] == [*FLOORS]


def first_columns(heading: str) -> set[str]:
  """The names in the first columns of the tables of a section of docs/methods.md."""
  part = PAGES['docs/methods.md'].split(f'\n## {heading}\n')[1].split('\n## ')[0]
  return set(re.findall(r'^\| `(\w+)`', part, re.M))


def test_every_preset_has_a_line():
  assert first_columns('9. Presets') == set(PRESETS)
  assert set(re.findall(r'`(fed_medlora\w*|uniform)`', PAGES['docs/methods.md'].split(
    '## 3.')[1].split('## 4.')[0])) <= set(PRESETS)


def test_an_aggregator_is_given_what_the_page_says():
  text = (ROOT / 'fedmedjax' / 'fed' / 'types.py').read_text()
  part = text.split('class AggregatorUpdate(')[1].split('\nclass ')[0]
  given = set(re.findall(r'^      (\w+): ', part, re.M))
  page = PAGES['docs/methods.md'].split('\n## 10. ')[1].split('\n## ')[0]
  first, second, third = re.split(r'`fm.Aggregate` has|`fm.Aggregator` and', page)
  assert set(re.findall(r'^\| `(\w+)`', first, re.M)) == given | {'updates', 'state'}
  assert {'weights', 'num_steps', 'start_loss'} <= given
  assert set(re.findall(r'^\| `(\w+)`', second, re.M)) == set(Aggregate._fields)
  assert set(re.findall(r'^\| `(\w+)`', third, re.M)) == set(NEEDS)
  assert 'needs' in Aggregator._fields


def test_columns_of_the_ledger():
  assert documented('ledger.csv') == (set(Row._fields), set())


@pytest.mark.parametrize('change, found', [
  (('| `round` | number of the round, from 1 |\n', ''), {'not in docs/files.md': {'round'}}),
  (('| `round` | number', '| `rounds` | number'),
   {'not in docs/files.md': {'round'}, 'not written': {'rounds'}}),
  (('| `skipped` |', '| `skipped`, `ignored` |'), {}),
  (('| `steps` | local', '| `steps`, `walks` | local'), {'not written': {'walks'}})])
def test_a_key_that_the_page_lacks_or_invents_is_noticed(change, found):
  """Keys of every run are held exactly; of those of some runs, only that they are named."""
  page = PAGES['docs/files.md']
  always, some = documented('metrics.jsonl', page)
  assert page.count(change[0]) == 1 and some == {
    'skipped', 'staleness', 'clusters', 'privacy', 'rising', 'validation_f1',
    'validation_f1_sites', 'contribution',
    'contribution_error', 'contribution_whole'}
  assert differences('metrics.jsonl', always, page.replace(*change)) == found


def test_keys_of_a_run_that_is_none_are_noticed(tmp_path):
  """An invented run lacks keys of a real one; `tests/programs/main_test.py` looks at a real one."""
  folder = invented_run.invent(tmp_path / 'run')
  (folder / 'ledger.csv').write_text('round,site,kind\n')
  summary = json.loads((folder / 'summary.json').read_text()) | {'mood': 1}
  summary['scores']['icu']['ner']['strict']['typed']['f2'] = 0.5
  (folder / 'summary.json').write_text(json.dumps(summary))
  found = undocumented(folder)
  assert found['summary.json']['not in docs/files.md'] == {
    'mood', 'scores.SITE.TASK.MATCH.MEAN.f2'}
  assert {'instructions.SITE.TASK', 'copy_rate'} <= found['summary.json']['not written']
  assert found['ledger.csv']['not written'] == {'tensor', 'codec', 'down', 'up'}
  assert 'tokens' in found['metrics.jsonl']['not written']
