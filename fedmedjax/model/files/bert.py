"""BERT folders in Hugging Face's format, read and written; nothing is unpickled.

Reading is strict: one table names every tensor, and one that is unknown, missing, misshapen or
written twice is an InputError that names it. Names with and without the prefix 'bert.' are
understood, and the norms' old names (gamma, beta) beside the modern ones (weight, bias).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import transformers

from fedmedjax.model.bert import BertConfig
from fedmedjax.model.files.folder import load_tokenizer, read_settings, stored_tensors, write_folder
from fedmedjax.types import InputError


class Bert(NamedTuple):
  """A token classifier as loaded, with its tokenizer and settings."""

  config: BertConfig
  params: dict              # of `bert.BertTagger`: layers f32[L, ...], classifier f32[D, Y]
  labels: tuple[str, ...]   # the Y names of the classifier's outputs
  tokenizer: transformers.PreTrainedTokenizerBase
  settings: dict[str, Any]  # config.json
  name: str                 # of the folder


# Our path -> Hugging Face's name. Kernels are stored [D_out, D_in] there and transposed here.
_TOP = {
  ('embeddings', 'word'): 'embeddings.word_embeddings.weight',
  ('embeddings', 'position'): 'embeddings.position_embeddings.weight',
  ('embeddings', 'type'): 'embeddings.token_type_embeddings.weight',
  ('embeddings', 'norm', 'scale'): 'embeddings.LayerNorm.weight',
  ('embeddings', 'norm', 'bias'): 'embeddings.LayerNorm.bias',
}
_CLASSIFIER = {
  ('classifier', 'kernel'): 'classifier.weight', ('classifier', 'bias'): 'classifier.bias',
}
_DENSE = {
  'query': 'attention.self.query', 'key': 'attention.self.key', 'value': 'attention.self.value',
  'attention_output': 'attention.output.dense', 'intermediate': 'intermediate.dense',
  'output': 'output.dense',
}
_NORMS = {'attention_norm': 'attention.output.LayerNorm', 'output_norm': 'output.LayerNorm'}
_LAYER = {
  ('layers', name, leaf): f'encoder.layer.{{}}.{module}.{theirs}'
  for modules, leaves in (
    (_DENSE, (('kernel', 'weight'), ('bias', 'bias'))),
    (_NORMS, (('scale', 'weight'), ('bias', 'bias'))))
  for name, module in modules.items() for leaf, theirs in leaves
}
# Tensors of checkpoints that a token classifier does not use: the pretraining heads, and the pooler
# over the first token.
_LEFT_OUT = re.compile(r'cls\..*|pooler\..*')

# Setting of config.json -> the values that this encoder computes.
_SUPPORTED = {
  'hidden_act': ('gelu',), 'position_embedding_type': ('absolute',), 'is_decoder': (False,),
  'add_cross_attention': (False,),
}


def load_bert(path: str | Path, labels: tuple[str, ...], seed: int) -> Bert:
  """Loads a folder with config.json, *.safetensors and a tokenizer (or its vocab.txt).

  The weights become float32, those of layers stacked, [L, ...].

  A saved classifier is loaded when its shape fits the labels and the folder does not give its
  rows other names; else a fresh one is drawn as transformers does: normal with config.json's
  initializer_range, bias 0.

  Mind a cased vocabulary: without a tokenizer_config.json that says "do_lower_case": false,
  transformers lower-cases what it reads.

  Args:
    path: the folder.
    labels: the Y names of the classifier's outputs.
    seed: of the draw of a fresh classifier.

  Raises:
    InputError: no such folder, weights only as a pickle, another architecture, or damage.
  """
  folder = Path(path).expanduser()
  if not folder.is_dir():
    raise InputError(
      f'config.bert.path={str(path)!r}: a folder with config.json, *.safetensors and a '
      'tokenizer is allowed; nothing like it is there')
  settings = read_settings(folder)
  config = bert_config(settings, f'{folder}/config.json')
  params = _read(config, folder, len(labels) if _head_fits(settings, labels) else 0)
  if set(params.get('classifier', ())) != {'kernel', 'bias'}:
    shape = (config.hidden_size, len(labels))
    params['classifier'] = {
      'kernel': config.initializer_range * jax.random.normal(jax.random.key(seed), shape),
      'bias': jnp.zeros(len(labels))}
  tokenizer = _tokenizer(folder, config)
  return Bert(config, params, labels, tokenizer, settings, folder.name)


def bert_config(settings: dict[str, Any], origin: str) -> BertConfig:
  """The hyper-parameters in the settings of a config.json.

  Args:
    settings: the file's content.
    origin: the file, for error messages.

  Raises:
    InputError: a key is missing, or has a value that this encoder does not compute; it is named.
  """
  if settings.get('model_type', 'bert') != 'bert':
    raise InputError(f"{origin}: model_type={settings['model_type']!r}: 'bert' is supported")
  for key, allowed in _SUPPORTED.items():
    if settings.get(key, allowed[0]) not in allowed:
      raise InputError(f'{origin}: {key}={settings[key]!r}: {allowed[0]!r} is supported')
  try:
    config = BertConfig(
      vocab_size=int(settings['vocab_size']),
      hidden_size=int(settings['hidden_size']),
      intermediate_size=int(settings['intermediate_size']),
      num_layers=int(settings['num_hidden_layers']),
      num_heads=int(settings['num_attention_heads']),
      max_position_embeddings=int(settings['max_position_embeddings']),
      type_vocab_size=int(settings['type_vocab_size']),
      # transformers' defaults, which the first BERT's files rely on.
      layer_norm_eps=float(settings.get('layer_norm_eps', 1e-12)),
      initializer_range=float(settings.get('initializer_range', 0.02)),
    )
    divides = config.hidden_size % config.num_heads == 0
  except KeyError as error:
    raise InputError(f'{origin}: key {error.args[0]!r} is missing') from None
  except (TypeError, ValueError, ArithmeticError) as error:
    raise InputError(f'{origin}: not a BERT configuration: {error}') from None
  if min(config[:7]) < 1 or not divides:
    raise InputError(
      f'{origin}: not a BERT configuration: sizes must be positive and hidden_size='
      f'{config.hidden_size} a multiple of num_attention_heads={config.num_heads}')
  return config


def _head_fits(settings: dict, labels: tuple[str, ...]) -> bool:
  """False when config.json gives the saved classifier's outputs names other than `labels`."""
  named = settings.get('id2label') or {}
  generic = {str(i): f'LABEL_{i}' for i in range(len(named))}
  return named == generic or named == {str(i): name for i, name in enumerate(labels)}


def _shapes(config: BertConfig, num_labels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
  """{our path: shape as the file stores it}, without the layer axis; kernels are [D_out, D_in]."""
  width, inner = config.hidden_size, config.intermediate_size
  kernels = {name: (width, width) for name in _DENSE} | {
    'intermediate': (inner, width), 'output': (width, inner)}
  shapes = {path: (width,) for path in (*_TOP, *_LAYER)} | {
    ('embeddings', 'word'): (config.vocab_size, width),
    ('embeddings', 'position'): (config.max_position_embeddings, width),
    ('embeddings', 'type'): (config.type_vocab_size, width),
    ('classifier', 'kernel'): (num_labels, width), ('classifier', 'bias'): (num_labels,)}
  for name, shape in kernels.items():
    shapes['layers', name, 'kernel'], shapes['layers', name, 'bias'] = shape, shape[:1]
  return shapes


def _slots(config: BertConfig) -> dict[str, tuple[tuple[str, ...], int | None]]:
  """{Hugging Face's name: (our path, layer or None)} of all tensors but the classifier's."""
  slots = {name: (path, None) for path, name in _TOP.items()}
  for path, name in _LAYER.items():
    slots |= {name.format(layer): (path, layer) for layer in range(config.num_layers)}
  return slots


def _read(config: BertConfig, folder: Path, num_labels: int) -> dict:
  """The `params` tree, f32; with 'classifier' when the file has one for `num_labels` labels."""
  shapes, slots = _shapes(config, num_labels), _slots(config)
  heads = {name: (path, None) for path, name in _CLASSIFIER.items()}
  places = slots | heads
  buffers, seen = {}, set()
  try:
    for name, stored in stored_tensors(folder, 'AutoModelForPreTraining').items():
      short = re.sub(r'\bgamma$', 'weight', re.sub(r'\bbeta$', 'bias', name.removeprefix('bert.')))
      if _LEFT_OUT.fullmatch(short):
        continue
      if short not in places:
        raise InputError(
          f'{folder}: unknown tensor {name!r} for a BERT encoder of this configuration')
      if short in seen:
        raise InputError(f'{folder}: tensor {name!r} occurs twice')
      seen.add(short)
      path, layer = places[short]
      shape = stored.shape
      if shape != shapes[path]:
        if short in heads:
          continue
        raise InputError(f'{folder}: tensor {name!r} has shape {shape}, expected {shapes[path]}')
      values = stored.read(slice(None)).astype(np.float32)
      values = values.T if path[-1] == 'kernel' else values
      if layer is None:
        buffers[path] = values
      else:
        buffers.setdefault(path, np.empty((config.num_layers, *values.shape), np.float32))
        buffers[path][layer] = values
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{folder}: damaged safetensors file: {error}') from None
  missing = sorted(set(slots) - seen)
  if missing:
    raise InputError(f'{folder}: {len(missing)} tensors are missing, first {missing[0]!r}')
  return _nested(buffers)


def _nested(flat: dict[tuple[str, ...], np.ndarray]) -> dict:
  """{path: values} as a tree of dicts."""
  params: dict = {}
  for path, values in flat.items():
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = jnp.asarray(values)
  return params


def _tokenizer(folder: Path, config: BertConfig):
  """The folder's tokenizer; raises InputError where it does not fit the model or our labels."""
  if not any((folder / file).is_file() for file in ('tokenizer.json', 'vocab.txt')):
    raise InputError(f'{folder}: no tokenizer: neither tokenizer.json nor vocab.txt')
  tokenizer = load_tokenizer(folder)
  if not tokenizer.is_fast:
    raise InputError(f'{folder}: its tokenizer gives no character offsets (it is not a fast one)')
  for token in ('cls_token', 'sep_token', 'pad_token'):
    if getattr(tokenizer, f'{token}_id') is None:
      raise InputError(f'{folder}: its tokenizer names no {token}')
  if len(tokenizer) > config.vocab_size:
    raise InputError(
      f'{folder}: its tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}')
  return tokenizer


def save_bert(bert: Bert, adapter: dict, folder: Path) -> None:
  """Writes what `transformers.AutoModelForTokenClassification.from_pretrained` loads.

  Args:
    bert: the model as it was loaded: its embeddings, settings, labels and tokenizer.
    adapter: trained layers f32[L, ...] and classifier, from `bert.split_frozen`.
    folder: made when absent; weights and config.json are replaced atomically.
  """
  params = bert.params | adapter
  tensors = {}

  def put(name: str, path: tuple[str, ...], values) -> None:
    values = np.asarray(values)
    tensors[name] = np.ascontiguousarray(values.T if path[-1] == 'kernel' else values)

  for path, name in _TOP.items():
    put(f'bert.{name}', path, _leaf(params, path))
  for path, name in _CLASSIFIER.items():
    put(name, path, _leaf(params, path))
  for path, name in _LAYER.items():
    for layer, values in enumerate(np.asarray(_leaf(params, path))):
      put(f'bert.{name.format(layer)}', path, values)
  names = {str(i): label for i, label in enumerate(bert.labels)}
  settings = {key: value for key, value in bert.settings.items() if key != 'torch_dtype'} | {
    'model_type': 'bert', 'architectures': ['BertForTokenClassification'], 'dtype': 'float32',
    'id2label': names, 'label2id': {label: i for i, label in enumerate(bert.labels)}}
  bert.tokenizer.save_pretrained(folder)
  write_folder(folder, tensors, 'model.safetensors', settings, 'config.json')


def _leaf(params: dict, path: tuple[str, ...]):
  """The entry of a tree of dicts at `path`."""
  for key in path:
    params = params[key]
  return params
