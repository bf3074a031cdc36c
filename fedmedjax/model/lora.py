"""LoRA adapters as plain trees: make, count, and exchange with the PEFT file format.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. An adapter is
{'layers': {projection: {'a': f32[L, D_in, rank], 'b': f32[L, rank, D_out]}}}, the `lora`
collection of `model/llama.py`. In PEFT's files A is [rank, D_in] and B is [D_out, rank], one
pair of tensors a layer.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from fedmedjax.model.llama import PROJECTIONS, LlamaConfig
from fedmedjax.types import InputError


class LoraConfig(NamedTuple):
  """Rank, alpha (the scale is alpha / rank) and the adapted projections."""

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def check_lora(lora: LoraConfig) -> None:
  """Raises InputError unless every target exists and rank and alpha make sense."""
  unknown = sorted(set(lora.targets) - set(PROJECTIONS))
  if unknown or not lora.targets or len(set(lora.targets)) != len(lora.targets):
    raise InputError(
      f'config.lora.targets={lora.targets!r}: a non-empty subset of {PROJECTIONS}, '
      'each once, is allowed')
  if lora.rank < 1:
    raise InputError(f'config.lora.rank={lora.rank}: an integer >= 1 is allowed')
  if not (lora.alpha > 0 and math.isfinite(lora.alpha)):
    raise InputError(f'config.lora.alpha={lora.alpha}: a finite number > 0 is allowed')


def init_adapter(key: jax.Array, config: LlamaConfig, lora: LoraConfig) -> dict:
  """A fresh adapter: A as PEFT draws it, U(-1/sqrt(D_in), 1/sqrt(D_in)), and B zero.

  PEFT calls Kaiming-uniform with a = sqrt(5) on A, which is exactly this bound. The factors are
  float32 whatever the base is: updates of 1e-4 would vanish in bfloat16.
  """
  layers = {}
  # Sorted names: a projection's draw must not depend on the order in which targets are listed.
  for name in sorted(lora.targets):
    d_in, d_out = config.projection_shape(name)
    bound = d_in**-0.5
    layers[name] = {
      'a': jax.random.uniform(
        jax.random.fold_in(key, PROJECTIONS.index(name)),
        (config.num_layers, d_in, lora.rank), jnp.float32, -bound, bound),
      'b': jnp.zeros((config.num_layers, lora.rank, d_out), jnp.float32),
    }
  return {'layers': layers}


# Projection -> its module inside a Hugging Face LLaMA block.
PEFT_MODULES = {
  name: f"{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}"
  for name in PROJECTIONS
}


def _peft_key(layer: int, name: str, factor: str) -> str:
  return f'base_model.model.model.layers.{layer}.{PEFT_MODULES[name]}.lora_{factor}.weight'


def save_peft(adapter: dict, lora: LoraConfig, folder: Path, base_name: str) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them.

  Args:
    adapter: the tree above.
    lora: rank, alpha, targets.
    folder: made when absent; each file is replaced atomically.
    base_name: what `base_model_name_or_path` says; PEFT shows it, it is not loaded from there.
  """
  tensors = {}
  for name, factors in adapter['layers'].items():
    # a [L, in, r] and b [L, r, out] become [r, in] and [out, r], contiguous as the format asks.
    for factor, values in (('A', factors['a']), ('B', factors['b'])):
      for layer, matrix in enumerate(np.asarray(values)):
        tensors[_peft_key(layer, name, factor)] = np.ascontiguousarray(matrix.T)
  settings = {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base_name,
    'r': lora.rank, 'lora_alpha': lora.alpha, 'lora_dropout': 0.0, 'bias': 'none',
    'target_modules': sorted(lora.targets), 'fan_in_fan_out': False, 'use_rslora': False,
    'use_dora': False, 'inference_mode': True, 'init_lora_weights': True,
  }
  folder.mkdir(parents=True, exist_ok=True)
  part = folder / 'adapter_model.safetensors.part'
  safetensors.numpy.save_file(tensors, part, metadata={'format': 'pt'})
  part.replace(folder / 'adapter_model.safetensors')
  part = folder / 'adapter_config.json.part'
  part.write_text(json.dumps(settings, indent=2) + '\n')
  part.replace(folder / 'adapter_config.json')


def load_peft(folder: Path, config: LlamaConfig) -> tuple[dict, LoraConfig]:
  """Reads a plain LoRA adapter in PEFT format -> (adapter, its LoraConfig).

  Raises InputError naming the file and the key when a tensor is missing, unknown or misshapen,
  or when the adapter uses what is not plain LoRA.
  """
  try:
    settings = json.loads((folder / 'adapter_config.json').read_text())
    tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise InputError(f'{folder}: not a PEFT adapter: {error}') from None
  for flag in ('use_dora', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'modules_to_save'):
    if settings.get(flag):
      raise InputError(f'{folder}/adapter_config.json: {flag}={settings[flag]!r} is not supported')
  if settings.get('peft_type') != 'LORA':
    raise InputError(
      f"{folder}/adapter_config.json: peft_type={settings.get('peft_type')!r}: LORA is allowed")
  lora = LoraConfig(
    int(settings['r']), float(settings['lora_alpha']), tuple(settings['target_modules']))
  check_lora(lora)
  layers = {}
  for name in sorted(lora.targets):
    d_in, d_out = config.projection_shape(name)
    layers[name] = {
      'a': _stack(tensors, name, 'A', config.num_layers, (lora.rank, d_in), folder),
      'b': _stack(tensors, name, 'B', config.num_layers, (d_out, lora.rank), folder),
    }
  if tensors:
    raise InputError(f'{folder}: unknown tensor {sorted(tensors)[0]!r} in the adapter file')
  return {'layers': layers}, lora


def _stack(tensors, name, factor, num_layers, shape, folder) -> jax.Array:
  matrices = []
  for layer in range(num_layers):
    key = _peft_key(layer, name, factor)
    if key not in tensors:
      raise InputError(f'{folder}: tensor {key!r} is missing from the adapter file')
    matrix = tensors.pop(key)
    if matrix.shape != shape:
      raise InputError(f'{folder}: tensor {key!r} has shape {matrix.shape}, expected {shape}')
    matrices.append(matrix.T.astype(np.float32))
  return jnp.asarray(np.stack(matrices))
