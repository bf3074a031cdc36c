"""Next-token loss of one packed step: one shared instruction, several examples a row.

The instruction is fed once, as a stream of its own [P]; the examples lie packed in rows [R, N].
Linear layers see P + R*N tokens; in attention the instruction attends causally to itself, and a
row to the instruction and causally to its own segment. This is exactly the mathematics of one
padded row per example. The head is applied to supervised places only.
"""

from functools import partial

import jax
import jax.numpy as jnp

from fedmedjax.model.attention import Attend, Source, attend, heads_first
from fedmedjax.model.llama import Llama, head_weight
from fedmedjax.types import Batch

# Places per head product: 512 x 128,256 float32 logits are 263 MB for each site at once.
HEAD_CHUNK = 512


def packed_attention(q, k, v, cache, context, window=None, *, attend: Attend = attend):
  """Attention of a packed pass (an `Attention` of `model/llama.py`; nothing is cached).

  context: (prefix_valid bool[P], segments i32[R, N]); q, k, v hold the P instruction tokens
  first, then the R*N row tokens. `attend` is a kernel of `model/kernels.py`.
  """
  del cache
  prefix_valid, segments = context
  length = len(prefix_valid)
  rows, width = segments.shape

  def split(x):
    return x[:length], x[length:].reshape(rows, width, *x.shape[1:])

  (prefix_q, row_q), (prefix_k, row_k), (prefix_v, row_v) = split(q), split(k), split(v)
  prefix_k, prefix_v, row_k, row_v = map(heads_first, (prefix_k, prefix_v, row_k, row_v))
  own_mask = segments[:, :, None] == segments[:, None, :]
  own_mask = own_mask & jnp.tril(jnp.ones((1, width, width), bool))
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  if window is not None:
    at_prefix, at_rows = split(window.positions)
    own_mask = own_mask & window.covers(at_rows, at_rows)
    causal = causal & window.covers(at_prefix, at_prefix)[None]
    prefix_valid = prefix_valid[None, None] & window.covers(at_rows, at_prefix[None])
  own = Source(row_k, row_v, own_mask)
  if not length:
    return attend(row_q, (own,)).reshape(q.shape), None
  prefix = attend(prefix_q[None], (Source(prefix_k[:, None], prefix_v[:, None], causal),))[0]
  out = attend(row_q, (Source(prefix_k, prefix_v, prefix_valid), own))
  return jnp.concatenate([prefix, out.reshape(rows * width, *q.shape[1:])]), None


def packed_loss(model: Llama, adapter: dict, base: dict, batch: Batch):
  """Summed loss of a step: a `LossFn` once `model` is bound.

  Args:
    model: a Llama built with `packed_attention`.
    adapter: the `lora` collection (may be empty).
    base: the `params` collection.
    batch: see `types.Batch`.

  Returns:
    (sum of nats f32[], sum of target weights f32[]).
  """
  length = batch.prefix.shape[0]
  # Padding of the instruction (-1) sits at its end, so earlier positions are unaffected.
  tokens = jnp.concatenate([jnp.maximum(batch.prefix, 0), batch.tokens.reshape(-1)])
  positions = jnp.concatenate([jnp.arange(length), batch.positions.reshape(-1)])
  hidden, _ = model.apply(
    {'params': base, 'lora': adapter}, tokens, positions, None,
    (batch.prefix >= 0, batch.segments))
  rows = hidden[length:].reshape(*batch.tokens.shape, -1)
  places = jnp.take_along_axis(rows, batch.target_index[..., None], axis=1)
  supervised = batch.prefix_targets.shape[0]
  hidden = jnp.concatenate([hidden[:supervised], places.reshape(-1, places.shape[-1])])
  targets = jnp.concatenate([batch.prefix_targets, batch.targets.reshape(-1)])
  weights = jnp.concatenate([batch.prefix_weight, batch.target_weight.reshape(-1)])
  # Once, not for every chunk of places.
  head = model.fetch('head', head_weight(base))
  total = weighted_nll(HEAD_CHUNK, hidden, head, targets, weights)
  return total, weights.sum()


def _chunks(chunk: int, *arrays):
  """Splits axis 0 into the fewest equal parts of at most `chunk`: [Q, ...] -> [n, q, ...].

  Zeros pad the last part, fewer than n of them.
  """
  count = arrays[0].shape[0]
  parts = -(-count // chunk)
  pad = -count % parts
  return [
    jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)).reshape(parts, -1, *x.shape[1:])
    for x in arrays
  ]


def _chunk_nll(head, hidden, targets):
  """hidden [q, D], targets i32[q] -> (nats [q], softmax [q, V]), in float32 or wider."""
  logits = jnp.einsum(
    'qd,vd->qv', hidden, head,
    preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32))
  log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)
  return (log_z - chosen)[:, 0], lambda: jnp.exp(logits - log_z)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_nll(chunk: int, hidden, head, targets, weights):
  """sum_q weights_q * -log softmax(hidden_q head^T)[targets_q], `chunk` places at a time.

  The head is frozen, so d/d hidden = w (softmax head - head[target]) is formed in the forward
  pass and the logits need neither be kept nor computed again.

  Args:
    chunk: places per head product.
    hidden: [Q, D].
    head: [V, D], not differentiable (TypeError).
    targets: i32[Q].
    weights: f32[Q], not differentiated.

  Returns:
    f32[] (float64 when hidden is).
  """
  def body(total, part):
    nats, _ = _chunk_nll(head, part[0], part[1])
    return total + jnp.sum(nats * part[2]), None

  zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
  return jax.lax.scan(body, zero, _chunks(chunk, hidden, targets, weights))[0]


def _nll_forward(chunk, hidden, head, targets, weights):
  if head.perturbed:
    raise TypeError('weighted_nll: the head is frozen and has no gradient')
  hidden, head, weights = hidden.value, head.value, weights.value
  targets = targets.value

  def body(total, part):
    place, target, weight = part
    nats, softmax = _chunk_nll(head, place, target)
    expected = (softmax() * weight[:, None]).astype(head.dtype) @ head
    gradient = expected - weight[:, None].astype(head.dtype) * head[target]
    return total + jnp.sum(nats * weight), gradient

  zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
  total, gradient = jax.lax.scan(body, zero, _chunks(chunk, hidden, targets, weights))
  return total, gradient.reshape(-1, hidden.shape[-1])[: hidden.shape[0]]


def _nll_backward(chunk, gradient, cotangent):
  del chunk
  return (gradient * cotangent).astype(gradient.dtype), None, None, None


weighted_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)
