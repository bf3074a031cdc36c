"""A word tagger with LoRA: a frozen random network of two layers, adapted by low-rank factors.

It is no language model: nothing of it is pretrained, and it knows of a word only its hashed
features and its two neighbours. It is there so that ways to aggregate adapters can be compared in
seconds a run; docs/models.md says what such a comparison can tell. Random features that stay as
they are drawn, with a trained readout: Rahimi & Recht, "Random Features for Large-Scale Kernel
Machines", NIPS 2007; here readout and layer learn through LoRA (Hu et al., arXiv:2106.09685), as
the projections of a LLaMA do.

A word's vector is the sum of its features' rows over sqrt(F); it is joined with those of the words
before and behind it, x [3 D]. Then h = relu(x W + s (x A_1) B_1) [D] and
logits = h V + s (h A_2) B_2 [Y], with s = alpha / rank.

Letters: B windows of text, T words of a window, F features of a word, D width, Y labels.
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
  buckets: int       # rows of the table of features
  lora_scale: float  # alpha / rank

  @property
  def shapes(self) -> dict[str, tuple[int, int]]:
    """(D_in, D_out) of the adapted layers."""
    return {'hidden': (_WORDS * self.width, self.width), 'output': (self.width, self.num_labels)}


@cache
def frozen_weights(config: TaggerConfig) -> dict[str, Array]:
  """{'embedding': f32[buckets, D], 'hidden': f32[3 D, D], 'output': f32[D, Y]}, random.

  Rows of the table have entries of variance 1; sums over D_in keep the size of what they sum.
  """
  rng = np.random.default_rng(_SEED)

  def draw(rows: int, columns: int, deviation: float) -> Array:
    return jnp.asarray(deviation * rng.standard_normal((rows, columns)), jnp.float32)

  return {'embedding': draw(config.buckets, config.width, 1.0)} | {
    name: draw(*shape, shape[0]**-0.5) for name, shape in config.shapes.items()}


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


def word_logits(config: TaggerConfig, adapter: dict, base: dict, batch: LabelBatch) -> Array:
  """Logits f32[B, T, Y], with -inf for the labels that the batch's site does not annotate.

  Args:
    config: of the tagger.
    adapter: from `init_adapter`, of any rank.
    base: from `frozen_weights`.
    batch: tokens are i32[B, T, F], rows of the table.
  """

  def layer(name: str, x: Array) -> Array:
    pair = adapter['layers'][name]
    return x @ base[name] + config.lora_scale * ((x @ pair['a'][0]) @ pair['b'][0])

  number = batch.tokens.shape[-1]
  words = base['embedding'][batch.tokens].sum(axis=-2) * number**-0.5
  words = jnp.where(batch.valid[..., None], words, 0.0)
  around = jnp.pad(words, ((0, 0), (1, 1), (0, 0)))
  x = jnp.concatenate([around[:, :-2], words, around[:, 2:]], axis=-1)
  return of_annotated(layer('output', jax.nn.relu(layer('hidden', x))), batch)


def word_loss(config: TaggerConfig, adapter: dict, base: dict, batch: LabelBatch):
  """Summed loss of a step: a `LossFn` once `config` is bound; arguments as of `word_logits`.

  Returns:
    (sum of nats f32[], sum of label weights f32[]).
  """
  return label_nats(word_logits(config, adapter, base, batch), batch)


def working_bytes(config: TaggerConfig, rows: int, width: int, features: int) -> int:
  """Bytes of the vectors of a batch [rows, width]: of all features, of x, and of a layer."""
  return 4 * rows * width * config.width * (features + _WORDS + 1)
