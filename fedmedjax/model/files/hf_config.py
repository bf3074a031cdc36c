"""Hyper-parameters between a Hugging Face config.json and `LlamaConfig`, both ways."""

import copy
import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import transformers

from fedmedjax.model.llama import LlamaConfig
from fedmedjax.types import InputError

_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
_MLP = ('gate_proj', 'up_proj', 'down_proj')


class Family(NamedTuple):
  """What all models of a model_type share beyond what transformers reads from their config.json."""

  architecture: str
  biases: tuple[str, ...] = ()                  # projections that have one whatever the file says
  bias_keys: dict[str, tuple[str, ...]] = {}    # setting -> projections that it gives one
  qk_norm: bool = False
  windowed: bool = False                        # whether the key sliding_window means anything
  layer_types: bool = False                     # whether the key layer_types does


FAMILIES = {
  'llama': Family(
    'LlamaForCausalLM', bias_keys={'attention_bias': _ATTENTION, 'mlp_bias': _MLP}),
  'mistral': Family('MistralForCausalLM', windowed=True),
  'qwen2': Family(
    'Qwen2ForCausalLM', biases=('q_proj', 'k_proj', 'v_proj'), windowed=True, layer_types=True),
  'qwen3': Family(
    'Qwen3ForCausalLM', bias_keys={'attention_bias': _ATTENTION}, qk_norm=True, windowed=True,
    layer_types=True),
}
# Names of one activation, of which config.json may have either.
_SILU = ('silu', 'swish')


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

  transformers' own class of the model_type reads them, so that defaults, older names and settings
  that stand in two places mean what they mean there.

  Args:
    settings: the file's content.
    origin: the file, for error messages.

  Raises:
    InputError: a setting has a value that transformers refuses or that this decoder does not
      compute; it is named.
  """
  kind = settings.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise InputError(
      f'{origin}: model_type={kind!r}: supported are {", ".join(FAMILIES)} (LLaMA 2 and 3, '
      'DeepSeek-R1-Distill-Llama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3)')
  family = FAMILIES[kind]
  if stored := settings.get('quantization_config'):
    method = stored.get('quant_method') if isinstance(stored, dict) else stored
    raise InputError(
      f'{origin}: quantization_config={method!r}: its weights are quantised, or transformers would '
      'quantise them; use the unquantised weights, and where they are it, take the entry out')
  with settings_of(origin):  # the class makes a list of them
    check_layers(int(settings.get('num_hidden_layers', 1)), origin)
  try:
    # Changed in place by the class; and a dtype would be looked up in torch.
    read = transformers.CONFIG_MAPPING[kind](**{
      key: value for key, value in copy.deepcopy(settings).items()
      if key not in ('model_type', 'dtype', 'torch_dtype')})
  except Exception as error:  # its checks raise many kinds
    raise InputError(f'{origin}: not a usable configuration: {error}') from None
  with settings_of(origin):
    if read.hidden_act not in _SILU:
      raise InputError(f"{origin}: hidden_act={read.hidden_act!r}: 'silu' is supported")
    heads, layers = int(read.num_attention_heads), int(read.num_hidden_layers)
    head_dim = int(getattr(read, 'head_dim', None) or read.hidden_size // max(heads, 1))
    if heads < 1 or read.num_key_value_heads < 1 or heads % read.num_key_value_heads:
      raise InputError(
        f'{origin}: num_attention_heads={heads}, num_key_value_heads={read.num_key_value_heads}: '
        'a multiple of a number > 0 is supported')
    theta, divisors = _rope(read.rope_parameters, head_dim, origin)
    biases = set(family.biases).union(*(
      names for key, names in family.bias_keys.items() if getattr(read, key)))
    return LlamaConfig(
      vocab_size=int(read.vocab_size),
      hidden_size=int(read.hidden_size),
      intermediate_size=int(read.intermediate_size),
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=int(read.num_key_value_heads),
      head_dim=head_dim,
      rms_norm_eps=float(read.rms_norm_eps),
      rope_theta=theta,
      max_position_embeddings=int(read.max_position_embeddings),
      tie_word_embeddings=bool(read.tie_word_embeddings),
      rope_divisors=divisors,
      biases=tuple(name for name in (*_ATTENTION, *_MLP) if name in biases),
      qk_norm=family.qk_norm,
      windows=_windows(family, read, layers, origin) if family.windowed else (),
    )


def _rope(rope: dict, head_dim: int, origin: str) -> tuple[float, tuple[float, ...]]:
  """(theta, divisors of the frequencies), () = all 1."""
  nested = [key for key, value in rope.items() if isinstance(value, dict)]
  if nested:
    raise InputError(
      f'{origin}: rope_parameters has an entry {nested[0]!r} of its own: the same for all layers '
      'are supported')
  if rope.get('partial_rotary_factor', 1.0) != 1.0:
    raise InputError(
      f'{origin}: partial_rotary_factor={rope["partial_rotary_factor"]!r}: 1 is supported')
  kind, theta = rope['rope_type'], float(rope['rope_theta'])
  if kind not in ROPE_TYPES:
    raise InputError(
      f'{origin}: rope_type={kind!r}: {" and ".join(map(repr, ROPE_TYPES))} are supported')
  return theta, ROPE_TYPES[kind](head_dim, theta, rope)


def _windows(family: Family, read: Any, layers: int, origin: str) -> tuple[int, ...]:
  """Per layer, the keys a query sees (0 = all); empty when all layers see all."""
  size = read.sliding_window
  if size is not None and size < 1:
    raise InputError(f'{origin}: sliding_window={size!r}: a number of tokens or null is supported')
  if not family.layer_types:
    return (int(size),) * layers if size else ()
  kinds = read.layer_types
  known = {'full_attention': 0} | ({'sliding_attention': int(size)} if size else {})
  if len(kinds) != layers or set(kinds) - set(known):
    raise InputError(
      f'{origin}: layer_types={kinds!r}: {layers} of {", ".join(known)} are supported'
      + ('' if size else ' where use_sliding_window or sliding_window says that there is none'))
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
    and (not windowed or family.windowed and not family.layer_types)
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
