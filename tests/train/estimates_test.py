"""Estimates of memory, by hand."""

import jax.numpy as jnp

from fedmedjax.train.estimates import kept_for_gradient


def test_what_a_gradient_keeps_by_hand():
  """sum(sin(a x) y) over 5 entries keeps cos(a x), 5 float32; x and y are arguments."""
  def loss(adapter, base, batch):
    return (jnp.sin(adapter * base) * batch).sum(), jnp.float32(1)

  five = jnp.ones(5)
  assert kept_for_gradient(loss, five, five, five) == 5 * 4
