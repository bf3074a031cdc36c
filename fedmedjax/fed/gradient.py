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
