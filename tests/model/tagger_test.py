"""The word tagger against plain numpy, and what of it is trained."""

import jax
import numpy as np
import pytest

from fedmedjax import tree
from fedmedjax.model.tagger import (
  TaggerConfig,
  frozen_weights,
  init_adapter,
  word_logits,
  word_loss,
)
from fedmedjax.types import LabelBatch

CONFIG = TaggerConfig(num_labels=5, width=6, buckets=7, lora_scale=1.5)
RANK, FEATURES = 3, 2


@pytest.fixture(scope='module')
def base():
  return frozen_weights(CONFIG)


@pytest.fixture(scope='module')
def adapter():
  """A and B both away from zero."""
  fresh = init_adapter(jax.random.key(1), CONFIG, RANK)
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda x: x + np.asarray(0.3 * rng.standard_normal(x.shape), np.float32), fresh)


@pytest.fixture(scope='module')
def batch():
  """Two windows of 4 and 2 words; the second label of a type is not annotated."""
  rng = np.random.default_rng(3)
  valid = np.array([[True] * 4, [True] * 2 + [False] * 2])
  labels = np.where(valid, rng.choice([0, 1, 2], (2, 4)), 0)
  return LabelBatch(
    rng.integers(0, CONFIG.buckets, (2, 4, FEATURES)).astype(np.int32), valid,
    labels.astype(np.int32), valid.astype(np.float32), np.array([True, True, True, False, False]))


def by_hand(adapter, base, batch) -> np.ndarray:
  """Logits [B, T, Y], word by word: the counts as one long vector, whole matrices."""
  number, scale = CONFIG.buckets, CONFIG.lora_scale
  out = np.full((2, 4, CONFIG.num_labels), -np.inf)
  merged = {
    name: np.asarray(base[name], np.float64) + scale * np.asarray(
      pair['a'][0], np.float64) @ np.asarray(pair['b'][0], np.float64)
    for name, pair in adapter['layers'].items()}
  for row in range(2):
    for place in range(4):
      x = np.zeros(3 * number)
      for side in range(3):
        other = place + side - 1
        if 0 <= other < 4 and batch.valid[row, other]:
          for feature in batch.tokens[row, other]:
            x[side * number + feature] += (number / FEATURES)**0.5
      logits = np.maximum(x @ merged['hidden'], 0) @ merged['output']
      out[row, place] = np.where(batch.allowed, logits, -np.inf)
  return out


def test_logits_and_loss_are_those_of_numpy(adapter, base, batch):
  found, expected = word_logits(CONFIG, adapter, base, batch), by_hand(adapter, base, batch)
  np.testing.assert_allclose(found[batch.valid], expected[batch.valid], rtol=1e-4, atol=1e-5)
  total = weight = 0.0
  for row, place in zip(*np.nonzero(batch.weight), strict=True):
    kept = expected[row, place][batch.allowed]
    total += np.log(np.exp(kept).sum()) - expected[row, place][batch.labels[row, place]]
    weight += 1
  nats, words = word_loss(CONFIG, adapter, base, batch)
  np.testing.assert_allclose((nats, words), (total, weight), rtol=1e-4)


def test_a_fresh_adapter_is_the_frozen_tagger(base, batch):
  """B is zero, whatever A and the rank are; entries of x have a mean square of 1."""
  fresh = init_adapter(jax.random.key(4), CONFIG, 2)
  nothing = jax.tree.map(np.zeros_like, fresh)
  np.testing.assert_array_equal(
    word_logits(CONFIG, fresh, base, batch), word_logits(CONFIG, nothing, base, batch))
  np.testing.assert_allclose(
    word_logits(CONFIG, fresh, base, batch)[batch.valid],
    by_hand(nothing, base, batch)[batch.valid], rtol=1e-4, atol=1e-5)


def test_only_factors_are_trained_and_all_of_them(adapter, base, batch):
  """Both layers, the readout too; unannotated labels and padding get no gradient."""
  assert tree.paths(adapter) == [
    'layers/hidden/a', 'layers/hidden/b', 'layers/output/a', 'layers/output/b']
  gradient = jax.grad(lambda one: word_loss(CONFIG, one, base, batch)[0])(adapter)
  assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradient))
  assert not np.any(gradient['layers']['output']['b'][..., 3:])
  other = batch._replace(tokens=np.where(batch.valid[..., None], batch.tokens, 5))
  same = jax.grad(lambda one: word_loss(CONFIG, one, base, other)[0])(adapter)
  jax.tree.map(np.testing.assert_array_equal, gradient, same)


def test_frozen_weights_are_a_function_of_their_shapes(base):
  """As a file would be: drawn alike by every site and every run."""
  frozen_weights.cache_clear()
  again = frozen_weights(CONFIG)
  jax.tree.map(np.testing.assert_array_equal, base, again)
  wide = frozen_weights(CONFIG._replace(buckets=3000))['hidden']
  np.testing.assert_allclose(np.asarray(wide).std() * 9000**0.5, 1.0, atol=0.02)
