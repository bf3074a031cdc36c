"""How a step's gradient is made from the summed loss."""

import jax
import jax.numpy as jnp

from fedmedjax.fed.types import GradientFn, LossFn


def mean_gradient(loss_fn: LossFn) -> GradientFn:
  """Gradient of the mean loss per supervised token of one step.

  A step without supervised tokens has loss 0 and gradient 0.

  Args:
    loss_fn: (adapter [*p], base, batch) -> (sum of nats f32[], sum of token weights f32[]).

  Returns:
    (adapter [*p], base, batch, key) -> (mean loss f32[] in nats per token, gradient [*p]). The
    key is not used.
  """

  def gradient(adapter, base, batch, key):
    del key

    def mean(adapter):
      total, weight = loss_fn(adapter, base, batch)
      return total / jnp.maximum(weight, 1.0)

    return jax.value_and_grad(mean)(adapter)

  return gradient


def over_groups(loss_fn: LossFn, groups: int) -> LossFn:
  """The loss of a step whose examples come in groups, from the loss of one group.

  Groups are computed one after the other, so that the activations of one of them are in memory at a
  time. What adds up are the nats, the token weights and the gradient of the nats, each group by as
  many tokens as it has; whoever divides, clips or steps does so once, with the sums. The gradient
  is formed together with the loss, since to come back to a group would be to compute it again.

  Args:
    loss_fn: (adapter [*p], base, batch) -> (sum of nats f32[], sum of token weights f32[]).
    groups: G. With 1 a step's arrays have no axis for it, and its loss is `loss_fn` itself.

  Returns:
    (adapter [*p], base, batch, leaves [G, ...]) -> the same two sums over all groups. The first may
    be differentiated by the adapter, in reverse mode; by the base it may not (TypeError).
  """
  if groups == 1:
    return loss_fn

  def add(sums, terms):
    return jax.tree.map(lambda x, term: x + term.astype(x.dtype), sums, terms)

  def scanned(terms_of, batch):
    """The sum over groups of terms_of(the arrays of one)."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
      jax.eval_shape(terms_of, one))
    return jax.lax.scan(lambda sums, group: (add(sums, terms_of(group)), None), zeros, batch)[0]

  @jax.custom_vjp
  def summed(adapter, base, batch):
    return scanned(lambda group: loss_fn(adapter, base, group), batch)

  def forward(adapter, base, batch):
    if any(leaf.perturbed for leaf in jax.tree.leaves(base)):
      raise TypeError('over_groups: the base is frozen and has no gradient')
    adapter, base, batch = jax.tree.map(lambda leaf: leaf.value, (adapter, base, batch))
    sums, gradient = scanned(
      lambda group: jax.value_and_grad(loss_fn, has_aux=True)(adapter, base, group), batch)
    return sums, jax.tree.map(lambda x, p: x.astype(p.dtype), gradient, adapter)

  def backward(gradient, cotangents):
    of_nats, _ = cotangents  # token weights do not depend on the adapter
    return jax.tree.map(lambda x: x * of_nats.astype(x.dtype), gradient), None, None

  summed.defvjp(forward, backward, symbolic_zeros=True)
  return summed
