"""Files of a model that contradict each other or are not what they seem: resolved, or named.

What transformers makes of the same folder is the reference, by the weights that it loads.
"""

import contextlib
import copy
import json
import re
import shutil
import warnings

import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from families import FAMILIES, VOCABULARY, build, save
from load_test import write_gguf

from fedmedjax.model.files import gguf, load
from fedmedjax.model.files.convert import check_tensors
from fedmedjax.model.files.folder import INDEX
from fedmedjax.model.files.load import load_model, model_files
from fedmedjax.model.files.peft import load_peft, save_peft
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.types import InputError

HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
NORM = 'model.layers.1.input_layernorm.weight'


@pytest.fixture(scope='module', params=['llama32', 'qwen2'])
def tied(request, tmp_path_factory):
  """The folder of a tied model."""
  return save(build(FAMILIES[request.param]), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of an untied model."""
  return save(build(FAMILIES['llama31']), tmp_path_factory.mktemp('whole'))


@pytest.fixture(autouse=True)
def as_stored(monkeypatch):
  """Loaded weights are {name in the file: values}, checked but not compiled into their places."""
  def convert(config, tensors, column, placement, origin):
    check_tensors(config, tensors, column, origin)
    return {name: tensor.read(slice(None)) for name, tensor in tensors.items()}

  monkeypatch.setattr(load, 'convert', convert)
  monkeypatch.setattr(gguf, 'convert', convert)


def changed(folder, to, change):
  """A copy of a folder whose tensors {name: values} went through `change`."""
  shutil.copytree(folder, to)
  tensors = safetensors.torch.load_file(to / 'model.safetensors')
  change(tensors)
  safetensors.torch.save_file(tensors, to / 'model.safetensors', metadata={'format': 'pt'})
  return to


def same_as_transformers(folder) -> None:
  """Embedding, head and a norm are those that transformers loads."""
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  found = load_model(folder).params
  for name, expected in (
      (EMBEDDING, theirs.get_input_embeddings().weight),
      (HEAD if HEAD in found else EMBEDDING, theirs.get_output_embeddings().weight),
      (NORM, theirs.model.layers[1].input_layernorm.weight)):
    np.testing.assert_array_equal(found[name], expected.detach().numpy())


def alone(tensors):
  tensors[HEAD] = tensors.pop(EMBEDDING)


@pytest.mark.parametrize('change', [
  lambda t: t.update({HEAD: 1.5 * t[EMBEDDING]}),
  lambda t: t.update({HEAD: t[EMBEDDING] + torch.eye(*t[EMBEDDING].shape)}),
  lambda t: t.update({HEAD: t[EMBEDDING].clone()}),
  alone,
  lambda t: [t.update({name.removeprefix('model.'): t.pop(name)}) for name in list(t)],
], ids=['a head of its own', 'a few values of its own', 'a copy', 'only the head', 'without one'])
def test_heads_of_tied_models(tied, change, tmp_path):
  same_as_transformers(changed(tied, tmp_path / 'model', change))


@pytest.mark.parametrize('change, message', [
  (lambda t: t.update({HEAD: torch.ones(VOCABULARY + 1, 24)}), f'{HEAD}.* has shape'),
  (lambda t: t.pop(EMBEDDING), f'missing, first .{EMBEDDING}'),
])
def test_heads_that_fit_nothing_are_named(tied, change, message, tmp_path):
  with pytest.raises(InputError, match=message):
    load_model(changed(tied, tmp_path / 'model', change))


def with_settings(folder, **values):
  file = folder / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | values))


def beside(folder):
  (folder / 'adapter_config.json').write_text('{"peft_type": "LORA"}')


def linked(folder):
  (folder / 'model.safetensors').unlink()
  (folder / 'model.safetensors').symlink_to('../blobs/4d7a')


@pytest.mark.parametrize('change, message', [
  (beside, 'holds a model and an adapter'),
  (lambda f: with_settings(f, quantization_config={'quant_method': 'awq'}), "config='awq'"),
  (lambda f: with_settings(f, quantization_config={'load_in_4bit': True}), 'quantization_config='),
  (linked, r'is a link to \.\./blobs/4d7a'),
], ids=['adapter', 'awq', 'bitsandbytes', 'link'])
def test_folders_that_mean_something_else_are_named(whole, change, message, tmp_path):
  folder = shutil.copytree(whole, tmp_path / 'model')
  change(folder)
  with pytest.raises(InputError, match=message):
    load_model(folder)
  with pytest.raises(InputError, match='name the folder of the model'):
    load_model(folder / 'config.json')


def test_an_untied_model_without_its_head_is_refused(whole, tmp_path):
  with pytest.raises(InputError, match=f'first .{HEAD}'):
    load_model(changed(whole, tmp_path / 'model', lambda tensors: tensors.pop(HEAD)))


def index(folder, places: dict[str, str]) -> None:
  (folder / INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': places}))


@pytest.mark.parametrize('left', ['shards', 'nothing', 'another index'])
def test_an_index_beside_whole_weights_is_left_over(whole, left, tmp_path):
  """Its shards hold other values, are gone, or it names the file of an adapter."""
  folder = changed(whole, tmp_path / 'model', lambda tensors: None)
  tensors = safetensors.torch.load_file(folder / 'model.safetensors')
  shard = 'adapter_model.safetensors' if left == 'another index' else 'model-00001-of-00001' + (
    '.safetensors')
  if left != 'nothing':
    safetensors.torch.save_file(
      {name: values * 0.5 for name, values in tensors.items()}, folder / shard,
      metadata={'format': 'pt'})
  index(folder, dict.fromkeys(tensors, shard))
  same_as_transformers(folder)


@pytest.mark.parametrize('order', [1, -1])
def test_of_a_tensor_in_two_shards_the_last_counts(whole, order, tmp_path):
  """Whatever the index says of it."""
  folder = changed(whole, tmp_path / 'model', lambda tensors: None)
  tensors = safetensors.torch.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  files = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'][::order]
  rest = {NORM: 7 * tensors[NORM], HEAD: tensors.pop(HEAD)}
  for file, held in zip(files, (tensors, rest), strict=True):
    safetensors.torch.save_file(held, folder / file, metadata={'format': 'pt'})
  index(folder, dict.fromkeys(tensors, files[0]) | {HEAD: files[1]})
  same_as_transformers(folder)


POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2147\nsize 12345\n'


@pytest.mark.parametrize('file', [
  'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'config.json'])
def test_pointers_are_named_with_what_fetches_them(whole, file, tmp_path):
  folder = shutil.copytree(whole, tmp_path / 'model')
  (folder / file).write_text(POINTER)
  with pytest.raises(InputError, match=rf'{file}: is a Git LFS pointer .* git -C .* lfs pull'):
    load_model(folder)


def test_pointers_of_other_kinds(whole, tmp_path):
  (tmp_path / 'm.gguf').write_text(POINTER)
  with pytest.raises(InputError, match='m.gguf: is a Git LFS pointer'):
    load_model(tmp_path / 'm.gguf')
  (tmp_path / 'adapter_config.json').write_text('{}')
  (tmp_path / 'adapter_model.safetensors').write_text(POINTER)
  with pytest.raises(InputError, match='adapter_model.safetensors: is a Git LFS pointer'):
    load_peft(tmp_path, load_model(whole).config)
  with pytest.raises(InputError, match='is an adapter'):
    load_model(tmp_path)


@pytest.mark.parametrize('pad, others, message', [
  ('<pad>', [], None), ('[PAD]', [], None),
  ('w2', ['<pad>'], "nothing embeds '<pad>'"),         # an added word, but another pads
  ('<pad>', ['<ent>'], "nothing embeds '<ent>'"),      # one more that a text may hold
])
def test_one_token_more_than_the_embedding(whole, pad, others, message, tmp_path):
  """A padding token alone is left out: its letters in a text are words like others."""
  folder = shutil.copytree(whole, tmp_path / 'model')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  before = tokenizer(f'w5 {pad} w6')['input_ids']
  tokenizer.add_tokens(others)
  tokenizer.add_special_tokens({'pad_token': pad})
  tokenizer.save_pretrained(folder)
  with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
    found = load_model(folder).tokenizer
    assert len(found) == VOCABULARY and found.pad_token is None
    assert found(f'w5 {pad} w6')['input_ids'] == before


def test_one_token_fewer_than_the_embedding(whole, tmp_path):
  """A row that no token has is an answer of nothing."""
  folder = changed(whole, tmp_path / 'model', lambda tensors: [
    tensors.update({name: torch.cat([tensors[name], tensors[name][:1]])})
    for name in (HEAD, EMBEDDING)])
  settings = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(settings | dict(vocab_size=VOCABULARY + 1)))
  same_as_transformers(folder)
  assert load_model(folder).tokenizer.decode([5, VOCABULARY, 6]) == 'w5 w6'


def test_a_split_gguf_is_read_whole_from_any_of_its_files(whole, tmp_path):
  """As the gguf package splits it; nothing is in the files but the same tensors."""
  exact = load_model(write_gguf(tmp_path / 'm.gguf', whole)).params
  write_gguf(tmp_path / 's.gguf', whole, split_max_tensors=12)
  files = sorted(tmp_path.glob('s-*.gguf'))
  assert [file.name for file in files] == [f's-0000{i}-of-00003.gguf' for i in (1, 2, 3)]
  for file in files[::2]:
    found = load_model(file).params
    assert found.keys() == exact.keys()
    for name, values in exact.items():
      np.testing.assert_array_equal(found[name], values)
    assert model_files(file) == files
  files[1].rename(tmp_path / 'kept')
  with pytest.raises(InputError, match=r'3 of 3 .*s-00002-of-00003.gguf is not beside.*--merge'):
    load_model(files[2])
  shutil.copy(files[2], files[1])
  with pytest.raises(InputError, match='split.no=2 and split.count=3, expected 1 and 3'):
    load_model(files[0])
  with pytest.raises(InputError, match='file 1 of 3 .*its name does not end in -00001-of-00003'):
    load_model(files[0].rename(tmp_path / 'renamed.gguf'))


def replaced(key, add, *values):
  """A change of a GGUF writer: another value of a key, or none."""
  def change(writer):
    writer.kv_data[0].pop(key, None)
    if add:
      add(writer, *values)
  return change


_W, _KV, _EOS = gguf.gguf.GGUFWriter, 'llama.attention.head_count_kv', 'tokenizer.ggml.eos_token_id'


@pytest.mark.parametrize('change, extra, message', [
  (replaced(_KV, _W.add_head_count_kv, [4, 4, 4]), {}, None),  # one number for each layer
  (replaced('', _W.add_expert_count, 8), {}, 'llama.expert_count=8: a mixture of experts is not'),
  (replaced(_KV, _W.add_head_count_kv, [4, 2, 4]), {}, r'head_count_kv=\[4, 2, 4\]: the same for'),
  (replaced('', _W.add_pad_token_id, 2**32 - 1), {}, None),     # none
  (replaced(_EOS, _W.add_eos_token_id, 2**32 - 1), {}, 'names no end token'),
  (replaced(_EOS, _W.add_eos_token_id, 500), {}, 'eos_token_id=500: there are 97 tokens'),
  (replaced('tokenizer.ggml.token_type', _W.add_token_types, [1]), {}, 'has 1 entries for 97'),
  (replaced('', None), {'rope_freqs.weight': np.ones(7, np.float32)}, '3 finite numbers > 0'),
  (replaced('', None), {'rope_freqs.weight': np.zeros(3, np.float32)}, '3 finite numbers > 0'),
])
def test_odd_fields_of_a_gguf(gguf_folder, change, extra, message, tmp_path):
  path = write_gguf(tmp_path / 'm.GGUF', gguf_folder, change=change, extra=extra)
  with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
    found = load_model(path)
    assert found.config.num_kv_heads == 4 and found.tokenizer.pad_token is None


@pytest.fixture(scope='module')
def gguf_folder(tmp_path_factory):
  return save(build(FAMILIES['llama2']), tmp_path_factory.mktemp('of_gguf'))


@pytest.mark.parametrize('kind', [3, 4])
def test_words_of_a_gguf_that_are_taken_whole(gguf_folder, kind, tmp_path):
  """Control tokens and those that the model's author defined, as llama.cpp takes both."""
  path = write_gguf(tmp_path / 'm.gguf', gguf_folder, words=['<tool_call>'], change=replaced(
    'tokenizer.ggml.token_type', _W.add_token_types, [1] * 96 + [kind]))
  tokenizer = load_model(path).tokenizer
  assert tokenizer('w1<tool_call>w1')['input_ids'] == [2, 96, 2]
  assert tokenizer.decode([2, 96, 2]) == 'w1<tool_call>w1'


@pytest.mark.parametrize('architecture, words, split', [
  ('llama', ['<|begin_of_text|>'], 'llama-bpe'), ('llama', ['<reponame>'], 'smollm'),
  ('qwen2', ['<|im_start|>'], 'qwen2'),
  ('llama', [], None), ('llama', ['<|im_start|>'], None),
  ('llama', ['<|begin_of_text|>', '<reponame>'], None),
])
def test_a_gguf_that_does_not_say_how_it_splits_text(architecture, words, split, tmp_path):
  """Its words tell whose vocabulary it is, and the tokens are the same; else it is refused."""
  folder = save(build(FAMILIES['llama2' if architecture == 'llama' else 'qwen2']), tmp_path / 'f')
  path = write_gguf(tmp_path / 'm.gguf', folder, architecture, pre=None, words=words)
  if split is None:
    with pytest.raises(InputError, match='tokenizer.ggml.pre is missing.*--pre-tokenizer'):
      load_model(path)
    return
  said = write_gguf(tmp_path / 'said.gguf', folder, architecture, pre=split, words=words)
  found, expected = (
    load_model(file).tokenizer.backend_tokenizer.to_str() for file in (path, said))
  assert found == expected


@pytest.fixture(scope='module')
def seeing(tmp_path_factory):
  """(transformers' model that sees images, too, as MedGemma does, its folder)."""
  text = FAMILIES['gemma3'].to_dict() | dict(final_logit_softcapping=None)
  config = transformers.Gemma3Config(text_config=text, vision_config=dict(
    model_type='siglip_vision_model', hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, image_size=28, patch_size=14), mm_tokens_per_image=4)
  torch.manual_seed(0)
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  folder = tmp_path_factory.mktemp('seeing')
  model.config.vocab_size = VOCABULARY
  save(model, folder)
  return model, folder


@pytest.mark.parametrize('names', ['as saved', 'as newer programs save them'])
def test_of_a_model_that_sees_its_language_model_is_read(seeing, names, tmp_path):
  """All its tensors, its settings, and one sentence on what was left out."""
  model, folder = seeing
  if names != 'as saved':
    folder = changed(folder, tmp_path / 'new', lambda tensors: [
      tensors.update({_newer(name): tensors.pop(name)}) for name in list(tensors)])
  found = load_model(folder)
  theirs = {
    f'model.{name}': values for name, values in model.model.language_model.state_dict().items()}
  assert found.params.keys() == theirs.keys()
  for name, values in theirs.items():
    np.testing.assert_array_equal(found.params[name], values.numpy())
  alone = save(build(model.config.text_config), tmp_path / 'alone')
  assert found.config == load_model(alone).config and not load_model(alone).left_out
  assert 'its vision tower, ' in found.left_out and found.inside == 'language_model.'
  with pytest.raises(InputError, match='unknown tensor .audio.weight'):
    load_model(changed(folder, tmp_path / 'odd', lambda tensors: tensors.update(
      {'audio.weight': torch.ones(2)})))


def _newer(name):
  name = name.replace('language_model.model.', 'model.language_model.')
  return f'model.{name}' if name.startswith(('vision_tower', 'multi_modal')) else name


def test_an_adapter_of_a_model_that_sees(seeing, tmp_path):
  """PEFT puts ours into the language model of the whole model, and into nothing else."""
  model, folder = seeing
  base = load_model(folder)
  lora = LoraConfig(2, 4.0, ('q_proj', 'down_proj'))
  adapter = jax.tree.map(lambda x: x + 0.5, init_adapter(jax.random.key(0), base.config, lora))
  save_peft(adapter, lora, tmp_path, 'tiny', base.inside)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for kind in (DeprecationWarning, FutureWarning):  # PEFT's own, not of missing weights
      warnings.filterwarnings('ignore', category=kind)
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
  found = {key: x for key, x in tuned.named_parameters() if '.lora_' in key}
  assert len(found) == 2 * 2 * 3 and all('.language_model.layers.' in key for key in found)
  for key, values in found.items():
    layer, name, factor = re.search(r'layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])', key).groups()
    np.testing.assert_array_equal(
      values.detach().numpy().T, adapter['layers'][name][factor.lower()][int(layer)])
  back, again = load_peft(tmp_path, base.config)
  assert again == lora._replace(targets=('down_proj', 'q_proj'))
  jax.tree.map(np.testing.assert_array_equal, back, adapter)


@pytest.fixture(scope='module')
def adapter(whole, tmp_path_factory):
  """(folder of an adapter that PEFT wrote, the model's configuration, what is read of it)."""
  folder = tmp_path_factory.mktemp('adapter')
  torch.manual_seed(1)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    tuned = peft.get_peft_model(build(FAMILIES['llama31']), peft.LoraConfig(
      task_type='CAUSAL_LM', r=4, lora_alpha=6, target_modules=['q_proj', 'v_proj']))
    tuned.save_pretrained(folder)
  config = load_model(whole).config
  return folder, config, load_peft(folder, config)[0]


def renamed(adapter, to, name):
  """A copy of the adapter whose keys went through `name`."""
  shutil.copytree(adapter[0], to)
  file = to / 'adapter_model.safetensors'
  tensors = safetensors.torch.load_file(file)
  safetensors.torch.save_file({name(key): values for key, values in tensors.items()}, file)
  return to


def around(name):
  return lambda key: name + key.removeprefix('base_model.model.')


@pytest.mark.parametrize('name', [
  lambda key: key.replace('.weight', '.default.weight'),
  lambda key: key.replace('.weight', '.site_3.weight'),
  lambda key: key.replace('.weight', '.my-adapter.weight'),
  around(''), around('base_model.model._orig_mod.'), around('module.base_model.model.'),
  lambda key: key.replace('model.model.model.', 'model.model.'),
], ids=['default', 'site_3', 'my-adapter', 'bare', 'compiled', 'parallel', 'without a head'])
def test_keys_of_a_state_dict_name_the_adapter_or_what_is_around(adapter, name, tmp_path):
  folder = renamed(adapter, tmp_path / 'a', name)
  found, _ = load_peft(folder, adapter[1])
  for target, factors in adapter[2]['layers'].items():
    for factor, values in factors.items():
      np.testing.assert_array_equal(found['layers'][target][factor], values)


def test_keys_of_several_adapters_are_refused(adapter, tmp_path):
  folder = renamed(adapter, tmp_path / 'a', lambda key: key.replace(
    '.weight', '.one.weight' if '.layers.0.' in key else '.two.weight'))
  with pytest.raises(InputError, match="several adapters, named 'one', 'two'"):
    load_peft(folder, adapter[1])
  folder = renamed(
    adapter, tmp_path / 'b', lambda key: 'module.' + key if '.layers.0.' in key else key)
  with pytest.raises(InputError, match="of models named 'base_model.model.model.', 'module.base"):
    load_peft(folder, adapter[1])


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(adapter, tmp_path):
  """The command is run, and what it writes is read."""
  folder = shutil.copytree(adapter[0], tmp_path / 'a')
  file = folder / 'adapter_model.safetensors'
  torch.save(safetensors.torch.load_file(file), folder / 'adapter_model.bin')
  file.unlink()
  with pytest.raises(InputError, match='adapter_model.bin: is a pickle') as refused:
    load_peft(folder, adapter[1])
  exec(str(refused.value).split('python -c ')[1].strip('"'), {})
  found, _ = load_peft(folder, adapter[1])
  np.testing.assert_array_equal(found['layers']['q_proj']['a'], adapter[2]['layers']['q_proj']['a'])
