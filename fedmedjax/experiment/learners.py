"""What a study trains and asks: a language model's adapter, or a whole token classifier."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedmedjax import tree
from fedmedjax.data.site import SiteData
from fedmedjax.eval import evaluate, generation, tagging
from fedmedjax.experiment.meshes import replicate
from fedmedjax.fed.types import LossFn
from fedmedjax.model.bert import BertTagger, label_loss, split_frozen
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.bert import Bert, save_bert
from fedmedjax.model.files.convert import BaseModel, parameter_count
from fedmedjax.model.files.peft import load_peft, save_peft
from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.model.llama import Llama
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.model.sharding import fetch_on, head_parts
from fedmedjax.types import InputError


class Learner(NamedTuple):
  """A model as the federated round and the scoring see it."""

  loss_fn: Callable[[str], LossFn]  # of what the backward pass keeps, a key of REMAT
  adapter: dict           # what is trained and sent, as it starts
  base: dict              # what is frozen
  whole_parameters: int   # of the whole model, however it is stored
  whole_bytes: int        # of sending them in its number format
  untrained: dict | None  # the adapter that answers before training; None = there is no such answer
  learning_rate: float    # peak, of the sites' optimiser
  rate_key: str           # the config key it came from
  answer: Callable        # (adapter, site, advance) -> prediction records of all its tasks
  largest_answer: Callable  # (adapter by shape, sites) -> its `types.Program` of most memory
  save: Callable[[dict, Path], None]  # (adapter, folder): in the format of its ecosystem
  folder: str             # of what is saved, in the run's workdir
  summary: dict[str, Any]  # further entries of summary.json


def lora_learner(
  base: BaseModel,
  sites: Sequence[SiteData],
  lora: LoraConfig,
  *,
  start: str,
  learning_rate: float,
  seed: int,
  dtype,
  batch_size: int,
  max_new_ratio: float,
  guesses: int,
  attention: str,
  mesh: Mesh | None = None,
) -> Learner:
  """A LLaMA whose LoRA adapter learns to write what is asked of sentences.

  Args:
    base: the frozen model.
    sites: all that answer, to note their instructions.
    lora: rank, alpha, targets.
    start: folder of the adapter that training starts from; '' = a fresh one.
    learning_rate: config.optim.learning_rate.
    seed: of the fresh adapter.
    dtype: of the model.
    batch_size, max_new_ratio, guesses: of decoding, see `generation.Generator`.
    attention: a key of ATTENTIONS, of training.
    mesh: that the base lies on, if it does.

  Raises:
    InputError: `start` is no adapter of this model, or `attention` cannot be had here.
  """
  llama = partial(Llama, base.config, lora_scale=lora.scale, dtype=dtype)
  generator = generation.Generator(
    llama(cached_attention), base.tokenizer, batch_size, max_new_ratio, guesses, mesh=mesh)

  parameters = parameter_count(base.config)
  packed = partial(packed_attention, attend=ATTENTIONS[attention](base.config, dtype, mesh))
  given = _starting_adapter(Path(start), base, lora) if start else {}
  return Learner(
    loss_fn=lambda remat: partial(
      packed_loss, llama(packed, remat=remat, fetch=fetch_on(mesh)),
      head_parts=head_parts(mesh, base.config.vocab_size)),
    adapter=given or init_adapter(jax.random.key(seed), base.config, lora),
    base=base.params, whole_parameters=parameters,
    whole_bytes=parameters * jnp.dtype(dtype).itemsize, untrained=given,
    learning_rate=learning_rate, rate_key='config.optim.learning_rate',
    answer=partial(evaluate.answer, generator, base.params),
    largest_answer=partial(generation.largest_call, generator, base.params),
    save=lambda adapter, folder: save_peft(adapter, widened(lora, adapter), folder, base.name),
    folder='adapter',
    summary={'instructions': evaluate.instructions(sites)})


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


def bert_learner(
  bert: Bert, *, learning_rate: float, max_length: int, batch_size: int, mesh: Mesh | None = None
) -> Learner:
  """A BERT token classifier, all of it but the embeddings trained.

  Args:
    bert: the model as loaded.
    learning_rate: config.bert.learning_rate.
    max_length: of a window, in tokens.
    batch_size: windows classified at once.
    mesh: of devices that the sites are spread over, if they are.
  """
  model = partial(BertTagger, bert.config, len(bert.labels))
  adapter, base = split_frozen(bert.params)
  base = replicate(mesh, base)
  tagger = tagging.Tagger(model(), bert.labels, max_length, batch_size)
  return Learner(
    loss_fn=lambda remat: partial(label_loss, model(remat)), adapter=adapter, base=base,
    whole_parameters=tree.size(bert.params), whole_bytes=tree.num_bytes(bert.params),
    # Its classifier is drawn at random: what it says before training means nothing.
    untrained=None, learning_rate=learning_rate, rate_key='config.bert.learning_rate',
    answer=partial(tagging.answer, tagger, base),
    largest_answer=partial(tagging.largest_call, tagger, base), save=partial(save_bert, bert),
    folder='model', summary={'labels': list(bert.labels)})
