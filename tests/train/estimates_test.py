"""Estimates of memory, by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.types import DeviceShare
from fedmedjax.train import alive
from fedmedjax.train.estimates import estimate, held_for_gradient

FIVE = jnp.ones(5)


def loss(adapter, base, batch):
  return (jnp.sin(adapter * base) * batch).sum(), jnp.float32(1)


def test_what_a_gradient_keeps_by_hand():
  """sum(sin(a x) y) over 5 entries keeps cos(a x), 5 float32; x and y are arguments."""
  assert held_for_gradient(loss, FIVE, FIVE, FIVE) == (5 * 4, 0)


def test_what_a_round_needs_by_hand():
  """Four sites, two at once, an adapter of 20 bytes, plain steps, and the loss above.

  Each of two has its adapter, its gradient and, unless that is made again, 20 bytes that are kept.
  The adapter of the round's beginning is there, and while only two are computed what each of four
  sends; 7 bytes of weights, and 3 of a library.
  """
  one = DeviceShare(
    lambda remat: loss if remat == 'none' else jax.checkpoint(loss), FIVE, FIVE, 20, 7,
    copied=(1, 2), workspace=3)
  study = SimpleNamespace(
    trainable=SimpleNamespace(share=one, adapter=FIVE), groups=1, validation=None,
    spread=None,
    schedule=SimpleNamespace(layout=SimpleNamespace(groups=1, together=1)),
    communication=SimpleNamespace(sampler=SimpleNamespace(size=4)),
    optimizer=SimpleNamespace(transform=optax.identity()))
  batches = np.ones((4, 3, 5), np.float32)
  needed = estimate(study, (None, FIVE, SimpleNamespace(batches=batches)))
  fixed = tree.num_bytes(batches) + 20 + 7 + 3
  assert needed(Execution(2, 'none')) == fixed + 2 + 4 * 20 + 2 * (2 * 20 + 20)
  assert needed(Execution(2, 'full')) == fixed + 2 + 4 * 20 + 2 * (2 * 20)
  assert needed(Execution(1, 'full')) == fixed + 1 + 4 * 20 + 2 * 20
  # All at once: what they send takes the place of what they computed with.
  assert needed(Execution(0, 'none')) == fixed + 2 + 4 * (2 * 20 + 20)
  # Of the first adapter 8 bytes, in the end all of it, fit on the chip.
  for size in (8, 100):
    study.trainable.share = one._replace(on_chip=size)
    needed = estimate(study, (None, FIVE, SimpleNamespace(batches=batches)))
    assert needed(Execution(0, 'none')) == fixed - min(size, 20) + 2 + 4 * (2 * 20 + 20)


def test_a_product_that_only_leaves_is_calculated_last():
  """x [5, 4], w [4, 100], v [100, 4]. At cos(h w) v there are both, 2,000 and 80 bytes, and h of 80
  bytes, which waits for its own product; h h^T's 64 bytes would be there had that been first."""
  def body(x, w, v):
    h = jnp.sin(x)
    own = h.T @ h
    return own, (jnp.cos(h @ w) @ v) @ v[:4]

  traced = jax.make_jaxpr(body)(jnp.ones((5, 4)), jnp.ones((4, 100)), jnp.ones((100, 4)))
  assert alive.fullest(traced.jaxpr) == 2000 + 80 + 80


def test_what_lives_while_a_gradient_goes_back_by_hand():
  """Two layers x = sin(x a w), x [5, 4], a [4, 3] and w [3, 4]. Going back, the gradient of x a, 60
  bytes, is there until those of a, 48, and x, 80, are. Without a loop nothing is known."""
  def total(a, w, x):
    return jax.lax.scan(lambda x, a: (jnp.sin((x @ a) @ w), None), x, a)[0].sum()

  traced = jax.make_jaxpr(jax.grad(total))(jnp.ones((2, 4, 3)), jnp.ones((3, 4)), jnp.ones((5, 4)))
  assert alive.backward(traced) == 60 + 48 + 80
  assert alive.backward(jax.make_jaxpr(jax.grad(jnp.sum))(FIVE)) == 0
