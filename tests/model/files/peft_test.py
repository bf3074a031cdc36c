"""The PEFT file format both ways, and merging, against PEFT and transformers themselves."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import TINY
from families import FAMILIES, build, save
from llama_test import logits

from fedmedjax.model.files.load import load_model
from fedmedjax.model.files.peft import _setting, load_peft, save_peft
from fedmedjax.model.llama import PROJECTIONS
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.types import InputError

TOKENS = np.arange(5, 41)
LORA = LoraConfig(4, 10.0, ('q_proj', 'v_proj', 'down_proj'))


def trained(config, lora, ranks=None):
  """A random adapter; `ranks` changes single projections' ranks."""
  adapter = init_adapter(jax.random.key(1), config, lora)
  for name, rank in (ranks or {}).items():
    adapter['layers'] |= init_adapter(
      jax.random.key(1), config, lora._replace(rank=rank, targets=(name,)))['layers']
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapter)


@pytest.fixture(scope='module', params=['llama32', 'qwen2'])
def model(request, tmp_path_factory):
  """(builder of a fresh transformers model, its folder, the model loaded by us)."""
  folder = save(build(FAMILIES[request.param]), tmp_path_factory.mktemp(request.param))
  return lambda: build(FAMILIES[request.param]), folder, load_model(folder)


def their_logits(model) -> np.ndarray:
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS[None])).logits[0].numpy()


def with_peft(model, folder):
  with warnings.catch_warnings():
    # PEFT's own warnings about its dependencies are not ours to mend.
    warnings.simplefilter('ignore')
    return peft.PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize('lora, ranks', [
  (LORA, {}),
  (LoraConfig(3, 7.0, PROJECTIONS), {'v_proj': 5, 'up_proj': 1}),
  (LoraConfig(8, 4.0, ('o_proj', 'gate_proj'), use_rslora=True), {'o_proj': 2}),
], ids=['subset', 'mixed ranks', 'rank-stabilised'])
def test_peft_reads_what_we_write(model, lora, ranks, tmp_path):
  fresh, _, loaded = model
  adapter = trained(loaded.config, lora, ranks)
  save_peft(adapter, lora, tmp_path, 'tiny')
  found = logits(loaded.config, loaded.params, TOKENS, adapter, lora.scale)
  expected = their_logits(with_peft(fresh(), tmp_path))
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
  untuned = logits(loaded.config, loaded.params, TOKENS)
  assert float(np.abs(found - untuned).max()) > 1e-2


def test_the_lines_of_the_page(tmp_path):
  """The code of docs/models.md, fewer tokens, answers what our greedy choice is."""
  folder = save(build(FAMILIES['llama32']), tmp_path / 'base')
  loaded = load_model(folder)
  adapter = trained(loaded.config, LORA)
  save_peft(adapter, LORA, tmp_path, 'tiny')
  page = (Path(__file__).parents[3] / 'docs' / 'models.md').read_text()
  code = next(b for b in page.split('```')[1::2] if 'PeftModel' in b).removeprefix('python')
  names = dict(transformers=transformers, peft=peft, BASE=folder, prompt='w5 w6 w7')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    exec(code.replace('runs/a/adapter', str(tmp_path)).replace('=512', '=4'), names)
  tokens = loaded.tokenizer('w5 w6 w7')['input_ids']
  for _ in range(4):
    found = logits(loaded.config, loaded.params, np.asarray(tokens), adapter, LORA.scale)
    tokens.append(int(found[-1].argmax()))
    if tokens[-1] == loaded.tokenizer.eos_token_id:
      break
  assert names['answer'] == loaded.tokenizer.decode(tokens[3:])


@pytest.mark.parametrize('settings', [
  dict(r=4, lora_alpha=6, target_modules=['k_proj', 'down_proj']),
  dict(r=4, lora_alpha=6, target_modules='all-linear', use_rslora=True),
  dict(r=3, lora_alpha=5, target_modules=['q_proj', 'v_proj', 'up_proj'],
       rank_pattern={'v_proj': 6, r'layers.1.self_attn.q_proj': 1},
       alpha_pattern={'up_proj': 11, r'layers\.[01]\.self_attn\.v_proj': 2}),
  dict(r=2, lora_alpha=4, target_modules=['o_proj'], layers_to_transform=[0, 2]),
], ids=['subset', 'all rank-stabilised', 'patterns', 'some layers'])
def test_we_read_what_peft_writes(model, settings, tmp_path):
  fresh, _, loaded = model
  torch.manual_seed(1)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    tuned = peft.get_peft_model(fresh(), peft.LoraConfig(task_type='CAUSAL_LM', **settings))
    with torch.no_grad():
      for name, weight in tuned.named_parameters():
        if 'lora_B' in name:
          weight.add_(torch.randn_like(weight) * 0.1)
    tuned.save_pretrained(tmp_path)
  adapter, lora = load_peft(tmp_path, loaded.config)
  found = logits(loaded.config, loaded.params, TOKENS, adapter, lora.scale)
  np.testing.assert_allclose(found, their_logits(tuned), atol=1e-4, rtol=0)


@pytest.mark.parametrize('lora, ranks', [
  (LORA, {}), (LoraConfig(3, 7.0, PROJECTIONS), {'v_proj': 5}),
  (LoraConfig(8, 4.0, ('o_proj',), use_rslora=True), {'o_proj': 3})])
def test_round_trip_is_bitwise(lora, ranks, tmp_path):
  adapter = trained(TINY, lora, ranks)
  save_peft(adapter, lora, tmp_path / 'one', 'tiny')
  back, again = load_peft(tmp_path / 'one', TINY)
  assert again == lora._replace(targets=tuple(sorted(lora.targets)))
  jax.tree.map(np.testing.assert_array_equal, adapter, back)
  save_peft(back, again, tmp_path / 'two', 'tiny')
  for name in ('adapter_config.json', 'adapter_model.safetensors'):
    assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


@pytest.mark.parametrize('change, message', [
  (dict(use_dora=True), 'use_dora'), (dict(peft_type='IA3'), 'IA3'),
  (dict(bias='lora_only'), 'bias'), (dict(init_lora_weights='pissa_niter_4'), 'pissa'),
  (dict(modules_to_save=['lm_head']), 'modules_to_save'), (dict(r=5), 'says rank 5'),
  (dict(rank_pattern={'v_proj': 3}), 'says rank 3 for layer 0 v_proj'),
  (dict(lora_alpha='much'), 'lora_alpha'),
])
def test_foreign_settings_are_refused_by_name(tmp_path, change, message):
  save_peft(trained(TINY, LORA), LORA, tmp_path, 'tiny')
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=message):
    load_peft(tmp_path, TINY)


KEY = 'base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight'


@pytest.mark.parametrize('change, message', [
  (lambda t: t.pop(KEY), 'v_proj.lora_B.weight.* is missing'),
  (lambda t: t.update({KEY: t[KEY][:3]}), r'has shape \(3, 4\), expected \(16, 4\)'),
  (lambda t: t.update({KEY.replace('.1.', '.7.'): t[KEY]}), 'unknown tensor .*layers.7'),
  (lambda t: t.update({KEY.replace('self_attn', 'mlp'): t[KEY]}), 'unknown tensor .*mlp.v_proj'),
  (lambda t: t.update({KEY.replace('lora_B.weight', 'lora_magnitude_vector'): t[KEY]}), 'unknown'),
  (lambda t: t.clear(), 'holds no tensor'),
  (lambda t: t.update({KEY: t[KEY].astype(np.int8)}), 'is of type I8; F64'),
  (lambda t: t.update({KEY.replace('_B', '_A'): np.array(1.0, np.float32)}), r'has shape \(\)'),
])
def test_damaged_adapter_files_are_refused(tmp_path, change, message):
  import safetensors.numpy
  save_peft(trained(TINY, LORA), LORA, tmp_path, 'tiny')
  path = tmp_path / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(InputError, match=message):
    load_peft(tmp_path, TINY)


def test_merged_weights_are_the_tuned_model(model, tmp_path):
  """`scripts/merge.py`, the command itself: transformers loads its folder, equal logits."""
  _, folder, loaded = model
  adapter = trained(loaded.config, LORA)
  save_peft(adapter, LORA, tmp_path / 'adapter', 'tiny')
  root = Path(__file__).parents[3]
  environment = os.environ | {'PYTHONPATH': str(root)}
  command = [
    sys.executable, str(root / 'scripts' / 'merge.py'), f'--base={folder}',
    f'--adapter={tmp_path / "adapter"}', f'--output={tmp_path / "merged"}']
  subprocess.run(command, check=True, capture_output=True, env=environment)
  merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
  expected = logits(loaded.config, loaded.params, TOKENS, adapter, LORA.scale)
  np.testing.assert_allclose(their_logits(merged), expected, atol=1e-4, rtol=0)
  found = load_model(tmp_path / 'merged')
  assert found.config == loaded.config
  again = subprocess.run(command, capture_output=True, text=True, env=environment)
  assert again.returncode == 2 and again.stderr.startswith('error: --output=')


@pytest.mark.parametrize('key', [
  'q_proj', 'layers.0.self_attn.q_proj', r'model\.layers\.[01]\.self_attn\.q_proj',
  'model.language_model.layers.0.self_attn.q_proj'])
def test_patterns_name_modules_of_either_kind_of_model(key):
  """As they are called in a language model, or inside one that sees images."""
  settings = {'alpha_pattern': {'k_proj': 8, key: 64}, 'lora_alpha': 16}
  found = [_setting(settings, 'alpha_pattern', 'lora_alpha', name, 0)
           for name in ('q_proj', 'k_proj', 'v_proj')]
  assert found == [64, 8, 16]
