"""A small study simulated, and the same between sites that answer messages."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from played_rounds import Quiet

from fedmedjax.deploy import messages, server, site
from fedmedjax.deploy.in_process import InProcess
from fedmedjax.deploy.server import serve_study
from fedmedjax.deploy.site import site_service
from fedmedjax.experiment import communication
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import parse
from fedmedjax.fed.round import site_adapter
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.train import loop
from fedmedjax.types import InputError

SITES = ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')
SMALL = (
  '--config.fed.rounds=2', '--config.fed.local_steps=2', '--config.fed.batch_size=4',
  '--config.data.max_train_notes=12', '--config.data.synthetic_notes=12',
  '--config.data.validation_examples=6', '--config.data.external=()',
  '--config.eval.max_examples=1', '--config.lora.rank=2', '--config.log.steps=False',
  '--config.fed.learner=tagger', '--config.tagger.width=16', '--config.tagger.buckets=64')


def config_of(preset: str, *more: str):
  return parse(
    ['x', f'--config=configs/quickstart.py:{preset}', *SMALL, *more], lambda values: None)[0]


def services(config, folder: Path, policy: Path | None = None) -> dict:
  return {name: site_service(config, name, folder / name, policy, Quiet())
          for name in config.data.sites}


def deployed(config, folder: Path, handles, reporter: Reporter | None = None):
  return serve_study(
    config, folder / 'server', lambda names, limit: InProcess(handles), reporter or Quiet(), 100.0)


def handles_of(sites: dict) -> dict:
  return {name: site.handle for name, site in sites.items()}


def simulated(config):
  """(study, last state, ledger.csv) of a simulation, without its scores and files."""
  study = prepare(config, load_data(config, Quiet()))
  state, lines = study.algorithm.init(study.trainable.adapter), []
  names = [site.name for site in study.data.sites]
  for number in range(study.options.rounds):
    turn, data = loop.packed_round(study, number)
    state, _ = study.algorithm.round(*loop._inputs(study, state, number, turn, data))
    lines.append(files.plain(communication.participation_line(
      study.communication, study.schedule, number, turn, names)))
  return study, state, communication.ledger_csv(study.communication, lines)


def payload(ledger: str) -> Counter:
  """{(round, site, kind, tensor, codec, way): bytes} without frames, which only a deployment has,
  and without what V at the sites costs: the simulated server holds V itself."""
  found = Counter()
  for row in csv.DictReader(ledger.splitlines()):
    if row['kind'] not in ('message', 'query'):
      key = tuple(row[name] for name in ('round', 'site', 'kind', 'tensor', 'codec'))
      found[(*key, 'down')] += int(row['down'])
      found[(*key, 'up')] += int(row['up'])
  return found


def assert_close(one, other, tolerance: float = 1e-6) -> None:
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(a), 1e-30)


slow = pytest.mark.slow


@pytest.mark.parametrize('preset, more', [
  ('fed_medlora_peer', ('--config.fed.outbound=int8', '--config.fed.error_feedback=True')),
  *(pytest.param(preset, more, marks=slow) for preset, more in (
    ('fed_medlora', ()), ('fed_medlora_plus', ()), ('fed_medlora_peer', ()), ('fedsa_lora', ()),
    ('scaffold', ()), ('feddyn', ()), ('fed_medlora_answer', ('--config.fed.cohort_size=2',)),
    ('fed_medlora_loo', ()), ('fed_medlora_grad', ()), ('flora', ()), ('fedex_lora', ()),
    ('rolora', ('--config.fed.outbound=bfloat16', '--config.fed.rounds=3')), ('median', ()),
    ('ffa_lora', ('--config.fed.outbound=sign',)),
    ('fed_medlora', ('--config.fed.top_k=0.1', '--config.fed.clip_update=0.01',
                     '--config.fed.error_feedback=True')),
    ('hetlora', ('--config.fed.ranks=(1,2,2)', '--config.fed.outbound=int8')),
    ('fedadam', ('--config.fed.cohort_size=2', '--config.fed.sampler=size')),
    ('fed_medlora', ('--config.fed.local_steps=0', '--config.fed.round_steps=5'))))])
def test_a_deployed_study_is_the_simulated_one(preset, more, tmp_path):
  config = config_of(preset, *more)
  study, state, ledger = simulated(config)
  # A simulation tells every number; a site keeps those of few examples, unless its policy says so.
  (tmp_path / 'open.toml').write_text('smallest_count = 0\n')
  finished = deployed(
    config, tmp_path, handles_of(services(config, tmp_path, tmp_path / 'open.toml')))
  for name in ('adapter', 'folded', 'ctrl', 'server_opt'):
    assert_close(getattr(state, name), getattr(finished.state, name))
  # Weights by nats an answer are exponentials of tens of nats, and have the roundings of these.
  assert_close(
    state.aggregator, finished.state.aggregator,
    tolerance=1e-5 if preset == 'fed_medlora_answer' else 1e-6)
  written = (tmp_path / 'server' / 'ledger.csv').read_text()
  assert payload(written) == payload(ledger)
  frames = [row for row in csv.DictReader(written.splitlines()) if row['kind'] == 'message']
  assert all(int(row['frame_down']) > 100 and int(row['frame_up']) > 100 for row in frames)
  # What the sites were given at the end is the adapter with which the simulation answers.
  for index, name in enumerate(SITES):
    own = site_adapter(state, study.sharing, index)
    tensors = {}
    study.trainable.save(jax.device_get(own), tmp_path / 'expected')
    for place in (tmp_path / 'expected', tmp_path / name / 'adapter'):
      tensors[place] = messages.safetensors.numpy.load_file(place / 'adapter_model.safetensors')
    one, other = tensors.values()
    assert one.keys() == other.keys()
    assert_close(list(one.values()), [other[key] for key in one])
  summary = json.loads((tmp_path / 'server' / 'summary.json').read_text())
  assert summary['scores'].keys() == {*SITES}
  assert not any('scores' in warning for warning in summary['warnings'])
  page = (tmp_path / 'server' / 'report.html').read_text()
  for name in SITES:
    own = json.loads((tmp_path / name / 'scored' / 'summary.json').read_text())
    told, kept = (one['scores'][name]['ner'] for one in (summary, own))
    assert all(told[kind]['typed'] == kept[kind]['typed'] for kind in ('strict', 'lenient'))
    assert (tmp_path / name / 'scored' / 'report.html').exists()
  assert 'Entities: F1 by site' in page and 'mean strict F1 of' in page


@pytest.fixture(scope='module')
def scaffold(tmp_path_factory):
  """(config, folder, Finished) of SCAFFOLD, whose sites keep a control variate."""
  folder = tmp_path_factory.mktemp('scaffold')
  config = config_of('scaffold')
  return config, folder, deployed(config, folder, handles_of(services(config, folder)))


def test_server_and_sites_that_are_killed_after_round_1_go_on(scaffold, tmp_path):
  config, _, whole = scaffold
  with pytest.raises(KeyboardInterrupt):
    deployed(config, tmp_path, handles_of(services(config, tmp_path)), Quiet('round 1/2'))
  assert len(files.read_lines(tmp_path / 'server' / 'metrics.jsonl')) == 1
  finished = deployed(config, tmp_path, handles_of(services(config, tmp_path)))
  for one, other in zip(
      jax.tree.leaves(whole.state), jax.tree.leaves(finished.state), strict=True):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
  assert [line['weights'] for line in finished.lines] == [line['weights'] for line in whole.lines]
  # Once more: nothing is left to be done, and the sites are given their adapters again.
  again = deployed(config, tmp_path, handles_of(services(config, tmp_path)))
  assert len(again.lines) == 2 and again.summary['bytes_up'] == whole.summary['bytes_up']


@slow
def test_a_server_that_goes_back_two_rounds_goes_on(tmp_path):
  """Its checkpoints of rounds 3 and 4 are lost; the sites have their states of round 2 still, and
  all ends as before. A site that was restarted knows no less."""
  config = config_of('scaffold', '--config.fed.rounds=4', '--config.checkpoint.keep=4')
  whole = deployed(config, tmp_path, handles_of(services(config, tmp_path)))
  for lost in '34':
    shutil.rmtree(tmp_path / 'server' / 'checkpoints' / lost)
  again = deployed(config, tmp_path, handles_of(services(config, tmp_path)))
  assert not any(line['absent'] for line in again.lines) and len(again.lines) == 4
  for one, other in zip(
      jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
  rounds = [line['round'] for line in files.read_lines(tmp_path / SITES[0] / 'manifest.jsonl')
            if line['kind'] == 'local_round']
  assert rounds == [1, 2, 3, 4, 3, 4]


def test_a_message_that_is_repeated_is_answered_without_training_twice(scaffold, monkeypatch):
  config, folder, _ = scaffold
  service = services(config, folder)[SITES[0]]
  asked, answers = [], []

  def ask(message):
    asked.append(message)
    answers.append(service.handle(message))
    return answers[-1]

  # The server's questions of round 2, from its checkpoint of round 1.
  workdir = folder / 'server'
  (workdir / 'checkpoints' / '2').rename(workdir / 'second')
  others = handles_of(services(config, folder))
  monkeypatch.setattr(type(service), '_trained', None)
  finished = deployed(config, folder, others | {SITES[0]: ask})
  assert len(finished.lines) == 2
  kinds = [messages.decode(message, 10**6).kind for message in asked]
  assert kinds == ['describe', 'local_round', 'finish', 'score']
  assert answers[1] == service.handle(asked[1])
  lines = files.read_lines(folder / SITES[0] / 'manifest.jsonl')
  # Two rounds were trained: repeated answers are no new ones.
  rounds = [line for line in lines if line['kind'] == 'local_round']
  assert [line['round'] for line in rounds] == [1, 2]
  tensors = {one['name']: one['bytes'] for one in rounds[0]['tensors']}
  assert tensors['header/local_norm:values'] == 4
  assert sum(tensors.values()) < rounds[0]['bytes'] < sum(tensors.values()) + 10_000
  assert {'train_loss', 'local_norm', 'weight', 'steps', 'examples'} <= rounds[0].keys()


def test_what_a_site_does_not_answer(scaffold):
  config, folder, _ = scaffold
  service = services(config, folder)[SITES[1]]
  identity = service.study.agreed.identity
  good = messages.Message('describe', identity, SITES[1], -1, 'n')
  later = messages.encode(good).replace(b'\\"protocol\\": 1', b'\\"protocol\\": 2')
  many = [[0, 1, 2]] * 2
  for message, words in (
      (b'nothing', 'no message of fedmedjax'), (later, 'protocol 2'),
      (good._replace(study='x'), 'another study'), (good._replace(site='x'), "to site 'x'"),
      (good._replace(kind='eval'), 'unknown kind'),
      (good._replace(kind='local_round'), 'which sites meet'),
      (good._replace(kind='local_round', fields={'cohorts': [[9]]}), 'which sites meet'),
      (good._replace(kind='local_round', round=5, fields={'cohorts': many}), 'not drawn'),
      (good._replace(kind='local_round', round=0, fields={'cohorts': [[0], [1]]}), 'not drawn'),
      (good._replace(kind='local_round', round=0, fields={'cohorts': many}), "no 'changed'"),
      (good._replace(kind='local_round', round=0, fields={
        'cohorts': many, 'changed': 0, 'used': -1, 'held': -1}), 'is missing'),
      (good._replace(kind='local_round', round=1, fields={
        'cohorts': many, 'changed': 1, 'used': 7, 'held': -1}), 'round 8 is not there'),
      (good._replace(kind='validate', round=1, fields={
        'cohorts': many, 'changed': 1, 'held': -1, 'count': 1, 'want': 'notes'}), 'not know'),
      (good._replace(kind='finish', fields={'changed': -1, 'used': -1}), 'is missing')):
    data = message if isinstance(message, bytes) else messages.encode(message)
    answer = messages.decode(service.handle(data), 0)
    assert answer.kind == 'error' and words in answer.fields['reason'], words


def with_fields(answer: messages.Message, **fields) -> messages.Message:
  return answer._replace(fields={**answer.fields, **fields})


def changed(answer: messages.Message, name: str, change) -> messages.Message:
  return answer._replace(tensors={**answer.tensors, name: change(answer.tensors[name])})


A = 'adapter/layers/hidden/a:values'
# What a site does in each round in place of a right answer, and what the server says of it.
FAULTS = (
  (lambda answer: changed(answer, A, lambda x: x * np.float32('nan')), None),
  (lambda answer: changed(answer, A, lambda x: x[1:]), 'is expected'),
  (lambda answer: answer._replace(round=0, nonce='of round 1'), 'answers another message'),
  (lambda answer: answer._replace(study='another'), 'another study'),
  (lambda answer: messages.encode(answer).replace(b'\\"protocol\\": 1', b'\\"protocol\\": 2'),
   'protocol 2'),
  (lambda answer: 1 / 0, 'failed: division by zero'),
  (lambda answer: with_fields(answer, data='0'), 'returned with other notes'),
  (lambda answer: b'\xff' * 50, 'no message of fedmedjax'),
  (lambda answer: changed(answer, 'header/weight:values', lambda x: x + 1), 'examples'),
  (lambda answer: changed(answer, 'header/steps:values', lambda x: x * 0), '0 steps'),
  (lambda answer: changed(answer, 'header/local_norm:values', lambda x: -x), 'learnt nothing'),
  (lambda answer: answer._replace(tensors={
    name: value * np.float32(0) if name.startswith('adapter') else value
    for name, value in answer.tensors.items()}), 'learnt nothing'),
  (lambda answer: answer._replace(tensors=answer.tensors | {'adapter/mine:values': np.zeros(1)}),
   'not agreed: adapter/mine'),
  (lambda answer: messages.encode(answer._replace(kind='error', fields={
    'reason': '\ud800 \x1b[2Jno disk'})), 'says: [2Jno disk'),
  # A longer update than it says is left out; a longer norm than its update has sends nobody away.
  (lambda answer: changed(answer, A, lambda x: x * np.float32(1e4)), None),
  (lambda answer: changed(answer, 'header/local_norm:values', lambda x: x * np.float32(1e6)), ''),
  (lambda answer: answer, ''))


def test_a_site_that_misbehaves_is_left_out_and_comes_back(tmp_path):
  """In each round but the last a site does something else wrong; another keeps its
  losses and norms to itself."""
  config = config_of(
    'fed_medlora', f'--config.fed.rounds={len(FAULTS)}', '--config.fed.local_steps=1',
    '--config.checkpoint.keep=1')
  (tmp_path / 'policy.toml').write_text('training_losses = false\nupdate_norm = false\n')
  (tmp_path / 'open.toml').write_text('smallest_count = 0\n')
  sites = services(config, tmp_path, tmp_path / 'open.toml') | {SITES[0]: site_service(
    config, SITES[0], tmp_path / SITES[0], tmp_path / 'policy.toml', Quiet())}

  def bad(data):
    answer, asked = sites[SITES[2]].handle(data), messages.decode(data, 10**7)
    if asked.kind != 'local_round' or messages.decode(answer, 10**7).kind == 'error':
      return answer
    wrong = FAULTS[asked.round][0](messages.decode(answer, 10**7))
    return wrong if isinstance(wrong, bytes) else messages.encode(wrong)

  reporter = Quiet()
  finished = deployed(config, tmp_path, handles_of(sites) | {SITES[2]: bad}, reporter)
  assert len(finished.lines) == len(FAULTS)
  for line, (_, words) in zip(finished.lines, FAULTS, strict=True):
    weights = dict(zip(line['sites'], line['weights'], strict=True))
    assert sum(weights.values()) == pytest.approx(1) and weights[SITES[0]] > 0
    assert line['train_loss'][0] is None and line['train_loss'][1] > 0
    if words == '':
      assert weights[SITES[2]] > 0 and not line['absent']
    elif words is None:  # it sent something, which is of no use
      assert weights[SITES[2]] == 0 and line['quarantined'] == [SITES[2]]
    else:
      assert weights[SITES[2]] == 0 and words in line['absent'][SITES[2]], line['absent']
      assert any(f'round {line["round"]}: site {SITES[2]} is left out' in one
                 for one in reporter.warnings)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(finished.state.adapter))
  said = files.read_lines(tmp_path / SITES[0] / 'manifest.jsonl')
  assert not any(key in line for line in said for key in ('train_loss', 'local_norm', 'last_loss'))
  summary = json.loads((tmp_path / 'server' / 'summary.json').read_text())
  assert summary['absent'] == len(FAULTS) - 4 and summary['quarantined'] == 2


def test_a_policy_is_heard_before_anything_is_trained(tmp_path):
  policy = tmp_path / 'policy.toml'
  policy.write_text('validation_losses = false\n')
  config = config_of('fed_medlora_plus')
  with pytest.raises(InputError, match=r"policy of site 'synthetic_icu' does not allow "
                     r"'fed_medlora_plus': config.fed.signal='loss' asks for losses"):
    deployed(config, tmp_path, handles_of(services(config, tmp_path, policy)))
  assert not (tmp_path / 'server' / 'metrics.jsonl').exists()


def test_sites_with_too_few_validation_examples_are_named_before_round_1(tmp_path):
  """4 are fewer than the 5 of a policy that says nothing."""
  config = config_of('fed_medlora_plus', '--config.data.validation_examples=4')
  with pytest.raises(InputError, match=r"config.fed.signal='loss' .* smallest_count; raise "
                     'config.data.validation_examples'):
    deployed(config, tmp_path, handles_of(services(config, tmp_path)))


def test_notes_that_changed_begin_anew_and_nobody_takes_part(tmp_path):
  config, other = config_of('fed_medlora'), config_of('fed_medlora', '--config.data.seed=7')
  first = services(config, tmp_path)[SITES[0]]
  again, new = services(config, tmp_path)[SITES[0]], services(other, tmp_path)[SITES[0]]
  assert first._kept.data == again._kept.data != new._kept.data
  with pytest.raises(InputError, match='state of another study'):
    services(config_of('uniform'), tmp_path)
  with pytest.raises(RuntimeError, match='no site takes part: site synthetic_icu is not here'):
    deployed(config, tmp_path, {})


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
  config = ['--config=configs/quickstart.py', *SMALL]
  for program, more, words in (
      (site, [], '--site is missing'), (site, ['--site=icu', '--workdir=w'], 'one of --socket'),
      (site, ['--site=icu', f'--workdir={tmp_path}', '--list_only'], "--site='icu': allowed are"),
      (site, [f'--site={SITES[0]}', f'--workdir={tmp_path}', '--list_only', '--policy=none.toml'],
       '--policy=none.toml: cannot be read'),
      (server, [], '--workdir is missing'), (server, ['--workdir=w'], '--folder is missing'),
      *((server, [f'--workdir={tmp_path}', '--folder=f', f'--deadline={wrong}'], 'deadline')
        for wrong in ('-1', '0', 'nan', 'inf', '1e300', 'soon'))):
    assert program.main(['x', *config, *more]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1, error
