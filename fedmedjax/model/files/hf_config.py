"""Hyper-parameters between a Hugging Face config.json and `LlamaConfig`, both ways."""

import copy
import math
import re
from contextlib import contextmanager
from typing import Any, NamedTuple

import transformers

from fedmedjax.model.files.rope_settings import llama3_divisors as llama3_divisors
from fedmedjax.model.files.rope_settings import rope_entry, rope_fields
from fedmedjax.model.llama_config import LlamaConfig
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
  activation: str = 'hidden_act'                # key of the gate's nonlinearity
  local_rope: bool = False                      # whether layers with a window rotate on their own
  partial_rotary: bool = False                  # whether partial_rotary_factor may be below 1
  values: dict[str, Any] = {}                   # fields of LlamaConfig that all its models share
  numbers: dict[str, str] = {}                  # field -> key of a number, which null makes 0


_GEMMA = {'norm_plus_one': True, 'norms_after': True, 'scaled_embedding': True}
_GEMMA_NUMBERS = {
  'query_scalar': 'query_pre_attn_scalar', 'logit_cap': 'final_logit_softcapping'}
FAMILIES = {
  'llama': Family(
    'LlamaForCausalLM', bias_keys={'attention_bias': _ATTENTION, 'mlp_bias': _MLP}),
  'mistral': Family('MistralForCausalLM', windowed=True),
  'qwen2': Family(
    'Qwen2ForCausalLM', biases=('q_proj', 'k_proj', 'v_proj'), windowed=True, layer_types=True),
  'qwen3': Family(
    'Qwen3ForCausalLM', bias_keys={'attention_bias': _ATTENTION}, qk_norm=True, windowed=True,
    layer_types=True),
  'gemma2': Family(
    'Gemma2ForCausalLM', bias_keys={'attention_bias': _ATTENTION}, windowed=True, layer_types=True,
    activation='hidden_activation', values=_GEMMA, numbers=_GEMMA_NUMBERS | {
      'score_cap': 'attn_logit_softcapping'}),
  # The key attn_logit_softcapping is there, too; transformers does not use it.
  'gemma3_text': Family(
    'Gemma3ForCausalLM', bias_keys={'attention_bias': _ATTENTION}, qk_norm=True, windowed=True,
    layer_types=True, activation='hidden_activation', local_rope=True, values=_GEMMA,
    numbers=_GEMMA_NUMBERS),
  'phi3': Family('Phi3ForCausalLM', windowed=True, partial_rotary=True, values={'fused': True}),
}
# model_type of a model that sees images, too -> that of its language model, whose settings stand
# in its entry text_config.
WITH_VISION = {'gemma3': 'gemma3_text'}
# In config.json -> LlamaConfig.activation.
_ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}


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


def language_settings(settings: dict[str, Any]) -> dict[str, Any]:
  """The settings of a config.json as they are for the language model alone, if it sees images, too.

  What such a model has and its text_config lacks, as whether it is tied, counts for it.
  """
  kind = settings.get('model_type')
  text = settings.get('text_config')
  if not isinstance(kind, str) or kind not in WITH_VISION or not isinstance(text, dict):
    return settings
  kept = {
    key: settings[key] for key in ('quantization_config', 'dtype', 'torch_dtype')
    if key in settings}
  return text | kept | {
    'model_type': WITH_VISION[kind],
    'architectures': [FAMILIES[WITH_VISION[kind]].architecture],
    'tie_word_embeddings': settings.get('tie_word_embeddings', True)}


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
  settings = language_settings(settings)
  kind = settings.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    experts = _experts(settings)
    raise InputError(
      f'{origin}: model_type={kind!r}: {experts}supported are {", ".join(FAMILIES)} (LLaMA 2 and '
      '3, DeepSeek-R1-Distill-Llama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3, Gemma 2 and 3, '
      'MedGemma, Phi-3 and Phi-4)')
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
    # As transformers does before it makes frequencies, now that all settings are in their places.
    read.standardize_rope_params()
    return _config_of(family, read, origin)


def _experts(settings: dict[str, Any]) -> str:
  """'is a mixture of experts, ' where the settings are those of one, which no family here is."""
  kind = settings.get('model_type')
  counts = [key for key, value in settings.items() if 'experts' in key and value]
  named = isinstance(kind, str) and re.search(r'moe|mixtral|dbrx|arctic', kind)
  return 'is a mixture of experts, which is not computed; ' if counts or named else ''


def _config_of(family: Family, read: Any, origin: str) -> LlamaConfig:
  """The hyper-parameters of a family's settings as transformers' class has read them."""
  act = getattr(read, family.activation)
  if act not in _ACTIVATIONS:
    raise InputError(
      f'{origin}: {family.activation}={act!r}: {", ".join(map(repr, _ACTIVATIONS))} are supported')
  if getattr(read, 'use_bidirectional_attention', False):
    raise InputError(
      f'{origin}: use_bidirectional_attention=True: false is supported, each token sees those '
      'before it')
  heads, layers = int(read.num_attention_heads), int(read.num_hidden_layers)
  head_dim = int(getattr(read, 'head_dim', None) or read.hidden_size // max(heads, 1))
  if heads < 1 or read.num_key_value_heads < 1 or heads % read.num_key_value_heads:
    raise InputError(
      f'{origin}: num_attention_heads={heads}, num_key_value_heads={read.num_key_value_heads}: '
      'a multiple of a number > 0 is supported')
  windows = _windows(family, read, layers, origin) if family.windowed else ()
  rope = rope_fields(
    read.rope_parameters, head_dim, int(read.max_position_embeddings), origin,
    local=family.local_rope, partial=family.partial_rotary)
  if not windows:
    rope.pop('local_rope_theta', None)
  biases = set(family.biases).union(*(
    names for key, names in family.bias_keys.items() if getattr(read, key)))
  numbers = {field: float(getattr(read, key) or 0.0) for field, key in family.numbers.items()}
  for field, value in numbers.items():
    if not 0 <= value < math.inf:
      raise InputError(
        f'{origin}: {family.numbers[field]}={value}: a finite number > 0 is supported')
  return LlamaConfig(
    vocab_size=int(read.vocab_size),
    hidden_size=int(read.hidden_size),
    intermediate_size=int(read.intermediate_size),
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=int(read.num_key_value_heads),
    head_dim=head_dim,
    rms_norm_eps=float(read.rms_norm_eps),
    max_position_embeddings=int(read.max_position_embeddings),
    tie_word_embeddings=bool(read.tie_word_embeddings),
    biases=tuple(name for name in (*_ATTENTION, *_MLP) if name in biases),
    qk_norm=family.qk_norm,
    windows=windows,
    activation=_ACTIVATIONS[act],
    **rope, **numbers, **family.values)


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
  same = [kind for kind, family in FAMILIES.items() if _fits(family, config)]
  if not same:
    raise InputError(f'{origin}: no Hugging Face model type has this combination of features')
  family, rope = FAMILIES[same[0]], rope_entry(config, origin)
  settings = {
    'architectures': [family.architecture], 'model_type': same[0],
    family.activation: next(
      name for name, ours in _ACTIVATIONS.items() if ours == config.activation),
    'vocab_size': config.vocab_size, 'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size, 'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim, 'rms_norm_eps': config.rms_norm_eps,
    'rope_parameters': rope,
    'max_position_embeddings': config.max_position_embeddings,
    'tie_word_embeddings': config.tie_word_embeddings,
    'sliding_window': max(config.windows) if config.windows else None,
  }
  if family.layer_types and config.windows:
    settings |= {'use_sliding_window': True, 'layer_types': [
      'sliding_attention' if size else 'full_attention' for size in config.windows]}
  if family.local_rope:
    settings['rope_parameters'] = {'full_attention': rope, 'sliding_attention': {
      'rope_type': 'default', 'rope_theta': config.local_rope_theta or config.rope_theta}}
  for field, key in family.numbers.items():
    settings[key] = getattr(config, field) or None
  if 'query_scalar' in family.numbers:  # a whole number, without which transformers takes its own
    settings[family.numbers['query_scalar']] = int(config.query_scalar or config.head_dim)
  if config.rope_original:
    settings['original_max_position_embeddings'] = config.rope_original
  return settings


def _fits(family: Family, config: LlamaConfig) -> bool:
  """Whether models of a family can be as `config` says."""
  features = {name for other in FAMILIES.values() for name in other.values}
  optional = {name for other in FAMILIES.values() for name in other.numbers} - set(family.numbers)
  sizes = set(config.windows)
  return (
    family.biases == config.biases and family.qk_norm == config.qk_norm
    and all(getattr(config, name) == family.values.get(name, False) for name in features)
    and not any(getattr(config, name) for name in optional)
    and (family.local_rope or not config.local_rope_theta)
    and (family.partial_rotary or not config.rotary_dim)
    and (not any(sizes) or family.windowed and (
      len(sizes - {0}) == 1 if family.layer_types else len(sizes) == 1)))
