"""A training step on every kind of block is PEFT's, and its adapters go to PEFT and come back.

One step of the families whose blocks are unlike LLaMA's: norms of 1 + w after each half with caps,
two rotary bases, fused projections.
"""

import warnings

import jax
import numpy as np
import peft
import pytest
import torch
from families import FAMILIES, build, save

from fedmedjax.data import pack
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.model.files.load import load_model
from fedmedjax.model.files.peft import load_peft, save_peft
from fedmedjax.model.llama import Llama
from fedmedjax.model.loss import packed_attention, packed_loss


def tuned(name: str, folder):
  """A model with an adapter on all its linear layers, made by PEFT, and saved to `folder`."""
  torch.manual_seed(1)
  with warnings.catch_warnings():
    # PEFT's own warnings about its dependencies are not ours to mend.
    warnings.simplefilter('ignore')
    model = peft.get_peft_model(build(FAMILIES[name]), peft.LoraConfig(
      task_type='CAUSAL_LM', r=3, lora_alpha=6, target_modules='all-linear'))
    with torch.no_grad():
      for key, weight in model.named_parameters():
        if 'lora_B' in key:
          weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
  return model


def their_step(model, sequences) -> tuple[float, dict]:
  """Summed loss of completions, each example alone, and {PEFT's name: gradient}."""
  total = 0.0
  for tokens, begin in sequences:
    logits = model(torch.tensor(tokens[None])).logits[0, begin - 1:-1]
    total = total + torch.nn.functional.cross_entropy(
      logits, torch.tensor(tokens[begin:]), reduction='sum')
  total.backward()
  return float(total.detach()), {
    name.replace('.default', ''): weight.grad.numpy()
    for name, weight in model.named_parameters() if 'lora_' in name}


@pytest.mark.parametrize('name', [
  'gemma2', *(pytest.param(name, marks=pytest.mark.slow) for name in ('phi3', 'gemma3'))])
def test_a_packed_step_is_that_of_peft(name, tmp_path):
  """Loss and the gradient of every factor, to 1e-4 of its length; then PEFT reads what we write."""
  model = tuned(name, tmp_path / 'theirs')
  base = load_model(save(build(FAMILIES[name]), tmp_path / 'model'))
  adapter, lora = load_peft(tmp_path / 'theirs', base.config)
  assert set(lora.targets) == set(base.config.projections)
  rng = np.random.default_rng(0)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = [
    TokenExample(np.r_[instruction[-1:], rng.integers(3, 97, n)].astype(np.int32), n // 2)
    for n in (9, 20, 14, 5)]
  batch = pack.pack(
    instruction, members, pack.plan_shape([members], 11, 'completion'), 'completion')
  step = jax.jit(jax.value_and_grad(lambda adapter, base_params: packed_loss(
    Llama(base.config, packed_attention, lora_scale=lora.scale), adapter, base_params, batch)[0]))
  value, gradient = step(adapter, base.params)
  expected, slopes = their_step(model, [
    (np.concatenate([instruction[:-1], member.tokens]).astype(int), 11 + member.prompt_length)
    for member in members])
  assert abs(value - expected) < 1e-5 * expected
  assert len(slopes) == 2 * 3 * len(lora.targets)
  for key, slope in slopes.items():
    layer, projection, factor = key.split('.')[4], key.split('.')[6], key.split('.')[7][-1]
    found = gradient['layers'][projection][factor.lower()][int(layer)].T
    assert np.linalg.norm(slope) > 0, key
    assert np.linalg.norm(found - slope) < 1e-4 * np.linalg.norm(slope), key
  save_peft(adapter, lora, tmp_path / 'ours', 'tiny')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    again = peft.PeftModel.from_pretrained(build(FAMILIES[name]), tmp_path / 'ours')
  for (_, one), (key, two) in zip(
      model.named_parameters(), again.named_parameters(), strict=True):
    np.testing.assert_array_equal(one.detach().numpy(), two.detach().numpy(), err_msg=key)
