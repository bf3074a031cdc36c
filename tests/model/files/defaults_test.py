"""A config.json means here what it means to transformers: defaults, older names, contradictions.

No weights: of a model that transformers builds from the same settings, on the device 'meta', the
names and shapes of its tensors, its rotary frequencies, its epsilon and its windows are compared.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES

from fedmedjax.model.files.convert import HUGGING_FACE, expected_shapes, tensor_names
from fedmedjax.model.files.hf_config import config_from_hugging_face, to_hugging_face
from fedmedjax.model.llama import rope_frequencies
from fedmedjax.types import InputError

transformers.logging.set_verbosity_error()
LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}


def written(name: str) -> dict:
  """What transformers writes for a family, with heads that every default's groups divide."""
  settings = FAMILIES[name].to_dict() | dict(hidden_size=128, num_attention_heads=32)
  if name == 'phi3':  # its factors fit one width of heads
    settings |= dict(rope_parameters=None, partial_rotary_factor=1.0)
  return {key: value for key, value in settings.items() if key not in ('dtype', 'layer_types')}


def theirs(settings: dict):
  """(tensors {name: shape}, frequencies, epsilon, windows) of transformers' model, or None."""
  try:
    config = transformers.CONFIG_MAPPING[settings['model_type']].from_dict(copy.deepcopy(
      {key: value for key, value in settings.items() if key != 'model_type'}))
    with torch.device('meta'):
      model = transformers.AutoModelForCausalLM.from_config(config)
    rotary = type(model.model.rotary_emb)(config)
    frequencies = getattr(rotary, 'inv_freq', getattr(rotary, 'full_attention_inv_freq', None))
  except Exception:
    return None
  shapes = {name: tuple(values.shape) for name, values in model.named_parameters()}
  layers = model.model.layers
  windows = [
    (config.sliding_window if config.model_type in ('mistral', 'phi3') else
     getattr(layer.self_attn, 'sliding_window', None)) or 0 for layer in layers]
  norm = model.model.norm
  return (shapes, frequencies.double().numpy(), getattr(norm, 'variance_epsilon', norm.__dict__.get(
    'eps')), tuple(windows) if any(windows) else ())


def ours(settings: dict):
  """The same of the configuration that is read here, or None where it is refused."""
  try:
    config = config_from_hugging_face(settings, 'config.json')
  except InputError as error:
    assert '\n' not in str(error)
    return None
  shapes = expected_shapes(config)
  return ({name: shapes[path] for name, path, _ in tensor_names(config, HUGGING_FACE)},
          rope_frequencies(config), config.rms_norm_eps, config.windows)


def assert_same(settings: dict) -> None:
  found, expected = ours(settings), theirs(settings)
  assert (found is None) == (expected is None), settings
  if expected is not None:
    assert found[0] == expected[0] and found[2:] == expected[2:], settings
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


NAMES = ('llama31', 'mistral', 'qwen2', 'qwen3', 'gemma2', 'gemma3', 'phi3')
KEYS = ('rms_norm_eps', 'head_dim', 'num_key_value_heads', 'attention_bias', 'mlp_bias',
        'rope_parameters', 'sliding_window', 'use_sliding_window', 'max_window_layers',
        'tie_word_embeddings', 'hidden_act', 'max_position_embeddings', 'num_hidden_layers')


@pytest.mark.parametrize('name', NAMES)
def test_what_a_file_leaves_out(name):
  """Each key that may be missing, then all of them; null is not the same as missing."""
  whole = written(name)
  for key in KEYS:
    assert_same({k: value for k, value in whole.items() if k != key})
  assert_same({k: value for k, value in whole.items() if k not in KEYS})
  for key in ('num_key_value_heads', 'rope_parameters', 'sliding_window'):
    # A Gemma has layers with a window, and without its size fails once it reads a text.
    if key == 'sliding_window' and name.startswith('gemma'):
      with pytest.raises(InputError, match='layer_types'):
        config_from_hugging_face(whole | {key: None}, 'config.json')
    else:
      assert_same(whole | {key: None})
  # Qwen2 and Phi-3 stumble over a null there; the width over the heads is what they would take.
  if name in ('qwen2', 'phi3'):
    assert ours(whole | dict(head_dim=None))[0] == theirs(whole | dict(head_dim=4))[0]
  else:
    assert_same(whole | dict(head_dim=None))


@pytest.mark.parametrize('change', [
  dict(rope_scaling={'rope_type': 'linear', 'factor': 2.0}),
  dict(attention_bias=True), dict(mlp_bias=True), dict(head_dim=12), dict(hidden_act='swish'),
  # The rotation in two places, new and old.
  dict(rope_theta=7e3), dict(rope_scaling={'rope_type': 'default', 'rope_theta': 9e3}),
  dict(rope_scaling={'type': 'llama3', 'original_max_position_embeddings': 64} | LLAMA3,
       rope_parameters={'rope_type': 'default', 'rope_theta': 5e5}, rope_theta=7e3),
  dict(rope_scaling={'rope_type': 'llama3'} | LLAMA3, rope_parameters=None, rope_theta=7e3),
  dict(rope_parameters={'rope_type': 'llama3', 'rope_theta': 5e5,
                        'original_max_position_embeddings': 64} | LLAMA3,
       original_max_position_embeddings=128),
  dict(rope_parameters={'factor': 4.0}, rope_theta=3e3), dict(rope_scaling=None, rope_theta=3e3),
  # Windows that one family reads and another does not.
  dict(sliding_window=7), dict(use_sliding_window=True, sliding_window=7, max_window_layers=2),
  dict(use_sliding_window=False, sliding_window=7), dict(use_sliding_window=True),
  dict(hidden_size='wide'), dict(num_attention_heads=0), dict(rms_norm_eps=None),
], ids=str)
def test_settings_that_contradict_each_other(change):
  for name in NAMES:
    assert_same(written(name) | change)


@pytest.mark.parametrize('name', FAMILIES)
def test_what_is_written_for_weights_without_a_config_is_read_back(name):
  """As for a GGUF file: biases beside a family's fixed ones and Llama 3.1's divisors excepted."""
  config = config_from_hugging_face(FAMILIES[name].to_dict(), 'config.json')
  if config.rope_divisors and name.startswith('llama3'):
    with pytest.raises(InputError, match='scaled rotary frequencies of a GGUF file'):
      to_hugging_face(config, 'm.gguf')
    config = dataclasses.replace(config, rope_divisors=())
  if name in ('llama_biased', 'gemma3'):
    with pytest.raises(InputError, match='no Hugging Face model type has this'):
      to_hugging_face(config, 'm.gguf')
    config = dataclasses.replace(config, biases=())
  assert config_from_hugging_face(to_hugging_face(config, 'm.gguf'), 'config.json') == config


def test_layer_types_beside_a_window():
  """Mistral has one window for all layers, whatever they say; a Qwen's layers may differ."""
  mixed = ['full_attention', 'sliding_attention', 'full_attention']
  of = {name: written(name) | dict(layer_types=mixed, sliding_window=7, use_sliding_window=True)
        for name in NAMES}
  for name in NAMES:
    assert_same(of[name])
  assert ours(of['mistral'])[3] == (7, 7, 7) and ours(of['qwen3'])[3] == (0, 7, 0)
  assert ours(of['llama31'])[3] == ()


@pytest.mark.parametrize('change, message', [
  (dict(rope_parameters={'full_attention': {'rope_type': 'default', 'rope_theta': 1e4}},
        layer_types=['full_attention'] * 3), 'rope_parameters has an entry'),
  (dict(layer_types=['sliding_attention'] * 3, use_sliding_window=False), 'use_sliding_window'),
  (dict(layer_types=['full_attention'] * 2), 'layer_types|number of layers'),
  (dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
  (dict(rope_parameters={'rope_theta': 1e4, 'partial_rotary_factor': 0.5}), 'partial_rotary'),
  (dict(rope_scaling={'type': 'dynamic', 'factor': 2.0}), "rope_type='dynamic'"),
  (dict(rope_scaling={'type': 'linear', 'factor': -2.0}), 'finite numbers > 0|not a usable'),
  (dict(num_hidden_layers=10**9), '1000000000 layers'),
])
def test_what_neither_computes_is_named(change, message):
  with pytest.raises(InputError, match=message):
    config_from_hugging_face(written('qwen3') | change, 'config.json')
