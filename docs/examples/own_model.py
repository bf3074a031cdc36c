"""Federated averaging of a model of one's own: a two-layer Flax MLP on invented data.

    python docs/examples/own_model.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedmedjax as fm

SITES, STEPS, BATCH, ROUNDS = 3, 20, 32, 5


class MLP(nn.Module):
  """x f32[B, 4] -> f32[B]."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))[:, 0]


def loss(params, base, batch):
  """(sum of squared errors, number of examples): sums, never a mean. `base` is not used here."""
  x, y = batch
  return jnp.sum((MLP().apply(params, x) - y) ** 2), jnp.float32(len(y))


def main():
  """Trains for some rounds -> the mean loss of each."""
  rng = np.random.default_rng(0)
  # Batches are [sites, steps, ...]; each site sees another part of the space.
  x = rng.normal(np.arange(SITES)[:, None, None, None] - 1, 1, (SITES, STEPS, BATCH, 4))
  batches = jnp.float32(x), jnp.float32(np.sin(x.sum(-1)))
  data = fm.LocalData(
    batches, step_mask=np.ones((SITES, STEPS), bool), weight=np.full(SITES, STEPS * BATCH, 'f4'))
  algorithm = fm.federated_algorithm(loss, num_sites=SITES)
  state = algorithm.init(MLP().init(jax.random.key(0), x[0, 0]))
  losses = []
  for number in range(ROUNDS):
    state, metrics = algorithm.round(
      state, (), data, jnp.arange(SITES), None, jax.random.key(number))
    losses.append(float(jnp.mean(metrics.train_loss)))
    print(f'round {number + 1}: loss {losses[-1]:.3f}')
  return losses


if __name__ == '__main__':
  main()
