"""Hyper-parameters between a Hugging Face config.json and `LlamaConfig`, both ways."""

import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.model.llama import LlamaConfig
from fedmedjax.types import InputError

_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
_MLP = ('gate_proj', 'up_proj', 'down_proj')


class Family(NamedTuple):
  """Features that all models of a model_type share, and defaults for keys of config.json."""

  architecture: str
  biases: tuple[str, ...] = ()
  qk_norm: bool = False
  windowed: bool = False      # whether the key sliding_window means anything
  defaults: dict[str, Any] = {}  # never changed


FAMILIES = {
  'llama': Family('LlamaForCausalLM'),
  'mistral': Family('MistralForCausalLM', windowed=True, defaults={'sliding_window': 4096}),
  'qwen2': Family(
    'Qwen2ForCausalLM', biases=('q_proj', 'k_proj', 'v_proj'), windowed=True,
    defaults={'use_sliding_window': False, 'max_window_layers': 28}),
  'qwen3': Family(
    'Qwen3ForCausalLM', qk_norm=True, windowed=True,
    defaults={'use_sliding_window': False, 'max_window_layers': 28}),
}


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


# rope_type -> (head_dim, theta, the entry in config.json) -> divisors; () = all 1.
ROPE_TYPES: dict[str, Callable[[int, float, dict[str, Any]], tuple[float, ...]]] = {
  'default': lambda head_dim, theta, rope: (),
  'llama3': lambda head_dim, theta, rope: llama3_divisors(
    head_dim, theta, factor=float(rope['factor']),
    low_freq_factor=float(rope['low_freq_factor']),
    high_freq_factor=float(rope['high_freq_factor']),
    original_max_position_embeddings=int(rope['original_max_position_embeddings'])),
}

_MOST_LAYERS = 10_000


@contextmanager
def settings_of(origin: str):
  """A context that turns errors of reading a file's settings into an InputError naming `origin`."""
  try:
    yield
  except InputError:
    raise
  except KeyError as error:
    raise InputError(f'{origin}: key {error.args[0]!r} is missing') from None
  except (
      TypeError, AttributeError, ValueError, LookupError, ArithmeticError, re.error) as error:
    raise InputError(f'{origin}: not a usable configuration: {error}') from None


def check_layers(layers: int, origin: str) -> None:
  """Raises InputError for a number of layers that no model has, before anything is allocated."""
  if not 1 <= layers <= _MOST_LAYERS:
    raise InputError(f'{origin}: {layers} layers; 1 to {_MOST_LAYERS} are supported')


def config_from_hugging_face(settings: dict[str, Any], origin: str) -> LlamaConfig:
  """The hyper-parameters in the settings of a config.json.

  Args:
    settings: the file's content.
    origin: the file, for error messages.

  Raises:
    InputError: a key is missing, or has a value that this decoder does not compute; it is named.
  """
  kind = settings.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise InputError(
      f'{origin}: model_type={kind!r}: supported are {", ".join(FAMILIES)} (LLaMA 2 and 3, '
      'DeepSeek-R1-Distill-Llama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3)')
  family = FAMILIES[kind]
  settings = family.defaults | settings
  with settings_of(origin):
    if settings.get('hidden_act', 'silu') != 'silu':
      raise InputError(f"{origin}: hidden_act={settings['hidden_act']!r}: 'silu' is supported")
    if settings.get('partial_rotary_factor', 1.0) != 1.0:
      raise InputError(
        f'{origin}: partial_rotary_factor={settings["partial_rotary_factor"]!r}: 1 is supported')
    # transformers 5 moved theta and scaling into one entry; older files keep them apart.
    rope = settings.get('rope_parameters') or settings.get('rope_scaling') or {}
    theta = float(rope.get('rope_theta', settings.get('rope_theta', 10000.0)))
    heads, layers = int(settings['num_attention_heads']), int(settings['num_hidden_layers'])
    check_layers(layers, origin)
    head_dim = int(settings.get('head_dim') or settings['hidden_size'] // heads)
    biases = set(family.biases)
    biases |= set(_ATTENTION if settings.get('attention_bias') else ())
    biases |= set(_MLP if settings.get('mlp_bias') else ())
    return LlamaConfig(
      vocab_size=int(settings['vocab_size']),
      hidden_size=int(settings['hidden_size']),
      intermediate_size=int(settings['intermediate_size']),
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=int(settings.get('num_key_value_heads') or heads),
      head_dim=head_dim,
      rms_norm_eps=float(settings['rms_norm_eps']),
      rope_theta=theta,
      max_position_embeddings=int(settings['max_position_embeddings']),
      tie_word_embeddings=bool(settings.get('tie_word_embeddings', False)),
      rope_divisors=_rope_divisors(rope, head_dim, theta, origin),
      biases=tuple(name for name in (*_ATTENTION, *_MLP) if name in biases),
      qk_norm=family.qk_norm,
      windows=_windows(settings, layers, origin) if family.windowed else (),
    )


def _rope_divisors(rope: dict, head_dim: int, theta: float, origin: str) -> tuple[float, ...]:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ROPE_TYPES:
    raise InputError(
      f'{origin}: rope_type={kind!r}: {" and ".join(map(repr, ROPE_TYPES))} are supported')
  return ROPE_TYPES[kind](head_dim, theta, rope)


def _windows(settings: dict, layers: int, origin: str) -> tuple[int, ...]:
  """Per layer, the keys a query sees (0 = all); empty when all layers see all."""
  size = settings.get('sliding_window')
  if not size or settings.get('use_sliding_window', True) is False:
    return ()
  kinds = settings.get('layer_types')
  if kinds is None:
    first = int(settings.get('max_window_layers', 0))
    kinds = ['full_attention'] * min(first, layers) + ['sliding_attention'] * (layers - first)
  known = {'full_attention': 0, 'sliding_attention': int(size)}
  if len(kinds) != layers or set(kinds) - set(known):
    raise InputError(
      f'{origin}: layer_types={kinds!r}: {layers} of {", ".join(known)} are supported')
  windows = tuple(known[kind] for kind in kinds)
  return windows if any(windows) else ()


def to_hugging_face(config: LlamaConfig, origin: str) -> dict[str, Any]:
  """The content of a config.json that transformers reads, for weights that came without one.

  The family is the first whose fixed values are those of `config`.

  Raises:
    InputError: no family has this combination of features, or frequencies are scaled: divisors
      read from a GGUF file do not tell the settings they came from.
  """
  windowed = bool(config.windows)
  same = [
    kind for kind, family in FAMILIES.items()
    if family.biases == config.biases and family.qk_norm == config.qk_norm
    and (not windowed or family.windowed and 'sliding_window' in family.defaults)
    and len(set(config.windows)) < 2]
  if not same:
    raise InputError(f'{origin}: no Hugging Face model type has this combination of features')
  if config.rope_divisors:
    raise InputError(
      f'{origin}: scaled rotary frequencies of a GGUF file cannot be written to config.json; start '
      'from the safetensors folder of the model')
  return {
    'architectures': [FAMILIES[same[0]].architecture], 'model_type': same[0],
    'hidden_act': 'silu',
    'vocab_size': config.vocab_size, 'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size, 'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim, 'rms_norm_eps': config.rms_norm_eps,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_theta},
    'max_position_embeddings': config.max_position_embeddings,
    'tie_word_embeddings': config.tie_word_embeddings,
    'sliding_window': config.windows[0] if windowed else None,
  }
