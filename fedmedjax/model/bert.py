"""A BERT encoder with a token classifier in Linen: a baseline (docs/methods.md).

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
NAACL 2019, arXiv:1810.04805. Every token's last hidden state is classified on its own, as in
transformers' BertForTokenClassification, whose logits these are (tested to 1e-4).

As the "adapter" of a federated round it is the whole model: all layers and the classifier travel.
The embeddings (words, positions, token types and their norm) are frozen, as in the reference, and
are the `base`. Where we deviate: no dropout, since a step's loss is a function of adapter, base
and batch alone; and the softmax of a step runs over the labels that its site annotates, so that
what a site did not annotate is not taught to be absent (docs/methods.md, partial annotation).

Letters: B windows of text, T tokens of a window, Y labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from fedmedjax.model.attention import SAVED, WIDE
from fedmedjax.model.label_loss import label_nats, of_annotated
from fedmedjax.model.llama import REMAT
from fedmedjax.types import LabelBatch

Array = jax.Array


class BertConfig(NamedTuple):
  """Hyper-parameters, read from config.json beside the weights (`files/bert.py`)."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  max_position_embeddings: int
  type_vocab_size: int
  layer_norm_eps: float
  initializer_range: float


def _norm(config: BertConfig, name: str) -> nn.LayerNorm:
  # The fast variance, a difference of squares, loses half of the digits.
  return nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, name=name)


class Embeddings(nn.Module):
  """The sum of word, position and type embeddings, normalised: tokens i32[B, T] -> [B, T, D].

  Every token is of type 0: one text, no pair.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    config = self.config

    def table(name: str, rows: int) -> Array:
      initializer = nn.initializers.normal(config.initializer_range)
      return self.param(name, initializer, (rows, config.hidden_size), jnp.float32)

    x = table('word', config.vocab_size)[tokens]
    x = x + table('position', config.max_position_embeddings)[None, :tokens.shape[1]]
    x = x + table('type', config.type_vocab_size)[None, :1]
    return _norm(config, 'norm')(x)


class Layer(nn.Module):
  """One block, normalised after each sum: (x [B, T, D], valid bool[B, T]) -> ([B, T, D], None).

  Its signature is that of a scan body.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x: Array, valid: Array):
    config = self.config
    heads = (*x.shape[:2], config.num_heads, config.hidden_size // config.num_heads)

    def dense(name: str, features: int, inputs: Array, saved_as: str = SAVED) -> Array:
      return checkpoint_name(nn.Dense(features, name=name)(inputs), saved_as)

    q, k, v = (
      dense(name, config.hidden_size, x).reshape(heads) for name in ('query', 'key', 'value'))
    out = jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None, :]).reshape(x.shape)
    x = _norm(config, 'attention_norm')(x + dense('attention_output', config.hidden_size, out))
    h = nn.gelu(dense('intermediate', config.intermediate_size, x, WIDE), approximate=False)
    h = dense('output', config.hidden_size, h)
    return _norm(config, 'output_norm')(x + h), None


class BertTagger(nn.Module):
  """A token classifier: tokens i32[B, T], valid bool[B, T] -> logits f32[B, T, Y].

  `valid` is False for padding. Its parameters are {'embeddings', 'layers', 'classifier'}; leaves of
  layers are [L, ...]. `remat` is a key of REMAT: which results of a layer are kept for the backward
  pass.
  """

  config: BertConfig
  num_labels: int
  remat: str = 'none'

  @nn.compact
  def __call__(self, tokens: Array, valid: Array) -> Array:
    layer = Layer
    if REMAT[self.remat] is not None:
      layer = nn.remat(Layer, policy=REMAT[self.remat], prevent_cse=False)
    layers = nn.scan(
      layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=nn.broadcast,
      length=self.config.num_layers,
    )(self.config, name='layers')
    x, _ = layers(Embeddings(self.config, name='embeddings')(tokens), valid)
    return nn.Dense(self.num_labels, name='classifier')(x)


def split_frozen(params: dict) -> tuple[dict, dict]:
  """All parameters -> (adapter, what is trained and sent; base, the frozen embeddings [V, D]).

  Leaves of the adapter are [L, ...] for the layers and [D, Y], [Y] for the classifier.
  """
  adapter = {name: node for name, node in params.items() if name != 'embeddings'}
  return adapter, {'embeddings': params['embeddings']}


def label_logits(model: BertTagger, adapter: dict, base: dict, batch: LabelBatch) -> Array:
  """Logits f32[B, T, Y], with -inf for the labels that the batch's site does not annotate."""
  return of_annotated(
    model.apply({'params': {**base, **adapter}}, batch.tokens, batch.valid), batch)


def label_loss(model: BertTagger, adapter: dict, base: dict, batch: LabelBatch):
  """Summed loss of a step: a `LossFn` once `model` is bound.

  Args:
    model: the tagger.
    adapter, base: from `split_frozen`.
    batch: see `types.LabelBatch`; a label of weight above 0 is an allowed one.

  Returns:
    (sum of nats f32[], sum of label weights f32[]).
  """
  return label_nats(label_logits(model, adapter, base, batch), batch)


def working_bytes(model: BertTagger, rows: int, width: int) -> int:
  """Bytes of a layer's float32 states [rows, width, ...]: intermediate, and attention of heads."""
  config = model.config
  return 4 * rows * width * (config.intermediate_size + config.num_heads * width)
