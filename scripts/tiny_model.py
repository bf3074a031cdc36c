"""Makes a LLaMA of 0.3 million parameters that knows a part of the task, for fast ablations.

    python scripts/tiny_model.py --output=models/tiny [--steps=2000]

Its tokenizer is trained on invented notes, and the model itself, embeddings aside, on marking all
entities in the notes of two cohorts, and problems only in those of two others. To learn the other
types in the latter is left to adapters. What it writes is a folder as transformers saves them, for
config.model.path.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from absl import flags
from tokenizers import ByteLevelBPETokenizer

from fedmedjax.data import schedule as schedules
from fedmedjax.data import tasks
from fedmedjax.data.partition import annotating
from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.model.files.convert import HUGGING_FACE, tensor_names
from fedmedjax.model.files.folder import write_folder
from fedmedjax.model.files.hf_config import to_hugging_face
from fedmedjax.model.llama import Llama, LlamaConfig
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.runtime.cli import guarded, read_flags, set_up
from fedmedjax.types import ENTITY_TYPES, InputError

# Cohort -> entity types that the base has seen marked there.
COHORTS = {
  'synthetic_newsite': ENTITY_TYPES, 'synthetic_external': ENTITY_TYPES,
  'synthetic_icu': ('problem',), 'synthetic_dictation': ('problem',)}
SEED = 7              # ablations use others, hence other notes
NOTES = 200           # of each cohort
END = '<|end|>'
VOCABULARY = 1024
CONFIG = LlamaConfig(
  vocab_size=VOCABULARY, hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4,
  num_kv_heads=2, head_dim=24, rms_norm_eps=1e-5, rope_theta=10000.0,
  max_position_embeddings=1024, tie_word_embeddings=True)
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
SCANNED = 50          # steps a call


def train_tokenizer(corpora, folder: Path) -> transformers.PreTrainedTokenizerFast:
  """Byte-level BPE of the notes and of the instruction, saved to `folder`."""
  texts = [note.text for corpus in corpora for note in corpus.train]
  # As often as it takes for the instruction's words to be tokens.
  texts += [tasks.ask('ner', corpus).instruction for corpus in corpora] * 100
  bpe = ByteLevelBPETokenizer()
  bpe.train_from_iterator(texts, VOCABULARY, special_tokens=[END], show_progress=False)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)
  tokenizer.save_pretrained(folder)
  return tokenizer


def train(schedule: schedules.Schedule, steps: int) -> dict:
  """The trained `params`. Embeddings stay as drawn: the loss takes the head to be frozen."""
  model = Llama(CONFIG, packed_attention)
  batches, _ = schedules.round_arrays(schedule, 0)
  batches = jax.tree.map(lambda x: x[0], batches)
  first = jax.tree.map(lambda x: x[0], batches)
  params = model.init(
    jax.random.key(SEED), first.tokens.reshape(-1), first.positions.reshape(-1), None,
    (np.zeros(0, bool), first.segments))['params']
  # Rows of length one: logits of a normalised state are then of order one to ten.
  embedding = params.pop('embedding') / 0.02 / np.sqrt(CONFIG.hidden_size)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 20, steps)))

  def mean(params, batch):
    total, weight = packed_loss(model, {}, params | {'embedding': embedding}, batch)
    return total / weight

  @jax.jit
  def take(carry, batches):
    def body(carry, batch):
      params, state = carry
      loss, gradient = jax.value_and_grad(mean)(params, batch)
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss
    return jax.lax.scan(body, carry, batches)

  carry = params, optimizer.init(params)
  for start in range(0, steps, SCANNED):
    part = jax.tree.map(lambda x, start=start: x[start:start + SCANNED], batches)
    carry, losses = take(carry, part)
    print(f'step {start + SCANNED}/{steps}: {float(jnp.mean(losses)):.3f} nats per token',
          flush=True)
  return carry[0] | {'embedding': embedding}


def build(output: Path, steps: int) -> None:
  """Trains for `steps` steps, a multiple of 50, and writes; InputError for other numbers."""
  if steps < SCANNED or steps % SCANNED:
    raise InputError(f'--steps={steps}: a positive multiple of {SCANNED} is allowed')
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f'--output={output}: a folder that is empty or not yet there is allowed')
  corpora = [
    annotating(generate_cohort(name, seed=SEED, train_notes=NOTES, test_notes=2), types)
    for name, types in COHORTS.items()]
  tokenizer = train_tokenizer(corpora, output)
  sites = [encode_site(corpus, tokenizer, max_length=160) for corpus in corpora]
  schedule = schedules.make_schedule(
    sites, np.ones(len(sites), np.float32), batch_size=BATCH_SIZE, loss_on='completion', rounds=1,
    local_steps=steps // len(sites), local_epochs=1, seed=SEED, pooled=True)
  params = train(schedule, steps)
  tensors = {}
  for name, path, layer in tensor_names(CONFIG, HUGGING_FACE):
    node = params if layer is None else params['layers']
    for key in path:
      node = node[key]
    values = np.asarray(node if layer is None else node[layer])
    tensors[name] = np.ascontiguousarray(values.T if path[-1] == 'kernel' else values)
  end = tokenizer.eos_token_id
  settings = to_hugging_face(CONFIG, str(output)) | {
    'eos_token_id': end, 'pad_token_id': end, 'bos_token_id': None}
  write_folder(output, tensors, 'model.safetensors', settings, 'config.json')


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('output', 'models/tiny', 'Folder to write.', flag_values=values)
  flags.DEFINE_integer('steps', 2000, 'Training steps.', flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    values = read_flags(argv, define, needed=('output',))
    set_up()
    build(Path(values.output), values.steps)

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
