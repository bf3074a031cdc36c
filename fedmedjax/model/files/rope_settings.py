"""What a config.json says of the rotation of queries and keys, as fields of `LlamaConfig`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedmedjax.model.llama_config import LlamaConfig
from fedmedjax.types import InputError


def llama3_divisors(
  head_dim: int, theta: float, *, factor: float, low_freq_factor: float, high_freq_factor: float,
  original_max_position_embeddings: int,
) -> tuple[float, ...]:
  """Llama 3.1's divisors of the rotary frequencies (`rope_type: llama3`), head_dim / 2 numbers.

  Wavelengths beyond the original context are divided by `factor`, short ones kept, and the band
  between is blended linearly in (original context / wavelength).
  """
  frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  turns = original_max_position_embeddings * frequency / (2 * np.pi)
  blend = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
  return tuple((1.0 / (blend + (1.0 - blend) / factor)).tolist())


def long_rope_factor(context: int, original: int) -> float:
  """LongRoPE's factor of rotated queries and keys: sqrt(1 + ln(context / original) / ln original).

  Ding et al., arXiv:2402.13753; 1 where the context was not extended.
  """
  return math.sqrt(1 + math.log(context / original) / math.log(original)) if (
    context > original) else 1.0


def _long_rope(width: int, rope: dict[str, Any], context: int) -> dict[str, Any]:
  """Phi-3's two sets of divisors, for texts within the original context and for longer ones."""
  original = int(rope['original_max_position_embeddings'])
  short, long = (tuple(map(float, rope[key])) for key in ('short_factor', 'long_factor'))
  stated = rope.get('attention_factor')
  extended = original * float(rope['factor']) if rope.get('factor') else context
  return {
    'rope_divisors': short, 'long_rope_divisors': long, 'rope_original': original,
    'rope_factor': long_rope_factor(extended, original) if stated is None else float(stated)}


# rope_type -> (rotated dimensions, theta, the entry in config.json, the model's context) -> fields.
ROPE_TYPES: dict[str, Callable[[int, float, dict[str, Any], int], dict[str, Any]]] = {
  'default': lambda width, theta, rope, context: {},
  'linear': lambda width, theta, rope, context: {
    'rope_divisors': (float(rope['factor']),) * (width // 2)},
  'llama3': lambda width, theta, rope, context: {'rope_divisors': llama3_divisors(
    width, theta, factor=float(rope['factor']),
    low_freq_factor=float(rope['low_freq_factor']),
    high_freq_factor=float(rope['high_freq_factor']),
    original_max_position_embeddings=int(rope['original_max_position_embeddings']))},
  'longrope': lambda width, theta, rope, context: _long_rope(width, rope, context),
}


def rope_fields(
  rope: dict[str, Any], head_dim: int, context: int, origin: str, *, local: bool, partial: bool
) -> dict[str, Any]:
  """The fields of `LlamaConfig` that rotate.

  Args:
    rope: the entry rope_parameters, as transformers' class of the model_type has read it.
    head_dim: d.
    context: the most positions of the model.
    origin: the file, for error messages.
    local: whether layers with a window have an entry of their own.
    partial: whether partial_rotary_factor may be below 1.

  Raises:
    InputError: a setting is not computed here.
  """
  fields = {}
  if local:
    rope, windowed = rope['full_attention'], rope['sliding_attention']
    if windowed['rope_type'] != 'default':
      raise InputError(
        f'{origin}: rope_type={windowed["rope_type"]!r} of sliding_attention: '
        "'default' is supported")
    fields['local_rope_theta'] = float(windowed['rope_theta'])
  nested = [key for key, value in rope.items() if isinstance(value, dict)]
  if nested:
    raise InputError(
      f'{origin}: rope_parameters has an entry {nested[0]!r} of its own: the same for all layers '
      'are supported')
  share = rope.get('partial_rotary_factor', 1.0)
  width = int(head_dim * share)
  if share != 1.0 and (not partial or width % 2 or not 0 < width <= head_dim):
    raise InputError(
      f'{origin}: partial_rotary_factor={share!r}: '
      + ('an even number of dimensions is supported' if partial else '1 is supported'))
  kind, theta = rope['rope_type'], float(rope['rope_theta'])
  if kind not in ROPE_TYPES:
    raise InputError(
      f'{origin}: rope_type={kind!r}: {" and ".join(map(repr, ROPE_TYPES))} are supported')
  fields |= {'rope_theta': theta, 'rotary_dim': 0 if width == head_dim else width}
  fields |= ROPE_TYPES[kind](width, theta, rope, context)
  for name in ('rope_divisors', 'long_rope_divisors'):
    found = fields.get(name, ())
    if found and (len(found) != width // 2 or not all(0 < x < math.inf for x in found)):
      raise InputError(
        f'{origin}: rope_type={kind!r} with factors {list(found)}: {width // 2} finite numbers > 0 '
        'are supported')
  return fields


def rope_entry(config: LlamaConfig, origin: str) -> dict[str, Any]:
  """The entry rope_parameters for weights that came without a config.json.

  Raises:
    InputError: the divisors, read from a GGUF file, do not tell the settings they came from.
  """
  width = config.rotary_dim or config.head_dim
  entry = {'rope_type': 'default', 'rope_theta': config.rope_theta}
  if width < config.head_dim:
    entry['partial_rotary_factor'] = width / config.head_dim
  if config.long_rope_divisors:
    return entry | {
      'rope_type': 'longrope', 'short_factor': list(config.rope_divisors),
      'long_factor': list(config.long_rope_divisors), 'attention_factor': config.rope_factor,
      'original_max_position_embeddings': config.rope_original}
  if len(set(config.rope_divisors)) == 1:
    return entry | {'rope_type': 'linear', 'factor': config.rope_divisors[0]}
  if config.rope_divisors:
    raise InputError(
      f'{origin}: scaled rotary frequencies of a GGUF file cannot be written to config.json; start '
      'from the safetensors folder of the model')
  return entry
