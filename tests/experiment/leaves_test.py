"""No dead key: every leaf of the configuration, changed alone, changes what would be run."""

import dataclasses
import functools
import hashlib
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from rich.console import Console

import fedmedjax
from configs import quickstart
from fedmedjax.compare import api_run
from fedmedjax.eval.answers import Answer
from fedmedjax.eval.endpoint import Endpoint
from fedmedjax.experiment import bert, build, lora
from fedmedjax.experiment.config import CHECKS, leaves, validate
from fedmedjax.experiment.types import Options
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import run
from fedmedjax.types import InputError

_BERT = {'fed.preset': 'fed_bert', 'fed.learner': 'bert', 'fed.loss_power': 0.0}
_TAGGER = {'fed.learner': 'tagger'}
_RE = {'data.tasks': ('ner', 're'), 'data.max_length': 400}
_DEALT = {'data.partition.kind': 'types', 'data.partition.sites': 5}
_ADAM = {'fed.server_optimizer': 'fedadam'}
_SITE = {
  'privacy.unit': 'site', 'privacy.epsilon': 8.0, 'privacy.delta': 0.01, 'privacy.noise': 2.0,
  'fed.loss_power': 0.0, 'fed.size_power': 0.0, 'log.steps': False, 'fed.rounds': 2}
_JUDGED = {
  **_SITE, 'fed.loss_power': 1.0, 'fed.signal': 'answer', 'privacy.loss_clip': 4.0,
  'privacy.loss_noise': 4.0}
_MASKED = {
  **_SITE, 'fed.secure_aggregation': True, 'privacy.accountant': 'rdp',
  'data.sites': ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')}
_WARD = dict(name='ward', path='/nowhere/a', format='brat', mapping='schema')


def _aggregator(name: str, **more) -> dict:
  return {'fed.aggregator': name, 'fed.loss_power': 0.0} | more


# Keys that matter only beside others: what is set besides, before and after.
NEEDED = {
  'bert.path': _BERT, 'bert.task': _BERT, 'bert.max_length': _BERT, 'bert.learning_rate': _BERT,
  'tagger.width': _TAGGER, 'tagger.buckets': _TAGGER, 'tagger.max_length': _TAGGER,
  'data.folders': {'data.folders': (_WARD,), 'data.external': ('ward',)},
  'data.root': {'data.root': '/nowhere/a', 'data.external': ('phee',)},
  'data.site_tasks': _RE, 'data.re_share': _RE, 'data.partition.unit': _DEALT,
  'data.partition.sites': _DEALT, 'data.partition.strength': _DEALT,
  'data.partition.corrupted': _DEALT, 'data.partition.sizes': _DEALT,
  'data.partition.corrupted_sites': _DEALT,
  'data.partition.corruption': {**_DEALT, 'data.partition.corrupted_sites': (0,)},
  'data.partition.missing': {**_DEALT, 'data.partition.missing_sites': (0,)},
  'data.partition.missing_sites': {
    **_DEALT, 'data.partition.missing': 0.5, 'data.partition.missing_sites': (1,)},
  'fed.local_epochs': {'fed.local_steps': 0}, 'fed.round_steps': {'fed.round_steps': 2},
  'fed.aggregator': _aggregator('mean'),
  'fed.shapes': {'fed.rounds': 2000},  # fewer are not worth a compilation
  'fed.residual_rank': _aggregator('residual'), 'fed.fair_penalty': _aggregator('corrected'),
  **dict.fromkeys(('fed.buffer', 'fed.clusters', 'fed.local_rank'), _aggregator('mean')),
  'fed.trim': _aggregator('trimmed_mean'), 'fed.norm_limit': _aggregator('clipped_mean'),
  'fed.contribution_samples': {
    'fed.contribution': 'shapley', 'fed.loss_power': 0.0},
  'fed.heads': {'fed.heads': 2, 'fed.sharing': 'cores', 'fed.loss_power': 0.0},
  'fed.alignment': _aggregator('aligned'), 'fed.mixture_rate': _aggregator('agnostic'),
  'fed.fairness': _aggregator('q_fedavg'), 'fed.lipschitz': _aggregator('q_fedavg'),
  'fed.faulty': _aggregator('krum', **_DEALT), 'fed.kept': _aggregator('krum', **_DEALT),
  'fed.rule_strength': {'fed.rule': 'fedprox'},
  'fed.server_momentum': _ADAM, 'fed.server_b2': _ADAM, 'fed.server_tau': _ADAM,
  'fed.block': {'fed.outbound': 'int8'}, 'fed.error_feedback': {'fed.outbound': 'int8'},
  'fed.secure_aggregation': _aggregator('mean'),
  # Sites one after the other cannot be spread.
  'mesh.site': {'fed.chunk': 0}, 'mesh.fsdp': {'fed.chunk': 0},
  'simulation.speed_spread': {'simulation.step_seconds': 1.0},
  'simulation.bandwidth_spread': {'simulation.bandwidth': 1.0},
  'simulation.deadline': {'simulation.step_seconds': 1.0},
  'optim.sgd_learning_rate': {'fed.local_optimizer': 'sgd'},
  'privacy.unit': _SITE | {'privacy.unit': ''},
  'privacy.accept': {**_SITE, 'privacy.epsilon': 20.0},
  **dict.fromkeys([f'privacy.{key}' for key in (
    'epsilon', 'delta', 'adjacency', 'accountant', 'noise', 'clip', 'clipping',
    'mechanism')], _SITE),
  'privacy.bands': {**_SITE, 'privacy.mechanism': 'banded', 'privacy.bands': 1},
  'privacy.loss_clip': _JUDGED, 'privacy.loss_noise': _JUDGED, 'privacy.noise_from_seed': _SITE,
  'privacy.loss_answers': {**_JUDGED, 'privacy.unit': 'note', 'privacy.delta': 1e-3},
  'privacy.size_cap': {**_SITE, 'fed.size_power': 1.0, 'privacy.size_cap': 8.0},
  'privacy.missing': _MASKED, 'privacy.canaries': _SITE,
  'privacy.unit_examples': {**_SITE, 'privacy.unit': 'note', 'privacy.delta': 1e-3},
  'privacy.microbatch': {**_SITE, 'privacy.unit': 'example', 'privacy.delta': 1e-3},
}
# Another value of what is no number or switch, and where half of it, or one more, is not allowed.
OTHER = {
  'model.path': '/nowhere/a', 'model.dtype': 'bfloat16', 'model.quantization': 'int8',
  'model.remat': 'full', 'model.matmul': 'bfloat16', 'model.attention': 'cudnn',
  'lora.targets': ('q_proj',), 'lora.start': '/nowhere/a',
  'bert.path': '/nowhere/a', 'bert.task': 're',
  'data.folders': ({**_WARD, 'path': '/nowhere/b'},), 'data.root': '/nowhere/b',
  'data.schema': 'bc5cdr', 'data.prompt': '/nowhere/p.toml', 'data.sites': ('synthetic_icu',),
  'data.external': (),
  'data.tasks': ('re',),
  'data.site_tasks': ('ner', 're'), 'data.re_share': 0.3, 'data.style': 'json', 'data.chat': True,
  'data.server_validation': 'synthetic_newsite',
  'data.max_train_notes': 5, 'data.max_train_sentences': 5, 'data.max_length': 60,
  'data.partition.kind': 'iid', 'data.partition.unit': 'sentence',
  'data.partition.corrupted': 0.4, 'data.partition.sizes': (0.4, 0.2, 0.2, 0.1, 0.1),
  'data.partition.corrupted_sites': (0,), 'data.partition.corruption': 'shift',
  'data.partition.missing': 0.5, 'data.partition.missing_sites': (0,),
  'fed.preset': 'uniform', 'fed.weight_by': 'tokens', 'fed.loss_power': 0.5, 'fed.loss_on': 'all',
  'fed.sharing': 'only_b', 'fed.learner': 'bert', 'fed.aggregator': 'median', 'fed.signal': 'loo',
  'fed.floor': 0.1, 'fed.ema': 0.1, 'fed.ranks': (1, 2), 'fed.rule': 'fedprox',
  'fed.rule_strength': 0.5, 'fed.local_optimizer': 'sgd', 'fed.server_optimizer': 'fedavgm',
  'fed.cohort_size': 1, 'fed.sampler': 'size', 'fed.clip_update': 0.5, 'fed.outbound': 'int8',
  'fed.memory_gib': 1.0, 'fed.shapes': 1, 'fed.contribution': 'shapley', 'fed.lipschitz': 0.5,
  'simulation.step_seconds': 1.0, 'simulation.speed_spread': 1.0, 'simulation.bandwidth': 1.0,
  'simulation.bandwidth_spread': 1.0, 'simulation.failure': 0.1, 'simulation.deadline': 3.0,
  'eval.metrics': ('accuracy',), 'eval.metric': 'nowhere.py:score',
  'privacy.unit': 'site', 'privacy.adjacency': 'add_remove', 'privacy.accountant': 'rdp',
  'privacy.clipping': 'gauge', 'privacy.mechanism': 'banded', 'privacy.microbatch': 2,
  'optim.weight_decay': 0.1, 'log.trackers': (),
  'api.price_input': 1.0, 'api.price_output': 1.0, 'api.cache': 'other',
}
# What is asked for cannot be had here; that it is asked for is in the error. (Metrics of texts:
# `text_scores_test.py`.)
REFUSED = {
  'model.path', 'model.attention', 'lora.start', 'bert.path', 'data.folders', 'data.root',
  'data.schema', 'data.prompt', 'mesh.tensor', 'eval.metrics', 'eval.metric'}


QUIET = Reporter(Console(quiet=True))


def digest(value) -> str:
  """SHA-256 of all that a value is made of: what functions close over, too, and no addresses."""
  found, seen = hashlib.sha256(), set()

  def add(part) -> None:
    if isinstance(part, str | bytes | int | float | bool | None | np.dtype | type):
      found.update(f'{type(part).__name__} {part!r};'.encode())
      return
    if id(part) in seen:
      return
    seen.add(id(part))
    kept.append(part)  # so that its id stays its own
    found.update(type(part).__name__.encode())
    if isinstance(part, jax.Array | np.ndarray | np.generic):
      if jax.dtypes.issubdtype(part.dtype, jax.dtypes.prng_key):
        part = jax.random.key_data(part)
      part = np.asarray(part)
      found.update(f'{part.dtype} {part.shape}'.encode() + part.tobytes())
    elif isinstance(part, dict):
      for key in part:
        add(key)
        add(part[key])
    elif isinstance(part, list | tuple | set | frozenset):
      for entry in part if isinstance(part, list | tuple) else sorted(part, key=repr):
        add(entry)
    elif isinstance(part, functools.partial):
      add((part.func, part.args, part.keywords))
    elif isinstance(part, types.MethodType):
      add((part.__func__, part.__self__))
    elif hasattr(part, '__wrapped__'):  # compiled or cached
      add(part.__wrapped__)
    elif isinstance(part, types.FunctionType):
      add((part.__qualname__, part.__defaults__, part.__kwdefaults__))
      for cell in part.__closure__ or ():
        add(cell.cell_contents)
    elif dataclasses.is_dataclass(part):  # modules of flax, whose parents are of no account
      add([getattr(part, field.name) for field in dataclasses.fields(part)
           if field.name != 'parent'])

  kept: list = []
  add(value)
  return found.hexdigest()


@pytest.fixture(scope='module')
def bert_folder(tmp_path_factory) -> Path:
  """A random encoder that spells every word."""
  folder = tmp_path_factory.mktemp('bert')
  letters = [chr(code) for code in range(33, 127)]
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *(f'##{x}' for x in letters)]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  transformers.BertModel(transformers.BertConfig(
    vocab_size=len(pieces), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1, max_position_embeddings=64)).save_pretrained(folder)
  return folder


@pytest.fixture(scope='module')
def start(tiny_folder, bert_folder) -> dict:
  return {
    'model.path': str(tiny_folder), 'bert.path': str(bert_folder), 'bert.max_length': 32,
    'data.sites': ('synthetic_icu', 'synthetic_dictation'), 'data.synthetic_notes': 8,
    'data.max_length': 100, 'data.validation_share': 0.4, 'data.validation_examples': 2,
    'fed.local_steps': 1, 'fed.batch_size': 2, 'eval.max_examples': 2, 'lora.rank': 2,
    'lora.targets': ('q_proj', 'v_proj')}


def changed(start, settings):
  """The quick start's configuration with these keys."""
  config = quickstart.get_config()
  config.update_from_flattened_dict(start | settings)
  return config


@pytest.fixture(scope='module')
def studied(start):
  """studied(settings) -> a digest of the study that they make, or the error."""
  known, loaded = {}, {}

  def load(config):
    """Notes are read and tokenised once for all keys that do not say which, or how."""
    named = repr([
      (key, value) for key, value in leaves(config.to_dict()).items()
      if key.split('.')[0] in ('seed', 'model', 'bert', 'tagger', 'data', 'lora', 'eval', 'mesh')
      or key == 'fed.learner'])
    if named not in loaded:
      loaded[named] = build.load_data(config, QUIET)
    return loaded[named]

  def study(settings: dict) -> str:
    config = changed(start, settings)
    try:
      validate(config)
      data = load(config)
      study = build.prepare(config, data, on_step=print)
    except InputError as error:
      return str(error)
    # It makes `study.algorithm` anew, of all values.
    return digest(study._replace(algorithm_with=None))

  def once(settings: dict) -> str:
    if repr(settings) not in known:
      known[repr(settings)] = study(settings)
    return known[repr(settings)]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lora, 'load_model', functools.cache(lora.load_model))
    patch.setattr(bert, 'load_bert', functools.cache(bert.load_bert))
    yield once


def other(key: str, value):
  if key in OTHER:
    return OTHER[key]
  if isinstance(value, bool):
    return not value
  assert isinstance(value, int | float), f'{key}: say in OTHER what else it may be'
  return value + 1 if isinstance(value, int) else value / 2


@pytest.mark.parametrize('key', [k for k in CHECKS if not k.startswith(('api.', 'report.'))])
def test_every_key_changes_the_study(key, start, studied):
  needed = NEEDED.get(key, {})
  value = other(key, leaves(changed(start, needed).to_dict())[key])
  before, after = studied(needed), studied(needed | {key: value})
  assert before != after
  assert (len(after) == 64) == (key not in REFUSED), after


def test_a_dead_key_is_noticed(start, studied):
  """Planted: rates of an optimiser that is not chosen are in no part of the study."""
  for key in ('optim.sgd_learning_rate', 'fed.trim', 'bert.max_length'):
    assert studied({}) == studied({key: other(key, leaves(changed(start, {}).to_dict())[key])})


def test_a_run_without_held_out_sentences_cannot_be_watched(studied):
  silent = {'data.validation_examples': 0, 'fed.loss_power': 0.0}
  assert len(studied(silent)) == 64
  assert studied(silent | {'eval.every': 2}).startswith(
    'config.eval.every=2: no site has a held-out sentence to answer while training')


def test_examples_that_prompts_show_are_in_the_summary_where_text_is_kept(start):
  data = build.load_data(changed(start, {'data.shots': 1}), QUIET)
  kept, none = (build.prepare(changed(start, {'data.shots': 1, 'store.text': text}), data)
                for text in (True, False))
  shown = kept.trainable.summary['shots']
  assert list(shown) == ['synthetic_icu', 'synthetic_dictation', 'synthetic_external']
  assert shown['synthetic_icu'] == {'ner': [list(*data.sites[0].tasks[0].ask.shots)]}
  assert set(none.trainable.summary) == set(kept.trainable.summary) - {'shots'}


def test_every_option_of_a_study_is_read():
  source = ''.join(path.read_text() for path in Path(fedmedjax.__file__).parent.rglob('*.py'))
  for name in Options._fields:
    assert re.search(rf'options(\(config\))?\.{name}\b', source), name


def test_how_many_examples_a_page_shows(start, tmp_path, monkeypatch):
  """Of a finished run nothing but its page is made again."""
  shown = []
  monkeypatch.setattr(
    run, 'check_continued', lambda workdir, settings, rounds, own: {'rounds': rounds})
  monkeypatch.setattr(run, 'show', lambda *rest: None)
  monkeypatch.setattr(run.report, 'freshen', lambda workdir, examples: shown.append(examples))
  for number in (0, 7):
    run.run(changed(start, {'report.examples': number}), tmp_path, QUIET)
  assert shown == [0, 7]


@pytest.mark.parametrize('key', [key for key in CHECKS if key.startswith('api.')])
def test_every_key_of_endpoints_changes_a_question_or_its_cost(key, start, tmp_path, monkeypatch):
  config = changed(start, {})
  data = build.load_data(config, QUIET)
  asked = []

  def answer(endpoint, questions, limits, known, *rest):
    asked.append((questions, limits))
    return [Answer('', 1, 1, 1) for _ in questions]

  monkeypatch.setattr(api_run.api, 'ask', answer)
  monkeypatch.setattr(api_run.report, 'freshen', lambda *rest: None)
  monkeypatch.setattr(api_run, 'read_answers', lambda path: asked.append(path.name) or {})
  found = []
  for number, settings in enumerate(({}, {key: other(key, leaves(config.to_dict())[key])})):
    monkeypatch.chdir(tmp_path)
    asked.clear()
    summary = api_run.run_api(
      changed(start, settings), Path(str(number)), QUIET, data, Endpoint('small', 'there', 'key'))
    found.append(digest((asked, summary['api'])))
  assert found[0] != found[1]
