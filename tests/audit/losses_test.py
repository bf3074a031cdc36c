"""Losses of single examples are those of the training loss on each example alone."""

from functools import partial

import jax
import numpy as np
import pytest

from fedmedjax.audit import losses
from fedmedjax.audit.losses import Group
from fedmedjax.data import pack
from fedmedjax.data.label_steps import label_batch
from fedmedjax.data.labels import allowed_labels
from fedmedjax.experiment.build import LEARNERS, load_data
from fedmedjax.experiment.defaults import get_config
from fedmedjax.model.tagger import word_loss
from fedmedjax.runtime.progress import Reporter


def small(learner: str, **more):
  config = get_config('fed_medlora')
  config.update_from_flattened_dict({
    'fed.learner': learner, 'data.sites': ('synthetic_icu',), 'data.external': (),
    'data.synthetic_notes': 4, 'eval.max_examples': 7, 'eval.batch_size': 3, 'lora.rank': 2,
    'tagger.buckets': 64, 'tagger.width': 8, **more})
  data = load_data(config, Reporter(quiet=True))
  plan = dict(rounds=1, local_steps=1, local_epochs=1, round_steps=0, batch_size=2, micro_batch=0,
              seed=0, pooled=False, cohorts=None)
  kind = LEARNERS[learner]
  trainable, _ = kind.parts(config, data, kind.sizes(config, data), **plan)
  # B of a fresh adapter is zero: it would not matter.
  adapter = jax.tree.map(lambda x: x + 0.05, trainable.adapter)
  reader, part = losses.READERS[learner](config, data), data.sites[0].tasks[0]
  tokens = tuple(window for own in reader.encode(part, part.test) for window in own)
  found = reader.losses(
    [Group(part, tokens), Group(part, ())], [adapter, trainable.adapter], lambda count: None)
  assert [len(one) for one in found[0]] == [len(tokens), 0]
  assert not np.allclose(found[0][0], found[1][0], rtol=1e-3)
  return data, part, tokens, adapter, trainable, found[0][0]


@pytest.mark.parametrize('loss_on', ['completion', 'all'])
def test_of_a_language_model(tiny_folder, loss_on):
  data, part, tokens, adapter, trainable, found = small(
    'lora', **{'model.path': str(tiny_folder), 'fed.loss_on': loss_on, 'model.matmul': 'float32'})
  loss = jax.jit(partial(trainable.loss_fn('none')))
  shape = pack.plan_shape([[one] for one in tokens], len(part.instruction) - 1, loss_on)
  for one, mean in zip(tokens, found, strict=True):
    # Without the instruction's own tokens.
    batch = pack.pack(part.instruction, [one], shape, loss_on)
    batch = batch._replace(prefix_weight=np.zeros_like(batch.prefix_weight))
    nats, weight = loss(adapter, data.base.params, batch)
    assert float(nats / weight) == pytest.approx(mean, rel=1e-5)


def test_of_a_tagger():
  data, part, tokens, adapter, _, found = small('tagger')
  base = data.base
  config = base.config._replace(lora_scale=64.0 / 2)
  for one, mean in zip(tokens, found, strict=True):
    batch = label_batch([one], 1, 48, allowed_labels(base.labels, part.ask.types), 8)
    nats, weight = word_loss(config, adapter, base.params, batch)
    assert float(nats / weight) == pytest.approx(mean, rel=1e-5)
  # Test sentences are read with their labels.
  assert any(one.labels.any() for one in tokens)
