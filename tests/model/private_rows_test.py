"""Gradients of single units of privacy behind a shared instruction: those of unpacked examples."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from loss_test import LORA, check_equal, examples, loss_and_gradient, one_row_each

from fedmedjax import tree
from fedmedjax.data import pack
from fedmedjax.data.private_steps import Units, unit_layout
from fedmedjax.fed.gradient import over_groups
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_gradient import private_gradient
from fedmedjax.model.llama import Llama
from fedmedjax.model.lora import init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss

PLACES = {1: np.arange(8), 3: np.repeat(np.arange(3), 3)[:8]}


def packed_units(params, instruction, members, loss_on, size, private):
  """The private gradient of 8 examples in units of `size`, without noise."""
  shape = pack.RowShape(16, size, 32, 32 * size)
  layout = unit_layout(
    lambda part, own, step: pack.pack(part.instruction, own, shape, loss_on),
    pack.blank(shape, loss_on),
    Units('note', size, 2), 3, lambda batch: (batch.segments > 0).any((-2, -1)))
  batch = layout.pack_units(SimpleNamespace(instruction=instruction), members, PLACES[size])
  model = Llama(TINY, packed_attention, lora_scale=LORA.scale, dtype=jnp.float32)
  adapter = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape),
    init_adapter(jax.random.key(0), TINY, LORA))
  loss = over_groups(partial(packed_loss, model), layout.groups)
  return jax.jit(private_gradient(
    loss, private, together=layout.together, drawn=layout.drawn))(
      adapter, params, batch, jax.random.key(1))


@pytest.mark.parametrize('loss_on, size', [
  ('completion', 1), pytest.param('all', 3, marks=pytest.mark.slow)])
def test_a_units_gradient_is_that_of_its_unpacked_examples(tiny_params, loss_on, size):
  """Eight examples, of a unit each or in notes of 3, 3 and 2, clipped at the median of their norms:
  the sum of what each unit's own gradient, from one padded row an example, is clipped to."""
  rng = np.random.default_rng(0)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = examples(rng, instruction, [9, 17, 5, 30, 12, 21, 7, 16])
  plain = one_row_each(instruction, members, loss_on)
  own = [plain._replace(target_weight=plain.target_weight * np.isin(
    plain.target_row, np.flatnonzero(PLACES[size] == unit))) for unit in range(
      PLACES[size].max() + 1)]
  found = loss_and_gradient(jnp.float32, tiny_params, plain, 1, *own)
  whole, weights = found[0], [one.target_weight.sum() for one in own]
  sums = [jax.tree.map(lambda x, w=w: x * w, gradient) for (_, gradient), w in zip(
    found[1:], weights, strict=True)]
  norms = [float(tree.norm(one)) for one in sums]
  clip = float(np.median(norms))
  assert min(norms) < clip < max(norms)
  expected = jax.tree.map(lambda *x: sum(
    leaf * min(1.0, clip / norm) for leaf, norm in zip(x, norms, strict=True)), *sums)
  loss, gradient = packed_units(
    tiny_params, instruction, members, loss_on, size, Private(clip, 0.0, 1.0))
  check_equal((loss, gradient), (whole[0], expected), 1e-5)
