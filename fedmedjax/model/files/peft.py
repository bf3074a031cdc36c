"""Adapters as files of the PEFT library: adapter_config.json and adapter_model.safetensors.

In PEFT's files A is [rank, D_in] and B is [D_out, rank], one pair of tensors a layer; each pair
has a scale of its own, alpha / rank, which `rank_pattern` and `alpha_pattern` can change. Here
all pairs of an adapter have one scale (`lora.py`).
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from fedmedjax.model.files.folder import check_dtype, check_pointer, write_folder
from fedmedjax.model.files.hf_config import settings_of
from fedmedjax.model.llama_config import LlamaConfig
from fedmedjax.model.lora import PEFT_MODULES, LoraConfig, check_lora
from fedmedjax.types import InputError

# The name of the adapter, such as 'default', stands in the keys of a model's own state_dict, which
# some programs save as it is; PEFT's files leave it out. In front of the layers stands what was
# wrapped around the model.
_KEY = re.compile(
  r'(?P<around>(?:(?:base_model|model|module|_orig_mod|language_model)\.)*)layers\.(?P<layer>\d+)\.'
  r'(?P<module>(?:self_attn|mlp)\.(?P<projection>\w+))\.lora_(?P<factor>[AB])'
  r'(?:\.(?P<adapter>[^.]+))?\.weight')

# Settings with which an adapter is not plain LoRA on frozen weights, or changes the base besides.
_FOREIGN = (
  'use_dora', 'use_qalora', 'use_bdlora', 'lora_bias', 'modules_to_save', 'layer_replication',
  'trainable_token_indices', 'target_parameters', 'alora_invocation_tokens', 'arrow_config',
  'corda_config', 'loftq_config', 'lora_ga_config', 'kasa_config', 'velora_config',
  'monteclora_config', 'megatron_config', 'fan_in_fan_out',
)
# Initialisations that move part of the base's weights into the adapter.
_RESIDUAL_INITS = re.compile(r'(pissa|olora|corda|loftq|lora_ga).*', re.IGNORECASE)


def _peft_key(layer: int, name: str, factor: str, inside: str = '') -> str:
  return (
    f'base_model.model.model.{inside}layers.{layer}.{PEFT_MODULES[name]}.lora_{factor}.weight')


def save_peft(
  adapter: dict, lora: LoraConfig, folder: Path, base_name: str, inside: str = ''
) -> None:
  """Writes an adapter as `peft.PeftModel.from_pretrained` reads it.

  Args:
    adapter: factors a f32[L, D_in, rank] and b f32[L, rank, D_out], see `lora.py`; a projection
      whose rank is not `lora.rank` gets an entry in rank_pattern, and one in alpha_pattern that
      keeps its scale.
    lora: rank and alpha (the scale), targets.
    folder: made when absent; each file is replaced atomically.
    base_name: written as `base_model_name_or_path`; PEFT shows it, it is not loaded from there.
    inside: `BaseModel.inside`; what lies outside of it is told not to be adapted.
  """
  tensors, ranks, alphas = {}, {}, {}
  for name, factors in adapter['layers'].items():
    rank = factors['a'].shape[-1]
    if rank != lora.rank:
      ranks[name] = rank
      alphas[name] = lora.scale * (math.sqrt(rank) if lora.use_rslora else rank)
    # a [L, in, r] and b [L, r, out] become [r, in] and [out, r], contiguous as the format asks.
    for factor, values in (('A', factors['a']), ('B', factors['b'])):
      for layer, matrix in enumerate(np.asarray(values)):
        tensors[_peft_key(layer, name, factor, inside)] = np.ascontiguousarray(matrix.T)
  settings = {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base_name,
    'r': lora.rank, 'lora_alpha': lora.alpha, 'rank_pattern': ranks, 'alpha_pattern': alphas,
    'lora_dropout': 0.0, 'bias': 'none', 'target_modules': sorted(lora.targets),
    'fan_in_fan_out': False, 'use_rslora': lora.use_rslora, 'use_dora': False,
    'inference_mode': True, 'init_lora_weights': True,
  }
  if inside:  # the targets' names occur in the vision tower, too
    settings['target_modules'] = (
      rf'.*{re.escape(inside)}layers\.\d+\.\w+\.({"|".join(sorted(lora.targets))})')
  write_folder(
    folder, tensors, 'adapter_model.safetensors', settings, 'adapter_config.json')


def load_peft(folder: Path, config: LlamaConfig) -> tuple[dict, LoraConfig]:
  """Reads a LoRA adapter that PEFT or `save_peft` wrote -> (adapter f32[L, *p], its LoraConfig).

  Layers may have unlike ranks (shorter factors are padded with zeros) or none. Where pairs have
  unlike scales, the ratio to the adapter's scale goes into their B; otherwise every number stays
  as it is in the file, so that what `save_peft` wrote comes back bitwise.

  Raises:
    InputError: naming the file and the key when a tensor is unknown, without its partner or
      misshapen, or when the adapter is not plain LoRA.
  """
  path, weights = folder / 'adapter_config.json', folder / 'adapter_model.safetensors'
  check_pointer(path)
  check_pointer(weights)
  pickled = weights.with_suffix('.bin')
  if pickled.exists() and not weights.exists():
    raise InputError(_pickle_message(pickled, weights))
  try:
    settings = json.loads(path.read_text(encoding='utf-8-sig'))
    with safetensors.safe_open(weights, 'np') as archive:
      for key in archive.keys():
        check_dtype(weights, key, archive.get_slice(key))
      tensors = {key: archive.get_tensor(key) for key in archive.keys()}
  except InputError:
    raise
  except (OSError, ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
    raise InputError(f'{folder}: not a PEFT adapter: {error}') from None
  with settings_of(str(path)):
    return _plain_lora(settings, tensors, config, folder)


def _pickle_message(pickled: Path, weights: Path) -> str:
  """The error for an adapter that is only a pickle, with the command that converts it."""
  return (
    f'{pickled}: is a pickle and is not read, since it can run code; convert it once, where you '
    'trust it: python -c "import torch; from safetensors.torch import save_file; '
    f"save_file({{k: v.contiguous().clone() for k, v in torch.load('{pickled}', "
    f"map_location='cpu', weights_only=True).items()}}, '{weights}')\"")


def _plain_lora(
  settings: Any, tensors: dict[str, np.ndarray], config: LlamaConfig, folder: Path
) -> tuple[dict, LoraConfig]:
  """The adapter of a file's settings and tensors; see `load_peft`."""
  path = folder / 'adapter_config.json'
  _check_settings(settings, path)
  pairs = _pairs(tensors, config, folder)
  rank, alpha = int(settings['r']), float(settings['lora_alpha'])
  targets = tuple(sorted({name for name, _ in pairs}))
  lora = LoraConfig(rank, alpha, targets, bool(settings.get('use_rslora')))
  check_lora(lora)
  layers = {}
  for name in targets:
    d_in, d_out = config.projection_shape(name)
    widest = max(a.shape[0] for (other, _), (a, _) in pairs.items() if other == name)
    a_all = np.zeros((config.num_layers, d_in, widest), np.float32)
    b_all = np.zeros((config.num_layers, widest, d_out), np.float32)
    for layer in range(config.num_layers):
      if (name, layer) not in pairs:
        continue
      a, b = pairs[name, layer]
      used = _check_rank(settings, name, layer, len(a), path)
      ratio = _scale(settings, name, layer, used) / lora.scale
      a_all[layer, :, :used] = a.T
      # Not times 1.0 for the sake of speed: it says that nothing is rounded.
      b_all[layer, :used] = b.T if ratio == 1.0 else ratio * b.T
    layers[name] = {'a': jnp.asarray(a_all), 'b': jnp.asarray(b_all)}
  return {'layers': layers}, lora


def merged_kernel(kernel: jax.Array, factors: dict | None, layer: int, scale: float) -> jax.Array:
  """A layer's kernel with its adapter merged into it: kernel + scale * a[layer] @ b[layer].

  Args:
    kernel: [D_in, D_out] of one layer.
    factors: {'a': [L, D_in, rank], 'b': [L, rank, D_out]} of the projection, or None when it is not
      adapted.
    layer: its number, from 0.
    scale: alpha / rank.

  Returns:
    [D_in, D_out] in the kernel's dtype, formed in float32.
  """
  if factors is None:
    return kernel
  update = jnp.matmul(factors['a'][layer], factors['b'][layer], precision='highest')
  return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)


def _check_settings(settings: Any, path: Path) -> None:
  """Raises InputError unless the settings are those of plain LoRA."""
  if not isinstance(settings, dict) or settings.get('peft_type') != 'LORA':
    kind = settings.get('peft_type') if isinstance(settings, dict) else None
    raise InputError(f'{path}: peft_type={kind!r}: LORA is allowed')
  for key in _FOREIGN:
    if settings.get(key):
      raise InputError(f'{path}: {key}={settings[key]!r}: only plain LoRA is read')
  if settings.get('bias', 'none') != 'none':
    raise InputError(f"{path}: bias={settings['bias']!r}: 'none' is allowed")
  init = settings.get('init_lora_weights', True)
  if isinstance(init, str) and _RESIDUAL_INITS.fullmatch(init):
    raise InputError(
      f'{path}: init_lora_weights={init!r}: such adapters belong to a changed base; convert it '
      'with PEFT to plain LoRA first')
  for key in ('r', 'lora_alpha'):
    value = settings.get(key)
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
      raise InputError(f'{path}: {key}={value!r}: a finite number > 0 is allowed')


def _pairs(
  tensors: dict[str, np.ndarray], config: LlamaConfig, folder: Path
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
  """(projection, layer) -> (A [r, D_in], B [D_out, r]) in float32, checked against the model."""
  by_place: dict[tuple[str, int], dict[str, np.ndarray]] = {}
  matches = [match for match in map(_KEY.fullmatch, tensors) if match]
  for part, what in (('adapter', 'named'), ('around', 'of models named')):
    names = {match[part] or '' for match in matches}
    if len(names) > 1:
      raise InputError(
        f'{folder}: the adapter file holds several adapters, {what} '
        f'{", ".join(map(repr, sorted(names)))} in its keys; one is read')
  for key, values in tensors.items():
    match = _KEY.fullmatch(key)
    if (not match or PEFT_MODULES.get(match['projection']) != match['module']
        or match['projection'] not in config.projections
        or int(match['layer']) >= config.num_layers):
      raise InputError(f'{folder}: unknown tensor {key!r} for this model in the adapter file')
    by_place.setdefault((match['projection'], int(match['layer'])), {})[match['factor']] = values
  if not by_place:
    raise InputError(f'{folder}: the adapter file holds no tensor')
  pairs = {}
  for (name, layer), factors in sorted(by_place.items()):
    for factor in 'AB':
      if factor not in factors:
        raise InputError(
          f'{folder}: tensor {_peft_key(layer, name, factor)!r} is missing from the adapter file')
    d_in, d_out = config.projection_shape(name)
    rank = len(np.atleast_1d(factors['A']))
    for factor, shape in (('A', (rank, d_in)), ('B', (d_out, rank))):
      if factors[factor].shape != shape:
        raise InputError(
          f'{folder}: tensor {_peft_key(layer, name, factor)!r} has shape '
          f'{factors[factor].shape}, expected {shape}')
      if not np.isfinite(factors[factor].astype(np.float32)).all():
        raise InputError(
          f'{folder}: tensor {_peft_key(layer, name, factor)!r} holds values that are not finite')
    pairs[name, layer] = tuple(factors[factor].astype(np.float32) for factor in 'AB')
  return pairs


def _setting(settings: dict, pattern: str, default: str, name: str, layer: int) -> float:
  """A pair's own rank or alpha: the first pattern that ends its module's name, as PEFT picks it."""
  # As the module is called in a language model, and in a model that sees images, too.
  modules = [f'model.{inside}layers.{layer}.{PEFT_MODULES[name]}'
             for inside in ('', 'language_model.')]
  for key, value in (settings.get(pattern) or {}).items():
    if any(re.fullmatch(rf'(.*\.)?({key})', module) for module in modules):
      return value
  return settings[default]


def _check_rank(settings: dict, name: str, layer: int, rank: int, path: Path) -> int:
  """The rank of a pair's tensors; raises InputError where the settings state another one."""
  stated = _setting(settings, 'rank_pattern', 'r', name, layer)
  if stated != rank:
    raise InputError(
      f'{path}: says rank {stated} for layer {layer} {name}, its tensors have rank {rank}')
  return rank


def _scale(settings: dict, name: str, layer: int, rank: int) -> float:
  """The scale of a pair of tensors of this rank."""
  alpha = float(_setting(settings, 'alpha_pattern', 'lora_alpha', name, layer))
  return alpha / (math.sqrt(rank) if settings.get('use_rslora') else rank)
