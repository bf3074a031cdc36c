"""Estimates of memory, by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.types import DeviceShare
from fedmedjax.train.estimates import estimate, kept_for_gradient

FIVE = jnp.ones(5)


def loss(adapter, base, batch):
  return (jnp.sin(adapter * base) * batch).sum(), jnp.float32(1)


def test_what_a_gradient_keeps_by_hand():
  """sum(sin(a x) y) over 5 entries keeps cos(a x), 5 float32; x and y are arguments."""
  assert kept_for_gradient(loss, FIVE, FIVE, FIVE) == 5 * 4


@pytest.mark.parametrize('weights, again', [(7, 2 * 10), (50, 50)])
def test_what_a_round_needs_by_hand(weights, again):
  """Four sites, two at once, an adapter of 20 bytes, plain steps, and the loss above.

  Each of the four sends 20 bytes, the two at hand once more. Each of two has its adapter, its
  gradient and 20 bytes that are kept, or none of these and, of one of two layers, 10 that are made
  again. Beside what is made again the weights that are cut out count if they are more.
  """
  one = DeviceShare(
    lambda remat: loss if remat == 'none' else jax.checkpoint(loss), FIVE, FIVE, 20, weights,
    layers=2)
  study = SimpleNamespace(
    trainable=SimpleNamespace(share=one, adapter=FIVE), groups=1, validation=None,
    spread=None,
    schedule=SimpleNamespace(layout=SimpleNamespace(groups=1, together=1)),
    communication=SimpleNamespace(sampler=SimpleNamespace(size=4)),
    optimizer=SimpleNamespace(transform=optax.identity()))
  batches = np.ones((4, 3, 5), np.float32)
  needed = estimate(study, (None, FIVE, SimpleNamespace(batches=batches)))
  fixed = tree.num_bytes(batches) + (4 + 2) * 20
  assert needed(Execution(2, 'none')) == fixed + 2 * (2 * 20 + 20) + weights
  assert needed(Execution(2, 'full')) == fixed + 2 * (2 * 20) + again
  # All at once: there is nothing that they are laid beside.
  assert needed(Execution(0, 'none')) == tree.num_bytes(batches) + 4 * (3 * 20 + 20) + weights
