"""Loads a model from a GGUF file or a folder of safetensors.

Nothing is unpickled and no code from a model folder is run.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import safetensors
import transformers

from fedmedjax.model.convert import HUGGING_FACE, BaseModel, convert
from fedmedjax.model.gguf_file import load_gguf
from fedmedjax.model.llama import LlamaConfig, RopeScaling
from fedmedjax.types import InputError


def load_model(path: str | Path, dtype=jnp.float32) -> BaseModel:
  """Loads a `.gguf` file or a folder with config.json, *.safetensors and a tokenizer.

  Raises InputError when the path is neither, or its content is damaged or not a LLaMA.
  """
  path = Path(path).expanduser()
  if path.is_dir():
    model = _load_safetensors(path, dtype)
  elif path.is_file() and path.suffix == '.gguf':
    model = load_gguf(path, dtype)
  else:
    raise InputError(
      f'config.model.path={str(path)!r}: a .gguf file or a folder with config.json and '
      '*.safetensors is allowed; nothing like it is there')
  if model.tokenizer.eos_token_id is None:
    raise InputError(f'{path}: its tokenizer names no end token (eos_token)')
  if len(model.tokenizer) > model.config.vocab_size:
    raise InputError(
      f'{path}: its tokenizer has {len(model.tokenizer)} tokens, the model '
      f'{model.config.vocab_size}')
  return model


def config_from_hugging_face(settings: dict, origin: str) -> LlamaConfig:
  """config.json -> LlamaConfig; anything this decoder does not compute is refused by name."""
  try:
    if settings.get('model_type') != 'llama':
      raise InputError(
        f"{origin}: model_type={settings.get('model_type')!r}: 'llama' is supported")
    for flag in ('attention_bias', 'mlp_bias'):
      if settings.get(flag):
        raise InputError(f'{origin}: {flag}={settings[flag]!r} is not supported')
    if settings.get('hidden_act', 'silu') != 'silu':
      raise InputError(f"{origin}: hidden_act={settings['hidden_act']!r}: 'silu' is supported")
    # transformers 5 moved theta and scaling into one entry; older files keep them apart.
    rope = settings.get('rope_parameters') or settings.get('rope_scaling') or {}
    heads = int(settings['num_attention_heads'])
    return LlamaConfig(
      vocab_size=int(settings['vocab_size']),
      hidden_size=int(settings['hidden_size']),
      intermediate_size=int(settings['intermediate_size']),
      num_layers=int(settings['num_hidden_layers']),
      num_heads=heads,
      num_kv_heads=int(settings.get('num_key_value_heads') or heads),
      head_dim=int(settings.get('head_dim') or settings['hidden_size'] // heads),
      rms_norm_eps=float(settings['rms_norm_eps']),
      rope_theta=float(rope.get('rope_theta', settings.get('rope_theta', 10000.0))),
      rope_scaling=_rope_scaling(rope, origin),
      max_position_embeddings=int(settings['max_position_embeddings']),
      tie_word_embeddings=bool(settings.get('tie_word_embeddings', False)),
    )
  except KeyError as error:
    raise InputError(f'{origin}: key {error.args[0]!r} is missing') from None
  except InputError:
    raise
  except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
    raise InputError(f'{origin}: not a LLaMA configuration: {error}') from None


def _rope_scaling(rope: dict, origin: str) -> RopeScaling | None:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise InputError(f"{origin}: rope_type={kind!r}: 'default' and 'llama3' are supported")
  return RopeScaling(
    float(rope['factor']), float(rope['low_freq_factor']), float(rope['high_freq_factor']),
    int(rope['original_max_position_embeddings']))


def _load_safetensors(folder: Path, dtype) -> BaseModel:
  try:
    settings = json.loads((folder / 'config.json').read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{folder}/config.json: cannot be read: {error}') from None
  if not isinstance(settings, dict):
    raise InputError(f'{folder}/config.json: a JSON object is expected')
  config = config_from_hugging_face(settings, f'{folder}/config.json')
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    pickled = sorted(folder.glob('*.bin')) + sorted(folder.glob('*.pt'))
    hint = f' ({pickled[0].name} is a pickle and is not read)' if pickled else ''
    raise InputError(f'{folder}: no *.safetensors file{hint}')

  def tensors():
    for file in files:
      with safetensors.safe_open(file, 'np') as archive:
        for name in archive.keys():
          # A tied model may carry its head a second time.
          if config.tie_word_embeddings and name == 'lm_head.weight':
            continue
          shape = tuple(archive.get_slice(name).get_shape())
          yield name, shape, lambda archive=archive, name=name: archive.get_tensor(name)

  try:
    params = convert(config, tensors(), HUGGING_FACE, dtype, str(folder))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{folder}: damaged safetensors file: {error}') from None
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except Exception as error:  # the tokenizer library raises bare exceptions for damaged files
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{folder}: its tokenizer cannot be loaded: {line}') from None
  return BaseModel(config, params, tokenizer, folder.name)
