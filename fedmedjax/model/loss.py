"""Next-token loss of one packed step: one shared instruction, several examples a row.

The instruction is fed once, as a stream of its own [P]; the examples lie packed in rows [R, N].
Linear layers see P + R*N tokens; in attention the instruction attends causally to itself, and a
row to the instruction and causally to its own segment. This is exactly the mathematics of one
padded row per example. The head is applied to supervised places only.
"""

from functools import partial

import jax
import jax.numpy as jnp

from fedmedjax.model.attention import Attend, Source, attend, capped, heads_first
from fedmedjax.model.llama import Fetch, Llama, as_stored, head_weight
from fedmedjax.types import Batch

# Words per head product: 4,096 float32 logits are 16 KB for each supervised place.
HEAD_BLOCK = 4096
# Places whose whole logits are held at once where the likeliest token is asked for.
_CHOICES_AT_ONCE = 64


def packed_attention(
  q, k, v, cache, context, window=None, cap=0.0, *, attend: Attend = attend):
  """Attention of a packed pass: an `attention.Attention` that caches nothing.

  Args:
    q: [P + R*N, H, d], queries of the P instruction tokens, then of the R*N row tokens.
    k, v: [P + R*N, KV, d], their keys and values.
    cache: not used.
    context: (prefix_valid bool[P], segments i32[R, N]).
    window: `attention.Window` of a layer that does not see everything.
    cap: of the scores, see `attention.capped`.
    attend: a kernel of `kernels.py`.

  Returns:
    (averaged values [P + R*N, H, d], None).
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
    return attend(row_q, (own,), cap).reshape(q.shape), None
  prefix = attend(prefix_q[None], (Source(prefix_k[:, None], prefix_v[:, None], causal),), cap)[0]
  out = attend(row_q, (Source(prefix_k, prefix_v, prefix_valid), own), cap)
  return jnp.concatenate([prefix, out.reshape(rows * width, *q.shape[1:])]), None


def packed_loss(model: Llama, adapter: dict, base: dict, batch: Batch, *, head_parts: int = 1):
  """Summed loss of a step: a `LossFn` once `model` is bound.

  Args:
    model: a Llama built with `packed_attention`.
    adapter: the `lora` collection, leaves [L, *p] (may be empty).
    base: the `params` collection, leaves of layers [L, ...].
    batch: rows i32[R, N] and M supervised targets, see `types.Batch`.
    head_parts: devices that the head's V words are split over as it is stored.

  Returns:
    (sum of nats f32[], sum of target weights f32[]).
  """
  hidden, places = _hidden(model, adapter, base, batch)
  supervised = batch.prefix_targets.shape[0]
  hidden = jnp.concatenate([hidden[:supervised], places])
  targets = jnp.concatenate([batch.prefix_targets, batch.targets])
  weights = jnp.concatenate([batch.prefix_weight, batch.target_weight])
  total = weighted_nll(
    HEAD_BLOCK, head_parts, hidden, head_weight(base), targets, weights, model.config.logit_cap,
    model.fetch)
  return total, weights.sum()


def _hidden(model: Llama, adapter: dict, base: dict, batch: Batch):
  """Final hidden states of a packed step: of all tokens [P + R*N, D], of the M targets [M, D]."""
  length = batch.prefix.shape[0]
  # Padding of the instruction (-1) sits at its end, so earlier positions are unaffected.
  tokens = jnp.concatenate([jnp.maximum(batch.prefix, 0), batch.tokens.reshape(-1)])
  positions = jnp.concatenate([jnp.arange(length), batch.positions.reshape(-1)])
  hidden, _ = model.apply(
    {'params': base, 'lora': adapter}, tokens, positions, None,
    (batch.prefix >= 0, batch.segments))
  return hidden, hidden[
    length + batch.target_row * batch.tokens.shape[1] + batch.target_index]


def packed_choices(model: Llama, adapter: dict, base: dict, batch: Batch):
  """The most likely token at each supervised place of a packed step, i32[M].

  Every choice is made after the right text: it is what greedy decoding would write next.

  Args:
    model, adapter, base: see `packed_loss`.
    batch: M supervised targets in rows i32[R, N]; what stands at padding means nothing.
  """
  _, places = _hidden(model, adapter, base, batch)
  head = head_weight(base)  # each device compares the words that it has
  wide = jnp.promote_types(places.dtype, jnp.float32)
  # A few places at a time: logits of all of them would be hundreds of megabytes. A cap of them
  # keeps their order.
  return jax.lax.map(
    lambda place: jnp.argmax(jnp.einsum(
      'd,vd->v', place.astype(head.dtype), head, preferred_element_type=wide)),
    places, batch_size=_CHOICES_AT_ONCE).astype(jnp.int32)


def packed_nats(model: Llama, adapter: dict, base: dict, batch: Batch, *, head_parts: int = 1):
  """The loss of each supervised target of a packed step by itself, f32[M], at padding too.

  Args:
    model, adapter, base, head_parts: see `packed_loss`.
    batch: M supervised targets in rows i32[R, N]; what stands at padding means nothing.
  """
  _, places = _hidden(model, adapter, base, batch)
  nats, _ = _over_vocabulary(
    HEAD_BLOCK, head_parts, model.config.logit_cap, model.fetch, places, head_weight(base),
    batch.targets, False)
  return nats


def _over_vocabulary(
  most: int, parts: int, cap: float, fetch: Fetch, hidden, head, targets, gradient: bool):
  """hidden [Q, D], targets i32[Q] -> (nats [Q], their gradient for hidden [Q, D] or None).

  At most about `most` words are taken at a time, and sums so far are rescaled to the largest logit
  so far: the online softmax of FlashAttention (Dao et al., arXiv:2205.14135, section 3.1) with
  words for keys. Logits [Q, block] are read again while they are near, and each is exponentiated
  once. A block has as many words of each of the `parts`, and of a head that is split over devices
  `fetch` brings one block at a time: the whole is never together on one of them.
  """
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  count, words = hidden.shape[0], head.shape[0] // parts
  whole = head.reshape(parts, words, -1)
  # The gradient needs the targets' rows: of a split head, those of a block while it is there.
  along = gradient and fetch is not as_stored
  # Blocks of one size, without a smaller last one, where that takes at most twice as many blocks.
  least = min(words, -(-head.shape[0] // most))
  blocks = next((n for n in range(least, 2 * least) if words % n == 0), least)
  size = words // blocks

  def see(seen, first, length):
    """`seen` after the words first ... first + length - 1 of each part, too."""
    peak, total, chosen, expected, rows = seen
    block = jax.lax.dynamic_slice_in_dim(whole, first, length, axis=1)
    block = fetch('head', block).reshape(-1, block.shape[-1])
    logits = capped(jnp.einsum('qd,vd->qv', operand, block, preferred_element_type=wide), cap)
    place = targets % words - first
    inside = (place >= 0) & (place < length)
    index = jnp.where(inside, targets // words * length + place, 0)
    own = jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]
    if along:
      rows = jnp.where(inside[:, None], block[index], rows)
    higher = jnp.maximum(peak, logits.max(axis=-1))
    weights, shrink = jnp.exp(logits - higher[:, None]), jnp.exp(peak - higher)
    if gradient:
      steep = weights * _slope(logits, cap) if cap else weights
      expected = expected * shrink[:, None] + jnp.einsum(
        'qv,vd->qd', steep.astype(head.dtype), block, preferred_element_type=wide)
    return (
      higher, total * shrink + weights.sum(axis=-1), jnp.where(inside, own, chosen), expected,
      rows)

  zeros, operand = jnp.zeros(count, wide), hidden.astype(head.dtype)
  seen = jax.lax.fori_loop(0, blocks, lambda i, seen: see(seen, i * size, size), (
    jnp.full(count, -jnp.inf, wide), zeros, zeros,
    jnp.zeros(hidden.shape, wide) if gradient else None,
    jnp.zeros(hidden.shape, head.dtype) if along else None))
  if words % blocks:
    seen = see(seen, blocks * size, words % blocks)
  peak, total, chosen, expected, rows = seen
  if not gradient:
    return peak + jnp.log(total) - chosen, None
  own = (rows if along else head[targets]).astype(wide)
  if cap:
    own = own * _slope(chosen, cap)[:, None]
  return peak + jnp.log(total) - chosen, expected / total[:, None] - own


def _slope(logits, cap: float):
  """The derivative of `capped` where its result is `logits` [...]: 1 - tanh^2."""
  return 1.0 - jnp.square(logits / cap)


def weighted_nll(
  most: int, parts: int, hidden, head, targets, weights, cap: float = 0.0,
  fetch: Fetch = as_stored):
  """The sum over q of weights_q * -log softmax(hidden_q head^T)[targets_q], in blocks of words.

  The head is frozen, so d/d hidden = w (softmax head - head[target]) is formed in the forward
  pass and the logits need neither be kept nor computed again. Capped logits have a factor in both
  terms: the slope of the cap there.

  Args:
    most: words per head product, about.
    parts: parts of equally many words that lie on different devices; 1 = the head is whole.
    hidden: [Q, D], final hidden states of the Q supervised places.
    head: [V, D], not differentiable (TypeError).
    targets: i32[Q].
    weights: f32[Q], not differentiated.
    cap: of the logits, see `attention.capped`.
    fetch: brings a block of words, [parts, words of each, D], to the devices that use it.

  Returns:
    f32[] (float64 when hidden is).
  """
  return _weighted_nll(most, parts, cap, fetch, hidden, head, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _weighted_nll(most: int, parts: int, cap: float, fetch: Fetch, hidden, head, targets, weights):
  nats, _ = _over_vocabulary(most, parts, cap, fetch, hidden, head, targets, False)
  return jnp.sum(nats * weights)


def _nll_forward(most, parts, cap, fetch, hidden, head, targets, weights):
  if head.perturbed:
    raise TypeError('weighted_nll: the head is frozen and has no gradient')
  hidden, head, weights = hidden.value, head.value, weights.value
  nats, gradient = _over_vocabulary(most, parts, cap, fetch, hidden, head, targets.value, True)
  return jnp.sum(nats * weights), (gradient * weights[:, None]).astype(hidden.dtype)


def _nll_backward(most, parts, cap, fetch, gradient, cotangent):
  del most, parts, cap, fetch
  return (gradient * cotangent).astype(gradient.dtype), None, None, None


_weighted_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)
