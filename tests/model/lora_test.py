"""Adapters: initialisation, the PEFT file format both ways, and what is refused."""

import json
import warnings

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import TINY
from llama_test import logits

from fedmedjax.model.llama import PROJECTIONS
from fedmedjax.model.load import load_model
from fedmedjax.model.lora import LoraConfig, check_lora, init_adapter, load_peft, save_peft
from fedmedjax.types import InputError

LORA = LoraConfig(4, 10.0, ('q_proj', 'v_proj', 'down_proj'))


def trained(config, lora):
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape),
    init_adapter(jax.random.key(1), config, lora))


def test_initialisation_is_pefts():
  """A uniform within 1/sqrt(D_in) per projection, B zero, float32; draws differ by layer."""
  adapter = init_adapter(jax.random.key(0), TINY, LoraConfig(64, 64.0, PROJECTIONS))
  for name, factors in adapter['layers'].items():
    d_in, d_out = TINY.projection_shape(name)
    assert factors['a'].shape == (2, d_in, 64) and factors['b'].shape == (2, 64, d_out)
    bound = d_in**-0.5
    assert 0.9 * bound < float(np.abs(factors['a']).max()) <= bound
    np.testing.assert_allclose(np.std(factors['a']), bound / 3**0.5, rtol=0.1)
    assert not factors['b'].any()
    assert (factors['a'][0] != factors['a'][1]).all()


def test_a_projection_is_drawn_alike_whatever_else_is_adapted():
  alone = init_adapter(jax.random.key(0), TINY, LoraConfig(4, 8.0, ('up_proj',)))
  among = init_adapter(jax.random.key(0), TINY, LoraConfig(4, 8.0, PROJECTIONS))
  np.testing.assert_array_equal(
    alone['layers']['up_proj']['a'], among['layers']['up_proj']['a'])


def test_sizes_of_the_papers_adapters():
  """METHOD section 6: r=16 on all linears of Llama-3.1-8B and 3.2-1B."""
  import dataclasses
  eight = dataclasses.replace(
    TINY, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32,
    num_kv_heads=8, head_dim=128)
  one = dataclasses.replace(
    eight, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64)
  for config, expected in ((eight, 41_943_040), (one, 11_272_192)):
    shapes = jax.eval_shape(
      lambda key, config=config: init_adapter(key, config, LoraConfig(16, 64.0, PROJECTIONS)),
      jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_round_trip_is_bitwise(tmp_path):
  adapter = trained(TINY, LORA)
  save_peft(adapter, LORA, tmp_path, 'tiny')
  back, lora = load_peft(tmp_path, TINY)
  assert lora.rank == 4 and lora.alpha == 10.0 and set(lora.targets) == set(LORA.targets)
  jax.tree.map(np.testing.assert_array_equal, adapter, back)


def test_peft_reads_what_we_write(tmp_path):
  """A Llama of transformers with our adapter through PEFT gives our logits."""
  config = transformers.LlamaConfig(
    vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
    max_position_embeddings=64, eos_token_id=2)
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).eval()
  model.save_pretrained(tmp_path / 'base')
  import tokenizers
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 2}, unk_token='a'))
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='b').save_pretrained(tmp_path / 'base')
  loaded = load_model(tmp_path / 'base')
  adapter = trained(loaded.config, LORA)
  save_peft(adapter, LORA, tmp_path / 'adapter', 'tiny')
  with warnings.catch_warnings():
    # PEFT's own warnings about its dependencies are not ours to mend.
    warnings.simplefilter('ignore')
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / 'adapter').eval()
  tokens = np.arange(5, 25)
  with torch.no_grad():
    expected = tuned(torch.tensor(tokens[None])).logits[0].numpy()
  found = logits(loaded.config, loaded.params, tokens, adapter, LORA.scale)
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
  untuned = logits(loaded.config, loaded.params, tokens)
  assert float(np.abs(found - untuned).max()) > 1e-2


@pytest.mark.parametrize('change, message', [
  (dict(use_dora=True), 'use_dora'), (dict(use_rslora=True), 'use_rslora'),
  (dict(peft_type='IA3'), 'IA3'), (dict(r=5), 'shape'),
  (dict(target_modules=['q_proj', 'v_proj']), 'unknown tensor'),
  (dict(target_modules=['q_proj', 'v_proj', 'down_proj', 'o_proj']), 'missing'),
])
def test_foreign_or_damaged_adapters_are_refused(tmp_path, change, message):
  save_peft(trained(TINY, LORA), LORA, tmp_path, 'tiny')
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=message):
    load_peft(tmp_path, TINY)


@pytest.mark.parametrize('lora', [
  LoraConfig(0, 8.0, ('q_proj',)), LoraConfig(4, -1.0, ('q_proj',)), LoraConfig(4, 8.0, ()),
  LoraConfig(4, 8.0, ('q_proj', 'q_proj')), LoraConfig(4, 8.0, ('query',)),
])
def test_senseless_settings_are_refused(lora):
  with pytest.raises(InputError, match='config.lora'):
    check_lora(lora)
