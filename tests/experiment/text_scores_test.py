"""Metrics of texts in a configuration: what is refused, what is tried, what a run is bound to."""

import functools
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedmedjax.compare import api_run
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import Ask
from fedmedjax.eval import evaluate
from fedmedjax.eval.answers import Answer
from fedmedjax.eval.endpoint import Endpoint
from fedmedjax.eval.text_metrics import TextMetrics
from fedmedjax.experiment import build, text_scores
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.own_parts import METRIC, from_python, own_parts
from fedmedjax.experiment.reading import Reading
from fedmedjax.experiment.types import Data
from fedmedjax.runtime.processes import ALONE
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import dry_run, run
from fedmedjax.train import fingerprint as inputs
from fedmedjax.train.scoring import score_all, watched_f1
from fedmedjax.types import Example, InputError

QUIET = Reporter(Console(quiet=True))
TEXT = {'data.tasks': ('text',)}
_TYPES = {'': ('text',)}
ASK = Ask('text', '', _TYPES, _TYPES, ('text',), lambda note: ([], {}), '',
          lambda row: (f'{row.text}\n### Output Text:\n', row.target), None, ())


def site(name: str, *targets: str) -> SiteData:
  rows = tuple(Example(f'{name} {i}', 0, 'Question?', (), target=target)
               for i, target in enumerate(targets))
  return SiteData(
    name, (), (TaskData(ASK, np.zeros(1, np.int32), (), (), rows, (None,) * len(rows)),), {})


SITES = (site('ward', 'yes', 'no', 'no'), site('clinic', 'no', 'yes'))


def config(settings: dict):
  chosen = get_config('fed_medlora')
  chosen.update_from_flattened_dict(settings)
  return chosen


def refusal(settings: dict, given=None) -> str:
  with pytest.raises(InputError) as error:
    validate(config(settings), given)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.fixture
def mine(tmp_path):
  """mine(code) writes a file and gives the value of config.eval.metric."""
  def write(code: str) -> str:
    (tmp_path / 'mine.py').write_text(code)
    return f'{tmp_path}/mine.py:score'

  return write


SCORE = 'def score(predictions, targets):\n  return {"chars": [len(p) for p in predictions]}\n'


@pytest.mark.parametrize('settings, message', [
  ({'eval.metrics': ('f1',)}, "config.eval.metrics=('f1',): a tuple of different ones of "
   'exact_match, accuracy, macro_f1, rouge_l is allowed'),
  ({'eval.metrics': ('accuracy', 'accuracy')}, 'a tuple of different ones'),
  ({'eval.metric': 'score'}, "config.eval.metric='score': FILE.py:FUNCTION, or '', is allowed"),
  ({'eval.metrics': ('accuracy',), 'data.tasks': ('ner',)},
   "config.eval.metrics=('accuracy',): config.data.tasks=('ner',) writes no texts that it could "
   "judge; use ('exact_match',), or config.data.tasks=('text',)"),
  ({'eval.metric': 'mine.py:score', 'data.tasks': ('ner', 're')},
   "config.eval.metric='mine.py:score': config.data.tasks=('ner', 're') writes no texts"),
  ({'eval.metric': 'nowhere.py:score'},
   "config.eval.metric='nowhere.py:score': nowhere.py cannot be read: No such file"),
  ({'fed.learner': 'bert', 'fed.loss_on': 'completion'},
   "config.data.tasks=('text',): config.fed.learner='bert' labels words and writes no text"),
  ({'fed.learner': 'tagger'}, "config.fed.learner='tagger' labels words and writes no text"),
  ({'data.site_tasks': ('text', 'text')}, 'config.data.site_tasks='),
  ({'data.re_share': 0.5}, 'has nothing to mix'),
  ({'eval.teacher_forced': True}, 'config.eval.teacher_forced=True'),
  ({'data.tasks': ('ner', 'text')}, "('ner',), ('re',), ('ner', 're') or ('text',) is allowed"),
  ({'bert.task': 'text'}, "config.bert.task='text': one of ner, re is allowed"),
])
def test_what_a_configuration_may_not_ask_for(settings, message):
  assert message in refusal(TEXT | settings)


def test_rouge_needs_its_package(monkeypatch):
  found = importlib.util.find_spec
  wanted = TEXT | {'eval.metrics': ('accuracy', 'rouge_l')}
  validate(config(wanted))
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'rouge_score' else found(name))
  assert refusal(wanted) == (
    "config.eval.metrics=('accuracy', 'rouge_l'): rouge_l needs a package; pip install "
    "'fedmedjax[rouge]'")
  validate(config(TEXT | {'eval.metrics': ('accuracy', 'macro_f1')}))


def test_a_metric_of_ones_own_is_no_part_of_the_method(mine):
  """The run's name in tables, the traits and the hyper-parameters are as without it."""
  settings = TEXT | {'eval.metrics': (), 'eval.metric': mine(SCORE), 'fed.rule': 'plain'}
  chosen = config(settings)
  validate(chosen)
  assert build.options(chosen).own_parts == [] == build.options(config({})).own_parts
  assert build.options(chosen).adds_aggregate == build.options(config({})).adds_aggregate
  own = own_parts(leaves(chosen.to_dict()))
  assert list(own) == [METRIC] and own[METRIC].builder(['abc'], ['']) == {'chars': [3]}
  assert inputs.own_checksums(own) == {
    'own metric': {f'config.eval.metric={settings["eval.metric"]}': own[METRIC].checksum}}


def tried(settings: dict, given=None, sites=SITES) -> TextMetrics:
  values = leaves(config(TEXT | settings).to_dict())
  return text_scores.text_metrics(values, own_parts(values, given), sites)


@pytest.mark.parametrize('code, message', [
  ('def score(predictions, targets):\n  return {"a": 1 / len(predictions[0])}\n',
   "site 'ward', tried with empty answers: %s, line 2: ZeroDivisionError: division by zero"),
  ('x = 1\ndef score(p, t):\n  """."""\n  raise ValueError("two\\nlines")\n',
   "site 'ward', tried with its targets as answers: %s, line 4: ValueError: two lines"),
  ('def score(p):\n  return {}\n', '%s: TypeError: score() takes 1 positional argument but 2'),
  ('def score(p, t):\n  return {"a": float("nan")}\n',
   "site 'ward', tried with its targets as answers: 'a' is nan; a number between"),
  ('def score(p, t):\n  return {"a": float("nan") if not p[0] else 1}\n',
   "site 'ward', tried with empty answers: 'a' is nan"),
])
def test_a_metric_that_fails_is_named_with_its_place(mine, code, message):
  value = mine(code)
  with pytest.raises(InputError) as error:
    tried({'eval.metric': value})
  text = str(error.value)
  assert text.startswith(f'config.eval.metric={value!r}: ') and '\n' not in text
  assert message.replace('%s', value.removesuffix(':score')) in text


def test_a_file_that_fails_or_lacks_the_function(mine):
  assert 'mine.py, line 1: ZeroDivisionError' in refusal(TEXT | {'eval.metric': mine('1 / 0\n')})
  assert "has no function 'score'; allowed are count" in refusal(
    TEXT | {'eval.metric': mine('def count(p, t):\n  return {}\n')})


class Counted:
  def __call__(self, predictions, targets):
    raise KeyError('nowhere')


def test_a_metric_given_in_python():
  """A function, a partial one or an object; also where it fails has a place, in this file."""
  part = from_python(METRIC, functools.partial(lambda k, p, t: {'k': [k] * len(p)}, 7))
  assert part.name.startswith('python:')
  value = {'eval.metric': part.name}
  validate(config(TEXT | value), {METRIC: part})
  assert tried(value, {METRIC: part}).own.gives == {'k': True}
  assert 'give it again, as fedmedjax.run(..., metric=...)' in refusal(TEXT | value)
  part = from_python(METRIC, Counted())
  with pytest.raises(InputError, match=r"text_scores_test.py, line \d+: KeyError: 'nowhere'"):
    tried({'eval.metric': part.name}, {METRIC: part})
  for wrong in (5, (len, len), {'a': len}):
    with pytest.raises(InputError, match=r'^metric=.*: a function \(predictions, targets\) -> '):
      from_python(METRIC, wrong)


def bound(value: str, workdir, **settings) -> tuple[dict, bool]:
  """What a run with this metric is bound to, and whether it may have been mended."""
  values = leaves(config(TEXT | {'eval.metric': value} | settings).to_dict())
  own = own_parts(values)
  return {'model': {'m': '1'}} | inputs.own_checksums(own), inputs.may_mend(workdir, values)


def test_a_mended_metric_goes_on_until_there_are_scores_by_it(mine, tmp_path):
  work = tmp_path / 'run'
  work.mkdir()
  broken, _ = bound(mine('def score(p, t):\n  return {}\n'), work)
  inputs.check_inputs(work, broken)
  mended, mendable = bound(mine(SCORE), work)
  assert mendable and broken != mended
  inputs.compare_inputs(work, mended, mendable=mendable)
  inputs.check_inputs(work, mended, mendable)
  # The run is now bound to the mended one, and still to everything else.
  assert json.loads((work / inputs.FILE).read_text()) == mended
  with pytest.raises(InputError, match='model: m changed since the run began'):
    inputs.check_inputs(work, mended | {'model': {'m': '2'}}, mendable)
  (work / 'summary.json').write_text('{}')
  again, mendable = bound(mine(SCORE), work)
  assert not mendable
  inputs.check_inputs(work, again, mendable)
  other, mendable = bound(mine(SCORE + '\n'), work)
  for check in (inputs.compare_inputs, inputs.check_inputs):
    with pytest.raises(InputError, match=(
        r'own metric: config.eval.metric=.*mine.py:score changed since the run began; bring back '
        'what it began with, or choose another workdir')):
      check(work, other, mendable=mendable)


def test_a_run_and_a_dry_run_go_on_with_a_mended_metric(mine, tmp_path, monkeypatch):
  """All but the run's own checks is left out; it fails where it would be scored."""
  for program in (run, dry_run):
    monkeypatch.setattr(program, 'load_data', lambda *rest, **more: Data(None, (), (), ()))
    monkeypatch.setattr(program, 'prepare', lambda chosen, data, *rest, **more: SimpleNamespace(
      own=own_parts(leaves(chosen.to_dict())), secret=None,
      options=SimpleNamespace(trackers=())))
    monkeypatch.setattr(program, 'fingerprint', lambda chosen, data, own: inputs.own_checksums(own))
  monkeypatch.setattr(run, 'site_table', lambda *rest: '')
  monkeypatch.setattr(run, 'participant_names', lambda study: ())
  monkeypatch.setattr(run, 'planned', lambda *rest: None)
  monkeypatch.setattr(run, 'show', lambda *rest: None)
  monkeypatch.setattr(run.report, 'freshen', lambda *rest: None)
  # The first that comes after a preview's checks.
  monkeypatch.setattr(dry_run, 'site_table', reached := lambda *rest: 1 / 0)
  work, faulty = tmp_path / 'run', 'def score(p, t):\n  return {"a": 1 / 0}\n'

  def start(code: str, scored=None) -> None:
    chosen = config(TEXT | {'eval.metric': mine(code)})
    monkeypatch.setattr(run, '_carried_out', scored)
    run.run(chosen, work, QUIET)

  def preview(code: str) -> None:
    with pytest.raises(ZeroDivisionError):
      dry_run.dry_run(config(TEXT | {'eval.metric': mine(code)}), work, QUIET)

  with pytest.raises(ZeroDivisionError):
    start(faulty, reached)
  preview(faulty)
  preview(SCORE)
  start(SCORE, lambda study, workdir, *rest: (workdir / 'summary.json').write_text(
    json.dumps({'rounds': get_config('fed_medlora').fed.rounds})))
  start(SCORE)
  preview(SCORE)
  for begin in (start, preview):
    with pytest.raises(InputError, match='own metric: .*mine.py:score changed since the run began'):
      begin(faulty)


def test_rounds_that_were_watched_by_a_metric_bind_the_run_to_it(mine, tmp_path):
  """Where a shipped metric comes first, no line of a round says anything of the user's own."""
  value = mine(SCORE)
  (tmp_path / 'metrics.jsonl').write_text('{"round": 1}\n')
  assert bound(value, tmp_path, **{'eval.metrics': ()})[1]
  (tmp_path / 'metrics.jsonl').write_text('{"round": 1}\n{"round": 2, "validation_f1": 0.5}\n')
  assert not bound(value, tmp_path, **{'eval.metrics': ()})[1]
  assert bound(value, tmp_path)[1]


def study(metrics: TextMetrics, text: bool = True):
  """A study whose adapters are what they answer to everything."""
  def answer(adapter, site, advance):
    answered.append(site.name)
    return [record for part in site.tasks
            for record in evaluate.predictions(part.ask, part.test, [adapter] * len(part.test))]

  answered: list[str] = []
  return SimpleNamespace(
    data=SimpleNamespace(tested=SITES[:1], external=SITES[1:], reading=Reading()),
    processes=ALONE, answered=answered,
    options=SimpleNamespace(seed=1, bootstrap_samples=5, text=text, max_zero_shot=2),
    trainable=SimpleNamespace(answer=answer, untrained='no'), text_metrics=metrics,
    watched=SITES)


def test_a_run_is_scored_by_its_metrics(mine, tmp_path):
  """Of yes, no, no and no, yes an answer 'no' hits 2/3 and 1/2, has 2 characters; two of the three
  rows are scored beside. Both adapters answer for the external site: 'no' and 'yes' hit 2 of 4."""
  metrics = tried({'eval.metric': mine(SCORE)})
  scores, crossed = score_all(
    study(metrics), {'ward': 'no', 'other': 'yes'}, tmp_path, QUIET, cross=True, beside=2)
  values = {name: {key: one['value'] for key, one in entry.scores['text'].items()}
            for name, entry in scores.items()}
  assert values == {'ward': {'exact_match': pytest.approx(2 / 3), 'chars': 2.0},
                    'clinic': {'exact_match': 0.5, 'chars': 2.5}}
  assert scores['ward'].few.scores['text']['chars']['value'] == 2.0
  assert scores['ward'].few.counts['text.chars'].shape == (2, 2, 2, 3)
  assert crossed['other']['ward'].scores['text']['exact_match']['value'] == pytest.approx(1 / 3)
  # Watched, by the first metric alone, here that of the user's own.
  alone = study(tried({'eval.metrics': (), 'eval.metric': mine(SCORE)}))
  assert _watched(alone) == {'ward': 2.0, 'clinic': 2.0}
  assert _watched(study(metrics._replace(own=metrics.own._replace(call=None)))) == {
    'ward': pytest.approx(2 / 3), 'clinic': 0.5}


def _watched(one) -> dict:
  line = watched_f1(one, None, QUIET)
  assert line['validation_f1'] == pytest.approx(np.mean(list(line['validation_f1_sites'].values())))
  return line['validation_f1_sites']


@pytest.mark.parametrize('text', [True, False])
def test_answers_from_before_training_are_taken_up_where_they_were_kept(text, tmp_path):
  one = study(TextMetrics(), text)
  first, _ = score_all(one, {'': 'no'}, tmp_path, QUIET, trained=False)
  assert one.answered == ['ward', 'clinic']
  again, _ = score_all(one, {'': 'no'}, tmp_path, QUIET, trained=False)
  assert one.answered == ['ward', 'clinic'] * (1 if text else 2)
  assert [entry.scores for entry in first.values()] == [entry.scores for entry in again.values()]


def test_an_endpoints_answers_are_scored_by_a_mended_metric(mine, tmp_path, monkeypatch):
  """It fails on the answer alone, which is then not asked for again; a finished run is bound."""
  asked = []
  monkeypatch.setattr(api_run.api, 'ask', lambda endpoint, questions, limits, known, keep, *rest: [
    asked.append(question) or Answer('Maybe.', 1, 1, 1) for question in questions])
  data = Data(SimpleNamespace(tokenizer=lambda texts, **_: {'input_ids': [[1]] * len(texts)}),
              SITES[:1], SITES[:1], SITES[1:])

  def run(code: str) -> dict:
    chosen = config(TEXT | {'eval.metric': mine(code), 'eval.bootstrap_samples': 5})
    validate(chosen)
    return api_run.run_api(
      chosen, tmp_path / 'run', QUIET, data, Endpoint('small', 'there', 'key'))

  with pytest.raises(InputError, match="site 'ward': .*mine.py, line 2: KeyError: 'Maybe.'"):
    run('def score(p, t):\n  return {"a": [{"yes": 1, "no": 0, "": 0}[one] for one in p]}\n')
  assert len(asked) == 5 and (tmp_path / 'run' / 'predictions' / 'ward.jsonl').exists()
  summary = run(SCORE)
  assert summary['scores']['clinic']['text'] == {
    'exact_match': {'value': 0.0, 'ci95': None}, 'chars': {'value': 6.0, 'ci95': None}}
  assert summary['copy_rate'] is None and run(SCORE)['scores'] == summary['scores']
  assert (tmp_path / 'run' / 'own_parts' / 'eval.metric.py').read_text() == SCORE
  with pytest.raises(InputError, match='own metric: .*changed since the run began'):
    run(SCORE + '\n')


def test_something_has_to_be_scored():
  """A metric given in Python is enough; it is known only once the study is prepared."""
  values = {'data.tasks': ('text',), 'eval.metrics': (), 'eval.metric': 'python:score'}
  with pytest.raises(InputError, match="with config.eval.metric='' nothing is scored"):
    text_scores.text_metrics(values | {'eval.metric': ''}, {}, ())
  given = {'eval.metric': from_python('eval.metric', lambda answers, targets: {'mine': 1.0})}
  assert text_scores.text_metrics(values, given, ()).names == ()
