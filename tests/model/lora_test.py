"""Adapters: initialisation, sizes, and settings that are refused."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model.llama import PROJECTIONS
from fedmedjax.model.lora import LoraConfig, check_lora, init_adapter
from fedmedjax.types import InputError


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
  """docs/methods.md: r=16 on all of Llama-3.1-8B and 3.2-1B, on the attention of Qwen3-4B."""
  import dataclasses
  eight = dataclasses.replace(
    TINY, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32,
    num_kv_heads=8, head_dim=128)
  one = dataclasses.replace(
    eight, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64)
  qwen = dataclasses.replace(
    TINY, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32, num_kv_heads=8,
    head_dim=128)
  for config, targets, expected in (
      (eight, PROJECTIONS, 41_943_040), (one, PROJECTIONS, 11_272_192),
      (qwen, PROJECTIONS[:4], 11_796_480)):
    shapes = jax.eval_shape(
      lambda key, c=config, t=targets: init_adapter(key, c, LoraConfig(16, 64.0, t)),
      jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize('lora', [
  LoraConfig(0, 8.0, ('q_proj',)), LoraConfig(4, -1.0, ('q_proj',)), LoraConfig(4, 8.0, ()),
  LoraConfig(4, 8.0, ('q_proj', 'q_proj')), LoraConfig(4, 8.0, ('query',)),
])
def test_senseless_settings_are_refused(lora):
  with pytest.raises(InputError, match='config.lora'):
    check_lora(lora)


def test_targets_are_those_of_the_model():
  """Fused blocks have other projections; a name that none has is refused before a model is read."""
  fused = dataclasses.replace(TINY, fused=True)
  check_lora(LoraConfig(4, 8.0, ('qkv_proj', 'o_proj', 'gate_up_proj', 'down_proj')), fused)
  check_lora(LoraConfig(4, 8.0, PROJECTIONS), TINY)
  for targets, config in ((('q_proj', 'o_proj'), fused), (('qkv_proj',), TINY)):
    check_lora(LoraConfig(4, 8.0, targets))
    with pytest.raises(InputError, match=rf"config.lora.targets.*{config.projections[0]}.*this"):
      check_lora(LoraConfig(4, 8.0, targets), config)
