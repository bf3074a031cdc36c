"""Regime api:MODEL of the comparison, against endpoints on loopback."""

import json

import pytest
import transformers
from fake_endpoint import body, error, serving

from fedmedjax.compare import __main__ as compare
from fedmedjax.compare import api_run
from fedmedjax.data.answers import markup
from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.data.tasks import INPUT_HEADING, TASKS, ask
from fedmedjax.eval import api
from fedmedjax.eval.prompt import donors, make_prompt, messages
from fedmedjax.store import words
from fedmedjax.types import InputError

KEY = 'sk-canary-5f2c8e'
SITES = ('synthetic_icu', 'synthetic_clinic', 'synthetic_external')


@pytest.fixture(scope='module')
def solutions() -> dict[str, str]:
  """Input -> target of both tasks, for every test sentence of the cohorts."""
  found = {}
  for name in SITES:
    corpus = generate_cohort(name)
    for asked in (ask(task, corpus) for task in TASKS):
      for example in (one for note in corpus.test for one in asked.find(note)[0]):
        question, target = asked.render(example)
        assert found.setdefault(question, target) == target
  return found


def question_of(turns: list[dict]) -> str:
  assert turns[-1]['role'] == 'user'
  return turns[-1]['content'].rpartition(INPUT_HEADING)[2]


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(api, '_FIRST_WAIT', 0.01)
  monkeypatch.setattr(api, '_LONGEST_WAIT', 0.02)
  with serving() as fake:
    monkeypatch.setenv('OPENAI_BASE_URL', fake.url)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    monkeypatch.setenv('OPENAI_MODEL', 'meta/small-1')
    yield fake


@pytest.fixture
def command(tiny_folder):
  return lambda workdir, *more: [
    'fedmedjax', '--config=configs/quickstart.py', f'--config.model.path={tiny_folder}',
    f'--workdir={workdir}', f'--config.data.sites={SITES[:2]}', '--config.eval.max_examples=8',
    '--config.eval.bootstrap_samples=20', "--config.data.tasks=('ner', 're')", '--regimes=api',
    *more]


def summary_of(workdir, folder='api_meta%2Fsmall-1') -> dict:
  return json.loads((workdir / folder / 'summary.json').read_text())


def test_perfect_answers_score_one_and_a_second_run_asks_nothing(
    server, solutions, command, tmp_path, capfd):
  """8 sentences a site and their main entities; 100 tokens read and 10 written for each."""
  server.answer = lambda turns: f'\n{solutions[question_of(turns)]}\n'
  workdir = tmp_path / 'compare'
  argv = command(workdir, '--config.api.price_input=2.5', '--config.api.price_output=10')
  assert compare.main(argv) == 0
  summary = summary_of(workdir)
  count = len(server.bodies)
  assert summary['api'] == {
    'model': 'meta/small-1', 'shots': 0, 'requests': count, 'answers': summary['api']['answers'],
    'cached': summary['api']['answers'] - count, 'input_tokens': 100 * count,
    'output_tokens': 10 * count, 'cached_input_tokens': 0, 'cached_output_tokens': 0,
    'usd': pytest.approx((250 + 100) * count / 1e6), 'failed': 0, 'failure': ''}
  assert summary['copy_rate'] == 1.0 and summary['parse_failure_rate'] == 0.0
  assert summary['bytes_up'] == summary['bytes_down'] == summary['local_steps'] == 0
  assert set(summary['scores']) == set(SITES)
  asked = 0
  for site, scores in summary['scores'].items():
    assert list(scores['re']) == ['modifier', 'triple', 'end_to_end']
    for entry in (scores['ner'], *scores['re'].values()):
      assert entry['strict']['typed']['f1'] == entry['lenient']['typed']['f1'] == 1.0
    lines = (workdir / 'api_meta%2Fsmall-1' / 'predictions' / f'{site}.jsonl').read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    # The main entities found are the true ones: what was asked about these is not asked again.
    chained = [record for record in records if record['task'] == 'end_to_end']
    records = records[:-len(chained)]
    assert [r | {'task': 're'} for r in chained] == [r for r in records if 'main' in r]
    asked += len(records)
    assert [record['task'] for record in records[:9]] == ['ner'] * 8 + ['re']
    # The relations asked about are those of the sentences asked about, one a gold entity.
    places = [(record['document'], record['sentence_start'], record.get('main'))
              for record in records]
    assert sorted(place for place in places if place[2]) == sorted(
      (record['document'], record['sentence_start'], entity)
      for record in records[:8] for entity in record['gold'])
  assert asked == summary['api']['answers']
  out = capfd.readouterr().out
  tables = out[out.index('Typed strict F1 by regime'):out.index('who gains')].split(
    'Typed strict F1 of ')
  assert all('api:meta/small-1' in table and '1.000' in table for table in tables)
  assert len(tables) == 4 and f'{count} requests' in out

  # Finished; then finished elsewhere with the same answers on disk.
  assert compare.main(argv) == 0
  assert 'finished, nothing to do' in ' '.join(capfd.readouterr().out.split())
  cache = tmp_path / 'cache'
  cache.mkdir()
  (workdir / 'api_meta%2Fsmall-1' / 'answers.jsonl').rename(cache / 'api_meta%2Fsmall-1.jsonl')
  # Without text: the answers lie elsewhere, and no file has the words of a sentence.
  without = command(tmp_path / 'again', '--config.store.text=False')
  assert compare.main(without) == 2
  assert 'which hold words of notes' in capfd.readouterr().err and not (tmp_path / 'again').exists()
  assert compare.main([*without, f'--config.api.cache={cache}']) == 0
  assert len(server.bodies) == count
  for path in (path for path in (tmp_path / 'again').rglob('*') if path.is_file()):
    assert not any(question.partition('\n###')[0].encode() in path.read_bytes()
                   for question in solutions), path
  assert words.files_with_words(tmp_path / 'again')[0] == []
  # Predictions and the prompts; pages quote wrong answers only.
  assert len(words.files_with_words(workdir)[0]) == 3 + 1
  again = summary_of(tmp_path / 'again')
  assert again['scores'] == summary['scores']
  assert (again['api']['requests'], again['api']['cached']) == (0, asked)
  # Without prices there is no money, and zero tokens are known to be zero.
  assert (again['api']['input_tokens'], again['api']['usd']) == (0, None)
  # What they took when they were asked is still known, each counted once.
  assert (again['api']['cached_input_tokens'], again['api']['cached_output_tokens']) == (
    100 * count, 10 * count)


@pytest.mark.slow
def test_a_copy_scores_nothing_and_a_fault_costs_its_sentence(server, command, tmp_path, capfd):
  """Copies without a tag: no entity is found. One sentence is never answered."""
  server.answer = lambda turns: markup._TAG.sub('', question_of(turns).partition('\n###')[0])
  server.script = [error(400, code='content_filter')]
  workdir = tmp_path / 'copies'
  argv = command(workdir, '--regimes=api:other', '--config.api.concurrency=1')
  assert compare.main(argv) == 0
  summary = summary_of(workdir, 'api_other')
  for scores in summary['scores'].values():
    for entry in (scores['ner'], *scores['re'].values()):
      assert entry['lenient']['untyped']['f1'] == 0.0
  assert summary['api']['failed'] == 1 and summary['copy_rate'] < 1
  first = json.loads(
    (workdir / 'api_other/predictions/synthetic_icu.jsonl').read_text().split('\n')[0])
  assert first['parse_failed'] and first['generated'] == '' and first['predicted'] == []
  assert 'HTTP 400 (content_filter)' in capfd.readouterr().out
  # The same command asks what is still open, and only that; how it asks may change.
  before = len(server.bodies)
  assert compare.main([*argv, '--config.api.concurrency=2']) == 0
  assert len(server.bodies) == before + 1
  summary = summary_of(workdir, 'api_other')
  assert (summary['api']['failed'], summary['api']['requests'], summary['copy_rate']) == (0, 1, 1)


def test_the_key_and_the_address_are_nowhere(server, command, tmp_path, capfd, caplog, monkeypatch):
  """Through answers, faults that quote the key, a debugging log and a refusal."""
  monkeypatch.setenv('OPENAI_LOG', 'debug')
  caplog.set_level('DEBUG')
  workdir, address = tmp_path / 'compare', server.url.split('//')[1].split('/')[0]
  server.script = [error(500, KEY, code=KEY), body(KEY.encode(), 'text/plain')]
  assert compare.main(command(workdir, '--config.data.shots=1')) == 0
  # The example that models would be trained with is the first turn of every question.
  summary = summary_of(workdir)
  assert summary['api']['shots'] == 1 and set(summary['shots']) == set(SITES)
  shown = [text for site in summary['shots'].values() for (shot,) in site.values() for text in shot]
  for asked in server.bodies:
    first, answer, _ = (turn['content'] for turn in asked['messages'])
    assert answer in shown and any(first.endswith(text) for text in shown)
  assert all('shots' not in one for one in json.loads(
    (workdir / 'compare.json').read_text()).values())
  server.script = [error(401, f'Incorrect API key provided: {KEY}', code=KEY)] * 50
  assert compare.main(command(workdir, '--regimes=api:another')) == 2
  said = capfd.readouterr()
  assert said.err.count('\n') == 1 and 'OPENAI_API_KEY: the endpoint does not accept' in said.err
  written = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert {'summary.json', 'prompts.json', 'answers.jsonl', 'config.json', 'compare.json'} <= {
    path.name for path in written}
  for secret in (KEY, address):
    assert secret not in said.out + said.err + caplog.text
    assert not [path for path in written if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize('change, flags, message', [
  ({'OPENAI_API_KEY': ''}, [], 'OPENAI_API_KEY is missing'),
  ({'OPENAI_MODEL': ''}, [], 'OPENAI_MODEL is missing'),
  ({}, ['--regimes=zero_shot,api:'], "'api:' is not one of"),
  ({}, ['--regimes=apis'], "'apis' is not one of"),
  ({}, [f'--regimes=api:{"x" * 300}'], 'too many for a model name'),
  ({}, ['--config.api.shots=100000'], 'config.api.shots=100000'),
  ({}, ['--config.api.timeout=0'], 'config.api.timeout'),
  ({}, ["--config.data.tasks=('er',)"], "('ner',), ('re',), ('ner', 're') or ('text',)"),
])
def test_bad_input_is_told_before_anything_starts(
    server, command, tmp_path, monkeypatch, capfd, change, flags, message):
  for name, value in change.items():
    monkeypatch.setenv(name, value)
  workdir = tmp_path / 'compare'
  assert compare.main(command(workdir, '--regimes=zero_shot,api', *flags)) == 2
  assert message in capfd.readouterr().err
  assert not server.bodies and not workdir.exists()


def test_folders_of_models_are_safe_and_distinct():
  names = ['a/b', 'a_b', 'a%2Fb', '../a', '..', 'a:b', 'A b', 'gpt-4o']
  folders = [api_run.folder_name(name) for name in names]
  assert len(set(folders)) == len(names) and folders[-1] == 'api_gpt-4o'
  assert not any(set(folder) & set('/\\: ') or folder in ('.', '..') for folder in folders)


@pytest.fixture(scope='module')
def encoded(tiny_folder):
  tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
  return [
    encode_site(generate_cohort(name), tokenizer, max_length=160, trains=name != SITES[2],
                validation_share=0.1, validation_examples=4, tasks=tuple(TASKS)) for name in SITES]


@pytest.mark.parametrize('number', [0, 1])
def test_shots_are_solved_training_sentences_of_the_site(encoded, number):
  icu, clinic, external = encoded
  part = icu.tasks[number]
  prompt = make_prompt(icu, part, [icu, clinic], 4, 1)
  assert prompt.shots == make_prompt(icu, part, [icu, clinic], 4, 1).shots
  assert prompt.shots != make_prompt(icu, part, [icu, clinic], 4, 2).shots
  tested = {example.text for example in part.test}
  assert len({shot.text for shot in prompt.shots}) == 4
  for shot in prompt.shots:
    assert shot.entities and shot.text not in tested and '_train_' in shot.document
  turns = messages(prompt, part.test[0])
  assert [turn['role'] for turn in turns] == ['user', 'assistant'] * 4 + ['user']
  assert turns[0]['content'].startswith(part.ask.instruction)
  assert [turn['content'].count(INPUT_HEADING) for turn in turns[::2]] == [1] * 5
  assert [turn['content'] for turn in turns[1::2]] == [
    part.ask.render(shot)[1] for shot in prompt.shots]
  # The answer is never part of the question.
  question, target = part.ask.render(part.test[0])
  assert turns[-1]['content'] == INPUT_HEADING + question
  assert len(messages(make_prompt(icu, part, [icu], 0, 1), part.test[0])) == 1


def test_a_site_that_leaves_a_type_out_shows_nothing_to_an_external_one(encoded):
  """The clinic does not mark treatments, which the external notes do, nor their modifiers."""
  icu, clinic, external = encoded
  for number in (0, 1):
    mine, theirs, asked = (site.tasks[number] for site in (icu, clinic, external))
    assert [part is mine for part in donors(external, asked, [icu, clinic])] == [True]
    assert [part is theirs for part in donors(clinic, theirs, [icu, clinic])] == [True]
    prompt = make_prompt(external, asked, [icu, clinic], 3, 0)
    assert all(shot.document.startswith('synthetic_icu_train') for shot in prompt.shots)
    with pytest.raises(InputError, match='config.api.shots=3: 0 training sentences'):
      make_prompt(external, asked, [clinic], 3, 0)
  # What the other site marks and this one does not is not shown.
  shown = make_prompt(
    external, external.tasks[0]._replace(ask=clinic.tasks[0].ask), [icu], 9, 0).shots
  assert {span.type for shot in shown for span in shot.entities} <= {'problem', 'test', 'drug'}


def test_a_training_sentence_that_is_tested_too_is_never_shown(encoded):
  icu, part = encoded[0], encoded[0].tasks[0]
  solved = next(example for example in part.solved if example.entities)
  only = part._replace(solved=(solved,), test=(solved._replace(document='elsewhere'),))
  with pytest.raises(InputError, match='0 training sentences'):
    make_prompt(icu, only, [icu], 1, 0)
  assert make_prompt(icu, only._replace(test=part.test), [icu], 0, 0).shots == ()
