"""A word tagger with LoRA: a frozen random network of two layers, adapted by low-rank factors.

It is no language model: nothing of it is pretrained, and it knows of a word only its hashed
features and those of its two neighbours. It is there so that ways to aggregate adapters can be
compared in seconds a run; docs/models.md says what such a comparison can tell. Random features that
stay as they are drawn, with a trained readout: Rahimi & Recht, "Random Features for Large-Scale
Kernel Machines", NIPS 2007; here layer and readout learn through LoRA (Hu et al.,
arXiv:2106.09685), as the projections of a LLaMA do.

The input x [3 N] of a word counts the features of the word before, of the word itself and of the
word behind in N buckets each, times sqrt(N / F): like an activation of a LLaMA behind its norm, x
has a mean square of 1. Then h = relu(x W + s (x A_1) B_1) [D] and logits = h V + s (h A_2) B_2 [Y],
with s = alpha / rank. Since x is nearly all zeros, x W and x A_1 are sums of rows.

Letters: B windows of text, T words of a window, F features of a word, N buckets, D width, Y labels.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.model.label_loss import label_nats, of_annotated
from fedmedjax.types import LabelBatch

Array = jax.Array

# The frozen weights are a function of their shapes alone, as if they were a file that all share.
_SEED = 0
# Words that x is made of: the one before, the word itself, the one behind.
_WORDS = 3


class TaggerConfig(NamedTuple):
  """Shapes of a tagger, and its adapter's scale."""

  num_labels: int    # Y
  width: int         # D
  buckets: int       # N
  lora_scale: float  # alpha / rank

  @property
  def shapes(self) -> dict[str, tuple[int, int]]:
    """(D_in, D_out) of the adapted layers."""
    return {'hidden': (_WORDS * self.buckets, self.width), 'output': (self.width, self.num_labels)}


@cache
def frozen_weights(config: TaggerConfig) -> dict[str, Array]:
  """{'hidden': W f32[3 N, D], 'output': V f32[D, Y]}, random, of variance 1 / D_in."""
  rng = np.random.default_rng(_SEED)
  return {
    name: jnp.asarray(shape[0]**-0.5 * rng.standard_normal(shape), jnp.float32)
    for name, shape in config.shapes.items()}


def init_adapter(key: Array, config: TaggerConfig, rank: int) -> dict:
  """A fresh adapter: A uniform as PEFT draws it, B zero; see `lora.init_adapter`.

  Returns:
    {'layers': {'hidden' and 'output': {'a': f32[1, D_in, rank], 'b': f32[1, rank, D_out]}}}, with
    the leading axis of one layer that adapters of a LLaMA have.
  """
  layers = {}
  for number, (name, (d_in, d_out)) in enumerate(config.shapes.items()):
    bound = d_in**-0.5
    layers[name] = {
      'a': jax.random.uniform(
        jax.random.fold_in(key, number), (1, d_in, rank), jnp.float32, -bound, bound),
      'b': jnp.zeros((1, rank, d_out), jnp.float32)}
  return {'layers': layers}


def input_rows(config: TaggerConfig, batch: LabelBatch) -> Array:
  """Which entries of x are counted, i32[B, T, 3 F]; 3 N where a neighbour is missing."""
  number = config.buckets
  tokens = jnp.where(batch.valid[..., None], batch.tokens, _WORDS * number)
  around = jnp.pad(tokens, ((0, 0), (1, 1), (0, 0)), constant_values=_WORDS * number)
  last = tokens.shape[1]
  return jnp.concatenate([
    around[:, place:place + last] + place * number for place in range(_WORDS)], axis=-1)


def word_logits(config: TaggerConfig, adapter: dict, base: dict, batch: LabelBatch) -> Array:
  """Logits f32[B, T, Y], with -inf for the labels that the batch's site does not annotate.

  Args:
    config: of the tagger.
    adapter: from `init_adapter`, of any rank.
    base: from `frozen_weights`.
    batch: tokens are i32[B, T, F], each in [0, N).
  """
  rows, layers = input_rows(config, batch), adapter['layers']
  scale = (config.buckets / batch.tokens.shape[-1])**0.5

  def counted(table: Array) -> Array:
    return scale * jnp.asarray(table).at[rows].get(mode='fill', fill_value=0.0).sum(axis=-2)

  def adapted(frozen: Array, inner: Array, b: Array) -> Array:
    return frozen + config.lora_scale * (inner @ b[0])

  h = jax.nn.relu(adapted(
    counted(base['hidden']), counted(layers['hidden']['a'][0]), layers['hidden']['b']))
  return of_annotated(
    adapted(h @ base['output'], h @ layers['output']['a'][0], layers['output']['b']), batch)


def word_loss(config: TaggerConfig, adapter: dict, base: dict, batch: LabelBatch):
  """Summed loss of a step: a `LossFn` once `config` is bound; arguments as of `word_logits`.

  Returns:
    (sum of nats f32[], sum of label weights f32[]).
  """
  return label_nats(word_logits(config, adapter, base, batch), batch)


def working_bytes(config: TaggerConfig, rows: int, width: int, features: int) -> int:
  """Bytes of what a batch [rows, width] reads of W before it is summed."""
  return 4 * rows * width * _WORDS * features * config.width
