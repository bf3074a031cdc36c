"""What scripts/bench_*.py run on: a model from files or random in a true shape, and a site's notes.

    model = inputs.load('', 'float32')                  # SmolLM2, or a path, or a hub id
    model = inputs.load('llama31_8b', 'bfloat16')       # random weights, made on the device
    config = inputs.configure('maccrobat2020', 'ner', batch_size=16, steps=6)
    data = load_data(config, Reporter(), model.base)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.experiment import defaults, matmul
from fedmedjax.experiment.config import DTYPES as DTYPE_NAMES
from fedmedjax.experiment.config import validate
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.convert import BaseModel, Placement, params_shape
from fedmedjax.model.files.folder import load_tokenizer, read_settings
from fedmedjax.model.files.hf_config import config_from_hugging_face, to_hugging_face
from fedmedjax.model.files.load import load_model, model_path, resolve
from fedmedjax.model.llama import head_weight
from fedmedjax.model.quant import QUANTIZATIONS, rounded
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

_LLAMA3 = dict(
  model_type='llama', vocab_size=128_256, rms_norm_eps=1e-5, max_position_embeddings=131_072)


def _rope(factor: float) -> dict:
  return {
    'rope_type': 'llama3', 'rope_theta': 500_000.0, 'factor': factor, 'low_freq_factor': 1.0,
    'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}


# Names for --model whose weights are random: config.json of the true models, and a small one with
# SmolLM2's vocabulary.
SHAPES = {
  'llama32_1b': _LLAMA3 | dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, rope_parameters=_rope(32.0)),
  'llama31_8b': _LLAMA3 | dict(
    hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, rope_parameters=_rope(8.0)),
  'width_256': dict(
    model_type='llama', vocab_size=49_152, rms_norm_eps=1e-5, max_position_embeddings=8192,
    hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
    rope_parameters={'rope_type': 'default', 'rope_theta': 10_000.0}),
}


class Model(NamedTuple):
  """A base model, and the config.json that makes the same architecture in transformers."""

  base: BaseModel
  settings: dict[str, Any]


def define_flags(values: flags.FlagValues, batch: int) -> None:
  """What is measured: the flags that training and decoding share."""
  flags.DEFINE_enum('task', 'ner', ('ner', 're'), 'Task of the examples.', flag_values=values)
  flags.DEFINE_string(
    'site', 'maccrobat2020', 'Site whose notes are used: a corpus, or a synthetic cohort.',
    flag_values=values)
  flags.DEFINE_integer('batch', batch, 'Examples at once.', lower_bound=1, flag_values=values)
  flags.DEFINE_string(
    'model', '', 'As config.model.path, or a shape with random weights: ' + ', '.join(SHAPES),
    flag_values=values)
  flags.DEFINE_string(
    'tokenizer', '', "Folder of the tokenizer for such a shape; '' = SmolLM2's.",
    flag_values=values)
  flags.DEFINE_enum(
    'dtype', 'float32', DTYPE_NAMES, 'Number format of weights and activations.',
    flag_values=values)
  flags.DEFINE_integer(
    'max_length', 256, 'As config.data.max_length.', lower_bound=8, flag_values=values)
  flags.DEFINE_bool(
    'dry_run', False, 'Lower our program for abstract weights, and say what it needs.',
    flag_values=values)


def load(
  name: str, dtype: str, quantization: str = 'none', tokenizer: str = '', abstract: bool = False
) -> Model:
  """A model by the flags above; `abstract` gives shapes in place of random weights.

  Raises InputError: as `load_model`; `abstract` for a model from files.
  """
  placement = Placement(DTYPES[dtype], quantization)
  if name in SHAPES:
    config = config_from_hugging_face(SHAPES[name], name)
    words = load_tokenizer(Path(tokenizer)) if tokenizer else load_model(model_path('')).tokenizer
    if len(words) > config.vocab_size:
      raise InputError(
        f'--tokenizer={tokenizer}: has {len(words)} tokens, {name} {config.vocab_size}')
    params = params_shape(config, placement) if abstract else random_params(config, placement)
    return Model(BaseModel(config, params, words, name), SHAPES[name])
  if abstract:
    raise InputError(f'--model={name}: a dry run takes one of {", ".join(SHAPES)}')
  path = model_path(name)
  base = load_model(path, placement)
  files = resolve(path)
  settings = read_settings(files) if files.is_dir() else to_hugging_face(base.config, str(files))
  return Model(base, settings)


def rounded_model(model: Model) -> Model:
  """The same weights, or their shapes, as a run with config.model.matmul='bfloat16' holds them."""
  def converted(params: dict) -> dict:
    return params | {'head': head_weight(params).astype(jnp.bfloat16), 'layers': {
      name: leaf | {'kernel': rounded(leaf['kernel'])} if 'kernel' in leaf else leaf
      for name, leaf in params['layers'].items()}}

  params = model.base.params
  abstract = isinstance(params['embedding'], jax.ShapeDtypeStruct)
  return model._replace(base=model.base._replace(
    params=jax.eval_shape(converted, params) if abstract else converted(params)))


def forms(model: Model, asked: str, dtype: str) -> dict[str, Model]:
  """The model by what its frozen weights are multiplied in: 'float32', and 'bfloat16' where that is
  asked for or a CPU may choose. First comes what is asked for, or what 'auto' decides here.

  Args:
    model: as loaded.
    asked: of config.model.matmul.
    dtype: of config.model.dtype.
  """
  own, models = matmul.decided(asked, dtype, Reporter()), {matmul.WIDE: model}
  if own == matmul.ROUNDED or jax.default_backend() == 'cpu' and dtype == 'float32':
    models[matmul.ROUNDED] = rounded_model(model)
  return {own: models[own]} | models


def random_params(config, placement: Placement) -> dict:
  """Weights of a given shape as LLaMA models draw them: normal, 0.02; norms are 1.

  Made on the device, a leaf at a time and a quantised one a layer at a time.
  """
  quantize = QUANTIZATIONS[placement.quantization]

  def draw(key: jax.Array, path: str, leaf: jax.ShapeDtypeStruct):
    if path.endswith('norm/weight'):
      return jnp.ones(leaf.shape, leaf.dtype)
    values = lambda key, shape: 0.02 * jax.random.normal(key, shape, leaf.dtype)  # noqa: E731
    if quantize is None or not path.endswith('kernel'):
      return values(key, leaf.shape)
    return jax.lax.map(
      lambda key: quantize(values(key, leaf.shape[1:])), jax.random.split(key, len(leaf)))

  wide = params_shape(config, Placement(placement.dtype))
  leaves, structure = jax.tree.flatten(wide)
  return structure.unflatten([
    jax.jit(draw, static_argnums=(1, 2))(jax.random.fold_in(jax.random.key(0), i), path, leaf)
    for i, (path, leaf) in enumerate(zip(tree.paths(wide), leaves, strict=True))])


def configure(
  site: str, task: str, *, batch_size: int, steps: int = 1, sites: int = 1, **changes
) -> ConfigDict:
  """Fed-MedLoRA on one site, or on so many that its sentences are dealt out to evenly.

  Args:
    site, task: whose examples of what.
    batch_size, steps: examples of a step, steps of each site in a round.
    sites: how many.
    changes: flat config keys with __ for the point, such as data__max_length=300.
  """
  config = defaults.get_config('fed_medlora')
  config.update_from_flattened_dict({
    'data.sites': (site,), 'data.external': (), 'data.tasks': (task,),
    'data.validation_examples': 0, 'fed.local_steps': steps, 'fed.batch_size': batch_size,
    'log.steps': False, 'model.matmul': 'float32',
    **{key.replace('__', '.'): value for key, value in changes.items()}})
  if sites > 1:
    config.data.partition.update(kind='iid', unit='sentence', sites=sites)
  validate(config)
  return config


def check_names(flag: str, names: list[str], allowed: Iterable[str]) -> None:
  """Raises InputError for a name of a list flag that is not allowed."""
  for name in names:
    if name not in allowed:
      raise InputError(f'--{flag}={name}: some of {", ".join(allowed)} are allowed')
