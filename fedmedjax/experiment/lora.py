"""A LLaMA with LoRA adapters as what a study trains: its notes, parts and predictions."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.data.chat import make_encoder
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import SiteData, encode_site
from fedmedjax.data.text_task import TEXT
from fedmedjax.data.tokenize import Encoder
from fedmedjax.eval import decoding_calls, evaluate, generation
from fedmedjax.eval import teacher_forced as forcing
from fedmedjax.eval.generation import check_context, most_new_tokens
from fedmedjax.eval.prompt import instructions, shown_examples
from fedmedjax.experiment import matmul, meshes
from fedmedjax.experiment.device_share import device_share
from fedmedjax.experiment.heads import headed
from fedmedjax.experiment.notes import Corpora, encode_sites, watched_sites
from fedmedjax.experiment.types import Data, Trainable
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.convert import BaseModel, Placement, parameter_count
from fedmedjax.model.files.load import load_model, model_path
from fedmedjax.model.files.peft import load_peft, save_peft
from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.model.llama import Llama
from fedmedjax.model.lora import LoraConfig, check_lora, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.model.sharding import base_shardings, fetch_on, head_parts, stream_on
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.words import SHOTS
from fedmedjax.types import InputError, SiteCorpus


def load_lora_data(
  config: ConfigDict, reporter: Reporter, base: BaseModel | None, read: Callable[[], Corpora]
) -> Data:
  """The notes of all sites, which `read` reads, and the base model, if `base` is not it."""
  lora = lora_config(config)
  check_lora(lora)
  meshes.mesh_of(config)  # its mistakes show before the notes are read
  with reporter.task('reading notes'):
    corpora = read()
  base = base or load_base(config, reporter)
  check_lora(lora, base.config)
  own = dict(zip(config.data.sites, config.data.site_tasks, strict=False))

  def encode(corpus: SiteCorpus, **split) -> SiteData:
    tasks = own[corpus.name].split('+') if corpus.name in own else config.data.tasks
    return encode_site(
      corpus, base.tokenizer, tasks=tasks, style=config.data.style, chat=config.data.chat,
      max_length=config.data.max_length, **split)

  data = encode_sites(base, encode, config, corpora, reporter)
  _check_tasks(config.data.tasks, data.sites)
  _check_groups(config.fed.micro_batch, base, (*data.sites, *data.server))
  within = make_encoder(base.tokenizer, config.data.chat).within
  _tell_long_targets(config.eval.max_new_ratio, data, within, reporter)
  check_context(
    base, (
      *{site.name: site for site in (
        *data.sites, *data.tested, *data.external, *data.server)}.values(),
      *(watched_sites((*data.sites, *data.server)) if config.eval.every else ())),
    config.data.max_length, config.eval.max_new_ratio,
    within)
  return data


def load_base(config: ConfigDict, reporter: Reporter) -> BaseModel:
  """The language model of config.model."""
  path, mesh = model_path(config.model.path), meshes.mesh_of(config)
  placement = Placement(
    DTYPES[config.model.dtype], config.model.quantization,
    mesh and partial(base_shardings, mesh),
    matmul.decided(config.model.matmul, config.model.dtype, reporter) == matmul.ROUNDED)
  with reporter.task(f'loading {Path(path).name}'):
    base = load_model(path, placement)
  if base.left_out:
    reporter.warn(base.left_out)
  return base


def _check_groups(micro_batch: int, base: BaseModel, sites: Sequence[SiteData]) -> None:
  """Raises InputError where groups of a step would rotate by other frequencies than the step.

  LongRoPE takes those of long texts for all examples of a step as soon as one of them is long.
  """
  if not (micro_batch and base.config.long_rope_divisors):
    return
  for site in sites:
    for part in site.tasks:
      for example in (*part.train, *part.validation):
        last = len(part.instruction) - 1 + len(example.tokens)
        if last > base.config.rope_original:
          raise InputError(
            f'config.fed.micro_batch={micro_batch}: an example of site {site.name!r} ends at '
            f'position {last}, and beyond {base.config.rope_original} the model rotates a whole '
            'step otherwise; use 0, or a smaller config.data.max_length')


def _tell_long_targets(
  max_new_ratio: float, data: Data, within: Callable, reporter: Reporter
) -> None:
  """Warns of rows whose target is longer than an answer may become."""
  for site in {site.name: site for site in (*data.sites, *data.tested, *data.external)}.values():
    for part in site.tasks:
      rows = [] if part.ask.task != TEXT else [*part.train, *part.test_tokens]
      cut = sum(len(row.tokens) - row.prompt_length > most_new_tokens(
        within(part.ask, part.instruction) + row.prompt_length, max_new_ratio) for row in rows)
      if cut:
        reporter.warn(
          f'{site.name}: {cut} of {len(rows)} targets are longer than an answer may become '
          f'(config.eval.max_new_ratio={max_new_ratio:g}); raise it')


def _check_tasks(tasks: Sequence[str], sites: Sequence[SiteData]) -> None:
  """Raises InputError when no site trains one of `tasks`."""
  for task in tasks:
    if not any(part.ask.task == task for site in sites for part in site.tasks):
      raise InputError(
        f'config.data.tasks={tuple(tasks)!r}: the notes of no site hold anything of {task!r}; '
        'leave it out')


def lora_config(config: ConfigDict) -> LoraConfig:
  """Rank, alpha and targets of config.lora."""
  return LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))


def lora_sizes(config: ConfigDict, data: Data) -> np.ndarray:
  """n_k of the sites that train, f32[S]."""
  return schedules.site_sizes(
    data.sites, config.fed.weight_by, partial(pack.supervised, loss_on=config.fed.loss_on))


def lora_parts(
  config: ConfigDict, data: Data, sizes: np.ndarray, **plan
) -> tuple[Trainable, Schedule]:
  """The model with its adapter, and the steps of all rounds."""
  trainable = configured_lora(config, data)
  related = config.data.re_share
  schedule = schedules.make_schedule(
    data.sites, sizes, loss_on=config.fed.loss_on, shapes=config.fed.shapes,
    shares={'ner': 1 - related, 're': related} if related else None, server=data.server, **plan)
  return trainable, schedule


def configured_lora(config: ConfigDict, data: Data) -> Trainable:
  """The model of `data` with the adapter that config.lora describes."""
  trainable = lora_trainable(
    data.base, (*data.tested, *data.external), lora_config(config),
    start=config.lora.start, seed=config.seed,
    dtype=DTYPES[config.model.dtype], batch_size=config.eval.batch_size,
    max_new_ratio=config.eval.max_new_ratio, guesses=config.eval.guesses,
    encoder=make_encoder(data.base.tokenizer, config.data.chat),
    attention=config.model.attention, teacher_forced=config.eval.teacher_forced,
    mesh=meshes.mesh_of(config))
  trainable = headed(trainable, config.fed.heads, config.seed)
  # They are words of notes.
  if config.store.text and (shown := shown_examples((*data.tested, *data.external))):
    trainable = trainable._replace(summary=trainable.summary | {SHOTS: shown})
  return trainable


def lora_trainable(
  base: BaseModel,
  sites: Sequence[SiteData],
  lora: LoraConfig,
  *,
  start: str,
  seed: int,
  dtype,
  batch_size: int,
  max_new_ratio: float,
  guesses: int,
  attention: str,
  encoder: Encoder | None = None,
  teacher_forced: bool = False,
  mesh: Mesh | None = None,
) -> Trainable:
  """A LLaMA whose LoRA adapter learns to write what is asked of sentences.

  Args:
    base: the frozen model.
    sites: all that answer, to note their instructions.
    lora: rank, alpha, targets.
    start: folder of the adapter that training starts from; '' = a fresh one.
    seed: of the fresh adapter.
    dtype: of the model.
    batch_size, max_new_ratio, guesses: of decoding, see `generation.Generator`.
    attention: a key of ATTENTIONS, of training.
    encoder: how sentences become tokens; None = `plain_encoder`.
    teacher_forced: whether test sentences are scored by teacher forcing, too.
    mesh: that the base lies on, if it does.

  Raises:
    InputError: `start` is no adapter of this model, or `attention` cannot be had here.
  """
  llama = partial(Llama, base.config, lora_scale=lora.scale, dtype=dtype)
  answering, held = meshes.own_part(mesh, base.params)
  generator = generation.Generator(
    llama(cached_attention), base.tokenizer, batch_size, max_new_ratio, guesses, answering, encoder)

  parameters = parameter_count(base.config)
  packed = partial(packed_attention, attend=ATTENTIONS[attention](base.config, dtype, mesh))
  packed_llama = partial(llama, packed, fetch=fetch_on(mesh), stream=stream_on(mesh))
  given = _starting_adapter(Path(start), base, lora) if start else {}
  forcer = forcing.forcer(
    llama(partial(packed_attention, attend=ATTENTIONS[attention](base.config, dtype, answering)),
          fetch=fetch_on(answering), stream=stream_on(answering)), base.tokenizer,
    # Other processes have the tests of the others.
    [site for site in sites if any(part.test_tokens for part in site.tasks)], batch_size) if (
      teacher_forced) else None
  adapter = given or init_adapter(jax.random.key(seed), base.config, lora)
  return Trainable(
    loss_fn=lambda remat: partial(
      packed_loss, packed_llama(remat=remat),
      head_parts=head_parts(mesh, base.config.vocab_size)),
    adapter=adapter, base=base.params, whole_parameters=parameters,
    whole_bytes=parameters * jnp.dtype(dtype).itemsize, untrained=given,
    answer=partial(evaluate.answer, generator, held),
    answer_calls=partial(decoding_calls.answer_calls, generator, held),
    largest_answer=partial(generation.largest_call, generator, held),
    save=lambda adapter, folder: save_peft(
      adapter, widened(lora, adapter), folder, base.name, base.inside),
    folder='adapter',
    summary={'instructions': instructions(sites)},
    forced=forcer and partial(forcing.forced_scores, forcer, held),
    share=device_share(base, lora, adapter, packed, dtype, mesh))


def _starting_adapter(folder: Path, base: BaseModel, lora: LoraConfig) -> dict:
  """Raises InputError when it is no adapter of this model and of config.lora."""
  try:
    adapter, held = load_peft(folder, base.config)
  except InputError as error:
    raise InputError(f'config.lora.start={str(folder)!r}: {error}') from None
  for key, ours, theirs in (
      ('rank', lora.rank, held.rank), ('alpha / rank', lora.scale, held.scale),
      ('targets', sorted(lora.targets), sorted(held.targets))):
    if ours != theirs:
      raise InputError(
        f'config.lora.start={str(folder)!r}: its {key} is {theirs}, config.lora says {ours}')
  return adapter


def widened(lora: LoraConfig, adapter: dict) -> LoraConfig:
  """For an adapter that is wider by what was folded into the base: its rank, at the same scale."""
  width = next(iter(adapter['layers'].values()))['a'].shape[-1]
  return lora if width == lora.rank else lora._replace(rank=width, alpha=lora.scale * width)
